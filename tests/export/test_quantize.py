"""Int8 graphs: what is quantised, how far the answers move, and what is stored."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
)

from potstill import machine
from potstill.errors import CheckpointError
from potstill.export.graph import build_graph
from potstill.export.onnx_files import check_model, lint, load_model, save_model
from potstill.export.quantize import (
    Int8Recipe,
    Prepared,
    Range,
    find_layers,
    int8_recipe,
    measure_ranges,
    prepare,
    quantize,
    quantize_blocks,
    quantize_matrix,
    smooth,
    smoothing_factors,
    split_gemms,
    static_scale,
)
from potstill.onnx_inspect import count_matmuls, read_outline
from potstill.serve import Encoder, OnnxSession

TEXTS = ["we saw a wave", "snow on the peak and a trail", "sail", "the old things", "gull " * 80]
# As `potstill export` chooses: without VNNI the products of 8-bit weights overflow, on the CPU that runs the tests too.
BITS = 8 if machine.has_fast_int8() else 7
# int8 logits of the tiny teacher differ by up to 0.15 from fp32 ones, which lie around 4 apart.
INT8_TOLERANCE = 0.4
# With words of 4 bits one of them moved by 0.51.
FOUR_BITS_TOLERANCE = 0.8
# Tables of embeddings alone moved one of them by 0.15 where a CPU without AVX512 had trained the tiny teacher.
TABLES_TOLERANCE = 0.2
# Of a masked language model with random weights the largest of 18,000 logit errors was 0.10 of their spread.
VOCABULARY_TOLERANCE = 0.2
# What a table of words is called that is the product with the vocabulary too.
VOCABULARY = "cls.predictions.decoder"


@pytest.fixture(scope="module")
def encoder(tiny_bundle):
    return Encoder(tiny_bundle)


@pytest.fixture(scope="module")
def feeds(encoder):
    return encoder.tokenizer.encode(TEXTS)


@pytest.fixture(scope="module")
def prepared(tiny_teacher, feeds):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher).eval()
    return prepare(build_graph(model, inputs=list(feeds), outputs=["logits"]), [feeds])


def answer(model, feeds, folder, *, precision=None):
    file = folder / "model.onnx"
    save_model(model, file)
    check_model(file)
    if precision:
        lint(file, precision)
    return OnnxSession(file).run(feeds)["logits"]


RECIPES = {
    "dynamic": Int8Recipe(weight_bits=BITS),
    "static": Int8Recipe(method="static", weight_bits=BITS),
    "integer attention": Int8Recipe(attention="integer", weight_bits=BITS),
    "static integer attention": Int8Recipe(method="static", attention="integer", weight_bits=BITS),
    "tanh": Int8Recipe(gelu="tanh", weight_bits=BITS),
    "per tensor": Int8Recipe(per_channel=False, weight_bits=BITS),
    "seven bits": Int8Recipe(weight_bits=7),
    "not smoothed": Int8Recipe(smoothing=None, weight_bits=BITS),
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_valid_int8_file_that_answers_like_fp32(name, prepared, encoder, feeds, tmp_path):
    recipe = RECIPES[name]
    precision = "int8-static" if recipe.method == "static" else "int8"
    found = answer(quantize(prepared, recipe), feeds, tmp_path, precision=precision)
    expected = encoder.session.run(feeds)["logits"]
    assert np.abs(found - expected).max() < INT8_TOLERANCE
    assert np.abs(found - expected).max() > 1e-5  # it is quantised
    assert np.array_equal(found.argmax(-1), expected.argmax(-1))
    counts = count_matmuls(read_outline(tmp_path / "model.onnx"))
    merged = 2 * 4 if recipe.attention == "integer" else 0
    assert counts["integer"] == 4 * 6 + 1 - merged  # and the pooler; the classifier has two columns and stays
    assert counts["float"] == 1


@pytest.mark.parametrize("name", RECIPES)
def test_a_graph_is_made_as_its_recipe_says(name, prepared):
    recipe, graph = RECIPES[name], quantize(prepared, RECIPES[name]).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    integers = [array.astype(int) for array in stored.values() if array.dtype == np.int8 and array.any()]
    assert {np.abs(array).max() for array in integers} == {64 if recipe.weight_bits == 7 else 127}
    assert stored["bert.encoder.layer.0.intermediate.dense.weight_scale"].size == (64 if recipe.per_channel else 1)
    gelus = {attribute.s for node in graph.node if node.op_type == "Gelu" for attribute in node.attribute}
    assert gelus == {b"tanh" if recipe.gelu == "tanh" else b"none"}
    smoothed = [node for node in graph.node if node.name.endswith("_smoothed")]
    assert len(smoothed) == (0 if recipe.smoothing is None else len(prepared.layers))


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_integer_attention_is_the_same_arithmetic_in_one_operator(method, prepared, feeds, tmp_path):
    plain = Int8Recipe(method=method, smoothing=None, weight_bits=BITS)
    one = quantize(prepared, replace(plain, attention="integer"))
    assert sum(node.op_type == "QAttention" for node in one.graph.node) == 4
    assert not any(node.op_type == "MultiHeadAttention" for node in one.graph.node)
    np.testing.assert_allclose(
        answer(one, feeds, tmp_path), answer(quantize(prepared, plain), feeds, tmp_path), atol=1e-4
    )


def test_static_scales_make_a_texts_answer_its_own(prepared, encoder, tmp_path):
    save_model(quantize(prepared, Int8Recipe(method="static", weight_bits=BITS)), tmp_path / "model.onnx")
    session, rows = OnnxSession(tmp_path / "model.onnx"), encoder.tokenizer.rows(TEXTS)
    together = session.run(encoder.tokenizer.pad(rows))["logits"]
    alone = np.concatenate([session.run(encoder.tokenizer.pad([row]))["logits"] for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "DynamicQuantizeLinear" not in operators


def test_layers_share_an_activation_and_are_named_after_their_weights(prepared):
    layers = find_layers(prepared.model.graph)
    assert [len(layer.nodes) for layer in layers] == [3, 1, 1, 1] * 4 + [1]
    assert layers[0].name == "bert.encoder.layer.0.attention.self.query"
    assert prepared.layers == tuple(layer.name for layer in layers)


def test_layers_that_are_kept_stay_in_floats(prepared, feeds, tmp_path):
    keep = frozenset(prepared.layers[:2])
    answer(quantize(prepared, Int8Recipe(weight_bits=BITS), keep=keep), feeds, tmp_path, precision="int8")
    assert count_matmuls(read_outline(tmp_path / "model.onnx"))["float"] == 3 + 1 + 1


def test_keeping_everything_is_the_fp32_graph_with_small_tables(prepared, encoder, feeds, tmp_path):
    found = answer(quantize(prepared, Int8Recipe(weight_bits=BITS), keep=frozenset(prepared.layers)), feeds, tmp_path)
    np.testing.assert_allclose(found, encoder.session.run(feeds)["logits"], atol=TABLES_TOLERANCE)


def test_smoothing_changes_no_answer(prepared, encoder, feeds, tmp_path):
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    for layer in find_layers(model.graph):
        smoothed, found = smooth(model.graph, layer, prepared.ranges[layer.activation])
        assert smoothed.activation.endswith("_smoothed")
        assert found.peak.shape == prepared.ranges[layer.activation].peak.shape
    np.testing.assert_allclose(answer(model, feeds, tmp_path), encoder.session.run(feeds)["logits"], atol=1e-4)


def test_smoothing_factors_are_those_of_the_paper():
    activation, weight = np.array([8.0, 2.0], np.float32), np.array([0.5, 2.0], np.float32)
    raw = np.array([8**0.5 / 0.5**0.5, 2**0.5 / 2**0.5])  # equation 4 with alpha 0.5: 4 and 1
    np.testing.assert_allclose(smoothing_factors(activation, weight, alpha=0.5), raw / 2, rtol=1e-6)


def test_padding_is_not_measured(encoder, tiny_bundle):
    model = load_model(tiny_bundle / "onnx" / "model.onnx")
    name = find_layers(model.graph)[0].activation
    rows = encoder.tokenizer.rows(TEXTS)
    together = measure_ranges(model, [name], [encoder.tokenizer.pad(rows)])
    alone = measure_ranges(model, [name], [encoder.tokenizer.pad([row]) for row in rows])
    np.testing.assert_allclose(together[name].low, alone[name].low, atol=1e-5)
    np.testing.assert_allclose(together[name].high, alone[name].high, atol=1e-5)
    assert [output.name for output in model.graph.output] == ["logits"]  # the model is as before


def test_a_gemm_becomes_a_product_and_a_sum(tiny_bundle, encoder, feeds, tmp_path):
    model = load_model(tiny_bundle / "onnx" / "model.onnx")
    split_gemms(model.graph)
    assert sum(node.op_type == "Gemm" for node in model.graph.node) == 1  # two columns are not worth it
    np.testing.assert_allclose(answer(model, feeds, tmp_path), encoder.session.run(feeds)["logits"], atol=1e-5)


def test_static_scales_hold_the_smallest_and_the_largest_value():
    scale, zero = static_scale(Range(np.array([-1.0, 0.5], np.float32), np.array([0.25, 4.1], np.float32)))
    assert scale == np.float32(5.1 / 255)
    assert zero == 50
    for value in (-1.0, 4.1):
        stored = np.clip(np.rint(value / scale) + zero, 0, 255)
        assert abs((stored - zero) * scale - value) <= scale / 2 + 1e-6
    scale, zero = static_scale(Range(np.array([2.0], np.float32), np.array([3.0], np.float32)))
    assert zero == 0  # 0 itself, which padding has, must have a number
    assert scale == np.float32(3.0 / 255)


def test_matrices_are_rounded_to_half_a_step():
    matrix = np.array([[0.5, -4.0], [1.0, 2.0]], np.float32)
    integers, scales = quantize_matrix(matrix, largest=127, axis=0)
    np.testing.assert_allclose(scales, [[1 / 127, 4 / 127]], rtol=1e-6)
    assert integers.tolist() == [[64, -127], [127, 64]]
    integers, scales = quantize_matrix(matrix, largest=64, axis=None)
    assert np.abs(integers).max() == 64
    assert scales == np.float32(4 / 64)
    assert quantize_matrix(np.zeros((2, 2), np.float32), largest=127, axis=0)[0].any() == 0


def test_embeddings_have_a_scale_per_row(prepared):
    graph = quantize(prepared, Int8Recipe()).graph
    tables = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    words = {tensor.name: numpy_helper.to_array(tensor) for tensor in prepared.model.graph.initializer}
    name = "bert.embeddings.word_embeddings.weight"
    assert tables[f"{name}_int8"].dtype == np.int8
    assert tables[f"{name}_scale"].shape == (len(words[name]), 1)
    error = np.abs(tables[f"{name}_int8"] * tables[f"{name}_scale"] - words[name])
    assert (error <= np.abs(words[name]).max(axis=1, keepdims=True) / 254 * 1.001).all()
    assert name not in tables


@pytest.fixture(scope="module")
def tied():
    """A graph whose product with the vocabulary uses the table of words, and inputs to it."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=500,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        initializer_range=0.2,
    )
    model = BertForMaskedLM(config).eval()
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    ids = np.random.default_rng(0).integers(5, 500, size=(3, 12))
    feeds = dict(zip(inputs, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
    return build_graph(model, inputs=inputs, outputs=["logits"]), feeds


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_a_tied_vocabulary_is_stored_once_and_multiplied_in_integers(method, tied, tmp_path):
    graph, feeds = tied
    ready = prepare(graph, [feeds])
    assert ready.layers[-1] == VOCABULARY
    file = tmp_path / "int8.onnx"
    save_model(quantize(ready, Int8Recipe(method=method, weight_bits=BITS)), file)
    check_model(file)
    lint(file, "int8-static" if method == "static" else "int8")
    save_model(graph, tmp_path / "fp32.onnx")
    assert file.stat().st_size < 0.5 * (tmp_path / "fp32.onnx").stat().st_size
    expected, found = (OnnxSession(path).run(feeds)["logits"] for path in (tmp_path / "fp32.onnx", file))
    assert np.abs(found - expected).max() < VOCABULARY_TOLERANCE * expected.std()


def test_a_tied_vocabulary_that_is_kept_is_kept_as_a_table_too(tied):
    graph, feeds = tied
    stored = {
        tensor.name
        for tensor in quantize(
            prepare(graph, [feeds]), Int8Recipe(weight_bits=BITS), keep=frozenset({VOCABULARY})
        ).graph.initializer
    }
    assert f"{VOCABULARY}.weight" in stored
    assert f"{VOCABULARY}.weight_int8" not in stored


def test_without_vnni_weights_have_seven_bits(monkeypatch):
    from potstill import machine

    monkeypatch.setattr(machine, "cpu_features", lambda: frozenset({"avx2"}))
    assert int8_recipe().weight_bits == 7
    monkeypatch.setattr(machine, "cpu_features", lambda: frozenset({"avx2", "avx512_vnni"}))
    assert int8_recipe("static") == Int8Recipe(method="static", weight_bits=8)


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_shared_weights_are_stored_once_and_not_smoothed(method, tmp_path):
    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=200,
        embedding_size=32,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        initializer_range=0.2,
        num_labels=3,
    )
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    graph = build_graph(AlbertForSequenceClassification(config).eval(), inputs=inputs, outputs=["logits"])
    ids = np.random.default_rng(0).integers(5, 200, size=(3, 12))
    feeds = dict(zip(inputs, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
    file = tmp_path / "int8.onnx"
    model = quantize(prepare(graph, [feeds]), Int8Recipe(method=method, weight_bits=BITS))
    save_model(model, file)
    check_model(file)
    lint(file, "int8-static" if method == "static" else "int8")
    product = "MatMul" if method == "static" else "MatMulInteger"
    assert sum(node.op_type == product for node in model.graph.node) >= 3 * 6
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    stored = [entry for entry in model.graph.initializer if entry.data_type == onnx.TensorProto.INT8]
    # Words, positions, the way from embeddings to layers, the one layer's six, and the pooler.
    assert sum(len(entry.dims) == 2 for entry in stored) == 10
    save_model(graph, tmp_path / "fp32.onnx")
    expected, found = (OnnxSession(path).run(feeds)["logits"] for path in (tmp_path / "fp32.onnx", file))
    assert np.abs(found - expected).max() < INT8_TOLERANCE * expected.std()


WORDS = "bert.embeddings.word_embeddings.weight"


def unpacked(packed, scales, columns=32):
    """Return what ONNX's own DequantizeLinear makes of 4-bit blocks."""
    table = onnx.TensorProto(
        name="table", data_type=onnx.TensorProto.UINT4, dims=[len(packed), columns], raw_data=packed.tobytes()
    )
    zeros = onnx.TensorProto(
        name="zeros", data_type=onnx.TensorProto.UINT4, dims=scales.shape, raw_data=b"\x88" * -(-scales.size // 2)
    )
    restore = onnx.helper.make_node("DequantizeLinear", ["table", "scales", "zeros"], ["y"], axis=1, block_size=32)
    numbers = numpy_helper.from_array(scales.astype(np.float32), "scales")
    info = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [len(packed), columns])
    graph = onnx.helper.make_graph([restore], "blocks", [], [info], [table, numbers, zeros])
    return ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])).run(
        None, {}
    )[0]


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_words_of_four_bits_are_looked_up_as_they_were_rounded(method, prepared, encoder, feeds, tmp_path):
    model = quantize(prepared, Int8Recipe(method=method, weight_bits=BITS, embedding_bits=4))
    found = answer(model, feeds, tmp_path, precision="int8-static" if method == "static" else "int8")
    expected = encoder.session.run(feeds)["logits"]
    assert np.abs(found - expected).max() < FOUR_BITS_TOLERANCE
    assert np.array_equal(found.argmax(-1), expected.argmax(-1))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert WORDS not in stored
    scales = stored[f"{WORDS}_scale"]
    assert scales.dtype == np.float16
    restored = unpacked(stored[f"{WORDS}_int4"], scales)
    rows = next(node for node in model.graph.node if node.op_type == "GatherBlockQuantized").output[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(rows, onnx.TensorProto.FLOAT16, None))
    save_model(model, tmp_path / "watched.onnx")
    looked_up = OnnxSession(tmp_path / "watched.onnx").run(feeds)[rows]
    np.testing.assert_array_equal(looked_up, restored.astype(np.float16)[feeds["input_ids"]])
    (words,) = (numpy_helper.to_array(each) for each in prepared.model.graph.initializer if each.name == WORDS)
    assert np.square(restored - words).sum() < 0.01 * np.square(words).sum()


