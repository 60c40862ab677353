"""A bundle's scores: those of the answers that it serves."""

import pytest

from potstill import metrics
from potstill.bench import evaluate_bundle
from potstill.errors import DataError, UsageError

from .conftest import make_examples


def test_a_bundle_is_scored_as_it_answers(teacher_dir):
    from potstill.serve import Encoder

    data, told = make_examples(), []
    found = evaluate_bundle(teacher_dir, data, threads=1, progress=lambda *news: told.append(news))
    expected = metrics.classification_scores(data.labels, Encoder(teacher_dir, threads=1).logits(data.texts))
    assert found["scores"] == pytest.approx(expected)
    assert (found["metric"], found["value"], found["lost_finite"]) == ("accuracy", found["scores"]["accuracy"], 0)
    assert found["trivial"] == max(data.labels.mean(), 1 - data.labels.mean())
    assert (told[0][1:], told[-1][1:]) == ((0, 200, "fp32"), (200, 200, "fp32"))
    assert told[1][1] == 1
    assert [done for _, done, _, _ in told] == sorted(done for _, done, _, _ in told)
    other = evaluate_bundle(teacher_dir, data, threads=1, metric="macro_f1")
    assert (other["value"], next(iter(other["scores"]))) == (other["scores"]["macro_f1"], "macro_f1")
    with pytest.raises(UsageError, match="metric 'mse'"):
        evaluate_bundle(teacher_dir, data, metric="mse")


def test_a_bundle_is_not_scored_on_labels_that_it_does_not_have(teacher_dir):
    with pytest.raises(DataError, match="knows 2 labels"):
        evaluate_bundle(teacher_dir, make_examples(highest=5))
