"""The losses against hand-computed numbers, torch's own, and the properties they promise."""

import math

import pytest
import torch

from potstill.distill.methods import objective


def test_kl_of_equal_logits_is_zero():
    logits = torch.randn(5, 7, dtype=torch.float64)
    assert objective.kl_divergence_sum(logits, logits, 2.0).item() == pytest.approx(0, abs=1e-7)


def test_kl_equals_a_hand_computed_value_with_t_squared():
    # At T = 2 the teacher (2, 0) becomes (1, 0) and the student (0, 0) stays: p = sigmoid(1).
    p = 1 / (1 + math.exp(-1))
    by_hand = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    value = objective.kl_divergence_sum(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), 2.0)
    assert value.item() == pytest.approx(4 * by_hand, rel=1e-6)


@pytest.mark.parametrize("copies", [1, 3, 10])
def test_kl_per_row_does_not_grow_with_the_batch(copies):
    student, teacher = torch.randn(4, 6), torch.randn(4, 6)
    once = objective.kl_divergence_sum(student, teacher, 3.0)
    more = objective.kl_divergence_sum(student.repeat(copies, 1), teacher.repeat(copies, 1), 3.0)
    assert more.item() / copies == pytest.approx(once.item(), rel=1e-5)


def test_kl_does_not_grow_with_classes_that_nobody_believes_in():
    student, teacher = torch.randn(4, 6), torch.randn(4, 6)
    padding = torch.full((4, 1000), -1e4)
    wide = objective.kl_divergence_sum(torch.cat([student, padding], 1), torch.cat([teacher, padding], 1), 1.0)
    assert wide.item() == pytest.approx(objective.kl_divergence_sum(student, teacher, 1.0).item(), rel=1e-5)


def test_the_gradient_of_kl_keeps_its_size_when_the_temperature_grows():
    teacher, sizes = torch.tensor([[0.3, -0.2, 0.1]]), []
    for temperature in (10.0, 100.0):
        student = torch.zeros(1, 3, requires_grad=True)
        objective.kl_divergence_sum(student, teacher, temperature).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_cosine_is_zero_for_the_same_direction_one_for_right_angles_two_for_the_opposite():
    mask = torch.ones(1, 1)
    base = torch.tensor([[[1.0, 0.0]]])
    for other, expected in (([[[5.0, 0.0]]], 0.0), ([[[0.0, 3.0]]], 1.0), ([[[-2.0, 0.0]]], 2.0)):
        assert objective.hidden_cosine_sum(base, torch.tensor(other), mask).item() == pytest.approx(expected, abs=1e-6)


def test_cosine_equals_torch_cosine_embedding_loss():
    student, teacher = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    chosen = mask.bool()
    reference = torch.nn.CosineEmbeddingLoss(reduction="sum")(
        student[chosen], teacher[chosen], torch.ones(int(chosen.sum()))
    )
    assert objective.hidden_cosine_sum(student, teacher, mask).item() == pytest.approx(reference.item(), rel=1e-6)


def test_padding_counts_in_no_cosine():
    student, teacher = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    before = objective.hidden_cosine_sum(student, teacher, mask)
    student[mask == 0], teacher[mask == 0] = 99.0, -7.0
    assert objective.hidden_cosine_sum(student, teacher, mask).item() == before.item()
