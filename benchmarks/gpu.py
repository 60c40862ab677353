"""Everything that only a GPU can show, in one call of under nine minutes.

    python benchmarks/gpu.py --out out/gpu --result benchmarks/results/gpu.json

Four parts, each with a limit of its own, so that one that hangs or fails leaves the others their time:

- tests: `pytest -m gpu`.
- bench: BERT-base with random weights on torch (fp32, fp16, bf16) and onnxruntime-gpu (fp32, fp16), with padding in its
  products and without.
- steps: the triple-loss and MiniLMv2 steps beside the naive ones (`benchmarks/distill/step.py`).
- presets: a short run of every method.

What a machine lacks, such as onnxruntime-gpu, is written into the result, and the exit code is 1: nothing is left out
quietly. `--rehearse` runs all of it on a CPU with tiny models, to see that it works before a GPU is there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from potstill import machine
from potstill.data import load_examples
from potstill.distill.teacher import train_tokenizer
from potstill.files import write_text
from potstill.tasks import TEXT_CLASSIFICATION

ROOT = Path(__file__).parents[1]
# Seconds: together 8 min 20 s, and half a minute to make the models.
LIMITS = {"tests": 80, "bench": 180, "steps": 110, "presets": 130}
PRESETS = {
    "task": ("classifier", ["--task", "text-classification"]),
    "distilbert": ("masked", ["--task", "fill-mask"]),
    "minilmv2": ("masked", ["--task", "fill-mask"]),
    "tinybert": ("masked", ["--task", "fill-mask"]),
    "mobilebert": ("masked", ["--task", "fill-mask"]),
    "embedding": ("encoder", ["--task", "feature-extraction"]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for models, bundles and reports")
    parser.add_argument("--result", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--bertdistiller", help="folder that holds the package, see distill/step.py")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny models")
    asked = parser.parse_args()
    device = "cpu" if asked.rehearse else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU here; --rehearse runs everything on the CPU with tiny models")
    asked.out.mkdir(parents=True, exist_ok=True)
    models = make_models(asked.out / "models", tiny=asked.rehearse)
    result = {
        "date": date.today().isoformat(),
        "machine": machine.describe(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "weights": "random",
        "rehearsal": asked.rehearse,
        "parts": {},
    }
    for name in asked.only:
        commands = {
            "tests": lambda: tests(device),
            "bench": lambda: bench(models, asked.out, device),
            "steps": lambda: steps(asked, device),
            "presets": lambda: presets(models, asked.out, device),
        }[name]()
        result["parts"][name] = run_part(commands, seconds=LIMITS[name], device=device)
        collect(result["parts"], name, asked.out)
        write_text(asked.result, json.dumps(result, indent=1) + "\n")  # after each part: a later one may be cut off
    failed = [
        f"{part}: {' '.join(row['command'])}"
        for part, content in result["parts"].items()
        for row in content["commands"]
        if row["code"] != 0
    ]
    print("\n".join(["failed:", *failed] if failed else ["everything ran"]))
    sys.exit(bool(failed))


def make_models(folder, *, tiny):
    """Write BERT-base (or a tiny one) with random weights as a classifier, a masked-language model and an encoder."""
    texts = load_examples("python-docs", split="train", task=TEXT_CLASSIFICATION).texts
    tokenizer = train_tokenizer(texts, vocab_size=1000 if tiny else 30522, max_length=128)
    small = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    shape = small if tiny else {}
    kinds = {"classifier": BertForSequenceClassification, "masked": BertForMaskedLM, "encoder": BertModel}
    for name, kind in kinds.items():
        torch.manual_seed(0)
        # Weights as small as BERT's own answer alike to every text; larger ones make the parity check bite.
        config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.05, num_labels=2, **shape)
        kind(config).eval().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "data").mkdir(exist_ok=True)
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(texts[:2000])]
    for split, part in (("train", rows[:1600]), ("validation", rows[1600:])):
        write_text(folder / "data" / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in part))
    return folder


def potstill(*words):
    return [sys.executable, "-m", "potstill", *map(str, words)]


def tests(device):
    marked = ["-m", "gpu"] if device == "cuda" else ["tests/gpu"]
    return [[sys.executable, "-m", "pytest", *marked]]


def bench(models, out, device):
    """Return the commands that export with and without padding in the products, and bench all rows in turns."""
    precisions = ["--precision", "fp32", *(["--precision", "fp16"] if device == "cuda" else [])]
    export = [models / "classifier", *precisions, "--max-length", 128, "--rounds", 0, "--overwrite"]
    rows = ["--precision", "fp32", "--precision", "fp16", "--precision", "bf16"]
    # One model may have a bundle and a checkpoint: the rows of both then stand side by side.
    return [
        potstill("export", *export, "--unpad", "--out", out / "unpadded"),
        potstill("export", *export, "--no-unpad", "--out", out / "padded"),
        potstill(
            "bench",
            f"padded={out / 'padded'}",
            f"padded={models / 'classifier'}",
            f"unpadded={out / 'unpadded'}",
            "--runner",
            f"onnxruntime-{device}",
            "--runner",
            f"torch-{device}",
            *rows,
            "--batch-size",
            1,
            "--batch-size",
            32,
            "--num-tokens",
            128,
            "--rounds",
            5,
            "--quick",
            "--set",
            "launches=1",
            "--set",
            "extra_launches=0",
            "--set",
            "block_s=0.1",
            "--out",
            out / "report",
            "--overwrite",
        ),
    ]


def steps(asked, device):
    size = ["--tiny", "--rounds", "2"] if asked.rehearse else ["--rounds", "4", "--batch", "32"]
    rivals = ["--bertdistiller", asked.bertdistiller] if asked.bertdistiller else []
    contestants = ["naive", "potstill", "potstill-all", "minilmv2-768"]
    contestants += ["bertdistiller-768"] if rivals else []
    script = str(ROOT / "benchmarks" / "distill" / "step.py")
    out = str(asked.out / "steps.json")
    return [[sys.executable, script, "--device", device, *size, *rivals, "--out", out, "--only", *contestants]]


def presets(models, out, device):
    """Return a command for each method: enough steps to see that it runs, learns and writes a student."""
    count = 30 if device == "cuda" else 3
    settings = {
        "max_length": 128,
        "distill.batch_size": 32 if device == "cuda" else 8,
        "distill.log_every": max(count // 3, 1),
        "distill.allow_weak_teacher": "true",  # random weights know nothing
        "data.max_eval_examples": 64,
    }
    if device == "cpu":
        PRESETS["minilmv2"][1].extend(["--set", "distill.relation_heads=4"])  # a tiny model has too few units for 48
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return [
        potstill(
            "distill",
            models / teacher,
            *task,
            "--method",
            method,
            "--data",
            models / "data",
            "--layers",
            2,
            "--set",
            f"distill.max_steps={count}",
            *given,
            "--out",
            out / "presets" / method,
            "--overwrite",
        )
        for method, (teacher, task) in PRESETS.items()
    ]


def run_part(commands, *, seconds, device):
    """Run commands one after the other until the time is up; what fails does not keep the next from running."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    started, rows = time.monotonic(), []
    for command in commands:
        left = seconds - (time.monotonic() - started)
        begun = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=max(left, 1), check=False
            )
            code, printed = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired as late:
            code, printed = "timeout", f"{_text(late.stdout)}{_text(late.stderr)}"
        took = round(time.monotonic() - begun, 1)
        print(f"{code!s:>8} {took:6.1f} s  {' '.join(command)}", flush=True)
        if code != 0:
            print("\n".join(printed.splitlines()[-8:]), flush=True)
        shown = [Path(word).name if "/" in word else word for word in command]
        rows.append({"command": shown, "code": code, "seconds": took, "last": printed.splitlines()[-12:]})
    return {"seconds": round(time.monotonic() - started, 1), "limit": seconds, "commands": rows}


def _text(printed):
    return printed.decode(errors="replace") if isinstance(printed, bytes) else printed or ""


def collect(parts, name, out):
    """Put a part's own figures beside how its commands ended."""
    if name == "bench" and (out / "report" / "report.json").is_file():
        report = json.loads((out / "report" / "report.json").read_text(encoding="utf-8"))
        parts[name]["report"] = {key: report[key] for key in ("contestants", "cells", "ratios") if key in report}
    if name == "steps" and (out / "steps.json").is_file():
        parts[name]["report"] = json.loads((out / "steps.json").read_text(encoding="utf-8"))
    if name == "presets":
        parts[name]["losses"] = {
            folder.parent.name: [row["loss"] for row in json.loads(folder.read_text())["history"] if "loss" in row]
            for folder in sorted((out / "presets").glob("*/distill.json"))
        }


if __name__ == "__main__":
    main()
