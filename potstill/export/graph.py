"""From a torch model to a clean ONNX graph."""

import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from optimum.utils import NormalizedConfigManager
from transformers import PreTrainedModel

from potstill.errors import CheckpointError, ParityError
from potstill.export.attention import OPERATOR, fused_attention

# Sizes of the example that is traced: 0 and 1 would be taken for constants.
_EXAMPLE_BATCH, _EXAMPLE_LENGTH = 2, 16


def build_graph(model: PreTrainedModel, *, inputs: Sequence[str], output: str, opset: int) -> onnx.ModelProto:
    """Trace `model` (float32, eval mode) into an ONNX graph with one fused attention operator per layer.

    The graph takes int64 tensors `inputs` of shape (batch_size, sequence_length), both free, and gives `output`.

    Raises:
        CheckpointError: if the model's family has no pluggable attention.
        ParityError: if the graph has not one attention operator per layer.
    """
    ids = torch.ones((_EXAMPLE_BATCH, _EXAMPLE_LENGTH), dtype=torch.int64)
    axes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length")}
    try:
        with fused_attention(model), _quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                _Positional(model, inputs, output).eval(),
                tuple(ids.clone() for _ in inputs),
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=[output],
                opset_version=opset,
                dynamic_shapes=(tuple(axes for _ in inputs),),
                external_data=False,
            )
    except (ValueError, torch.onnx.errors.OnnxExporterError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{model.config.model_type} models cannot be exported: {first}") from error
    assert program is not None
    graph = clean(program.model_proto)
    check_fusion(graph, model)
    onnx.checker.check_model(graph)
    return graph


def fusion_receipt(graph: onnx.ModelProto, model: PreTrainedModel) -> dict[str, int]:
    """Count the fused attention operators that the model's layers let expect, and those that are there."""
    config = NormalizedConfigManager.get_normalized_config_class(model.config.model_type)(model.config)
    found = sum(node.op_type == OPERATOR for node in graph.graph.node)
    return {"attention_expected": int(config.num_layers), "attention_found": found, "nodes": len(graph.graph.node)}


def check_fusion(graph: onnx.ModelProto, model: PreTrainedModel) -> None:
    """Refuse a graph in which a layer's attention is missing.

    Raises:
        ParityError: with both counts.
    """
    receipt = fusion_receipt(graph, model)
    if receipt["attention_found"] != receipt["attention_expected"]:
        raise ParityError(
            f"the graph has {receipt['attention_found']} fused attention operators for "
            f"{receipt['attention_expected']} layers; this model's attention does not go through transformers' "
            "AttentionInterface"
        )


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without the reshapes around attention and without stored shapes.

    Splitting heads and merging them again is what the fused operator does inside. Stored shapes go because
    `quantize_dynamic` refuses a graph whose shapes differ from those it infers itself.
    """
    graph = model.graph
    producer = {name: node for node in graph.node for name in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    for node in [node for node in graph.node if node.op_type == OPERATOR]:
        for position in range(3):
            node.input[position] = _before_reshapes(node.input[position], producer)
        for user, old in list(_after_reshapes(node.output[0], consumers)):
            user.input[:] = [node.output[0] if name == old else name for name in user.input]
    drop_dead(graph)
    del graph.value_info[:]
    del graph.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    return model


class _Positional(torch.nn.Module):
    """A model that takes its inputs by position and gives one tensor, as the exporter likes it."""

    def __init__(self, model: PreTrainedModel, inputs: Sequence[str], output: str) -> None:
        super().__init__()
        self.model, self._inputs, self._output = model, tuple(inputs), output

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(self.model(**dict(zip(self._inputs, tensors, strict=True))), self._output)
        return result


def _before_reshapes(name: str, producer: dict[str, onnx.NodeProto]) -> str:
    while name in producer and producer[name].op_type == "Reshape":
        name = producer[name].input[0]
    return name


def _after_reshapes(name: str, consumers: dict[str, list[onnx.NodeProto]]) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Yield who uses the tensor behind any number of reshapes, and under which name."""
    for node in consumers[name]:
        if node.op_type == "Reshape" and node.input[0] == name:
            yield from _after_reshapes(node.output[0], consumers)
        else:
            yield node, name


def drop_dead(graph: onnx.GraphProto) -> None:
    """Remove nodes and constants that nothing uses any more."""
    while True:
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        dead = [node for node in graph.node if not used.intersection(node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


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
