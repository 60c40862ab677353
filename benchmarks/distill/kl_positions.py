"""Where should the teacher's word predictions be compared? Masked positions, some more, or every token.

    python benchmarks/distill/kl_positions.py TEACHER DATA --out result.json [--steps 60] [--seeds 1]

The original compares every token; comparing only the masked ones is cheaper. Same student, data, masks and steps; the
score is the perplexity at masked words held out. Finished runs stay in the work folder.
"""

import argparse
import json
from datetime import date
from pathlib import Path

from potstill import machine
from potstill.distill import distill

VARIANTS = {
    "masked": {},
    "masked + 15 %": {"distill.extra_share": 0.15},
    "all": {"distill.kl_positions": "all"},
    "no teacher": {"distill.alpha_kl": 0.0, "distill.alpha_cos": 0.0},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("out/kl_positions"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    runs = []
    for seed in range(1, asked.seeds + 1):
        for name, changed in VARIANTS.items():
            settings = {
                "task": "fill-mask",
                "seed": seed,
                "data.packing": "blocks",
                "max_length": 128,
                "data.max_eval_examples": 300,
                "student.layers": 3,
                "student.family": "distilbert",
                "distill.method": "distilbert",
                "distill.batch_size": 16,
                "distill.gradient_accumulation": 1,
                "distill.learning_rate": 1e-4,
                "distill.warmup_steps": 6,
                "distill.max_steps": asked.steps,
                "distill.eval_every": asked.steps,
            }
            folder = asked.work / f"{name.replace(' ', '')}-{seed}"
            if not folder.is_dir():
                distill(asked.teacher, folder, data=asked.data, settings=settings | changed, resume=True)
            report = json.loads((folder / "distill.json").read_text(encoding="utf-8"))
            runs.append(
                {
                    "positions": name,
                    "seed": seed,
                    **{key: report["student"]["scores"][key] for key in ("perplexity", "accuracy")},
                    "teacher_perplexity": report["teacher"]["scores"]["perplexity"],
                    "steps": report["steps"],
                    "seconds": report["seconds"],
                }
            )
            print(json.dumps(runs[-1]), flush=True)
    result = {"date": date.today().isoformat(), "machine": machine.describe(), "runs": runs}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
