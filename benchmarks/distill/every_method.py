"""Train every method on real data, and draw its losses and scores.

    python benchmarks/distill/every_method.py --data DATA --teachers TEACHERS --out results.json [--only NAME ...]

DATA holds folders with the hub's column names (mrpc, stsb, cola, wnut17, wikitext2), TEACHERS a checkpoint for each of
the first four (`potstill finetune`), `mlm` (masked_lm_teacher.py) and `encoder`, a sentence encoder. The students keep
every other layer. The runs are short: they show that each method learns, not what it could reach. Finished runs stay in
the work folder, so that an interrupted call goes on; the curves go into a picture beside the result.
"""

import argparse
import json
from datetime import date
from pathlib import Path

from potstill import machine
from potstill.config import build_recipe
from potstill.distill import distill

MASKED = {
    "task": "fill-mask",
    "data.max_eval_examples": 300,
    "data.packing": "blocks",
    "distill.gradient_accumulation": 1,
    "distill.warmup_steps": 6,
    "distill.max_steps": 60,
    "distill.eval_every": 20,
}
RUNS = {
    "task-cola": ("cola", "cola", {"metric": "matthews_correlation"}),
    "task-mrpc": ("mrpc", "mrpc", {"metric": "accuracy_and_f1", "distill.epochs": 1}),
    "task-stsb": ("stsb", "stsb", {"metric": "pearson_and_spearman"}),
    "task-wnut17": ("wnut17", "wnut17", {"task": "token-classification"}),
    "tinybert-cola": ("cola", "cola", {"distill.method": "tinybert", "metric": "matthews_correlation"}),
    "distilbert": ("mlm", "wikitext2", MASKED | {"distill.method": "distilbert", "student.family": "distilbert"}),
    "minilmv2": ("mlm", "wikitext2", MASKED | {"distill.method": "minilmv2"}),
    "tinybert": ("mlm", "wikitext2", MASKED | {"distill.method": "tinybert"}),
    "mobilebert": ("mlm", "wikitext2", MASKED | {"distill.method": "mobilebert"}),
    "embedding": ("encoder", "stsb", {"task": "feature-extraction", "distill.method": "embedding"}),
}
COMMON = {
    "student.layers": 3,
    "distill.batch_size": 16,
    "distill.learning_rate": 1e-4,
    "distill.log_every": 10,
    "distill.epochs": 2,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teachers", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("out/every_method"))
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--draw", action="store_true", help="only collect and draw what is finished")
    asked = parser.parse_args()
    for name in asked.only:
        folder = asked.work / name
        if not folder.is_dir() and not asked.draw:
            teacher, data, settings = RUNS[name]
            places = {"teacher.model": str(asked.teachers / teacher), "data.name": str(asked.data / data)}
            distill(build_recipe({}, overrides=list((COMMON | places | settings).items())), folder, resume=True)
            print(summary(folder), flush=True)
    reports = {name: read(asked.work / name) for name in RUNS if (asked.work / name).is_dir()}
    result = {
        "date": date.today().isoformat(),
        "machine": machine.describe(),
        "settings": COMMON,
        "runs": {name: condense(report) for name, report in reports.items()},
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(reports, asked.out.with_suffix(".png"))


def read(folder):
    return json.loads((folder / "distill.json").read_text(encoding="utf-8"))


def summary(folder):
    short = condense(read(folder))
    return json.dumps({"run": folder.name} | {key: short[key] for key in ("metric", "teacher", "student", "floor")})


def condense(report):
    """Return what the table and the picture are made of."""
    metric = report["metric"]
    logs = [entry for entry in report["history"] if "loss" in entry]
    return {
        "method": report["method"],
        "task": report["task"],
        "metric": metric,
        "teacher": report["teacher"]["scores"].get(metric),
        "student": report["student"]["scores"][metric],
        "student_scores": report["student"]["scores"],
        "floor": report["floor"].get(metric),
        "parameters": [report["teacher"]["parameters"], report["student"]["parameters"]],
        "steps": report["steps"],
        "seconds": report["seconds"],
        "train_examples": report["data"]["train_examples"],
        "losses": {
            key: [[entry["step"], round(entry[key], 4)] for entry in logs if key in entry]
            for key in sorted({key for entry in logs for key in entry if key.startswith("loss")})
        },
        "scores": [
            [entry["step"], entry[f"eval_{metric}"]] for entry in report["history"] if f"eval_{metric}" in entry
        ],
    }


def draw(reports, file):
    """Draw the losses of each run, and its score beside them."""
    from matplotlib import pyplot

    if not reports:
        return
    figure, axes = pyplot.subplots(len(reports), 2, figsize=(10, 2.3 * len(reports)), squeeze=False)
    for (left, right), (name, report) in zip(axes, reports.items(), strict=True):
        short = condense(report)
        for part, points in short["losses"].items():
            steps, values = zip(*points, strict=True)
            left.plot(steps, values, label=part.removeprefix("loss_"), linewidth=2 if part == "loss" else 1)
        left.set_title(f"{name}: loss and its parts", fontsize=9)
        left.set_yscale("log")
        left.legend(fontsize=6)
        steps, values = zip(*short["scores"], strict=True)
        right.plot(steps, values, "o-")
        for level, style, who in ((short["teacher"], "-", "teacher"), (short["floor"], ":", "ignoring the text")):
            if level is not None:
                right.axhline(level, color="grey", linestyle=style, linewidth=1, label=who)
        if right.get_legend_handles_labels()[1]:
            right.legend(fontsize=6)
        if short["metric"] == "perplexity":
            right.set_yscale("log")
        right.set_title(f"{short['metric']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
