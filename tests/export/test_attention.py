"""Attention in the standard's own form: opset 23, no operator but the standard's, the answers of torch."""

import onnx
import pytest

from potstill.errors import UsageError
from potstill.export.graph import check_fusion, fusion_report
from tests.export import families

EXPORTS = {
    "bert": "feature-extraction",
    "mpnet": "question-answering",
    "modernbert": "token-classification",
    "deberta-v3": "text-classification",
}


case = families.cases(EXPORTS, attention="onnx")


def test_the_graph_answers_like_torch(case):
    _, model, graph = case
    families.check_answers(model, graph)


def test_every_operator_is_of_the_standard(case):
    _, model, graph = case
    onnx.checker.check_model(graph, full_check=True)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 23)]
    assert graph.ir_version == 11  # the first that knows opset 23
    report = fusion_report(graph, model.config)
    check_fusion(report)
    assert (report.attention, report.attention_found) == ("onnx", families.LAYERS)


def test_an_older_opset_is_refused():
    model = families.build("bert", "feature-extraction")
    with pytest.raises(UsageError, match="opset 20 has no Attention operator; take opset 23, or attention 'fused'"):
        families.build_graph(model, inputs=["input_ids"], outputs=["last_hidden_state"], attention="onnx", opset=20)
