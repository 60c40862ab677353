"""The emulation of VPMADDUBSW against the plainest one there is, for every form that integer products take."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from potstill.export import saturation as emulating
from potstill.export.saturation import measure_saturation

INNER, OUTER, BATCH, TOKENS = 9, 6, 3, 5  # an odd K: the last one stands alone
SHAPE = [None, None, INNER]


def draw(seed=0):
    return np.random.default_rng(seed)


def plain(activations, weights):
    """Return (sums, saturated, largest, error) by loops over what the instruction does."""
    activations = activations.reshape(-1, activations.shape[-1]).astype(int)
    weights = weights.astype(int)
    inner = weights.shape[0]
    sums, saturated, largest = 0, 0, 0
    errors = np.zeros((len(activations), weights.shape[1]))
    for token, row in enumerate(activations):
        for column in range(weights.shape[1]):
            for k in range(0, inner, 2):
                pair = row[k] * weights[k, column]
                if k + 1 < inner:
                    pair += row[k + 1] * weights[k + 1, column]
                kept = min(max(pair, -32768), 32767)
                sums += 1
                saturated += kept != pair
                largest = max(largest, pair, key=abs)
                errors[token, column] += pair - kept
    outputs = activations @ weights
    spread = np.sqrt(((outputs - outputs.mean(axis=0)) ** 2).sum())
    return sums, saturated, largest, np.sqrt((errors**2).sum()) / spread


def weights(*, seed=1, largest=127):
    """Return int8 weights of shape (INNER, OUTER), some of them as large as may be."""
    values = np.clip(draw(seed).normal(0, 0.6 * largest, size=(INNER, OUTER)), -largest - 1, largest)
    return np.rint(values).astype(np.int8)


def floats(*, seed=2):
    return draw(seed).normal(0.3, 1, size=(BATCH, TOKENS, INNER)).astype(np.float32)


def quantised(values):
    """Return what ONNX's DynamicQuantizeLinear says, by the specification."""
    low, high = min(0, values.min()), max(0, values.max())
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return np.clip(np.rint(values / scale) + zero, 0, 255).astype(np.uint8)


def save(folder, nodes, constants, *, output="y", kind=TensorProto.FLOAT, source=TensorProto.FLOAT, shape=None):
    shape = SHAPE if shape is None else shape
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", source, shape)],
        [helper.make_tensor_value_info(output, kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    return folder / "model.onnx"


SCALES = {"s": np.float32(0.02), "z": np.uint8(120), "ws": np.float32(0.01), "wz": np.int8(0), "ys": np.float32(0.1)}


def matmul_integer(folder, weight):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node("MatMulInteger", ["q", "w", "qz"], ["y"], name="product"),
    ]
    return save(folder, nodes, {"w": weight}, kind=TensorProto.INT32), quantised(floats())


def matmul_integer_to_float(folder, weight):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node(
            "MatMulIntegerToFloat", ["q", "w", "qs", "ws", "qz"], ["y"], name="product", domain="com.microsoft"
        ),
    ]
    return save(folder, nodes, {"w": weight, "ws": SCALES["ws"]}), quantised(floats())


def dynamic_quantize_matmul(folder, weight):
    nodes = [helper.make_node("DynamicQuantizeMatMul", ["x", "w", "ws"], ["y"], name="product", domain="com.microsoft")]
    return save(folder, nodes, {"w": weight, "ws": SCALES["ws"]}), quantised(floats())


def static(values):
    return np.clip(np.rint(values / SCALES["s"]) + 120, 0, 255).astype(np.uint8)


def qlinear_matmul(folder, weight):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearMatMul", ["q", "s", "z", "w", "ws", "wz", "ys", "z"], ["p"], name="product"),
        helper.make_node("DequantizeLinear", ["p", "ys", "z"], ["y"]),
    ]
    return save(folder, nodes, SCALES | {"w": weight}), static(floats())


