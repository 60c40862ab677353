"""Trace a torch model into an ONNX graph, simplify the graph without changing its outputs, and count what was fused.

The passes below `clean` work on `onnx.GraphProto` in place. They assume what torch's exporter writes: one graph without
subgraphs, sorted topologically, each tensor produced once.
"""

import ast
import hashlib
import inspect
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import onnx.compose
import onnx.version_converter
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from optimum.utils import NormalizedConfigManager
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from potstill.bundle import Fusion
from potstill.checkpoint.model import SentenceHead
from potstill.errors import CheckpointError, ParityError, UsageError
from potstill.export.attention import OPERATORS, Attention, traceable
from potstill.serve import SENTENCE_EMBEDDING

# Gelu is one operator from opset 20 on (read by onnxruntime 1.17 and later), Attention from 23 on.
OPSETS: dict[str, int] = {"fused": 20, "onnx": 23}
_KNOWN = "bert, roberta, distilbert, electra, albert, mobilebert, mpnet, modernbert or deberta-v2"
# Sizes of the traced example. torch.export specialises dimensions of size 0 and 1, so that they would be fixed.
_EXAMPLE_BATCH, _EXAMPLE_LENGTH = 2, 16
# torch's exporter writes opsets 18 to 23. onnx's version converter goes down to 14 only: it cannot convert Mul to 13.
_OLDEST_TRACED, _NEWEST_TRACED, _OLDEST_CONVERTED = 18, 23, 14
# The attribute of `_PositionalModel` that holds the model, with which module paths in a traced graph begin.
_WRAPPER = "model."
# The metadata of a node in which torch's exporter writes the path of modules that it comes from, as a Python list.
_SCOPES = "pkg.torch.onnx.name_scopes"


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
        model: an encoder, with or without a task head.
        inputs: names of the graph's inputs, int64 (batch_size, sequence_length) with both dimensions dynamic.
        outputs: names of the graph's outputs, as in the model's own output.
        attention: which operator, see `potstill.export.attention`.
        head: a sentence head on `last_hidden_state`; adds the output "sentence_embedding", float32 (batch_size, width).
        opset: None is 20, or 23 for the standard operator.

    Returns:
        The graph, with its weights. An unknown family has no attention operator; `fusion_report` tells.

    Raises:
        CheckpointError: if the model is no encoder, or cannot be traced.
        UsageError: if `attention` is "onnx" and `opset` is below 23.
    """
    opset = opset or OPSETS[attention]
    if attention == "onnx" and opset < OPSETS[attention]:
        raise UsageError(f"opset {opset} has no Attention operator; take opset 23, or attention 'fused'")
    check_encoder(model)
    wrapper = _PositionalModel(model, inputs, outputs, head).eval()
    ids = torch.ones((_EXAMPLE_BATCH, _EXAMPLE_LENGTH), dtype=torch.int64)
    names = [*outputs, *([SENTENCE_EMBEDDING] if head else [])]
    try:
        with traceable(model, attention):
            # A tensor each: torch.export merges inputs that are the same object (docs/log.md).
            graph = _trace(wrapper, [ids.clone() for _ in inputs], inputs=inputs, outputs=names, opset=opset)
    except (ValueError, RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise CheckpointError(
            f"this {model.config.model_type} model cannot be exported, because torch cannot trace it: "
            f"{_cause(error)}; models of the family {_KNOWN} can"
        ) from error
    return clean(graph)


def append_head(model: onnx.ModelProto, head: SentenceHead, *, width: int) -> onnx.ModelProto:
    """Add a sentence head to a finished graph, as the output "sentence_embedding".

    Args:
        model: a graph with the input `attention_mask` and the output `last_hidden_state`. It may be changed in place;
            use the returned one.
        head: the sentence head.
        width: the width of a token vector.

    Raises:
        CheckpointError: if the graph has no mask, or its opset is too old for the head.
    """
    vectors = "last_hidden_state"
    if "attention_mask" not in {value.name for value in model.graph.input}:
        raise CheckpointError(
            "the graph has no input attention_mask to pool its token vectors by; export the checkpoint"
        )
    opset = next((known.version for known in model.opset_import if known.domain in {"", "ai.onnx"}), 0)
    added = clean(
        _trace(
            head,
            [
                torch.zeros((_EXAMPLE_BATCH, _EXAMPLE_LENGTH, width)),
                torch.ones((_EXAMPLE_BATCH, _EXAMPLE_LENGTH), dtype=torch.int64),
            ],
            inputs=["token_vectors", "token_mask"],
            outputs=[SENTENCE_EMBEDDING],
            opset=min(max(opset, _OLDEST_TRACED), _NEWEST_TRACED),
        )
    )
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
        for node in added.graph.node:  # the converter leaves an attribute that ReduceMax and others got in opset 18
            if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
                kept = [attribute for attribute in node.attribute if attribute.name != "noop_with_empty_axes"]
                del node.attribute[:]
                node.attribute.extend(kept)
    prefixed = onnx.compose.add_prefix(added, "pooling/", rename_inputs=False, rename_outputs=False)
    # The head was traced in float32; the vectors of an fp16 file are cast.
    as_float = vectors
    declared = next(value for value in model.graph.output if value.name == vectors)
    if declared.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        as_float = f"pooling/{vectors}"
        model.graph.node.append(
            helper.make_node("Cast", [vectors], [as_float], name=as_float, to=onnx.TensorProto.FLOAT)
        )
    _rename_inputs(prefixed.graph, {"token_vectors": as_float, "token_mask": "attention_mask"})
    model.graph.node.extend(prefixed.graph.node)
    model.graph.initializer.extend(prefixed.graph.initializer)
    model.graph.output.extend(prefixed.graph.output)
    return model


def fusion_report(model: onnx.ModelProto, config: PretrainedConfig) -> Fusion:
    """Count attention, norm, activation and shape operators in a graph; expected is one attention per layer."""
    counts = Counter(node.op_type for node in model.graph.node)
    constants = {tensor.name for tensor in model.graph.initializer} | {""}
    from_sizes: set[str] = set()
    shape_nodes = 0
    for node in model.graph.node:
        varying = set(node.input) - constants
        if node.op_type == "Shape" or (varying and varying <= from_sizes):
            from_sizes.update(node.output)
            shape_nodes += 1
    return Fusion(
        attention="onnx" if counts[OPERATORS["onnx"]] else "fused",
        attention_expected=count_layers(config),
        attention_found=counts[OPERATORS["onnx"]] + counts[OPERATORS["fused"]] + counts["QAttention"],
        layer_norms=counts["LayerNormalization"],
        gelus=counts["Gelu"],
        nodes=len(model.graph.node),
        shape_nodes=shape_nodes,
        opset=next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), None),
        onnxruntime_operators=sorted({node.op_type for node in model.graph.node if node.domain == "com.microsoft"}),
    )


def check_fusion(report: Fusion) -> None:
    """Refuse a graph without one attention operator per layer.

    Raises:
        ParityError: with the number of operators found and of layers.
    """
    if report.attention_found != report.attention_expected:
        raise ParityError(
            f"the graph has {report.attention_found} fused attention operators for {report.attention_expected} layers: "
            "this family computes attention in its own way, so the file would be right but slower; export it as it is "
            "with --allow-unfused"
        )


def count_layers(config: PretrainedConfig) -> int:
    """Return the number of attentions in a forward pass; each of ALBERT's layers may be a group of several."""
    try:
        layers = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config).num_layers
    except KeyError:  # optimum does not know MobileBERT
        layers = config.num_hidden_layers
    return int(layers) * int(getattr(config, "inner_group_num", 1))


