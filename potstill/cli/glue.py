"""`potstill evaluate --glue`: its options, the call, and the printing of its table."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli import stopping
from potstill.cli.checks import check_glue
from potstill.errors import UsageError
from potstill.extras import require

OutOption = Annotated[Path | None, typer.Option(help="With --glue: folder for cells and summary.")]
TasksOption = Annotated[
    str | None, typer.Option(help="With --glue: such as cola,sst2.", show_default="all that the data has")
]
RatesOption = Annotated[str | None, typer.Option(help="With --glue: such as 1e-5,3e-5.", show_default="2e-5,3e-5,5e-5")]
EpochsOption = Annotated[str | None, typer.Option(help="With --glue: such as 3,5,10.", show_default="3")]
SeedsOption = Annotated[int | None, typer.Option(help="With --glue: how many seeds.", min=1, show_default="3")]
BatchOption = Annotated[int | None, typer.Option(help="With --glue: texts per step.", min=1, show_default="32")]
TrainLimitOption = Annotated[
    int | None, typer.Option(help="With --glue: train on the first so many texts.", min=1, show_default="all")
]
TeacherOption = Annotated[str | None, typer.Option(help="With --glue: an encoder for the same grid, to compare with.")]
ReferenceOption = Annotated[
    Path | None, typer.Option(help="With --glue: the glue.json of another run, to compare with.")
]


def run(
    model: str,
    data: str,
    *,
    out: Path | None,
    tasks: str | None,
    learning_rates: str | None,
    epochs: str | None,
    seeds: int | None,
    batch_size: int | None,
    max_length: int | None,
    train_limit: int | None,
    eval_limit: int | None,
    teacher: str | None,
    reference: Path | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Fine-tune an encoder on GLUE and print the table; the arguments are the options of `evaluate --glue`.

    Raises:
        UsageError: if --out is missing, or an option is not a list of numbers.
    """
    if out is None:
        raise UsageError("--glue keeps what it has finished; pass --out FOLDER")
    named = None if tasks is None else [part.strip() for part in tasks.split(",")]
    # None takes the default of `Grid`.
    grid: dict[str, Any] = {
        "tasks": named,
        "learning_rates": _numbers("--learning-rates", learning_rates),
        "epochs": _numbers("--epochs", epochs),
        "seeds": None if seeds is None else range(1, seeds + 1),
        "batch_size": batch_size,
        "max_length": max_length,
        "train_limit": train_limit,
        "eval_limit": eval_limit,
    }
    check_glue(model, data, out=out, tasks=named, teacher=teacher, reference=reference, resume=resume)
    stopping.keeps(lambda: _left(out))
    require("torch", extra="distill")
    require("transformers", extra="distill")
    from potstill.cli.render import print_json, progress_bars
    from potstill.distill.glue import Grid, run_glue

    with progress_bars() as progress:
        summary = run_glue(
            model,
            out,
            data=data,
            grid=Grid(**{name: value for name, value in grid.items() if value is not None}),
            teacher=teacher,
            reference=reference,
            resume=resume,
            progress=progress,
        )
    _warn_of_failures(summary["tasks"])
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)
        sys.stdout.write(f"\nSummary: {out / 'glue.json'}\n")


def _left(out: Path) -> stopping.Left:
    """Return how many cells (task, learning rate, epochs, seed) of the grid are finished."""
    cells = [file for file in out.rglob("*.json") if "seed" in file.stem]
    return stopping.Left([f"{len(cells)} finished cells in {out}"] if cells else [], done=(out / "glue.json").is_file())


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print the score of each task, the averages with and without WNLI, and the share of the reference's scores."""
    from potstill.cli.render import print_pairs, print_table

    reference, kept = summary.get("reference"), summary.get("retention", {})
    head = ["task", "metric", "median", "min", "max", "seeds", "lr", "epochs"]
    rows = []
    for task, found in summary["tasks"].items():
        row = [task, found["metric"], *(f"{found[key]:.4f}" for key in ("median", "min", "max"))]
        row += [len(found["values"]), f"{found['learning_rate']:g}", f"{found['epochs']:g}"]
        if reference:
            row += [f"{reference['scores'][task]:.4f}", f"{kept[task]:.1%}" if task in kept else ""]
        rows.append(row)
        # MNLI has a second validation set, of other genres than its training texts.
        if "mismatched" in found:
            other = found["mismatched"]
            rows.append(["", "mismatched", *(f"{other[key]:.4f}" for key in ("median", "min", "max"))])
    rows += [
        [name, "", f"{summary[key]:.4f}", *[""] * 5, *([f"{reference[key]:.4f}", ""] if reference else [])]
        for name, key in (("average", "average"), ("with WNLI", "average_with_wnli"))
        if summary[key] is not None
    ]
    wide = [*head, *(["teacher", "kept"] if reference else [])]
    rows = [[*row, *[""] * (len(wide) - len(row))] for row in rows]
    print_table(f"{summary['model']} on GLUE ({summary['data']})", wide, rows)
    shares = summary.get("retention_by_definition")
    lost = [task for task in summary["tasks"] if task not in kept]
    if shares:
        print_pairs(
            "\nKept of the teacher's scores",
            {
                "ratio of the averages": f"{shares['macro']:.1%}",
                "the same with WNLI": f"{shares['macro_with_wnli']:.1%}" if "WNLI" in kept else None,
                "mean of the ratios": f"{shares['mean_of_ratios']:.1%}",
                "worst task": f"{shares['worst_task']:.1%} ({summary['worst_task']})",
                "left out": ", ".join(f"{task} (the teacher has learned nothing)" for task in lost) or None,
            },
        )


def _warn_of_failures(tasks: Mapping[str, Any]) -> None:
    """Warn of settings of which the runs failed, so that the best was chosen among the others."""
    for task, found in tasks.items():
        for setting in found["settings"]:
            if setting["median"] is None:
                sys.stderr.write(
                    f"warning: {task} failed with a learning rate of {setting['learning_rate']:g} and "
                    f"{setting['epochs']:g} epochs, which therefore do not count\n"
                )


def _numbers(option: str, given: str | None) -> list[float] | None:
    """Parse an option that is a list of numbers separated by commas."""
    if given is None:
        return None
    try:
        return [float(part) for part in given.split(",")]
    except ValueError:
        raise UsageError(f"{option} {given!r} is not a list of numbers such as 1e-5,3e-5") from None
