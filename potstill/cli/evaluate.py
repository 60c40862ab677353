"""`potstill evaluate`: the quality of one checkpoint or bundle."""

from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.bundle import MANIFEST_NAME, read_bundle
from potstill.cli.settings import JsonOption
from potstill.extras import require


def evaluate(
    model: Annotated[str, typer.Argument(help="A bundle, a checkpoint folder or a hub id.", show_default=False)],
    data: Annotated[str, typer.Option(help="Hub id or folder with labelled texts.", show_default=False)],
    split: Annotated[str, typer.Option(help="Which split to score.")] = "validation",
    precision: Annotated[
        list[str] | None, typer.Option(help="Which of a bundle's files; repeatable.", show_default="all")
    ] = None,
    label_column: Annotated[str, typer.Option(help="The column of the label.")] = "label",
    text_column: Annotated[
        list[str] | None, typer.Option(help="The column of the text; twice for pairs.", show_default="the usual names")
    ] = None,
    task: Annotated[str, typer.Option(help="What a checkpoint answers; a bundle knows.")] = "text-classification",
    max_length: Annotated[int, typer.Option(help="Longest text for a checkpoint; a bundle knows.", min=8)] = 128,
    limit: Annotated[int | None, typer.Option(help="Score only the first so many texts.", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on labelled texts; a bundle is scored by the code that serves it.

    Example: potstill evaluate student-onnx/ --data nyu-mll/glue:sst2 --precision int8
    """
    from potstill.cli.render import print_json, print_table

    reading = {"split": split, "label_column": label_column, "text_columns": text_column, "limit": limit}
    if (Path(model) / MANIFEST_NAME).exists():
        scores = _score_bundle(Path(model), data, precisions=precision, reading=reading)
    else:
        scores = {"torch": _score_checkpoint(model, data, task=task, max_length=max_length, reading=reading)}
    if as_json:
        print_json(scores)
        return
    names = list(next(iter(scores.values()))["scores"])
    rows = [
        [name, result["num_examples"], *(f"{result['scores'][key]:.4f}" for key in names)]
        for name, result in scores.items()
    ]
    print_table(f"{model} on {data} ({split})", ["model", "texts", *names], rows)


def _score_bundle(
    folder: Path, data: str, *, precisions: list[str] | None, reading: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    for module in ("onnxruntime", "tokenizers"):
        require(module, extra="serve")
    from potstill.bench import evaluate_bundle
    from potstill.cli.render import progress_bars
    from potstill.data import load_examples
    from potstill.task import get_task

    manifest = read_bundle(folder).manifest
    examples = load_examples(data, task=get_task(manifest.task), label_names=manifest.labels, **reading)
    with progress_bars() as progress:
        return {
            precision: evaluate_bundle(folder, examples, precision=precision, progress=progress)
            for precision in precisions or list(manifest.models)
        }


def _score_checkpoint(name: str, data: str, *, task: str, max_length: int, reading: dict[str, Any]) -> dict[str, Any]:
    require("torch", extra="distill")
    require("transformers", extra="distill")
    from potstill.checkpoint import load_checkpoint
    from potstill.cli.render import progress_bars
    from potstill.data import load_examples
    from potstill.distill import evaluate_model
    from potstill.task import get_task

    checkpoint = load_checkpoint(name, get_task(task))
    examples = load_examples(data, task=get_task(task), label_names=checkpoint.label_names, **reading)
    with progress_bars() as progress:
        scores = evaluate_model(
            checkpoint.model, checkpoint.tokenizer, examples, max_length=max_length, progress=progress
        )
    return {
        "model": name,
        "data": examples.name,
        "split": examples.split,
        "num_examples": len(examples),
        "data_sha256": examples.sha256,
        "scores": scores,
    }
