"""Files of graphs: written whole, checked to the last operator, and refused where they are broken or untrue."""

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from potstill.errors import BundleError, ParityError, TamperedError
from potstill.export import onnx_files
from potstill.export.onnx_files import check_model, lint, load_graph, load_model, save_model
from tests import onnx_graphs as graphs

FEEDS = {"input_ids": np.array([[3, 7, 9]]), "attention_mask": np.array([[1, 1, 0]])}
READERS = (load_model, load_graph, check_model, lambda file: lint(file, "fp32"))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "onnx" / "model.onnx"


@pytest.fixture(autouse=True)
def folder(file):
    file.parent.mkdir()


def run(file):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, FEEDS)[0]


def values(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def refusal(file, kind, reader=load_model):
    with pytest.raises(kind) as caught:
        reader(file)
    return str(caught.value)


def attention(*, width=16, declared=(2,), product="MatMul", more=(), arrays=None):
    """Embed, attend with onnxruntime's operator, multiply by `width` x 2, sum over the tokens."""
    node = helper.make_node
    nodes = [
        node("Gather", ["words", "input_ids"], ["x"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.INT32),
        node("MultiHeadAttention", ["x", "x", "x", "", "mask"], ["a"], domain="com.microsoft", num_heads=2),
        *(more or [node("Identity", ["a"], ["b"])]),
        node(product, ["b", "w"], ["y"]),
        node("ReduceSum", ["y", "tokens"], ["logits"], keepdims=0),
    ]
    draw = np.random.default_rng(0)
    tensors = {"words": draw.normal(size=(50, 16)), "w": draw.normal(size=(width, 2))}
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()} | {"tokens": np.array([1])}
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", *declared])
    return graphs.model(nodes, tensors | (arrays or {}), outputs=[output])


def test_a_small_model_is_one_file(file):
    graph = graphs.classifier()
    assert save_model(graph, file) == [file]
    assert load_model(file) == graph
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("product", [graphs.float_product, graphs.dynamic_product])
def test_weights_beside_the_model_give_the_same_answers(file, tmp_path, product):
    graph = graphs.classifier(product, hidden=64)
    before = graph.SerializeToString()
    assert save_model(graph, file, external=True) == [file, file.with_name("model.onnx_data")]
    assert graph.SerializeToString() == before
    save_model(graph, tmp_path / "one.onnx")
    np.testing.assert_array_equal(run(file), run(tmp_path / "one.onnx"))
    loaded = load_model(file)
    for name, value in values(graph).items():
        np.testing.assert_array_equal(values(loaded)[name], value)
    assert list(loaded.graph.node) == list(graph.graph.node)
    check_model(file)


def test_only_large_weights_move_and_they_begin_on_pages(file):
    save_model(graphs.classifier(hidden=64), file, external=True)
    model = onnx.load(file, load_external_data=False)
    outside = {tensor.name: tensor for tensor in model.graph.initializer if tensor.external_data}
    assert set(outside) == {"words", "w0", "w1", "w2"}
    places = {
        name: {entry.key: entry.value for entry in tensor.external_data} for name, tensor in sorted(outside.items())
    }
    assert {place["location"] for place in places.values()} == {"model.onnx_data"}
    assert [int(place["offset"]) % 4096 for place in places.values()] == [0] * 4
    assert int(places["words"]["length"]) == 50 * 64 * 4
    assert not any(tensor.raw_data for tensor in outside.values())


def test_weights_in_other_fields_than_raw_data_move_too(file):
    graph = graphs.classifier(hidden=64)
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == "words")
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(helper.make_tensor("words", TensorProto.FLOAT, array.shape, array.ravel()))
    assert not tensor.raw_data
    save_model(graph, file, external=True)
    np.testing.assert_array_equal(values(load_model(file))["words"], array)


def test_writing_twice_does_not_append(file):
    graph = graphs.classifier(hidden=64)
    sizes = []
    for _ in range(2):
        sizes.append([path.stat().st_size for path in save_model(graph, file, external=True)])
    assert sizes[0] == sizes[1]


