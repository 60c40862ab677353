"""Export a checkpoint to ONNX: a bundle that was checked before anybody can see it.

from potstill.export import export_bundle

manifest = export_bundle("student", Path("student-onnx"))
"""

import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill import machine
from potstill.bundle import (
    AgainstTrivial,
    Architecture,
    Made,
    Manifest,
    ModelRecord,
    Precision,
    SourceRecord,
    TokenizerParity,
    record_files,
    write_manifest,
)
from potstill.checkpoint.sentence_transformers import PROMPTS_FILE
from potstill.config import ExportConfig
from potstill.data import Examples, Text
from potstill.errors import CheckpointError
from potstill.extras import needing
from potstill.files import check_free, new_folder
from potstill.progress import Progress, silent

with needing("export"):
    from onnx import ModelProto

    from potstill.checkpoint import reference_tokenizer, save_tokenizer
    from potstill.checkpoint.model import write_sentence_transformers
    from potstill.export.calibration import make_probe
    from potstill.export.graph import append_head, build_graph
    from potstill.export.onnx_files import load_model
    from potstill.export.pipeline import Workshop, draft_manifest
    from potstill.export.source import Source, load_source, peek
    from potstill.export.tokenizer_parity import check_tokenizer_parity
    from potstill.export.tuning import tune
    from potstill.serve import BundleTokenizer

__all__ = ["export_bundle", "peek"]


