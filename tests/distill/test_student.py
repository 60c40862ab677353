"""Students: the right layers, the right weights, and nothing else changed."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from potstill.distill import create_student
from potstill.distill.student import choose_layers
from potstill.errors import CheckpointError

SIZES = {
    "vocab_size": 90,
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 3,
}


def bert(**changes):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES | changes)).eval()
    # Fresh layers are near the identity; larger weights make every one of them matter.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


@pytest.fixture
def ids():
    return torch.randint(1, 90, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("total", "layers", "kept"),
    [
        (6, 3, [0, 2, 4]),
        (12, 6, [0, 2, 4, 6, 8, 10]),
        (12, 4, [0, 3, 6, 9]),
        (24, 8, [0, 3, 6, 9, 12, 15, 18, 21]),
        (6, None, [0, 2, 4]),
        (5, 5, [0, 1, 2, 3, 4]),
        (1, None, [0]),
        (12, [0, 2, 4, 7, 9, 11], [0, 2, 4, 7, 9, 11]),
    ],
)
def test_layers_are_spread_from_the_first_or_taken_as_listed(total, layers, kept):
    assert choose_layers(total, layers) == kept


@pytest.mark.parametrize(("layers", "said"), [(7, "1 to 6"), (0, "1 to 6"), ([0, 6], "layers 0 to 5"), ([], "layers")])
def test_layers_that_the_teacher_lacks_are_refused(layers, said):
    with pytest.raises(CheckpointError, match=said):
        choose_layers(6, layers)


def test_a_student_with_all_layers_is_the_teacher(ids):
    teacher = bert()
    student = create_student(teacher, layers=6)
    with torch.inference_mode():
        assert torch.equal(student(ids).logits, teacher(ids).logits)


def test_a_student_keeps_exactly_the_layers_asked_for():
    teacher = bert()
    student = create_student(teacher, layers=[1, 4])
    ours, theirs = student.bert.encoder.layer, teacher.bert.encoder.layer
    assert len(ours) == 2
    for new, old in ((0, 1), (1, 4)):
        for name, value in ours[new].state_dict().items():
            assert torch.equal(value, theirs[old].state_dict()[name]), name


def test_a_student_shares_no_memory_with_its_teacher():
    teacher = bert()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = create_student(teacher, layers=2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("config", "model"),
    [(RobertaConfig, RobertaForSequenceClassification), (ElectraConfig, ElectraForSequenceClassification)],
)
def test_other_families_are_cut_the_same_way(config, model, ids):
    torch.manual_seed(0)
    teacher = model(config(**SIZES, embedding_size=16, max_position_embeddings=64)).eval()
    student = create_student(teacher, layers=[0, 5])
    assert student.config.num_hidden_layers == 2
    assert torch.equal(
        student.base_model.encoder.layer[1].output.dense.weight, teacher.base_model.encoder.layer[5].output.dense.weight
    )
    assert torch.isfinite(student(ids).logits).all()


def test_distilbert_with_all_layers_has_the_teachers_hidden_states_on_single_texts(ids):
    """DistilBERT has no token types: folding type 0 into the positions must change nothing for single texts."""
    teacher = bert()
    student = create_student(teacher, layers=6, family="distilbert")
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.inference_mode():
        ours = student.distilbert(ids, attention_mask=mask).last_hidden_state
        theirs = teacher.bert(ids, attention_mask=mask).last_hidden_state
    # Measured 7e-7: the two implementations add in another order.
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=5e-6, rtol=0)


def test_distilbert_copies_the_head_and_the_labels():
    teacher = bert(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    student = create_student(teacher, layers=2, family="distilbert")
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)
    assert torch.equal(student.pre_classifier.weight, teacher.bert.pooler.dense.weight)
    assert student.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_distilbert_from_another_family_is_refused():
    teacher = RobertaForSequenceClassification(RobertaConfig(**SIZES, max_position_embeddings=64))
    with pytest.raises(CheckpointError, match=r"student\.family=same"):
        create_student(teacher, layers=2, family="distilbert")


def test_distilbert_from_a_teacher_with_another_epsilon_is_refused():
    with pytest.raises(CheckpointError, match="epsilon"):
        create_student(bert(layer_norm_eps=1e-5), layers=2, family="distilbert")
