"""The last layer for the first token alone: the answers stay, and behind the last attention a text has one row."""

import functools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from potstill.bench.measure.size import count_flops_per_token
from potstill.bundle import read_bundle
from potstill.checkpoint.model import simple_head
from potstill.export import export_bundle
from potstill.export.first_token import is_first_token_only, keep_first_token
from potstill.export.graph import SENTENCE_EMBEDDING, build_graph
from potstill.export.quantize import convert_to_fp16, int8_recipe, prepare, quantize
from potstill.export.unpad import unpad
from potstill.onnx_inspect import count_matmuls, read_outline
from potstill.serve import Encoder
from tests import tiny
from tests.cli.conftest import potstill  # noqa: F401
from tests.export import families

from .test_attention import EXPORTS as STANDARD
from .test_families import EXPORTS as OTHERS
from .test_graph import EXPORTS as PLAIN
from .test_unpad import WIDTH, feeds_of, graph_of, run

# The products of the last layer, of which each text has one row; its keys and values are two more. ModernBERT makes
# query, key and value by one product; MobileBERT has bottlenecks and a second feed-forward part.
NARROW = {"modernbert": 3, "mobilebert": 8}
# The rounding of float32; MobileBERT, whose layers have no norms, showed more than the others.
TOLERANCE = 2e-6
ANSWERS = "text-classification"
FAST = ("bert", "albert", "mpnet", "modernbert", "deberta-v3")
SLOW = ("roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mobilebert", "deberta-v2", "megatron-bert")
CASES = [(family, "fused") for family in FAST] + [("deberta-v3", "onnx")]
SLOW_CASES = [(family, "fused") for family in SLOW] + [
    (family, "onnx") for family in (*FAST, *SLOW) if family not in {"deberta-v3", "megatron-bert"}
]


def copied(graph):
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy


@functools.cache
def narrowed(family, attention="fused"):
    """Return a classifier, its graph as traced, and the one whose last layer keeps the first token."""
    model, graph = families.exported(family, ANSWERS, attention)
    lean = copied(graph)
    keep_first_token(lean)
    return model, graph, lean


def watch(graph, names, *, texts=5, length=7):
    """Return the values of tensors for texts of that length."""
    watched = copied(graph)
    known = {output.name for output in graph.graph.output}
    for name in sorted(set(names) - known):
        watched.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    ids = np.full((texts, length), 7)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return run(watched, {entry.name: feeds[entry.name] for entry in graph.graph.input})


def products(graph):
    """Return the name and the shape of every product of tokens, (B, T, width), with a stored matrix."""
    matrices = {tensor.name for tensor in graph.graph.initializer if len(tensor.dims) == 2}
    found = [node for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in matrices]
    values = watch(graph, [node.output[0] for node in found])
    return {node.name: values[node.output[0]].shape for node in found if values[node.output[0]].ndim == 3}


def check_same(model, graph, lean, *, tolerance=TOLERANCE):
    """Assert that two graphs answer alike over the grid."""
    onnx.checker.check_model(lean, full_check=True)
    names = [entry.name for entry in graph.graph.input]
    first, second = families.open_session(graph), families.open_session(lean)
    for name, feeds in families.grid(model, names):
        for wanted, found in zip(first.run(None, feeds), second.run(None, feeds), strict=True):
            assert found.shape == wanted.shape
            difference = np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max())
            assert difference < tolerance, f"{name} differs by {difference:.2g}"


def check_case(family, attention):
    model, graph, lean = narrowed(family, attention)
    assert is_first_token_only(lean)
    tolerance = 1e-5 if family == "mobilebert" else TOLERANCE
    check_same(model, graph, lean, tolerance=tolerance)
    families.check_answers(model, lean)
    for one in (lean, unpad(lean)):
        check_same(model, graph, one, tolerance=tolerance)
        found = products(one)
        rows = [name for name, shape in found.items() if shape[:2] == (5, 1)]
        assert len(rows) == NARROW.get(family, 4), rows
        assert len(found) > 2 * len(rows)


@pytest.mark.parametrize(("family", "attention"), CASES)
def test_the_last_layer_has_one_row_per_text_and_the_answers_stay(family, attention):
    check_case(family, attention)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "attention"), SLOW_CASES)
def test_every_family_and_operator_keeps_its_answers(family, attention):
    check_case(family, attention)


def test_what_attention_reads_of_every_token_is_computed_for_every_token():
    _, _, lean = narrowed("bert")
    found = {name: shape[:2] for name, shape in products(lean).items()}
    whole, row = (5, 7), (5, 1)
    assert {name.split("layer.1.")[1]: shape for name, shape in found.items() if "layer.1." in name} == {
        "attention.self.query/MatMul": row,
        "attention.self.key/MatMul": whole,
        "attention.self.value/MatMul": whole,
        "attention.output.dense/MatMul": row,
        "intermediate.dense/MatMul": row,
        "output.dense/MatMul": row,
    }
    assert all(shape == whole for name, shape in found.items() if "layer.0." in name)