def check_encoder(model: PreTrainedModel) -> None:
    """Refuse decoders, encoder-decoders, and families without a masked language model.

    Raises:
        CheckpointError: naming families that can be exported.
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


class _PositionalModel(torch.nn.Module):
    """Adapts a model to the exporter, which wants positional inputs and a tuple of tensors as the output."""

    def __init__(
        self, model: PreTrainedModel, inputs: Sequence[str], outputs: Sequence[str], head: SentenceHead | None
    ) -> None:
        super().__init__()
        self.model, self._inputs, self._outputs, self.head = model, tuple(inputs), tuple(outputs), head
        self._needs_types = "token_type_ids" in inspect.signature(model.forward).parameters

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self._inputs, tensors, strict=True))
        if self._needs_types and "token_type_ids" not in given:
            # One type for all, broadcast. Else the model makes one per token and the graph looks up each of them.
            given["token_type_ids"] = torch.zeros((1, 1), dtype=torch.int64)
        answer = self.model(**given)
        results = [getattr(answer, name) for name in self._outputs]
        if self.head is not None:
            results.append(self.head(answer.last_hidden_state, given["attention_mask"]))
        return tuple(results)


def _trace(
    module: torch.nn.Module, example: Sequence[Tensor], *, inputs: Sequence[str], outputs: Sequence[str], opset: int
) -> onnx.ModelProto:
    """Run torch's dynamo exporter, with the first two dimensions of every input dynamic."""
    axes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length")}
    shapes = tuple(axes for _ in example)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(example),
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=opset,
            # To torch.export, a forward(*tensors) has one argument, the tuple of all.
            dynamic_shapes=(shapes,) if isinstance(module, _PositionalModel) else shapes,
            external_data=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    # onnxscript's rewrite rules keep the last graph alive, and with it every torch weight (docs/log.md, memory).
    for value in program.model.graph.initializers.values():
        value.const_value = None
    return model


