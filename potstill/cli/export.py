"""`potstill export`: a checkpoint, or somebody's ONNX file, becomes a bundle."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from potstill.bundle import Manifest
from potstill.cli import stopping
from potstill.cli.checks import check_export
from potstill.cli.options import JsonOption, LabelColumnOption, OverwriteOption, TextColumnOption
from potstill.config import ExportConfig, parse_section
from potstill.data import Examples, Text, choose_splits, load_examples, load_texts
from potstill.errors import AbsentError
from potstill.extras import require

Checkpoint = Annotated[
    str, typer.Argument(help="Hub id, checkpoint folder, ONNX file, or folder with one.", show_default=False)
]
Out = Annotated[Path, typer.Option(help="Folder for the bundle.", show_default=False)]
Task = Annotated[str | None, typer.Option(help="What the model answers.", show_default="what it was trained for")]
Precision = Annotated[
    list[str] | None,
    typer.Option(help="fp32, fp16, int8 or int8-static; repeatable.", show_default="fp32 int8"),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Hub id, folder or file with texts of the task: int8 is fitted and judged on them.",
        show_default="the documentation that Python carries",
    ),
]
Split = Annotated[str, typer.Option(help="Which split of the data int8 is fitted to.")]
JudgedSplit = Annotated[str, typer.Option(help="Which split int8 is judged on, with its labels if it has some.")]
MaxLength = Annotated[int | None, typer.Option(help="Longest text in tokens.", show_default="the tokenizer's own")]
Pooling = Annotated[
    str | None,
    typer.Option(
        help="mean, cls or max: one vector per text, in the graph.",
        show_default="what a sentence-transformers folder says, else none",
    ),
]
Normalize = Annotated[
    bool | None,
    typer.Option(
        "--normalize/--no-normalize", help="Give that vector length 1.", show_default="as the folder says, else yes"
    ),
]
OnlyPooled = Annotated[
    bool, typer.Option("--no-token-vectors", help="Give a text's one vector alone, without those of its tokens.")
]
Attention = Annotated[
    str | None, typer.Option(help="fused (onnxruntime's) or onnx (the standard's).", show_default="fused")
]
Opset = Annotated[int | None, typer.Option(help="ONNX operator set.", show_default="20, or 23 for --attention onnx")]
Unpad = Annotated[
    bool | None,
    typer.Option(
        "--unpad/--no-unpad",
        help="Leave padding out of fp32's and int8-static's products: batches cost what their tokens cost.",
        show_default="yes, with --attention fused",
    ),
]
WholeLastLayer = Annotated[
    bool,
    typer.Option(
        "--no-first-token-only",
        help="Compute the last layer for every token, even if the head reads the first alone.",
    ),
]
AllowUnfused = Annotated[bool | None, typer.Option("--allow-unfused", help="Take a graph without fused attention.")]
EmbeddingBits = Annotated[int | None, typer.Option(help="4 halves the table of words of int8 files.", show_default="8")]
MaxLoss = Annotated[
    float | None, typer.Option(help="What int8 may lose, as a share of the score.", show_default="0.01")
]
MaxLabelLoss = Annotated[
    float | None,
    typer.Option(
        help="By how much int8's recall of any label may fall, as a share: 0.05 is 5 points.",
        show_default="5 times --max-loss",
    ),
]
MaxFp32Layers = Annotated[
    int | None, typer.Option(help="How many layers may go back to fp32 for that.", show_default="4")
]
CalibrationTexts = Annotated[int | None, typer.Option(help="How many texts int8 is fitted to.", show_default="256")]
JudgedTexts = Annotated[int | None, typer.Option(help="How many texts int8 is judged on.", show_default="1000")]
Tune = Annotated[
    bool | None, typer.Option("--tune", help="Try int8 recipes on this machine, keep the fastest that holds.")
]
Rounds = Annotated[int | None, typer.Option(help="Turns of each file when speeds are compared.", show_default="5")]
CheckEngine = Annotated[
    list[str] | None,
    typer.Option(metavar="ENGINE", help="openvino: every file must hold on that engine, too.", show_default="none"),
]
Tokenizer = Annotated[
    str | None, typer.Option(help="Hub id or folder of the tokenizer.", show_default="the model's own")
]


def export(
    checkpoint: Checkpoint,
    out: Out,
    task: Task = None,
    precision: Precision = None,
    data: Data = None,
    split: Split = "train",
    judged_split: JudgedSplit = "validation",
    text_column: TextColumnOption = None,
    label_column: LabelColumnOption = None,
    max_length: MaxLength = None,
    pooling: Pooling = None,
    normalize: Normalize = None,
    only_pooled: OnlyPooled = False,
    attention: Attention = None,
    opset: Opset = None,
    unpad: Unpad = None,
    whole_last_layer: WholeLastLayer = False,
    allow_unfused: AllowUnfused = None,
    embedding_bits: EmbeddingBits = None,
    max_loss: MaxLoss = None,
    max_label_loss: MaxLabelLoss = None,
    max_fp32_layers: MaxFp32Layers = None,
    calibration_texts: CalibrationTexts = None,
    judged_texts: JudgedTexts = None,
    tune: Tune = None,
    rounds: Rounds = None,
    check_engine: CheckEngine = None,
    tokenizer: Tokenizer = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export a model to ONNX, checked before it is published.

    Every file is held against what it was made from.

    Example: potstill export student/ --out student-onnx/ --precision fp32 --precision int8 --data nyu-mll/glue:sst2
    """
    flags = {
        "precisions": precision,
        "max_length": max_length,
        "pooling": pooling,
        "normalize": normalize,
        "token_vectors": False if only_pooled else None,
        "attention": attention,
        "opset": opset,
        "unpad": unpad,
        "first_token_only": False if whole_last_layer else None,
        "allow_unfused": allow_unfused,
        "embedding_bits": embedding_bits,
        "max_loss": max_loss,
        "max_label_loss": max_label_loss,
        "max_fp32_layers": max_fp32_layers,
        "calibration_texts": calibration_texts,
        "judged_texts": judged_texts,
        "tune": tune,
        "rounds": rounds,
        "check_engines": check_engine,
    }
    names = {f"export.{name}": f"--{name.replace('_', '-')}" for name in flags} | {
        "export.precisions": "--precision",
        "export.check_engines": "--check-engine",
    }
    # None means not given: the defaults stand in `ExportConfig` alone.
    given = {name: value for name, value in flags.items() if value is not None}
    config = parse_section(ExportConfig, given, flags=names)
    check_export(
        checkpoint,
        out,
        task=task,
        tokenizer=tokenizer,
        data=data,
        split=split,
        text_column=text_column,
        label_column=label_column,
        config=config,
        overwrite=overwrite,
    )
    stopping.keeps(stopping.left_by_nothing)
    if config.check_engines:
        require("potstill.serve.openvino_session", extra="openvino")
    require("torch", extra="export")
    require("onnx", extra="export")
    from potstill.cli.render import print_json, progress_bars
    from potstill.cli.show import print_bundle, worthless
    from potstill.export import export_bundle

    texts: list[Text] = []
    examples: Examples | None = None
    if data is not None:
        texts, examples = _read_data(
            data,
            checkpoint=checkpoint,
            task_name=task,
            split=split,
            judged_split=judged_split,
            text_columns=text_column,
            label_column=label_column,
            # If there are no labels to judge on, texts behind those that int8 is fitted to are used.
            limit=config.calibration_texts + config.judged_texts,
        )
    with progress_bars() as progress:
        manifest = export_bundle(
            checkpoint,
            out,
            task=task,
            tokenizer=tokenizer,
            config=config,
            calibration=texts,
            examples=examples,
            overwrite=overwrite,
            progress=progress,
        )
    for note in manifest.source.notes:
        typer.echo(f"note: {note}", err=True)
    _warn_of_slow(manifest)
    found = worthless(manifest)
    if found is not None:
        typer.echo(f"warning: {found}; look at the labels and the columns before you serve it", err=True)
    # Last, as it ends with the line that says what was gained and lost.
    if as_json:
        print_json(manifest.model_dump(mode="json"))
    else:
        print_bundle(out)


