"""Text classification: a row of logits becomes labels with scores.

The rules are those of transformers' text-classification pipeline: softmax over the labels; sigmoid of each for a
multi-label classifier or a single output; the number itself for a regression.
"""

import json
import math
from collections.abc import Hashable, Sequence
from operator import itemgetter
from typing import Literal

from pydantic import BaseModel, StrictStr

from potstill.serve.tasks.features import Features, Outputs, ServedTask, TaskModel, not_finite, wrong_label_count
from potstill.serve.tasks.inputs import Count, RequestModel, read_two_texts
from potstill.serve.tokenizer import Text
from potstill.tasks import MULTI_LABEL, REGRESSION


class Pair(RequestModel):
    """Two texts that are read together."""

    text: StrictStr
    text_pair: StrictStr


class ClassificationParameters(RequestModel):
    """Of text-classification."""

    top_k: Count | None = None
    """How many labels, the best first; all by default."""
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    """Scores from logits; by default softmax, sigmoid where several labels may hold or there is only one, none for a
    checkpoint that says itself that it is a regression."""


class Score(BaseModel):
    """One label and its score."""

    label: str
    score: float


def scoring_function(problem_type: str | None, config: bytes | None) -> str:
    """Return `softmax`, `sigmoid` or `none`: what turns logits into scores, as transformers' pipeline chooses it.

    Args:
        problem_type: one of `potstill.tasks.PROBLEM_TYPES`; None is a single label.
        config: the content of the model's config.json; None where there is none.
    """
    if problem_type == MULTI_LABEL:
        return "sigmoid"
    if problem_type != REGRESSION:
        return "softmax"
    # To potstill a single output is a regression; to the pipeline only where config.json has `problem_type`.
    try:
        settings = json.loads(config) if config is not None else None
    except (ValueError, RecursionError):
        return "none"
    return "none" if not isinstance(settings, dict) or settings.get("problem_type") else "sigmoid"


def preprocess(model: TaskModel, items: Sequence[object], parameters: ClassificationParameters, _: int = 0) -> Features:
    """Tokenise texts and pairs; the answer to each is a list of labels with scores, the best first.

    Raises:
        RequestError: 422 if an item is neither a text nor a pair.
    """
    expected = "a text, or a pair of text and text_pair"
    texts = [
        item if isinstance(item, str) else read_two_texts(index, item, Pair, expected)
        for index, item in enumerate(items)
    ]
    function, output, labels = parameters.function_to_apply or model.function, model.outputs[0], model.labels

    def keep(_: int, outputs: Outputs) -> Outputs:
        return {output: outputs[output].copy()}

    def decode(outputs: Sequence[Outputs]) -> list[object]:
        answers: list[object] = []
        for own in outputs:
            logits = own[output].tolist()
            if len(logits) != len(labels):
                raise wrong_label_count(len(logits), len(labels))
            answers.append(rank(logits, labels, function=function, top_k=parameters.top_k))
        return answers

    return Features(rows=model.tokenizer.rows(texts), decode=decode, keep=keep)


def preprocess_scores(model: TaskModel, texts: Sequence[Text]) -> Features:
    """Tokenise texts and pairs for an evaluation; the answer to each is its logits and its scores, as two lists.

    Both are in the order of the labels, and are the numbers that `preprocess` ranks.
    """

    def decode(outputs: Sequence[Outputs]) -> list[object]:
        rows = [own[model.outputs[0]].tolist() for own in outputs]
        return [(row, label_scores(row, model.function)) for row in rows]

    return Features(rows=model.tokenizer.rows(texts), decode=decode)


def rank(
    logits: Sequence[float], labels: Sequence[str], *, function: str = "softmax", top_k: int | None = None
) -> list[dict[str, str | float]]:
    """Return the `top_k` best labels of one text with their scores, the best first.

    Equal scores keep the order of `labels`.

    Args:
        logits: one for each label.
        labels: their names.
        function: turns logits into scores: `softmax`, `sigmoid` or `none`.
        top_k: at least 1; None, or more than there are labels, means all.

    Raises:
        CheckError: if a logit is NaN or infinite.
    """
    # Plain Python: after a run has emptied the caches, softmax and sorting of two numbers take numpy 150 us, and this
    # 20 (docs/log.md).
    scores = label_scores(logits, function)
    best = sorted(zip(scores, labels, strict=True), key=itemgetter(0), reverse=True)[:top_k]
    return [{"label": label, "score": score} for score, label in best]


def label_scores(logits: Sequence[float], function: str) -> Sequence[float]:
    """Return the scores of one text's labels; arguments and errors as in `rank`."""
    if not all(map(math.isfinite, logits)):
        raise not_finite()
    if function == "softmax":
        largest = max(logits)
        powers = [math.exp(logit - largest) for logit in logits]
        total = sum(powers)
        return [power / total for power in powers]
    # The sigmoid as (1 + tanh(x / 2)) / 2, because math.exp(-x) raises OverflowError for x below -709.
    return [0.5 * (1 + math.tanh(0.5 * logit)) for logit in logits] if function == "sigmoid" else logits


def _decide(answer: list[dict[str, object]]) -> Hashable:
    """Return the best label."""
    return answer[0]["label"] if answer else None


TASK = ServedTask(
    item=StrictStr | Pair,
    parameters=ClassificationParameters,
    answer=list[Score],
    example="a great movie",
    preprocess=preprocess,
    decide=_decide,
    one_output_per_text=True,
)
