"""What `evaluate` says of a checkpoint, task by task: scores, tables per class, and every single answer."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from potstill.distill import evaluate, evaluate_model
from potstill.distill.confusion_matrix import draw_confusion
from potstill.distill.evaluation import Reading
from potstill.errors import OutputError, UsageError


def write(folder, **splits):
    """Write one JSON-lines file per split and return the folder."""
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def save(tiny_teacher, tmp_path_factory):
    """Save the tiny encoder with another head, whose weights are random but fixed."""

    def make(kind, **head):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("model")
        model = kind.from_pretrained(tiny_teacher, ignore_mismatched_sizes=True, **head)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder)
        return folder

    return make


def test_one_pass_gives_scores_tables_and_predictions_that_agree(tiny_teacher, tiny_data):
    found = evaluate(tiny_teacher, data=tiny_data, metric="macro_f1", keep_predictions=True)
    matrix = np.array(found["confusion_matrix"])
    right = sum(row["label"] == row["prediction"] for row in found["predictions"])
    assert len(found["predictions"]) == found["num_examples"] == matrix.sum() == 80
    assert found["scores"]["accuracy"] == right / 80 == np.trace(matrix) / 80
    assert next(iter(found["scores"])) == found["metric"] == "macro_f1"
    assert [row["support"] for row in found["per_class"]] == matrix.sum(axis=1).tolist() == [40, 40]
    assert "predictions" not in evaluate(tiny_teacher, data=tiny_data, reading=Reading(limit=4))


def test_words_get_the_scores_of_their_entities(save, tmp_path):
    model = save(AutoModelForTokenClassification, id2label={0: "O", 1: "B-SEA"}, label2id={"O": 0, "B-SEA": 1})
    data = write(tmp_path, validation=[{"tokens": ["the", "wave"], "ner_tags": ["O", "B-SEA"]}] * 3)
    found = evaluate(model, data=data, task="token-classification", keep_predictions=True)
    right = found["predictions"][0]["prediction"][1] == "B-SEA"
    assert found["per_class"][0]["label"] == "SEA"
    assert found["per_class"][0]["support"] == 3
    assert found["per_class"][0]["recall"] == float(right)
    assert found["scores"]["f1"] == found["per_class"][0]["f1"]


def test_amounts_pairs_questions_and_words_are_scored(save, tmp_path):
    pair = {"sentence1": "the wave", "sentence2": "a peak"}
    data = write(tmp_path / "sts", validation=[pair | {"label": 0.5}, {**pair, "sentence2": "tide", "label": 2}])
    regressor = save(AutoModelForSequenceClassification, num_labels=1, problem_type="regression")
    amounts = evaluate(regressor, data=data, metric="mse", keep_predictions=True)
    errors = [(row["label"] - row["prediction"]) ** 2 for row in amounts["predictions"]]
    assert amounts["scores"]["mse"] == pytest.approx(np.mean(errors), abs=1e-5)
    encoder = save(AutoModel)
    similar = {
        pooling: evaluate(encoder, data=data, task="feature-extraction", pooling=pooling) for pooling in ("mean", "cls")
    }
    assert next(iter(similar["mean"]["scores"])) == "spearman"
    question = {"question": "where", "context": "the old wave", "answers": {"text": ["old"], "answer_start": [4]}}
    asked = write(tmp_path / "qa", validation=[question])
    answer = evaluate(
        save(AutoModelForQuestionAnswering), data=asked, task="question-answering", max_length=32, keep_predictions=True
    )
    assert answer["predictions"][0]["f1"] == answer["scores"]["f1"]
    text = write(tmp_path / "text", validation=[{"text": "we saw many old things and a few new ones there"}] * 9)
    words = evaluate(save(AutoModelForMaskedLM), data=text, task="fill-mask", metric="loss", max_length=32)
    assert next(iter(words["scores"])) == "loss"
    assert words["scores"]["perplexity"] == pytest.approx(np.exp(words["scores"]["loss"]))


def test_what_cannot_be_given_is_refused(tiny_teacher, tiny_data):
    with pytest.raises(UsageError, match="'pearson' does not judge"):
        evaluate(tiny_teacher, data=tiny_data, metric="pearson")
    with pytest.raises(UsageError, match="no answer per example"):
        evaluate(tiny_teacher, data=tiny_data, task="fill-mask", keep_predictions=True)


def test_scores_alone_are_those_of_the_report(tiny_teacher, tiny_data):
    from potstill.checkpoint import load_checkpoint
    from potstill.data import load_examples
    from potstill.tasks import TEXT_CLASSIFICATION

    model = load_checkpoint(str(tiny_teacher), TEXT_CLASSIFICATION)
    given = load_examples(
        str(tiny_data), split="validation", task=TEXT_CLASSIFICATION, label_names=model.label_names, limit=8
    )
    found = evaluate(tiny_teacher, data=tiny_data, reading=Reading(limit=8), max_length=32)
    assert found["scores"] == evaluate_model(model.model, model.tokenizer, given, max_length=32)


def test_the_picture_shows_every_count_and_name(tmp_path):
    names = ["sea", '$mountains & "valleys" of a length that no axis would bear$']
    draw_confusion(tmp_path / "matrix.svg", [[7, 1234], [0, 3]], names)
    picture = (tmp_path / "matrix.svg").read_text()
    for shown in (">7<", ">1,234<", ">0<", ">3<", ">sea<", ">label<", ">prediction<", "of a…<"):
        assert shown in picture, shown
    draw_confusion(tmp_path / "matrix.png", [[7, 1234], [0, 3]], names)
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["matrix.png", "matrix.svg"]


def test_many_classes_become_colours_without_counts(tmp_path):
    draw_confusion(tmp_path / "many.svg", np.full((60, 60), 77), [f"class {number}" for number in range(60)])
    picture = (tmp_path / "many.svg").read_text()
    assert ">class 59<" in picture
    assert ">77<" not in picture


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("matrix.jpg", UsageError, ".png or .svg"),
        ("nowhere/matrix.png", OutputError, "no folder"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused(tmp_path, name, error, said):
    with pytest.raises(error, match=said):
        draw_confusion(tmp_path / name, [[1]], ["a"])
