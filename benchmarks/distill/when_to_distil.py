"""When is a teacher worth having? Labels x start of the student x what it learns from, on SST-2.

    python benchmarks/distill/when_to_distil.py TEACHER ENCODER DATA --journal out/when.jsonl --table out/when.md

TEACHER is a fine-tuned classifier, ENCODER the encoder that it came from, DATA a folder with train.jsonl and
validation.jsonl (sentence, label). A student has 3 layers of the teacher, of the encoder, or of the encoder's shape
with random weights. It learns from all labels, 1,000, or 100:

    labels       those texts by their labels alone: the control
    teacher      those texts by labels and the teacher's answers
    unlabelled   and the rest of the texts by the teacher's answers
    soft         all texts by the teacher's answers, without any label

The teacher answers once; every run reads its answers from a column. A seed draws the labelled texts, the new weights
and the order of the batches, so runs of one seed are pairs. Nothing is chosen on the validation texts: a run is scored
once, at its end, and the settings below were found with --dev, which holds 2,000 training texts out instead.

Every finished run is a line of the journal, and a second call goes on behind it. Intervals are Student's t over the
seeds, 95 %: of a score, and of the paired difference to the control. They say nothing of which texts were validated on.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
from scipy import stats

from potstill import machine
from potstill.checkpoint import load_checkpoint
from potstill.config import build_recipe
from potstill.data import load_examples
from potstill.distill import distill
from potstill.distill.evaluation import Evaluation
from potstill.metrics import softmax
from potstill.tasks import TEXT_CLASSIFICATION

SEEDS = (1, 2, 3)
LABELS = ("all", 1000, 100)
STARTS = ("teacher", "encoder", "random")
WAYS = ("labels", "teacher", "unlabelled", "soft")
DEV_TEXTS = 2000
# By how many texts are learned from, chosen on held-out training texts (docs/log.md, "Distil"); every way takes as many
# steps with as many texts.
SETTINGS = {
    "all": {"distill.epochs": 2, "distill.batch_size": 64, "distill.learning_rate": 2e-4},
    1000: {"distill.epochs": 20, "distill.batch_size": 32, "distill.learning_rate": 1e-4},
    100: {"distill.epochs": 60, "distill.batch_size": 16, "distill.learning_rate": 1e-4},
}
WEIGHTS = {
    "labels": {"distill.alpha_ce": 1.0, "distill.alpha_kl": 0.0},
    "teacher": {"distill.alpha_ce": 1.0, "distill.alpha_kl": 1.0},
    "unlabelled": {"distill.alpha_ce": 0.5, "distill.alpha_kl": 1.0},
    "soft": {"distill.alpha_ce": 0.0, "distill.alpha_kl": 1.0},
}


def cells():
    """Return (labels, start, way, seed) in the order of the runs: what was claimed first, then what is quick."""
    first = [(1000, "encoder", way, seed) for seed in SEEDS for way in ("labels", "unlabelled")]
    first += [("all", "encoder", "soft", seed) for seed in SEEDS]
    every = [
        (labels, start, way, seed)
        for labels in (1000, 100, "all")
        for way in WAYS
        for start in ("encoder", "teacher", "random")
        for seed in SEEDS
        # All texts have a label, or none has: further ones there are not.
        if not (labels == "all" and way == "unlabelled") and not (labels != "all" and way == "soft")
    ]
    return first + sorted((cell for cell in every if cell not in first), key=lambda cell: texts_of(cell) == "all")


def texts_of(cell):
    """Return how many texts a run learns from, a key of SETTINGS."""
    labels, _, way, _ = cell
    return "all" if way in ("unlabelled", "soft") else labels


def prepare(asked, work):
    """Write train and validation rows with the teacher's probabilities beside the labels, once."""
    folder = work / ("dev" if asked.dev else "data")
    if (folder / "validation.jsonl").is_file():
        return folder
    teacher = load_checkpoint(asked.teacher, TEXT_CLASSIFICATION)
    split = {"train": "train", "validation": "validation"}
    rows = {}
    for name in split:
        examples = load_examples(asked.data, split=name, task=TEXT_CLASSIFICATION, label_names=teacher.label_names)
        found = Evaluation(teacher.tokenizer, examples, max_length=128).ask(teacher.model, who="teacher")
        rows[name] = [
            {"sentence": text, "label": int(label), "teacher": [round(float(one), 6) for one in row]}
            for text, label, row in zip(examples.texts, examples.labels, softmax(found["values"]), strict=True)
        ]
    if asked.dev:
        order = np.random.default_rng(0).permutation(len(rows["train"]))
        rows = {
            "train": [rows["train"][place] for place in order[DEV_TEXTS:]],
            "validation": [rows["train"][place] for place in order[:DEV_TEXTS]],
        }
    folder.mkdir(parents=True, exist_ok=True)
    for name, listed in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in listed)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_cell(folder, cell, out):
    """Write what a run learns from: the labelled texts alone, or all, with labels where the seed has drawn some."""
    labels, _, way, seed = cell
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    count = 0 if way == "soft" else len(rows) if labels == "all" else labels
    drawn = set(np.random.default_rng(seed).permutation(len(rows))[:count].tolist())
    if texts_of(cell) != "all":
        rows = [rows[place] for place in sorted(drawn)]
    else:
        rows = [row if place in drawn else row | {"label": None} for place, row in enumerate(rows)]
    out.mkdir(parents=True)
    (out / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.copyfile(folder / "validation.jsonl", out / "validation.jsonl")
    return len(rows), count


def run(cell, folder, work, asked, settings):
    """Train and score one student, and return its line of the journal."""
    labels, start, way, seed = cell
    scratch = work / "run"
    shutil.rmtree(scratch, ignore_errors=True)
    texts, labelled = write_cell(folder, cell, scratch / "data")
    chosen = {
        "teacher.column": "teacher",
        "student.model": asked.teacher if start == "teacher" else asked.encoder,
        "student.start": "random" if start == "random" else "copied",
        "student.layers": 3,
        "data.name": str(scratch / "data"),
        "data.labels": ["negative", "positive"],
        "max_length": 128,
        "seed": seed,
        "distill.log_every": 100,
        # Once, at the end: the best of several scores on the validation texts would be chosen on them.
        "distill.eval_every": 10**9,
        "distill.allow_weak_teacher": True,
        **SETTINGS[texts_of(cell)],
        **WEIGHTS[way],
        **settings,
    }

    def progress(stage, done, total, note):
        while asked.pause is not None and asked.pause.exists():  # another measurement has the machine
            time.sleep(1)

    report = distill(build_recipe({}, overrides=list(chosen.items())), scratch / "student", progress=progress)
    line = {
        "labels": labels,
        "start": start,
        "way": way,
        "seed": seed,
        **report["student"]["scores"],
        "texts": texts,
        "labelled": labelled,
        "steps": report["steps"],
        "seconds": report["seconds"],
        "dtype": report["dtype"],
        "settings": {key: value for key, value in chosen.items() if key.startswith("distill.")},
    }
    shutil.rmtree(scratch, ignore_errors=True)
    return line


def read_journal(file):
    """Return the finished runs; a line that a kill cut off is none."""
    runs = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            runs.append(json.loads(line))
        except ValueError:
            continue
    return runs


def interval(values):
    """Return mean, and the half width of Student's 95 % interval; None with fewer than two values."""
    if len(values) < 2:
        return float(np.mean(values)), None
    error = float(np.std(values, ddof=1)) / np.sqrt(len(values))
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1)) * error


