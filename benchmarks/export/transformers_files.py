"""Make transformers' own ONNX files: `python transformers_files.py KIND CHECKPOINT TEXTS FOLDER`.

KIND is plain, fused (its fusions for onnxruntime's CPU provider), or one of its `OnnxRuntimeQuantizer` with that tool's
defaults: int8, which is dynamic and of the fused graph, and int8-static, calibrated on TEXTS, of the plain graph,
because onnxruntime's static quantiser stops at the fused one with "inferred shape and existing shape differ".
"""

import sys
from pathlib import Path
from typing import Literal

import torch
from inputs import read_batches
from transformers import AutoModelForSequenceClassification
from transformers.exporters import (
    OnnxConfig,
    OnnxExporter,
    OnnxRuntimeDynamicConfig,
    OnnxRuntimeQuantizer,
    OnnxRuntimeStaticConfig,
)

from potstill.checkpoint import accepted_inputs


def main(kind: str, checkpoint: str, texts: str, folder: str) -> None:
    """Write model.onnx and its weights."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    tokens = [
        {name: torch.from_numpy(array) for name, array in batch.items()}
        for batch in read_batches(Path(texts), accepted_inputs(model), batch_size=2)
    ]
    quantizer = None
    if kind == "int8":
        quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig())
    elif kind == "int8-static":
        quantizer = OnnxRuntimeQuantizer(OnnxRuntimeStaticConfig(), calibration_dataset=tokens)
    fusions: Literal["cpu"] | None = "cpu" if kind in {"fused", "int8"} else None
    config = OnnxConfig(dynamic=True, ort_fusions=fusions, quantizer=quantizer)
    OnnxExporter().export(model, tokens[0], config=config).save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
