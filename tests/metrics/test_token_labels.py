import json

import pytest

from potstill import metrics
from potstill.tasks import METRICS, TOKEN_CLASSIFICATION

# What seqeval 1.2.2's get_entities answers in its default mode. Ours was compared with it over 60,000 random texts of
# IOB2, IOBES and BILOU tags, with and without types, and its scores over 6,000 random sets of texts: no difference.
FOUND_BY_SEQEVAL = [
    ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
    ("O O", []),
    ("I-PER I-PER O", [("PER", 0, 1)]),
    ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),
    ("B-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),
    ("I-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),
    ("E-PER E-PER", [("PER", 0, 0), ("PER", 1, 1)]),
    ("B-PER E-PER I-PER", [("PER", 0, 1), ("PER", 2, 2)]),
    ("S-PER I-PER E-PER", [("PER", 0, 0), ("PER", 1, 2)]),
    ("S-PER S-PER", [("PER", 0, 0), ("PER", 1, 1)]),
    ("O E-PER O", [("PER", 1, 1)]),
    ("U-PER U-PER O U-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
    ("B-PER L-PER B-PER", [("PER", 2, 2)]),
    ("B-PER I-PER L-PER O", [("PER", 0, 2)]),
    ("B-PER E-PER L-PER O", [("PER", 0, 1), ("PER", 0, 2)]),
    ("B-PER . I-PER", [("PER", 0, 0), ("PER", 2, 2)]),
    (". I-PER", [("PER", 1, 1)]),
    ("B I O B", [("_", 0, 1), ("_", 3, 3)]),
    ("B-creative-work I-creative-work I-creative", [("creative-work", 0, 1), ("creative", 2, 2)]),
    ("B-PER O-PER I-PER", [("PER", 0, 0), ("PER", 2, 2)]),
    ("PER PER O", [("ER", 0, 1)]),
]

# Wanted: PER, LOC | ORG | LOC. Given: PER, ORG | ORG | LOC, too long. Right: PER and the second text's ORG.
LABELS = [text.split() for text in ("B-PER I-PER O B-LOC", "O B-ORG I-ORG O", "I-LOC O O")]
PREDICTIONS = [text.split() for text in ("B-PER I-PER O B-ORG", "O I-ORG I-ORG O", "B-LOC I-LOC O")]


@pytest.mark.parametrize(("tags", "expected"), FOUND_BY_SEQEVAL)
def test_entities_are_those_of_seqeval(tags, expected):
    assert metrics.get_entities(tags.split()) == expected


def test_an_entity_counts_by_type_and_both_ends():
    found = metrics.entity_scores(LABELS, PREDICTIONS)
    assert found == pytest.approx({"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 7 / 11})
    assert tuple(found) == METRICS[TOKEN_CLASSIFICATION.name]


def test_the_table_of_types_is_seqevals_report():
    rows = metrics.entity_report(LABELS, PREDICTIONS)
    expected = [
        {"label": "LOC", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2, "predicted": 1},
        {"label": "ORG", "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1, "predicted": 2},
        {"label": "PER", "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1, "predicted": 1},
    ]
    assert rows == [pytest.approx(row) for row in expected]
    assert json.loads(json.dumps(rows)) == rows


def test_precision_and_recall_are_told_apart():
    found = metrics.entity_scores([["B-PER", "O", "O"]], [["B-PER", "O", "B-LOC"]])
    assert found == pytest.approx({"f1": 2 / 3, "precision": 0.5, "recall": 1.0, "accuracy": 2 / 3})


def test_an_entity_never_reaches_into_the_next_text():
    found = metrics.entity_scores([["B-PER"], ["I-PER"]], [["B-PER"], ["B-PER"]])
    assert found["f1"] == 1.0


def test_texts_without_entities_score_0_without_a_warning():
    assert metrics.entity_scores([["O", "O"]], [["O", "O"]]) == {
        "f1": 0.0,
        "precision": 0.0,
        "recall": 0.0,
        "accuracy": 1.0,
    }
    assert metrics.entity_report([["O"]], [["O"]]) == []


@pytest.mark.parametrize(("labels", "predictions"), [([["O", "O"]], [["O"]]), ([["O"]], [["O"], ["O"]])])
def test_a_missing_prediction_is_no_prediction_of_nothing(labels, predictions):
    with pytest.raises(ValueError, match="zip"):
        metrics.entity_scores(labels, predictions)


def test_ids_become_names():
    assert metrics.tag_names([[0, 2], [1]], ["O", "B-PER", "I-PER"]) == [["O", "I-PER"], ["B-PER"]]