def _cause(error: BaseException) -> str:
    """Return the first line of the innermost error; the exporter wraps it several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings about optional packages, shared dimension names and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*shares the same shape constraints")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


# Simplifying: every pass changes the graph in place and keeps its outputs.


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Simplify a traced graph in place and return it.

    Reshapes around attention, transposed copies of weights and dead nodes go; nodes are named after their module, such
    as "bert.encoder.layer.0.output.dense/MatMul".
    """
    graph = model.graph
    # In this order: weights are stored as multiplied before equal ones are found, and those are shared before they are
    # compared with the vocabulary table. What became dead must not be named, and names need the metadata removed below.
    merge_heads(graph)
    fold_transposes(graph)
    share_equal_weights(graph)
    tie_vocabulary(graph)
    slice_positions(graph)
    drop_dead(graph)
    name_after_modules(graph)
    # At least the IR version that the opsets came with; com.microsoft has none, so it is ignored.
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True))
    # The passes above made the stored shapes wrong, which onnxruntime's quantize_dynamic refuses.
    del graph.value_info[:]
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


def merge_heads(graph: onnx.GraphProto) -> None:
    """Remove the reshapes around attention operators, which split and merge heads themselves."""
    producer = {name: node for node in graph.node for name in node.output}
    consumers = _consumers(graph)

    def before_reshapes(name: str) -> str:
        """Follow a tensor back over pairs of Reshape (split, merge); a single one belongs to a Transpose and stays."""
        while (merged := producer.get(name)) is not None and merged.op_type == "Reshape":
            split = producer.get(merged.input[0])
            if split is None or split.op_type != "Reshape":
                break
            name = split.input[0]
        return name

    def after_reshapes(name: str) -> Iterator[tuple[onnx.NodeProto, str]]:
        """Yield the nodes that read a tensor behind any number of Reshape, and by which name they read it."""
        for node in consumers[name]:
            if node.op_type == "Reshape" and node.input[0] == name:
                yield from after_reshapes(node.output[0])
            else:
                yield node, name

    for node in [node for node in graph.node if node.op_type in OPERATORS.values()]:
        for position in range(3):
            node.input[position] = before_reshapes(node.input[position])
        for user, old in list(after_reshapes(node.output[0])):
            user.input[:] = [node.output[0] if name == old else name for name in user.input]