def _warn_of_slow(manifest: Manifest) -> None:
    """Warn of files that are not faster than fp32 on this machine, or could not be measured."""
    for name, record in manifest.models.items():
        speed = record.speed
        if speed is None:
            continue
        if speed.failures:
            reasons = "; ".join(f"{who}: {why}" for who, why in speed.failures.items())
            typer.echo(f"warning: the speed of {name} was not measured ({reasons}); try again or see bench", err=True)
        elif speed.verdict != "faster":
            fp32 = "serve fp32" if "fp32" in manifest.models else "export fp32, too,"
            advice = f"{fp32} here, or try --tune" if speed.ratio is not None else "see potstill.json"
            typer.echo(f"warning: {name} is {speed.verdict} than fp32 on this machine: {advice}", err=True)


def _read_data(
    data: str,
    *,
    checkpoint: str,
    task_name: str | None,
    split: str,
    judged_split: str,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    limit: int,
) -> tuple[list[Text], Examples | None]:
    """Return the texts to calibrate int8 with, and the labelled examples that judge it, or None without labels."""
    from potstill.export import peek

    task, label_names, problem_type = peek(checkpoint, task=task_name)
    fitted, judged = choose_splits(data, train=split, evaluation=judged_split)
    if judged != judged_split:
        typer.echo(f"note: a tenth of {data} is held out: int8 is judged on it, fitted to the rest", err=True)
    texts = load_texts(data, split=fitted, task=task, text_columns=text_columns, limit=limit)
    try:
        examples = load_examples(
            data,
            split=judged,
            task=task,
            text_columns=text_columns,
            label_column=label_column,
            label_names=label_names or None,
            problem_type=problem_type,
        )
    except AbsentError as error:
        typer.echo(f"note: int8 is judged without labels, on further texts of {split}: {error}", err=True)
        return texts, None
    for note in examples.notes:
        typer.echo(f"note: {note}", err=True)
    return texts, examples
