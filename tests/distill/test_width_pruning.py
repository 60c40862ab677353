"""Narrower students: the right sizes, the strongest units, and the teacher itself where what is dropped is idle."""

import pytest
import torch

from potstill.distill import create_student
from potstill.errors import CheckpointError
from tests.distill.families import FAMILIES, PAIRS, batch_for, build

# Sums over twice as many terms, half of them zero. Measured 2e-6.
TOLERANCE = 1e-5
WIDE = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
NARROWABLE = [family for family in FAMILIES if family != "MobileBert"]


def wide(family, head, **changes):
    sizes = WIDE if family != "DistilBert" else {"dim": 32, "n_heads": 4, "hidden_dim": 48}
    return build(family, head, **sizes | changes)


@pytest.mark.parametrize(("family", "head"), [pair for pair in PAIRS if pair[0] != "MobileBert"])
def test_every_family_and_head_gets_narrower_and_comes_back_from_disk(family, head, tmp_path):
    teacher = wide(family, head)
    student = create_student(teacher, layers=[0, 2], hidden_size=16)
    config = student.config
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (16, 2, 2)
    assert (config.hidden_dim if family == "DistilBert" else config.intermediate_size) == 24
    inputs = batch_for(teacher)
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        ours = student(**inputs)
        assert torch.isfinite(ours[0]).all()
        assert torch.equal(loaded(**inputs)[0], ours[0])
    if head == "ForMaskedLM":
        assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


@pytest.mark.parametrize("family", NARROWABLE)
def test_a_student_as_wide_as_its_teacher_is_its_teacher(family):
    teacher = wide(family, "ForMaskedLM")
    student = create_student(teacher, layers=3, hidden_size=32, num_heads=4, intermediate_size=48)
    inputs = batch_for(teacher)
    with torch.inference_mode():
        assert torch.equal(student(**inputs).logits, teacher(**inputs).logits)


def twin_stream(small, large, order):
    """Fill `large` so that it computes what `small` does: its units are small's, shuffled, each with an idle twin.

    A twin has its original's value, so that every layer norm sees the same mean and variance, and nothing reads it.
    Half the heads and feed-forward units write nothing.
    """
    ours = large.state_dict()
    for key, value in small.state_dict().items():
        target = ours[key]
        rows = value.shape[0] != target.shape[0]
        columns = value.dim() == 2 and value.shape[1] != target.shape[1]
        if rows:
            inner = any(part in key for part in ("query", "key", "value", "intermediate"))
            value = torch.cat([value, torch.randn_like(value)]) if inner else torch.cat([value, value])
        if columns:
            embeddings = "embeddings" in key
            value = torch.cat([value, value if embeddings else torch.zeros_like(value)], dim=1)
        inner = any(part in key for part in ("query", "key", "value", "intermediate"))
        if rows and not inner:
            value = value[order]
        if columns and ("attention.output" not in key and ".output.dense" not in key):
            value = value[:, order]
        target.copy_(value)


def test_a_teacher_whose_other_half_is_idle_is_kept_exactly():
    small = build("Bert", "ForSequenceClassification", num_labels=3)
    large = build("Bert", "ForSequenceClassification", num_labels=3, **WIDE)
    twin_stream(small, large, torch.randperm(32, generator=torch.Generator().manual_seed(5)))
    student = create_student(large, layers=3, hidden_size=16)
    inputs = batch_for(large)
    with torch.inference_mode():
        expected = small(**inputs).logits
        torch.testing.assert_close(large(**inputs).logits, expected, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(student(**inputs).logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "ModernBert"])
def test_feed_forward_units_that_do_nothing_go_first(family):
    teacher = wide(family, "ForMaskedLM")
    idle = torch.randperm(48, generator=torch.Generator().manual_seed(2))[:24]
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if name.endswith(("ffn.lin2.weight", "mlp.Wo.weight")) or (
                name.endswith("output.dense.weight") and "attention" not in name
            ):
                parameter[:, idle] = 0
    student = create_student(teacher, layers=3, intermediate_size=24)
    inputs = batch_for(teacher)
    with torch.inference_mode():
        torch.testing.assert_close(student(**inputs).logits, teacher(**inputs).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("family", "names"), [("Bert", ("query", "key")), ("DistilBert", ("q_lin", "k_lin"))])