def fold_transposes(graph: onnx.GraphProto) -> None:
    """Store matrices transposed where every user transposes them; the exporter folds only those with a single user."""
    weights, consumers = _weights(graph), _consumers(graph)
    for name, tensor in weights.items():
        users = consumers[name]
        if len(tensor.dims) != 2 or not users or any(node.op_type != "Transpose" for node in users):
            continue
        tensor.CopyFrom(_tensor(numpy_helper.to_array(tensor).T, name))
        for node in users:
            for user in consumers[node.output[0]]:
                user.input[:] = [name if read == node.output[0] else read for read in user.input]


def share_equal_weights(graph: onnx.GraphProto) -> None:
    """Store equal matrices once; the exporter transposes a weight that ALBERT's layers share anew for each layer."""
    first: dict[tuple[tuple[int, ...], str], str] = {}
    names: dict[str, str] = {}
    # Names of the checkpoint before the exporter's val_N, so that the first of equal matrices has a real name.
    for tensor in sorted(graph.initializer, key=lambda tensor: tensor.name.startswith("val_")):
        if len(tensor.dims) == 2:
            content = hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).hexdigest()
            names[tensor.name] = first.setdefault((tuple(tensor.dims), content), tensor.name)
    _rename_inputs(graph, names)


def tie_vocabulary(graph: onnx.GraphProto) -> None:
    """Make a vocabulary projection that is tied to the word embeddings read that table, instead of a copy of it.

    MatMul needs the table transposed, which is a second copy of the largest weight. Gemm can transpose (transB), but
    takes two dimensions only: (B, T, H) x (V, H) + (V) becomes Reshape, Gemm, Reshape.
    """
    weights, consumers = _weights(graph), _consumers(graph)
    tables = {name for name in weights if any(node.op_type == "Gather" for node in consumers[name])}
    producer = {name: node for node in graph.node for name in node.output}
    replacements: dict[str, list[onnx.NodeProto]] = {}
    for product in graph.node:
        table = _table_of(product.input[1], tables, weights, producer) if product.op_type == "MatMul" else None
        if table is None:
            continue
        # The bias is the constant vector of an Add that is the only user of the product.
        last, bias = product, []
        users = consumers[product.output[0]]
        if len(users) == 1 and users[0].op_type == "Add":
            bias = [name for name in users[0].input if name in weights and len(weights[name].dims) == 1][:1]
            last = users[0] if bias else product
        hidden, output = product.input[0], last.output[0]
        words, width = weights[table].dims
        tokens, answers, sizes, shape = (f"{output}_{part}" for part in ("tokens", "rows", "sizes", "shape"))
        graph.initializer.extend(
            [_tensor(np.array([-1, width]), f"{tokens}_shape"), _tensor(np.array([words]), f"{output}_width")]
        )
        nodes = [
            helper.make_node("Reshape", [hidden, f"{tokens}_shape"], [tokens]),
            helper.make_node("Gemm", [tokens, table, *bias], [answers], transB=1),
            helper.make_node("Shape", [hidden], [sizes], start=0, end=2),
            helper.make_node("Concat", [sizes, f"{output}_width"], [shape], axis=0),
            helper.make_node("Reshape", [answers, shape], [output]),
        ]
        for node in nodes:
            # The module path, by which `name_after_modules` names the new nodes.
            node.metadata_props.extend(product.metadata_props)
        replacements |= {product.output[0]: [], output: nodes}
    _replace(graph, replacements)


