"""Export a checkpoint to ONNX: a bundle that was checked before anybody can see it.

from potstill.export import export_bundle

manifest = export_bundle("student", Path("student-onnx"))
"""

import datetime
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill import machine
from potstill.bundle import MODEL_FILES, Manifest, ModelRecord, Precision, record_files, write_manifest
from potstill.checkpoint import accepted_inputs, count_parameters, hash_checkpoint, load_checkpoint
from potstill.data import Text
from potstill.errors import CheckpointError, UsageError
from potstill.export.graph import build_graph, fusion_receipt
from potstill.export.parity import check_parity, compare_precisions
from potstill.export.quantise import count_quantised, int8_recipe, quantise_dynamic
from potstill.progress import Progress, silent
from potstill.publish import check_free, new_folder
from potstill.sections import ExportConfig
from potstill.serve import OnnxSession
from potstill.task import MULTI_LABEL, REGRESSION, Task, get_task

__all__ = ["export_bundle"]

# onnxruntime's SkipLayerNormalization kernel is slower than the Add and LayerNormalization that it replaces: BERT-base
# int8 1x128 took 57 ms with it and 49 ms without, 8x128 419 and 369 ms (onnxruntime 1.31.1, 2 cores, AVX512-VNNI).
_DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]
# Few texts at once: every layer's activations are held at the same time.
_CALIBRATION_BATCH = 8


