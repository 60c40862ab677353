"""Write, read and validate ONNX files, including shape inference through onnxruntime's own operators.

Files of other tools are read, too, so nothing here opens a file that is damaged or keeps weights outside of its folder.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from potstill.errors import BundleError, ParityError, TamperedError
from potstill.onnx_inspect import Outline, check_declared_precision, read_outline, without_weights

Feeds: TypeAlias = Mapping[str, NDArray[np.int64]]
"""The inputs of an encoder's graph by name, each int64 (texts, tokens)."""

# 1.5 GiB: a protobuf message holds less than 2 GiB, of which the graph needs some.
_LARGEST_SINGLE_FILE = 3 * 2**29
# In bytes, onnx's own default. Smaller constants are shapes and axes, which shape inference needs without other files.
_SMALLEST_EXTERNAL = 1024
_GRAPH_TAG, _INITIALIZER_TAG = b"\x3a", b"\x2a"  # fields 7 of a model and 5 of a graph, both with a length
_PAGE = 4096  # onnx.proto recommends offsets that are multiples of it, so that weights can be memory-mapped
# Path separators of other systems, the end of a C string, and the * of onnxruntime's marker for a memory address.
_STRANGE = frozenset("\\:\0*")


def save_model(graph: onnx.ModelProto, file: Path, *, external: bool | None = None) -> list[Path]:
    """Write a model, and its weights beside it in `<file.name>_data` if they are too large for one file.

    Args:
        graph: the model with its weights; it is not changed.
        file: the file to write.
        external: whether to write weights to a file of their own; None does so above 1.5 GiB.

    Returns:
        Every file that was written, the model first.
    """
    if external is None:
        external = sum(map(_size_bytes, graph.graph.initializer)) > _LARGEST_SINGLE_FILE
    if not external:
        # The bytes that protobuf would write, one weight at a time: serialising the whole message copies all of them.
        slim = _without_initializers(graph)
        content = slim.graph.SerializeToString()
        slim.ClearField("graph")
        tensors = graph.graph.initializer
        sizes = [tensor.ByteSize() for tensor in tensors]
        heads = [_INITIALIZER_TAG + _varint(size) for size in sizes]
        with file.open("wb") as stream:
            stream.write(slim.SerializeToString())
            stream.write(_GRAPH_TAG + _varint(len(content) + sum(map(len, heads)) + sum(sizes)) + content)
            for head, tensor in zip(heads, tensors, strict=True):
                stream.write(head)
                stream.write(tensor.SerializeToString())
        return [file]
    weights = file.with_name(f"{file.name}_data")
    slim = _without_initializers(graph)
    with weights.open("wb") as stream:
        slim.graph.initializer.extend(_moved(tensor, stream, weights.name) for tensor in graph.graph.initializer)
    onnx.save(slim, file)
    return [file, weights]


def load_model(file: Path) -> onnx.ModelProto:
    """Read a model with all of its weights.

    Raises:
        TamperedError: if it is cut short or damaged, or if weights lie elsewhere than in plain files of its folder.
        BundleError: if it is no ONNX file, or one that onnx cannot read.
    """
    read_safe(file)
    return _parse(file, onnx.load, file)


def load_graph(file: Path) -> onnx.ModelProto:
    """Read a model without the values of its larger weights, which takes milliseconds whatever its size.

    Raises:
        TamperedError: as `load_model`.
        BundleError: as `load_model`.
    """
    read_safe(file)
    return _parse(file, onnx.load_model_from_string, without_weights(file))


def check_model(file: Path) -> None:
    """Run onnx's checker on a file, and strict shape inference from the graph's inputs to its outputs.

    Raises:
        ParityError: if the file breaks a rule of ONNX, or an output has another shape or type than declared.
        TamperedError: as `load_model`.
    """
    model = load_graph(file)
    try:
        # full_check infers shapes with onnx alone, which passes anything behind an unknown operator (docs/log.md).
        onnx.checker.check_model(str(file), full_check=not has_foreign_operators(model))
        declared = {value.name: _shape(value) for value in model.graph.output}
        inferred = {value.name: _shape(value) for value in infer_shapes(model).graph.output}
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"{file} is not a valid ONNX model: {_short(error)}") from error
    except ParityError as error:
        raise ParityError(f"{file}: {error}") from error
    for name, (kind, dims) in declared.items():
        found_kind, found = inferred[name]
        if found is None or found_kind != kind or not _agree(dims, found):
            raise ParityError(
                f"{file} declares its output {name} as {_describe(kind, dims)}, but its operators give "
                f"{_describe(found_kind, found)}"
            )