def _table_of(
    name: str, tables: set[str], weights: Mapping[str, onnx.TensorProto], producer: Mapping[str, onnx.NodeProto]
) -> str | None:
    """Return the table whose transpose `name` is: by a Transpose node or, where the exporter folded it, by value."""
    if name in producer:
        turned = producer[name]
        return turned.input[0] if turned.op_type == "Transpose" and turned.input[0] in tables else None
    if name not in weights:
        return None
    matrix = weights[name]
    for table in (weights[other] for other in tables):
        alike = list(table.dims) == list(matrix.dims)[::-1]
        if alike and np.array_equal(numpy_helper.to_array(table), numpy_helper.to_array(matrix).T):
            return str(table.name)
    return None


def slice_positions(graph: onnx.GraphProto) -> None:
    """Replace a Gather of rows 0, 1, 2, ... of a position table by a Slice of its first T rows."""
    weights, consumers = _weights(graph), _consumers(graph)
    producer = {name: node for node in graph.node for name in node.output}
    replacements: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        ids = producer.get(node.input[1]) if node.op_type == "Gather" and node.input[0] in weights else None
        # The output becomes (T, H) instead of (1, T, H), which is the same to an Add, so all users must be one.
        added = all(user.op_type == "Add" for user in consumers[node.output[0]])
        if ids is None or ids.op_type != "Slice" or not added or not set(ids.input[:2]) <= weights.keys():
            continue
        numbers, start = (numpy_helper.to_array(weights[name]) for name in ids.input[:2])
        if numbers.shape[0] != 1 or start != 0 or not np.array_equal(numbers[0], np.arange(numbers.size)):
            continue
        axis = f"{node.output[0]}_axis"
        graph.initializer.append(_tensor(np.array([0]), axis))
        rows = helper.make_node("Slice", [node.input[0], *ids.input[1:3], axis], list(node.output))
        rows.metadata_props.extend(node.metadata_props)
        replacements[node.output[0]] = [rows]
    _replace(graph, replacements)


def name_after_modules(graph: onnx.GraphProto) -> None:
    """Name nodes after their module ("classifier/Gemm"), and transposed weights (val_N) after the module's weight."""
    names = {name: name.removeprefix(_WRAPPER) for name in _weights(graph)}
    taken = Counter(names.values())
    for node in graph.node:
        # The last scope is the node's own; the one before it is the innermost module, named as in `named_modules`.
        written = [entry.value for entry in node.metadata_props if entry.key == _SCOPES]
        scopes: list[str] = ast.literal_eval(written[0]) if written else []
        paths = [scope.removeprefix(_WRAPPER) for scope in scopes[:-1] if scope.startswith(_WRAPPER)]
        path = paths[-1] if paths else ""
        wanted = f"{path}/{node.op_type}" if path else node.op_type
        taken[wanted] += 1
        node.name = wanted if taken[wanted] == 1 else f"{wanted}_{taken[wanted]}"
        weight = node.input[1] if node.op_type in {"MatMul", "Gemm"} else ""
        if path and names.get(weight, "").startswith("val_") and not taken[f"{path}.weight"]:
            taken[f"{path}.weight"] += 1
            names[weight] = f"{path}.weight"
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    _rename_inputs(graph, names)


def drop_dead(graph: onnx.GraphProto) -> None:
    """Remove nodes and initializers that no graph output depends on."""
    used = {output.name for output in graph.output}
    dead: dict[str, list[onnx.NodeProto]] = {}
    for node in reversed(graph.node):  # users stand behind what they use
        if used.intersection(node.output):
            used.update(node.input)
        else:
            dead[node.output[0]] = []
    _replace(graph, dead)
    # Deleted one by one from the end: rebuilding the list would copy every weight that stays.
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in used:
            del graph.initializer[index]


def set_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph by `nodes`, which may be the graph's own."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def _replace(graph: onnx.GraphProto, replacements: Mapping[str, list[onnx.NodeProto]]) -> None:
    """Replace nodes in place; keys are a node's first output, values the nodes that take its position."""
    set_nodes(graph, [new for node in graph.node for new in replacements.get(node.output[0], [node])])


def _rename_inputs(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _weights(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def _consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    return consumers


def _tensor(values: NDArray[np.generic], name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values), name)