def export_bundle(
    checkpoint: str,
    out_dir: Path,
    *,
    task: str = "text-classification",
    tokenizer: str | None = None,
    max_length: int | None = None,
    config: ExportConfig | None = None,
    calibration: Sequence[Text] = (),
    overwrite: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Export a hub id or checkpoint folder to the bundle `out_dir`, after checking it against torch.

    Args:
        checkpoint: a hub id or folder, fine-tuned for `task`.
        out_dir: becomes the bundle, whole or not at all.
        task: the name of a task.
        tokenizer: a hub id or folder; None takes the checkpoint's own.
        max_length: longest text in tokens; None takes the tokenizer's own, at most the model's positions.
        config: the precisions and the opset.
        calibration: real texts of the task, a few hundred; int8 is closer to fp32 when it has seen some.
        overwrite: replace what is in `out_dir`.
        progress: is told of each step.

    Raises:
        CheckpointError: if the checkpoint cannot be loaded or exported.
        ParityError: if a file does not answer like torch; nothing is published.
    """
    check_free(out_dir, overwrite=overwrite)
    config = config or ExportConfig()
    steps = _Steps(f"export {out_dir.name}", progress, total=3 + len(config.precisions))
    steps.next("load")
    source = _load_source(checkpoint, get_task(task), tokenizer=tokenizer, max_length=max_length)
    with new_folder(out_dir, overwrite=overwrite) as folder:
        models = _write_models(source, folder, config=config, calibration=calibration, steps=steps)
        steps.next("hash")
        manifest = _write_contract(source, folder, models=models, config=config)
    steps.next("done")
    return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What is exported."""

    name: str
    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    label_names: tuple[str, ...]
    inputs: list[str]
    max_length: int


def _load_source(name: str, task: Task, *, tokenizer: str | None, max_length: int | None) -> _Source:
    if not task.servable:
        raise UsageError(f"task {task.name!r} is trained and evaluated, but not exported yet; text-classification is")
    checkpoint = load_checkpoint(name, task, tokenizer=tokenizer)
    problem = checkpoint.model.config.problem_type
    if problem in {REGRESSION, MULTI_LABEL} or checkpoint.model.config.num_labels == 1:
        raise UsageError(
            f"{name} answers {problem or REGRESSION}, which is trained and evaluated, but not exported yet; only "
            "classifiers with one label per text are"
        )
    positions = getattr(checkpoint.model.config, "max_position_embeddings", None)
    longest = min(limit for limit in (checkpoint.tokenizer.model_max_length, positions) if limit)
    if max_length is not None and max_length > longest:
        raise CheckpointError(f"max_length {max_length} is more than the {longest} tokens that {name} can read")
    return _Source(
        name=name,
        task=task,
        model=checkpoint.model,
        tokenizer=checkpoint.tokenizer,
        label_names=checkpoint.label_names,
        inputs=accepted_inputs(checkpoint.model),
        max_length=max_length or longest,
    )


def _architecture(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    return {
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "vocab_size": config.vocab_size,
        "encoder_parameters": count_parameters(model.base_model),
        "max_position_embeddings": getattr(config, "max_position_embeddings", None),
    }


def _session(file: Path) -> OnnxSession:
    """Open a file as it will be served, without spinning threads that slow torch down beside it."""
    return OnnxSession(file, spinning=False, disabled_optimizers=_DISABLED_OPTIMIZERS)


class _Steps:
    """Count the steps of one export aloud."""

    def __init__(self, stage: str, progress: Progress, *, total: int) -> None:
        self._stage, self._progress, self._total, self._done = stage, progress, total, 0

    def next(self, note: str) -> None:
        self._progress(self._stage, self._done, self._total, note)
        self._done += 1


def _write_models(
    source: _Source, folder: Path, *, config: ExportConfig, calibration: Sequence[Text], steps: "_Steps"
) -> dict[Precision, ModelRecord]:
    """Write and check every precision; int8 is made from fp32, which goes again if nobody asked for it."""
    (folder / "onnx").mkdir()
    steps.next("trace")
    graph = build_graph(source.model, inputs=source.inputs, output=source.task.output, opset=config.opset)
    fp32_file = folder / MODEL_FILES["fp32"]
    onnx.save(graph, fp32_file)
    records: dict[Precision, ModelRecord] = {
        "fp32": _check_fp32(source, fp32_file, fusion=fusion_receipt(graph, source.model))
    }
    if "int8" in config.precisions:
        steps.next("quantise")
        records["int8"] = _make_int8(source, folder, graph=graph, calibration=calibration)
    if "fp32" not in config.precisions:
        fp32_file.unlink()
        del records["fp32"]
    return records


def _check_fp32(source: _Source, file: Path, *, fusion: dict[str, Any]) -> ModelRecord:
    parity = _compare(check_parity, source, file)
    return ModelRecord(
        file=MODEL_FILES["fp32"], cpu_features=sorted(machine.cpu_features()), fusion=fusion, parity=parity
    )


def _make_int8(source: _Source, folder: Path, *, graph: onnx.ModelProto, calibration: Sequence[Text]) -> ModelRecord:
    recipe, file = int8_recipe(calibration_texts=len(calibration)), folder / MODEL_FILES["int8"]
    fusion = fusion_receipt(graph, source.model)
    quantise_dynamic(graph, file, recipe=recipe, calibration=_calibration_batches(source, calibration))
    parity = _compare(compare_precisions, source, file)
    return ModelRecord(
        file=MODEL_FILES["int8"],
        quantisation=recipe | count_quantised(file),
        cpu_features=sorted(machine.cpu_features()),
        batch_invariant=False,
        fusion=fusion,
        parity=parity,
    )


def _compare(check: Callable[..., dict[str, Any]], source: _Source, file: Path) -> dict[str, Any]:
    """Hold a file against the torch model, in the session that will serve it; return the evidence."""
    session = _session(file)
    return check(source.model, session, inputs=source.inputs, output=source.task.output, max_length=source.max_length)


def _calibration_batches(source: _Source, texts: Sequence[Text]) -> list[dict[str, NDArray[np.int64]]]:
    batches = []
    for start in range(0, len(texts), _CALIBRATION_BATCH):
        batch = [
            text if isinstance(text, tuple) else (text, None) for text in texts[start : start + _CALIBRATION_BATCH]
        ]
        encoded = source.tokenizer(
            [first for first, _ in batch],
            [second or "" for _, second in batch] if batch[0][1] is not None else None,
            truncation=True,
            max_length=source.max_length,
            padding=True,
            return_tensors="np",
        )
        batches.append({name: encoded[name].astype(np.int64) for name in source.inputs})
    return batches


def _write_contract(
    source: _Source, folder: Path, *, models: dict[Precision, ModelRecord], config: ExportConfig
) -> Manifest:
    source.model.config.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    manifest = Manifest(
        task=source.task.name,
        labels=list(source.label_names),
        max_length=source.max_length,
        padding_side=source.tokenizer.padding_side,
        pad_token_id=source.tokenizer.pad_token_id,
        inputs=list(source.inputs),
        outputs=[source.task.output],
        parameters=count_parameters(source.model),
        architecture=_architecture(source.model),
        models=models,
        files=record_files(folder),
        disabled_optimizers=_DISABLED_OPTIMIZERS,
        source={"name": source.name, "sha256": hash_checkpoint(source.name)},
        made={
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["potstill", *sys.argv[1:]]),
            "config": config.model_dump(mode="json"),
            "cpu": machine.cpu_name(),
            "packages": machine.versions(),
        },
    )
    write_manifest(folder, manifest)
    return manifest