def lint(file: Path, precision: str, *, weight_only: bool = False) -> None:
    """Check that a file really has the precision that its name says, see `check_declared_precision`.

    Raises:
        ParityError: if it has not, with the reason.
        TamperedError: as `load_model`.
    """
    untruth = check_declared_precision(read_safe(file), precision, weight_only=weight_only)
    if untruth:
        raise ParityError(f"{file} is not {precision}: {untruth}")


def read_safe(file: Path) -> Outline:
    """Return the outline of a file, after checking that it is complete and its weights are plain files in its folder.

    Raises:
        TamperedError: if it or a weight file is cut short or damaged, or a weight file lies elsewhere or is a link.
        BundleError: if it is no ONNX file.
    """
    outline = read_outline(file)
    sizes = {location: _side_file(file, location).stat().st_size for location in sorted(outline.locations)}
    for tensor in outline.tensors:
        place = tensor.external
        if place and place.offset + place.length > sizes[place.location]:
            raise TamperedError(
                f"{file.parent / place.location} is cut short: it has {sizes[place.location]} bytes and {tensor.name} "
                f"of {file.name} ends at {place.offset + place.length}; fetch it or export it again"
            )
    return outline


def _parse(file: Path, parse: Callable[[Path | bytes], onnx.ModelProto], content: Path | bytes) -> onnx.ModelProto:
    try:
        return parse(content)
    except Exception as error:  # protobuf's own errors have no name in onnx
        raise BundleError(f"{file} cannot be read by onnx {onnx.__version__}: {_short(error)}") from error


def _side_file(file: Path, location: str) -> Path:
    """Return the path of a weight file, or raise TamperedError unless it is a plain file below the model's folder."""
    path = PurePosixPath(location)
    if path.is_absolute() or ".." in path.parts or _STRANGE & set(location):
        raise TamperedError(f"{file} keeps weights in {location!r}, which leaves its folder; expected a file beside it")
    side = file.parent / location
    if side.resolve() != file.parent.resolve() / location:
        raise TamperedError(f"{side} is a symbolic link, so weights of {file.name} may lie anywhere; copy them here")
    if not side.is_file():
        raise TamperedError(f"{side} is missing, though {file.name} keeps weights in it; fetch it as well")
    if side.stat().st_nlink > 1:
        raise TamperedError(
            f"{side} is a hard link, so weights of {file.name} may change from elsewhere; copy them here"
        )
    return side


def _size_bytes(tensor: TensorProto) -> int:
    return math.prod(tensor.dims) * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _varint(value: int) -> bytes:
    """Encode a number as protobuf does: seven bits per byte, lowest first."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def without_values(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model without the values of matrices; vectors keep theirs, because they may be shapes."""
    slim = _without_initializers(model)
    slim.graph.initializer.extend(
        TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type) if len(tensor.dims) > 1 else tensor
        for tensor in model.graph.initializer
    )
    return slim