def qgemm(folder, weight):
    """A Gemm has flat activations; this one has its weights the other way round."""
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        helper.make_node("QuantizeLinear", ["rows", "s", "z"], ["q"]),
        helper.make_node(
            "QGemm", ["q", "s", "z", "w", "ws", "wz"], ["y"], name="product", domain="com.microsoft", transB=1
        ),
    ]
    constants = SCALES | {"w": np.ascontiguousarray(weight.T), "flat": np.array([-1, INNER])}
    return save(folder, nodes, constants), static(floats())


def qdq(folder, weight):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["back"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["weight"]),
        helper.make_node("MatMul", ["back", "weight"], ["y"], name="product"),
    ]
    return save(folder, nodes, SCALES | {"w": weight}), static(floats())


def qdq_gemm(folder, weight):
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        helper.make_node("QuantizeLinear", ["rows", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["back"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["weight"]),
        helper.make_node("Gemm", ["back", "weight"], ["y"], name="product", transB=1),
    ]
    constants = SCALES | {"w": np.ascontiguousarray(weight.T), "flat": np.array([-1, INNER])}
    return save(folder, nodes, constants), static(floats())


def qdq_signed(folder, weight):
    """onnxruntime turns signed activations into unsigned ones by adding 128."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["back"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["weight"]),
        helper.make_node("MatMul", ["back", "weight"], ["y"], name="product"),
    ]
    return save(folder, nodes, SCALES | {"z": np.int8(-8), "w": weight}), static(floats())


def tied(folder, weight):
    """The table of words, turned at run time."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMulInteger", ["q", "turned", "qz"], ["y"], name="product"),
    ]
    return save(folder, nodes, {"w": np.ascontiguousarray(weight.T)}, kind=TensorProto.INT32), quantised(floats())


