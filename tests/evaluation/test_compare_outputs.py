"""Verdicts: by hand, against scipy, and over many simulated data sets."""

import json

import numpy as np
import pytest
import scipy.stats

from potstill.data import Examples
from potstill.errors import CheckError
from potstill.evaluation.decision import compare_outputs
from potstill.evaluation.intervals import Z, bootstrap, percentiles, wilson
from potstill.evaluation.predictions import ModelOutputs
from potstill.evaluation.scores import score
from potstill.tasks import METRICS

SINGLE, SEVERAL, NUMBER = "single_label_classification", "multi_label_classification", "regression"


def draw(seed=0):
    return np.random.default_rng(seed)


def answers(values, kind=SINGLE, texts=None):
    values = np.asarray(values, dtype=np.float32)
    return ModelOutputs(values, np.arange(len(values)) if texts is None else np.asarray(texts), kind)


def choosing(classes, *, num=2):
    """Return answers that choose these classes."""
    return answers(2 * np.eye(num)[np.asarray(classes)])


def flipped(texts, flips):
    """Return answers of class 0, and the same with the first `flips` changed."""
    return choosing(np.zeros(texts, int)), choosing((np.arange(texts) < flips).astype(int))


def judge(reference, candidate, *, labels=None, metric=None, label_names=(), **settings):
    """Compare; with labels, answers are scored as an export scores what would be served."""
    if labels is None:
        return compare_outputs(reference, candidate, metric=metric, **settings).model_dump(mode="json")
    kind = reference.kind
    metric = metric or METRICS[kind][0]
    if not len(label_names) and kind != NUMBER:
        label_names = [str(number) for number in range(reference.values.shape[1])]
    data = Examples(
        name="d", split="s", texts=[""] * len(labels), labels=labels, label_names=tuple(label_names), sha256="0" * 64
    )
    scored = []
    for side in (reference, candidate):
        arrays = {"values": side.values}
        if isinstance(labels, list):
            arrays |= {"texts": side.texts, "seen": np.ones(len(side.values), dtype=bool)}
        scored.append(score(arrays, data, kind=kind, metric=metric))
    found = compare_outputs(reference, candidate, scored=tuple(scored), metric=metric, **settings)
    return found.model_dump(mode="json")


def judge_json(*arguments, **settings):
    """Compare, and make sure that a manifest can hold the evidence."""
    evidence = judge(*arguments, **settings)
    assert json.loads(json.dumps(evidence, allow_nan=False)) == evidence
    return evidence


def test_no_flip_in_400_texts_holds_within_one_percent():
    evidence = judge_json(*flipped(400, 0), max_loss=0.01)
    assert (evidence["verdict"], evidence["holds"], evidence["basis"]) == ("PASS", True, "agreement")
    assert evidence["loss"] == 0.0
    assert evidence["loss_interval"] == pytest.approx([0.0, Z**2 / (400 + Z**2)])
    assert evidence["agreement"] == {
        "measure": "equal decisions",
        "value": 1.0,
        "flips": 0,
        "decisions": 400,
        "mean_kl": 0.0,
        "max_abs_difference": 0.0,
    }
    assert "texts_needed" not in evidence
    assert evidence["labelled"] is None


def test_no_flip_in_few_texts_decides_nothing_and_says_how_many_would():
    evidence = judge_json(*flipped(300, 0), max_loss=0.01)
    assert (evidence["verdict"], evidence["holds"], evidence["texts_needed"]) == ("INCONCLUSIVE", True, 381)


def test_few_flips_need_more_texts_by_hand():
    """4 flips of 1000: z^2 * 0.01 * 0.99 / (0.01 - 0.004)^2 is 1056.4."""
    evidence = judge_json(*flipped(1000, 4), max_loss=0.01)
    assert evidence["loss"] == 0.004
    assert evidence["loss_interval"] == list(wilson(4, 1000))
    assert (evidence["verdict"], evidence["texts_needed"]) == ("INCONCLUSIVE", 1057)
    assert judge_json(*flipped(1250, 5), max_loss=0.01)["verdict"] == "PASS"


def test_more_flips_than_allowed_fail():
    evidence = judge_json(*flipped(1000, 11), max_loss=0.01)
    assert (evidence["verdict"], evidence["holds"], evidence["agreement"]["flips"]) == ("FAIL", False, 11)
    assert evidence["agreement"]["max_abs_difference"] == 2.0


def test_flips_at_the_limit_can_never_be_decided():
    evidence = judge_json(*flipped(1000, 10), max_loss=0.01)
    assert (evidence["verdict"], evidence["texts_needed"]) == ("INCONCLUSIVE", None)


