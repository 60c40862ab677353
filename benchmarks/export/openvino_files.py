"""Make OpenVINO's files of an ONNX file, in OpenVINO's environment: `python openvino_files.py fp32|int8 ONNX FOLDER`.

int8 is NNCF's post-training quantisation for transformers, calibrated on 64 texts of 128 random tokens: the weights are
random, so that the ranges it finds matter to nobody, and 300 texts, its default, take minutes here.
"""

import sys
from pathlib import Path

import nncf
import openvino
from inputs import make_feeds

CALIBRATION_TEXTS, NUM_TOKENS, VOCAB_SIZE = 64, 128, 30522


def main(precision: str, source: str, folder: str) -> None:
    """Write model.xml and model.bin."""
    model = openvino.Core().read_model(source)
    if precision == "int8":
        names = [port.get_any_name() for port in model.inputs]
        texts = [
            make_feeds(names, batch_size=1, num_tokens=NUM_TOKENS, vocab_size=VOCAB_SIZE, seed=seed)
            for seed in range(CALIBRATION_TEXTS)
        ]
        model = nncf.quantize(
            model, nncf.Dataset(texts), model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATION_TEXTS
        )
    # Left to itself it halves the weights to fp16, and the fp32 contestant would not be one.
    openvino.save_model(model, Path(folder) / "model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
