"""`potstill trim`: a checkpoint without the pieces of its vocabulary that a task does not use."""

from pathlib import Path
from typing import Annotated

import typer

from potstill.cli import stopping
from potstill.cli.checks import check_trim
from potstill.cli.options import JsonOption, OverwriteOption, TextColumnOption
from potstill.extras import require


def trim(
    checkpoint: Annotated[
        str, typer.Argument(help="Hub id or checkpoint folder, of sentence-transformers too.", show_default=False)
    ],
    data: Annotated[
        str, typer.Option(help="Hub id, folder or file with texts of the task: its training split is counted.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the smaller checkpoint.", show_default=False)],
    vocabulary: Annotated[
        str, typer.Option(help="task, a size (9000), or min-count=5 for pieces that occur so often.")
    ] = "task",
    text_column: TextColumnOption = None,
    other_data: Annotated[
        str | None,
        typer.Option(
            help="Texts of another domain, to tell what they cost then.",
            show_default="the documentation that Python carries",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="As the hub names it.", show_default="what the checkpoint was trained for")
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Leave out the words that a task does not use.

    What falls out of the vocabulary is written in smaller pieces.

    Example: potstill trim textattack/bert-base-uncased-SST-2 --data nyu-mll/glue:sst2 --out smaller/
    """
    check_trim(
        checkpoint,
        out,
        vocabulary=vocabulary,
        data=data,
        other_data=other_data,
        text_column=text_column,
        task=task,
        overwrite=overwrite,
    )
    stopping.keeps(stopping.left_by_nothing)
    require("torch", extra="distill")
    from potstill.cli.distill import announce
    from potstill.cli.render import print_json, print_pairs
    from potstill.distill import trim as trim_checkpoint

    report = trim_checkpoint(
        checkpoint,
        out,
        data=data,
        vocabulary=vocabulary,
        task=task,
        text_columns=text_column,
        other_data=other_data,
        overwrite=overwrite,
        announce=announce,
    )
    if as_json:
        print_json(report)
        return
    saved, before = report["vocabulary"]["parameters_saved"], report["trimmed_from"]["parameters"]
    print_pairs(
        f"Checkpoint {out}",
        {"parameters": f"{before - saved:,} of {before:,} ({saved / before:.1%} fewer)"},
    )