def test_a_model_too_large_for_one_file_is_split_by_itself(file, monkeypatch):
    monkeypatch.setattr(onnx_files, "_LARGEST_SINGLE_FILE", 20_000)
    assert len(save_model(graphs.classifier(hidden=16), file)) == 1
    assert len(save_model(graphs.classifier(hidden=64), file)) == 2


def test_the_rest_of_a_model_stays_as_it_is(file):
    graph = graphs.classifier(hidden=64, producer_name="somebody", model_version=7, doc_string="told")
    graph.metadata_props.add(key="a", value="b")
    save_model(graph, file, external=True)
    model = onnx.load(file, load_external_data=False)
    del model.graph.initializer[:]
    del graph.graph.initializer[:]
    assert model == graph


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(file, reader, share):
    content = graphs.classifier().SerializeToString()
    file.write_bytes(content[: int(len(content) * share)])
    assert f"{file} is cut short or damaged" in refusal(file, TamperedError, reader)


@pytest.mark.parametrize("reader", READERS)
def test_truncated_weights_are_refused(file, reader):
    weights = save_model(graphs.classifier(hidden=64), file, external=True)[1]
    os.truncate(weights, weights.stat().st_size - 1)
    assert "model.onnx_data is cut short: it has" in refusal(file, TamperedError, reader)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_onnx_file_is_refused(file, reader):
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert f"{file} is not an ONNX file" in refusal(file, BundleError, reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "deep/../../secret",
        "..",
        "deep\\..\\secret",
        "C:secret",
        "sec\0ret",
        "*/_ORT_MEM_ADDR_/*",
        "{absolute}/secret",
    ],
)
def test_weights_outside_of_the_folder_are_refused(file, tmp_path, location, reader):
    location = location.format(absolute=tmp_path)
    graphs.keep_outside(graphs.classifier(), file, location, content=tmp_path / "secret")
    message = refusal(file, TamperedError, reader)
    assert message == f"{file} keeps weights in {location!r}, which leaves its folder; expected a file beside it"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("location", "linked", "kind"),
    [("data", "data", "symbolic"), ("deep/data", "deep", "symbolic"), ("data", "data", "hard")],
)
def test_weights_behind_a_link_are_refused(file, tmp_path, reader, location, linked, kind):
    outside, inside = tmp_path / "elsewhere", file.parent / linked
    graphs.keep_outside(graphs.classifier(), file, location, content=outside / location)
    (inside.hardlink_to if kind == "hard" else inside.symlink_to)(outside / linked)
    assert f"data is a {kind} link" in refusal(file, TamperedError, reader)


@pytest.mark.parametrize("reader", READERS)
def test_missing_weights_are_named(file, reader):
    graphs.keep_outside(graphs.classifier(), file, "data")
    assert refusal(file, TamperedError, reader) == (
        f"{file.parent / 'data'} is missing, though model.onnx keeps weights in it; fetch it as well"
    )


def test_weights_in_a_folder_below_and_a_linked_model_are_fine(file, tmp_path):
    graphs.keep_outside(graphs.classifier(), file, "./deep/data", content=file.parent / "deep" / "data")
    expected = graphs.weights()["words"]
    np.testing.assert_array_equal(values(load_model(file))["words"], expected)
    (tmp_path / "link").symlink_to(file.parent)
    np.testing.assert_array_equal(values(load_model(tmp_path / "link" / "model.onnx"))["words"], expected)


def test_weights_of_a_subgraph_are_looked_at_as_well(file):
    info = helper.make_tensor_value_info
    inner = helper.make_graph([], "then", [], [info("t", TensorProto.FLOAT, [3])], [TensorProto(name="t", dims=[3])])
    inner.initializer[0].data_type = TensorProto.FLOAT
    inner.initializer[0].data_location = TensorProto.EXTERNAL
    inner.initializer[0].external_data.add(key="location", value="../secret")
    graph = graphs.classifier()
    graph.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=inner, else_branch=inner))
    file.write_bytes(graph.SerializeToString())
    assert "'../secret', which leaves its folder" in refusal(file, TamperedError)