def rewire(model: onnx.ModelProto, slim: onnx.ModelProto) -> None:
    """Give a model, in place, the nodes and initializers of `slim` (`without_values`), keeping its own weights."""
    wanted = {tensor.name: tensor for tensor in slim.graph.initializer}
    have = {tensor.name for tensor in model.graph.initializer}
    nodes = list(slim.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in wanted:
            del model.graph.initializer[index]
    model.graph.initializer.extend(tensor for name, tensor in wanted.items() if name not in have)


def _without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    # Field by field, because CopyFrom would copy the weights; ListFields also has what later versions of onnx add.
    slim = onnx.ModelProto()
    for source, target, left_out in ((model, slim, "graph"), (model.graph, slim.graph, "initializer")):
        for field, value in source.ListFields():
            if field.name == left_out:
                continue
            if isinstance(value, str | int):
                setattr(target, field.name, value)
            else:
                getattr(target, field.name).MergeFrom(value)
    return slim


def _moved(tensor: TensorProto, stream: IO[bytes], location: str) -> TensorProto:
    """Write a tensor's values to `stream` and return a tensor that refers to them; small tensors stay as they are."""
    if _size_bytes(tensor) < _SMALLEST_EXTERNAL or tensor.data_type == TensorProto.STRING:
        return tensor
    # Values may be in float_data and the like, which cannot be external.
    values = tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
    stream.write(bytes(-stream.tell() % _PAGE))
    place = {"location": location, "offset": stream.tell(), "length": len(values)}
    stream.write(values)
    moved = TensorProto(
        name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=TensorProto.EXTERNAL
    )
    for key, value in place.items():
        moved.external_data.add(key=key, value=str(value))
    return moved


def _shape(value: onnx.ValueInfoProto) -> tuple[int, list[int | None] | None]:
    """Return element type and dimensions; a dynamic dimension is None, and so is the list if the rank is unknown."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return tensor.elem_type, None
    return tensor.elem_type, [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]


def _agree(declared: list[int | None] | None, found: list[int | None]) -> bool:
    if declared is None:
        return True
    return len(declared) == len(found) and all(
        one is None or other is None or one == other for one, other in zip(declared, found, strict=True)
    )


def _describe(kind: int, dims: list[int | None] | None) -> str:
    shape = "unknown rank" if dims is None else f"({', '.join('?' if dim is None else str(dim) for dim in dims)})"
    return f"{TensorProto.DataType.Name(kind).lower()} {shape}"


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


# Shape inference. onnx does not check an unknown operator or anything behind it: in a BERT with one fused attention
# operator per layer that is all but the first four products. onnxruntime's symbolic inference gives up on current
# exports ("Incomplete symbolic shape inference", onnxruntime 1.31.1 on a graph of opset 20). So each of onnxruntime's
# own operators is replaced, for inference only, by standard ones with the same output shape and type.

_STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})


def has_foreign_operators(model: onnx.ModelProto) -> bool:
    """Return whether a graph uses operators that are not of the ONNX standard."""
    return any(node.domain not in _STANDARD_DOMAINS for node in model.graph.node)


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Infer type and shape of every tensor from the graph's inputs and operators.

    Declared shapes of outputs and inner tensors are ignored. The values of large initializers may be missing
    (`potstill.onnx_inspect.without_weights`). `model` is changed.

    Raises:
        ParityError: if an operator is neither standard, nor a function of the model, nor known here.
        onnx.shape_inference.InferenceError: if shapes do not fit.
    """
    graph = model.graph
    local = {(function.domain, function.name) for function in model.functions}
    nodes = []
    for node in graph.node:
        if node.domain in _STANDARD_DOMAINS or (node.domain, node.op_type) in local:
            nodes.append(node)
            continue
        stand_in = _STAND_INS.get(node.op_type) if node.domain == "com.microsoft" else None
        if stand_in is None:
            raise ParityError(
                f"the graph has the operator {node.domain}:{node.op_type}, whose shapes cannot be checked; expected "
                f"standard ones or {', '.join(sorted(_STAND_INS))}; export the checkpoint itself instead"
            )
        nodes += stand_in(node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    for value in graph.output:
        value.ClearField("type")
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def tensor_shapes(model: onnx.ModelProto, batch_size: int, num_tokens: int) -> dict[str, list[int | None]]:
    """Return the dimensions of every tensor of an encoder's graph for inputs of (batch_size, num_tokens).

    For numbers and not for symbols, because symbolic inference does not see that a position table is sliced to the
    length of the texts.

    Args:
        model: an encoder's graph; not changed, and may be larger than protobuf's 2 GiB.
        batch_size: the first dimension of every input.
        num_tokens: the second dimension of every input.

    Returns:
        Dimensions by tensor name; None is an unknown dimension, and tensors of unknown rank are missing.

    Raises:
        ParityError: as `infer_shapes`.
    """
    slim = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    slim.graph.CopyFrom(onnx.GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output))
    for value in slim.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, (batch_size, num_tokens), strict=True):
            dim.dim_value = size
    for tensor in graph.initializer:
        # Vectors may be shapes, whose values decide those of others.
        outline = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        slim.graph.initializer.append(outline if len(tensor.dims) > 1 else tensor)
    inferred = infer_shapes(slim).graph
    found: dict[str, list[int | None]] = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            found[value.name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    return found


def _like_first(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name)]


