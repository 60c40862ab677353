"""Compare a model with the best answer that ignores the text, by the interval of their paired difference."""

import math
from dataclasses import dataclass

import numpy as np

from potstill.bundle import AgainstTrivial
from potstill.data import Examples
from potstill.evaluation.intervals import RESAMPLES, Floats, bootstrap_together, percentiles
from potstill.evaluation.predictions import Predictions
from potstill.evaluation.scores import Scored, score
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    METRICS,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    TOKEN_CLASSIFICATION,
    lower_is_better,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trivial:
    """The best answer that is always the same."""

    words: str
    """What it answers, such as "always negative"."""
    scored: Scored


def trivial_scores(examples: Examples, *, kind: str) -> dict[str, float]:
    """Return the best score by each metric of the answers that ignore the text; empty where there is none."""
    candidates = [
        score(answer, examples, kind=kind, metric=METRICS[kind][0]) for answer in _constants(examples, kind).values()
    ]
    if not candidates:
        return {}
    return {
        metric: (min if lower_is_better(metric) else max)(each.scores[metric] for each in candidates)
        for metric in candidates[0].scores
    }


def uniform_scores(vocab_size: int) -> dict[str, float]:
    """Return the scores of a language model to which every word of its vocabulary is equally likely."""
    return {"perplexity": float(vocab_size), "loss": math.log(vocab_size), "accuracy": 1 / vocab_size}


def find_trivial(predictions: Predictions | None, examples: Examples, *, kind: str, metric: str) -> Trivial | None:
    """Return the best answer that is always the same, scored; None where there is none.

    Args:
        predictions: any model's on the examples; needed only for fill-mask, to know which words were masked.
        examples: the data set.
        kind: `potstill.tasks.kind_of`.
        metric: the one that decides.
    """
    if kind == FILL_MASK.name:
        if predictions is None:
            return None
        count = len(predictions["nll"])
        # -1 is no token, so no guess is right.
        uniform = {"nll": np.full(count, np.log(float(predictions["vocabulary"]))), "choices": np.full(count, -1)}
        constants: dict[str, Predictions] = {"every word equally likely": {**predictions, **uniform}}
    else:
        constants = _constants(examples, kind)
    if not constants:
        return None
    sign = -1 if lower_is_better(metric) else 1
    candidates = [
        Trivial(words=words, scored=score(answer, examples, kind=kind, metric=metric))
        for words, answer in constants.items()
    ]
    return max(candidates, key=lambda candidate: sign * candidate.scored.scores[metric])


def _constants(examples: Examples, kind: str) -> dict[str, Predictions]:
    """Return predictions that ignore the text, which a model has to beat, by a name for messages.

    - a single label: the most frequent one; of two labels each, for F1 asks for the positive one
    - several labels: each that more than half of the texts have, and all of them, which F1 rewards
    - regression: the mean; feature-extraction: the same similarity for every pair
    - token-classification: `O` for every word, or the most frequent tag where there is no `O`
    - question-answering: no answer
    """
    labels, names = examples.labels, examples.label_names
    if labels is None or kind == FILL_MASK.name:
        return {}
    if kind == TOKEN_CLASSIFICATION.name:
        # `O` scores 0 in entity F1 and most of the words in accuracy: the floor of both metrics.
        flat = np.concatenate(labels)
        always = names.index("O") if "O" in names else int(np.bincount(flat, minlength=len(names)).argmax())
        values = np.broadcast_to(np.eye(len(names))[always], (len(flat), len(names)))
        texts = np.repeat(np.arange(len(labels)), [len(tags) for tags in labels])
        return {f"{names[always]} for every word": {"values": values, "texts": texts}}
    if kind == QUESTION_ANSWERING.name:
        silent = np.full(len(labels), "", dtype=np.str_)
        none = {"answers": silent, "answers_or_none": silent, "scores": np.zeros(len(labels))}
        return {"no answer to any question": none}
    if kind == MULTI_LABEL:
        # Subset accuracy is best with the frequent labels, F1 often with all: recall is 1 then.
        sides = {"the labels that most texts have": labels.mean(axis=0) - 0.5, "every label": np.ones(labels.shape[1])}
        return {words: {"values": np.broadcast_to(values, labels.shape)} for words, values in sides.items()}
    if kind == REGRESSION:
        # The mean has the lowest squared error of all constants; any constant has correlation 0.
        return {"the mean for every text": {"values": np.full((len(labels), 1), labels.mean())}}
    if kind == FEATURE_EXTRACTION.name:
        return {"the same similarity for every pair": {"values": np.zeros((len(labels), 1))}}
    counts = np.bincount(labels, minlength=len(names))
    return {
        f"always {names[label] if label < len(names) else label}": {
            "values": np.broadcast_to(np.eye(len(counts))[label], (len(labels), len(counts)))
        }
        # With two labels, always answering 1 can have the higher F1 while always 0 has the higher accuracy.
        for label in (range(2) if len(counts) == 2 else [int(counts.argmax())])
    }


def against_trivial(
    predictions: Predictions, scored: Scored, examples: Examples, *, kind: str, metric: str
) -> AgainstTrivial:
    """Compare a model's score with that of the best answer that is always the same.

    Raises:
        ValueError: if there is no such answer, which `potstill.evaluation.scores.check_examples` refuses before.
    """
    trivial = find_trivial(predictions, examples, kind=kind, metric=metric)
    if trivial is None:
        raise ValueError(f"{kind} without labels has no answer that ignores the text")
    statistics = {"model": scored.statistic, "trivial": trivial.scored.statistic}
    # One generator for every call: the same model on the same examples always gets the same verdict.
    drawn = bootstrap_together(statistics, scored.num_texts, rng=np.random.default_rng(0), resamples=RESAMPLES)
    # Paired: the difference of two scores of the same draw varies far less than either score.
    low, high = better_by(drawn["model"], drawn["trivial"], metric=metric)
    value, floor, better = scored.scores[metric], trivial.scored.scores[metric], low > 0
    interval, sentence = percentiles(drawn["model"]), None
    if not better:
        # Above but with 0 in the interval is "not shown", on a small sample; below it is plainly "no better".
        is_above = floor > value if lower_is_better(metric) else value > floor
        verdict = "not shown to be better than" if is_above else "no better than"
        sentence = (
            f"{verdict} an answer that ignores the text: its {metric.replace('_', ' ')} is {value:.4f} (95 % interval "
            f"{interval[0]:.4f} to {interval[1]:.4f}, {len(examples):,} examples), and {trivial.words} scores "
            f"{floor:.4f}"
        )
    return AgainstTrivial(
        metric=metric,
        value=value,
        interval=interval,
        trivial=floor,
        trivial_answer=trivial.words,
        difference_interval=(low, high),
        better=better,
        num_examples=len(examples),
        sentence=sentence,
    )


def better_by(model: Floats, trivial: Floats, *, metric: str) -> tuple[float, float]:
    """Return the 95 % interval of a model's advantage (above 0 is better), from both scores of the same draws."""
    return percentiles((trivial - model) if lower_is_better(metric) else (model - trivial))
