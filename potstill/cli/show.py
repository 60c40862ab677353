"""`potstill show`: what is in a bundle, a checkpoint, a run or a report."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.bundle import MANIFEST_NAME, read_bundle
from potstill.cli.bundle import print_bundle, some
from potstill.cli.settings import JsonOption
from potstill.errors import UsageError
from potstill.hub import similar

_MB = 1e6


def show(
    folder: Annotated[Path, typer.Argument(help="A bundle, checkpoint, run or report folder.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Tell what a folder holds: what, from where, how big, and how it was checked.

    Example: potstill show student-onnx/
    """
    from potstill.cli.render import print_json

    if not folder.exists():
        raise UsageError(f"there is no folder {folder}; {similar(str(folder)) or 'name one that potstill has made'}")
    report_file = next(
        (folder / name for name in ("report.json", "report/report.json") if (folder / name).is_file()), None
    )
    if (folder / MANIFEST_NAME).exists():
        if as_json:
            print_json(read_bundle(folder).manifest.model_dump(mode="json"))
        else:
            print_bundle(folder)
    elif report_file is not None:
        _print_report(report_file, as_json=as_json)
    elif (folder / "config.json").is_file():
        _print_checkpoint(folder, as_json=as_json)
    else:
        raise UsageError(
            f"{folder} is neither a bundle ({MANIFEST_NAME}), a report (report.json), "
            "a run nor a checkpoint (config.json)"
        )


def _print_report(file: Path, *, as_json: bool) -> None:
    from potstill.bench import read_report
    from potstill.cli.render import out
    from potstill.cli.report import render_report

    report = read_report(file)
    if as_json:
        typer.echo(report.model_dump_json(by_alias=True))
    else:
        render_report(report, out)


def _print_checkpoint(folder: Path, *, as_json: bool) -> None:
    from potstill.cli.render import print_json, print_pairs

    config = _read_json(folder / "config.json")
    weights = [file for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern)]
    report = _read_json(folder / "distill.json") if (folder / "distill.json").is_file() else {}
    content = {
        "architecture": ", ".join(config.get("architectures") or [str(config.get("model_type"))]),
        "layers": config.get("num_hidden_layers", config.get("n_layers")),
        "hidden size": config.get("hidden_size", config.get("dim")),
        "labels": some([str(label) for label in (config.get("id2label") or {}).values()]),
        "weights": f"{sum(file.stat().st_size for file in weights) / _MB:.1f} MB",
        "fine-tuned from" if report.get("method") == "finetune" else "distilled from": report.get("teacher", {}).get(
            "name"
        ),
        "scores": _scores(report),
        "steps": report.get("steps"),
    }
    if as_json:
        print_json(content | {"distill": report or None})
    else:
        print_pairs(f"Checkpoint {folder}", content)


def _scores(report: dict[str, Any]) -> str | None:
    scores = report.get("student", report.get("teacher", {})).get("scores")
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items()) if scores else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{file} is not JSON: {error}") from error
    return content
