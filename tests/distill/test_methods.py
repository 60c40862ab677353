"""What every method's loss promises, and the hand-computed values of those without a test file of their own."""

import math

import pytest
import torch
from torch.nn import functional as F

from potstill.checkpoint.model import SentenceHead, pool
from potstill.distill.batches import TEACHER_VECTORS
from potstill.distill.methods.embedding import EmbeddingDistillation, student_head
from potstill.distill.methods.mobilebert import MobileBert, attention_loss_sum, feature_loss_sum
from potstill.distill.methods.task import TaskDistillation, answer_loss_sum, label_loss_sum
from potstill.distill.methods.tinybert import (
    TinyBert,
    attention_distance_sum,
    check_layer_map,
    hidden_distance_sum,
    uniform_layer_map,
)
from potstill.errors import CheckpointError
from tests.distill.families import VOCABULARY, build

# Sums over some twenty float32 terms, of which the largest seen difference was 3e-6.
SAME = 2e-5
WEIGHTS = {"emb": 1.0, "hid": 1.0, "att": 1.0, "pred": 1.0}
SETTINGS = {"temperature": 2.0, "alpha_kl": 1.0, "alpha_ce": 1.0, "alpha_cos": 1.0}


class Output:
    def __init__(self, **values):
        self.__dict__.update(values)


