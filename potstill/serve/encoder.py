"""Texts in, logits out: the one way in which potstill asks an exported model."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potstill.bundle import read_bundle
from potstill.errors import BundleError, CheckError, UsageError
from potstill.serve.postprocess import Answer, rank
from potstill.serve.session import OnnxSession
from potstill.serve.tokenizer import BundleTokenizer, Row, Text
from potstill.task import get_task


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
        self._output = get_task(self.manifest.task).output
        self.tokenizer = BundleTokenizer(bundle_dir, self.manifest)
        self.session = OnnxSession(
            self.bundle.model_file(precision),
            threads=threads,
            spinning=spinning,
            disabled_optimizers=self.manifest.disabled_optimizers,
        )
        self._check_graph()

    def logits(self, texts: Sequence[Text], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Return the logits of every text, shape (texts, labels), in the order given.

        Texts of similar length share a batch, so little is padded. A file whose answers depend on the batch (the
        manifest's `batch_invariant` is false: dynamic int8) gets one text per run, whatever `batch_size` says.

        Raises:
            UsageError: if `batch_size` is below 1.
            CheckError: if the model answers NaN or infinity, or in another shape.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
        rows = self.tokenizer.rows(texts)
        logits = np.empty((len(rows), len(self.manifest.labels)), dtype=np.float32)
        for batch in _batches(rows, batch_size if self.record.batch_invariant else 1):
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
            UsageError: if `top_k` is not from 1 to the number of labels.
            CheckError: as `logits`.
        """
        return rank(self.logits(texts), self.manifest.labels, top_k=top_k)

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
        if self._output not in outputs:
            raise BundleError(f"{file} gives {', '.join(outputs)}; {self.manifest.task} needs {self._output}")


def _batches(rows: Sequence[Row], batch_size: int) -> Iterator[NDArray[np.intp]]:
    """Give the indices of batches of similar length, the longest first.

    Longest first, because onnxruntime's memory grows to the largest batch and stays there.
    """
    order = np.argsort([-len(row["input_ids"]) for row in rows], kind="stable")
    for start in range(0, len(rows), batch_size):
        yield order[start : start + batch_size]
