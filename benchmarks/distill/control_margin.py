"""Does distillation beat fine-tuning the very same student without a teacher? Paired over seeds.

    python benchmarks/distill/control_margin.py TEACHER DATA --out result.json [--set distill.batch_size=64 ...]

For each seed one student learns from labels and teacher, and one from the labels alone: same layers, same initial
weights, same batches in the same order. Finished runs are kept in the work folder, so an interrupted call goes on.
The interval is Student's t over the paired differences.
"""

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import numpy as np
from scipy import stats

from potstill import machine
from potstill.config import build_recipe, parse_setting
from potstill.distill import distill
from potstill.progress import silent

CONTROL = {"distill.alpha_kl": 0.0, "distill.alpha_cos": 0.0, "distill.alpha_ce": 1.0}


def run(recipe, folder):
    """Distil into `folder` unless it is there, and return the report."""
    if not folder.is_dir():
        distill(recipe, folder, resume=True, progress=silent)
    return json.loads((folder / "distill.json").read_text(encoding="utf-8"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("out/control_margin"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    base = [("teacher.model", asked.teacher), ("data.name", asked.data), *map(parse_setting, asked.settings)]

    rows = []
    for seed in range(1, asked.seeds + 1):
        scores = {}
        for name, extra in (("distilled", {}), ("control", CONTROL)):
            recipe = build_recipe({}, overrides=[*base, ("seed", seed), *extra.items()])
            report = run(recipe, asked.work / f"{name}-{seed}")
            scores[name] = report["student"]["scores"][asked.metric]
            scores[f"{name}_seconds"] = report["seconds"]
        teacher = report["teacher"]["scores"][asked.metric]
        rows.append({"seed": seed, **scores, "margin": scores["distilled"] - scores["control"]})
        print(json.dumps(rows[-1]), flush=True)

    margins = np.array([row["margin"] for row in rows])
    mean, error = margins.mean(), margins.std(ddof=1) / np.sqrt(len(margins))
    low, high = stats.t.interval(0.95, len(margins) - 1, loc=mean, scale=error) if error > 0 else (mean, mean)
    distilled = np.mean([row["distilled"] for row in rows])
    result = {
        "date": date.today().isoformat(),
        "machine": machine.describe(),
        "python": platform.python_version(),
        "metric": asked.metric,
        "settings": asked.settings,
        "layers": report["student"]["layers_kept"],
        "steps": report["steps"],
        "eval_examples": report["data"]["examples"],
        "teacher": teacher,
        "runs": rows,
        "distilled_mean": distilled,
        "share_of_teacher": distilled / teacher,
        "margin_mean": mean,
        "margin_interval_95": [low, high],
        "beats_control": bool(low > 0),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("share_of_teacher", "margin_mean", "margin_interval_95")}))


if __name__ == "__main__":
    main()
