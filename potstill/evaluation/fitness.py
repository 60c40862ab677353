"""Whether examples can judge models of a kind, and whether what the models answered fits them."""

from collections.abc import Mapping

import numpy as np

from potstill.data import Examples
from potstill.errors import DataError
from potstill.evaluation.marks import Arrays
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, MULTI_LABEL, SINGLE_LABEL, TOKEN_CLASSIFICATION

_LABELLED = (SINGLE_LABEL, MULTI_LABEL, TOKEN_CLASSIFICATION.name)


def check_examples(examples: Examples, kind: str) -> None:
    """Refuse examples that cannot judge models of a kind, before any of them runs.

    Raises:
        DataError: if there are no labels, no pairs for feature-extraction, or labels beyond those with a name.
    """
    where = f"{examples.name} ({examples.split})"
    if examples.labels is None and kind != FILL_MASK.name:
        what = "pairs of texts with a score" if kind == FEATURE_EXTRACTION.name else "labels"
        raise DataError(f"{where} has no {what}, and a {kind} model is judged by them; give other data or columns")
    known = len(examples.label_names)
    highest = _highest_label(examples, kind)
    if highest >= known and kind in _LABELLED:
        raise DataError(
            f"{where} has the label {highest}, but the model knows {known} labels, 0 to {known - 1}; "
            "give data of the same task"
        )


def _highest_label(examples: Examples, kind: str) -> int:
    if kind == SINGLE_LABEL:
        return int(examples.labels.max())
    if kind == MULTI_LABEL:
        return int(examples.labels.shape[1]) - 1
    return max(int(ids.max()) for ids in examples.labels if len(ids)) if kind == TOKEN_CLASSIFICATION.name else -1


def check_answers(arrays: Arrays, examples: Examples, *, kind: str, key: str) -> None:
    """Refuse answers that have other numbers than the examples' labels ask for.

    Raises:
        DataError: naming the contestant.
    """
    if "values" not in arrays:
        return
    columns = len(examples.label_names) if kind in _LABELLED else 1
    if arrays["values"].shape[1] != columns:
        raise DataError(
            f"{key} answers with {arrays['values'].shape[1]} numbers per decision, and {examples.name} "
            f"({examples.split}) is read with {columns}; give data with the model's own labels"
        )


def check_same_words(answers: Mapping[str, Arrays]) -> None:
    """Refuse language models that were asked for different tokens: their surprise has different units."""
    hidden = {key: arrays["wanted_words"] for key, arrays in answers.items() if "wanted_words" in arrays}
    for key, words in hidden.items():
        first, others = next(iter(hidden.items()))
        if not np.array_equal(words, others):
            raise DataError(
                f"{key} and {first} have different tokenizers, so they were asked for different words, and their "
                "perplexities cannot be compared; bench them apart"
            )
