"""Is a model better than an answer that ignores the text? Decided by an interval, in one place for every command."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from potstill import metrics
from potstill.data import Examples
from potstill.evaluation.intervals import RESAMPLES, Floats, bootstrap_together, percentiles
from potstill.evaluation.marks import Arrays, Marks, mark
from potstill.tasks import FILL_MASK, lower_is_better


@dataclass(frozen=True, slots=True, kw_only=True)
class Trivial:
    """The best answer that is always the same."""

    words: str
    """What it answers."""
    marks: Marks


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainstTrivial:
    """A model's score against that of an answer that ignores the text, on the same examples."""

    metric: str
    value: float
    """The model's score."""
    interval: tuple[float, float]
    """Its 95 % interval, by bootstrap over the examples."""
    trivial: float
    """The score of the other."""
    trivial_answer: str
    """What the other answers, such as "always negative"."""
    difference_interval: tuple[float, float]
    """The 95 % interval of what the model is better by; negative is worse, also where a low score is good."""
    better: bool
    """Whether that interval lies above 0."""
    num_examples: int

    @property
    def sentence(self) -> str | None:
        """What a user must be told; None where the model is better."""
        if self.better:
            return None
        sign = -1 if lower_is_better(self.metric) else 1
        name = self.metric.replace("_", " ")
        is_above = sign * (self.value - self.trivial) > 0
        verdict = "not shown to be better than" if is_above else "no better than"
        low, high = self.interval
        return (
            f"{verdict} an answer that ignores the text: its {name} is {self.value:.4f} (95 % interval {low:.4f} to "
            f"{high:.4f}, {self.num_examples:,} examples), and {self.trivial_answer} scores {self.trivial:.4f}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, the sentence among them."""
        return asdict(self) | {
            "interval": list(self.interval),
            "difference_interval": list(self.difference_interval),
            "sentence": self.sentence,
        }


def find_trivial(arrays: Arrays | None, examples: Examples, *, kind: str, metric: str) -> Trivial | None:
    """Return the best answer that is always the same, marked; None where there is none.

    Args:
        arrays: any model's answers to the examples; only needed for fill-mask, whose questions they tell.
        examples: the data set.
        kind: `potstill.tasks.kind_of`.
        metric: the one that decides.
    """
    if kind == FILL_MASK.name:
        if arrays is None:
            return None
        even = {"nll": np.full(len(arrays["nll"]), np.log(float(arrays["vocabulary"])))}
        words, same = "every word equally likely", {**arrays, **even, "choices": np.full(len(arrays["nll"]), -1)}
    else:
        constants = metrics.constant_answers(kind, examples.labels, label_names=examples.label_names)
        if not constants:
            return None
        best = metrics.best_constant(constants, metric)
        words, same = best.words, dict(best.arrays)
    return Trivial(words=words, marks=mark(same, examples, kind=kind, metric=metric))


def against_trivial(arrays: Arrays, marks: Marks, examples: Examples, *, kind: str, metric: str) -> AgainstTrivial:
    """Hold a model's answers against those of the best answer that is always the same.

    Raises:
        ValueError: if there is no such answer, which `potstill.evaluation.fitness.check_examples` refuses before.
    """
    trivial = find_trivial(arrays, examples, kind=kind, metric=metric)
    if trivial is None:
        raise ValueError(f"{kind} without labels has no answer that ignores the text")
    statistics = {"model": marks.draws, "trivial": trivial.marks.draws}
    # One generator for every call: the same model on the same examples always gets the same verdict.
    drawn = bootstrap_together(statistics, marks.drawn, rng=np.random.default_rng(0), resamples=RESAMPLES)
    low, high = better_by(drawn["model"], drawn["trivial"], metric=metric)
    return AgainstTrivial(
        metric=metric,
        value=marks.scores[metric],
        interval=percentiles(drawn["model"]),
        trivial=trivial.marks.scores[metric],
        trivial_answer=trivial.words,
        difference_interval=(low, high),
        better=low > 0,
        num_examples=len(examples),
    )


def better_by(model: Floats, trivial: Floats, *, metric: str) -> tuple[float, float]:
    """Return the 95 % interval of what a model is better by, from both scores of the same draws of the examples."""
    return percentiles((trivial - model) if lower_is_better(metric) else (model - trivial))