def test_nothing_is_padded_again_for_the_first_token():
    _, graph, lean = narrowed("bert")
    last = "bert.encoder.layer.0.output.LayerNorm/LayerNormalization"
    states = next(node.output[0] for node in graph.graph.node if node.name == last)
    for one, is_padded in ((graph, True), (lean, False)):
        outputs = {name for node in unpad(one).graph.node for name in node.output}
        assert f"{states}/tokens" in outputs
        # The head of the whole graph reads its last states as rows; of the first layer's there were never any.
        padded = {name.removesuffix("/tokens") for name in outputs if name.endswith("/tokens")} & outputs
        norms = {node.output[0] for node in one.graph.node if node.op_type == "LayerNormalization"}
        assert (len(padded & norms) > 1) is is_padded


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v3"])
def test_operations_are_counted_as_they_are_in_the_graph(family):
    model, _, lean = narrowed(family)
    texts, length = 3, 7
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in lean.graph.initializer}
    asked = [node for node in lean.graph.node if node.op_type in {"MatMul", "MultiHeadAttention"}]
    names = {name for node in asked for name in (node.input[0], node.output[0])} - weights.keys()
    values = weights | watch(lean, names, texts=texts, length=length)
    counted = 0
    for one in asked:
        left, product = values[one.input[0]], values[one.output[0]]
        # Scores and mean of the values; a product is its size times what is summed.
        counted += 4 * left.size * length if one.op_type == "MultiHeadAttention" else 2 * product.size * left.shape[-1]
    config = model.config.to_dict()
    found = count_flops_per_token(config, [length], first_token_only=True)[length] * texts * length
    assert found == pytest.approx(counted)
    assert found < count_flops_per_token(config, [length])[length] * texts * length


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_int8_has_the_same_integer_products_and_answers_as_close_to_fp32(method, tmp_path):
    model, graph, lean = narrowed("bert")
    batches = [feeds for name, feeds in families.grid(model, [entry.name for entry in graph.graph.input])]
    errors, counted = [], []
    for number, one in enumerate((graph, lean)):
        small = quantize(prepare(one, batches), int8_recipe(method))
        small = unpad(small) if method == "static" else small
        onnx.save(small, tmp_path / f"{number}.onnx")
        counted.append(count_matmuls(read_outline(tmp_path / f"{number}.onnx")))
        found = np.concatenate([run(small, feeds)["logits"] for feeds in batches])
        errors.append(np.abs(found - np.concatenate([run(graph, feeds)["logits"] for feeds in batches])).mean())
    assert counted[0] == counted[1]
    assert errors[1] < 1.2 * errors[0] < 0.2


def test_a_static_file_answers_a_text_alone_as_in_a_batch():
    model, graph, lean = narrowed("bert")
    batches = [feeds for name, feeds in families.grid(model, [entry.name for entry in graph.graph.input])]
    static = unpad(quantize(prepare(lean, batches), int8_recipe("static")))
    ids = np.random.default_rng(0).integers(3, families.VOCABULARY, size=(3, 9))
    mask = np.array([[1] * 9, [1] + [0] * 8, [1] * 7 + [0] * 2])
    together = run(static, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})["logits"]
    for row, length in enumerate(mask.sum(1)):
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        alone = run(static, {name: values[row : row + 1, :length] for name, values in feeds.items()})["logits"]
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)


def test_attention_in_integers_is_for_the_layers_in_which_every_token_asks():
    model, graph, lean = narrowed("bert")
    batches = [feeds for _, feeds in families.grid(model, [entry.name for entry in graph.graph.input])][:6]
    recipe = int8_recipe()
    integer = quantize(prepare(lean, batches), type(recipe)(weight_bits=recipe.weight_bits, attention="integer"))
    operators = [node.op_type for node in integer.graph.node]
    assert (operators.count("QAttention"), operators.count("MultiHeadAttention")) == (families.LAYERS - 1, 1)
    for feeds in batches:
        np.testing.assert_allclose(run(integer, feeds)["logits"], run(graph, feeds)["logits"], atol=0.3)


def test_fp16_answers_as_it_did():
    model, graph, lean = narrowed("bert")
    whole, half = convert_to_fp16(graph), convert_to_fp16(lean)
    for _, feeds in families.grid(model, [entry.name for entry in graph.graph.input]):
        np.testing.assert_allclose(run(half, feeds)["logits"], run(whole, feeds)["logits"], atol=2e-2)