def table(runs):
    """Return the table as Markdown: accuracy in %, and the paired difference to labels alone."""
    found = {(one["labels"], one["start"], one["way"], one["seed"]): 100 * one["accuracy"] for one in runs}

    def show(labels, start, way):
        if labels == "all" and way == "unlabelled":
            return "as beside"
        key = ("all" if way == "soft" else labels, start, way)
        scores = {seed: found[*key, seed] for seed in SEEDS if (*key, seed) in found}
        if not scores:
            return "missing"
        mean, half = interval(list(scores.values()))
        text = f"{mean:.1f}" + (f" ± {half:.1f}" if half is not None else "")
        control = {
            seed: found[labels, start, "labels", seed] for seed in scores if (labels, start, "labels", seed) in found
        }
        if way != "labels" and control:
            gain, around = interval([scores[seed] - control[seed] for seed in control])
            text += f" ({gain:+.1f}" + (
                f" [{gain - around:+.1f}, {gain + around:+.1f}])" if around is not None else ")"
            )
        return text + (f", {len(scores)} of {len(SEEDS)} seeds" if len(scores) < len(SEEDS) else "")

    names = {"teacher": "the fine-tuned teacher", "encoder": "the raw encoder", "random": "random weights"}
    lines = [
        "| labels | cut from | labels alone | with the teacher, same texts | and the rest unlabelled | no label |",
        "|---|---|---|---|---|---|",
    ]
    for labels in LABELS:
        many = f"{labels:,}" if labels != "all" else "all 67,349"
        for start in STARTS:
            lines.append(f"| {many} | {names[start]} | " + " | ".join(show(labels, start, way) for way in WAYS) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("encoder")
    parser.add_argument("data")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="write the table here after every run")
    parser.add_argument("--work", type=Path, default=Path("out/when_to_distil"))
    parser.add_argument("--pause", type=Path, help="wait while this file exists")
    parser.add_argument("--dev", action="store_true", help="score on training texts held out, to choose settings")
    parser.add_argument("--cell", action="append", help="run these alone: LABELS,START,WAY,SEED")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    settings = {key: json.loads(value) for key, value in (one.split("=", 1) for one in asked.settings)}
    wanted = cells()
    if asked.cell:
        named = [one.split(",") for one in asked.cell]
        wanted = [(a if a == "all" else int(a), start, way, int(seed)) for a, start, way, seed in named]
    folder = prepare(asked, asked.work)
    asked.journal.parent.mkdir(parents=True, exist_ok=True)
    for cell in wanted:
        if not asked.cell and cell in {
            (one["labels"], one["start"], one["way"], one["seed"]) for one in read_journal(asked.journal)
        }:
            continue
        line = run(cell, folder, asked.work, asked, settings) | {"machine": machine.describe()}
        with asked.journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")
        if asked.table is not None:
            asked.table.write_text(table(read_journal(asked.journal)), encoding="utf-8")
        print(
            json.dumps({key: line[key] for key in ("labels", "start", "way", "seed", "accuracy", "seconds")}),
            flush=True,
        )
    print(table(read_journal(asked.journal)))


if __name__ == "__main__":
    main()
