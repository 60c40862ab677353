"""Make the checkpoints, and of them the peers' files, once: what is there stays.

    WORK/NAME/checkpoint                               random weights, seed 0; of `trained` a link to a real one
    WORK/NAME/calibration.npz                          texts for those who fit int8 to some: random, or of the task
    WORK/NAME/optimum-plain|o3|int8                    by optimum-cli
    WORK/NAME/transformers-plain|fused|int8|int8-static by transformers.exporters
    WORK/NAME/openvino-fp32|int8                       of optimum's plain file, because OpenVINO reads ONNX

What fails leaves its reason in FOLDER.failed, and is tried again next time.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from inputs import make_feeds, write_texts

from potstill.files import new_folder

VOCAB_SIZE, MAX_LENGTH, SEED = 30522, 128, 0
ARCHITECTURES = ("bert-base", "distilbert", "minilm-l6")
TRAINED = "trained"
# Weights are random, so the ranges that are found matter to nobody, and NNCF's default of 300 texts takes minutes.
_RANDOM_TEXTS = 64
# As many as potstill takes.
_CALIBRATION_TEXTS = 256

_DECIDED = 4.0
# No model hub, no usage reports.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "CI": "true", "NNCF_CI": "1"}


def prepare(work: Path, names: Sequence[str], *, opt_python: Path, ov_python: Path) -> None:
    """Make whatever is missing of the peers' files; the checkpoints and texts of `TRAINED` must be there."""
    for name in names:
        folder = work / name
        if name != TRAINED:
            make_checkpoint(name, folder / "checkpoint")
            make_random_texts(folder / "calibration.npz")
        checkpoint, texts = str(folder / "checkpoint"), str(folder / "calibration.npz")
        plain, optimum = folder / "optimum-plain", str(opt_python.parent / "optimum-cli")
        make(plain, [optimum, "export", "onnx", "--task", "text-classification", "--model", checkpoint])
        tool = [optimum, "onnxruntime"]
        make(folder / "optimum-o3", [*tool, "optimize", "--onnx_model", str(plain), "-O3", "-o"])
        make(folder / "optimum-int8", [*tool, "quantize", "--onnx_model", str(plain), "--avx512_vnni", "-o"])
        for kind in ("plain", "fused", "int8", "int8-static"):
            script = str(Path(__file__).with_name("transformers_files.py"))
            make(folder / f"transformers-{kind}", [sys.executable, script, kind, checkpoint, texts])
        for precision in ("fp32", "int8"):
            script = str(Path(__file__).with_name("openvino_files.py"))
            make(
                folder / f"openvino-{precision}", [str(ov_python), script, precision, str(plain / "model.onnx"), texts]
            )


def link_trained(work: Path, checkpoint: Path, data: str) -> None:
    """Put a real classifier beside the random ones, with texts of its task to calibrate on and to judge on."""
    folder = work / TRAINED
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "checkpoint").exists():
        (folder / "checkpoint").symlink_to(checkpoint.resolve(), target_is_directory=True)
    if (folder / "judged.npz").is_file():
        return
    from transformers import AutoTokenizer

    from potstill.data import load_examples
    from potstill.tasks import TEXT_CLASSIFICATION

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for split, file, limit in (("train", "calibration", _CALIBRATION_TEXTS), ("validation", "judged", None)):
        examples = load_examples(data, split=split, task=TEXT_CLASSIFICATION)
        texts, labels = examples.texts[:limit], examples.labels[:limit]
        ids = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        write_texts(folder / f"{file}.npz", ids, labels)


def make_random_texts(file: Path) -> None:
    """Write texts of random tokens, unless they are there."""
    if not file.is_file():
        shape = {"batch_size": _RANDOM_TEXTS, "num_tokens": MAX_LENGTH}
        write_texts(file, make_feeds(["input_ids"], **shape, vocab_size=VOCAB_SIZE, seed=SEED)["input_ids"])


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
