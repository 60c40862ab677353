"""Students: the right layers, the right weights, and nothing else changed."""

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from potstill.distill import create_student
from potstill.distill.student import best_layers, candidate_layers, choose_layers
from potstill.errors import CheckpointError
from tests.distill.families import PAIRS, batch_for, build

# DistilBERT's modules add in another order than BERT's. Measured 1.4e-6 on the logits.
TOLERANCE = 1e-5

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


@pytest.mark.parametrize(("family", "head"), PAIRS)
def test_every_family_is_cut_whole_with_every_head_and_comes_back_from_disk(family, head, tmp_path):
    teacher = build(family, head)
    whole = create_student(teacher, layers=3)
    student = create_student(teacher, layers=[0, 2])
    assert student.config.num_hidden_layers == 2
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).eval()
    inputs = batch_for(teacher)
    with torch.inference_mode():
        for ours, theirs in ((whole, teacher), (loaded, student)):
            assert torch.equal(ours(**inputs)[0], theirs(**inputs)[0])
    assert_tied_like(loaded, teacher)


def assert_tied_like(student, teacher):
    output = teacher.get_output_embeddings()
    if output is not None:
        assert output.weight is teacher.get_input_embeddings().weight
        assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


def test_a_large_teacher_gives_every_third_layer():
    teacher = build("Bert", "Model", num_hidden_layers=24)
    student = create_student(teacher, layers=8)
    for new, old in enumerate(range(0, 24, 3)):
        ours, theirs = (
            model.encoder.layer[number].output.dense.weight for model, number in ((student, new), (teacher, old))
        )
        assert torch.equal(ours, theirs)


def test_modernbert_keeps_which_layers_attend_globally():
    teacher = build("ModernBert", num_hidden_layers=6)
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    assert teacher.config.layer_types == kinds * 2
    student = create_student(teacher, layers=[0, 1, 2, 3])
    assert student.config.layer_types == [*kinds, "full_attention"]
    assert [layer.attention_type for layer in student.model.layers] == student.config.layer_types


@pytest.mark.parametrize("attention_bias", [True, False])
def test_modernberts_first_layer_keeps_the_scale_of_a_norm_that_it_cannot_have(attention_bias):
    """A layer that becomes the first reads normalised embeddings, so only its norm's scale and shift are missing."""
    teacher = build("ModernBert", norm_bias=True, attention_bias=attention_bias, norm_eps=1e-9)
    with torch.no_grad():  # unscaled embeddings: what a second norm would leave as they are
        teacher.model.embeddings.norm.weight.fill_(1)
        teacher.model.embeddings.norm.bias.fill_(0)
    student = create_student(teacher, layers=[1])
    inputs = batch_for(teacher)
    with torch.inference_mode():
        embedded = teacher.model.embeddings(inputs["input_ids"])
        theirs = teacher.model.layers[1].attn.Wqkv(teacher.model.layers[1].attn_norm(embedded))
        ours = student.model.layers[0].attn.Wqkv(embedded)
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def test_modernberts_layer_0_can_only_be_first():
    with pytest.raises(CheckpointError, match="only stay first"):
        create_student(build("ModernBert"), layers=[1, 0])


def test_a_layer_can_be_repeated():
    teacher = bert()
    student = create_student(teacher, layers=[2, 2])
    for layer in student.bert.encoder.layer:
        assert torch.equal(layer.output.dense.weight, teacher.bert.encoder.layer[2].output.dense.weight)


def test_distilbert_from_another_family_is_refused():
    teacher = RobertaForSequenceClassification(RobertaConfig(**SIZES, max_position_embeddings=64))
    with pytest.raises(CheckpointError, match=r"student\.family=same"):
        create_student(teacher, layers=2, family="distilbert")


def test_distilbert_from_a_teacher_with_another_epsilon_is_refused():
    with pytest.raises(CheckpointError, match="epsilon"):
        create_student(bert(layer_norm_eps=1e-5), layers=2, family="distilbert")


def test_distilbert_refuses_a_head_that_it_lacks():
    teacher = transformers.BertForNextSentencePrediction(BertConfig(**SIZES))
    with pytest.raises(CheckpointError, match="BertForNextSentencePrediction"):
        create_student(teacher, layers=2, family="distilbert")


