"""The export from checkpoint to bundle: load, trace, quantise, compare every file with its source, publish.

The files are made one after the other in a temporary folder, which becomes the bundle by a rename when all of them have
passed their gates; any error leaves nothing behind.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path

from potstill import machine
from potstill.bundle import (
    CARD_NAME,
    Made,
    Manifest,
    ModelRecord,
    Precision,
    SourceRecord,
    record_files,
    write_manifest,
)
from potstill.card import model_card
from potstill.checkpoint import reference_tokenizer
from potstill.checkpoint.folder import read_trimming
from potstill.config import ExportConfig
from potstill.data import Examples, Text
from potstill.errors import UsageError
from potstill.export.calibration import choose_texts
from potstill.export.precisions import Exporter
from potstill.export.quality import QualityGate
from potstill.export.source import load_source
from potstill.export.tokenizer_parity import check_tokenizer_parity
from potstill.files import check_free, new_folder
from potstill.progress import Progress, silent
from potstill.serve import BundleTokenizer


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
    """Export a model to the bundle `out_dir`, after comparing every file with its source.

    Args:
        checkpoint: a hub id or checkpoint folder, fine-tuned for `task`; or an ONNX file, or a folder with one.
        out_dir: the folder to create; it appears complete or not at all.
        task: the name of a task; None takes what the folder was trained for, else text-classification.
        tokenizer: a hub id or folder; None takes the checkpoint's own.
        config: the precisions, the longest text, and the limits of the gates; None takes the defaults.
        calibration: a few hundred real texts of the task, to calibrate int8; empty takes Python's documentation.
        examples: texts to judge int8 on, with or without labels; None takes further calibration texts.
        overwrite: replace what is in `out_dir`.
        progress: called at each step.

    Raises:
        CheckpointError: if the model cannot be loaded or exported.
        ParityError: if a file does not pass a gate; nothing is published then.
    """
    check_free(out_dir, overwrite=overwrite)
    config = config or ExportConfig()
    stage, total, done = f"export {out_dir.name}", 3 + 3 * len(config.precisions), 0

    def say(note: str) -> None:
        """Report the next step; the total is an estimate, so it is never reached before the end."""
        nonlocal done
        progress(stage, min(done, total - 1), total, note)
        done += 1

    say("load")
    source = load_source(
        checkpoint,
        task=task,
        tokenizer=tokenizer,
        max_length=config.max_length,
        pooling=config.pooling,
        normalize=config.normalize,
        token_vectors=config.token_vectors,
    )
    quantised = source.onnx_source is not None and source.onnx_source.precision != "fp32"
    if quantised and config.check_engines:
        raise UsageError(
            f"{checkpoint} is quantised already, and another engine is held against fp32; leave out --check-engine"
        )
    with new_folder(out_dir, overwrite=overwrite) as folder:
        source.write_files(folder)
        texts = choose_texts(
            source.task,
            calibration=calibration,
            examples=examples,
            calibration_texts=config.calibration_texts,
            judged_texts=config.judged_texts,
        )
        ours = BundleTokenizer(folder, source)
        tokenizer_parity = check_tokenizer_parity(
            ours, reference_tokenizer(source.tokenizer), texts.judged, max_length=source.max_length
        )
        gate = QualityGate(source, folder, ours, texts, config=config)
        exporter = Exporter(source, folder, gate=gate, config=config, say=say)
        say("trace")
        # The graph is passed on without a name here, so that `make_fp32` can free it before its session is opened.
        models: dict[Precision, ModelRecord] = {}
        if source.onnx_source is not None and source.onnx_source.precision != "fp32":
            models[source.onnx_source.precision] = exporter.keep_as_it_is(exporter.make_graph())
        else:
            models["fp32"] = exporter.make_fp32(exporter.make_graph())  # always: all others are made from it
            for precision in config.precisions:
                if precision == "fp16":
                    models[precision] = exporter.make_fp16()
                elif precision != "fp32":
                    models[precision] = exporter.make_int8(precision)
            if "openvino" in config.check_engines:
                models = {name: exporter.check_in_openvino(name, record) for name, record in models.items()}
            if "fp32" not in config.precisions:
                unwanted = models.pop("fp32")
                for name in (unwanted.file, *unwanted.external_data):
                    (folder / name).unlink()
        source.name_files(folder, models)
        say("hash")
        judged = gate.compare_with_trivial()
        made = Made(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=machine.command_line() or f"potstill.export.export_bundle({checkpoint!r}, {str(out_dir)!r})",
            config=config.model_dump(mode="json"),
            cpu=machine.cpu_name(),
            packages=machine.versions(),
        )
        origin = SourceRecord(
            name=source.name, sha256=source.sha256, kind="checkpoint" if source.onnx_source is None else "onnx"
        )
        about: dict[str, object] = {"notes": list(source.notes)} if source.notes else {}
        about |= {"vocabulary": trimmed} if (trimmed := read_trimming(source.name)) else {}
        manifest = Manifest(
            task=source.task.name,
            problem_type=source.kind if source.labels and source.task.name == "text-classification" else None,
            labels=source.labels,
            max_length=source.max_length,
            padding_side="left" if source.padding_side == "left" else "right",
            pad_token_id=source.pad_token_id,
            inputs=list(source.inputs),
            outputs=list(source.outputs),
            pooling=source.pooling,
            parameters=source.parameters,
            architecture=source.architecture,
            models=models,
            files=record_files(folder),  # hashed last, when nothing in the folder changes any more
            tokenizer_parity=tokenizer_parity,
            source=origin.model_copy(update=about),
            made=made.model_copy(update={"judged": judged} if judged is not None else {}),
        )
        write_manifest(folder, manifest)
        (folder / CARD_NAME).write_text(model_card(manifest, name=out_dir.name), encoding="utf-8")
    progress(stage, total, total, "")
    return manifest
