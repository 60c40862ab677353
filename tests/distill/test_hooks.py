"""Every family gives the same states through the same door, equal to those that transformers itself gives."""

import copy

import pytest
import torch
from torch.nn import functional as F

from potstill.distill.hooks import (
    attention_scores,
    capture_hidden_states,
    find_layers,
    masked_lm_head,
    model_inputs,
)
from potstill.errors import CheckpointError
from tests.distill.families import FAMILIES, batch_for, build

# Measured 0 on a CPU; another kernel may add in another order.
TOLERANCE = 1e-5


@pytest.fixture
def batch():
    return batch_for(build("Bert"))


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_transformers(family):
    model = build(family)
    inputs = batch_for(model)
    with torch.no_grad():
        tapped = capture_hidden_states(model, inputs, hidden=range(4))
        theirs = model(**inputs, output_hidden_states=True).hidden_states
        plain = model(**inputs)
    assert torch.equal(tapped.output.logits, plain.logits)
    last = tapped.hidden[3]
    if family == "ModernBert":  # transformers gives the last one after the final norm
        last = model.model.final_norm(last)
    ours = [tapped.hidden[0], tapped.hidden[1], tapped.hidden[2], last]
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(mine, other), number


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_in_parts_gives_the_models_logits(family):
    model = build(family)
    inputs = batch_for(model)
    head = masked_lm_head(model)
    states = model.base_model(**inputs).last_hidden_state
    logits = F.linear(head.transform(states.flatten(0, 1)), head.weight, head.bias)
    torch.testing.assert_close(logits, model(**inputs).logits.flatten(0, 1), atol=TOLERANCE, rtol=0)
    assert head.weight.shape[0] == head.bias.shape[0] == 60
    logits.square().sum().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    assert model.get_output_embeddings().weight.grad.abs().sum() > 0


def test_mobileberts_own_half_of_the_decoder_gets_gradients():
    model = build("MobileBert")
    masked_lm_head(model).weight.sum().backward()
    assert torch.equal(model.cls.predictions.dense.weight.grad, torch.ones(10, 60))


@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification"])
def test_a_model_without_a_masked_lm_head_is_refused(head):
    for family in FAMILIES:
        with pytest.raises(CheckpointError, match="fill-mask"):
            masked_lm_head(build(family, head))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "ModernBert"])
def test_projections_give_the_models_own_attention(family):
    model = build(family, attn_implementation="eager")
    inputs = batch_for(model)
    with torch.no_grad():
        tapped = capture_hidden_states(model, inputs, qkv=[0, 2])
        attentions = model(**inputs, output_attentions=True).attentions
    unseen = (1 - inputs["attention_mask"])[:, None, None].bool()
    for layer, (query, key, value) in tapped.qkv.items():
        assert query.shape == key.shape == value.shape
        scores = attention_scores(query, key, 2).masked_fill(unseen, float("-inf"))
        torch.testing.assert_close(scores.softmax(-1), attentions[layer], atol=TOLERANCE, rtol=0)
    assert set(tapped.qkv) == {0, 2}
    assert tapped.hidden == {}


def test_values_are_what_the_third_projection_gives(batch):
    for family, projection in (
        ("Bert", lambda layer: layer.attention.self.value),
        ("DistilBert", lambda layer: layer.attention.v_lin),
    ):
        model = build(family)
        tapped = capture_hidden_states(model, batch, hidden=[1], qkv=[1])
        assert torch.equal(tapped.qkv[1][2], projection(find_layers(model)[1][1])(tapped.hidden[1]))


def test_modernberts_fused_projection_is_split_in_three(batch):
    model = build("ModernBert")
    tapped = capture_hidden_states(model, batch, hidden=[1], qkv=[1])
    layer = model.model.layers[1]
    normed, weight = layer.attn_norm(tapped.hidden[1]), layer.attn.Wqkv.weight
    for number, part in enumerate(tapped.qkv[1]):
        expected = normed @ weight[16 * number : 16 * (number + 1)].t()
        torch.testing.assert_close(part, expected, atol=TOLERANCE, rtol=0)


