"""Quality: scores, what is kept of them, and what is refused, from answers whose numbers are known."""

import numpy as np
import pytest
import scipy.stats

from potstill import metrics
from potstill.bench.claims import GLUE_BERT, GLUE_DISTILBERT
from potstill.data import Examples
from potstill.errors import DataError
from potstill.evaluation import results
from potstill.evaluation.comparison import Comparison, centered_interval, compare_glue, compare_models
from potstill.evaluation.intervals import wilson

TEACHER, STUDENT = "teacher/fp32", "student/fp32"


def examples(labels, names=("no", "yes")):
    texts = [f"text {number}" for number in range(20 if labels is None else len(labels))]
    return Examples(
        name="folder", split="validation", texts=texts, labels=labels, label_names=tuple(names), sha256="ab" * 32
    )


def logits(choices, sure=2.0, classes=2):
    return {"values": (sure * np.eye(classes)[choices]).astype(np.float32)}


def run(predictions, data, **changes):
    settings = {
        "name": "SST-2",
        "kind": "single_label_classification",
        "metric": "accuracy",
        "baseline": TEACHER,
        "seed": 0,
        "pairs": [("to_baseline", TEACHER, key) for key in predictions if key != TEACHER],
        "resamples": 500,
    }
    return compare_models(predictions, data, **(settings | changes))


def changed(right, *, lost, gained):
    """Return what a second model has right, that loses and gains so many."""
    right = right.copy()
    was_right, was_wrong = np.flatnonzero(right), np.flatnonzero(~right)
    right[was_right[:lost]], right[was_wrong[:gained]] = False, True
    return right


def pair(count=400, *, wrong=40, lost=20, gained=5):
    """Return labels and the answers of two models."""
    labels = np.arange(count) % 2
    first = np.arange(count) >= wrong
    second = changed(first, lost=lost, gained=gained)
    return labels, {
        TEACHER: logits(np.where(first, labels, 1 - labels)),
        STUDENT: logits(np.where(second, labels, 1 - labels)),
    }


def test_accuracy_is_compared_by_mcnemars_exact_test():
    labels, answers = pair()
    quality = run(answers, examples(labels)).quality
    teacher, student = quality.scores
    assert (teacher.key, teacher.value, student.value) == (TEACHER, 0.9, 1 - 55 / 400)
    assert list(teacher.scores) == ["accuracy", "macro_f1", "matthews_correlation", "f1", "accuracy_and_f1"]
    assert (teacher.agreement, student.agreement) == (1.0, 375 / 400)
    row = quality.retention[0]
    assert (row.comparison, row.baseline, row.candidate) == ("to_baseline", TEACHER, STUDENT)
    assert (row.test, row.gained, row.lost) == ("McNemar, exact", 5, 20)
    assert row.p_value == pytest.approx(scipy.stats.binomtest(5, 25).pvalue)
    assert row.kept == pytest.approx(345 / 360)
    assert row.difference == pytest.approx(-15 / 400)
    assert (quality.num_examples, quality.metric, quality.data_sha256) == (400, "accuracy", "ab" * 32)
    assert (quality.task, quality.kind, quality.trivial) == ("text-classification", "single_label_classification", 0.5)


def test_intervals_agree_with_what_theory_says_of_shares():
    labels, answers = pair(count=2000, wrong=200, lost=100, gained=25)
    quality = run(answers, examples(labels), resamples=4000).quality
    low, high = quality.scores[0].interval
    assert (low, high) == pytest.approx(
        (0.9 - 1.96 * np.sqrt(0.09 / 2000), 0.9 + 1.96 * np.sqrt(0.09 / 2000)), abs=2e-3
    )
    low, high = quality.retention[0].difference_interval
    # Of paired answers the difference's variance is that of +1, -1 and 0.
    error = np.sqrt((125 / 2000 - (75 / 2000) ** 2) / 2000)
    assert (low, high) == pytest.approx((-75 / 2000 - 1.96 * error, -75 / 2000 + 1.96 * error), abs=1.5e-3)
    kept_low, kept_high = quality.retention[0].kept_interval
    assert kept_low < 1725 / 1800 < kept_high
    assert kept_high - kept_low == pytest.approx(2 * 1.96 * error / 0.9, rel=0.15)


def test_equal_answers_do_not_prove_that_nothing_changes():
    labels, answers = pair(count=20, wrong=0, lost=0, gained=0)
    quality = run(answers, examples(labels)).quality
    room = wilson(0, 20)[1]
    row = quality.retention[0]
    assert (row.kept, row.p_value, row.difference) == (1.0, 1.0, 0.0)
    assert row.kept_interval == pytest.approx((1 - room, 1 + room))
    assert row.difference_interval == pytest.approx((-room, room))
    assert quality.scores[0].interval == pytest.approx((1 - room, 1.0))


