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
and the order of the batches, so runs of one seed are pairs. Nothing is chosen on the validation texts but the four
passes over all texts (docs/log.md): a run is scored once, at its end. The learning rate is chosen beforehand, for each
start and number of texts, on 2,000 training texts that are held out, among three: for the control where labels are
few, for soft labels and a part of the texts where all are learned from. With as many texts, every way takes as many
steps at the same rate.

Every finished run is a line of the journal, and a second call goes on behind it. Intervals are Student's t over the
seeds, 95 %: of a score, and of the paired difference to the control. They say nothing of which texts were validated on.
"""

import argparse
import json
import os
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

MARKS = ("<!-- when_to_distil.py --table -->\n", "<!-- end -->\n")
SEEDS = (1, 2, 3)
LABELS = ("all", 1000, 100)
STARTS = ("teacher", "encoder", "random")
WAYS = ("labels", "teacher", "unlabelled", "soft")
HELD_OUT_TEXTS, TUNED_ON = 2000, 20_000
# By how many texts are learned from.
SETTINGS = {
    # After 2 the raw encoder's student had 86.7 without labels where it has 88.3 after 4 (docs/log.md).
    "all": {"distill.epochs": 4, "distill.batch_size": 64},
    1000: {"distill.epochs": 20, "distill.batch_size": 32},
    100: {"distill.epochs": 60, "distill.batch_size": 16},
}
RATES = {"all": (1e-4, 2e-4, 4e-4), 1000: (5e-5, 1e-4, 2e-4), 100: (5e-5, 1e-4, 2e-4)}
WEIGHTS = {
    "labels": {"distill.alpha_ce": 1.0, "distill.alpha_kl": 0.0},
    "teacher": {"distill.alpha_ce": 1.0, "distill.alpha_kl": 1.0},
    # Of 64 texts about one has a label, which as a mean of its own would weigh as much as all answers.
    "unlabelled": {"distill.alpha_ce": 0.1, "distill.alpha_kl": 1.0},
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
    # Of the long ones first one seed of each cell, then the next.
    rest = [cell for cell in every if cell not in first]
    return first + sorted(rest, key=lambda cell: cell[3] if texts_of(cell) == "all" else 0)


def texts_of(cell):
    """Return how many texts a run learns from, a key of SETTINGS."""
    labels, _, way, _ = cell
    return "all" if way in ("unlabelled", "soft") else labels


def answered(asked, split):
    """Return the rows of a split with the teacher's probabilities beside their labels; it is asked once."""
    file = asked.work / "answered" / f"{split}.jsonl"
    if not file.is_file():
        teacher = load_checkpoint(asked.teacher, TEXT_CLASSIFICATION)
        examples = load_examples(asked.data, split=split, task=TEXT_CLASSIFICATION, label_names=teacher.label_names)
        found = Evaluation(teacher.tokenizer, examples, max_length=128).ask(teacher.model, who="teacher")
        rows = [
            {"sentence": text, "label": int(label), "teacher": [round(float(one), 6) for one in row]}
            for text, label, row in zip(examples.texts, examples.labels, softmax(found["values"]), strict=True)
        ]
        write_rows(rows, file)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_rows(rows, file):
    """Write rows, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_suffix(".half")
    half.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    half.rename(file)


def tuned_rate(cell, train, asked):
    """Return the learning rate with which a student of this start and number of texts does best on held-out texts."""
    texts, start = texts_of(cell), cell[1]
    order = np.random.default_rng(0).permutation(len(train))
    held_out, rest = order[:HELD_OUT_TEXTS], order[HELD_OUT_TEXTS:]
    way = "soft" if texts == "all" else "labels"
    data = (
        [train[place] for place in (rest[:TUNED_ON] if texts == "all" else rest)],
        [train[place] for place in held_out],
    )
    journal = asked.work / "rates.jsonl"
    scores = {}
    for rate in RATES[texts]:
        known = [
            one for one in read_journal(journal) if (one["texts_of"], one["start"], one["rate"]) == (texts, start, rate)
        ]
        if not known:
            known = [run((texts, start, way, 0), data, asked, rate) | {"texts_of": texts, "rate": rate}]
            with journal.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(known[0]) + "\n")
            print(
                f"{texts} texts, {start}, rate {rate:g}: {known[0]['accuracy']:.4f} on held-out training texts",
                flush=True,
            )
        scores[rate] = known[0]["accuracy"]
    return max(scores, key=scores.get)


def write_cell(data, cell, out):
    """Write what a run learns from: the labelled texts alone, or all, with labels where the seed has drawn some."""
    labels, _, way, seed = cell
    rows, validation = data
    count = 0 if way == "soft" else len(rows) if labels == "all" else labels
    drawn = set(np.random.default_rng(seed).permutation(len(rows))[:count].tolist())
    if texts_of(cell) != "all":
        rows = [rows[place] for place in sorted(drawn)]
    else:
        rows = [row if place in drawn else row | {"label": None} for place, row in enumerate(rows)]
    write_rows(rows, out / "train.jsonl")
    write_rows(validation, out / "validation.jsonl")
    return len(rows), count


def run(cell, data, asked, rate):
    """Train and score one student, and return its line of the journal."""
    labels, start, way, seed = cell
    scratch = asked.work / f"run-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    texts, labelled = write_cell(data, cell, scratch / "data")
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
        "distill.learning_rate": rate,
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
    passes = {(one["labels"], one["start"], one["way"]): one["settings"]["distill.epochs"] for one in runs}

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
        if passes[key] != SETTINGS[texts_of((*key, 0))]["distill.epochs"]:
            text += f", {passes[key]} passes"
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


def write_table(file, text):
    """Write the table between its marks if the file has them, as docs/when-to-distil.md, else alone."""
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    if MARKS[0] in before:
        text = before.partition(MARKS[0])[0] + MARKS[0] + text + MARKS[1] + before.partition(MARKS[1])[2]
    file.write_text(text, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("encoder")
    parser.add_argument("data")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="write the table here after every run")
    parser.add_argument("--work", type=Path, default=Path("out/when_to_distil"))
    parser.add_argument("--pause", type=Path, help="wait while this file exists")
    asked = parser.parse_args()
    asked.journal.parent.mkdir(parents=True, exist_ok=True)
    train, validation = answered(asked, "train"), answered(asked, "validation")
    for cell in cells():
        if cell in {
            tuple(one[key] for key in ("labels", "start", "way", "seed")) for one in read_journal(asked.journal)
        }:
            continue
        rate = tuned_rate(cell, train, asked)
        line = run(cell, (train, validation), asked, rate) | {"machine": machine.describe()}
        with asked.journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")
        if asked.table is not None:
            write_table(asked.table, table(read_journal(asked.journal)))
        print(*cell, f"{line['accuracy']:.4f} in {line['seconds']:.0f} s", flush=True)
    if asked.table is not None:
        write_table(asked.table, table(read_journal(asked.journal)))
    print(table(read_journal(asked.journal)))


if __name__ == "__main__":
    main()
