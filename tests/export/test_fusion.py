"""The fusion report: what the layers let expect, and a missing operator refused."""

import onnx
import pytest
from onnx import helper

from potstill.errors import ParityError
from potstill.export.graph import check_fusion, count_layers, fusion_report
from tests.export import families


def graph_of(*nodes):
    return helper.make_model(helper.make_graph(list(nodes), "small", [], []))


def test_operators_are_counted_by_what_they_are():
    norm = helper.make_node("LayerNormalization", ["x", "w"], ["a"])
    attention = helper.make_node("Attention", ["a", "a", "a"], ["b"])
    gelu = helper.make_node("Gelu", ["b"], ["c"])
    model = graph_of(norm, attention, gelu)
    report = fusion_report(model, families.FAMILIES["bert"]())
    assert report.model_dump() == {
        "opset": model.opset_import[0].version,
        "onnxruntime_operators": [],
        "attention": "onnx",
        "attention_expected": 2,
        "attention_found": 1,
        "layer_norms": 1,
        "gelus": 1,
        "nodes": 3,
        "shape_nodes": 0,
    }


def test_shape_nodes_compute_with_sizes_and_constants_only():
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),  # of the data
        helper.make_node("Add", ["x", "one"], ["z"]),
    ]
    model = graph_of(*nodes)
    for name in ("first", "rest", "one"):
        model.graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT64, [1], [1]))
    assert fusion_report(model, families.FAMILIES["bert"]()).shape_nodes == 3


def test_layers_are_counted_as_often_as_they_run():
    config = families.FAMILIES["albert"]()
    config.inner_group_num = 3
    assert count_layers(config) == 3 * families.LAYERS
    assert count_layers(families.FAMILIES["distilbert"]()) == families.LAYERS
    assert count_layers(families.FAMILIES["mobilebert"]()) == families.LAYERS  # which optimum does not know


def test_a_family_with_attention_of_its_own_is_exported_without_an_operator():
    model, graph = families.export("megatron-bert", "text-classification")
    families.check_answers(model, graph)
    report = fusion_report(graph, model.config)
    assert (report.attention_found, report.attention_expected) == (0, families.LAYERS)
    with pytest.raises(ParityError, match=r"0 fused attention operators for 2 layers: .* --allow-unfused"):
        check_fusion(report)