def rows(seed=0):
    """Four texts of 3 to 9 tokens with every kind of label, padded to 9."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([3, 9, 5, 7])
    mask = (torch.arange(9) < lengths[:, None]).long()
    ids = torch.randint(3, VOCABULARY, (4, 9), generator=generator) * mask
    tags = torch.randint(0, 2, (4, 9), generator=generator).where(mask.bool(), -100)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
        "single": torch.tensor([0, 1, 1, 0]),
        "tags": tags,
        "start_positions": torch.tensor([1, 4, 0, 3]),
        "end_positions": torch.tensor([2, 4, 0, 6]),
        TEACHER_VECTORS: torch.randn(4, 16, generator=generator),
    }


def part_of(batch, chosen):
    """Return some rows, cut to their own longest."""
    part = {name: value[chosen] for name, value in batch.items()}
    longest = int(part["attention_mask"].sum(1).max())
    return {
        name: value[:, :longest] if value.dim() == 2 and name != TEACHER_VECTORS else value
        for name, value in part.items()
    }


def tiny_bert(student, teacher, problem=None, share=1.0):
    layers = student.config.num_hidden_layers
    return TinyBert(
        student,
        teacher,
        layer_map=uniform_layer_map(layers, teacher.config.num_hidden_layers),
        weights=WEIGHTS,
        problem=problem,
        intermediate_share=share,
        temperature=1.0,
    )


def cases():
    sequence, tokens, answers, base = (
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
        "Model",
    )
    yield "task", sequence, "single", lambda s, t: TaskDistillation("single_label_classification", **SETTINGS)
    yield "task tokens", tokens, "tags", lambda s, t: TaskDistillation("token-classification", **SETTINGS)
    yield "task answers", answers, "single", lambda s, t: TaskDistillation("question-answering", **SETTINGS)
    # A temperature below 1 makes the numbers at padding larger: they must stay finite.
    cold = SETTINGS | {"temperature": 0.1}
    yield "task answers, cold", answers, "single", lambda s, t: TaskDistillation("question-answering", **cold)
    yield "tinybert general", "ForMaskedLM", "single", tiny_bert
    yield "tinybert answers", sequence, "single", lambda s, t: tiny_bert(s, t, "single_label_classification", 0.0)
    yield (
        "embedding",
        base,
        "single",
        lambda s, t: EmbeddingDistillation(SentenceHead(["mean"]), alpha_cos=1.0, alpha_mse=1.0),
    )


@pytest.mark.parametrize(("head", "labels", "make"), [pytest.param(*case[1:], id=case[0]) for case in cases()])
def test_sums_add_up_over_any_split_so_padding_order_and_batch_mates_change_nothing(head, labels, make):
    student, teacher = build("Bert", head, num_hidden_layers=2), build("Bert", head)
    objective = make(student, teacher)
    whole = rows() | {"labels": rows()[labels]}
    scales = {name: 1.0 for name, weight in objective.weights(0.5).items() if weight > 0}

    def sums(chosen):
        batch = part_of(whole, chosen)
        counts = objective.count(batch)
        _, parts = objective(student, teacher, batch, scales)
        return {name: parts[name].item() for name in scales}, counts

    together, counted = sums([0, 1, 2, 3])
    apart = [sums(chosen) for chosen in ([2, 0], [3], [1])]
    for name in scales:
        assert sum(part[name] for part, _ in apart) == pytest.approx(together[name], rel=SAME), name
        assert sum(count[name] for _, count in apart) == counted[name] > 0
    assert sum(together.values()) > 0


@pytest.mark.parametrize(("head", "labels", "make"), [pytest.param(*case[1:], id=case[0]) for case in cases()])
def test_a_student_that_is_the_teacher_has_nothing_to_learn_from_it(head, labels, make):
    teacher, student = build("Bert", head), build("Bert", head)
    student.load_state_dict(teacher.state_dict())
    batch = rows() | {"labels": rows()[labels]}
    objective = make(student, teacher)
    if isinstance(objective, EmbeddingDistillation):
        states = teacher(**{name: batch[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
        batch[TEACHER_VECTORS] = pool(states, batch["attention_mask"], "mean").detach()
    scales = {name: 1.0 for name, weight in objective.weights(0.5).items() if weight > 0 and name != "ce"}
    loss, _ = objective(student, teacher, batch, scales)
    assert loss.item() == pytest.approx(0, abs=SAME)


def test_a_part_without_a_scale_is_not_computed_and_the_teacher_stays_idle():
    student = build("Bert", "ForSequenceClassification")
    objective = TaskDistillation("single_label_classification", **SETTINGS)
    batch = rows() | {"labels": rows()["single"]}
    loss, parts = objective(student, None, batch, {"ce": 0.25})
    assert set(parts) == {"ce"}
    logits = student(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
    by_torch = F.cross_entropy(logits, batch["labels"], reduction="sum")
    assert loss.item() == pytest.approx(0.25 * by_torch.item(), rel=SAME)


class TestAnswers:
    """Labels and teacher's answers of every kind of problem."""

    def test_several_labels_are_a_yes_or_no_each(self):
        logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
        value = label_loss_sum(Output(logits=logits), {"labels": labels}, "multi_label_classification")
        assert value.item() == pytest.approx((math.log(2) + math.log(1 + math.exp(2))) / 2, rel=1e-6)

    def test_the_teachers_several_labels_are_compared_one_by_one(self):
        ours, theirs = Output(logits=torch.tensor([[0.0]])), Output(logits=torch.tensor([[2.0]]))
        p = 1 / (1 + math.exp(-1))  # softened by T = 2
        by_hand = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
        value = answer_loss_sum(ours, theirs, {}, "multi_label_classification", 2.0)
        assert value.item() == pytest.approx(by_hand, rel=1e-5)

    def test_regression_is_squared_error_against_label_and_teacher(self):
        ours, theirs = Output(logits=torch.tensor([[1.0], [2.0]])), Output(logits=torch.tensor([[1.5], [0.0]]))
        batch = {"labels": torch.tensor([3.0, 2.0])}
        assert label_loss_sum(ours, batch, "regression").item() == pytest.approx(4.0)
        assert answer_loss_sum(ours, theirs, batch, "regression", 5.0).item() == pytest.approx(0.25 + 4.0)

    def test_only_the_first_piece_of_a_word_counts(self):
        logits = torch.tensor([[[9.0, 0.0], [0.0, 0.0], [0.0, 9.0]]])
        batch = {"labels": torch.tensor([[-100, 1, -100]])}
        assert label_loss_sum(Output(logits=logits), batch, "token-classification").item() == pytest.approx(math.log(2))
        other = Output(logits=logits * torch.tensor([[[-1.0], [1.0], [-1.0]]]))
        same = answer_loss_sum(Output(logits=logits), other, batch, "token-classification", 1.0)
        assert same.item() == pytest.approx(0, abs=1e-6)

    def test_padding_cannot_be_an_answer(self):
        mask = torch.tensor([[1, 1, 0]])
        batch = {"attention_mask": mask, "start_positions": torch.tensor([0]), "end_positions": torch.tensor([1])}
        flat = torch.tensor([[0.0, 0.0, 50.0]])
        value = label_loss_sum(Output(start_logits=flat, end_logits=flat), batch, "question-answering")
        assert value.item() == pytest.approx(math.log(2), rel=1e-6)


class TestTinyBert:
    def test_layers_are_spread_as_in_the_paper(self):
        assert uniform_layer_map(4, 12) == [3, 6, 9, 12]
        assert uniform_layer_map(6, 12) == [2, 4, 6, 8, 10, 12]

    @pytest.mark.parametrize("layer_map", [[1, 2, 3], [0, 3], [3, 1], [2, 4]])
    def test_a_map_that_does_not_fit_is_refused(self, layer_map):
        with pytest.raises(CheckpointError, match="layers 1 to 3"):
            check_layer_map(layer_map, 2, 3)

    def test_distances_by_hand(self):
        ours, theirs = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]]), torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
        mask = torch.tensor([[1, 0]])
        assert hidden_distance_sum(ours, theirs, mask).item() == pytest.approx((1 + 4) / 2)
        scores = torch.tensor([[[[1.0, 7.0], [7.0, 7.0]], [[3.0, 7.0], [7.0, 7.0]]]])
        value = attention_distance_sum(scores, torch.zeros_like(scores), mask)
        assert value.item() == pytest.approx((1 + 9) / 2)

    def test_states_come_first_and_answers_afterwards(self):
        student, teacher = (build("Bert", "ForSequenceClassification") for _ in range(2))
        objective = tiny_bert(student, teacher, "single_label_classification", 0.75)
        assert objective.weights(0.74) == {"emb": 1.0, "hid": 1.0, "att": 1.0, "pred": 0.0}
        assert objective.weights(0.75) == {"emb": 0.0, "hid": 0.0, "att": 0.0, "pred": 1.0}

    def test_a_narrower_student_learns_through_one_projection_for_all_layers(self):
        student = build("Bert", "ForMaskedLM", num_hidden_layers=2, hidden_size=8)
        objective = tiny_bert(student, build("Bert"))
        assert objective.projection.weight.shape == (16, 8)
        loss, _ = objective(student, build("Bert"), rows(), {"hid": 1.0, "emb": 1.0})
        loss.backward()
        assert objective.projection.weight.grad.abs().sum() > 0

    def test_other_head_counts_are_refused_unless_attention_is_left_out(self):
        student = build("Bert", num_attention_heads=4)
        with pytest.raises(CheckpointError, match="4 heads, the teacher 2"):
            tiny_bert(student, build("Bert"))