@pytest.mark.parametrize("head", ["Model", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM"])
def test_distilbert_with_all_layers_answers_as_its_teacher_on_single_texts(head, tmp_path):
    teacher = build("Bert", head)
    student = create_student(teacher, layers=3, family="distilbert")
    assert type(student).__name__ == f"DistilBert{head}"
    inputs = batch_for(student)
    seen = inputs["attention_mask"].bool()
    with torch.inference_mode():
        ours, theirs = student(**inputs), teacher(**inputs)
        names = ("start_logits", "end_logits") if head == "ForQuestionAnswering" else (next(iter(ours)),)
        for name in names:
            torch.testing.assert_close(ours[name][seen], theirs[name][seen], atol=TOLERANCE, rtol=0)
        student.save_pretrained(tmp_path)
        loaded = type(student).from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(**inputs)[0], ours[0])
    assert_tied_like(loaded, teacher)


def test_distilbert_reads_a_pair_as_one_text():
    """Folding keeps type 0 only: a pair's other half differs from the teacher's, which the family cannot help."""
    teacher = build("Bert", "ForMaskedLM")
    student = create_student(teacher, layers=3, family="distilbert")
    inputs = batch_for(teacher) | {"token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2)}
    with torch.inference_mode():
        theirs = teacher(**inputs).logits
        ours = student(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    assert (ours - theirs)[0].abs().max() > 1e-2


def test_mobilebert_has_the_papers_proportions():
    """MobileBERT at width 512 with 4 heads: bottleneck 128, word embeddings 128, four feed-forward parts of 512."""
    teacher = build("Bert", hidden_size=512, num_attention_heads=4, num_hidden_layers=2, intermediate_size=64)
    config = create_student(teacher, layers=1, family="mobilebert").config
    published = transformers.MobileBertConfig()
    for name in (
        "hidden_size",
        "num_attention_heads",
        "intra_bottleneck_size",
        "embedding_size",
        "intermediate_size",
        "num_feedforward_networks",
        "trigram_input",
        "normalization_type",
        "hidden_act",
        "hidden_dropout_prob",
    ):
        assert getattr(config, name) == getattr(published, name), name
    assert config.num_hidden_layers == 1


@pytest.mark.parametrize(
    ("family", "head"),
    [
        (family, head)
        for family, head in PAIRS
        if family == "Bert" or (head == "ForMaskedLM" and family != "MobileBert")
    ],
)
def test_a_mobilebert_student_of_any_teacher_runs_and_comes_back_from_disk(family, head, tmp_path):
    teacher = build(family, head)
    student = create_student(teacher, family="mobilebert", seed=3)
    assert type(student).__name__ == f"MobileBert{head}"
    assert student.config.num_hidden_layers == 3
    inputs = batch_for(teacher)
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        ours, theirs = student(**inputs), teacher(**inputs)
        assert {name: ours[name].shape for name in ours if "logits" in name} == {
            name: theirs[name].shape for name in theirs if "logits" in name
        }
        assert torch.equal(loaded(**inputs)[0], ours[0])
    assert_tied_like(loaded, teacher)


def test_mobileberts_seed_decides_its_weights_and_leaves_the_global_state_alone():
    teacher = build("Bert")
    before = torch.random.get_rng_state()
    first, again, other = (create_student(teacher, family="mobilebert", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [model.mobilebert.embeddings.embedding_transformation.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_mobileberts_embeddings_are_the_teachers_in_their_strongest_directions():
    teacher = build("Bert")
    vectors = teacher.get_input_embeddings().weight.detach()
    ours = create_student(teacher, family="mobilebert").get_input_embeddings().weight.detach()
    left, strengths, _ = torch.linalg.svd(vectors, full_matrices=False)
    closest = (left[:, :4] * strengths[:4].square()) @ left[:, :4].T
    assert ours.shape == (60, 4)
    torch.testing.assert_close(ours @ ours.T, closest, atol=TOLERANCE, rtol=0)


def test_a_mobilebert_teacher_keeps_its_own_layers():
    teacher = build("MobileBert")
    student = create_student(teacher, layers=[1], family="mobilebert")
    ours, theirs = student.mobilebert.encoder.layer[0], teacher.mobilebert.encoder.layer[1]
    assert torch.equal(ours.intermediate.dense.weight, theirs.intermediate.dense.weight)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"hidden_size": 8}, "leave hidden_size out"),
        ({"num_heads": 5}, "1 to 4"),
        ({"num_heads": 0}, "1 to 4"),
        ({"intermediate_size": 0}, "at least 1"),
        ({"layers": 4}, "1 to 3"),
    ],
)
def test_a_mobilebert_that_does_not_fit_its_teacher_is_refused(asked, said):
    with pytest.raises(CheckpointError, match=said):
        create_student(build("Bert"), family="mobilebert", **asked)


def test_an_unknown_family_is_refused():
    with pytest.raises(CheckpointError, match="same, distilbert, mobilebert"):
        create_student(build("Bert"), family="albert")


def test_candidates_hold_distilberts_own_layers():
    assert candidate_layers(12, 6) == [
        [0, 2, 4, 6, 8, 10],
        [1, 3, 5, 7, 9, 11],
        [0, 2, 4, 7, 9, 11],
        [6, 7, 8, 9, 10, 11],
        [0, 1, 2, 3, 4, 5],
    ]
    assert candidate_layers(2, 1) == [[0], [1]]
    assert candidate_layers(3, 3) == [[0, 1, 2]]


def first_weight(student):
    return student.bert.encoder.layer[0].output.dense.weight


def test_the_best_layers_are_those_whose_student_scores_best():
    teacher = bert()
    wanted = teacher.bert.encoder.layer[3].output.dense.weight

    def score(student):
        return -(first_weight(student) - wanted).abs().sum().item()

    layers, scores = best_layers(teacher, 3, score)
    assert layers == [3, 4, 5]
    assert set(scores) == {(0, 2, 4), (1, 3, 5), (0, 2, 5), (3, 4, 5), (0, 1, 2)}
    assert scores[3, 4, 5] == 0 == max(scores.values())


def test_scores_that_are_no_numbers_lose_and_ties_go_to_the_first():
    answers = iter([float("nan"), 0.5, 0.5])
    layers, scores = best_layers(bert(), 1, lambda _: next(answers), candidates=[[0], [1], [2]])
    assert layers == [1]
    assert scores == {(0,): float("-inf"), (1,): 0.5, (2,): 0.5}


def test_the_best_layers_can_be_those_of_a_distilbert():
    layers, _ = best_layers(bert(), 2, lambda student: student.config.model_type == "distilbert", family="distilbert")
    assert layers == [0, 3]


@pytest.mark.parametrize("asked", [{"family": "mobilebert"}, {"candidates": []}])
def test_nothing_to_choose_from_is_refused(asked):
    with pytest.raises(CheckpointError, match=r"choose from"):
        best_layers(bert(), 2, lambda _: 0.0, **asked)
