"""From a torch model to a clean ONNX graph."""

import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import onnx.compose
import onnx.version_converter
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from potstill.checkpoint.model import SentenceHead
from potstill.errors import CheckpointError, UsageError
from potstill.export.attention import Attention
from potstill.export.clean import clean, drop_dead
from potstill.export.families import traceable
from potstill.export.fusion import check_fusion, fusion_receipt

__all__ = ["SENTENCE_EMBEDDING", "Attention", "build_graph", "check_fusion", "drop_dead", "fusion_receipt"]

SENTENCE_EMBEDDING = "sentence_embedding"
"""The output that pooling adds."""
# Gelu is one operator from 20 on, and onnxruntime 1.17 reads it; Attention is standard from 23 on.
OPSETS: dict[str, int] = {"fused": 20, "onnx": 23}
_KNOWN = "bert, roberta, distilbert, electra, albert, mobilebert, mpnet, modernbert or deberta-v2"
# Sizes of the example that is traced: 0 and 1 would be taken for constants.
_EXAMPLE_BATCH, _EXAMPLE_LENGTH = 2, 16
# torch's exporter writes these opsets; onnx's converter goes down to 14, where it loses the way back of Mul.
_OLDEST_TRACED, _NEWEST_TRACED, _OLDEST_CONVERTED = 18, 23, 14


def build_graph(
    model: PreTrainedModel,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    attention: Attention = "fused",
    head: SentenceHead | None = None,
    opset: int | None = None,
) -> onnx.ModelProto:
    """Trace `model` (float32, eval mode) into an ONNX graph with one attention operator per layer.

    Args:
        model: an encoder, with or without a head.
        inputs: what the graph takes, int64 tensors (batch_size, sequence_length) with both dimensions free.
        outputs: what it gives, by their names in the model's own output.
        attention: which operator, see `potstill.export.attention`.
        head: makes one vector per text of `last_hidden_state`, as the further output "sentence_embedding", float32
            (batch_size, width).
        opset: None is 20, or 23 for the standard operator.

    Returns:
        The graph. A family whose attention is not known has no operator; `fusion_receipt` tells.

    Raises:
        CheckpointError: if the model is no encoder, or cannot be traced.
        UsageError: if the standard operator is asked for in an older opset.
    """
    opset = opset or OPSETS[attention]
    if attention == "onnx" and opset < OPSETS[attention]:
        raise UsageError(f"opset {opset} has no Attention operator; take opset 23, or attention 'fused'")
    check_encoder(model)
    wrapper = _Positional(model, inputs, outputs, head).eval()
    names = [*outputs, *([SENTENCE_EMBEDDING] if head else [])]
    with traceable(model, attention), _quiet_exporter(), torch.no_grad():
        graph = _trace(wrapper, inputs=inputs, outputs=names, opset=opset)
    return clean(graph)


def check_encoder(model: PreTrainedModel) -> None:
    """Refuse a model whose tokens do not all see each other.

    Raises:
        CheckpointError: saying what is exported instead.
    """
    config = model.config
    what = f"{config.model_type} models are"
    if getattr(config, "is_decoder", False):
        what = f"this {config.model_type} model is set up as a decoder (is_decoder in its config.json), which is"
    elif config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder:
        return
    raise CheckpointError(
        f"{what} not exported: only encoders without a decoder are, such as {_KNOWN}; fine-tune or distil one of these "
        "for the task, or export this model with optimum"
    )


class _Positional(torch.nn.Module):
    """A model that takes its inputs by position and gives a tuple of tensors, as the exporter likes it."""

    def __init__(
        self, model: PreTrainedModel, inputs: Sequence[str], outputs: Sequence[str], head: SentenceHead | None
    ) -> None:
        super().__init__()
        self.model, self._inputs, self._outputs, self.head = model, tuple(inputs), tuple(outputs), head
        self._needs_types = "token_type_ids" in inspect.signature(model.forward).parameters

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self._inputs, tensors, strict=True))
        if self._needs_types and "token_type_ids" not in given:
            # Else the model makes a type for every token, and looks every one of them up.
            given["token_type_ids"] = torch.zeros((1, 1), dtype=torch.int64)
        answer = self.model(**given)
        results = [getattr(answer, name) for name in self._outputs]
        if self.head is not None:
            results.append(self.head(answer.last_hidden_state, given["attention_mask"]))
        return tuple(results)


