"""The quality of one bundle, by the same code that judges the contestants of a bench."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from potstill.data import Examples
from potstill.evaluation.answers import Session
from potstill.evaluation.ask import ask
from potstill.evaluation.fitness import check_answers, check_examples
from potstill.evaluation.summary import summarise
from potstill.progress import Progress, silent
from potstill.serve import Encoder
from potstill.tasks import get_task, kind_of, primary_metric

_STAGE = "score quality"


def evaluate_bundle(
    bundle_dir: Path,
    examples: Examples,
    *,
    precision: str | None = None,
    metric: str | None = None,
    threads: int | None = None,
    keep_predictions: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Score one precision of a bundle by the answers that it serves, each asked for alone.

    Args:
        bundle_dir: the bundle, of any task.
        examples: read with the bundle's labels.
        precision: which of its files; None is fp32, or the only one there is.
        metric: the score to put first; None takes the task's own.
        threads: as in `potstill.serve.Encoder`.
        keep_predictions: as in `potstill.evaluation.summary.summarise`.
        progress: is told how far it is.

    Returns:
        Plain JSON values: what was scored, on what, and what `potstill.evaluation.summary.summarise` says of it.

    Raises:
        BundleError, TamperedError: as `potstill.serve.Encoder`.
        DataError: if the examples cannot judge such a model.
        UsageError: if the metric does not judge the task.
    """
    encoder = Encoder(bundle_dir, precision=precision, threads=threads)
    manifest, precision = encoder.manifest, encoder.precision
    task = get_task(manifest.task)
    kind = kind_of(task, manifest.problem_type)
    metric = primary_metric(task, manifest.problem_type, asked=metric, num_labels=len(manifest.labels))
    check_examples(examples, kind)
    arrays = ask(
        _Told(encoder.session, len(examples), precision, progress),
        encoder.tokenizer,
        examples.texts,
        kind=kind,
        outputs=manifest.outputs,
        function=encoder.function,
        pooling=manifest.pooling,
        batch_invariant=encoder.record.batch_invariant,
    )
    progress(_STAGE, len(examples), len(examples), precision)
    check_answers(arrays, examples, kind=kind, key=str(bundle_dir))
    return {
        "model": str(bundle_dir),
        "precision": precision,
        "sha256": encoder.bundle.record_of(precision).sha256,
        "data": examples.name,
        "split": examples.split,
        "num_examples": len(examples),
        "data_sha256": examples.sha256,
    } | summarise(arrays, examples, kind=kind, metric=metric, keep_predictions=keep_predictions)


class _Told:
    """A session that tells how many rows it has answered; a text may be several."""

    def __init__(self, session: Session, total: int, note: str, progress: Progress) -> None:
        self._session, self._total, self._note, self._progress = session, total, note, progress
        self._done = 0

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer, then tell."""
        self._progress(_STAGE, min(self._done, self._total), self._total, self._note)
        found = self._session.run(feeds)
        self._done += len(feeds["input_ids"])
        return found
