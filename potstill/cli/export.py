"""`potstill export`: a checkpoint becomes a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from potstill.cli.settings import JsonOption, OverwriteOption
from potstill.extras import require


def export(
    checkpoint: Annotated[str, typer.Argument(help="Hub id or checkpoint folder.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the bundle.", show_default=False)],
    task: Annotated[str, typer.Option(help="What the model answers.")] = "text-classification",
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32 or int8; repeatable.", show_default="fp32 int8")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Hub id, folder or file with texts of the task; int8 comes closer to fp32.", show_default="none"
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Which split of the data int8 may see.")] = "train",
    text_column: Annotated[
        list[str] | None, typer.Option(help="The data's column with the text; twice for pairs.", show_default="found")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Longest text in tokens.", show_default="the tokenizer's own")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX operator set.", show_default="20")] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export a model to ONNX and check every file against PyTorch before anything is published.

    Example: potstill export student/ --out student-onnx/ --precision fp32 --precision int8 --data nyu-mll/glue:sst2
    """
    from potstill.recipe import parse_section

    given = {"precisions": precision or None, "opset": opset}
    config = parse_section("export", {key: value for key, value in given.items() if value is not None})
    require("torch", extra="export")
    require("onnx", extra="export")
    from potstill.cli.render import print_json, progress_bars
    from potstill.cli.show import print_bundle
    from potstill.data import load_texts
    from potstill.export import export_bundle
    from potstill.task import get_task

    texts = []
    if data is not None and config.calibration_texts:
        limit = config.calibration_texts
        texts = load_texts(data, split=split, task=get_task(task), text_columns=text_column, limit=limit)
    with progress_bars() as progress:
        manifest = export_bundle(
            checkpoint,
            out,
            task=task,
            max_length=max_length,
            config=config,
            calibration=texts,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print_json(manifest.model_dump(mode="json"))
    else:
        print_bundle(out)
