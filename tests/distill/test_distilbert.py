"""The triple loss, chunked against the naive computation, and the objective against whole models."""

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

from potstill.distill.methods import distilbert
from potstill.distill.methods.distilbert import IGNORED, Head, TripleLoss, vocabulary_loss
from potstill.errors import CheckpointError

# float64: what two orders of summation differ by, with room; the goal is 1e-6.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
# float32 through two whole models: measured 1e-6.
MODEL_TOLERANCE = 2e-5
# bfloat16 has 8 bits: two logits of size 3 can be 0.02 apart, and a mean over 16 of them less.
BF16_TOLERANCE = 0.03
POSITIONS, VOCABULARY = 11, 37
LABELS = torch.tensor([3, IGNORED, 36, 0, IGNORED, 7, IGNORED, IGNORED, 7, IGNORED, 1])


def head(width, *, seed, grad=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((POSITIONS, width), (VOCABULARY, width), (VOCABULARY,))
    tensors = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes)
    return Head(*(tensor.requires_grad_(grad) for tensor in tensors))


def naive(student, teacher, labels, *, temperature, kl_scale, mlm_scale):
    ours, theirs = (F.linear(each.hidden, each.weight, each.bias) for each in (student, teacher))
    softened = [F.log_softmax(logits / temperature, -1) for logits in (ours, theirs)]
    kl = F.kl_div(*softened, reduction="sum", log_target=True) * temperature**2
    mlm = F.cross_entropy(ours, labels, reduction="sum", ignore_index=IGNORED)
    return kl_scale * kl + mlm_scale * mlm, kl, mlm


@pytest.mark.parametrize("labels", [LABELS, LABELS.clamp(min=0), torch.full_like(LABELS, IGNORED)])
@pytest.mark.parametrize("chunk", [1, 4, POSITIONS, 100])
@pytest.mark.parametrize(
    ("temperature", "kl_scale", "mlm_scale"), [(2.0, 0.3, 0.7), (1.0, 1.0, 0.5), (3.0, 0.5, 0.0), (2.5, 0.5, 2.0)]
)
def test_loss_and_gradients_equal_the_naive_ones(labels, chunk, temperature, kl_scale, mlm_scale):
    scales = {"temperature": temperature, "kl_scale": kl_scale, "mlm_scale": mlm_scale}
    student, teacher = head(5, seed=1, grad=True), head(8, seed=2, grad=True)
    loss, kl, mlm = vocabulary_loss(student, teacher, labels, chunk=chunk, **scales)
    expected, expected_kl, expected_mlm = naive(student, teacher, labels, **scales)
    torch.testing.assert_close(loss, expected, **CLOSE)
    torch.testing.assert_close(kl, expected_kl.detach(), **CLOSE)
    assert not mlm_scale or mlm.item() == pytest.approx(expected_mlm.item(), rel=1e-9)
    found = torch.autograd.grad(3 * loss, student)
    torch.testing.assert_close(found, torch.autograd.grad(3 * expected, student), **CLOSE)
    assert not kl.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_masked_words_alone_need_no_teacher(temperature):
    student = head(5, seed=1, grad=True)
    loss, kl, mlm = vocabulary_loss(student, None, LABELS, temperature=temperature, mlm_scale=0.5, chunk=4)
    expected = 0.5 * F.cross_entropy(F.linear(*student), LABELS, reduction="sum", ignore_index=IGNORED)
    torch.testing.assert_close(loss, expected, **CLOSE)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student), **CLOSE)
    assert (kl.item(), 0.5 * mlm.item()) == (0, loss.item())


def test_small_blocks_change_nothing(monkeypatch):
    student, teacher = head(5, seed=1, grad=True), head(5, seed=2)
    whole = vocabulary_loss(student, teacher, LABELS, temperature=2.0)[0]
    monkeypatch.setattr(distilbert, "_BLOCK_BYTES", 2 * 4 * VOCABULARY)
    parts = vocabulary_loss(student, teacher, LABELS, temperature=2.0)[0]
    torch.testing.assert_close(parts, whole, **CLOSE)
    torch.testing.assert_close(torch.autograd.grad(parts, student), torch.autograd.grad(whole, student), **CLOSE)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradcheck(temperature):
    student, teacher = head(2, seed=3, grad=True), head(3, seed=4)

    def loss(*tensors):
        return vocabulary_loss(Head(*tensors), teacher, LABELS, temperature=temperature, mlm_scale=0.4, chunk=4)[0]

    assert torch.autograd.gradcheck(loss, tuple(student))


def test_equal_models_have_no_kl_and_no_gradient_of_it():
    student = head(5, seed=1, grad=True)
    loss, kl, _ = vocabulary_loss(student, Head(*(one.detach() for one in student)), LABELS, mlm_scale=0.0)
    assert kl.item() == pytest.approx(0, abs=1e-9)
    assert all(gradient.abs().max() < 1e-9 for gradient in torch.autograd.grad(loss, student))


def test_no_positions_give_zero():
    student, teacher = head(5, seed=1, grad=True), head(8, seed=2)
    nothing = Head(student.hidden[:0], student.weight, student.bias)
    loss, *_ = vocabulary_loss(nothing, Head(teacher.hidden[:0], *teacher[1:]), LABELS[:0], temperature=2.0)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, student.weight)[0].abs().max() == 0