def qattention(folder, weight):
    """Query, key and value of 2 units each in one product."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node(
            "QAttention",
            ["q", "w", "bias", "qs", "ws", "", "qz", "wz"],
            ["y"],
            name="product",
            num_heads=1,
            domain="com.microsoft",
        ),
    ]
    constants = {"w": weight, "bias": np.zeros(OUTER, np.float32), "ws": SCALES["ws"], "wz": SCALES["wz"]}
    return save(folder, nodes, constants), quantised(floats())


FORMS = [
    matmul_integer,
    matmul_integer_to_float,
    dynamic_quantize_matmul,
    qlinear_matmul,
    qgemm,
    qdq,
    qdq_gemm,
    qdq_signed,
    tied,
    qattention,
]


@pytest.mark.parametrize("form", FORMS)
def test_the_counts_are_those_of_the_plainest_emulation(form, tmp_path):
    file, activations = form(tmp_path, weights())
    sums, saturated, largest, error = plain(activations, weights())
    found = measure_saturation(file, [{"x": floats()}])
    assert 0 < saturated < sums
    assert found.model_dump() == {
        "products": 1,
        "unchecked": 0,
        "saturating_products": 1,
        "pairs": sums,
        "saturated_pairs": saturated,
        "share": saturated / sums,
        "largest_sum": largest,
        "worst": "product",
        "worst_error": pytest.approx(error, rel=1e-5),
        "breaks_without_vnni": True,
    }


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_seven_bits_are_safe_whatever_comes(form, tmp_path):
    seven = weights(largest=63)  # -64 to 63
    assert (seven.min(), seven.max()) == (-64, 63)
    found = measure_saturation(form(tmp_path, seven)[0], [])
    assert (found.products, found.pairs, found.breaks_without_vnni, found.worst) == (1, 0, False, None)
    assert found.largest_sum == 0


def test_sixty_four_is_the_largest_weight_that_always_fits(tmp_path):
    """255 * 64 * 2 is 32640 and 255 * (64 + 65) is 32895; below 0, -32768 fits."""
    everything = {"x": np.full((1, 1, INNER), 1.0, dtype=np.float32)}  # quantised to 255
    for pair, sum_, saturates in (((64, 64), 32640, 0), ((64, 65), 32895, 1), ((-64, -64), -32640, 0)):
        weight = np.zeros((INNER, OUTER), dtype=np.int8)
        weight[:2, 0] = pair
        found = measure_saturation(matmul_integer(tmp_path, weight)[0], [everything])
        assert found.saturated_pairs == saturates
        assert found.largest_sum == (sum_ if saturates else 0)
    weight[:2, 0] = -64, -65
    found = measure_saturation(matmul_integer(tmp_path, weight)[0], [everything])
    assert (found.saturated_pairs, found.largest_sum) == (1, -32895)


@pytest.mark.parametrize(("weight", "low", "high"), [(87, 0.005, 0.01), (88, 0.01, 0.02)])
def test_a_file_breaks_where_a_product_is_off_by_a_hundredth(weight, low, high, tmp_path):
    """One pair of weights saturates for one token, whose activations are 214 and 166; no other can."""
    safe = weights(largest=63)
    safe[:, 0] = 0
    safe[:2, 0] = weight
    file, activations = matmul_integer(tmp_path, safe)
    found = measure_saturation(file, [{"x": floats()}])
    assert found.saturated_pairs == 1
    assert found.worst_error == pytest.approx(plain(activations, safe)[3], rel=1e-5)
    assert low < found.worst_error < high
    assert found.breaks_without_vnni == (high > 0.01)


def test_weights_that_could_saturate_but_meet_small_activations_do_not(tmp_path):
    file, _ = qdq(tmp_path, weights())
    small = np.full((BATCH, TOKENS, INNER), -2.0, dtype=np.float32)  # quantised to 20
    found = measure_saturation(file, [{"x": small}])
    assert (found.saturated_pairs, found.share, found.breaks_without_vnni) == (0, 0.0, False)
    assert found.pairs == BATCH * TOKENS * 5 * OUTER


def test_unsigned_weights_are_multiplied_in_full(tmp_path):
    unsigned = (weights().astype(int) + 128).astype(np.uint8)
    found = measure_saturation(matmul_integer(tmp_path, unsigned)[0], [{"x": floats()}])
    assert (found.products, found.unchecked, found.breaks_without_vnni) == (0, 0, False)


def test_signed_activations_of_an_integer_operator_are_multiplied_in_full(tmp_path):
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"], name="product")]
    file = save(tmp_path, nodes, {"w": weights()}, kind=TensorProto.INT32, source=TensorProto.INT8)
    found = measure_saturation(file, [{"x": np.full((1, 1, INNER), 127, dtype=np.int8)}])
    assert (found.products, found.pairs, found.breaks_without_vnni) == (1, 0, False)


def test_products_that_cannot_be_looked_at_are_counted(tmp_path):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node("Transpose", ["q"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMulInteger", ["q", "turned", "qz", "qz"], ["y"], name="product"),
    ]
    found = measure_saturation(save(tmp_path, nodes, {}, kind=TensorProto.INT32), [{"x": floats()}])
    assert (found.products, found.unchecked) == (0, 1)


def test_floats_are_no_integer_products(tmp_path):
    """Weights that are only stored as int8 are multiplied as floats."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["weight"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    file = save(tmp_path, nodes, {"w": weights(), "ws": SCALES["ws"], "wz": SCALES["wz"]})
    assert measure_saturation(file, [{"x": floats()}]).products == 0


