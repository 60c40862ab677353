import math

import numpy as np
import pytest

from potstill.metrics import baseline, majority_share
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    METRICS,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
)


def test_one_label_of_three_is_the_most_frequent():
    labels = np.array([2, 0, 2, 1, 2])
    found = baseline(TEXT_CLASSIFICATION, labels, label_names=("a", "b", "c"))
    assert found == pytest.approx({"accuracy": 0.6, "macro_f1": 0.75 / 3, "matthews_correlation": 0.0})
    assert found["accuracy"] == majority_share(labels)


def test_a_class_without_examples_is_left_out_of_the_macro_f1_as_with_a_model():
    found = baseline(TEXT_CLASSIFICATION, np.array([0, 0]), label_names=("a", "b", "c"))
    assert found["macro_f1"] == 1.0


def test_of_two_labels_each_metric_gets_the_better_one():
    # Always 0: accuracy 3/4, F1 0, mean 3/8. Always 1: accuracy 1/4, F1 2/5, mean 13/40.
    found = baseline(TEXT_CLASSIFICATION, np.array([0, 0, 1, 0]), label_names=("no", "yes"))
    assert found == pytest.approx(
        {
            "accuracy": 0.75,
            "macro_f1": (6 / 7) / 2,
            "matthews_correlation": 0.0,
            "f1": 0.4,
            "accuracy_and_f1": 0.375,
        }
    )


def test_of_several_labels_those_that_most_texts_have():
    labels = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], dtype=np.float64)
    found = baseline(TEXT_CLASSIFICATION, labels, problem_type=MULTI_LABEL, label_names=("a", "b"))
    # All labels have the better macro F1, 6/7 and 2/5; the first alone is better by the other two.
    assert found == pytest.approx({"micro_f1": 6 / 8, "macro_f1": (6 / 7 + 2 / 5) / 2, "subset_accuracy": 0.5})
    assert tuple(found) == METRICS[MULTI_LABEL]


def test_the_mean_amount_correlates_with_nothing():
    found = baseline(TEXT_CLASSIFICATION, np.array([0.1, 0.2, 0.6]), problem_type=REGRESSION)
    assert found == {"pearson": 0.0, "spearman": 0.0, "pearson_and_spearman": 0.0, "mse": pytest.approx(0.14 / 3)}


def test_no_word_is_an_entity():
    labels = [np.array([1, 2, 0, 0]), np.array([1])]
    found = baseline(TOKEN_CLASSIFICATION, labels, label_names=("O", "B-PER", "I-PER"))
    assert found == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 0.4}


def test_tags_without_an_outside_are_the_most_frequent_tag():
    found = baseline(TOKEN_CLASSIFICATION, [np.array([1, 1, 0])], label_names=("NOUN", "VERB"))
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_no_question_has_an_answer():
    answers = [{"text": [], "answer_start": []}, {"text": ["Rome"], "answer_start": [0]}]
    found = baseline(QUESTION_ANSWERING, answers)
    assert (found["f1"], found["exact_match"], found["unanswerable_accuracy"]) == (0.5, 0.5, 1.0)


def test_every_word_is_equally_likely():
    found = baseline(FILL_MASK, None, vocab_size=1000)
    assert found == {"perplexity": 1000.0, "loss": math.log(1000), "accuracy": 0.001}
    assert tuple(found) == METRICS[FILL_MASK.name]
    assert baseline(FILL_MASK, None) == {}


def test_the_same_similarity_for_every_pair():
    found = baseline(FEATURE_EXTRACTION, np.array([1.0, 2.0]))
    assert found == {"pearson": 0.0, "spearman": 0.0, "pearson_and_spearman": 0.0}
    assert baseline(FEATURE_EXTRACTION, None) == {}
