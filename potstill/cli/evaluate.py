"""`potstill evaluate`: the quality of one checkpoint or bundle, or of an encoder on GLUE."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.bundle import MANIFEST_NAME, read_bundle
from potstill.cli import glue as glue_cli
from potstill.cli.settings import JsonOption, ResumeOption
from potstill.errors import UsageError
from potstill.extras import require

_DEFAULTS = {"split": "validation", "task": "text-classification", "pooling": "mean", "max_length": 128}
_LARGEST_MATRIX = 12
_CORNER = "label \\ prediction"


def evaluate(
    model: Annotated[str, typer.Argument(help="A bundle, a checkpoint folder or a hub id.", show_default=False)],
    data: Annotated[str, typer.Option(help="Hub id or folder of labelled texts; with --glue, of all its tasks.")],
    split: Annotated[str | None, typer.Option(help="Which split to score.", show_default="validation")] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Which of a bundle's files; repeatable.", show_default="all")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="The label's column.", show_default="the usual names")
    ] = None,
    text_column: Annotated[
        list[str] | None, typer.Option(help="The column of the text; twice for pairs.", show_default="the usual names")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What a checkpoint answers.", show_default="text-classification")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="The score to put first.", show_default="the task's own")] = None,
    pooling: Annotated[str | None, typer.Option(help="mean or cls, for embeddings.", show_default="mean")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Longest text for a checkpoint; a bundle knows.", min=8, show_default="128")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Score only the first so many texts.", min=1)] = None,
    confusion: Annotated[Path | None, typer.Option(help="Draw the confusion matrix: FILE.png or FILE.svg.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Write every answer, one JSON object per line.")] = None,
    glue: Annotated[
        bool, typer.Option("--glue", help="Fine-tune an encoder on every task of GLUE, and sum up.")
    ] = False,
    out: glue_cli.OutOption = None,
    tasks: glue_cli.TasksOption = None,
    learning_rates: glue_cli.RatesOption = None,
    epochs: glue_cli.EpochsOption = None,
    seeds: glue_cli.SeedsOption = None,
    batch_size: glue_cli.BatchOption = None,
    train_limit: glue_cli.TrainLimitOption = None,
    teacher: glue_cli.TeacherOption = None,
    reference: glue_cli.ReferenceOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score a model on labelled texts; a bundle is scored by the code that serves it.

    With --glue, an encoder is fine-tuned on each task's training texts first, once per learning rate, number of epochs
    and seed.

    Example: potstill evaluate student-onnx/ --data nyu-mll/glue:sst2 --precision int8
    """
    given = {name: value for name, value in locals().items() if value is not None and value is not False}
    if glue:
        glue_cli.run(given)
        return
    _refuse(given, glue_cli.ONLY_GLUE, "only fine-tunes with --glue; add it or leave the option out")
    results, extras = _score(given)
    _show(results, extras, given)