@pytest.mark.parametrize(
    ("family", "task", "attention"),
    [
        (family, task, attention)
        for attention, made in (("fused", PLAIN | OTHERS), ("onnx", STANDARD))
        for family, task in made.items()
        if task != ANSWERS
    ],
)
def test_a_graph_whose_head_reads_every_token_is_not_changed(family, task, attention):
    _, graph = families.exported(family, task, attention)
    same = copied(graph)
    keep_first_token(same)
    assert same.SerializeToString() == graph.SerializeToString()
    assert not is_first_token_only(same)


@pytest.mark.parametrize(
    ("pooling", "outputs", "is_lean"),
    [("cls", [], True), ("mean", [], False), ("cls", ["last_hidden_state"], False)],
)
def test_a_sentence_vector_of_the_first_token_needs_no_other_unless_they_are_published(pooling, outputs, is_lean):
    model = families.build("bert", "feature-extraction")
    head = simple_head(pooling, normalize=True)
    graph = build_graph(model, inputs=["input_ids", "attention_mask"], outputs=outputs, head=head)
    lean = copied(graph)
    keep_first_token(lean)
    assert is_first_token_only(lean) is is_lean
    for _, feeds in families.grid(model, ["input_ids", "attention_mask"]):
        wanted, found = (run(one, feeds)[SENTENCE_EMBEDDING] for one in (graph, unpad(lean)))
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def node(operator, inputs, output="mixed", **attributes):
    return helper.make_node(operator, inputs, [output], **attributes)


FIRST = node("Gather", ["mixed", "none"], "out", axis=1)
MIXES = {
    "softmax over tokens": [node("Softmax", ["product"], axis=1)],
    "sum over tokens": [node("CumSum", ["product", "one"])],
    "norm over tokens": [node("LayerNormalization", ["product", "weights", "weights"], axis=1)],
    "turned": [node("Transpose", ["product"], "turned", perm=[0, 2, 1]), node("MatMul", ["turned", "five"])],
    "other texts": [node("Softmax", ["product"], axis=0)],
    "halves of the texts": [helper.make_node("Split", ["product"], ["mixed", "rest"], axis=1, num_outputs=2)],
    "read by two": [node("Relu", ["product"]), node("ReduceSum", ["mixed", "one"], "total", keepdims=0)],
    "tokens as width": [node("Reshape", ["product", "flat"], "line"), node("Relu", ["line"], "mixed")],
    "along the width": [node("Softmax", ["product"], axis=-1)],
    "scores of pairs": [
        node("Transpose", ["rows"], "keys", perm=[0, 2, 1]),
        node("MatMul", ["product", "keys"], "scores"),
        node("Softmax", ["scores"], "shares", axis=-1),
        node("MatMul", ["shares", "rows"]),
    ],
}


@pytest.mark.parametrize("mixing", MIXES.values(), ids=MIXES.keys())
def test_the_first_token_is_what_it_was_whatever_stands_before_it(mixing):
    graph = graph_of(*mixing, FIRST)
    generator = np.random.default_rng(3)
    constants = {
        "none": np.array(0),
        "weights": generator.normal(size=(5, WIDTH)).astype(np.float32),
        "five": generator.normal(size=(5, WIDTH)).astype(np.float32),
        "flat": np.array([0, -1, 1]),
    }
    used = {name for one in graph.graph.node for name in one.input}
    for name, values in constants.items():
        if name in used:
            graph.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    if any("total" in one.output for one in graph.graph.node):
        graph.graph.output.append(helper.make_tensor_value_info("total", TensorProto.FLOAT, None))
    lean = copied(graph)
    try:
        keep_first_token(lean)
    except onnx.shape_inference.InferenceError:
        pytest.skip("the graph fits one length alone")
    feeds = feeds_of([[1] * 5] * 3)
    wanted, found = run(graph, feeds), run(lean, feeds)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6)


def test_a_bundle_says_so_and_can_be_asked_not_to(tiny_teacher, tiny_bundle, potstill, tmp_path):  # noqa: F811
    records = read_bundle(tiny_bundle).manifest.models
    assert {name: record.first_token_only for name, record in records.items()} == {"fp32": True, "int8": True}
    assert "computed for the first token alone" in potstill("show", tiny_bundle)[1]
    config = tiny.export_config().model_copy(update={"precisions": ["fp32"], "first_token_only": False})
    whole = export_bundle(str(tiny_teacher), tmp_path / "whole", config=config, calibration=tiny.texts(80))
    assert whole.models["fp32"].first_token_only is False
    assert "first token" not in potstill("show", tmp_path / "whole")[1]
    texts = ["a", *tiny.texts(20)]
    found, expected = (Encoder(folder).logits(texts) for folder in (tiny_bundle, tmp_path / "whole"))
    np.testing.assert_allclose(found, expected, atol=1e-5)
