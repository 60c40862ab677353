"""Texts in, logits out: the one way in which potstill asks an exported model."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potstill import machine
from potstill.bundle import Manifest, ModelRecord, read_bundle
from potstill.errors import BundleError, CheckError, OtherCpuWarning, UsageError
from potstill.serve.postprocess import Answer, rank
from potstill.serve.session import OnnxSession
from potstill.serve.tokenizer import BundleTokenizer, Row, Text
from potstill.task import SINGLE_LABEL, TEXT_CLASSIFICATION, get_task

SENTENCE_EMBEDDING = "sentence_embedding"
"""The output of a graph that pools: one vector per text."""


class Encoder:
    """One precision of one bundle, loaded.

    Attributes:
        bundle: the folder and its manifest.
        manifest: what `potstill.json` says.
        precision: the precision that answers.
        record: how that precision's file was made and checked.
        tokenizer: texts to ids.
        session: ids to logits.
    """

    def __init__(
        self,
        bundle_dir: Path,
        *,
        precision: str = "fp32",
        threads: int | None = None,
        spinning: bool = True,
        verify: bool = True,
    ) -> None:
        """Load one precision of a bundle, after checking every file against its hash unless `verify` is false.

        Raises:
            BundleError: if the folder is not a bundle, has no such precision, or cannot be loaded.
            TamperedError: if a file is not the one that the manifest names.
        """
        self.bundle = read_bundle(bundle_dir, verify=verify)
        self.manifest = self.bundle.manifest
        self.precision = precision
        self.record = self.bundle.model_record(precision)
        self._output = self.manifest.outputs[0]
        _warn_of_other_cpu(self.record, bundle_dir)
        self.tokenizer = BundleTokenizer(bundle_dir, self.manifest)
        self.session = OnnxSession(
            self.bundle.model_file(precision),
            threads=threads,
            spinning=spinning,
            disabled_optimizers=self.record.disabled_optimizers or self.manifest.disabled_optimizers,
        )
        self._check_graph()

    def outputs(self, texts: Sequence[Text], *, batch_size: int = 32) -> list[dict[str, NDArray[np.float32]]]:
        """Return every output of the graph for each text, in the order given, padding cut off.

        By task, for a text of T tokens: `logits` of shape (labels,) for text-classification, (T, labels) for
        token-classification and (T, vocabulary) for fill-mask; `start_logits` and `end_logits` of shape (T,) for
        question-answering; `last_hidden_state` (T, hidden), and `sentence_embedding` (hidden,) if the bundle pools,
        for feature-extraction. Batches are made as by `logits`.

        Raises:
            UsageError: if `batch_size` is below 1.
            CheckError: if the model fails to run.
        """
        rows, found = self.tokenizer.rows(texts), {}
        for batch in self._batches(rows, batch_size):
            feeds = self.tokenizer.pad([rows[index] for index in batch])
            given = self.session.run(feeds)
            padded = feeds["input_ids"].shape[1]
            for position, index in enumerate(batch):
                tokens = _tokens(len(rows[index]["input_ids"]), padded, left=self.manifest.padding_side == "left")
                found[index] = {
                    name: values[position][tokens] if self._is_per_token(name) else values[position]
                    for name, values in given.items()
                    if name in self.manifest.outputs
                }
        return [found[index] for index in range(len(rows))]

    def logits(self, texts: Sequence[Text], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Return the logits of every text, shape (texts, labels), in the order given.

        Texts of similar length share a batch, so little is padded. A file whose answers depend on the batch (the
        manifest's `batch_invariant` is false: dynamic int8) gets one text per run, whatever `batch_size` says.

        Raises:
            UsageError: if the task has not one row of logits per text, or `batch_size` is below 1.
            CheckError: if the model answers NaN or infinity, or in another shape.
        """
        if self.manifest.task != TEXT_CLASSIFICATION.name:
            raise UsageError(f"{self.manifest.task} has not one row of logits per text; take `outputs`")
        rows = self.tokenizer.rows(texts)
        logits = np.empty((len(rows), len(self.manifest.labels)), dtype=np.float32)
        for batch in self._batches(rows, batch_size):
            logits[batch] = self._run([rows[index] for index in batch])
        if not np.isfinite(logits).all():
            bad = int((~np.isfinite(logits)).any(axis=1).sum())
            raise CheckError(
                f"{self.session.model_file} gave NaN or infinite logits for {bad} of {len(rows)} texts; "
                "use another precision or export the checkpoint again"
            )
        return logits

    def predict(self, texts: Sequence[Text], *, top_k: int | None = None) -> list[Answer]:
        """Return each text's labels and probabilities, the most likely first.

        Raises:
            UsageError: if `top_k` is not from 1 to the number of labels, or the bundle's task is not served.
            CheckError: as `logits`.
        """
        check_servable(self.manifest)
        return rank(self.logits(texts), self.manifest.labels, top_k=top_k)

    def _batches(self, rows: Sequence[Row], batch_size: int) -> Iterator[NDArray[np.intp]]:
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
        return _batches(rows, batch_size if self.record.batch_invariant else 1)

    def _is_per_token(self, output: str) -> bool:
        return self.manifest.task != TEXT_CLASSIFICATION.name and output != SENTENCE_EMBEDDING

    def _run(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        logits = self.session.run(self.tokenizer.pad(rows))[self._output]
        expected = (len(rows), len(self.manifest.labels))
        if logits.shape != expected:
            raise CheckError(f"{self.session.model_file} answers in shape {logits.shape}, not {expected}")
        return logits.astype(np.float32, copy=False)

    def _check_graph(self) -> None:
        file, inputs, outputs = self.session.model_file, self.session.inputs, self.session.outputs
        if not set(inputs) <= set(self.manifest.inputs):
            raise BundleError(f"{file} takes {', '.join(inputs)}; its manifest says {', '.join(self.manifest.inputs)}")
        missing = [name for name in self.manifest.outputs if name not in outputs]
        if missing:
            raise BundleError(f"{file} gives {', '.join(outputs)}; its manifest says {', '.join(missing)} too")


def check_servable(manifest: Manifest) -> None:
    """Refuse a bundle whose answers are not one label per text: it can be exported, but is not served yet.

    Raises:
        UsageError: naming what it answers.
    """
    problem = manifest.problem_type or SINGLE_LABEL
    if not get_task(manifest.task).servable or problem != SINGLE_LABEL:
        what = manifest.task if problem == SINGLE_LABEL else problem
        raise UsageError(
            f"this bundle answers {what}, which is not ranked or served yet: only classifiers with one label "
            "per text are; its outputs are there for `Encoder.outputs`, and for any onnxruntime"
        )


def _warn_of_other_cpu(record: ModelRecord, folder: Path) -> None:
    """Say that an int8 file was made for a CPU of another kind, where it may be slower or, worse, saturate."""
    if record.quantisation is None or not record.cpu_features:
        return
    made_exact, here_exact = machine.multiplies_exactly(record.cpu_features), machine.has_fast_int8()
    breaks = (record.saturation or {}).get("breaks_without_vnni", record.quantisation.get("weight_bits", 8) == 8)
    if made_exact and not here_exact:
        worse = "its products overflow there, so the answers are wrong" if breaks else "it will be slow"
        warnings.warn(
            f"{folder}: {record.file} was made for a CPU that multiplies int8 exactly (VNNI, AMX, ARM's dot product), "
            f"and this one does not: {worse}; export it again on this machine",
            OtherCpuWarning,
            stacklevel=3,
        )
    elif here_exact and not made_exact:
        warnings.warn(
            f"{folder}: {record.file} was made for a CPU without exact int8 products, so it has 7-bit weights; "
            "exported again on this machine it would be closer to fp32",
            OtherCpuWarning,
            stacklevel=3,
        )


def _tokens(length: int, padded: int, *, left: bool) -> slice:
    return slice(padded - length, None) if left else slice(length)


def _batches(rows: Sequence[Row], batch_size: int) -> Iterator[NDArray[np.intp]]:
    """Give the indices of batches of similar length, the longest first.

    Longest first, because onnxruntime's memory grows to the largest batch and stays there.
    """
    order = np.argsort([-len(row["input_ids"]) for row in rows], kind="stable")
    for start in range(0, len(rows), batch_size):
        yield order[start : start + batch_size]