def export_bundle(
    checkpoint: str,
    out_dir: Path,
    *,
    task: str | None = None,
    tokenizer: str | None = None,
    config: ExportConfig | None = None,
    calibration: Sequence[Text] = (),
    examples: Examples | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Export a model to the bundle `out_dir`, after holding every file against what it was made from.

    Args:
        checkpoint: a hub id or checkpoint folder, fine-tuned for `task`; or an ONNX file, or a folder that holds one.
        out_dir: becomes the bundle, whole or not at all.
        task: the name of a task; None is text-classification, or for an ONNX file what its configuration says.
        tokenizer: a hub id or folder; None takes the checkpoint's own.
        config: the precisions, the longest text, and what every file must pass.
        calibration: real texts of the task, a few hundred, for int8; empty takes Python's own documentation.
        examples: what int8 is judged on, with labels if they are known; None takes further calibration texts.
        overwrite: replace what is in `out_dir`.
        progress: is told of each step.

    Raises:
        CheckpointError: if the model cannot be loaded or exported.
        ParityError: if a file does not answer as it must; nothing is published.
    """
    check_free(out_dir, overwrite=overwrite)
    config = config or ExportConfig()
    steps = _Steps(f"export {out_dir.name}", progress, total=3 + 3 * len(config.precisions))
    steps.next("load")
    source = load_source(
        checkpoint,
        task=task,
        tokenizer=tokenizer,
        max_length=config.max_length,
        pooling=config.pooling,
        normalize=config.normalize,
    )
    with new_folder(out_dir, overwrite=overwrite) as folder:
        _write_about(source, folder)
        probe = make_probe(
            source.task,
            calibration=calibration,
            examples=examples,
            calibration_texts=config.calibration_texts,
            judged_texts=config.judged_texts,
        )
        ours = BundleTokenizer(folder, draft_manifest(source))
        reference = reference_tokenizer(source.tokenizer)
        parity = check_tokenizer_parity(ours, reference, probe.judged, max_length=source.max_length)
        shop = Workshop(source, folder, tokenizer=ours, probe=probe, config=config, say=steps.next)
        models = _make_models(shop, steps=steps)
        steps.next("hash")
        manifest = _write_contract(
            source, folder, models=models, config=config, tokenizer_parity=parity, judged=shop.judged()
        )
    steps.finish()
    return manifest


class _Steps:
    """Tell the steps of one export; how many there are is only known roughly."""

    def __init__(self, stage: str, progress: Progress, *, total: int) -> None:
        self._stage, self._progress, self._total, self._done = stage, progress, total, 0

    def next(self, note: str) -> None:
        self._progress(self._stage, min(self._done, self._total - 1), self._total, note)
        self._done += 1

    def finish(self) -> None:
        self._progress(self._stage, self._total, self._total, "")


def _make_models(shop: Workshop, *, steps: _Steps) -> dict[Precision, ModelRecord]:
    """Make and check every precision; fp32 is needed by all others, and goes again if nobody asked for it."""
    config, source = shop.config, shop.source
    (shop.folder / "onnx").mkdir()
    steps.next("trace")
    if source.existing is not None and source.existing.precision != "fp32":
        return {source.existing.precision: shop.keep_as_it_is(_make_graph(shop))}
    # Nobody else holds the graph, so that it is gone when its file is opened.
    made: dict[Precision, ModelRecord] = {"fp32": shop.make_fp32(_make_graph(shop))}
    for precision in config.precisions:
        if precision == "fp16":
            made[precision] = shop.make_fp16()
        elif precision in {"int8", "int8-static"}:
            if config.tune:
                made[precision] = tune(shop, precision)
            else:
                made[precision] = shop.make_int8(precision, shop.default_recipe(precision))
    if "fp32" not in config.precisions:
        record = made.pop("fp32")
        for name in (record.file, *record.external_data):
            (shop.folder / name).unlink()
    return made


def _make_graph(shop: Workshop) -> ModelProto:
    """Trace a checkpoint, or read an ONNX file."""
    config, source = shop.config, shop.source
    if source.existing is not None:
        graph = load_model(source.existing.file)
        return graph if source.head is None else append_head(graph, source.head, width=source.config.hidden_size)
    assert source.model is not None
    return build_graph(
        source.model,
        inputs=source.inputs,
        outputs=source.task_outputs,
        attention=config.attention,
        head=source.head,
        opset=config.opset,
    )


def _write_about(source: Source, folder: Path) -> None:
    """Write what other tools read beside a graph: the configuration, the tokenizer, and how vectors are pooled."""
    if source.tokenizer.pad_token_id is None:
        raise CheckpointError(f"the tokenizer of {source.name} has no padding token; give it one, and export again")
    source.config.save_pretrained(folder)
    save_tokenizer(source.tokenizer, folder)
    if source.head is not None:
        prompts = source.vectors.folder / PROMPTS_FILE if source.vectors else None
        write_sentence_transformers(
            source.head, folder, width=source.config.hidden_size, max_length=source.max_length, prompts=prompts
        )


def _write_contract(
    source: Source,
    folder: Path,
    *,
    models: dict[Precision, ModelRecord],
    config: ExportConfig,
    tokenizer_parity: dict[str, Any],
    judged: AgainstTrivial | None,
) -> Manifest:
    manifest = Manifest(
        task=source.task.name,
        problem_type=source.kind if source.labels and source.task.name == "text-classification" else None,
        labels=source.labels,
        max_length=source.max_length,
        padding_side=source.tokenizer.padding_side,
        pad_token_id=source.tokenizer.pad_token_id,
        inputs=list(source.inputs),
        outputs=list(source.outputs),
        pooling=source.pooling,
        parameters=source.parameters,
        architecture=Architecture.model_validate(source.architecture()),
        models=models,
        files=record_files(folder),
        tokenizer_parity=TokenizerParity.model_validate(tokenizer_parity),
        source=SourceRecord.model_validate(
            {
                "name": source.name,
                "sha256": source.sha256,
                "kind": "onnx" if source.existing else "checkpoint",
            }
            | ({"notes": list(source.notes)} if source.notes else {})
        ),
        made=Made.model_validate(
            {
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "command": shlex.join(["potstill", *sys.argv[1:]]),
                "config": config.model_dump(mode="json"),
                "cpu": machine.cpu_name(),
                "packages": machine.versions(),
            }
            | ({} if judged is None else {"judged": judged})
        ),
    )
    write_manifest(folder, manifest)
    return manifest
