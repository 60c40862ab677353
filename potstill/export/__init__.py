"""Export a checkpoint to ONNX: a bundle that was checked before anybody can see it.

    from potstill.export import export_bundle

    manifest = export_bundle("student", Path("student-onnx"))

- `pipeline`: `export_bundle`, from top to bottom, and the making of each precision
- `source`, `onnx_source`: what is exported: a checkpoint, or an ONNX file of another tool
- `graph`, `attention`, `unpad`: trace, tidy, one attention operator per layer, no padding in the products
- `quantize`, `saturation`, `tuning`: int8 and fp16; overflow on other CPUs; the fastest recipe that holds
- `checks`, `tokenizer_parity`, `calibration`: the gates of every file, and the texts that they are asked
- `onnx_files`: ONNX files on disk
"""

from potstill.extras import needing

with needing("export"):
    from potstill.export.pipeline import export_bundle
    from potstill.export.source import peek

__all__ = ["export_bundle", "peek"]
