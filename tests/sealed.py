"""A bundle of small graphs, sealed with a true manifest, and what spoils it."""

import json

import pytest

from potstill.bundle import (
    MANIFEST_NAME,
    MODEL_FILES,
    Manifest,
    ModelRecord,
    read_bundle,
    record_files,
    write_manifest,
)
from potstill.errors import TamperedError
from tests import onnx_graphs

FP32 = onnx_graphs.classifier().SerializeToString()
INT8 = onnx_graphs.classifier(onnx_graphs.dynamic_product).SerializeToString()
FILES = {
    "config.json": b"{}\n",
    "tokenizer.json": b'{"model": {}}\n',
    "tokenizer_config.json": b"{}\n",
    "onnx/model.onnx": FP32,
    "onnx/model_int8.onnx": INT8,
}


def write_folder(out):
    """Write a bundle with fp32 and int8; return its folder."""
    for name, content in FILES.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    seal(out)
    return out


def seal(out, **records):
    """Write the manifest over whatever lies in the folder; `records` change what it says of a model."""
    models = {
        "fp32": ModelRecord(file=MODEL_FILES["fp32"]),
        "int8": ModelRecord(file=MODEL_FILES["int8"], batch_invariant=False),
    } | {name.replace("_", "-"): ModelRecord(**record) for name, record in records.items()}
    manifest = Manifest(
        task="text-classification",
        labels=["negative", "positive"],
        max_length=64,
        inputs=["input_ids", "attention_mask"],
        outputs=["logits"],
        parameters=12,
        models=models,
        files=record_files(out),
    )
    write_manifest(out, manifest)


def edit(folder, change):
    """Change the manifest as JSON."""
    file = folder / MANIFEST_NAME
    content = json.loads(file.read_text())
    content.pop("digest", None)  # as whoever edits it on purpose would
    change(content)
    file.write_text(json.dumps(content))


def refusal(folder):
    with pytest.raises(TamperedError) as caught:
        read_bundle(folder)
    return str(caught.value)
