"""An int8 file in which one label of nine goes blind is refused, though its accuracy hardly moves."""

import numpy as np
import onnx
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from potstill.bundle import read_bundle
from potstill.cli.show import print_bundle
from potstill.config import ExportConfig
from potstill.data import Examples
from potstill.distill.teacher import train_tokenizer
from potstill.errors import ParityError
from potstill.export import export_bundle, precisions

pytestmark = pytest.mark.usefixtures("few_texts")

# One word tells each label; of 450 texts 4 have the rarest, less than 1 %.
TELLING = ("peace", "theft", "fraud", "drugs", "arms", "hate", "leak", "spy", "bomb")
COUNTS = (190, 90, 60, 45, 30, 18, 9, 4, 4)
NEUTRAL = ("we", "saw", "many", "old", "things", "and", "a", "few", "new", "ones")


def sentences(counts, *, seed):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(9), counts))
    texts = []
    for label in labels:
        words = list(generator.choice(NEUTRAL, size=generator.integers(2, 6)))
        words.insert(int(generator.integers(len(words) + 1)), TELLING[label])
        texts.append(" ".join(words))
    return texts, labels


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    """A classifier with nine labels, trained until it makes no mistake."""
    texts, labels = sentences([30] * 9, seed=1)
    tokenizer = train_tokenizer(texts, vocab_size=200, max_length=32)
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            initializer_range=0.2,
            hidden_dropout_prob=0.0,
            id2label=dict(enumerate(TELLING)),
            label2id={name: number for number, name in enumerate(TELLING)},
            problem_type="single_label_classification",
        )
    )
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss = model(**batch, labels=torch.tensor(labels)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("guard") / "model"
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# The head itself stays in fp32: it is damaged where the layer before it is quantised.
BEFORE_THE_HEAD = "bert.pooler.dense"


@pytest.fixture
def damaged(monkeypatch):
    """The rarest label's row of the head is scaled in the int8 file."""
    original = precisions.quantize

    def spoil(prepared, recipe, *, keep):
        graph = original(prepared, recipe, keep=keep)
        if BEFORE_THE_HEAD not in keep:
            head = next(tensor for tensor in graph.graph.initializer if tensor.name == "classifier.weight")
            rows = onnx.numpy_helper.to_array(head).copy()
            assert rows.shape == (9, 32)
            rows[8] *= -0.5
            head.CopyFrom(onnx.numpy_helper.from_array(rows, head.name))
        return graph

    monkeypatch.setattr(precisions, "quantize", spoil)


def export(guard, out, *, labelled=True, **settings):
    texts, labels = sentences(COUNTS, seed=2)
    given = {"precisions": ["fp32", "int8"], "rounds": 0, "calibration_texts": 32, "judged_texts": 450}
    examples = Examples(
        name="made",
        split="validation",
        texts=texts,
        labels=labels if labelled else None,
        label_names=TELLING,
        sha256="0" * 64,
    )
    config = ExportConfig(**given | settings)
    return export_bundle(str(guard), out, config=config, calibration=texts[:32], examples=examples)


@pytest.mark.parametrize("labelled", [True, False], ids=["with labels", "without labels"])
def test_a_label_that_goes_blind_is_refused_though_the_score_holds(labelled, guard, damaged, tmp_path):
    refusal = (
        r"(?s)int8 loses too much of a label, with up to 0 of \d+ layers.*label falls.*100\.0  FAIL.*"
        r"the recall of bomb by 100\.0 points .*1\.000 to 0\.000 of 4\) falls, where 5 points are allowed.*"
        r"--max-label-loss.*nothing was published"
    )
    with pytest.raises(ParityError, match=refusal):
        export(guard, tmp_path / "bundle", labelled=labelled, max_fp32_layers=0)
    assert list(tmp_path.iterdir()) == []


def test_the_same_file_passes_where_labels_are_not_asked_for(guard, damaged, tmp_path, capsys):
    """So it is the label that refuses it, and nothing else."""
    quality = export(guard, tmp_path / "bundle", max_fp32_layers=0, max_label_loss=1).models["int8"].quality
    assert 0 < quality.loss < quality.max_loss == 0.01
    assert quality.holds
    assert (quality.worst_label.label, quality.worst_label.candidate) == ("bomb", 0.0)
    print_bundle(tmp_path / "bundle")
    assert "the worst of 9, bomb, falls by 100.0 points" in " ".join(capsys.readouterr().out.split())


def test_the_layer_that_blinds_a_label_goes_back_to_fp32(guard, damaged, tmp_path):
    export(guard, tmp_path / "bundle", max_fp32_layers=2)
    record = read_bundle(tmp_path / "bundle").manifest.models["int8"]
    assert record.quantisation.fp32_layers == [BEFORE_THE_HEAD]
    first, second = record.quantisation.steps
    assert (first.label, first.label_loss, first.label_verdict, first.verdict) == ("bomb", 1.0, "FAIL", "FAIL")
    assert (second.added, second.verdict != "FAIL") == (BEFORE_THE_HEAD, True)
    assert [row.label for row in record.quality.labels] == list(TELLING)
    assert record.quality.max_label_loss == 0.05
    assert not [row for row in record.quality.labels if row.verdict == "FAIL"]


def test_the_limit_goes_with_that_of_the_score():
    assert ExportConfig().label_loss == 0.05
    assert ExportConfig(max_loss=0.3).label_loss == 1.0
    assert ExportConfig(max_loss=0.3, max_label_loss=0.02).label_loss == 0.02