def test_four_bits_are_half_the_words_bytes_and_leave_positions_alone(prepared, tmp_path):
    sizes, stored = {}, {}
    for bits in (8, 4):
        model = quantize(prepared, Int8Recipe(weight_bits=BITS, embedding_bits=bits))
        save_model(model, tmp_path / f"{bits}.onnx")
        sizes[bits] = (tmp_path / f"{bits}.onnx").stat().st_size
        stored[bits] = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    words = len(stored[4][f"{WORDS}_int4"])
    # Of 32 numbers a byte each and a scale of four, against half a byte each and a scale of two.
    assert sizes[8] - sizes[4] == pytest.approx(words * (32 + 4 - 16 - 2), abs=500)
    positions = "bert.embeddings.position_embeddings.weight_int8"
    np.testing.assert_array_equal(stored[4][positions], stored[8][positions])


def test_blocks_that_four_bits_can_hold_are_held():
    numbers = np.random.default_rng(0).integers(-8, 8, size=(5000, 32))  # more rows than are rounded at a time
    numbers[:, 0] = -8
    steps = np.random.default_rng(1).choice([0.25, -0.5, 2.0], size=(5000, 1))
    matrix = (numbers * steps).astype(np.float32)
    np.testing.assert_array_equal(unpacked(*quantize_blocks(matrix)), matrix)
    assert not unpacked(*quantize_blocks(np.zeros((2, 32), np.float32))).any()


