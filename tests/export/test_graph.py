"""Graphs: one fused operator per layer, no leftovers, both dimensions free, the same answers as torch."""

import numpy as np
import onnx
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from potstill.checkpoint import accepted_inputs
from potstill.errors import ParityError
from potstill.export.graph import build_graph, check_fusion, fusion_receipt
from potstill.export.parity import FP32_TOLERANCE, check_parity
from potstill.serve import OnnxSession

SIZES = {
    "vocab_size": 90,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 3,
}
FAMILIES = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES, max_position_embeddings=40)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=90, dim=16, n_layers=2, n_heads=2, hidden_dim=32, num_labels=3, max_position_embeddings=40
        )
    ),
    "roberta": lambda: RobertaForSequenceClassification(
        RobertaConfig(**SIZES, max_position_embeddings=42, pad_token_id=1)
    ),
    "electra": lambda: ElectraForSequenceClassification(
        ElectraConfig(**SIZES, embedding_size=8, max_position_embeddings=40)
    ),
}


def build(family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    # Fresh weights hardly mix tokens; these do, so that a wrong mask or position shows.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def bert():
    model = build("bert")
    return model, build_graph(model, inputs=accepted_inputs(model), output="logits", opset=20).SerializeToString()


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def exported(request):
    model = build(request.param)
    return model, build_graph(model, inputs=accepted_inputs(model), output="logits", opset=20)


def test_every_layer_has_one_fused_attention_and_no_reshape_is_left(exported):
    model, graph = exported
    receipt = fusion_receipt(graph, model.config)
    assert receipt["attention_found"] == receipt["attention_expected"] == 2
    operators = [node.op_type for node in graph.graph.node]
    assert "Reshape" not in operators
    assert "Transpose" not in operators
    assert not {"Softmax", "Erf"} & set(operators)


def test_names_and_free_dimensions_are_those_of_transformers(exported):
    model, graph = exported
    assert [entry.name for entry in graph.graph.input] == accepted_inputs(model)
    for entry in graph.graph.input:
        sizes = [dimension.dim_param for dimension in entry.type.tensor_type.shape.dim]
        assert sizes == ["batch_size", "sequence_length"]
        assert entry.type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert [entry.name for entry in graph.graph.output] == ["logits"]


def test_the_graph_answers_like_torch_over_the_grid(exported, tmp_path):
    model, graph = exported
    onnx.save(graph, tmp_path / "model.onnx")
    evidence = check_parity(
        model, OnnxSession(tmp_path / "model.onnx"), inputs=accepted_inputs(model), output="logits", max_length=33
    )
    assert evidence["cells"] == 3 * (2 + 2 * 4)
    assert evidence["max_abs_difference"] < FP32_TOLERANCE


def test_the_model_runs_as_before_after_its_export():
    model = build("bert")
    ids = torch.randint(1, 90, (2, 9))
    before = model(ids).logits
    build_graph(model, inputs=accepted_inputs(model), output="logits", opset=20)
    assert torch.equal(model(ids).logits, before)


def test_a_missing_fusion_is_refused(bert):
    model, graph = bert[0], onnx.load_from_string(bert[1])
    node = next(node for node in graph.graph.node if node.op_type == "MultiHeadAttention")
    graph.graph.node.remove(node)
    with pytest.raises(ParityError, match="1 fused attention operators for 2 layers"):
        check_fusion(graph, model)


def _scaled_weight(graph):
    tensor = max(graph.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))


def _ignored_mask(graph):
    for node in graph.graph.node:
        if node.op_type == "MultiHeadAttention":
            node.input[4] = ""


def _swapped_labels(graph):
    name = next(node for node in reversed(graph.graph.node) if node.op_type == "Gemm").input[1]
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == name)
    weight = onnx.numpy_helper.to_array(tensor)
    flipped = np.ascontiguousarray(weight[::-1] if weight.shape[0] == 3 else weight[:, ::-1])
    tensor.CopyFrom(onnx.numpy_helper.from_array(flipped, name))


def _dropped_token_types(graph):
    for node in graph.graph.node:
        node.input[:] = ["attention_mask" if name == "token_type_ids" else name for name in node.input]


def _shifted_positions(graph):
    """Roll the position table by one row."""
    tensor = next(tensor for tensor in graph.graph.initializer if list(tensor.dims) == [40, 16])
    rolled = np.roll(onnx.numpy_helper.to_array(tensor), 1, axis=0)
    tensor.CopyFrom(onnx.numpy_helper.from_array(rolled, tensor.name))


@pytest.mark.parametrize(
    "fault", [_scaled_weight, _ignored_mask, _swapped_labels, _dropped_token_types, _shifted_positions]
)
def test_parity_catches(fault, bert, tmp_path):
    model, graph = bert[0], onnx.load_from_string(bert[1])
    fault(graph)
    onnx.save(graph, tmp_path / "model.onnx")
    session = OnnxSession(tmp_path / "model.onnx")
    with pytest.raises(ParityError, match="differs from torch"):
        check_parity(model, session, inputs=accepted_inputs(model), output="logits", max_length=33)