def _skip_norm(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """SkipLayerNormalization(input, skip, ...): output 0 is the normalised sum, output 3 the sum itself."""
    sums = [name for position, name in enumerate(node.output) if position in {0, 3} and name]
    return [helper.make_node("Add", node.input[:2], [name], name=f"{node.name}/{name}") for name in sums]


def _product(node: onnx.NodeProto, *, like: int) -> list[onnx.NodeProto]:
    """Return a MatMul of inputs 0 and 1, cast to the element type of input number `like`."""
    casts = [
        helper.make_node("CastLike", [name, node.input[like]], [f"{node.output[0]}/{side}"], name=f"{node.name}/{side}")
        for side, name in zip("AB", node.input[:2], strict=True)
    ]
    factors = [cast.output[0] for cast in casts]
    return [*casts, helper.make_node("MatMul", factors, [node.output[0]], name=node.name)]


def _attention(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """QAttention(input, weight, bias, input scale, ...): one product for query, key and value, side by side."""
    output, merged = node.output[0], f"{node.output[0]}/merged"
    product = onnx.NodeProto(name=node.name, input=node.input, output=[merged])
    parts = [output, f"{output}/key", f"{output}/value"]
    return [*_product(product, like=3), helper.make_node("Split", [merged], parts, axis=-1, num_outputs=3)]


def _blockwise_product(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """MatMulNBits(A, B, scales, ...): A, (..., K), times a blockwise quantised matrix (K, N)."""
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    sizes, matrix = f"{node.output[0]}/sizes", f"{node.output[0]}/matrix"
    return [
        helper.make_node("Constant", [], [sizes], value_ints=[settings["K"], settings["N"]]),
        helper.make_node("ConstantOfShape", [sizes], [matrix]),
        *_product(onnx.NodeProto(name=node.name, input=[node.input[0], matrix], output=node.output), like=0),
    ]


def _blockwise_lookup(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """GatherBlockQuantized(data, indices, scales, ...): rows of a table of bytes, with 8 / bits numbers in each."""
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    rows, wide = f"{node.output[0]}/rows", f"{node.output[0]}/wide"
    return [
        helper.make_node("Gather", node.input[:2], [rows], axis=settings.get("gather_axis", 0)),
        helper.make_node("Concat", [rows] * (8 // settings.get("bits", 4)), [wide], axis=-1),
        helper.make_node("CastLike", [wide, node.input[2]], [node.output[0]], name=node.name),
    ]


def _quantised_product(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """QGemm(A, scale, zero, B, scale, zero, C, scale, zero): quantised like A with an output scale, else float."""
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    right = f"{node.output[0]}/turned" if turned else node.input[3]
    product, scale = f"{node.output[0]}/product", node.input[7] if len(node.input) > 7 else ""
    return [
        *([helper.make_node("Transpose", [node.input[3]], [right], perm=[1, 0])] if turned else []),
        *_product(
            onnx.NodeProto(name=node.name, input=[node.input[0], right, node.input[1]], output=[product]), like=2
        ),
        helper.make_node("CastLike", [product, node.input[0] if scale else node.input[1]], [node.output[0]]),
    ]


def _of_both(operator: str) -> Callable[[onnx.NodeProto], list[onnx.NodeProto]]:
    """QLinearAdd and QLinearMul (A, scale, zero, B, scale, zero, ...): element-wise, of A's type."""
    return lambda node: [helper.make_node(operator, [node.input[0], node.input[3]], [node.output[0]], name=node.name)]


def _renamed(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    standard = onnx.NodeProto()
    standard.CopyFrom(node)
    standard.domain = ""
    return [standard]


_STAND_INS: dict[str, Callable[[onnx.NodeProto], list[onnx.NodeProto]]] = {
    "BiasGelu": _like_first,
    "DequantizeLinear": _renamed,
    "DynamicQuantizeMatMul": lambda node: _product(node, like=0),
    "FastGelu": _like_first,
    "GatherBlockQuantized": _blockwise_lookup,
    "Gelu": _like_first,
    "MatMulIntegerToFloat": lambda node: _product(node, like=2),
    "MatMulNBits": _blockwise_product,
    "MultiHeadAttention": _like_first,
    "QAttention": _attention,
    "QGemm": _quantised_product,
    "QLinearAdd": _of_both("Add"),
    "QLinearLeakyRelu": _like_first,
    "QLinearMul": _of_both("Mul"),
    "QLinearSigmoid": _like_first,
    "QLinearSoftmax": _like_first,
    "QuantizeLinear": _renamed,
    "QuickGelu": _like_first,
    "RotaryEmbedding": _like_first,
    "SkipLayerNormalization": _skip_norm,
}
