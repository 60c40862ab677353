"""Make a masked-LM teacher of a bare encoder: train a new head on running text, then, if asked, everything.

    python benchmarks/distill/masked_lm_teacher.py ENCODER DATA --out teacher/

ENCODER is a checkpoint without a masked-LM head, such as all-MiniLM-L6-v2, DATA running text. The decoder is tied to
the word embeddings, which rest while only the head learns. Teachers of this kind serve to try the masked-language
methods where no pretrained masked-LM is at hand; they are weak.
"""

import argparse
import json
from pathlib import Path

from potstill.checkpoint import load_checkpoint, save_tokenizer
from potstill.config import build_recipe
from potstill.distill.data import load_training_data
from potstill.distill.methods import make_labels_objective
from potstill.distill.trainer import TrainingRun, make_scorer, train
from potstill.progress import silent
from potstill.tasks import FILL_MASK


def learn(teacher, *, recipe, work_dir, only_head):
    """Train the head, or everything, and return the scores."""
    for name, parameter in teacher.model.named_parameters():
        parameter.requires_grad_(not (only_head and name.startswith(f"{teacher.model.base_model_prefix}.")))
    training_data = load_training_data(recipe, teacher, work_dir=work_dir, progress=silent)
    objective = make_labels_objective(recipe, teacher.model)
    result = train(
        teacher.model,
        teacher=None,
        objective=objective,
        train_set=training_data.train_set,
        collate=training_data.collate,
        score=make_scorer(training_data, objective, None),
        run=TrainingRun(
            config=recipe.distill,
            metric=training_data.metric,
            maximise=training_data.maximise,
            seed=recipe.seed,
            work_dir=work_dir,
            resume=True,
            stage="",
            progress=silent,
        ),
    )
    scored = [
        {"step": entry["step"], "perplexity": round(entry["eval_perplexity"], 2)}
        for entry in result.history
        if "eval_perplexity" in entry
    ]
    return {"only_head": only_head, "scores": result.metrics, "curve": scored}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder")
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--head-epochs", type=float, default=5)
    parser.add_argument("--all-epochs", type=float, default=0)
    parser.add_argument("--head-lr", type=float, default=1e-3)
    parser.add_argument("--all-lr", type=float, default=1e-4)
    asked = parser.parse_args()

    teacher = load_checkpoint(asked.encoder, FILL_MASK, new_head={})
    stages = []
    for only_head, epochs, rate in (
        (True, asked.head_epochs, asked.head_lr),
        (False, asked.all_epochs, asked.all_lr),
    ):
        if epochs:
            settings = {
                "method": "distilbert",
                "epochs": epochs,
                "learning_rate": rate,
                "batch_size": 16,
                "gradient_accumulation": 1,
            }
            recipe = build_recipe(
                {
                    "task": "fill-mask",
                    "teacher": {"model": asked.encoder},
                    "data": {"name": asked.data, "packing": "blocks"},
                    "max_length": 128,
                    "distill": settings,
                }
            )
            work_dir = asked.out.with_name(f"{asked.out.name}.{'head' if only_head else 'all'}")
            stages.append(learn(teacher, recipe=recipe, work_dir=work_dir, only_head=only_head))
            print(json.dumps(stages[-1]), flush=True)
    teacher.model.save_pretrained(asked.out)
    save_tokenizer(teacher.tokenizer, asked.out)
    (asked.out / "RESULTS.json").write_text(json.dumps(stages, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