def test_a_frozen_decoder_gets_no_gradient():
    student, teacher = head(5, seed=1), head(8, seed=2)
    student.hidden.requires_grad_()
    vocabulary_loss(student, teacher, LABELS)[0].backward()
    assert student.weight.grad is None
    assert student.hidden.grad is not None


def test_products_follow_autocast_and_gradients_keep_their_types():
    student, teacher = head(16, seed=1, grad=True, dtype=torch.float32), head(16, seed=2, dtype=torch.float32)
    exact = vocabulary_loss(student, teacher, LABELS, temperature=2.0)[0]
    wanted = torch.autograd.grad(exact, student)
    half_teacher = Head(*(each.bfloat16() for each in teacher))
    with torch.autocast("cpu", torch.bfloat16):
        loss = vocabulary_loss(student, half_teacher, LABELS, temperature=2.0)[0]
    found = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(exact.item(), rel=BF16_TOLERANCE)
    assert loss.item() != exact.item()
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() / other.norm() < BF16_TOLERANCE


@pytest.fixture
def pair():
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "max_position_embeddings": 32}
    teacher = BertForMaskedLM(
        BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, **sizes)
    )
    student = DistilBertForMaskedLM(DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32, **sizes))
    return student.eval(), teacher.eval().requires_grad_(False)


BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "token_type_ids": torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]),
    "masked_labels": torch.tensor([[-100, 3, -100, 4, -100], [-100, -100, 20, -100, -100]]),
    "positions": torch.tensor([1, 3, 7]),
}


def reference(student, teacher, positions, *, temperature, scales):
    """The loss as the original computes it: whole logits of both models."""
    inputs = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    ours = student(**inputs, output_hidden_states=True)
    theirs = teacher(**inputs, token_type_ids=BATCH["token_type_ids"], output_hidden_states=True)
    chosen = [F.log_softmax(each.logits.flatten(0, 1)[positions] / temperature, -1) for each in (ours, theirs)]
    real = BATCH["attention_mask"].bool()
    states = [each.hidden_states[-1][real] for each in (ours, theirs)]
    return {
        "kl": F.kl_div(*chosen, reduction="sum", log_target=True) * temperature**2,
        "mlm": F.cross_entropy(ours.logits.flatten(0, 1), BATCH["masked_labels"].flatten(), reduction="sum"),
        "cos": F.cosine_embedding_loss(*states, torch.ones(len(states[0])), reduction="sum"),
    }


@pytest.mark.parametrize("positions", [[1, 3, 7], [1, 3, 7, 0, 5]])
def test_objective_equals_the_original_with_whole_logits(pair, positions):
    objective = TripleLoss(temperature=2.0)
    batch = BATCH | {"positions": torch.tensor(positions)}
    assert objective.count(batch) == {"kl": len(positions), "mlm": 3, "cos": 8}
    scales = {"kl": 0.5, "mlm": 0.2, "cos": 0.1}
    loss, sums = objective(*pair, batch, scales)
    expected = reference(*pair, positions, temperature=2.0, scales=scales)
    for part, value in expected.items():
        assert sums[part].item() == pytest.approx(value.item(), rel=MODEL_TOLERANCE, abs=MODEL_TOLERANCE)
    names, parameters = zip(*pair[0].named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters)
    wanted = torch.autograd.grad(sum(scales[part] * expected[part] for part in scales), parameters)
    for name, one, other in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=MODEL_TOLERANCE, atol=MODEL_TOLERANCE, msg=name)


def test_padding_changes_nothing(pair):
    scales = {"kl": 0.5, "mlm": 0.2, "cos": 0.1}
    longer = {
        name: F.pad(tensor, (0, 3), value=-100 if name == "masked_labels" else 0) for name, tensor in BATCH.items()
    } | {"positions": torch.tensor([1, 3, 10])}
    before, after = (TripleLoss()(*pair, batch, scales)[0].item() for batch in (BATCH, longer))
    assert after == pytest.approx(before, rel=MODEL_TOLERANCE)


def test_the_teacher_is_not_asked_when_only_masked_words_count(pair):
    student, _ = pair
    loss, sums = TripleLoss(alpha_kl=0, alpha_cos=0)(student, None, BATCH, {"mlm": 1.0})
    assert sums.keys() == {"mlm"}
    assert loss.item() == pytest.approx(sums["mlm"].item())


def test_default_weights_are_those_of_the_released_checkpoints():
    assert TripleLoss().weights(0.5) == {"kl": 5.0, "mlm": 2.0, "cos": 1.0}


@pytest.mark.parametrize(
    ("changed", "part", "words"),
    [({"vocab_size": 51}, "kl", "vocabulary entries"), ({"dim": 8}, "cos", "hidden units")],
)
def test_pairs_that_cannot_be_compared_are_refused(pair, changed, part, words):
    sizes = {"vocab_size": 50, "dim": 16, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 32} | changed
    student = DistilBertForMaskedLM(DistilBertConfig(hidden_dim=8, **sizes))
    with pytest.raises(CheckpointError, match=words):
        TripleLoss()(student, pair[1], BATCH, {part: 1.0})