def _score(given: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return results by file, and what is too long to print with them."""
    folder = Path(given["model"])
    reading = {
        "split": given.get("split", _DEFAULTS["split"]),
        "label_column": given.get("label_column"),
        "text_columns": given.get("text_column"),
        "limit": given.get("limit"),
    }
    if (folder / MANIFEST_NAME).exists():
        only_checkpoints = ("task", "pooling", "max_length", "confusion", "predictions")
        _refuse(given, only_checkpoints, "is for checkpoints, and this is a bundle; leave the option out")
        return _score_bundle(folder, given, reading), {}
    _refuse(given, ("precision",), "chooses a bundle's file, and this is a checkpoint; leave the option out")
    result = _score_checkpoint(given, reading)
    return {"torch": result}, {"predictions": result.pop("predictions", None)}


def _refuse(given: Mapping[str, Any], names: tuple[str, ...], why: str) -> None:
    for name in names:
        if name in given:
            raise UsageError(f"--{name.replace('_', '-')} {why}")


def _show(results: dict[str, dict[str, Any]], extras: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    from potstill.cli.render import print_json, print_pairs, print_table
    from potstill.publish import write_text

    first = next(iter(results.values()))
    if "predictions" in given:
        import json

        lines = [json.dumps(row, ensure_ascii=False) for row in extras["predictions"]]
        write_text(given["predictions"], "\n".join(lines) + "\n")
    if "confusion" in given:
        from potstill.distill.pictures import draw_confusion

        if "confusion_matrix" not in first:
            raise UsageError("--confusion draws single labels, and this model gives several, or amounts")
        draw_confusion(given["confusion"], first["confusion_matrix"], first["labels"])
    if "as_json" in given:
        print_json(results)
        return
    names = list(first["scores"])
    rows = [
        [name, result["num_examples"], *(f"{result['scores'][key]:.4f}" for key in names)]
        for name, result in results.items()
    ]
    split = given.get("split", _DEFAULTS["split"])
    print_table(f"{given['model']} on {given['data']} ({split})", ["model", "texts", *names], rows)
    for name, result in results.items():
        if result.get("lost_finite"):
            warning = f"{name} answered {result['lost_finite']} texts with NaN or infinity, which count as wrong"
            print_pairs("", {"warning": warning})
    if first.get("per_class"):
        _print_classes(first)


def _print_classes(result: Mapping[str, Any]) -> None:
    from potstill.cli.render import MAX_WIDTH, print_table

    shares = ("precision", "recall", "f1")
    rows = [
        [row["label"], *(f"{row[key]:.4f}" for key in shares), row["support"], row["predicted"]]
        for row in result["per_class"]
    ]
    print_table("\nPer class", ["label", *shares, "support", "predicted"], rows)
    names = result.get("labels", [])
    if not 0 < len(names) <= _LARGEST_MATRIX:
        return
    width = max(len(_CORNER), *map(len, names)) + sum(len(name) + 2 for name in names)
    # Names that do not fit above the columns stand once, numbered, before the rows.
    heads = names if width <= MAX_WIDTH else [str(number) for number in range(len(names))]
    labels = names if heads is names else [f"{number}  {name}" for number, name in enumerate(names)]
    cells = [[label, *row] for label, row in zip(labels, result["confusion_matrix"], strict=True)]
    print_table("\nConfusion matrix", [_CORNER, *heads], cells)


def _score_bundle(folder: Path, given: Mapping[str, Any], reading: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    for module in ("onnxruntime", "tokenizers"):
        require(module, extra="serve")
    from potstill.bench import evaluate_bundle
    from potstill.cli.render import progress_bars
    from potstill.data import load_examples
    from potstill.task import get_task

    bundle = read_bundle(folder)
    manifest = bundle.manifest
    precisions = [bundle.choose(precision) for precision in given.get("precision") or manifest.models]
    examples = load_examples(
        given["data"],
        task=get_task(manifest.task),
        label_names=manifest.labels,
        problem_type=manifest.problem_type,
        **reading,
    )
    with progress_bars() as progress:
        return {
            precision: evaluate_bundle(
                folder, examples, precision=precision, metric=given.get("metric"), progress=progress
            )
            for precision in precisions
        }


def _score_checkpoint(given: Mapping[str, Any], reading: dict[str, Any]) -> dict[str, Any]:
    from potstill.errors import OutputError
    from potstill.task import TEXT_CLASSIFICATION

    require("torch", extra="distill")
    require("transformers", extra="distill")
    from potstill.cli.render import progress_bars
    from potstill.distill.pictures import check_picture
    from potstill.distill.quality import Reading, evaluate

    settings = {name: given.get(name, default) for name, default in _DEFAULTS.items() if name != "split"}
    if "pooling" in given and settings["task"] != "feature-extraction":
        raise UsageError(f"--pooling makes one vector of a text, which {settings['task']} does not; leave it out")
    if "confusion" in given:
        if settings["task"] != TEXT_CLASSIFICATION.name:
            raise UsageError(f"--confusion draws the classes of texts, and {settings['task']} has none; leave it out")
        check_picture(given["confusion"])
    if "predictions" in given and not given["predictions"].parent.is_dir():
        raise OutputError(f"there is no folder {given['predictions'].parent} for --predictions; make it first")
    with progress_bars() as progress:
        return evaluate(
            given["model"],
            data=given["data"],
            metric=given.get("metric"),
            reading=Reading(**reading),
            keep_predictions="predictions" in given,
            progress=progress,
            **settings,
        )
