"""Every score is the number that everybody else's code gives: scikit-learn, scipy, seqeval, and SQuAD's own script.

SQuAD's rules are written anew here from their description (Rajpurkar et al. 2016, section 6.1; evaluate-v2.0.py), not
taken from potstill.
"""

import collections
import re
import string
import warnings

import numpy as np
import pytest
import scipy.stats
import seqeval.metrics
import seqeval.scheme
import sklearn.metrics

from potstill import metrics
from potstill.data import Examples
from potstill.evaluation.scores import score
from potstill.evaluation.summary import summarize
from potstill.tasks import METRICS

SINGLE, SEVERAL = "single_label_classification", "multi_label_classification"


def draw(seed):
    return np.random.default_rng(seed)


def examples(labels, names=(), texts=None):
    texts = ["text"] * len(labels) if texts is None else texts
    return Examples(name="data", split="test", texts=texts, labels=labels, label_names=tuple(names), sha256="0" * 64)


def logits(predictions, classes):
    return (4 * np.eye(classes)[predictions]).astype(np.float32)


# (labels, predictions, classes of the model): few classes and many, some without labels, without predictions, or both.
CLASSES = {
    "the row of the fault": ([0, 1, 1, 0], [0, 1, 1, 0], 4),
    "a class without labels": ([0, 1, 1, 0], [0, 2, 1, 0], 4),
    "a class without predictions": ([0, 1, 2, 2], [0, 1, 1, 0], 4),
    "one label": ([1, 1, 1], [1, 1, 1], 2),
    "one label, all wrong": ([1, 1, 1], [0, 0, 0], 2),
    "one prediction": ([0, 1, 1, 0, 2], [1, 1, 1, 1, 1], 3),
    "one row": ([1], [1], 3),
    "one row, wrong": ([1], [2], 3),
    "two classes": (draw(1).integers(2, size=60), draw(2).integers(2, size=60), 2),
    "many classes of many": (draw(3).integers(9, size=40), draw(4).integers(9, size=40), 20),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_scored_as_by_scikit_learn(name):
    labels, predictions, classes = (np.asarray(part) for part in CLASSES[name])
    classes = int(classes)
    found = score(
        {"values": logits(predictions, classes)},
        examples(labels, map(str, range(classes))),
        kind=SINGLE,
        metric="macro_f1",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": sklearn.metrics.accuracy_score(labels, predictions),
            "macro_f1": sklearn.metrics.f1_score(labels, predictions, average="macro", zero_division=0),
            "matthews_correlation": sklearn.metrics.matthews_corrcoef(labels, predictions),
        }
        if classes == 2:
            expected["f1"] = sklearn.metrics.f1_score(labels, predictions, average="binary", zero_division=0)
            expected["accuracy_and_f1"] = (expected["accuracy"] + expected["f1"]) / 2
        table = sklearn.metrics.precision_recall_fscore_support(
            labels, predictions, labels=range(classes), zero_division=0
        )
    assert found.scores == pytest.approx(expected, abs=1e-12)
    for row, *theirs in zip(
        metrics.classification_report(labels, predictions, list(map(str, range(classes)))), *table, strict=True
    ):
        assert [row["precision"], row["recall"], row["f1"], row["support"]] == pytest.approx(theirs)


def test_a_draw_is_scored_as_scikit_learn_scores_its_texts():
    """In a draw of few texts classes are missing that the data has."""
    labels, predictions = draw(5).integers(6, size=12), draw(6).integers(6, size=12)
    for metric in ("accuracy", "macro_f1", "matthews_correlation"):
        statistic = score(
            {"values": logits(predictions, 8)}, examples(labels, map(str, range(8))), kind=SINGLE, metric=metric
        ).statistic
        for seed in range(20):
            chosen = draw(seed).integers(12, size=12)
            ours = statistic(np.bincount(chosen, minlength=12)[None].astype(float))[0]
            theirs = {
                "accuracy": sklearn.metrics.accuracy_score,
                "macro_f1": lambda *sides: sklearn.metrics.f1_score(*sides, average="macro", zero_division=0),
                "matthews_correlation": sklearn.metrics.matthews_corrcoef,
            }[metric](labels[chosen], predictions[chosen])
            assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("absent", [False, True])
def test_label_sets_are_scored_as_by_scikit_learn(absent):
    labels = (draw(7).random((50, 5)) < 0.3).astype(float)
    given = draw(8).random((50, 5)) < 0.3
    if absent:
        labels[:, 2], given[:, 2], labels[:, 3], given[:, 4] = 0, False, 0, False
    names = list("abcde")
    values = np.where(given, 2.0, -2.0).astype(np.float32)
    found = score({"values": values}, examples(labels, names), kind=SEVERAL, metric="macro_f1")
    theirs = {
        "micro_f1": sklearn.metrics.f1_score(labels, given, average="micro", zero_division=0),
        "macro_f1": sklearn.metrics.f1_score(labels, given, average="macro", zero_division=0),
        "subset_accuracy": sklearn.metrics.accuracy_score(labels, given),
    }
    assert found.scores == pytest.approx(theirs, abs=1e-12)
    table = sklearn.metrics.precision_recall_fscore_support(labels, given, zero_division=0)
    for row, *expected in zip(metrics.multi_label_report(labels, values, names), *table, strict=True):
        assert [row["precision"], row["recall"], row["f1"], row["support"]] == pytest.approx(expected)


AMOUNTS = {
    "ties": (draw(9).integers(6, size=80).astype(float), draw(10).integers(4, size=80).astype(float)),
    "no ties": (draw(11).normal(size=80), draw(12).normal(size=80)),
    "large numbers": (1e8 + draw(13).normal(size=30), 1e8 + draw(14).normal(size=30)),
    "two rows": (np.array([1.0, 2.0]), np.array([5.0, 3.0])),
}


@pytest.mark.parametrize("name", AMOUNTS)
def test_amounts_are_scored_as_by_scipy(name):
    labels, given = AMOUNTS[name]
    found = score({"values": given[:, None]}, examples(labels), kind="regression", metric="spearman").scores
    pearson, spearman = scipy.stats.pearsonr(labels, given).statistic, scipy.stats.spearmanr(labels, given).statistic
    assert found["pearson"] == pytest.approx(pearson, abs=1e-7 if name == "large numbers" else 1e-12)
    assert found["spearman"] == pytest.approx(spearman, abs=1e-12)
    assert found["pearson_and_spearman"] == pytest.approx((pearson + spearman) / 2, abs=1e-7)
    assert found["mse"] == pytest.approx(sklearn.metrics.mean_squared_error(labels, given), rel=1e-12)


def test_a_draw_of_amounts_is_scored_as_by_scipy():
    labels, given = AMOUNTS["ties"]
    for metric, theirs in (("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr)):
        statistic = score({"values": given[:, None]}, examples(labels), kind="regression", metric=metric).statistic
        for seed in range(10):
            chosen = draw(seed).integers(80, size=80)
            ours = statistic(np.bincount(chosen, minlength=80)[None].astype(float))[0]
            assert ours == pytest.approx(theirs(labels[chosen], given[chosen]).statistic, abs=1e-9)


@pytest.mark.parametrize(
    ("labels", "given", "said"),
    [
        ([1.0, 2, 3], [2.0, 2, 2], "The answers never vary"),
        ([2.0, 2, 2], [1.0, 2, 3], "The labels never vary"),
        ([2.0], [3.0], "The labels and the answers never vary"),
    ],
)
def test_a_correlation_that_scipy_has_not_is_0_and_said(labels, given, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(labels) < 2 or np.isnan(scipy.stats.pearsonr(labels, given).statistic)
    found = summarize(
        {"values": np.array(given)[:, None]}, examples(np.array(labels)), kind="regression", metric="pearson"
    )
    assert found["scores"]["pearson"] == found["scores"]["spearman"] == 0.0
    assert found["notes"] == [f"{said}, so no correlation is defined; it counts as 0."]
    assert not found["better_than_trivial"]


def test_labels_that_do_not_occur_and_single_classes_are_said():
    labels, values = np.array([0, 1, 1, 0]), logits([0, 1, 1, 0], 4)
    found = summarize({"values": values}, examples(labels, "abcd"), kind=SINGLE, metric="macro_f1")
    assert found["value"] == 1.0
    assert found["notes"] == [
        "Macro F1 is the mean over 2 of 4 labels; c, d occur neither in the data nor in the answers."
    ]
    alone = summarize({"values": logits([1, 1], 2)}, examples(np.array([1, 0]), "ab"), kind=SINGLE, metric="accuracy")
    assert alone["scores"]["matthews_correlation"] == 0.0
    assert alone["notes"] == ["The answers are all of one class, so Matthews' correlation counts as 0."]
    sets = summarize(
        {"values": np.array([[1.0, -1], [1, -1]])},
        examples(np.array([[1.0, 0], [0, 0]]), "ab"),
        kind=SEVERAL,
        metric="macro_f1",
    )
    assert sets["notes"] == ["Macro F1 counts 0 for b, which occur neither in the data nor in the answers."]


TAGS = {
    "BIO": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "IOB1 and broken BIO": ["O", "I-PER", "I-LOC", "B-PER"],
    "IOBES": ["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("PER", "LOC"))],
    "BILOU": ["O", *(f"{letter}-{kind}" for letter in "BILU" for kind in ("PER", "LOC"))],
    "types with hyphens": ["O", "B-event-sport", "I-event-sport", "I-event", "B-event"],
}


@pytest.mark.parametrize("scheme", TAGS)
def test_entities_are_scored_as_by_seqeval_whatever_the_tags(scheme):
    """Random tags break every rule of their scheme: I- without B-, E- without B-, changes of type within a name."""
    names = TAGS[scheme]
    for seed in range(30):
        sizes = draw(seed).integers(1, 12, size=8)
        labels = [draw([seed, number]).integers(len(names), size=size) for number, size in enumerate(sizes)]
        given = [
            np.where(
                draw([seed, number, 1]).random(size) < 0.6, row, draw([seed, number, 2]).integers(len(names), size=size)
            )
            for number, (row, size) in enumerate(zip(labels, sizes, strict=True))
        ]
        arrays = {
            "values": logits(np.concatenate(given), len(names)),
            "texts": np.repeat(np.arange(8), sizes),
            "seen": np.ones(sizes.sum(), bool),
        }
        texts = [["word"] * size for size in sizes]
        found = score(arrays, examples(labels, names, texts), kind="token-classification", metric="f1").scores
        sides = [[[names[tag] for tag in row] for row in side] for side in (labels, given)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = {
                name: getattr(seqeval.metrics, f"{name}_score")(*sides)
                for name in ("f1", "precision", "recall", "accuracy")
            }
        assert found == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("scheme", [seqeval.scheme.IOB2, seqeval.scheme.IOBES])
def test_entities_of_tags_that_keep_their_scheme_are_those_of_seqevals_strict_mode(scheme):
    def tags(seed):
        """Return names and words between them, as the scheme writes them."""
        generator, found = draw(seed), []
        while len(found) < 12:
            kind, size = ("PER", "LOC")[generator.integers(2)], int(generator.integers(1, 4))
            if generator.random() < 0.4:
                found.append("O")
            elif scheme is seqeval.scheme.IOB2:
                found += [f"B-{kind}", *[f"I-{kind}"] * (size - 1)]
            else:
                found += [f"S-{kind}"] if size == 1 else [f"B-{kind}", *[f"I-{kind}"] * (size - 2), f"E-{kind}"]
        return found

    for seed in range(30):
        sides = [tags([seed, 0]), tags([seed, 0 if seed % 3 == 0 else 1])]
        longest = max(map(len, sides))
        labels, given = ([side + ["O"] * (longest - len(side))] for side in sides)
        theirs = seqeval.metrics.f1_score(labels, given, mode="strict", scheme=scheme, zero_division=0)
        assert metrics.entity_scores(labels, given)["f1"] == pytest.approx(theirs, abs=1e-12)


def squad_normalise(text):
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", text).split())


def squad_f1(gold, given):
    gold, given = squad_normalise(gold).split(), squad_normalise(given).split()
    if not gold or not given:
        return float(gold == given)
    same = sum((collections.Counter(gold) & collections.Counter(given)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(given), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def squad(references, predictions):
    """Return EM and F1 as evaluate-v2.0.py: golds of which nothing is left go, and no gold means no answer."""
    exact, f1 = [], []
    for golds, given in zip(references, predictions, strict=True):
        golds = [gold for gold in golds if squad_normalise(gold)] or [""]
        exact.append(max(float(squad_normalise(gold) == squad_normalise(given)) for gold in golds))
        f1.append(max(squad_f1(gold, given) for gold in golds))
    return {"f1": np.mean(f1), "exact_match": np.mean(exact)}


QUESTIONS = [
    (["the Normans", "Normans"], "The Normans."),
    (["Rollo"], "a Viking leader, Rollo"),
    (["10th century"], "century"),
    (["$5,000"], "5000"),
    (["a"], "the"),
    (["A", "vitamin A"], "vitamin a"),
    (["U.S."], "US"),
    (["café"], "cafe"),
    (["well-known"], "well known"),
    (["an apple a day"], "apple day"),
    (["yes yes yes"], "yes"),
    (["Rome"], ""),
]


@pytest.mark.parametrize("unanswerable", [False, True])
def test_answers_are_scored_as_by_squads_script(unanswerable):
    rows = QUESTIONS + ([([], ""), ([], "Rome"), ([], "the")] if unanswerable else [])
    golds, given = [gold for gold, _ in rows], [answer for _, answer in rows]
    labels = [{"text": gold, "answer_start": [0] * len(gold)} for gold in golds]
    arrays = {
        # Which of the two counts is told by whether a question of the data has no answer.
        "answers_or_none" if unanswerable else "answers": np.array(given),
        "answers" if unanswerable else "answers_or_none": np.array(["wrong"] * len(rows)),
        "scores": np.ones(len(rows)),
    }
    data = examples(labels, texts=[("what?", "context")] * len(rows))
    found = score(arrays, data, kind="question-answering", metric="f1").scores
    theirs = squad(golds, given)
    assert {name: found[name] for name in METRICS["question-answering"]} == pytest.approx(theirs, abs=1e-12)
    if unanswerable:
        assert found["unanswerable_accuracy"] == pytest.approx(squad(golds[-3:], given[-3:])["exact_match"])
        assert found["answerable_f1"] == pytest.approx(squad(golds[:-3], given[:-3])["f1"])