def test_scores_are_scaled_dot_products_per_head():
    query = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 2.0, 0.0]]])
    key = torch.tensor([[[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]]])
    expected = torch.tensor([[[[1.0, 3.0], [0.0, 0.0]], [[4.0, 3.0], [0.0, 2.0]]]]) / 2**0.5
    torch.testing.assert_close(attention_scores(query, key, 2), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stopped_forward_gives_the_same_states_and_gradients(family):
    model = build(family)
    inputs = batch_for(model)
    grads = []
    for stop in (False, True):
        model.zero_grad()
        tapped = capture_hidden_states(model, inputs, hidden=[0, 2], qkv=[1], stop=stop)
        assert (tapped.output is None) == stop
        (tapped.hidden[2].square().sum() + tapped.qkv[1][0].sum()).backward()
        grads.append(model.get_input_embeddings().weight.grad.clone())
    assert torch.equal(*grads)


def test_nothing_behind_the_last_state_runs(batch):
    model = build("Bert")
    ran = []
    for number, layer in enumerate(model.bert.encoder.layer):
        layer.attention.self.register_forward_hook(lambda *_, number=number: ran.append(number))
    capture_hidden_states(model, batch, hidden=[2], stop=True)
    assert ran == [0, 1]
    ran.clear()
    # Layer 1's own attention never ends: the forward stops at its projections.
    capture_hidden_states(model, batch, qkv=[1], stop=True)
    assert ran == [0]
    ran.clear()
    assert capture_hidden_states(model, batch, hidden=[0], stop=True).hidden[0].shape == (2, 7, 16)
    assert ran == []


def test_what_a_model_does_not_take_is_left_out(batch):
    model = build("DistilBert")
    full = batch | {"labels": torch.tensor([0, 1]), "masked_labels": batch["input_ids"]}
    assert list(model_inputs(model, full)) == ["input_ids", "attention_mask"]
    output = capture_hidden_states(model, full, hidden=[1]).output
    assert output.loss is None


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "MobileBert"])
def test_packed_texts_give_the_states_that_they_give_alone(family):
    model = build(family)
    texts = [torch.randint(3, 60, (1, length), generator=torch.Generator().manual_seed(length)) for length in (7, 5)]
    packed = {
        "input_ids": torch.cat(texts, dim=1),
        "attention_mask": torch.ones(1, 12, dtype=torch.long),
        "position_ids": torch.cat([torch.arange(7), torch.arange(5)])[None],
        "segments": torch.tensor([[1] * 7 + [2] * 5]),
    }
    with torch.no_grad():
        together = capture_hidden_states(model, packed, hidden=[3], stop=True).hidden[3]
        alone = torch.cat(
            [capture_hidden_states(model, {"input_ids": ids}, hidden=[3], stop=True).hidden[3] for ids in texts], dim=1
        )
    torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=0)


def hooks_of(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_no_hook_stays_behind(batch):
    model = build("Bert")
    for stop in (False, True):
        capture_hidden_states(model, batch, hidden=[0, 1], qkv=[0, 2], stop=stop)
        assert hooks_of(model) == 0
    with pytest.raises(IndexError):
        capture_hidden_states(model, {"input_ids": torch.tensor([[1000]])}, hidden=[0, 3], qkv=[1])
    assert hooks_of(model) == 0


def test_a_stopped_forward_leaves_transformers_own_capture_whole(batch):
    model = build("Bert")
    inputs = model_inputs(model, batch)
    before = model(**inputs, output_hidden_states=True).hidden_states
    capture_hidden_states(model, inputs, hidden=[1], stop=True)
    after = model(**inputs, output_hidden_states=True).hidden_states
    assert len(after) == 4
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("asked", [{"hidden": [4]}, {"hidden": [-1]}, {"qkv": [3]}])
def test_layers_that_are_not_there_are_refused(asked, batch):
    with pytest.raises(CheckpointError, match="the model has"):
        capture_hidden_states(build("Bert"), batch, **asked)


def test_an_unknown_attention_is_refused(batch):
    model = build("Bert")
    del model.bert.encoder.layer[0].attention
    with pytest.raises(CheckpointError, match="no known family"):
        capture_hidden_states(model, batch, qkv=[0])


def test_checkpointed_layers_give_the_same_gradients(batch):
    """Gradient checkpointing runs a layer twice; the second run must find no hook and change nothing."""
    plain = build("Bert").train()
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain.config.attention_probs_dropout_prob = 0.0
    saving = copy.deepcopy(plain)
    saving.activation_checkpointing_enable()
    grads = []
    for model in (plain, saving):
        tapped = capture_hidden_states(model, batch, hidden=[1, 3], qkv=[2])
        (sum(state.square().sum() for state in tapped.hidden.values()) + tapped.qkv[2][0].sum()).backward()
        grads.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert set(grads[0]) == set(grads[1])
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


def test_a_tap_inside_a_wrapped_modules_forward_trains_in_parallel(batch, tmp_path):
    """DistributedDataParallel wraps the module that taps, so a stop never crosses it, and gradients are reduced."""

    class Task(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, inputs):
            return capture_hidden_states(self.model, inputs, hidden=[2], stop=True).hidden[2].square().sum()

    alone, shared = build("Bert"), build("Bert")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(Task(shared), find_unused_parameters=True)
        for _ in range(2):
            alone.zero_grad()
            wrapped.zero_grad()
            Task(alone)(batch).backward()
            wrapped(batch).backward()
    finally:
        torch.distributed.destroy_process_group()
    expected = alone.bert.encoder.layer[1].output.dense.weight.grad
    torch.testing.assert_close(shared.bert.encoder.layer[1].output.dense.weight.grad, expected)