@pytest.mark.parametrize(("metric", "lowest"), [("accuracy", 0.0), ("f1", 0.0), ("matthews_correlation", -1.0)])
def test_an_interval_stays_where_scores_can_be(metric, lowest):
    labels = np.arange(20) % 2
    answers = {TEACHER: logits(labels), STUDENT: logits(1 - labels)}
    teacher, student = run(answers, examples(labels), metric=metric).quality.scores
    room = wilson(0, 20)[1]
    assert teacher.interval == pytest.approx((1 - room, 1))
    assert student.interval == pytest.approx((lowest, lowest + room))


def test_other_metrics_are_compared_by_the_bootstrap():
    labels, answers = pair()
    found = run(answers, examples(labels), metric="matthews_correlation", name="CoLA")
    row = found.quality.retention[0]
    assert (row.test, row.gained, row.lost) == ("paired bootstrap", 5, 20)
    assert row.p_value < 0.02
    values = [score.value for score in found.quality.scores]
    assert values == [
        metrics.classification_scores(labels, arrays["values"])["matthews_correlation"] for arrays in answers.values()
    ]
    assert row.difference == pytest.approx(values[1] - values[0])
    assert found.resampled[STUDENT].shape == (500,)
    assert np.median(found.resampled[STUDENT]) == pytest.approx(values[1], abs=0.02)


def amounts(noise, seed=0, count=300):
    draw = np.random.default_rng(seed)
    labels = draw.uniform(0, 5, size=count)
    return labels, {
        key: {"values": (labels + draw.normal(0, by, size=count)).astype(np.float32)[:, None]}
        for key, by in noise.items()
    }


def test_of_amounts_there_is_neither_agreement_nor_calibration():
    labels, answers = amounts({TEACHER: 0.5, STUDENT: 1.5})
    quality = run(answers, examples(labels, ()), kind="regression", metric="pearson_and_spearman", name="STS-B").quality
    score, row = quality.scores[1], quality.retention[0]
    assert (score.agreement, score.calibration_error, score.calibration_interval) == (None, None, None)
    assert (row.gained, row.lost, row.test) == (None, None, "paired bootstrap")
    assert row.p_value == pytest.approx(2 / 501)
    assert row.difference_interval[1] < 0
    assert (quality.trivial, quality.confusion) == (0.0, [])
    assert [found.distance for found in quality.differences] == sorted(
        (found.distance for found in quality.differences), reverse=True
    )


def test_where_a_low_value_is_good_the_better_one_keeps_more_than_all():
    labels, answers = amounts({TEACHER: 1.0, STUDENT: 0.5})
    quality = run(answers, examples(labels, ()), kind="regression", metric="mse", name="own").quality
    teacher, student = (score.value for score in quality.scores)
    row = quality.retention[0]
    assert quality.lower_is_better
    assert row.difference == pytest.approx(teacher - student)
    assert row.kept == pytest.approx(teacher / student)
    assert 1 < row.kept_interval[0] < row.kept
    assert row.difference_interval[0] > 0


def test_nothing_is_kept_of_nothing():
    labels = np.arange(60) % 2
    answers = {TEACHER: logits(1 - labels), STUDENT: logits(labels)}
    row = run(answers, examples(labels)).quality.retention[0]
    assert (row.kept, row.kept_interval, row.difference, row.gained) == (None, None, 1.0, 60)


def test_no_share_is_kept_of_a_correlation_of_0():
    labels = np.arange(80) % 2
    answers = {TEACHER: logits(np.arange(80) // 2 % 2), STUDENT: logits(labels)}
    row = run(answers, examples(labels), metric="matthews_correlation").quality.retention[0]
    assert (row.kept, row.difference) == (None, 1.0)


def test_a_text_without_a_number_is_counted_and_wrong():
    labels, answers = pair(count=100, wrong=10, lost=0, gained=0)
    answers[STUDENT]["values"][50:60] = np.nan
    answers[STUDENT]["values"][60:65, 0] = np.inf
    quality = run(answers, examples(labels)).quality
    assert quality.scores[1].lost_finite == 15
    assert quality.scores[1].value == 0.75
    assert quality.retention[0].lost == 15
    assert quality.scores[1].agreement == 0.85
    assert quality.differences[0].candidate_answer == "no answer"
    table = next(row for row in quality.confusion if row.rows == TEACHER)
    assert (table.labels, sum(row[2] for row in table.counts)) == (["no", "yes", "no answer"], 15)


def test_calibration_by_hand_and_its_interval_holds_it():
    labels = np.arange(200) % 2
    answers = {TEACHER: logits(np.where(np.arange(200) < 150, labels, 1 - labels), sure=np.log(9))}
    score = run(answers, examples(labels)).quality.scores[0]
    assert score.calibration_error == pytest.approx(0.9 - 0.75, abs=1e-6)
    low, high = score.calibration_interval
    assert low < 0.15 < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.75 * 0.25 / 200), rel=0.2)


