"""Make and check one file after another: every precision of a bundle goes through the same gates."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from potstill import machine
from potstill.bundle import MODEL_FILES, WEIGHT_ONLY, AgainstTrivial, Manifest, ModelRecord, Precision, QualityLoss
from potstill.config import ExportConfig
from potstill.errors import ParityError
from potstill.evaluation.decision import compare_outputs
from potstill.evaluation.predictions import (
    ModelOutputs,
    check_examples,
    check_predictions,
    collect_outputs,
    predict,
)
from potstill.evaluation.scores import Scored, score
from potstill.evaluation.trivial import against_trivial
from potstill.export.attention_memory import longest_that_fits, most_texts
from potstill.export.batch_invariance import BATCH_SIZES, measure_batch_invariance
from potstill.export.calibration import Probe
from potstill.export.graph import check_fusion, fusion_report
from potstill.export.mixed_precision import fall_back, sensitivity
from potstill.export.onnx_files import Feeds, check_model, lint, load_model, rewire, save_model, without_values
from potstill.export.parity import check_parity, keep_rows, measure_difference
from potstill.export.quantize import Int8Recipe, Prepared, convert_to_fp16, int8_recipe, prepare, quantize
from potstill.export.saturation import saturation
from potstill.export.source import Source
from potstill.export.speed import compare_speed
from potstill.export.unpad import is_unpadded, unpad
from potstill.onnx_inspect import DYNAMIC, count_matmuls, read_outline
from potstill.serve import BundleTokenizer, OnnxSession, Row
from potstill.serve.tasks.text_classification import scoring_function
from potstill.tasks import METRICS, PROBLEM_TYPES

# onnxruntime's SkipLayerNormalization kernel is slower than the Add and LayerNormalization that it replaces: BERT-base
# int8 1x128 took 57 ms with it and 49 ms without, 8x128 419 and 369 ms (onnxruntime 1.31.1, 2 cores, AVX512-VNNI).
DISABLED_OPTIMIZERS = ("SkipLayerNormFusion",)
# Few texts at once: every layer's activations are held at the same time.
_CALIBRATION_BATCH = 8
# What sensitivity is measured on: the order of the layers shows on few texts, and every layer costs one pass.
_SENSITIVITY_TEXTS = 64
_SATURATION_BATCHES = 4
# What fp32 is asked alone and in batches: a wrong side or position shows in every padded text.
_FP32_BATCH_TEXTS = 128

Say = Callable[[str], None]


class Workshop:
    """One export: the source, the folder that becomes the bundle, and what every file is held against."""

    def __init__(
        self,
        source: Source,
        folder: Path,
        *,
        tokenizer: BundleTokenizer,
        probe: Probe,
        config: ExportConfig,
        say: Say,
    ) -> None:
        self.source, self.folder, self.config, self.probe = source, folder, config, probe
        self.tokenizer, self.say = tokenizer, say
        if probe.examples is not None:
            check_examples(probe.examples, source.kind)
        self._plain: onnx.ModelProto | None = None

    def make_fp32(self, graph: onnx.ModelProto) -> ModelRecord:
        """Write the graph that everything else is made of, and hold it against its source.

        Raises:
            ParityError: if it is not a valid graph, lacks a fused operator, answers otherwise, or answers a text
                otherwise in a batch. A file of another tool may do the last; then the manifest says so.
        """
        self.say(f"fp32: compare with {'torch' if self.source.existing is None else 'the file'}")
        # The torch model, the graph and a session are three times the weights, so one goes before the next comes.
        receipt = fusion_report(graph, self.source.config)
        if not self.config.allow_unfused and self.source.existing is None:
            check_fusion(receipt)
        file, kept = self.file("fp32"), self.folder / ".reference"
        kept.mkdir()
        rows = keep_rows(self.source, kept)
        self.source.release_model()
        self._plain = without_values(graph)
        if self._unpads:
            rewire(graph, unpad(without_values(graph)))
        unpadded = is_unpadded(graph)
        side = save_model(graph, file)[1:]
        del graph
        check_model(file)
        lint(file, "fp32")
        session = self.fp32_session()
        parity = check_parity(self.source, session, rows=rows)
        del rows
        shutil.rmtree(kept)
        self.say("fp32: compare answers in batches")
        invariance = self._invariance(session, limit=_FP32_BATCH_TEXTS)
        if self.source.existing is None:
            self._check_invariance("fp32", invariance)
        return self._record(
            "fp32",
            side,
            fusion=receipt,
            unpadded=unpadded,
            parity=parity,
            invariance=invariance,
            batch_invariant=bool(invariance["invariant"]),
        )

    def make_fp16(self) -> ModelRecord:
        """Write the half-size file for GPUs, and judge it here through casts to float32.

        Raises:
            ParityError: if it loses more than is allowed.
        """
        self.say("fp16")
        half, file = convert_to_fp16(self.graph), self.file("fp16")
        side = save_model(half, file)[1:]
        check_model(file)
        lint(file, "fp16")
        session = self._open(file, DISABLED_OPTIMIZERS)
        evidence = self._judge(session, batch_size=8)
        if not evidence.holds:
            raise ParityError(f"fp16 loses {evidence.loss:.2%}, where {self.config.max_loss:.2%} is allowed")
        return self._record(
            "fp16",
            side,
            fusion=fusion_report(half, self.source.config),
            parity=measure_difference(self.source, session, self.fp32_session().run)
            | {"checked_on": "CPU, through casts to float32", "gpu": "unchecked"},
            quality=evidence,
        )

    def keep_as_it_is(self, graph: onnx.ModelProto) -> ModelRecord:
        """Write a file that is of a lower precision already, and hold it against itself without any optimisation.

        Raises:
            ParityError: if it is not a valid graph, or onnxruntime's optimisations change more than is allowed.
        """
        existing = self.source.existing
        assert existing is not None
        precision, file = existing.precision, self.file(existing.precision)
        self.say(f"{precision}: compare with the file")
        side = save_model(graph, file)[1:]
        check_model(file)
        lint(file, precision, weight_only=existing.weight_only)
        outline, session = read_outline(file), self._open(file, DISABLED_OPTIMIZERS)
        dynamic = any(node.op_type in DYNAMIC for node in outline.nodes)
        batch_size = 1 if dynamic else 8
        plain, scored = OnnxSession(file, spinning=False, optimise=False), None
        if self.probe.examples is not None:
            # There is no fp32: what the file scores is what there is to tell.
            self.scored = self._score(session)
            scored = self._score(plain), self.scored
        evidence = compare_outputs(
            self._answers(plain, self.rows, batch_size=batch_size),
            self._answers(session, self.rows, batch_size=batch_size),
            max_loss=self.config.max_loss,
            scored=scored,
        ).model_copy(update={"on": self.probe.origin["judged"]})
        if not evidence.holds:
            raise ParityError(
                f"{existing.file} loses {evidence.loss:.2%} by onnxruntime's own optimisations, where "
                f"{self.config.max_loss:.2%} is allowed; nothing was published"
            )
        self.say(f"{precision}: compare answers in batches")
        invariance = self._invariance(session)
        about: dict[str, Any] = {}
        if precision in {"int8", "int8-static"}:
            method = WEIGHT_ONLY if existing.weight_only else "dynamic" if dynamic else "static"
            about["quantisation"] = {"method": method, "made_by": "another tool"} | count_matmuls(outline)
            about["batch_invariant"] = bool(invariance["invariant"]) and not dynamic
        if existing.weight_only:
            about["saturation"] = {"breaks_without_vnni": False, "share": 0.0}  # nothing is summed in integers
        return self._record(
            precision,
            side,
            fusion=fusion_report(graph, self.source.config),
            parity=measure_difference(
                self.source, session, self.source.reference(), against="the file it was made from"
            ),
            quality=evidence,
            invariance=invariance,
            **about,
        )

    def default_recipe(self, precision: Precision) -> Int8Recipe:
        """Return how to quantise for this CPU; without texts, outliers stay where they are."""
        recipe = int8_recipe("static" if precision == "int8-static" else "dynamic")
        return recipe if self.config.calibration_texts else replace(recipe, smoothing=None)

    def make_int8(
        self, precision: Precision, recipe: Int8Recipe, *, disabled_optimizers: Sequence[str] = DISABLED_OPTIMIZERS
    ) -> ModelRecord:
        """Quantise, give layers back to fp32 until the file holds, and measure what it is worth.

        Raises:
            ParityError: if it never holds, is not what it says, or does not keep a text's answer although it should.
        """
        self.say(f"{precision}: quantise")
        static, file = recipe.method == "static", self.file(precision)
        batch_size = 8 if static else 1

        def attempt(keep: frozenset[str]) -> QualityLoss:
            plain = quantize(self.prepared, recipe, keep=keep)
            # One text at a time, which is how dynamic files are served, has no padding.
            save_model(unpad(plain) if static and self._unpads else plain, file)
            return self._judge(self._open(file, disabled_optimizers), batch_size=batch_size)

        kept, evidence, steps = fall_back(
            self.prepared.layers,
            quantize_and_judge=attempt,
            order=lambda: self._most_sensitive(recipe),
            max_fp32_layers=self.config.max_fp32_layers,
        )
        check_model(file)
        lint(file, precision)
        session = self._open(file, disabled_optimizers)
        self.say(f"{precision}: compare answers in batches")
        invariance = self._invariance(session)
        if static:
            self._check_invariance(precision, invariance)
        self.say(f"{precision}: speed")
        outline, graph = read_outline(file), onnx.load(file, load_external_data=False)
        return self._record(
            precision,
            sorted(file.parent / location for location in outline.locations),
            quantisation=recipe.describe()
            | {"fp32_layers": sorted(kept), "texts": self.probe.origin["calibration"], "steps": steps}
            | count_matmuls(outline),
            disabled_optimizers=disabled_optimizers,
            batch_invariant=static,
            unpadded=is_unpadded(graph),
            fusion=fusion_report(graph, self.source.config),
            parity=measure_difference(self.source, session, self.fp32_session().run),
            quality=evidence,
            invariance=invariance,
            saturation=saturation(file, self.batches(self.probe.judged[: _CALIBRATION_BATCH * _SATURATION_BATCHES])),
            speed=self._speed(file, disabled_optimizers),
        )

    @property
    def graph(self) -> onnx.ModelProto:
        """The fp32 graph with padding in its products, read anew with its weights from the file."""
        assert self._plain is not None, "make_fp32 comes first"
        graph = load_model(self.file("fp32"))
        rewire(graph, self._plain)
        return graph

    @cached_property
    def prepared(self) -> Prepared:
        """The fp32 graph with its ranges on the calibration texts."""
        return prepare(self.graph, self.batches(self.probe.calibration))

    @cached_property
    def rows(self) -> list[Row]:
        """The judged texts as the model reads them."""
        return self.tokenizer.rows(self.probe.judged)

    @cached_property
    def expected(self) -> ModelOutputs:
        """What fp32 answers to the judged texts."""
        return self._answers(self.fp32_session(), self.rows, batch_size=8)

    @cached_property
    def scored(self) -> Scored | None:
        """How good fp32 is; None where the judged texts have no labels."""
        if self.probe.examples is None:
            return None
        return self._score(self.fp32_session())

    def judged(self) -> AgainstTrivial | None:
        """Return fp32's score on the judged texts, against an answer that ignores them; None without labels."""
        if self.scored is None or self.probe.examples is None:
            return None
        kind = self.source.kind
        found = against_trivial({}, self.scored, self.probe.examples, kind=kind, metric=METRICS[kind][0])
        return found.model_copy(update={"on": self.probe.origin["judged"]})

    def file(self, precision: Precision) -> Path:
        """Return where the file of a precision is written."""
        return self.folder / MODEL_FILES[precision]

    def fp32_session(self) -> OnnxSession:
        """Open fp32 as it will be served."""
        return self._open(self.file("fp32"), DISABLED_OPTIMIZERS)

    def batches(self, texts: Sequence[Any]) -> list[Feeds]:
        """Return texts as inputs of the graph, a few at once."""
        rows = self.tokenizer.rows(texts)
        longest = max((len(row["input_ids"]) for row in rows), default=1)
        size = most_texts(_CALIBRATION_BATCH, heads=self.source.config.num_attention_heads, length=longest)
        return [self.tokenizer.pad(rows[start : start + size]) for start in range(0, len(rows), size)]

    @property
    def _unpads(self) -> bool:
        """Whether padding is left out of graphs of ours."""
        wanted = self.config.attention == "fused" if self.config.unpad is None else self.config.unpad
        return wanted and self.source.existing is None

    def _open(self, file: Path, disabled_optimizers: Sequence[str]) -> OnnxSession:
        """Open a file as it will be served, without spinning threads that slow torch down beside it."""
        return OnnxSession(file, spinning=False, disabled_optimizers=disabled_optimizers)

    def _answers(self, session: OnnxSession, rows: Sequence[Row], *, batch_size: int) -> ModelOutputs:
        longest = max((len(row["input_ids"]) for row in rows), default=1)
        batch_size = most_texts(batch_size, heads=self.source.config.num_attention_heads, length=longest)
        return collect_outputs(
            session, self.tokenizer, rows, kind=self.source.kind, outputs=self.source.outputs, batch_size=batch_size,
            mask_id=self.source.tokenizer.mask_token_id,
        )  # fmt: skip

    def _score(self, session: OnnxSession) -> Scored:
        """Score the labelled texts by the answers that will be served."""
        assert self.probe.examples is not None
        kind, config = self.source.kind, (self.folder / "config.json").read_bytes()
        predictions = predict(
            session,
            self.tokenizer,
            self.probe.examples.texts,
            kind=kind,
            outputs=self.source.outputs,
            function=scoring_function(kind, config) if kind in PROBLEM_TYPES else None,
            pooling=self.source.pooling,
        )
        check_predictions(predictions, self.probe.examples, kind=kind, key=self.source.name)
        return score(predictions, self.probe.examples, kind=kind, metric=METRICS[kind][0])

    def _judge(self, session: OnnxSession, *, batch_size: int) -> QualityLoss:
        found = self._answers(session, self.rows, batch_size=batch_size)
        scored = None
        if self.scored is not None:
            scored = self.scored, self._score(session)
        evidence = compare_outputs(self.expected, found, max_loss=self.config.max_loss, scored=scored)
        return evidence.model_copy(update={"on": self.probe.origin["judged"]})

    def _most_sensitive(self, recipe: Int8Recipe) -> list[str]:
        """Return the layers by how much it helps to leave one of them alone in fp32."""
        rows, file = self.rows[:_SENSITIVITY_TEXTS], self.folder / "onnx" / ".sensitivity.onnx"
        expected = self._answers(self.fp32_session(), rows, batch_size=8)

        def error_without(keep: frozenset[str]) -> float:
            written = save_model(quantize(self.prepared, recipe, keep=keep), file)
            found = self._answers(self._open(file, DISABLED_OPTIMIZERS), rows, batch_size=8)
            for path in written:
                path.unlink()
            seen: NDArray[np.bool_] = np.isfinite(expected.values)
            return float(np.square(expected.values[seen] - found.values[seen]).mean())

        layers = self.prepared.layers
        done = 0

        def counted(keep: frozenset[str]) -> float:
            nonlocal done
            done += 1
            self.say(f"measure sensitivity: layer {done} of {len(layers)}")
            return error_without(keep)

        return [layer for layer, _ in sensitivity(layers, counted)]

    def _invariance(self, session: OnnxSession, *, limit: int = 1000) -> dict[str, Any]:
        # Longer texts are cut: what others in the batch do to a text shows on its first tokens as well.
        longest = longest_that_fits(max(BATCH_SIZES), heads=self.source.config.num_attention_heads)
        rows = [{name: values[:longest] for name, values in row.items()} for row in self.rows]
        return measure_batch_invariance(
            session,
            self.tokenizer,
            rows,
            outputs=self.source.outputs,
            kind=self.source.kind,
            limit=limit,
            mask_id=self.source.tokenizer.mask_token_id,
        )

    def _check_invariance(self, precision: Precision, found: dict[str, Any]) -> None:
        if not found["invariant"]:
            raise ParityError(
                f"{precision} gives a text another answer in a batch: {found['flips']} flips, drift "
                f"{found['max_drift']:.2g}; nothing was published"
            )

    def _speed(self, file: Path, disabled_optimizers: Sequence[str]) -> dict[str, Any] | None:
        if not self.config.rounds:
            return None
        return compare_speed(
            {"fp32": (self.file("fp32"), DISABLED_OPTIMIZERS), "int8": (file, disabled_optimizers)},
            vocab_size=self.source.config.vocab_size,
            max_length=self.source.max_length,
            rounds=self.config.rounds,
        )

    def _record(self, precision: Precision, side: Sequence[Path], **about: Any) -> ModelRecord:
        return ModelRecord(
            file=MODEL_FILES[precision],
            external_data=[path.relative_to(self.folder).as_posix() for path in side],
            cpu_features=sorted(machine.cpu_features()),
            **{"disabled_optimizers": list(DISABLED_OPTIMIZERS)} | about,
        )


def draft_manifest(source: Source) -> Manifest:
    """Return what a tokenizer needs of a manifest, before there are files to name."""
    return Manifest.model_construct(
        inputs=list(source.inputs),
        max_length=source.max_length,
        padding_side=source.tokenizer.padding_side,
        pad_token_id=source.tokenizer.pad_token_id or 0,
    )