def test_the_divergence_is_that_of_scipy():
    first, second = draw(1).normal(size=(50, 7)), draw(2).normal(size=(50, 7))
    evidence = judge_json(answers(first), answers(second), max_loss=1.0)
    p, q = (np.exp(side.astype(np.float32)) for side in (first, second))
    assert evidence["agreement"]["mean_kl"] == pytest.approx(scipy.stats.entropy(p, q, axis=1).mean(), rel=1e-5)
    halves, tenths = np.log([[0.5, 0.5]] * 3), np.log([[0.9, 0.1]] * 3)
    evidence = judge_json(answers(halves), answers(tenths), max_loss=1.0)
    assert evidence["agreement"]["mean_kl"] == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(5), rel=1e-6)


def tokens(*, texts=60, share=0.05, seed=0):
    """Return answers to tokens; flips come in whole texts, so tokens of a text are not independent."""
    lengths = draw(seed).integers(5, 30, size=texts)
    where = np.repeat(np.arange(texts), lengths)
    bad = (draw(seed + 1).random(texts) < 2 * share)[where]
    flips = bad & (draw(seed + 2).random(len(where)) < 0.5)
    kind = "token-classification"
    return answers(2 * np.eye(2)[flips * 0], kind, where), answers(2 * np.eye(2)[flips.astype(int)], kind, where), flips


def test_tokens_are_resampled_by_texts_as_scipy_does():
    """Measured: ends within 1 % of scipy's."""
    reference, candidate, flips = tokens(texts=120, share=0.2)
    evidence = judge_json(reference, candidate, max_loss=0.5)
    per_text = np.bincount(reference.texts, weights=flips), np.bincount(reference.texts).astype(float)
    theirs = scipy.stats.bootstrap(
        per_text,
        lambda parts, totals, axis: parts.sum(axis=axis) / totals.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=draw(3),
    ).confidence_interval
    assert evidence["loss"] == flips.mean()
    assert evidence["rows"] == evidence["agreement"]["decisions"] == len(flips)
    assert evidence["texts"] == 120
    assert evidence["loss_interval"][0] == pytest.approx(theirs.low, rel=0.1)
    assert evidence["loss_interval"][1] == pytest.approx(theirs.high, rel=0.1)


def test_tokens_without_a_flip_are_as_sure_as_their_texts():
    reference, _, _ = tokens(texts=300)
    evidence = judge_json(reference, reference, max_loss=0.01)
    assert evidence["loss_interval"] == pytest.approx([0.0, wilson(0, 300)[1]])
    assert (evidence["verdict"], evidence["texts_needed"]) == ("INCONCLUSIVE", 381)


def classifier(*, texts=600, right=0.9, lost=12, gained=4):
    """Return labels, and answers of which the second lost some right ones and gained others."""
    labels = draw(5).integers(2, size=texts)
    before = np.arange(texts) < right * texts
    after = before.copy()
    after[:lost], after[texts - gained :] = False, True
    return labels, *(choosing(np.where(side, labels, 1 - labels)) for side in (before, after))


def test_labels_decide_by_the_relative_loss_of_the_score():
    labels, before, after = classifier()
    evidence = judge_json(before, after, max_loss=0.05, labels=labels)
    assert (evidence["basis"], evidence["verdict"]) == ("accuracy", "PASS")
    assert evidence["loss"] == pytest.approx(8 / 540)
    row = evidence["labelled"]
    assert (row["reference"], row["candidate"]) == (0.9, pytest.approx(532 / 600))
    assert row["mcnemar"] == {"lost": 12, "gained": 4, "p_value": pytest.approx(scipy.stats.binomtest(4, 16).pvalue)}
    assert evidence["agreement"]["flips"] == 16
    assert judge_json(before, after, max_loss=0.01, labels=labels)["verdict"] == "FAIL"
    between = judge_json(before, after, max_loss=0.02, labels=labels)
    assert between["verdict"] == "INCONCLUSIVE"
    assert between["texts_needed"] > 600


def test_the_interval_of_the_relative_loss_agrees_with_scipys_paired_bootstrap():
    """Measured: within 2 % of each other."""
    labels, before, after = classifier(lost=30, gained=10)
    found = judge_json(before, after, max_loss=0.01, labels=labels)["labelled"]["relative_loss_interval"]
    correct = [(side.values.argmax(axis=1) == labels).astype(float) for side in (before, after)]
    theirs = scipy.stats.bootstrap(
        correct,
        lambda b, a, axis: 1 - a.mean(axis=axis) / b.mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=draw(1),
    ).confidence_interval
    assert found == pytest.approx([theirs.low, theirs.high], rel=0.05)