def test_the_interval_of_a_sum_of_sizes_is_moved_to_its_value():
    """Resampled from 0.10 to 0.30 around 0.20 where the value is 0.15."""
    resampled = np.linspace(0.10, 0.30, 2001)
    assert centered_interval(0.15, resampled) == pytest.approx((0.055, 0.245))
    assert centered_interval(0.05, resampled) == pytest.approx((0.0, 0.145))


def test_one_row_of_each_other_model_is_shown_beside_the_baseline():
    labels, answers = pair(count=80, wrong=8)
    rows = {
        "teacher/int8": answers[TEACHER],
        "student/int8": answers[STUDENT],
        **answers,
        "tiny/int8": answers[STUDENT],
        "tiny/int8-static": answers[TEACHER],
    }
    quality = run(rows, examples(labels)).quality
    assert [(row.rows, row.columns) for row in quality.confusion] == [
        (TEACHER, STUDENT),
        ("label", STUDENT),
        (TEACHER, "tiny/int8"),
        ("label", "tiny/int8"),
        ("label", TEACHER),
    ]
    assert {(row.baseline, row.candidate) for row in quality.differences} == {
        (TEACHER, STUDENT),
        (TEACHER, "tiny/int8"),
    }
    assert len(quality.differences) == 20
    table = quality.confusion[0].counts
    assert sum(map(sum, table)) == 80
    assert table[0][1] + table[1][0] == 25


def test_of_a_single_model_its_other_precisions_are_shown():
    labels, answers = pair(count=80, wrong=8)
    quality = run({TEACHER: answers[TEACHER], "teacher/int8": answers[STUDENT]}, examples(labels)).quality
    assert (TEACHER, "teacher/int8") in [(row.rows, row.columns) for row in quality.confusion]


def test_without_the_baseline_the_others_still_have_their_scores():
    labels, answers = pair()
    quality = run({STUDENT: answers[STUDENT]}, examples(labels)).quality
    assert [score.agreement for score in quality.scores] == [None]
    assert (quality.retention, quality.differences) == ([], [])
    assert [(row.rows, row.columns) for row in quality.confusion] == [("label", STUDENT)]
    empty = run({}, examples(labels), pairs=[("to_baseline", TEACHER, STUDENT)])
    assert (empty.quality.scores, empty.quality.retention, empty.resampled) == ([], [], {})


def test_the_same_seed_gives_the_same_quality_and_another_data_set_other_draws():
    labels, answers = pair()
    data = examples(labels)
    first, again, other = run(answers, data), run(answers, data), run(answers, data, name="MRPC")
    assert first.quality == again.quality
    assert not np.array_equal(first.resampled[STUDENT], other.resampled[STUDENT])


def test_judging_a_data_set_is_quick():
    """6 rows on 872 texts with 2000 resamples; it takes a third of a second, and 3 are allowed."""
    from time import perf_counter

    labels, answers = pair(count=872, wrong=90)
    rows = {
        f"{model}/{precision}": answers[TEACHER]
        for model in ("teacher", "student")
        for precision in ("fp32", "fp16", "int8")
    }
    start = perf_counter()
    run(rows, examples(labels), resamples=2000, pairs=[("to_baseline", TEACHER, key) for key in rows] * 2)
    assert perf_counter() - start < 3


def test_answers_that_do_not_fit_the_labels_are_refused():
    labels, answers = pair(count=20)
    with pytest.raises(DataError, match=r"teacher/fp32 answers with 2 numbers.* read with 3"):
        run(answers, examples(labels, "abc"))
    with pytest.raises(DataError, match="has the label 2, but the model knows 2 labels, 0 to 1"):
        run(answers, examples(labels * 2))
    with pytest.raises(DataError, match="label 4"):
        run({}, examples([np.array([0, 4])], "ab"), kind="token-classification", metric="f1")
    with pytest.raises(DataError, match="no labels, and a regression model"):
        run(answers, examples(None), kind="regression", metric="mse")
    with pytest.raises(DataError, match="no pairs of texts with a score"):
        run(answers, examples(None), kind="feature-extraction", metric="spearman")


