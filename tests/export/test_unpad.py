"""Unpadding: no product sees padding, and no answer changes by it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from potstill.checkpoint.model import simple_head
from potstill.export import export_bundle
from potstill.export.graph import SENTENCE_EMBEDDING, build_graph
from potstill.export.quantize import int8_recipe, prepare, quantize
from potstill.export.unpad import is_unpadded, unpad
from potstill.onnx_inspect import count_matmuls, read_outline
from potstill.serve import Encoder
from tests import tiny
from tests.export import families, small

from .test_families import EXPORTS as OTHERS
from .test_families import MATRIX
from .test_graph import EXPORTS as PLAIN

case = families.cases(PLAIN | OTHERS)
WIDTH = 6


def run(graph, feeds):
    session = families.open_session(graph)
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def weighted(graph):
    """Return the products of an activation with a stored matrix."""
    matrices = {tensor.name for tensor in graph.graph.initializer if len(tensor.dims) == 2}
    return [node for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in matrices]


def check_answers(model, graph):
    """Assert that a graph answers as before over the grid, wherever the mask shows a token."""
    lean = unpad(graph)
    assert lean is not graph
    onnx.checker.check_model(lean, full_check=True)
    sessions = [families.open_session(one) for one in (graph, lean)]
    for name, feeds in families.grid(model, [entry.name for entry in sessions[0].get_inputs()]):
        mask = feeds["attention_mask"]
        for entry in sessions[0].get_outputs():
            wanted, found = (session.run([entry.name], feeds)[0] for session in sessions)
            assert found.shape == wanted.shape
            per_token = entry.shape[1] == "sequence_length"
            seen = mask.astype(bool) if per_token else slice(None)
            assert np.isfinite(found).all()
            difference = np.abs(found - wanted)[seen].max() / max(1.0, np.abs(wanted).max())
            assert difference < families.TOLERANCE, f"{entry.name} at {name} differs by {difference:.2g}"


def test_every_family_answers_as_before_where_there_is_a_token(case):
    _, model, graph = case
    check_answers(model, graph)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "task"), MATRIX)
def test_every_family_and_task_answers_as_before(family, task):
    check_answers(*families.exported(family, task))


def test_every_product_of_tokens_with_a_weight_has_tokens_only(case):
    _, model, graph = case
    lean = unpad(graph)
    products = weighted(lean)
    assert len(products) == len(weighted(graph))
    of_tokens = [node for node in products if node.input[0].endswith("/tokens")]
    # All but those of a head that reads one position.
    others = {node.name for node in products} - {node.name for node in of_tokens}
    assert len(of_tokens) >= 6 * families.LAYERS or model.config.model_type == "modernbert"
    assert all(name.startswith(("classifier", "pre_classifier", "pooler", "vocab")) for name in others), others
    probe = of_tokens[-1]
    watched = onnx.ModelProto()
    watched.CopyFrom(lean)
    watched.graph.output.append(helper.make_tensor_value_info(probe.output[0], TensorProto.FLOAT, None))
    for _, feeds in families.grid(model, [entry.name for entry in graph.graph.input]):
        # The first position of each text is always among them.
        kept = feeds["attention_mask"].copy()
        kept[:, 0] = 1
        assert run(watched, feeds)[probe.output[0]].shape[:2] == (1, kept.sum())


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_what_stands_at_padding_is_not_pooled(mode):
    model = families.build("bert", "feature-extraction")
    graph = build_graph(
        model,
        inputs=["input_ids", "attention_mask"],
        outputs=["last_hidden_state"],
        head=simple_head(mode, normalize=True),
    )
    lean = unpad(graph)
    for _, feeds in families.grid(model, ["input_ids", "attention_mask"]):
        wanted, found = (run(one, feeds)[SENTENCE_EMBEDDING] for one in (graph, lean))
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_text_answers_as_alone_whoever_stands_before_and_behind_it():
    _, graph = families.exported("bert", "token-classification")
    lean = unpad(graph)
    ids = np.random.default_rng(0).integers(3, families.VOCABULARY, size=(3, 9))
    mask = np.array([[1] * 9, [1] * 4 + [0] * 5, [1] * 7 + [0] * 2])
    types = np.zeros_like(ids)
    together = run(lean, {"input_ids": ids, "attention_mask": mask, "token_type_ids": types})["logits"]
    for row, length in enumerate(mask.sum(1)):
        alone = {"input_ids": ids[row : row + 1, :length], "token_type_ids": types[row : row + 1, :length]}
        found = run(lean, alone | {"attention_mask": mask[row : row + 1, :length]})["logits"]
        np.testing.assert_allclose(together[row, :length], found[0], atol=1e-5)


def test_any_mask_is_answered():
    """Also what no tokenizer makes: other numbers than 0 and 1, and texts without a token."""
    _, graph = families.exported("distilbert", "question-answering")
    lean = unpad(graph)
    ids = np.random.default_rng(0).integers(3, families.VOCABULARY, size=(3, 6))
    mask = np.array([[7, 7, 0, 7, 0, 0], [0] * 6, [-1, 1, 1, 0, 0, 2]])
    found = run(lean, {"input_ids": ids, "attention_mask": mask})
    plain = run(lean, {"input_ids": ids, "attention_mask": (mask != 0).astype(np.int64)})
    assert all(np.isfinite(values).all() for values in found.values())
    np.testing.assert_allclose(found["start_logits"][0], plain["start_logits"][0], atol=1e-6)


def test_the_integer_products_of_a_static_file_stay_beside_their_scales(tmp_path):
    model, graph = families.exported("bert", "text-classification")
    inputs = [entry.name for entry in graph.graph.input]
    batches = [feeds for _, feeds in families.grid(model, inputs)][:12]
    static = quantize(prepare(graph, batches), int8_recipe("static"))
    lean = unpad(static)
    counted = []
    for name, one in (("plain", static), ("lean", lean)):
        onnx.save(one, tmp_path / f"{name}.onnx")
        counted.append(count_matmuls(read_outline(tmp_path / f"{name}.onnx")))
    assert counted[0] == counted[1]
    for feeds in batches:
        np.testing.assert_allclose(run(lean, feeds)["logits"], run(static, feeds)["logits"], atol=1e-5)


def graph_of(*nodes, output="out"):
    """Return a graph that looks tokens up, multiplies them as "tokens", and goes on with `nodes`."""
    generator = np.random.default_rng(0)
    constants = {
        "table": generator.normal(size=(20, WIDTH)).astype(np.float32),
        "weight": generator.normal(size=(WIDTH, WIDTH)).astype(np.float32),
        "scale": np.full(WIDTH, 2.0, np.float32),
        "shift": np.full(WIDTH, 0.5, np.float32),
        "matrix": generator.normal(size=(1, 1, WIDTH)).astype(np.float32),
        "one": np.array([1]),
        "two": np.array([2]),
    }
    first = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weight"], ["product"]),
    ]
    return small.model([*first, *nodes], [output], constants=constants)


def feeds_of(mask):
    mask = np.array(mask)
    return {"input_ids": np.arange(mask.size).reshape(mask.shape) % 20, "attention_mask": mask}


MASK = [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]


def test_a_mask_is_not_lost_where_rows_are_padded_again():
    graph = graph_of(
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["column"]),
        helper.make_node("Shape", ["rows"], ["size"]),
        helper.make_node("Expand", ["column", "size"], ["wide"]),
        helper.make_node("Mul", ["product", "wide"], ["seen"]),
        helper.make_node("ReduceSum", ["seen", "one"], ["out"], keepdims=0),
    )
    wanted, found = (run(one, feeds_of(MASK))["out"] for one in (graph, unpad(graph)))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("LayerNormalization", ["product", "matrix", "matrix"], ["out"], axis=2),
        helper.make_node("Mul", ["product", "matrix"], ["out"]),
        helper.make_node("LayerNormalization", ["product", "scale", "shift"], ["out"]),
        helper.make_node("Softmax", ["product"], ["out"], axis=1),
        helper.make_node("Transpose", ["product"], ["out"], perm=[0, 2, 1]),
        helper.make_node("Add", ["rows", "product"], ["out"]),
        helper.make_node("CumSum", ["product", "one"], ["out"]),
    ],
    ids=lambda node: f"{node.op_type} of {len(node.input)}",
)
def test_whatever_follows_a_product_gets_what_it_got(node):
    graph = graph_of(node)
    lean = unpad(graph)
    assert lean is not graph
    full = [[1] * 5] * 3
    np.testing.assert_allclose(run(lean, feeds_of(full))["out"], run(graph, feeds_of(full))["out"], atol=1e-5)


def test_a_split_along_the_texts_is_not_one_of_tokens():
    for axis in (1, -1, 0, 2):
        nodes = [
            helper.make_node("Split", ["product"], ["left", "right"], axis=axis, num_outputs=2),
            helper.make_node("Relu", ["right"], ["out"]),
        ]
        graph = graph_of(*nodes)
        feeds = feeds_of([[1, 1, 1, 1]] * 4)
        np.testing.assert_allclose(run(unpad(graph), feeds)["out"], run(graph, feeds)["out"], atol=1e-6)


def test_a_table_of_positions_is_not_added_to_a_list_of_tokens():
    graph = graph_of(helper.make_node("Add", ["product", "places"], ["out"]))
    places = np.random.default_rng(1).normal(size=(13, WIDTH)).astype(np.float32)
    graph.graph.initializer.append(numpy_helper.from_array(places, "places"))
    mask = np.arange(13)[None] < np.array([[13], [6]])
    wanted, found = (run(one, feeds_of(mask.astype(np.int64)))["out"] for one in (graph, unpad(graph)))
    np.testing.assert_allclose(found[mask], wanted[mask], atol=1e-6)


def test_an_output_is_padded_and_the_residual_is_added_to_tokens():
    graph = graph_of(helper.make_node("Add", ["rows", "product"], ["out"]))
    lean = unpad(graph)
    assert [node.input[0] for node in lean.graph.node if node.op_type == "Add"] == ["rows/tokens"]
    mask = np.array(MASK).astype(bool)
    wanted, found = (run(one, feeds_of(MASK))["out"] for one in (graph, lean))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found[mask], wanted[mask], atol=1e-6)
    # Padding shows the last token before it.
    np.testing.assert_allclose(found[1, 2:], np.repeat(wanted[1:2, 1], 3, axis=0), atol=1e-6)


def test_a_graph_without_a_mask_or_without_products_stays_as_it_is():
    tokens = small.tokenwise(small.table(3))
    assert unpad(tokens) is tokens
    _, graph = families.exported("bert", "text-classification")
    blind = onnx.ModelProto()
    blind.CopyFrom(graph)
    names = [entry.name for entry in blind.graph.input]
    del blind.graph.input[names.index("attention_mask")]
    assert unpad(blind) is blind


def test_the_graph_that_is_given_is_not_changed():
    _, graph = families.exported("bert", "text-classification")
    before = graph.SerializeToString()
    lean = unpad(graph)
    assert (is_unpadded(graph), is_unpadded(lean)) == (False, True)
    assert unpad(lean) is lean
    assert graph.SerializeToString() == before
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in lean.graph.initializer}
    for tensor in graph.graph.initializer:
        np.testing.assert_array_equal(kept[tensor.name], numpy_helper.to_array(tensor))


def export(source, out, **settings):
    config = tiny.export_config().model_copy(update={"precisions": ["fp32"]} | settings)
    manifest = export_bundle(str(source), out, config=config, calibration=tiny.texts(80), overwrite=True)
    operators = [node.op_type for node in onnx.load(out / "onnx" / "model.onnx").graph.node]
    assert manifest.models["fp32"].unpadded is ("NonZero" in operators)
    return operators


@pytest.mark.parametrize(("attention", "wanted"), [("fused", False), ("onnx", True)])
def test_padding_is_left_out_or_not_as_it_is_asked(attention, wanted, tiny_teacher, tiny_bundle, tmp_path):
    operators = export(tiny_teacher, tmp_path / "bundle", attention=attention, unpad=wanted)
    assert ("NonZero" in operators) is wanted
    texts = tiny.texts(20)
    found, expected = (Encoder(folder).logits(texts) for folder in (tmp_path / "bundle", tiny_bundle))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_another_tools_file_is_published_as_it_is(tiny_teacher, tiny_bundle, tmp_path):
    export(tiny_teacher, tmp_path / "plain", unpad=False)
    for source in (tiny_bundle, tmp_path / "plain"):
        file = source / "onnx" / "model.onnx"
        expected = [node.op_type for node in onnx.load(file).graph.node]
        assert export(file, tmp_path / "copy") == expected