def test_a_graph_is_read_without_its_weights(file):
    graph = graphs.classifier(hidden=64)
    save_model(graph, file)
    slim = load_graph(file)
    assert list(slim.graph.node) == list(graph.graph.node)
    assert not slim.graph.initializer[0].raw_data


@pytest.mark.parametrize(
    "graph",
    [
        graphs.classifier(),
        graphs.classifier(graphs.dynamic_product),
        graphs.classifier(graphs.static_product),
        graphs.classifier(dtype=np.float16),
        attention(),
    ],
    ids=["fp32", "int8", "int8-static", "fp16", "attention"],
)
@pytest.mark.parametrize("external", [False, True])
def test_good_models_pass(file, graph, external):
    save_model(graph, file, external=external)
    check_model(file)


def test_what_does_not_fit_behind_a_foreign_operator_is_found(file):
    save_model(attention(width=15), file)
    onnx.checker.check_model(file, full_check=True)  # onnx itself does not look behind MultiHeadAttention
    message = refusal(file, ParityError, check_model)
    assert "is not a valid ONNX model" in message
    assert "Incompatible dimensions" in message


def test_what_does_not_fit_in_a_standard_graph_is_found(file):
    graph = graphs.classifier()
    weight = next(tensor for tensor in graph.graph.initializer if tensor.name == "wc")
    weight.CopyFrom(numpy_helper.from_array(np.zeros((15, 2), np.float32), "wc"))
    save_model(graph, file)
    assert "Incompatible dimensions" in refusal(file, ParityError, check_model)


@pytest.mark.parametrize(
    ("declared", "said"),
    [((3,), "float (?, 3)"), ((2, 2), "float (?, 2, 2)"), ((), "float (?)")],
)
def test_an_output_that_is_not_what_the_file_says_is_found(file, declared, said):
    save_model(attention(declared=declared), file)
    assert refusal(file, ParityError, check_model).endswith(
        f"declares its output logits as {said}, but its operators give float (?, 2)"
    )


def test_an_output_of_another_type_is_found(file):
    graph = attention()
    graph.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    save_model(graph, file)
    assert "logits as float16 (?, 2), but its operators give float (?, 2)" in refusal(file, ParityError, check_model)


def test_what_a_file_says_of_its_inner_tensors_is_not_believed(file):
    graph = attention()
    graph.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 2, 3]))
    save_model(graph, file)
    check_model(file)


def test_an_operator_that_nobody_can_check_is_refused_by_name(file):
    save_model(
        attention(more=[helper.make_node("EmbedLayerNormalization", ["a"], ["b"], domain="com.microsoft")]), file
    )
    message = refusal(file, ParityError, check_model)
    assert "the graph has the operator com.microsoft:EmbedLayerNormalization, whose shapes cannot be" in message
    assert "MultiHeadAttention" in message


def test_a_function_of_the_model_itself_is_no_foreign_operator(file):
    twice = helper.make_function(
        "our.own", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 20)]
    )
    graph = attention(more=[helper.make_node("Twice", ["a"], ["b"], domain="our.own")])
    graph.opset_import.append(helper.make_opsetid("our.own", 1))
    graph.functions.append(twice)
    save_model(graph, file)
    check_model(file)


def test_what_onnx_itself_refuses_is_refused(file):
    graph = graphs.classifier()
    graph.graph.node[0].op_type = "Gathr"
    save_model(graph, file)
    assert "Gathr" in refusal(file, ParityError, check_model)


node = helper.make_node
MICROSOFT = {"domain": "com.microsoft"}
WIDE = {"gamma": np.ones(16, np.float32), "beta": np.zeros(16, np.float32)}


