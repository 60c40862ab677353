"""What the student has to beat: itself without a teacher, itself untrained, and an answer that ignores the text."""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from potstill.config import Recipe
from potstill.distill.data import TrainingData, make_scorer
from potstill.distill.methods import make_labels_objective, make_objective
from potstill.distill.trainer import TrainingRun, train
from potstill.progress import keep_quiet


def train_controls(
    recipe: Recipe,
    untrained: PreTrainedModel,
    teacher: PreTrainedModel,
    *,
    training_data: TrainingData,
    run: TrainingRun,
) -> dict[str, dict[str, Any]]:
    """Return the scores of the controls by name, each under `scores`.

    - `untrained`: the student as it was cut from the teacher;
    - `no_teacher`: the same student trained on the data alone, same batches in the same order, as long; left out where
      the data has nothing to learn from without a teacher;
    - `floor`: what an answer scores that ignores the text; left out where there is none.

    Args:
        recipe: of the distillation.
        untrained: a copy of the student before it; it is trained here.
        teacher: of the distillation.
        training_data: its data.
        run: its training, whose work folder gets a sibling.
    """
    objective = make_objective(recipe, teacher=teacher, student=untrained)
    controls: dict[str, dict[str, Any]] = {
        "untrained": {"scores": make_scorer(training_data, objective, teacher)(untrained)}
    }
    if training_data.floor:
        controls["floor"] = {"scores": training_data.floor}
    if training_data.score is None or recipe.distill.method == "embedding":
        return controls
    alone = replace(
        run,
        announce=keep_quiet,
        work_dir=run.work_dir.with_name(f"{run.work_dir.name}-control"),
        stage="train the control",
    )
    result = train(
        untrained,
        teacher=None,
        objective=make_labels_objective(recipe, untrained),
        train_set=training_data.train_set,
        collate=training_data.collate,
        score=make_scorer(training_data, objective, teacher),
        run=alone,
    )
    controls["no_teacher"] = {"scores": result.metrics, "steps": result.steps, "best_step": result.best_step}
    return controls