class TestMobileBert:
    def pair(self):
        student = build("MobileBert", num_hidden_layers=3, intra_bottleneck_size=8, hidden_size=16)
        return student, build("Bert")

    def objective(self, student, teacher, share=0.6):
        return MobileBert(
            student,
            teacher,
            layer_map=[1, 2, 3],
            weights={"feat": 1.0, "att": 1.0},
            words=Words(),
            progressive_share=share,
        )

    def test_layers_are_due_one_after_the_other_and_words_at_the_end(self):
        objective = self.objective(*self.pair())
        due = []
        for share in (0.0, 0.19, 0.2, 0.4, 0.59):
            assert objective.weights(share) == {"feat": 1.0, "att": 1.0, "kl": 0.0, "mlm": 0.0}
            due.append(objective.due_layer())
        assert due == [0, 0, 1, 2, 2]
        assert objective.weights(0.6) == {"feat": 0.0, "att": 0.0, "kl": 0.5, "mlm": 0.5}

    def test_what_lies_below_the_due_layer_rests(self):
        student, teacher = self.pair()
        objective = self.objective(student, teacher)
        objective.weights(0.25)
        loss, _ = objective(student, teacher, rows(), {"feat": 1.0, "att": 1.0})
        loss.backward()
        layers = student.mobilebert.encoder.layer
        moved = [any(weight.grad is not None for weight in layer.parameters()) for layer in layers]
        assert moved == [False, True, False]
        assert student.mobilebert.embeddings.word_embeddings.weight.grad is None

    def test_feature_maps_of_other_scale_differ_only_in_their_statistics(self):
        ours, mask = torch.randn(1, 3, 32), torch.tensor([[1, 1, 0]])
        shifted = feature_loss_sum(ours, ours + 2.0, mask).item()
        assert shifted == pytest.approx(2 * 50 * 4, rel=1e-3)
        assert feature_loss_sum(ours, ours, mask).item() == 0

    def test_attention_is_torchs_kl_without_padding(self):
        generator = torch.Generator().manual_seed(0)
        ours, theirs = (torch.randn(1, 2, 3, 3, generator=generator) for _ in range(2))
        mask = torch.tensor([[1, 1, 0]])
        inner = [scores[:, :, :2, :2].log_softmax(-1) for scores in (ours, theirs)]
        by_torch = F.kl_div(*inner, log_target=True, reduction="sum") / 2
        assert attention_loss_sum(ours, theirs, mask).item() == pytest.approx(by_torch.item(), rel=1e-5)

    def test_another_width_is_refused(self):
        student, _ = self.pair()
        with pytest.raises(CheckpointError, match="hidden units"):
            self.objective(student, build("Bert", hidden_size=8))


class Words(torch.nn.Module):
    """Stands for the triple loss, which has its own tests."""

    def weights(self, share):
        return {"kl": 0.5, "mlm": 0.5, "cos": 0.0}

    def count(self, batch):
        return {"kl": 1, "mlm": 1, "cos": 1}


class TestEmbedding:
    def test_pooling_leaves_padding_out(self):
        states = torch.tensor([[[2.0], [4.0], [90.0]]])
        mask = torch.tensor([[1, 1, 0]])
        assert pool(states, mask, "mean").item() == 3.0
        assert pool(states, mask, "cls").item() == 2.0

    def test_a_projection_joins_different_widths_and_is_part_of_the_student(self):
        student = build("Bert", "Model", hidden_size=8)
        head = student_head(SentenceHead(["cls"]), student=None, pooling=None, student_width=8, teacher_width=16)
        objective = EmbeddingDistillation(head, alpha_cos=1.0, alpha_mse=0.0)
        loss, parts = objective(student, None, rows(), {"cos": 0.5})
        assert loss.item() == pytest.approx(0.5 * parts["cos"].item())
        (name, weight), *others = objective.as_used(student).head.named_parameters()
        assert (name, weight.shape, others) == ("layers.0.linear.weight", (16, 8), [])
