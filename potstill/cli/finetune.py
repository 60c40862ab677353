"""`potstill finetune`: make a teacher of an encoder."""

from pathlib import Path
from typing import Annotated

import typer

from potstill.cli.settings import JsonOption, OverwriteOption, ResumeOption, SetOption, resolve
from potstill.extras import require
from potstill.method import method_for


def finetune(
    model: Annotated[str, typer.Argument(help="Hub id or checkpoint folder of an encoder.", show_default=False)],
    data: Annotated[str, typer.Option(help="Hub id (nyu-mll/glue:sst2) or folder of train/validation files.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.", show_default=False)],
    task: Annotated[
        str | None, typer.Option(help="What the model is to answer.", show_default="text-classification")
    ] = None,
    problem_type: Annotated[
        str | None,
        typer.Option(help="regression or multi_label_classification.", show_default="single_label_classification"),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.", show_default="3")] = None,
    settings: SetOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train an encoder on labels alone, with a new head if it has none: a teacher to distil from.

    Example: potstill finetune google-bert/bert-base-uncased --data nyu-mll/glue:mrpc --out teacher/
    """
    flags = {
        "teacher.model": model,
        "data.name": data,
        "data.problem_type": problem_type,
        "task": task,
        "distill.method": method_for(task),
        "distill.epochs": epochs,
    }
    resolved = resolve(None, flags=flags, settings=settings)
    require("torch", extra="distill")
    from potstill.cli.render import print_json, print_pairs, progress_bars
    from potstill.cli.training import announce, next_or_warning
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
            **next_or_warning(f"potstill distill {out} --data {data} --out {out}-student", report["teacher"]),
        },
    )
