"""Metrics of extractive question answering, by SQuAD's rules.

Rajpurkar et al. 2016 (arXiv 1606.05250, section 6.1) for the numbers, Rajpurkar et al. 2018 (arXiv 1806.03822) for
questions without an answer, which only the empty answer satisfies. Scores are shares of 1, where SQuAD's own script
prints percentages.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return the text in lower case without punctuation (ASCII's), English articles and superfluous blanks."""
    # The order of SQuAD's script. With articles before punctuation, "a-b" would lose its "a".
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def squad_exact_match(accepted: Sequence[str], prediction: str) -> float:
    """Return 1 if the prediction is one of the accepted answers but for case, punctuation, articles and blanks."""
    return float(normalize_answer(prediction) in _accepted(accepted))


def squad_f1(accepted: Sequence[str], prediction: str) -> float:
    """Return the F1 of the prediction's words, against the accepted answer that it fits best."""
    given = normalize_answer(prediction).split()
    return max(_word_f1(gold.split(), given) for gold in _accepted(accepted))


def squad_scores(references: Sequence[Mapping[str, Any]], predictions: Sequence[str]) -> dict[str, float]:
    """Return `f1` and `exact_match`, both means over the questions.

    Where some questions have an answer and some have none, there are `answerable_f1`, `answerable_exact_match` and
    `unanswerable_accuracy` as well.

    Args:
        references: for each question the accepted answers, `{"text": [...], ...}`; empty is unanswerable.
        predictions: one text each; the empty text says that there is no answer.

    Raises:
        ValueError: if there are not as many predictions as references.
    """
    golds = [reference["text"] for reference in references]
    scores = [
        (len(gold) > 0, squad_f1(gold, given), squad_exact_match(gold, given))
        for gold, given in zip(golds, predictions, strict=True)
    ]
    result = {"f1": _mean([f1 for _, f1, _ in scores]), "exact_match": _mean([exact for _, _, exact in scores])}
    with_answer = [(f1, exact) for has_answer, f1, exact in scores if has_answer]
    # SQuAD 1.1 has no unanswerable questions: there the three scores would repeat the first two or divide by 0.
    if 0 < len(with_answer) < len(scores):
        result["answerable_f1"] = _mean([f1 for f1, _ in with_answer])
        result["answerable_exact_match"] = _mean([exact for _, exact in with_answer])
        result["unanswerable_accuracy"] = _mean([exact for has_answer, _, exact in scores if not has_answer])
    return result


def _accepted(answers: Sequence[str]) -> list[str]:
    """Return the accepted answers as they are compared; those of which nothing is left mean no answer."""
    # SQuAD 2.0's script does so too: an accepted "the" becomes "", which stands for no answer.
    return [gold for gold in map(normalize_answer, answers) if gold] or [""]


def _word_f1(gold: Sequence[str], given: Sequence[str]) -> float:
    if not gold or not given:
        return float(gold == given)
    # Multisets: a word that is said twice must be asked for twice.
    common = (Counter(gold) & Counter(given)).total()
    return 2 * common / (len(gold) + len(given))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
