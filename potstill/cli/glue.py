"""`potstill evaluate --glue`: what its options are, and how its table is printed."""

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

ONLY_GLUE = (
    "out", "tasks", "learning_rates", "epochs", "seeds", "batch_size", "train_limit", "teacher", "reference", "resume",
)  # fmt: skip
_NOT_GLUE = (
    "split", "precision", "label_column", "text_column", "task", "metric", "pooling", "confusion", "predictions",
)  # fmt: skip


def run(given: Mapping[str, Any]) -> None:
    """Fine-tune and print the table; `given` holds the options that were named, by parameter.

    Raises:
        UsageError: if an option is missing, has no effect with --glue, or is no list of numbers.
    """
    for name in _NOT_GLUE:
        if name in given:
            raise UsageError(
                f"--{name.replace('_', '-')} has no effect with --glue, whose tasks settle it; leave it out"
            )
    if "out" not in given:
        raise UsageError("--glue keeps what it has finished; pass --out FOLDER")
    grid: dict[str, Any] = {
        "tasks": [part.strip() for part in given["tasks"].split(",")] if "tasks" in given else None,
        "learning_rates": _numbers("learning_rates", given),
        "epochs": _numbers("epochs", given),
        "seeds": range(1, given["seeds"] + 1) if "seeds" in given else None,
        "batch_size": given.get("batch_size"),
        "max_length": given.get("max_length"),
        "train_limit": given.get("train_limit"),
        "eval_limit": given.get("limit"),
    }
    check_glue(given)
    stopping.keeps(lambda: _left(given["out"]))
    require("torch", extra="distill")
    require("transformers", extra="distill")
    from potstill.cli.render import print_json, progress_bars
    from potstill.distill.glue import Grid, run_glue

    with progress_bars() as progress:
        summary = run_glue(
            given["model"],
            given["out"],
            data=given["data"],
            grid=Grid(**{name: value for name, value in grid.items() if value is not None}),
            teacher=given.get("teacher"),
            reference=given.get("reference"),
            resume="resume" in given,
            progress=progress,
        )
    _warn_of_failures(summary["tasks"])
    if "as_json" in given:
        print_json(summary)
    else:
        print_summary(summary)
        sys.stdout.write(f"\nSummary: {given['out'] / 'glue.json'}\n")


def _left(out: Path) -> stopping.Left:
    """Return how many cells of the grid are finished."""
    cells = [file for file in out.rglob("*.json") if "seed" in file.stem]
    return stopping.Left([f"{len(cells)} finished cells in {out}"] if cells else [], done=(out / "glue.json").is_file())


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print the row of GLUE task by task, its averages, and how much of the reference's row is kept."""
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
    for task, found in tasks.items():
        for setting in found["settings"]:
            if setting["median"] is None:
                sys.stderr.write(
                    f"warning: {task} failed with a learning rate of {setting['learning_rate']:g} and "
                    f"{setting['epochs']:g} epochs, which therefore do not count\n"
                )


def _numbers(name: str, given: Mapping[str, Any]) -> list[float] | None:
    if name not in given:
        return None
    try:
        return [float(part) for part in given[name].split(",")]
    except ValueError:
        raise UsageError(
            f"--{name.replace('_', '-')} {given[name]!r} is not a list of numbers such as 1e-5,3e-5"
        ) from None
