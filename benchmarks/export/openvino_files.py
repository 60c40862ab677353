"""Make OpenVINO's files of an ONNX file, in its environment: `python openvino_files.py fp32|int8 ONNX TEXTS FOLDER`.

int8 is NNCF's post-training quantisation for transformers, calibrated on TEXTS.
"""

import sys
from pathlib import Path

import nncf
import openvino
from inputs import read_batches


def main(precision: str, source: str, texts: str, folder: str) -> None:
    """Write model.xml and model.bin."""
    model = openvino.Core().read_model(source)
    if precision == "int8":
        names = [port.get_any_name() for port in model.inputs]
        batches = list(read_batches(Path(texts), names))
        model = nncf.quantize(
            model, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches)
        )
    # Left to itself it halves the weights to fp16, and the fp32 contestant would not be one.
    openvino.save_model(model, Path(folder) / "model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
