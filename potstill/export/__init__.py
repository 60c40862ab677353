"""Export a checkpoint to a bundle of ONNX files, each compared with its source before the folder appears.

    from potstill.export import export_bundle

    manifest = export_bundle("student", Path("student-onnx"))

- `pipeline`, `precisions`: `export_bundle` from top to bottom, and how each precision's file is made and checked
- `source`, `onnx_source`: the input: a checkpoint, or an ONNX file that another tool exported
- `graph`, `attention`, `unpad`: trace, simplify, one attention operator per layer, no padding in the products
- `quantize`, `saturation`, `tuning`: int8 and fp16; overflow on CPUs without VNNI; the fastest int8 recipe
- `checks`, `quality`, `tokenizer_parity`: the gates that every file must pass
- `calibration`: the texts that int8 is calibrated and judged on
- `onnx_files`: write, read and validate ONNX files
"""

from potstill.extras import needing

with needing("export"):
    from potstill.export.pipeline import export_bundle
    from potstill.export.source import peek

__all__ = ["export_bundle", "peek"]
