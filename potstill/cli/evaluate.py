"""`potstill evaluate`: the quality of one checkpoint or bundle, or of an encoder on GLUE."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.bundle import MANIFEST_NAME, read_bundle
from potstill.checkpoint import task_of
from potstill.cli import glue as glue_cli
from potstill.cli import stopping
from potstill.cli.checks import check_evaluate
from potstill.cli.options import JsonOption, LabelColumnOption, ResumeOption, TextColumnOption, scored_split
from potstill.errors import UsageError
from potstill.extras import require
from potstill.tasks import TEXT_CLASSIFICATION

_DEFAULTS = {"split": "validation", "task": TEXT_CLASSIFICATION.name, "pooling": None, "max_length": None}
_LARGEST_MATRIX = 12
_CORNER = "label \\ prediction"


def evaluate(
    model: Annotated[str, typer.Argument(help="A bundle, a checkpoint folder or a hub id.", show_default=False)],
    data: Annotated[str, typer.Option(help="Hub id or folder of labelled texts; with --glue, of all its tasks.")],
    split: Annotated[str | None, typer.Option(help="Which split to score.", show_default="validation")] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Which of a bundle's files; repeatable.", show_default="all")
    ] = None,
    label_column: LabelColumnOption = None,
    text_column: TextColumnOption = None,
    task: Annotated[
        str | None, typer.Option(help="What a checkpoint answers.", show_default="what it was trained for")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="The score to put first.", show_default="the task's own")] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            help="mean or cls, for embeddings.", show_default="what a sentence-transformers folder says, else mean"
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Longest text for a checkpoint; a bundle knows.",
            min=8,
            show_default="a sentence-transformers folder's own, else 128 or what the model reads",
        ),
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
    check_evaluate(given)
    stopping.keeps(stopping.left_by_nothing)
    given["split"] = scored_split(given.get("split"), given["data"], [given["model"]])
    results, extras = _score(given)
    _show(results, extras, given)


def _score(given: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return results by file, and what is too long to print with them."""
    folder = Path(given["model"])
    reading = {
        "split": given["split"],
        "label_column": given.get("label_column"),
        "text_columns": given.get("text_column"),
        "limit": given.get("limit"),
    }
    if (folder / MANIFEST_NAME).exists():
        only_checkpoints = ("task", "pooling", "max_length", "confusion")
        _refuse(given, only_checkpoints, "is for checkpoints, and this is a bundle; leave the option out")
        _check_files(given, read_bundle(folder).manifest.task)
        results = _score_bundle(folder, given, reading)
        # Several files of one bundle: those written beside the scores are of the first.
        kept = [result.pop("predictions", None) for result in results.values()]
        return results, {"predictions": kept[0]}
    _refuse(given, ("precision",), "chooses a bundle's file, and this is a checkpoint; leave the option out")
    result = _score_checkpoint(given, reading)
    return {"torch": result}, {"predictions": result.pop("predictions", None)}


def _refuse(given: Mapping[str, Any], names: tuple[str, ...], why: str) -> None:
    for name in names:
        if name in given:
            raise UsageError(f"--{name.replace('_', '-')} {why}")


def _show(results: dict[str, dict[str, Any]], extras: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    from potstill.cli.render import print_json, print_table
    from potstill.files import write_text

    first = next(iter(results.values()))
    if "predictions" in given:
        import json

        lines = [json.dumps(row, ensure_ascii=False) for row in extras["predictions"]]
        write_text(given["predictions"], "\n".join(lines) + "\n")
    if "confusion" in given:
        from potstill.distill.confusion_matrix import draw_confusion

        if "confusion_matrix" not in first:
            raise UsageError("--confusion draws single labels, and this model gives several, or amounts")
        draw_confusion(given["confusion"], first["confusion_matrix"], first["labels"])
    _warn(results)
    if "as_json" in given:
        print_json(results)
        return
    names = list(first["scores"])
    rows = [
        [name, result["num_examples"], *(f"{result['scores'][key]:.4f}" for key in names)]
        for name, result in results.items()
    ]
    whole = given["split"] == _DEFAULTS["split"] and Path(given["data"]).expanduser().is_file()
    read = given["data"] if whole else f"{given['data']} ({given['split']})"
    print_table(f"{given['model']} on {read}", ["model", "texts", *names], rows)
    if first.get("per_class"):
        _print_classes(first)


def _warn(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Say on stderr what a score alone does not show."""
    for name, result in results.items():
        who = f"{name} is" if len(results) > 1 else "the model is"
        if result["warning"]:
            typer.echo(f"warning: {who} {result['warning']}", err=True)
        if result["lost_finite"]:
            typer.echo(
                f"warning: {name} answered {result['lost_finite']} texts with NaN or infinity, which count as wrong",
                err=True,
            )
    for note in dict.fromkeys(note for result in results.values() for note in result["notes"]):
        typer.echo(f"note: {note}", err=True)


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
    from potstill.tasks import get_task

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
                folder,
                examples,
                precision=precision,
                metric=given.get("metric"),
                keep_predictions="predictions" in given,
                progress=progress,
            )
            for precision in precisions
        }


def _check_files(given: Mapping[str, Any], task: str) -> None:
    """Refuse files beside the scores that cannot be written, before any model is loaded."""
    from potstill.errors import OutputError
    from potstill.tasks import FILL_MASK, TEXT_CLASSIFICATION

    if "confusion" in given:
        require("torch", extra="distill")
        from potstill.distill.confusion_matrix import check_picture

        if task != TEXT_CLASSIFICATION.name:
            raise UsageError(f"--confusion draws the classes of texts, and {task} has none; leave it out")
        check_picture(given["confusion"])
    if "predictions" in given and task == FILL_MASK.name:
        raise UsageError("--predictions has nothing to write: fill-mask has no answer per example; leave it out")
    if "predictions" in given and not given["predictions"].parent.is_dir():
        raise OutputError(f"there is no folder {given['predictions'].parent} for --predictions; make it first")


def _score_checkpoint(given: Mapping[str, Any], reading: dict[str, Any]) -> dict[str, Any]:
    settings = {name: given.get(name, default) for name, default in _DEFAULTS.items() if name != "split"}
    settings["task"] = given.get("task") or (task_of(given["model"]) or TEXT_CLASSIFICATION).name
    _check_files(given, settings["task"])
    require("torch", extra="distill")
    require("transformers", extra="distill")
    from potstill.cli.render import progress_bars
    from potstill.distill.evaluation import Reading, evaluate

    if "pooling" in given and settings["task"] != "feature-extraction":
        raise UsageError(f"--pooling makes one vector of a text, which {settings['task']} does not; leave it out")
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