@pytest.mark.parametrize(
    ("more", "arrays"),
    [
        ([node("Gelu", ["a"], ["b"], **MICROSOFT)], {}),
        ([node("FastGelu", ["a", "beta"], ["b"], **MICROSOFT)], WIDE),
        ([node("BiasGelu", ["a", "beta"], ["b"], **MICROSOFT)], WIDE),
        ([node("QuickGelu", ["a"], ["b"], **MICROSOFT)], {}),
        ([node("SkipLayerNormalization", ["a", "x", "gamma", "beta"], ["b"], **MICROSOFT)], WIDE),
        (
            [
                node("SkipLayerNormalization", ["a", "x", "gamma", "beta"], ["n", "", "", "s"], **MICROSOFT),
                node("Add", ["n", "s"], ["b"]),
            ],
            WIDE,
        ),
        (
            [node("DynamicQuantizeMatMul", ["a", "v", "vs"], ["b"], **MICROSOFT)],
            {"v": np.ones((16, 16), np.int8), "vs": np.float32(0.1)},
        ),
        (
            [
                node("QuantizeLinear", ["a", "s", "z"], ["q"], **MICROSOFT),
                node("MatMulIntegerToFloat", ["q", "v", "s", "vs", "z"], ["b"], **MICROSOFT),
            ],
            {"v": np.ones((16, 16), np.int8), "vs": np.float32(0.1), "s": np.float32(0.1), "z": np.uint8(0)},
        ),
        (
            [
                node("QuantizeLinear", ["a", "s", "z"], ["q"], **MICROSOFT),
                node("DequantizeLinear", ["q", "s", "z"], ["b"], **MICROSOFT),
            ],
            {"s": np.float32(0.1), "z": np.uint8(0)},
        ),
        (
            [
                node("QuantizeLinear", ["a", "s", "z"], ["q"]),
                node("QAttention", ["q", "v", "vb", "s", "vs", "", "z", "vz"], ["b"], **MICROSOFT, num_heads=2),
            ],
            {"v": np.ones((16, 48), np.int8), "vb": np.zeros(48, np.float32), "vs": np.float32(0.1), "vz": np.int8(0)}
            | {"s": np.float32(0.1), "z": np.uint8(0)},
        ),
    ],
    ids=lambda value: value[0].op_type if isinstance(value, list) else "",
)
def test_operators_of_onnxruntime_have_the_shapes_that_onnxruntime_gives(file, more, arrays):
    save_model(attention(more=more, arrays=arrays), file)
    check_model(file)
    assert run(file).shape == (1, 2)
    save_model(attention(width=15, more=more, arrays=arrays), file)
    assert "Incompatible dimensions" in refusal(file, ParityError, check_model)


@pytest.mark.parametrize(
    ("graph", "precision", "why"),
    [
        (graphs.classifier(), "int8", "0 of its 4 matmuls with a weight multiply int8"),
        (graphs.classifier(graphs.folded_product), "int8", "4 int8 weights are only dequantised"),
        (graphs.classifier(graphs.late_product), "int8", "0 of its 4 matmuls"),
        (graphs.classifier(graphs.mixed("0")), "int8", "1 of its 4 matmuls"),
        (graphs.classifier(graphs.dynamic_product), "int8-static", "4 of its activation scales are measured"),
        (graphs.classifier(), "fp16", "0 of its 1600 float weights have 16 bits"),
        (graphs.classifier(graphs.dynamic_product), "fp32", "it is quantised already"),
    ],
)
def test_a_name_that_is_not_true_is_refused(file, graph, precision, why):
    save_model(graph, file)
    with pytest.raises(ParityError) as caught:
        lint(file, precision)
    assert str(caught.value).startswith(f"{file} is not {precision}: ")
    assert why in str(caught.value)


def test_true_names_pass(file):
    for graph, precision in [
        (graphs.classifier(), "fp32"),
        (graphs.classifier(dtype=np.float16), "fp16"),
        (graphs.classifier(graphs.dynamic_product), "int8"),
        (graphs.classifier(graphs.static_product), "int8-static"),
    ]:
        for external in (False, True):
            save_model(graph, file, external=external)
            lint(file, precision)