def test_narrower_heads_attend_as_before_where_nothing_is_lost(family, names):
    """Query-key units at zero can go; the scores must not grow by the smaller root that they are divided by."""
    teacher = wide(family, "Model")
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if any(part in name for part in names):
                parameter.view(4, 8, -1)[:, 4:] = 0
    student = create_student(teacher, layers=3, hidden_size=16, num_heads=4)
    queries, keys = (
        [value for name, value in student.named_parameters() if f"{part}.weight" in name] for part in names
    )
    theirs = [value for name, value in teacher.named_parameters() if f"{names[0]}.weight" in name]
    assert student.config.num_attention_heads == 4
    for query, key, wide_query in zip(queries, keys, theirs, strict=True):
        assert query.shape == key.shape == (16, 16)
        kept = wide_query.view(4, 8, 32)[:, :4].reshape(16, 32) * 0.5**0.5
        # Every row of the student is one of the teacher's, over the units of the stream that stayed.
        columns = [torch.isclose(kept[0], value).nonzero()[0].item() for value in query[0]]
        torch.testing.assert_close(query, kept[:, columns])


def test_the_strongest_heads_stay_whole():
    teacher = wide("Bert", "Model")
    with torch.no_grad():
        for layer, head in ((0, 1), (0, 3), (1, 0), (1, 2), (2, 2), (2, 3)):
            teacher.encoder.layer[layer].attention.output.dense.weight[:, 8 * head : 8 * head + 8] *= 5
    student = create_student(teacher, layers=3, hidden_size=16)
    for layer, heads in enumerate(([1, 3], [0, 2], [2, 3])):
        bias = teacher.encoder.layer[layer].attention.self.query.bias.view(4, 8)
        assert torch.equal(student.encoder.layer[layer].attention.self.query.bias.view(2, 8), bias[heads])


def test_the_same_units_of_the_stream_stay_everywhere():
    teacher = wide("Bert", "ForMaskedLM")
    strong = torch.randperm(32, generator=torch.Generator().manual_seed(3))[:16].sort().values
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if "LayerNorm.weight" in name:
                parameter.fill_(0.1)
                parameter[strong] = 2.0
    student = create_student(teacher, layers=3, hidden_size=16)
    for name, value in teacher.state_dict().items():
        if "embeddings" in name and value.dim() == 2:
            assert torch.equal(student.state_dict()[name], value[:, strong]), name
        if "LayerNorm" in name or name.endswith("output.dense.bias"):
            assert torch.equal(student.state_dict()[name], value[strong]), name


def test_electra_keeps_the_width_of_its_embeddings_unless_it_is_the_streams():
    own = create_student(wide("Electra", "ForMaskedLM"), hidden_size=16)
    assert own.config.embedding_size == 8
    assert own.electra.embeddings_project.weight.shape == (16, 8)
    shared = create_student(wide("Electra", "ForMaskedLM", embedding_size=32), hidden_size=16)
    assert shared.config.embedding_size == 16
    assert not hasattr(shared.electra, "embeddings_project")


def test_a_narrow_distilbert_comes_from_a_bert():
    student = create_student(wide("Bert", "ForMaskedLM"), layers=2, family="distilbert", hidden_size=16)
    assert type(student).__name__ == "DistilBertForMaskedLM"
    assert (student.config.dim, student.config.n_heads, student.config.hidden_dim) == (16, 2, 24)


@pytest.mark.parametrize(
    ("family", "asked", "said"),
    [
        ("Bert", {"hidden_size": 12}, "multiple of it, or name num_heads"),
        ("Bert", {"hidden_size": 64}, "ask for 1 to 32"),
        ("Bert", {"hidden_size": 0}, "ask for 1 to 32"),
        ("Bert", {"hidden_size": 16, "num_heads": 3}, "2 heads would keep"),
        ("Bert", {"hidden_size": 16, "num_heads": 1}, "at most the teacher's 8"),
        ("Bert", {"num_heads": 2}, "4 heads would keep"),
        ("Bert", {"intermediate_size": 49}, "ask for 1 to 48"),
        ("ModernBert", {"hidden_size": 16, "num_heads": 4}, "rotary"),
        ("Electra", {"hidden_size": 8}, "ask for another hidden_size"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(family, asked, said):
    with pytest.raises(CheckpointError, match=said):
        create_student(wide(family, "ForMaskedLM"), layers=2, **asked)


def test_a_mobilebert_is_not_narrowed():
    with pytest.raises(CheckpointError, match="fewer layers instead"):
        create_student(build("MobileBert"), hidden_size=8)
