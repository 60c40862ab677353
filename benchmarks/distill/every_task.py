"""Students of half the layers with the words of their task alone, on five public tasks: score, size and speed.

    python benchmarks/distill/every_task.py train ENCODER DATA --work out/every_task
    python benchmarks/distill/every_task.py bench ENCODER DATA --work out/every_task --table docs/how-we-measure.md \
        --result benchmarks/results/every-task.json

ENCODER is a checkpoint without a head, DATA a folder with a folder for each task, under the hub's names. Each task is
what a user types: `finetune` makes the teacher of the encoder, `distill` a student of half its layers and of the pieces
that the training texts have, `export` both as fp32 and int8, `bench` holds them against each other. `train` takes no
times and may run beside other work; `bench` wants an idle machine. What is there already is not made again.

One seed, and settings that nobody tuned: the same passes and learning rates for all. Teachers keep the best of their
passes on the validation texts, as students do, so scores of both are somewhat high, and alike.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from potstill import machine
from potstill.files import write_text

MARKS = ("<!-- every_task.py --table -->\n", "<!-- end -->\n")
TASKS = {
    "cola": "CoLA, is it grammatical?",
    "mrpc": "MRPC, paraphrases",
    "rte": "RTE, entailment",
    "stsb": "STS-B, similarity",
    "wnut17": "WNUT-17, names in tweets",
}
PASSES, RATE = "5", "1e-4"
"""Of teachers and students alike."""


def potstill(*arguments: str | Path, refused: int = 0) -> bool:
    """Run a command, which shows its own progress, and return whether it did not end with the status `refused`."""
    print("potstill", *arguments, flush=True)
    ended = subprocess.run([sys.executable, "-m", "potstill", *map(str, arguments)], stdout=subprocess.DEVNULL)
    if ended.returncode not in (0, refused):
        sys.exit(ended.returncode)
    return ended.returncode == 0


def train(encoder: Path, data: Path, work: Path, name: str) -> None:
    """Make teacher, student, and the bundles of both."""
    teacher, student = work / name / "teacher", work / name / "student"
    common = ("--data", data / name, "--epochs", PASSES, "--set", f"distill.learning_rate={RATE}")
    if not teacher.is_dir():
        potstill("finetune", encoder, *common, "--out", teacher, "--resume")
    if not student.is_dir():
        potstill("distill", teacher, *common, "--layers", "3", "--vocabulary", "task", "--out", student, "--resume")
    for model in (teacher, student):
        bundle = model.with_name(f"{model.name}-onnx")
        export = ("export", model, "--data", data / name, "--out", bundle)
        if not bundle.is_dir() and not potstill(*export, refused=1):
            potstill(*export, "--precision", "fp32")


def bench(data: Path, work: Path, name: str, budget: str) -> dict[str, Any]:
    """Hold the bundles against each other and return the report."""
    out = work / name / "report"
    if not out.is_dir():
        bundles = [f"{one}={work / name / one}-onnx" for one in ("teacher", "student")]
        potstill("bench", *bundles, "--data", data / name, "--quick", "--budget", budget, "--out", out)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def row(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """Return what the table says of a task."""
    quality = report["quality"][0]
    scores = {one["key"]: one for one in quality["scores"]}
    sizes = {one["key"]: one["file_bytes"] for one in report["contestants"] if one["runner"] == "onnxruntime-cpu"}
    kept = {
        one["candidate"]: (one["kept"], one["kept_interval"])
        for one in quality["retention"]
        if one["comparison"] == "to_baseline"
    }
    speed = {
        one["candidate"]: (one["value"], one["interval"], one["disturbed"])
        for one in report["ratios"]
        if one["comparison"] == "to_baseline"
        and (one["load"].get("batch_size"), one["load"].get("num_tokens")) == (1, 128)
    }
    models = report["models"]
    words = models["student"]["source"]["vocabulary"]
    return {
        "task": name,
        "metric": quality["metric"],
        "examples": quality["num_examples"],
        "trivial": quality["trivial"],
        "score": {key: (one["value"], one["interval"]) for key, one in scores.items()},
        "better_than_trivial": {key: one["better_than_trivial"] for key, one in scores.items()},
        "kept": kept,
        "parameters": {one: models[one]["encoder_parameters"] for one in models},
        "bytes": sizes,
        "speed": speed,
        "pieces": (words["rows_before"], words["rows"]),
        "tokens_per_text": words["tokens_per_text"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""

    def score(one: dict[str, Any], key: str) -> str:
        if key not in one["score"]:
            return "refused"
        value, (low, high) = one["score"][key]
        constant = "" if one["better_than_trivial"][key] else ", no better than one answer to all"
        return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]{constant}"

    def fast(one: dict[str, Any], key: str) -> str:
        if key not in one["speed"]:
            return "-"
        value, _, disturbed = one["speed"][key]
        return f"{value:.2f}" + (" (disturbed)" if disturbed else "")

    lines = [
        "| task | metric | teacher | student | int8 student | parameters | pieces | file, fp32 and int8 "
        "| speed, fp32 and int8 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        fewer = 1 - one["parameters"]["student"] / one["parameters"]["teacher"]
        mb = {key: f"{size / 1e6:.1f}" for key, size in one["bytes"].items()}
        lines.append(
            f"| {TASKS[one['task']]} | {one['metric'].replace('_', ' ')} | "
            + " | ".join(score(one, key) for key in ("teacher/fp32", "student/fp32", "student/int8"))
            + f" | {one['parameters']['student'] / 1e6:.1f} M, {100 * fewer:.0f} % fewer"
            + f" | {one['pieces'][1]:,}"
            + f" | {mb['student/fp32']} and {mb.get('student/int8', '-')} of {mb['teacher/fp32']} MB"
            + f" | {fast(one, 'student/fp32')} and {fast(one, 'student/int8')} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("train", "bench"))
    parser.add_argument("encoder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("out/every_task"))
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--budget", default="100s", help="of each bench")
    parser.add_argument("--result", type=Path, help="JSON file")
    parser.add_argument("--table", type=Path, help="Markdown file with the marks of the table")
    asked = parser.parse_args()
    if asked.do == "train":
        for name in asked.only:
            train(asked.encoder, asked.data, asked.work, name)
        return
    rows = [row(name, bench(asked.data, asked.work, name, asked.budget)) for name in asked.only]
    print(table(rows))
    if asked.result is not None:
        write_text(asked.result, json.dumps({"machine": machine.describe(), "tasks": rows}, indent=1) + "\n")
    if asked.table is not None:
        text = asked.table.read_text(encoding="utf-8")
        before, _, behind = text.partition(MARKS[0])
        write_text(asked.table, before + MARKS[0] + table(rows) + MARKS[1] + behind.partition(MARKS[1])[2])


if __name__ == "__main__":
    main()
