"""Small ONNX graphs for tests of files: an encoder-like classifier, and its weights in every disguise."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, HIDDEN, LABELS, PRODUCTS = 50, 16, 2, 4
INPUTS = ("input_ids", "attention_mask")


def model(nodes, tensors, *, inputs=None, outputs=None, opset=20, **more):
    """Make a model of nodes and arrays by name; inputs are int64 (batch_size, sequence_length)."""
    names = ["batch_size", "sequence_length"]
    inputs = inputs or [helper.make_tensor_value_info(name, TensorProto.INT64, names) for name in INPUTS]
    outputs = outputs or [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", LABELS])]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    return helper.make_model(
        helper.make_graph(nodes, "tiny", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
        **more,
    )


def weights(*, hidden=HIDDEN, seed=0, dtype=np.float32):
    draw = np.random.default_rng(seed)
    shapes = {"words": (VOCABULARY, hidden)} | {f"layer{n}": (hidden, hidden) for n in range(PRODUCTS - 1)}
    shapes |= {"classify": (hidden, LABELS)}
    return {name: draw.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def classifier(product=None, *, hidden=HIDDEN, dtype=np.float32, **more):
    """Embed, `PRODUCTS - 1` times a product and tanh, mean under the mask, classify.

    `product(number, x, weight, y)` gives the nodes and further arrays of one product; None multiplies floats.
    """
    product = product or float_product
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    tensors = weights(hidden=hidden, dtype=dtype) | {"last": np.array([2]), "tokens": np.array([1])}
    node = helper.make_node
    nodes = [
        node("Gather", ["words", "input_ids"], ["hidden0"]),
        node("Cast", ["attention_mask"], ["mask"], to=kind),
        node("Unsqueeze", ["mask", "last"], ["wide"]),
    ]
    for number in range(PRODUCTS - 1):
        made, extra = product(f"{number}", f"hidden{number}", tensors.pop(f"layer{number}"), f"mixed{number}")
        nodes += [*made, node("Tanh", [f"mixed{number}"], [f"hidden{number + 1}"])]
        tensors |= extra
    made, extra = product("c", "mean", tensors.pop("classify"), "logits")
    nodes += [
        node("Mul", [f"hidden{PRODUCTS - 1}", "wide"], ["seen"]),
        node("ReduceSum", ["seen", "tokens"], ["total"], keepdims=0),
        node("ReduceSum", ["wide", "tokens"], ["count"], keepdims=0),
        node("Div", ["total", "count"], ["mean"]),
        *made,
    ]
    outputs = [helper.make_tensor_value_info("logits", kind, ["batch_size", LABELS])]
    return model(nodes, tensors | extra, outputs=outputs, **more)


def float_product(number, x, weight, y):
    return [helper.make_node("MatMul", [x, f"w{number}"], [y])], {f"w{number}": weight}


def int8(weight):
    scale = np.abs(weight).max() / 127
    return np.rint(weight / scale).astype(np.int8), np.float32(scale)


def dynamic_product(number, x, weight, y):
    """One integer product, its activation quantised as it comes."""
    values, scale = int8(weight)
    node, n = helper.make_node, number
    nodes = [
        node("DynamicQuantizeLinear", [x], [f"q{n}", f"s{n}", f"z{n}"]),
        node("MatMulInteger", [f"q{n}", f"w{n}", f"z{n}"], [f"i{n}"]),
        node("Cast", [f"i{n}"], [f"f{n}"], to=TensorProto.FLOAT),
        node("Mul", [f"s{n}", f"ws{n}"], [f"t{n}"]),
        node("Mul", [f"f{n}", f"t{n}"], [y]),
    ]
    return nodes, {f"w{n}": values, f"ws{n}": scale}


def static_product(number, x, weight, y):
    """Quantise and dequantise on both sides, which onnxruntime runs as one integer product."""
    values, scale = int8(weight)
    node, n = helper.make_node, number
    nodes = [
        node("QuantizeLinear", [x, f"s{n}", f"z{n}"], [f"q{n}"]),
        node("DequantizeLinear", [f"q{n}", f"s{n}", f"z{n}"], [f"d{n}"]),
        node("DequantizeLinear", [f"w{n}", f"ws{n}"], [f"dw{n}"]),
        node("MatMul", [f"d{n}", f"dw{n}"], [y]),
    ]
    return nodes, {f"w{n}": values, f"ws{n}": scale, f"s{n}": np.float32(0.02), f"z{n}": np.uint8(128)}


def folded_product(number, x, weight, y):
    """An int8 weight that is only dequantised: small on disk, floats as soon as it is loaded."""
    values, scale = int8(weight)
    node, n = helper.make_node, number
    nodes = [
        node("DequantizeLinear", [f"w{n}", f"ws{n}"], [f"dw{n}"]),
        node("MatMul", [x, f"dw{n}"], [y]),
    ]
    return nodes, {f"w{n}": values, f"ws{n}": scale}


def cast_product(number, x, weight, y):
    """The same with Cast and Mul in place of DequantizeLinear."""
    values, scale = int8(weight)
    node, n = helper.make_node, number
    nodes = [
        node("Cast", [f"w{n}"], [f"c{n}"], to=TensorProto.FLOAT),
        node("Mul", [f"c{n}", f"ws{n}"], [f"dw{n}"]),
        node("MatMul", [x, f"dw{n}"], [y]),
    ]
    return nodes, {f"w{n}": values, f"ws{n}": scale}


def late_product(number, x, weight, y):
    """An integer product whose weight is stored in floats and quantised when the file is loaded."""
    node, n = helper.make_node, number
    nodes = [
        node("DynamicQuantizeLinear", [x], [f"q{n}", f"s{n}", f"z{n}"]),
        node("DynamicQuantizeLinear", [f"w{n}"], [f"wq{n}", f"ws{n}", f"wz{n}"]),
        node("MatMulInteger", [f"q{n}", f"wq{n}", f"z{n}", f"wz{n}"], [f"i{n}"]),
        node("Cast", [f"i{n}"], [f"f{n}"], to=TensorProto.FLOAT),
        node("Mul", [f"s{n}", f"ws{n}"], [f"t{n}"]),
        node("Mul", [f"f{n}", f"t{n}"], [y]),
    ]
    return nodes, {f"w{n}": weight}


def mixed(*numbers):
    """Give a product that is dynamic int8 in these layers and float in the others."""

    def product(number, x, weight, y):
        return (dynamic_product if number in numbers else float_product)(number, x, weight, y)

    return product


def keep_outside(graph, file, location, *, tensor="words", content=None):
    """Save a model so that one weight is said to be at `location`; write it there if `content` names a file."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    weight = next(item for item in copy.graph.initializer if item.name == tensor)
    values = weight.raw_data
    if content is not None:
        content.parent.mkdir(parents=True, exist_ok=True)
        content.write_bytes(values)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(len(values))}.items():
        weight.external_data.add(key=key, value=value)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(copy.SerializeToString())
    return copy