def test_language_models_with_other_words_are_not_compared():
    words = {
        "nll": np.ones(2),
        "choices": np.array([1, 2]),
        "wanted": np.array([1, 3]),
        "texts": np.array([0, 1]),
        "vocabulary": np.array(50),
        "choice_words": np.array(["a", "b"]),
    }
    sides = {TEACHER: words | {"wanted_words": np.array(["a", "c"])}}
    asked = {"kind": "fill-mask", "metric": "perplexity", "name": "own"}
    data = Examples(name="x", split="test", texts=["a", "b"], labels=None, label_names=(), sha256="")
    quality = run(sides, data, **asked).quality
    assert (quality.scores[0].value, quality.trivial) == pytest.approx((np.e, 50.0))
    assert quality.power.smallest_loss is None
    sides[STUDENT] = words | {"wanted_words": np.array(["a", "d"])}
    with pytest.raises(DataError, match=r"student/fp32 and teacher/fp32 have different tokenizers"):
        run(sides, data, **asked)


def glue(lost, *, count=200, names=("SST-2", "WNLI", "CoLA")):
    """Return the compared data sets, on each of which the student loses so many answers."""
    compared = []
    for name in names:
        labels, answers = pair(count, wrong=20, lost=lost[name], gained=0)
        compared.append(run(answers, examples(labels), name=name))
    return compared


def test_a_row_of_several_data_sets_is_put_together_by_every_definition():
    compared = glue({"SST-2": 18, "WNLI": 90, "CoLA": 0})
    (row,) = compare_glue(compared, baseline=TEACHER, candidates=[TEACHER, STUDENT])
    assert (row.baseline, row.candidate) == (TEACHER, STUDENT)
    assert row.scores == pytest.approx({"SST-2": 0.81, "WNLI": 0.45, "CoLA": 0.9})
    assert row.baseline_scores == pytest.approx({"SST-2": 0.9, "WNLI": 0.9, "CoLA": 0.9})
    assert row.macro == pytest.approx(1.71 / 1.8)
    assert row.macro_with_wnli == pytest.approx(2.16 / 2.7)
    assert row.mean_of_ratios == pytest.approx((0.9 + 1) / 2)
    assert (row.worst_task, row.worst_task_name) == (pytest.approx(0.9), "SST-2")
    # Only SST-2's answers change: its difference of 9 points has a standard error of 2.02, and half of it counts.
    low, high = row.macro_interval
    assert low < row.macro < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.09 * 0.91 / 200) / 1.8, rel=0.2)


def test_the_papers_own_row_comes_out_of_its_scores():
    """DistilBERT's table 1: 96.9 % of BERT with WNLI, 96.2 % without, 95.7 % as the mean of the ratios."""
    compared = []
    for name in GLUE_BERT:
        scores = {TEACHER: GLUE_BERT[name] / 100, STUDENT: GLUE_DISTILBERT[name] / 100}
        quality = results.Quality(
            name=name,
            data="glue",
            split="validation",
            num_examples=100,
            data_sha256="",
            task="text-classification",
            kind="regression",
            metric=metrics.GLUE_METRICS[name],
            scores=[results.Score(key=key, value=at, interval=(at, at), scores={}) for key, at in scores.items()],
            power=results.Power(num_examples=100, smallest_loss=None, sentence=""),
        )
        compared.append(Comparison(quality, {key: np.full(3, value) for key, value in scores.items()}))
    (row,) = compare_glue(compared, baseline=TEACHER, candidates=[STUDENT])
    assert round(100 * row.macro_with_wnli, 1) == 96.9
    assert round(100 * row.macro, 1) == 96.2
    assert round(100 * row.mean_of_ratios, 1) == 95.7
    assert (row.worst_task_name, round(100 * row.worst_task, 1)) == ("RTE", 86.4)
    assert row.macro_interval == pytest.approx((row.macro, row.macro))


def test_rows_are_made_of_what_both_have_and_of_two_at_least():
    compared = glue({"SST-2": 18, "WNLI": 90, "CoLA": 0})
    del compared[1].resampled[STUDENT]
    (row,) = compare_glue(compared, baseline=TEACHER, candidates=[STUDENT])
    assert (set(row.scores), row.macro_with_wnli) == ({"SST-2", "CoLA"}, None)
    del compared[0].resampled[TEACHER]
    assert compare_glue(compared, baseline=TEACHER, candidates=[STUDENT]) == []


def test_no_share_is_kept_of_a_baseline_that_scores_nothing():
    compared = glue({"SST-2": 18, "CoLA": 5}, names=("SST-2", "CoLA"))
    labels = np.arange(100) % 2
    answers = {TEACHER: logits(1 - labels), STUDENT: logits(labels)}
    compared.append(run(answers, examples(labels), name="RTE"))
    (row,) = compare_glue(compared, baseline=TEACHER, candidates=[STUDENT])
    assert (row.mean_of_ratios, row.worst_task, row.worst_task_name) == (None, None, None)
    assert row.macro == pytest.approx((0.81 + 0.875 + 1) / 1.8)