def test_so_many_texts_as_are_asked_for_do_decide():
    """The texts needed are right if the same answers, as many times over, just pass."""
    labels, before, after = classifier(texts=400, lost=5, gained=2)
    for labelled, max_loss in ((True, 0.015), (False, 0.025)):
        settings = {"max_loss": max_loss, "labels": labels} if labelled else {"max_loss": max_loss}
        evidence = judge_json(before, after, **settings)
        assert evidence["verdict"] == "INCONCLUSIVE"
        for factor, verdict in ((0.85, "INCONCLUSIVE"), (1.15, "PASS")):
            chosen = np.linspace(0, 399.999, round(factor * evidence["texts_needed"])).astype(int)
            again = (ModelOutputs(side.values[chosen], np.arange(len(chosen)), side.kind) for side in (before, after))
            assert judge(*again, **settings | ({"labels": labels[chosen]} if labelled else {}))["verdict"] == verdict


def test_equal_scores_of_few_texts_decide_nothing():
    labels, before, _ = classifier(texts=200)
    evidence = judge_json(before, before, max_loss=0.01, labels=labels)
    assert evidence["verdict"] == "INCONCLUSIVE"
    assert evidence["loss_interval"] == pytest.approx([0.0, wilson(0, 200)[1] / 0.9])
    # Wilson's bound of nothing in n texts must be 0.01 * 0.9: z^2 * 0.991 / 0.009 is 422.99.
    assert evidence["texts_needed"] == 423


def test_one_text_more_right_is_no_surer_than_none():
    labels, before, after = classifier(texts=50, lost=0, gained=1)
    same, better = (judge(before, other, max_loss=0.01, labels=labels) for other in (before, after))
    assert same["verdict"] == better["verdict"] == "INCONCLUSIVE"
    assert better["loss"] < 0 < better["loss_interval"][1] < same["loss_interval"][1]


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "matthews_correlation", "f1", "accuracy_and_f1"])
def test_any_metric_of_the_kind_can_decide(metric):
    labels, before, after = classifier(lost=40)
    evidence = judge_json(before, after, max_loss=0.01, labels=labels, metric=metric)
    assert (evidence["basis"], evidence["verdict"]) == (metric, "FAIL")
    low, high = evidence["loss_interval"]
    assert low < evidence["loss"] < high
    assert 0.03 < evidence["loss"] < 0.2


def test_an_error_that_grows_is_a_loss_too():
    labels = draw(1).normal(size=300)
    before, after = (answers((labels + spread * draw(2).normal(size=300))[:, None], NUMBER) for spread in (0.10, 0.11))
    evidence = judge_json(before, after, max_loss=0.01, labels=labels, metric="mse")
    assert evidence["loss"] == pytest.approx(0.21, rel=1e-3)
    assert evidence["verdict"] == "FAIL"
    assert evidence["labelled"]["mcnemar"] is None
    correlation = judge_json(before, after, max_loss=0.01, labels=labels)
    assert (correlation["basis"], correlation["verdict"]) == ("pearson", "PASS")


def test_where_the_reference_scores_nothing_agreement_decides():
    labels = np.ones(400, dtype=int)
    before, after = flipped(400, 8)
    evidence = judge_json(before, after, max_loss=0.01, labels=labels, metric="f1")
    assert (evidence["basis"], evidence["loss"], evidence["verdict"]) == ("agreement", 0.02, "FAIL")
    assert evidence["labelled"]["relative_loss"] is None