def test_a_row_may_end_within_a_block():
    matrix = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
    packed, scales = quantize_blocks(matrix)
    assert (packed.shape, scales.shape) == ((6, 20), (6, 2))
    whole, _ = quantize_blocks(matrix[:, :32])
    np.testing.assert_array_equal(packed[:, :16], whole)
    ends = np.stack([packed[:, 16:] & 15, packed[:, 16:] >> 4], axis=-1).reshape(6, 8).astype(np.float32) - 8
    assert np.abs(ends * scales[:, 1:] - matrix[:, 32:]).max() < 0.3


def test_the_scale_of_a_block_is_better_than_the_largest_number_makes_it():
    matrix = np.random.default_rng(0).normal(size=(400, 32)).astype(np.float32)
    plain = np.abs(matrix).max(axis=-1, keepdims=True) / 7
    by_peak = np.square(np.clip(np.rint(matrix / plain), -7, 7) * plain - matrix).sum()
    packed, scales = quantize_blocks(matrix)
    error = np.abs(unpacked(packed, scales) - matrix)
    assert np.square(error).sum() < 0.85 * by_peak
    # Nothing moves by more than half a step, but for what lies beyond the end of the range.
    levels = np.stack([packed & 15, packed >> 4], axis=-1).reshape(400, 32)
    inside = (levels > 0) & (levels < 15)
    assert (error <= np.abs(scales.astype(np.float32)) * 0.501)[inside].all()


def test_words_that_cannot_have_four_bits_are_refused_in_one_line(prepared, tied):
    four = Int8Recipe(weight_bits=BITS, embedding_bits=4)
    graph, feeds = tied
    with pytest.raises(CheckpointError, match=r"masked-language head multiplies by the table of words.*leave it out"):
        quantize(prepare(graph, [feeds]), four)

    def changed(change):
        model = onnx.ModelProto()
        model.CopyFrom(prepared.model)
        change(model.graph)
        return Prepared(model, prepared.layers, prepared.ranges)

    def narrow(graph):
        table = next(tensor for tensor in graph.initializer if "word_embeddings" in tensor.name)
        table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table)[:, :31].copy(), table.name))

    def elsewhere(graph):
        for node in graph.node:
            node.input[:] = ["other_ids" if name == "input_ids" else name for name in node.input]

    with pytest.raises(CheckpointError, match=r"a word's vector has 31 numbers"):
        quantize(changed(narrow), four)
    with pytest.raises(CheckpointError, match=r"no table is looked up by input_ids"):
        quantize(changed(elsewhere), four)
