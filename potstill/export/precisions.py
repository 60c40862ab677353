"""Make the ONNX file of each precision and put it through the gates; give layers back to fp32 where int8 fails.

fp32 is made first, and everything else from its file. Memory is why: the torch model, the graph and a session are each
as large as the weights, so each is freed before the next is made (docs/log.md, memory of an export).
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from potstill import machine
from potstill.bundle import (
    MODEL_FILES,
    WEIGHT_ONLY,
    EngineCheck,
    FallbackStep,
    ModelRecord,
    Precision,
    QualityLoss,
    Quantization,
    Saturation,
)
from potstill.config import ExportConfig
from potstill.errors import ParityError
from potstill.export.checks import (
    check_parity,
    compare_speed,
    keep_rows,
    make_rows,
    measure_difference,
)
from potstill.export.first_token import is_first_token_only, keep_first_token
from potstill.export.graph import append_head, build_graph, check_fusion, fusion_report
from potstill.export.onnx_files import check_model, lint, load_model, rewire, save_model, without_values
from potstill.export.quality import QualityGate, open_session
from potstill.export.quantize import Int8Recipe, Method, Prepared, convert_to_fp16, int8_recipe, prepare, quantize
from potstill.export.saturation import measure_saturation
from potstill.export.source import Source
from potstill.export.tuning import DISABLED_OPTIMIZERS, Candidate, race_candidates, tune
from potstill.export.unpad import is_unpadded, unpad
from potstill.onnx_inspect import DYNAMIC, count_matmuls, read_outline

# Texts for the sensitivity of layers: few are enough to rank them, and each layer costs a pass over all.
_SENSITIVITY_TEXTS = 64
# Texts in whose activations saturation is looked for.
_SATURATION_TEXTS = 32
# Texts that fp32 answers alone and in batches; few, because a fault of padding or position shows in every one.
_FP32_BATCH_TEXTS = 128
# Texts that another engine answers alone and in batches, for the same reason.
_ENGINE_BATCH_TEXTS = 256


class Exporter:
    """Makes the ONNX files of one bundle, and compares each with its source and with fp32.

    Attributes:
        source: what is exported.
        folder: the bundle's folder.
        gate: compares files on real texts.
        config: the export's settings.
        say: called with a note at each step.
    """

    def __init__(
        self,
        source: Source,
        folder: Path,
        *,
        gate: QualityGate,
        config: ExportConfig,
        say: Callable[[str], None],
    ) -> None:
        """Take the attributes of the class."""
        self.source, self.folder, self.gate = source, folder, gate
        self.config, self.say = config, say
        # By default not with the standard operator, whose file is for engines that want static shapes (docs/export.md).
        wanted = config.attention == "fused" if config.unpad is None else config.unpad
        self._unpads = wanted and source.onnx_source is None
        # The graph before `unpad`, without weights: int8 is quantised from it, and unpadded again afterwards.
        self._padded: onnx.ModelProto | None = None

    def make_graph(self) -> onnx.ModelProto:
        """Trace the checkpoint, or read the ONNX file and append its sentence head."""
        source = self.source
        if source.onnx_source is not None:
            graph = load_model(source.onnx_source.file)
            return graph if source.head is None else append_head(graph, source.head, width=source.config.hidden_size)
        assert source.model is not None
        return build_graph(
            source.model,
            inputs=source.inputs,
            outputs=source.task_outputs,
            attention=self.config.attention,
            head=source.head,
            opset=self.config.opset,
        )

    def make_fp32(self, graph: onnx.ModelProto) -> ModelRecord:
        """Write the fp32 file and compare it with its source. Frees `graph` and the torch model on the way.

        Raises:
            ParityError: if it is not valid ONNX, lacks a fused operator, differs from its source, or changes a text's
                answer in a batch. A file of another tool may do the last, which the manifest then says.
        """
        is_ours = self.source.onnx_source is None
        self.say(f"fp32: compare with {'torch' if is_ours else 'the file'}")
        # In this order: torch answers and is freed, the graph is written and freed, and only then a session is opened.
        fusion = fusion_report(graph, self.source.config)
        if is_ours and not self.config.allow_unfused:
            check_fusion(fusion)
        if is_ours and self.config.first_token_only:
            keep_first_token(graph)
        file, kept = self._file("fp32"), self.folder / ".reference"
        kept.mkdir()
        rows = keep_rows(self.source, kept)
        self.source.release_model()
        # The weights are in the file, from which `_fp32_graph` takes them again.
        self._padded = without_values(graph)
        if self._unpads:
            rewire(graph, unpad(without_values(graph)))
        unpadded = is_unpadded(graph)
        written = save_model(graph, file)
        del graph
        check_model(file)
        lint(file, "fp32")
        session = open_session(self._file("fp32"))
        parity = check_parity(self.source, session, rows=rows)
        del rows
        shutil.rmtree(kept)
        self.say("fp32: compare answers in batches")
        invariance = self.gate.measure_invariance("fp32", session, limit=_FP32_BATCH_TEXTS, required=is_ours)
        return ModelRecord(
            file=MODEL_FILES["fp32"],
            external_data=self._names(written[1:]),
            cpu_features=sorted(machine.cpu_features()),
            batch_invariant=invariance.invariant,
            unpadded=unpadded,
            first_token_only=is_first_token_only(self._padded),
            disabled_optimizers=list(DISABLED_OPTIMIZERS),
            fusion=fusion,
            parity=parity,
            invariance=invariance,
        )

    def make_fp16(self) -> ModelRecord:
        """Write the fp16 file for GPUs, and judge it on the CPU, which computes it through casts to float32.

        Raises:
            ParityError: if it loses more than is allowed.
        """
        self.say("fp16")
        graph, file = convert_to_fp16(self._fp32_graph()), self._file("fp16")
        written = save_model(graph, file)
        check_model(file)
        lint(file, "fp16")
        session = open_session(file)
        quality = self.gate.compare_with_fp32(session, batch_size=8)
        if not quality.holds:
            raise ParityError(f"fp16 loses too much: {describe_loss(quality)}; nothing was published")
        parity = measure_difference(self.source, session, open_session(self._file("fp32")).run)
        return ModelRecord(
            file=MODEL_FILES["fp16"],
            external_data=self._names(written[1:]),
            cpu_features=sorted(machine.cpu_features()),
            first_token_only=is_first_token_only(graph),
            disabled_optimizers=list(DISABLED_OPTIMIZERS),
            fusion=fusion_report(graph, self.source.config),
            parity=parity.model_copy(update={"checked_on": "CPU, through casts to float32", "gpu": "unchecked"}),
            quality=quality,
        )

    def make_int8(self, precision: Precision) -> ModelRecord:
        """Write int8 by the default recipe or, with `config.tune`, by the fastest recipe that passes the gates.

        Raises:
            ParityError: as `quantize_and_check`; or if no recipe holds.
        """
        method: Method = "static" if precision == "int8-static" else "dynamic"
        recipe = int8_recipe(method, embedding_bits=self.config.embedding_bits)
        if not self.config.calibration_texts:
            recipe = replace(recipe, smoothing=None)  # outliers are found on calibration texts
        if not self.config.tune:
            return self.quantize_and_check(precision, Candidate(recipe))
        return tune(
            recipe,
            time=lambda tried: race_candidates(
                tried,
                self._prepared,
                vocab_size=self.source.config.vocab_size,
                max_length=self.source.max_length,
                rounds=self.config.rounds,
            ),
            make=lambda candidate: self.quantize_and_check(precision, candidate),
            say=lambda note: self.say(f"{precision}: {note}"),
        )

    def quantize_and_check(self, precision: Precision, candidate: Candidate) -> ModelRecord:
        """Quantise, give layers back to fp32 until the file passes, and measure loss, drift, saturation and speed.

        Raises:
            ParityError: if it loses too much with every number of layers, is not of its precision, or is int8-static
                and changes a text's answer in a batch.
        """
        self.say(f"{precision}: quantise")
        recipe, file = candidate.recipe, self._file(precision)
        static = recipe.method == "static"

        def attempt(keep: frozenset[str]) -> QualityLoss:
            graph = quantize(self._prepared, recipe, keep=keep)
            # Dynamic files are served one text at a time, so they never see padding.
            save_model(unpad(graph) if static and self._unpads else graph, file)
            session = open_session(file, candidate.disabled_optimizers)
            return self.gate.compare_with_fp32(session, batch_size=8 if static else 1)

        kept, quality, steps = fall_back(
            self._prepared.layers,
            measure=attempt,
            order=lambda: self._order_by_sensitivity(recipe),
            max_fp32_layers=self.config.max_fp32_layers,
        )
        check_model(file)
        lint(file, precision)
        session = open_session(file, candidate.disabled_optimizers)
        self.say(f"{precision}: compare answers in batches")
        invariance = self.gate.measure_invariance(precision, session, required=static)
        self.say(f"{precision}: speed")
        outline, graph = read_outline(file), onnx.load(file, load_external_data=False)
        saturated = self.gate.texts.judged[:_SATURATION_TEXTS]
        speed = None
        if self.config.rounds:
            speed = compare_speed(
                self._file("fp32"),
                file,
                fp32_disabled=DISABLED_OPTIMIZERS,
                int8_disabled=candidate.disabled_optimizers,
                vocab_size=self.source.config.vocab_size,
                max_length=self.source.max_length,
                rounds=self.config.rounds,
            )
        return ModelRecord(
            file=MODEL_FILES[precision],
            external_data=self._names(sorted(file.parent / location for location in outline.locations)),
            quantisation=Quantization.model_validate(
                recipe.describe()
                | {"fp32_layers": sorted(kept), "texts": self.gate.texts.calibration_origin, "steps": steps}
                | count_matmuls(outline)
            ),
            cpu_features=sorted(machine.cpu_features()),
            batch_invariant=static,
            unpadded=is_unpadded(graph),
            first_token_only=is_first_token_only(self._prepared.model),
            disabled_optimizers=list(candidate.disabled_optimizers),
            fusion=fusion_report(graph, self.source.config),
            parity=measure_difference(self.source, session, open_session(self._file("fp32")).run),
            quality=quality,
            invariance=invariance,
            saturation=measure_saturation(file, self.gate.batches(saturated)),
            speed=speed,
        )

    def keep_as_it_is(self, graph: onnx.ModelProto) -> ModelRecord:
        """Write a source file that has a lower precision already, and compare it with itself without optimisations.

        Raises:
            ParityError: if it is not valid ONNX, or onnxruntime's optimisations change more than is allowed.
        """
        given = self.source.onnx_source
        assert given is not None
        precision, file = given.precision, self._file(given.precision)
        self.say(f"{precision}: compare with the file")
        written = save_model(graph, file)
        check_model(file)
        lint(file, precision, weight_only=given.weight_only)
        outline, session = read_outline(file), open_session(file)
        dynamic = any(node.op_type in DYNAMIC for node in outline.nodes)
        quality = self.gate.compare_with_unoptimised(file, session, batch_size=1 if dynamic else 8)
        if not quality.holds:
            raise ParityError(
                f"{given.file} loses too much by onnxruntime's own optimisations: {describe_loss(quality)}; nothing "
                "was published"
            )
        self.say(f"{precision}: compare answers in batches")
        invariance = self.gate.measure_invariance(precision, session, required=False)
        is_int8 = precision in {"int8", "int8-static"}
        method = WEIGHT_ONLY if given.weight_only else "dynamic" if dynamic else "static"
        how = {"method": method, "made_by": "another tool"} | count_matmuls(outline)
        reference = self.source.reference()
        return ModelRecord(
            file=MODEL_FILES[precision],
            external_data=self._names(written[1:]),
            quantisation=Quantization.model_validate(how) if is_int8 else None,
            cpu_features=sorted(machine.cpu_features()),
            batch_invariant=not is_int8 or (invariance.invariant and not dynamic),
            disabled_optimizers=list(DISABLED_OPTIMIZERS),
            fusion=fusion_report(graph, self.source.config),
            parity=measure_difference(self.source, session, reference, against="the file it was made from"),
            quality=quality,
            invariance=invariance,
            # A weight-only file has no integer sums that could overflow.
            saturation=Saturation(share=0.0, breaks_without_vnni=False) if given.weight_only else None,
        )

    def check_in_openvino(self, precision: Precision, record: ModelRecord) -> ModelRecord:
        """Hold a file's answers in OpenVINO against those of fp32 in onnxruntime, and note them in its record.

        Raises:
            ParityError: if fp32 differs, fp32 or fp16 gives a text another answer in a batch, or more is lost than is
                allowed. Of a quantised file the batches are only noted: `Encoder` then runs every text alone there.
        """
        from potstill.serve.openvino_session import OpenVinoSession, openvino  # an extra

        self.say(f"{precision}: compare in OpenVINO")
        session, reference = OpenVinoSession(self._file(precision)), open_session(self._file("fp32")).run
        against = "fp32 in onnxruntime"
        if precision == "fp32":
            parity = check_parity(self.source, session, rows=make_rows(self.source, reference, seed=0), against=against)
        else:
            parity = measure_difference(self.source, session, reference, against=against)
        quality = self.gate.compare_with_fp32(session, batch_size=8 if record.batch_invariant else 1)
        if not quality.holds:
            raise ParityError(
                f"{precision} in OpenVINO loses {quality.loss:.2%} of {against}, where {self.config.max_loss:.2%} is "
                "allowed; nothing was published; without --check-engine it is for onnxruntime alone"
            )
        invariance = self.gate.measure_invariance(
            f"{precision} in OpenVINO",
            session,
            limit=_ENGINE_BATCH_TEXTS,
            required=precision not in ("int8", "int8-static"),
        )
        check = EngineCheck(version=openvino.__version__, parity=parity, quality=quality, invariance=invariance)
        return record.model_copy(update={"engines": record.engines | {"openvino": check}})

    @cached_property
    def _prepared(self) -> Prepared:
        """The fp32 graph with the activation ranges of the calibration texts; one for all recipes and attempts."""
        return prepare(self._fp32_graph(), self.gate.batches(self.gate.texts.calibration))

    def _fp32_graph(self) -> onnx.ModelProto:
        """Return the fp32 graph before `unpad`, with the weights of the file."""
        assert self._padded is not None, "make_fp32 comes first"
        graph = load_model(self._file("fp32"))
        rewire(graph, self._padded)
        return graph

    def _file(self, precision: Precision) -> Path:
        return self.folder / MODEL_FILES[precision]

    def _names(self, files: Sequence[Path]) -> list[str]:
        """Return files as the manifest names them, relative to the folder."""
        return [path.relative_to(self.folder).as_posix() for path in files]

    def _order_by_sensitivity(self, recipe: Int8Recipe) -> list[str]:
        """Return the layers by the squared error of int8 with only that layer in fp32, the smallest error first."""
        rows, file = self.gate.rows[:_SENSITIVITY_TEXTS], self.folder / "onnx" / ".sensitivity.onnx"
        expected = self.gate.outputs(open_session(self._file("fp32")), rows, batch_size=8).values
        seen = np.isfinite(expected)
        layers = self._prepared.layers
        errors: dict[str, float] = {}
        for number, layer in enumerate(layers, start=1):
            self.say(f"measure sensitivity: layer {number} of {len(layers)}")
            written = save_model(quantize(self._prepared, recipe, keep=frozenset({layer})), file)
            found = self.gate.outputs(open_session(file), rows, batch_size=8).values
            for path in written:
                path.unlink()
            errors[layer] = float(np.square(expected[seen] - found[seen]).mean())
        return sorted(layers, key=errors.__getitem__)


def fall_back(
    layers: Sequence[str],
    *,
    measure: Callable[[frozenset[str]], QualityLoss],
    order: Callable[[], Sequence[str]],
    max_fp32_layers: int,
) -> tuple[frozenset[str], QualityLoss, list[FallbackStep]]:
    """Give layers back to fp32, one by one in `order`, until the int8 file passes the quality gate.

    Args:
        layers: the names of all layers that can be quantised.
        measure: makes the file with these layers in fp32 and returns its loss; the last call made the file that passes.
        order: returns the layers, the most helpful first. Called once and only if int8 everywhere fails, because it
            quantises the model once per layer.
        max_fp32_layers: the most layers that may stay in fp32.

    Returns:
        The layers in fp32, the loss of the file, and all attempts.

    Raises:
        ParityError: with a table of all attempts, if none passes.
    """
    kept: frozenset[str] = frozenset()
    steps: list[FallbackStep] = []

    def attempt(added: str | None) -> QualityLoss:
        quality = measure(kept)
        step = FallbackStep(
            fp32_layers=len(kept),
            added=added,
            loss=quality.loss,
            loss_interval=quality.loss_interval,
            verdict=quality.verdict,
        )
        worst = quality.worst_label
        if worst is not None:
            # As an update: what is not set is not written into the manifest.
            told = {"label": worst.label, "label_loss": worst.loss, "label_verdict": worst.verdict}
            step = step.model_copy(update=told)
        steps.append(step)
        return quality

    quality = attempt(None)
    for layer in () if quality.holds or max_fp32_layers < 1 else order()[:max_fp32_layers]:
        kept |= {layer}
        quality = attempt(layer)
        if quality.holds:
            break
    if not quality.holds:
        by_label = quality.loss <= quality.max_loss
        what = "too much of a label" if by_label else f"more than the {quality.max_loss:.2%} allowed"
        reason = f"\n{quality.reason}" if quality.reason else ""
        limit = "--max-label-loss" if by_label else "--max-loss"
        raise ParityError(
            f"int8 loses {what}, with up to {len(kept)} of {len(layers)} layers in fp32:\n{_table(steps)}{reason}\n"
            f"Allow more with --max-fp32-layers or {limit}, or calibrate on texts that are more like the task's; "
            "nothing was published"
        )
    return kept, quality, steps


def _table(steps: Sequence[FallbackStep]) -> str:
    """Write a line for each attempt; of classifiers also the label whose recall falls most, in points."""
    labelled = any(step.label is not None for step in steps)
    label_head = f"{'label falls':>11}  " if labelled else ""
    lines = [f"{'fp32 layers':>11}  {'loss':>8}  {'95 % interval':>18}  {label_head}{'verdict':12}  added"]
    for step in steps:
        low, high = step.loss_interval
        falls = f"{'-' if step.label_loss is None else f'{100 * step.label_loss:.1f}':>11}  " if labelled else ""
        lines.append(
            f"{step.fp32_layers:>11}  {step.loss:>8.2%}  {f'{low:.2%} to {high:.2%}':>18}  {falls}{step.verdict:12}  "
            f"{step.added or '-'}"
        )
    return "\n".join(lines)


def describe_loss(quality: QualityLoss) -> str:
    """Say by how much a file that does not hold exceeds what is allowed."""
    share = f"{quality.loss:.2%}, where {quality.max_loss:.2%} is allowed"
    reasons = [*([share] if quality.loss > quality.max_loss else []), *([quality.reason] if quality.reason else [])]
    return "; ".join(reasons)