def test_numbers_agree_by_pearsons_correlation():
    first = draw(1).normal(size=200)
    second = first + 0.05 * draw(2).normal(size=200)
    evidence = judge_json(answers(first[:, None], NUMBER), answers(second[:, None], NUMBER), max_loss=0.01)
    value = scipy.stats.pearsonr(first, second).statistic
    assert evidence["agreement"]["value"] == pytest.approx(value, abs=1e-6)
    assert (evidence["agreement"]["measure"], evidence["agreement"]["flips"]) == ("pearson", None)
    theirs = scipy.stats.bootstrap(
        (first, second),
        lambda a, b: 1 - scipy.stats.pearsonr(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=1000,
        rng=draw(3),
    ).confidence_interval
    assert evidence["loss_interval"] == pytest.approx([theirs.low, theirs.high], rel=0.05)
    assert evidence["verdict"] == "PASS"


def test_vectors_agree_by_their_mean_cosine():
    first = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    second = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    evidence = judge_json(*(answers(side, "feature-extraction") for side in (first, second)), max_loss=0.01)
    assert evidence["agreement"]["value"] == pytest.approx((2 + np.sqrt(0.5)) / 3)
    assert evidence["agreement"]["max_abs_difference"] == 1.0
    assert evidence["loss_interval"][0] == 0.0
    assert evidence["verdict"] == "FAIL"


def test_several_labels_agree_by_each_ones_sign():
    first = draw(1).normal(size=(100, 4))
    second = first.copy()
    second[:5, 0] *= -1
    evidence = judge_json(answers(first, SEVERAL), answers(second, SEVERAL), max_loss=0.05)
    assert (evidence["agreement"]["flips"], evidence["agreement"]["decisions"]) == (5, 400)
    assert evidence["agreement"]["mean_kl"] is None
    assert evidence["loss"] == 0.0125
    labels = (first > 0).astype(float)
    scored = judge_json(answers(first, SEVERAL), answers(second, SEVERAL), max_loss=0.05, labels=labels)
    assert scored["basis"] == "micro_f1"
    assert scored["labelled"]["mcnemar"] == {"lost": 5, "gained": 0, "p_value": 2 / 32}


def test_tags_are_scored_by_entities():
    names = ("O", "B-X")
    labels = [np.array([1, 0, 0])] * 100
    texts = np.repeat(np.arange(100), 3)
    given = np.concatenate(labels)
    worse = given.copy()
    worse[[0, 3, 6]] = 0
    before, after = (answers(np.eye(2)[side], "token-classification", texts) for side in (given, worse))
    evidence = judge_json(before, after, max_loss=0.01, labels=labels, label_names=names)
    assert evidence["labelled"]["reference"] == 1.0
    assert evidence["labelled"]["candidate"] == pytest.approx(2 * 97 / 197)
    assert evidence["labelled"]["mcnemar"]["lost"] == 3
    assert (evidence["basis"], evidence["verdict"]) == ("f1", "FAIL")


def test_positions_that_a_text_lacks_are_no_answers():
    first = draw(1).normal(size=(8, 6))
    first[::2, 4:] = -np.inf
    second = first + np.where(np.isfinite(first), 0.001, 0)
    texts = np.repeat(np.arange(4), 2)
    evidence = judge_json(*(answers(side, "question-answering", texts) for side in (first, second)), max_loss=0.01)
    assert evidence["agreement"]["flips"] == 0
    assert evidence["agreement"]["max_abs_difference"] == pytest.approx(0.001, rel=1e-3)
    assert evidence["agreement"]["mean_kl"] == pytest.approx(0, abs=1e-9)
    assert evidence["basis"] == "agreement"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_fails(bad):
    reference, candidate = flipped(50, 0)
    candidate.values[7, 1] = bad
    evidence = judge_json(reference, candidate, max_loss=0.5, labels=np.zeros(50, int))
    assert (evidence["verdict"], evidence["holds"], evidence["loss"]) == ("FAIL", False, 1.0)
    assert evidence["reason"] == "1 of 100 numbers are NaN or infinite"
    assert evidence["max_loss"] == 0.5
    with pytest.raises(CheckError, match="fp32"):
        judge(candidate, reference, max_loss=0.5)


def test_different_questions_are_refused():
    with pytest.raises(ValueError, match="same questions"):
        judge(flipped(50, 0)[0], flipped(49, 0)[0], max_loss=0.5)


def test_the_same_seed_gives_the_same_evidence():
    labels, before, after = classifier()
    first, second, other = (judge(before, after, max_loss=0.02, labels=labels, seed=seed) for seed in (0, 0, 1))
    assert first == second
    assert first["loss_interval"] != other["loss_interval"]


def test_a_good_file_rarely_passes_for_better_than_it_is():
    """Files that truly lose 2 % of 90 %, judged at 2 %: the upper end must lie above that in 97.5 % of data sets."""
    texts, too_low = 400, 0
    for seed in range(100):
        outcomes = draw(seed).choice(4, size=texts, p=[0.091, 0.009, 0.027, 0.873])  # wrong, gained, lost, right
        labels = np.zeros(texts, int)
        before, after = choosing((outcomes < 2).astype(int)), choosing(np.isin(outcomes, (0, 2)).astype(int))
        evidence = judge(before, after, max_loss=0.02, labels=labels, seed=seed)
        too_low += evidence["loss_interval"][1] < 0.02
    assert too_low <= 7  # 2.5 are expected; measured: 4


def test_the_interval_is_the_plain_bootstraps_where_that_has_seen_enough():
    labels, before, after = classifier(lost=30, gained=10)
    evidence = judge(before, after, max_loss=0.01, labels=labels, seed=3)
    correct = np.stack([(side.values.argmax(axis=1) == labels) for side in (before, after)], axis=1).astype(float)
    resampled = bootstrap(lambda counts: 1 - np.divide(*(counts @ correct).T[::-1]), 600, rng=draw(3))
    assert evidence["loss_interval"] == pytest.approx(list(percentiles(resampled)))
