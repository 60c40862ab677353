"""Make the checkpoints, and of them the peers' files, once: what is there stays.

    WORK/NAME/checkpoint              random weights, seed 0
    WORK/NAME/optimum-plain|o3|int8   by optimum-cli
    WORK/NAME/openvino-fp32|int8      of optimum's plain file, because OpenVINO reads ONNX

What fails leaves its reason in FOLDER.failed, and is tried again next time.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from potstill.files import new_folder

VOCAB_SIZE, MAX_LENGTH, SEED = 30522, 128, 0
ARCHITECTURES = ("bert-base", "distilbert", "minilm-l6")

_DECIDED = 4.0
# No model hub, no usage reports.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "CI": "true", "NNCF_CI": "1"}


def prepare(work: Path, architectures: Sequence[str], *, opt_python: Path, ov_python: Path) -> None:
    """Make whatever is missing."""
    for name in architectures:
        folder = work / name
        make_checkpoint(name, folder / "checkpoint")
        plain, optimum = folder / "optimum-plain", str(opt_python.parent / "optimum-cli")
        export = [optimum, "export", "onnx", "--task", "text-classification", "--model", str(folder / "checkpoint")]
        make(plain, export)
        tool = [optimum, "onnxruntime"]
        make(folder / "optimum-o3", [*tool, "optimize", "--onnx_model", str(plain), "-O3", "-o"])
        make(folder / "optimum-int8", [*tool, "quantize", "--onnx_model", str(plain), "--avx512_vnni", "-o"])
        for precision in ("fp32", "int8"):
            script = Path(__file__).with_name("openvino_files.py")
            command = [str(ov_python), str(script), precision, str(plain / "model.onnx")]
            make(folder / f"openvino-{precision}", command)


def make_checkpoint(name: str, folder: Path) -> None:
    """Write a classifier with random weights and a tokenizer, unless it is there."""
    if folder.is_dir():
        return
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        DistilBertConfig,
        DistilBertForSequenceClassification,
    )

    from potstill.data import load_examples
    from potstill.distill.teacher import train_tokenizer
    from potstill.tasks import TEXT_CLASSIFICATION

    # Random weights of standard deviation 0.02 answer alike to every text; larger ones tell right from wrong.
    common = {"vocab_size": VOCAB_SIZE, "initializer_range": 0.05}
    narrow = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    torch.manual_seed(SEED)
    if name == "distilbert":
        model = DistilBertForSequenceClassification(DistilBertConfig(**common))
    else:
        model = BertForSequenceClassification(BertConfig(**common, **(narrow if name == "minilm-l6" else {})))
    # Undecided answers flip by a hair, and potstill's quality gate would take layers back to fp32.
    model.classifier.bias.data = torch.tensor([_DECIDED, -_DECIDED])
    texts = load_examples("python-docs", split="train", task=TEXT_CLASSIFICATION).texts
    tokenizer = train_tokenizer(texts, vocab_size=VOCAB_SIZE, max_length=MAX_LENGTH)
    with new_folder(folder) as building:
        model.eval().save_pretrained(building)
        tokenizer.save_pretrained(building)


def make(folder: Path, command: Sequence[str]) -> None:
    """Run `command FOLDER`, unless the folder is there; keep the reason if it fails."""
    if folder.is_dir():
        return
    failure, start = failure_of(folder), time.perf_counter()
    try:
        with new_folder(folder) as building:
            environment = os.environ | _OFFLINE
            subprocess.run([*command, str(building)], check=True, capture_output=True, text=True, env=environment)
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", None) or "").strip().splitlines()
        failure.write_text((lines[-1] if lines else str(error)) + "\n", encoding="utf-8")
    else:
        failure.unlink(missing_ok=True)
    how = f"failed: {why_missing(folder)}" if failure.is_file() else "made"
    print(f"{folder}: {how} in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def failure_of(folder: Path) -> Path:
    """Return the file that says why a folder could not be made."""
    return folder.with_name(f"{folder.name}.failed")


def why_missing(folder: Path) -> str:
    """Say why a folder is not there."""
    failure = failure_of(folder)
    return failure.read_text(encoding="utf-8").strip() if failure.is_file() else f"{folder} is missing: run prepare"