def test_padding_is_not_counted(tmp_path):
    """Whole batches of padding would saturate; the words do not."""
    weight = np.full((INNER, OUTER), 127, dtype=np.int8)
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Sub", ["one", "wide"], ["padding"]),
        helper.make_node("Add", ["x", "padding"], ["seen"]),
        helper.make_node("DynamicQuantizeLinear", ["seen"], ["q", "qs", "qz"]),
        helper.make_node("MatMulInteger", ["q", "w", "qz"], ["y"], name="product"),
    ]
    file = save(tmp_path, nodes, {"w": weight, "last": [2], "one": np.float32(1)}, kind=TensorProto.INT32)
    model = onnx.load(file)
    model.graph.input.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, [None, None]))
    onnx.save(model, file)
    values = np.full((BATCH, TOKENS, INNER), 0.1, dtype=np.float32)
    mask = np.ones((BATCH, TOKENS), dtype=np.int64)
    mask[1:, 2:] = 0
    found = measure_saturation(file, [{"x": values, "attention_mask": mask}])
    assert (found.pairs, found.saturated_pairs) == (mask.sum() * 5 * OUTER, 0)
    assert measure_saturation(file, [{"x": values, "attention_mask": mask * 0 + mask[1]}]).saturated_pairs == 0
    loud = values + (1 - mask[:, :, None]).astype(np.float32)
    all_words = measure_saturation(file, [{"x": loud, "attention_mask": np.ones_like(mask)}])
    assert all_words.saturated_pairs == (mask == 0).sum() * 4 * OUTER  # the fifth pair has one half only


def test_several_batches_add_up(tmp_path):
    file, _ = qdq(tmp_path, weights())
    batches = [floats(seed=2), floats(seed=3)[:2]]
    each = [plain(static(values), weights()) for values in batches]
    found = measure_saturation(file, [{"x": values} for values in batches])
    assert (found.pairs, found.saturated_pairs) == (each[0][0] + each[1][0], each[0][1] + each[1][1])


def test_a_sample_of_very_many_estimates_the_share(tmp_path, monkeypatch):
    """A layer of 64 x 48 for 400 tokens, of which a tenth is looked at. Measured: 4 % off."""
    weight = np.clip(draw(4).normal(0, 70, size=(64, 48)), -128, 127).astype(np.int8)
    values = draw(5).normal(0.3, 1, size=(4, 100, 64)).astype(np.float32)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node("MatMulInteger", ["q", "w", "qz"], ["y"], name="product"),
    ]
    file = save(tmp_path, nodes, {"w": weight}, kind=TensorProto.INT32, shape=[None, None, 64])
    monkeypatch.setattr(emulating, "_MAX_TOKENS", 10**6)
    monkeypatch.setattr(emulating, "_MAX_SUMS", 10**6)
    full = measure_saturation(file, [{"x": values}])
    monkeypatch.setattr(emulating, "_MAX_TOKENS", 200)
    monkeypatch.setattr(emulating, "_MAX_SUMS", 300)
    sampled = measure_saturation(file, [{"x": values}])
    assert full.pairs == 400 * 32 * 48 == 2 * sampled.pairs
    assert 0.001 < full.share == pytest.approx(sampled.share, rel=0.15)
    assert sampled.worst_error == pytest.approx(full.worst_error, rel=0.3)
    assert measure_saturation(file, [{"x": values}]) == sampled


def test_what_onnxruntimes_quantiser_writes_is_found_inside_the_file_and_beside_it(tmp_path):
    weight = draw(1).normal(size=(INNER, OUTER)).astype(np.float32)
    file = save(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")], {"w": weight})
    for reduce_range, breaks in ((False, True), (True, False)):
        for external in (False, True):
            out = tmp_path / f"int8_{reduce_range}_{external}.onnx"
            quantize_dynamic(
                file,
                out,
                per_channel=True,
                reduce_range=reduce_range,
                weight_type=QuantType.QInt8,
                use_external_data_format=external,
                extra_options={"MatMulConstBOnly": True},
            )
            if external:
                model = onnx.load(out)
                onnx.save(model, out, save_as_external_data=True, location=f"{out.name}_data", size_threshold=0)
            found = measure_saturation(out, [{"x": floats()}])
            assert (found.products, found.breaks_without_vnni) == (1, breaks)
            if breaks:
                tensors = {tensor.name: tensor for tensor in onnx.load(out).graph.initializer}
                chosen = next(numpy_helper.to_array(t) for name, t in tensors.items() if name.endswith("_quantized"))
                assert found.saturated_pairs == plain(quantised(floats()), chosen)[1] > 0
