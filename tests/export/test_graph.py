"""Graphs: no leftovers, both dimensions free, the inputs and outputs that were asked for, pooling inside."""

import functools

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    T5Config,
    T5EncoderModel,
)

from potstill.checkpoint.model import simple_head
from potstill.errors import CheckpointError
from potstill.export.graph import build_graph, check_encoder
from tests.export import families

EXPORTS = {"bert": "text-classification", "distilbert": "question-answering", "electra": "token-classification"}


case = families.cases(EXPORTS)


def exported(family):
    return families.exported(family, EXPORTS[family])


@functools.cache
def pooled():
    model = families.build("bert", "feature-extraction")
    graph = build_graph(
        model,
        inputs=["input_ids", "attention_mask"],
        outputs=["last_hidden_state"],
        head=simple_head("mean", normalize=True),
    )
    return model, graph


def test_the_graph_answers_like_torch(case):
    _, model, graph = case
    families.check_answers(model, graph)


def test_no_reshape_is_left_and_only_the_position_table_is_cut(case):
    _, _, graph = case
    operators = [node.op_type for node in graph.graph.node]
    assert not {"Reshape", "Transpose", "Softmax", "Erf", "Expand", "Concat", "Range"} & set(operators)
    assert (operators.count("Shape"), operators.count("Slice")) == (1, 1)
    cut = next(node for node in graph.graph.node if node.op_type == "Slice")
    assert cut.input[0].endswith("position_embeddings.weight")


def test_names_and_free_dimensions_are_those_of_transformers():
    for family, outputs in (("bert", {"logits": 2}), ("distilbert", {"start_logits": 2, "end_logits": 2})):
        graph = exported(family)[1]
        expected = ["input_ids", "attention_mask", *(["token_type_ids"] if family == "bert" else [])]
        assert [entry.name for entry in graph.graph.input] == expected
        for entry in graph.graph.input:
            assert _sizes(entry) == ["batch_size", "sequence_length"]
            assert entry.type.tensor_type.elem_type == onnx.TensorProto.INT64
        assert {entry.name: len(_sizes(entry)) for entry in graph.graph.output} == outputs
    assert _sizes(exported("bert")[1].graph.output[0]) == ["batch_size", 3]
    assert _sizes(exported("distilbert")[1].graph.output[0]) == ["batch_size", "sequence_length"]
    assert _sizes(exported("electra")[1].graph.output[0]) == ["batch_size", "sequence_length", 3]


def _sizes(entry):
    return [dimension.dim_param or dimension.dim_value for dimension in entry.type.tensor_type.shape.dim]


def test_weights_keep_the_checkpoints_names():
    model, graph = exported("bert")
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    named = {name: array for name, array in stored.items() if name in state}
    assert len(named) == len(state)
    turned = 0
    for name, array in named.items():
        turned += array.shape != state[name].shape or not np.array_equal(array, state[name])
        assert np.array_equal(array, state[name]) or np.array_equal(array.T, state[name]), name
    assert turned == 6 * families.LAYERS  # MatMul takes (in, out)
    names = [node.name for node in graph.graph.node]
    assert "bert.encoder.layer.1.intermediate.dense/MatMul" in names
    assert names[-1] == "classifier/Gemm"


def test_masked_keys_have_no_weight_however_large_the_scores():
    model = families.build("bert", "text-classification")
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.query.weight.mul_(3e5)
    graph = build_graph(model, inputs=["input_ids", "attention_mask"], outputs=["logits"])
    session = families.open_session(graph)
    ids, mask = np.arange(5, 17)[None, :], (np.arange(12) < 9).astype(np.int64)[None, :]
    other = np.where(mask, ids, 80)
    first, second = (session.run(None, {"input_ids": value, "attention_mask": mask})[0] for value in (ids, other))
    assert np.array_equal(first, second)
    assert np.isfinite(first).all()
    for node in graph.graph.node:
        if node.op_type == "MultiHeadAttention":  # its default is -10000
            node.attribute.remove(next(entry for entry in node.attribute if entry.name == "mask_filter_value"))
    third = families.open_session(graph).run(None, {"input_ids": other, "attention_mask": mask})[0]
    assert not np.array_equal(first, third)


def test_token_types_that_are_not_an_input_are_a_constant():
    model, graph = pooled()
    families.check_answers(_with_embedding(model), graph)
    tables = [node.input[0] for node in graph.graph.node if node.op_type == "Gather"]
    assert tables[:1] == ["embeddings.word_embeddings.weight"]
    assert not [name for name in tables if "token_type" in name]


class _with_embedding:
    """A model whose answers have the reference's sentence embedding too."""

    def __init__(self, model):
        self.config, self._model = model.config, model

    def __call__(self, **inputs):
        answer = self._model(**inputs)
        answer["sentence_embedding"] = reference(
            answer.last_hidden_state, inputs["attention_mask"], mode="mean", normalize=True
        )
        return answer


def reference(hidden, mask, *, mode, normalize):
    """Pool text by text, over the tokens that are there."""
    vectors = []
    for states, row in zip(hidden, mask.bool(), strict=True):
        seen = states[row]
        vectors.append({"mean": seen.mean(0), "max": seen.amax(0), "cls": states[0]}[mode])
    stacked = torch.stack(vectors)
    return stacked / stacked.norm(dim=1, keepdim=True) if normalize else stacked


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_pooling_takes_the_tokens_that_are_there(mode, normalize):
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0]])
    found = simple_head(mode, normalize=normalize)(hidden, mask)
    torch.testing.assert_close(found, reference(hidden, mask, mode=mode, normalize=normalize))


def test_pooling_a_text_without_tokens_divides_by_nothing():
    found = simple_head("mean", normalize=True)(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64))
    assert torch.equal(found, torch.zeros(1, 3))


def test_pooling_is_a_further_output():
    _, graph = pooled()
    assert [entry.name for entry in graph.graph.output] == ["last_hidden_state", "sentence_embedding"]
    assert _sizes(graph.graph.output[1]) == ["batch_size", 16]
    assert graph.graph.output[1].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


SMALL = {"vocab_size": 20, "d_model": 8, "num_labels": 2}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: GPT2ForSequenceClassification(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1)),
            "gpt2 models are not exported: only encoders without a decoder are, such as bert, .* distil one of these",
        ),
        (
            lambda: BartForSequenceClassification(
                BartConfig(
                    **SMALL, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1, decoder_attention_heads=1
                )
            ),
            "bart models are not exported: only encoders",
        ),
        (lambda: T5EncoderModel(T5Config(**SMALL, d_ff=8, num_layers=1)), "t5 models are not exported"),
        (
            lambda: BertLMHeadModel(BertConfig(vocab_size=20, num_hidden_layers=1, is_decoder=True)),
            "this bert model is set up as a decoder .is_decoder in its config.json., which is not exported",
        ),
    ],
    ids=["decoder", "both", "encoder-of-both", "bert-decoder"],
)
def test_what_is_no_encoder_is_refused(model, message):
    with pytest.raises(CheckpointError, match=message):
        check_encoder(model())