def append_head(model: onnx.ModelProto, head: SentenceHead, *, width: int) -> onnx.ModelProto:
    """Add to a finished graph what makes one vector of its token vectors, as the output "sentence_embedding".

    Args:
        model: with the input `attention_mask` and the output `last_hidden_state`; it may be changed, take what is
            returned.
        head: what follows the token vectors.
        width: of a token's vector.

    Raises:
        CheckpointError: if the graph has no mask, or its opset is too old for the head.
    """
    entry = "last_hidden_state"
    if "attention_mask" not in {value.name for value in model.graph.input}:
        raise CheckpointError(
            "the graph has no input attention_mask to pool its token vectors by; export the checkpoint"
        )
    opset = next((known.version for known in model.opset_import if known.domain in {"", "ai.onnx"}), 0)
    example = (
        torch.zeros((_EXAMPLE_BATCH, _EXAMPLE_LENGTH, width)),
        torch.ones((_EXAMPLE_BATCH, _EXAMPLE_LENGTH), dtype=torch.int64),
    )
    axes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length")}
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            head,
            example,
            dynamo=True,
            verbose=False,
            input_names=["token_vectors", "token_mask"],
            output_names=[SENTENCE_EMBEDDING],
            opset_version=min(max(opset, _OLDEST_TRACED), _NEWEST_TRACED),
            dynamic_shapes=(axes, axes),
            external_data=False,
        )
    assert program is not None
    added = clean(program.model_proto)
    if opset < _OLDEST_TRACED:
        try:
            if opset < _OLDEST_CONVERTED:
                model = onnx.version_converter.convert_version(model, _OLDEST_CONVERTED)
            added = onnx.version_converter.convert_version(added, max(opset, _OLDEST_CONVERTED))
        except Exception as error:  # the converter's own errors have no name
            raise CheckpointError(
                f"the graph is of opset {opset}, in which its token vectors cannot be pooled ({_cause(error)}); export "
                "the checkpoint itself"
            ) from error
        for node in added.graph.node:  # the converter leaves an attribute behind that these operators did not have
            if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
                kept = [attribute for attribute in node.attribute if attribute.name != "noop_with_empty_axes"]
                del node.attribute[:]
                node.attribute.extend(kept)
    prefixed = onnx.compose.add_prefix(added, "pooling/", rename_inputs=False, rename_outputs=False)
    states = next(value for value in model.graph.output if value.name == entry)
    given = entry
    if states.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        given = f"pooling/{entry}"
        model.graph.node.append(onnx.helper.make_node("Cast", [entry], [given], name=given, to=onnx.TensorProto.FLOAT))
    names = {"token_vectors": given, "token_mask": "attention_mask"}
    for node in prefixed.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    model.graph.node.extend(prefixed.graph.node)
    model.graph.initializer.extend(prefixed.graph.initializer)
    model.graph.output.extend(prefixed.graph.output)
    return model


def _trace(wrapper: _Positional, *, inputs: Sequence[str], outputs: Sequence[str], opset: int) -> onnx.ModelProto:
    ids = torch.ones((_EXAMPLE_BATCH, _EXAMPLE_LENGTH), dtype=torch.int64)
    axes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length")}
    try:
        program = torch.onnx.export(
            wrapper,
            tuple(ids.clone() for _ in inputs),
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=opset,
            dynamic_shapes=(tuple(axes for _ in inputs),),
            external_data=False,
        )
    except (ValueError, RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        family = wrapper.model.config.model_type
        raise CheckpointError(
            f"this {family} model cannot be exported, because torch cannot trace it: {_cause(error)}; models of the "
            f"family {_KNOWN} can"
        ) from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    # onnxscript's rules remember the last graph that they looked at, and with it every weight of the torch model.
    for value in program.model.graph.initializers.values():
        value.const_value = None
    return model


def _cause(error: BaseException) -> str:
    """Return the first line of the error that the exporter has wrapped in its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's notes about optional packages and axis names off the user's screen."""
    logger: Any = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*shares the same shape constraints")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)
