"""MiniLMv2's relations against a computation with loops, and the properties they promise."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from potstill.distill.methods import minilmv2
from potstill.distill.methods.minilmv2 import MiniLMv2, relation_loss_sum
from potstill.errors import CheckpointError

# float64: what two orders of summation differ by, with room.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
# float32 through two whole models: measured 2e-6.
MODEL_TOLERANCE = 2e-5


def by_hand(student, teacher, heads, texts):
    """The definition, one pair of tokens at a time."""
    total = 0.0
    rows, length, _ = student.shape
    for row in range(rows):
        for head in range(heads):
            parts = []
            for states in (student, teacher):
                width = states.shape[2] // heads
                parts.append(states[row, :, head * width : (head + 1) * width])
            for query in range(length):
                seen = [key for key in range(length) if texts[row, key] == texts[row, query] != 0]
                shares = []
                for part in parts:
                    weights = [math.exp(part[query] @ part[key] / math.sqrt(part.shape[1])) for key in seen]
                    shares.append([weight / sum(weights) for weight in weights])
                total += sum(p * math.log(p / q) for q, p in zip(*shares, strict=True))
    return total / heads


def naive(student, teacher, heads, texts):
    """The same in torch, with gradients."""
    scores = []
    for states in (student, teacher):
        split = states.unflatten(-1, (heads, -1)).transpose(1, 2)
        apart = (texts[:, None, :, None] != texts[:, None, None, :]) | (texts == 0)[:, None, None, :]
        scores.append((split @ split.mT / math.sqrt(split.shape[-1])).masked_fill(apart, -1e30))
    own, other = (F.log_softmax(each, -1) for each in scores)
    return (F.kl_div(own, other, reduction="none", log_target=True).sum(-1) * (texts != 0)[:, None]).sum() / heads


def states(rows=2, length=7, *, width, seed):
    return torch.randn(rows, length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MASKS = {
    "whole": torch.ones(2, 7, dtype=torch.long),
    "padded": torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]]),
    "padded left": torch.tensor([[0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]]),
    "packed": torch.tensor([[1, 1, 1, 2, 2, 3, 0], [1, 2, 2, 2, 2, 2, 2]]),
    "with a hole": torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]]),
}


@pytest.mark.parametrize("texts", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize(("heads", "width", "teacher_width"), [(3, 6, 12), (4, 12, 8), (1, 5, 5)])
def test_loss_equals_a_computation_with_loops(texts, heads, width, teacher_width):
    student, teacher = states(width=width, seed=1), states(width=teacher_width, seed=2)
    expected = by_hand(student.numpy(), teacher.numpy(), heads, texts.numpy())
    np.testing.assert_allclose(relation_loss_sum(student, teacher, heads, texts).item(), expected, rtol=1e-9)


@pytest.mark.parametrize("size", [1.0, 8.0], ids=["symmetric", "shifted by the highest"])
@pytest.mark.parametrize("texts", MASKS.values(), ids=MASKS.keys())
def test_gradient_equals_that_of_autograd(texts, size, monkeypatch):
    monkeypatch.setattr(minilmv2, "_CPU_BLOCK_BYTES", 8 * 7 * 7 * 2)  # two heads at a time
    student, teacher = states(width=6, seed=3).mul_(size).requires_grad_(), states(width=12, seed=4)
    loss = relation_loss_sum(student, teacher, 3, texts)
    (gradient,) = torch.autograd.grad(2.5 * loss, student)
    reference = naive(student, teacher, 3, texts)
    torch.testing.assert_close(loss, reference, **CLOSE)
    torch.testing.assert_close(gradient, 2.5 * torch.autograd.grad(reference, student)[0], **CLOSE)


@pytest.mark.parametrize("texts", MASKS.values(), ids=MASKS.keys())
def test_the_way_of_a_gpu_gives_the_same(texts, monkeypatch):
    """It masks whole rows where the CPU cuts them to their texts."""
    student, teacher = states(width=6, seed=5).requires_grad_(), states(width=12, seed=6)
    wanted = relation_loss_sum(student, teacher, 3, texts)
    monkeypatch.setattr(minilmv2, "_groups", minilmv2._whole_rows)
    found = relation_loss_sum(student, teacher, 3, texts)
    torch.testing.assert_close(found, wanted, **CLOSE)
    torch.testing.assert_close(torch.autograd.grad(found, student), torch.autograd.grad(wanted, student), **CLOSE)


def test_gradcheck():
    student, teacher = states(1, 4, width=4, seed=7).requires_grad_(), states(1, 4, width=6, seed=8)
    texts = torch.tensor([[1, 1, 1, 0]])
    assert torch.autograd.gradcheck(lambda x: relation_loss_sum(x, teacher, 2, texts), student)


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_equal_states_have_no_loss_and_no_gradient(size):
    student = states(width=6, seed=9).mul_(size).requires_grad_()
    loss = relation_loss_sum(student, student.detach(), 3, MASKS["padded"])
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(loss, torch.zeros((), dtype=torch.float64), atol=1e-8, rtol=0)
    assert gradient.abs().max() < 1e-8


def test_huge_scores_stay_numbers_in_float32():
    student = (states(width=6, seed=10) * 300).float().requires_grad_()
    loss = relation_loss_sum(student, states(width=6, seed=11).float() * 300, 3, MASKS["packed"])
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_padding_changes_nothing_whatever_it_holds():
    student, teacher, texts = states(width=6, seed=12), states(width=12, seed=13), MASKS["padded"]
    before = relation_loss_sum(student, teacher, 3, texts)
    student[texts == 0], teacher[texts == 0] = 1e6, torch.nan
    assert relation_loss_sum(student, teacher, 3, texts).item() == before.item()


def test_order_of_the_batch_changes_nothing_and_its_sum_is_that_of_its_rows():
    student, teacher, texts = states(width=6, seed=14), states(width=12, seed=15), MASKS["padded"]
    whole = relation_loss_sum(student, teacher, 3, texts)
    torch.testing.assert_close(relation_loss_sum(student.flip(0), teacher.flip(0), 3, texts.flip(0)), whole, **CLOSE)
    rows = [relation_loss_sum(student[[row]], teacher[[row]], 3, texts[[row]]) for row in (0, 1)]
    torch.testing.assert_close(sum(rows), whole, **CLOSE)


def test_widths_that_cannot_be_split_are_refused_with_a_count_that_fits():
    with pytest.raises(CheckpointError, match=r"student's width 32 .* 48 relation heads; 16 is the most"):
        MiniLMv2(teacher_layer=-1, student_width=32, teacher_width=48)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    teacher = (
        BertModel(
            BertConfig(
                vocab_size=50,
                hidden_size=24,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=32,
                max_position_embeddings=32,
            )
        )
        .eval()
        .requires_grad_(False)
    )
    student = DistilBertModel(
        DistilBertConfig(vocab_size=50, dim=12, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=32)
    ).eval()
    return student, teacher


def batch_of(rows):
    length = max(map(len, rows))
    padded = [row + [0] * (length - len(row)) for row in rows]
    return {
        "input_ids": torch.tensor(padded),
        "attention_mask": torch.tensor([[int(token > 0) for token in row] for row in padded]),
        "token_type_ids": torch.tensor([[int(place > 2) for place in range(length)] for _ in padded]),
    }


def test_objective_compares_the_layer_it_was_told(pair):
    student, teacher = pair
    objective = MiniLMv2(teacher_layer=1, student_width=12, teacher_width=24, heads=6, relation_weights=(1, 0, 0.5))
    batch = batch_of([[5, 6, 7, 8, 9, 10], [11, 12, 13]])
    assert objective.count(batch) == {"qq": 9, "kk": 9, "vv": 9}
    weights = objective.weights(0.3)
    assert weights == {"qq": 1, "kk": 0, "vv": 0.5}
    loss, sums = objective(student, teacher, batch, weights)
    assert sums.keys() == {"qq", "vv"}
    layer = teacher.encoder.layer[1].attention.self
    inputs = teacher(**batch, output_hidden_states=True).hidden_states[1]
    ours = student(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states[1]
    attention = student.transformer.layer[1].attention
    expected = naive(attention.q_lin(ours), layer.query(inputs), 6, batch["attention_mask"])
    expected += 0.5 * naive(attention.v_lin(ours), layer.value(inputs), 6, batch["attention_mask"])
    torch.testing.assert_close(loss, expected, rtol=MODEL_TOLERANCE, atol=MODEL_TOLERANCE)


def test_what_follows_the_last_projections_gets_no_gradient_and_the_trainer_is_told(pair):
    student, teacher = pair
    objective = MiniLMv2(teacher_layer=-1, student_width=12, teacher_width=24, heads=6)
    loss, _ = objective(student, teacher, batch_of([[5, 6, 7]]), objective.weights(0.0))
    loss.backward()
    without = {name for name, parameter in student.named_parameters() if parameter.grad is None}
    assert objective.has_unused_parameters
    assert without
    assert all(name.startswith("transformer.layer.1.") and "q_lin" not in name for name in without)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_packed_texts_teach_what_padded_ones_do(pair):
    student, teacher = pair
    objective = MiniLMv2(teacher_layer=-1, student_width=12, teacher_width=24, heads=6)
    first, second = [5, 6, 7, 8], [9, 10, 11]
    packed = {
        "input_ids": torch.tensor([[*first, *second, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]]),
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0]]),
        "segments": torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0]]),
    }
    padded = batch_of([first, second])
    del padded["token_type_ids"]
    results = []
    for batch in (packed, padded):
        copied = copy.deepcopy(student)
        loss, _ = objective(copied, teacher, batch, objective.weights(0.0))
        loss.backward()
        results.append((loss.detach(), copied.embeddings.word_embeddings.weight.grad))
    torch.testing.assert_close(*results, rtol=MODEL_TOLERANCE, atol=MODEL_TOLERANCE)
