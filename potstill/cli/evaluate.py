"""`potstill evaluate`: the scores of one checkpoint or bundle, or of an encoder on GLUE."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.bundle import MANIFEST_NAME, EngineName, read_bundle
from potstill.cli import glue as glue_cli
from potstill.cli import stopping
from potstill.cli.checks import check_evaluate, refuse_options
from potstill.cli.options import JsonOption, LabelColumnOption, ResumeOption, TextColumnOption, scored_split
from potstill.extras import require
from potstill.tasks import get_task

if TYPE_CHECKING:
    from potstill.evaluation.summary import ModelEvaluation

# Labels up to which the confusion matrix is printed.
_LARGEST_MATRIX = 12
_CORNER = "label \\ prediction"


def evaluate(
    model: Annotated[str, typer.Argument(help="A bundle, a checkpoint folder or a hub id.", show_default=False)],
    data: Annotated[str, typer.Option(help="Hub id or folder of labelled texts; with --glue, of all its tasks.")],
    split: Annotated[str | None, typer.Option(help="Which split to score.", show_default="validation")] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Which of a bundle's files; repeatable.", show_default="all")
    ] = None,
    engine: Annotated[
        EngineName | None,
        typer.Option(
            metavar="ENGINE", help="What runs a bundle: onnxruntime, or openvino.", show_default="onnxruntime"
        ),
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
    """Score a model on labelled texts.

    A bundle is scored by the code that serves it. With --glue, an encoder is fine-tuned on each task's training texts
    first, once per learning rate, number of epochs and seed.

    Example: potstill evaluate student-onnx/ --data nyu-mll/glue:sst2 --precision int8
    """
    only_glue = {
        "--out": out,
        "--tasks": tasks,
        "--learning-rates": learning_rates,
        "--epochs": epochs,
        "--seeds": seeds,
        "--batch-size": batch_size,
        "--train-limit": train_limit,
        "--teacher": teacher,
        "--reference": reference,
        "--resume": resume,
    }
    not_glue = {
        "--split": split,
        "--precision": precision,
        "--engine": engine,
        "--label-column": label_column,
        "--text-column": text_column,
        "--task": task,
        "--metric": metric,
        "--pooling": pooling,
        "--confusion": confusion,
        "--predictions": predictions,
    }
    if glue:
        refuse_options(not_glue, "has no effect with --glue, whose tasks settle it; leave it out")
        glue_cli.run(
            model,
            data,
            out=out,
            tasks=tasks,
            learning_rates=learning_rates,
            epochs=epochs,
            seeds=seeds,
            batch_size=batch_size,
            max_length=max_length,
            train_limit=train_limit,
            eval_limit=limit,
            teacher=teacher,
            reference=reference,
            resume=resume,
            as_json=as_json,
        )
        return
    refuse_options(only_glue, "only fine-tunes with --glue; add it or leave the option out")
    check_evaluate(
        model,
        data,
        split=split or "validation",
        task=task,
        metric=metric,
        precisions=precision or (),
        pooling=pooling,
        max_length=max_length,
        text_columns=text_column,
        label_column=label_column,
        confusion=confusion,
        predictions=predictions,
    )
    stopping.keeps(stopping.left_by_nothing)
    split = scored_split(split, data, [model])
    reading: dict[str, Any] = {
        "split": split,
        "label_column": label_column,
        "text_columns": text_column,
        "limit": limit,
    }
    keep = predictions is not None
    results: Mapping[str, ModelEvaluation]
    folder = Path(model).expanduser()
    if (folder / MANIFEST_NAME).exists():
        only_checkpoints = {"--task": task, "--pooling": pooling, "--max-length": max_length, "--confusion": confusion}
        refuse_options(only_checkpoints, "is for checkpoints, and this is a bundle; leave the option out")
        results = _score_bundle(
            folder, data, reading, precisions=precision, engine=engine, metric=metric, keep_predictions=keep
        )
    else:
        only_bundles = {"--precision": precision}
        refuse_options(only_bundles, "chooses a bundle's file, and this is a checkpoint; leave the option out")
        refuse_options({"--engine": engine}, "runs a bundle, and this is a checkpoint; leave the option out")
        require("torch", extra="distill")
        require("transformers", extra="distill")
        from potstill.cli.render import progress_bars
        from potstill.distill.evaluation import Reading
        from potstill.distill.evaluation import evaluate as evaluate_checkpoint

        with progress_bars() as progress:
            result = evaluate_checkpoint(
                model,
                data=data,
                task=task,
                metric=metric,
                max_length=max_length,
                reading=Reading(**reading),
                pooling=pooling,
                keep_predictions=keep,
                progress=progress,
            )
        results = {"torch": result}
    # Taken out of the results, which are printed; of several files of a bundle, the first one's are written.
    kept = [result.pop("predictions", None) for result in results.values()]
    if predictions is not None:
        _write_lines(predictions, kept[0])
    if confusion is not None:
        from potstill.distill.confusion_matrix import draw_confusion

        draw_confusion(confusion, results["torch"]["confusion_matrix"], results["torch"]["labels"])
    _warn(results)
    if as_json:
        from potstill.cli.render import print_json

        print_json(results)
        return
    # One file is scored whole under the name of the default split, which then says nothing.
    whole = split == "validation" and Path(data).expanduser().is_file()
    _print_scores(f"{model} on {data if whole else f'{data} ({split})'}", results)


def _write_lines(file: Path, rows: list[dict[str, Any]] | None) -> None:
    from potstill.files import write_text

    lines = [json.dumps(row, ensure_ascii=False) for row in rows or ()]
    write_text(file, "\n".join(lines) + "\n")


def _warn(results: "Mapping[str, ModelEvaluation]") -> None:
    """Print on stderr the warnings and notes that belong to the scores."""
    for name, result in results.items():
        who = f"{name} is" if len(results) > 1 else "the model is"
        if result["warning"]:
            typer.echo(f"warning: {who} {result['warning']}", err=True)
        if result["lost_finite"]:
            typer.echo(
                f"warning: {name} answered {result['lost_finite']} texts with NaN or infinity, which count as wrong",
                err=True,
            )
    # Each precision of a bundle repeats the notes on the data: print each once.
    for note in dict.fromkeys(note for result in results.values() for note in result["notes"]):
        typer.echo(f"note: {note}", err=True)


def _print_scores(title: str, results: "Mapping[str, ModelEvaluation]") -> None:
    from potstill.cli.render import print_table

    first = next(iter(results.values()))
    names = list(first["scores"])
    rows = [
        [name, result["num_examples"], *(f"{result['scores'][key]:.4f}" for key in names)]
        for name, result in results.items()
    ]
    print_table(title, ["model", "texts", *names], rows)
    worst = {name: row for name, result in results.items() if (row := result.get("worst_label"))}
    if worst:
        # Its interval is that of the lowest recall, whichever label has it.
        cells = [
            [name, row["label"], f"{row['recall']:.4f}", "{:.4f} to {:.4f}".format(*row["interval"]), row["support"]]
            for name, row in worst.items()
        ]
        print_table(
            "\nThe label with the lowest recall", ["model", "label", "recall", "95 % interval", "support"], cells
        )
    if first.get("per_class"):
        print_classes(first)


def print_classes(result: "ModelEvaluation") -> None:
    """Print the scores of every class, and the confusion matrix of up to `_LARGEST_MATRIX` classes."""
    from potstill.cli.render import MAX_WIDTH, print_table

    rows = [
        [
            row["label"],
            f"{row['precision']:.4f}",
            f"{row['recall']:.4f}",
            "-" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}",
            f"{row['f1']:.4f}",
            row["support"],
            row["predicted"],
        ]
        for row in result["per_class"]
        for ends in [row.get("recall_interval")]
    ]
    head = ["label", "precision", "recall", "95 % interval", "f1", "support", "predicted"]
    print_table("\nPer class", head, rows)
    names = result.get("labels", [])
    if not 0 < len(names) <= _LARGEST_MATRIX:
        return
    width = max(len(_CORNER), *map(len, names)) + sum(len(name) + 2 for name in names)
    # Names too wide for the columns are numbered: numbers above the columns, number and name before the rows.
    heads = names if width <= MAX_WIDTH else [str(number) for number in range(len(names))]
    labels = names if heads is names else [f"{number}  {name}" for number, name in enumerate(names)]
    cells = [[label, *row] for label, row in zip(labels, result["confusion_matrix"], strict=True)]
    print_table("\nConfusion matrix", [_CORNER, *heads], cells)


def _score_bundle(
    folder: Path,
    data: str,
    reading: dict[str, Any],
    *,
    precisions: list[str] | None,
    engine: EngineName | None,
    metric: str | None,
    keep_predictions: bool,
) -> "Mapping[str, ModelEvaluation]":
    """Score files of a bundle on labelled texts with the code that serves it; results by precision."""
    for module in ("onnxruntime", "tokenizers"):
        require(module, extra="serve")
    if engine == "openvino":
        require("potstill.serve.openvino_session", extra=engine)
    from potstill.bench import evaluate_bundle
    from potstill.cli.render import progress_bars
    from potstill.data import load_examples

    bundle = read_bundle(folder)
    manifest = bundle.manifest
    chosen = [bundle.choose(precision) for precision in precisions or manifest.models]
    examples = load_examples(
        data,
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
                engine=engine or "onnxruntime",
                metric=metric,
                keep_predictions=keep_predictions,
                progress=progress,
            )
            for precision in chosen
        }
