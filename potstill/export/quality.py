"""Compare the files of an export on real texts: fp32's own score, and what every other file loses of it."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from potstill.bundle import MODEL_FILES, AgainstTrivial, BatchInvariance, QualityLoss
from potstill.config import ExportConfig
from potstill.errors import ParityError
from potstill.evaluation.decision import compare_outputs
from potstill.evaluation.predictions import ModelOutputs, collect_outputs, predict
from potstill.evaluation.scores import Scored, check_examples, check_predictions, score
from potstill.evaluation.trivial import against_trivial
from potstill.export.calibration import ExportTexts
from potstill.export.checks import INVARIANCE_BATCH_SIZES, longest_that_fits, measure_batch_invariance, most_texts
from potstill.export.onnx_files import Feeds
from potstill.export.source import Source
from potstill.export.tuning import DISABLED_OPTIMIZERS
from potstill.serve import BundleTokenizer, OnnxSession, Row, Text
from potstill.serve.session import Session
from potstill.serve.tasks.text_classification import scoring_function
from potstill.tasks import METRICS, PROBLEM_TYPES

# Calibration texts per run; all layers' activations of a batch are in memory together.
_CALIBRATION_BATCH = 8


def open_session(file: Path, disabled_optimizers: Sequence[str] = DISABLED_OPTIMIZERS) -> OnnxSession:
    """Open a file as it will be served, but without spinning threads, which would slow torch down beside it."""
    return OnnxSession(file, spinning=False, disabled_optimizers=disabled_optimizers)


class QualityGate:
    """Runs the files of one bundle on the same texts, and compares their outputs.

    Attributes:
        texts: the texts of the export.
    """

    def __init__(
        self, source: Source, folder: Path, tokenizer: BundleTokenizer, texts: ExportTexts, *, config: ExportConfig
    ) -> None:
        """Take the source, the bundle's folder, its tokenizer, the texts, and the settings with the limits of losses.

        Raises:
            DataError: if models of this kind cannot be scored on the examples.
        """
        if texts.examples is not None:
            check_examples(texts.examples, source.kind)
        self.texts = texts
        self._source, self._folder, self._tokenizer, self._config = source, folder, tokenizer, config
        self._heads = source.config.num_attention_heads

    @cached_property
    def rows(self) -> list[Row]:
        """The judged texts, tokenised."""
        return self._tokenizer.rows(self.texts.judged)

    @cached_property
    def _fp32_outputs(self) -> ModelOutputs:
        """fp32's outputs for the judged texts; computed once, for every other precision."""
        return self.outputs(open_session(self._folder / MODEL_FILES["fp32"]), self.rows, batch_size=8)

    @cached_property
    def _fp32_score(self) -> Scored | None:
        """fp32's score on the judged texts; None without labels."""
        if self.texts.examples is None:
            return None
        return self._score(open_session(self._folder / MODEL_FILES["fp32"]))

    def compare_with_fp32(self, session: Session, *, batch_size: int) -> QualityLoss:
        """Measure the loss of a file against fp32 on the judged texts.

        Args:
            session: the file.
            batch_size: texts per run; 1 for dynamic int8, whose outputs depend on the batch.
        """
        found = self.outputs(session, self.rows, batch_size=batch_size)
        scored = None
        if self._fp32_score is not None:
            scored = self._fp32_score, self._score(session)
        return self._compare(self._fp32_outputs, found, scored)

    def compare_with_unoptimised(self, file: Path, session: OnnxSession, *, batch_size: int) -> QualityLoss:
        """Measure what a file loses by onnxruntime's optimisations, if there is no fp32 to compare it with."""
        plain, scored = OnnxSession(file, spinning=False, optimise=False), None
        if self.texts.examples is not None:
            # Takes the place of fp32's score in `compare_with_trivial`: the bundle has no other file.
            self._fp32_score = self._score(session)
            scored = self._score(plain), self._fp32_score
        before, after = (self.outputs(each, self.rows, batch_size=batch_size) for each in (plain, session))
        return self._compare(before, after, scored)

    def _compare(self, before: ModelOutputs, after: ModelOutputs, scored: tuple[Scored, Scored] | None) -> QualityLoss:
        quality = compare_outputs(
            before,
            after,
            max_loss=self._config.max_loss,
            scored=scored,
            max_label_loss=self._config.label_loss,
            label_names=self._source.labels,
        )
        return quality.model_copy(update={"on": self.texts.judged_origin})

    def compare_with_trivial(self) -> AgainstTrivial | None:
        """Compare fp32's score with that of the best answer that ignores the text; None without labels."""
        if self._fp32_score is None or self.texts.examples is None:
            return None
        kind = self._source.kind
        found = against_trivial({}, self._fp32_score, self.texts.examples, kind=kind, metric=METRICS[kind][0])
        return found.model_copy(update={"on": self.texts.judged_origin})

    def measure_invariance(
        self, precision: str, session: Session, *, required: bool, limit: int = 1000
    ) -> BatchInvariance:
        """Compare the outputs for texts alone and in batches, see `measure_batch_invariance`.

        Raises:
            ParityError: if `required` and the file is not invariant.
        """
        # Texts are cut to what fits into memory: an influence of the batch shows in shorter texts as well.
        longest = longest_that_fits(max(INVARIANCE_BATCH_SIZES), heads=self._heads)
        found = measure_batch_invariance(
            session,
            self._tokenizer,
            [{name: values[:longest] for name, values in row.items()} for row in self.rows],
            outputs=self._source.outputs,
            kind=self._source.kind,
            limit=limit,
            mask_id=self._source.tokenizer.mask_token_id,
        )
        if required and not found.invariant:
            raise ParityError(
                f"{precision} gives a text another answer in a batch: {found.flips} flips, drift "
                f"{found.max_drift:.2g}; nothing was published"
            )
        return found

    def batches(self, texts: Sequence[Text]) -> list[Feeds]:
        """Return texts as padded inputs of the graph, in small batches."""
        rows = self._tokenizer.rows(texts)
        size = most_texts(_CALIBRATION_BATCH, heads=self._heads, length=_longest(rows))
        return [self._tokenizer.pad(rows[start : start + size]) for start in range(0, len(rows), size)]

    def outputs(self, session: Session, rows: Sequence[Row], *, batch_size: int) -> ModelOutputs:
        """Run a file on tokenised texts; fewer per batch where long ones would not fit into memory."""
        return collect_outputs(
            session,
            self._tokenizer,
            rows,
            kind=self._source.kind,
            outputs=self._source.outputs,
            batch_size=most_texts(batch_size, heads=self._heads, length=_longest(rows)),
            mask_id=self._source.tokenizer.mask_token_id,
        )

    def _score(self, session: Session) -> Scored:
        """Score a file on the labelled texts, with the answers decoded as the server does."""
        examples, kind = self.texts.examples, self._source.kind
        assert examples is not None
        config = (self._folder / "config.json").read_bytes()
        answers = predict(
            session,
            self._tokenizer,
            examples.texts,
            kind=kind,
            outputs=self._source.outputs,
            function=scoring_function(kind, config) if kind in PROBLEM_TYPES else None,
            pooling=self._source.pooling,
        )
        check_predictions(answers, examples, kind=kind, key=self._source.name)
        return score(answers, examples, kind=kind, metric=METRICS[kind][0])


def _longest(rows: Sequence[Row]) -> int:
    return max((len(row["input_ids"]) for row in rows), default=1)
