"""Every family: one attention operator per layer, the answers of torch, and the model as it was before."""

import onnx
import pytest
import torch
from onnx import numpy_helper

from potstill.errors import CheckpointError
from potstill.export.graph import check_fusion, fusion_report
from tests.export import families

from .test_graph import EXPORTS as PLAIN

# Each family with a task of its own; the whole matrix is slow.
EXPORTS = {
    "roberta": "fill-mask",
    "xlm-roberta": "token-classification",
    "camembert": "question-answering",
    "mobilebert": "fill-mask",
    "albert": "fill-mask",
    "mpnet": "text-classification",
    "modernbert": "text-classification",
    "deberta-v3": "text-classification",
    "deberta-v2": "token-classification",
}
MATRIX = [(family, task) for family in families.FAMILIES for task in families.TASKS if family != "megatron-bert"]
# Three counts. Layer norms: of the embeddings, two per layer, and of the head; MobileBERT has them in the vocabulary's
# head only. Gelus. Nodes that compute from sizes alone: distances between tokens, rotations and windows are such.
COUNTS = {
    "roberta": (6, 3, 2),
    "xlm-roberta": (5, 2, 0),
    "camembert": (5, 2, 0),
    "mobilebert": (1, 0, 4),
    "albert": (6, 3, 4),
    "mpnet": (5, 2, 11),
    "modernbert": (6, 3, 11),
    "deberta-v3": (5, 3, 15),
    "deberta-v2": (6, 2, 17),
}


case = families.cases(EXPORTS)


def exported(family):
    return families.exported(family, EXPORTS[family])


def test_no_family_is_left_to_the_slow_tests():
    assert {*EXPORTS, *PLAIN} == {family for family, _ in MATRIX}


def test_the_graph_answers_like_torch(case):
    _, model, graph = case
    onnx.checker.check_model(graph, full_check=True)
    families.check_answers(model, graph)


def test_the_fusion_report_counts_what_became_one_operator(case):
    family, model, graph = case
    report = fusion_report(graph, model.config)
    check_fusion(report)
    layer_norms, gelus, shape_nodes = COUNTS[family]
    assert report.model_dump() == {
        "attention": "fused",
        "attention_expected": families.LAYERS,
        "attention_found": families.LAYERS,
        "layer_norms": layer_norms,
        "gelus": gelus,
        "nodes": len(graph.graph.node),
        "shape_nodes": shape_nodes,
        "opset": 20,
        "onnxruntime_operators": sorted({node.op_type for node in graph.graph.node if node.domain == "com.microsoft"}),
    }


def test_weights_are_multiplied_as_they_are_stored(case):
    _, _, graph = case
    weights = {tensor.name for tensor in graph.graph.initializer}
    assert not [node.name for node in graph.graph.node if node.op_type == "Transpose" and node.input[0] in weights]
    assert not {"Softmax", "Erf", "Pow"} & {node.op_type for node in graph.graph.node}


def test_no_matrix_is_stored_twice(case):
    """ALBERT's layers share theirs, and the exporter turns a matrix anew for each layer."""
    _, _, graph = case
    stored = [numpy_helper.to_array(tensor).tobytes() for tensor in graph.graph.initializer if len(tensor.dims) == 2]
    assert len(stored) == len(set(stored))


def test_nodes_and_weights_have_the_names_of_their_modules(case):
    _, model, graph = case
    modules = {name for name, _ in model.named_modules()}
    products = [node for node in graph.graph.node if node.op_type in {"MatMul", "Gemm"}]
    assert products
    for node in products:
        assert node.name.rpartition("/")[0] in modules
    assert len({node.name for node in graph.graph.node}) == len(graph.graph.node)
    assert not [tensor.name for tensor in graph.graph.initializer if len(tensor.dims) == 2 and "val_" in tensor.name]


@pytest.mark.parametrize("family", ["mpnet", "modernbert", "deberta-v3"])
def test_the_model_is_as_before_after_its_export(family):
    model = exported(family)[0]
    fresh = families.build(family, EXPORTS[family])
    feeds = list(families.grid(model, ["input_ids", "attention_mask"]))[-1][1]
    assert torch.equal(families.answers(model, feeds).logits, families.answers(fresh, feeds).logits)
    assert model.config._attn_implementation == fresh.config._attn_implementation
    for (name, module), (_, other) in zip(model.named_modules(), fresh.named_modules(), strict=True):
        assert vars(module).keys() == vars(other).keys(), name
        assert dict(module.named_buffers()).keys() == dict(other.named_buffers()).keys(), name


def test_a_failed_trace_leaves_the_model_alone(monkeypatch):
    def fail(*args, **options):
        raise ValueError("no trace today\nand more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(CheckpointError, match=r"this deberta-v2 model cannot .* no trace today; models of the family"):
        families.export("deberta-v3", "fill-mask")
    model = families.build("deberta-v3", "fill-mask")
    with pytest.raises(CheckpointError):
        families.build_graph(model, inputs=["input_ids", "attention_mask"], outputs=["logits"])
    assert not [module for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("family", ["roberta", "mobilebert", "albert"])
def test_the_vocabulary_is_stored_once(family):
    model, graph = exported(family)
    table = model.get_input_embeddings().weight.detach().numpy()
    stored = [numpy_helper.to_array(tensor) for tensor in graph.graph.initializer]
    assert (
        sum(array.shape in {table.shape, table.T.shape} and set(array.flat) == set(table.flat) for array in stored) == 1
    )
    product = next(
        node for node in graph.graph.node if node.op_type == "Gemm" and node.input[1].endswith("decoder.weight")
    )
    assert [attribute.i for attribute in product.attribute if attribute.name == "transB"] == [1]
    names = [node.input[0] for node in graph.graph.node if node.op_type == "Gather"]
    assert product.input[1] in names


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["fused", "onnx"])
@pytest.mark.parametrize(("family", "task"), MATRIX)
def test_every_family_task_and_form(family, task, attention):
    model, graph = families.export(family, task, attention=attention)
    onnx.checker.check_model(graph, full_check=True)
    report = fusion_report(graph, model.config)
    check_fusion(report)
    assert report.attention == attention
    families.check_answers(model, graph)
