"""`potstill finetune`: train an encoder on labels, as a teacher to distil from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from potstill.checkpoint import trained_task
from potstill.cli import stopping
from potstill.cli.checks import check_training
from potstill.cli.options import (
    FLAGS,
    EpochsOption,
    JsonOption,
    LabelColumnOption,
    OverwriteOption,
    ResumeOption,
    SetOption,
    TextColumnOption,
    column_flags,
    resolve,
)
from potstill.config import METHODS, Recipe, method_for
from potstill.data import guess_task
from potstill.extras import require
from potstill.tasks import TEXT_CLASSIFICATION

# Prefixes of the `--set` values that hold for the distillation of this teacher as well.
_PASSED_ON = ("data.", "max_length=", "metric=", "tokenizer=", "seed=")


def finetune(
    model: Annotated[str, typer.Argument(help="Hub id or checkpoint folder of an encoder.", show_default=False)],
    data: Annotated[str, typer.Option(help="Hub id (nyu-mll/glue:sst2), folder of train/validation files, or a file.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.", show_default=False)],
    text_column: TextColumnOption = None,
    label_column: LabelColumnOption = None,
    task: Annotated[
        str | None, typer.Option(help="What the model is to answer.", show_default="what model and data say")
    ] = None,
    problem_type: Annotated[
        str | None,
        typer.Option(
            help="single_label_classification, multi_label_classification or regression.",
            show_default="what the labels say",
        ),
    ] = None,
    epochs: EpochsOption = None,
    settings: SetOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train an encoder on labels: a teacher to distil from.

    It gets a new head if it has none.

    Example: potstill finetune google-bert/bert-base-uncased --data nyu-mll/glue:mrpc --out teacher/
    """
    # Before the recipe is built: method and metric follow from the task.
    task = task or _task_for(model, data)
    flags = {
        "teacher.model": model,
        "data.name": data,
        **column_flags(text_column, label_column),
        "data.problem_type": problem_type,
        "task": task,
        "distill.method": method_for(task),
        "distill.epochs": epochs,
    }
    resolved = resolve(None, flags=flags, settings=settings)
    check_training(resolved, out, overwrite=overwrite, flags=FLAGS, teaches=False)
    stopping.keeps(lambda: stopping.left_by_training(out))
    require("torch", extra="distill")
    from potstill.cli.distill import announce, print_next
    from potstill.cli.render import print_json, print_pairs, progress_bars
    from potstill.distill import finetune as train

    with progress_bars() as progress:
        report = train(resolved, out, resume=resume, overwrite=overwrite, progress=progress, announce=announce)
    if as_json:
        print_json(report)
        return
    print_pairs(
        f"Teacher {out}",
        {
            "parameters": f"{report['teacher']['parameters']:,}",
            **{name: f"{value:.4f}" for name, value in report["teacher"]["scores"].items()},
            "steps": f"{report['steps']}, best at {report['best_step']}",
            "time": f"{report['seconds']:.0f} s",
        },
    )
    print_next(next_command(out, resolved, settings or ()), report["teacher"])


def _task_for(model: str, data: str) -> str:
    """Return the task that the data's columns alone fit, else the model's own if it can be trained on labels."""
    trained = trained_task(model)
    usual = trained if trained in METHODS["task"].tasks else None
    return guess_task(data) or usual or TEXT_CLASSIFICATION.name


def next_command(out: Path, recipe: Recipe, settings: Sequence[str]) -> list[str]:
    """Return the command that distils the new teacher on the same data, with the same columns and settings."""
    words = ["potstill", "distill", str(out), "--data", recipe.data.name]
    for column in recipe.data.text_columns or ():
        words += ["--text-column", column]
    if recipe.data.label_column:
        words += ["--label-column", recipe.data.label_column]
    if recipe.task not in METHODS["task"].tasks:
        words += ["--task", recipe.task, "--method", recipe.distill.method]
    for setting in settings:
        # The teacher says its problem type itself from now on.
        if setting.strip().startswith(_PASSED_ON) and not setting.strip().startswith("data.problem_type"):
            words += ["--set", setting]
    return [*words, "--out", f"{out}-student"]
