"""Choose the texts of an export: some to calibrate int8 on, others to judge it.

Without data from the user they are paragraphs of the documentation that every Python installation carries: real
English, but not of the task, and without labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from potstill.data import Examples, Text
from potstill.data.python_docs import read_python_docs
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, QUESTION_ANSWERING, Task

# In characters, about 80 tokens. Up to a thousand paragraphs run several times, so longer ones are left out.
_LONGEST_PARAGRAPH = 400
_PYTHON_DOCS = "the documentation that Python carries"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportTexts:
    """The texts of an export, each group with a description of its origin for the manifest."""

    calibration: list[Text]
    """int8's ranges are measured on these."""
    calibration_origin: str
    judged: list[Text]
    """int8 is compared with fp32 on these."""
    judged_origin: str
    examples: Examples | None = None
    """The judged texts with their labels; None without labels."""


def choose_texts(
    task: Task,
    *,
    calibration: Sequence[Text | list[str]],
    examples: Examples | None,
    calibration_texts: int,
    judged_texts: int,
) -> ExportTexts:
    """Choose the texts of an export.

    Args:
        task: the model's task.
        calibration: texts of the task; empty takes Python's documentation.
        examples: texts to judge int8 on, with or without labels; None takes the rest of `calibration`, or Python's
            documentation.
        calibration_texts: the most texts to calibrate on.
        judged_texts: the most texts to judge on.
    """
    # Cut twice: an embedded pair becomes two texts.
    seen = _as_read(calibration[:calibration_texts], task)[:calibration_texts]
    seen_origin = "texts of the task" if seen else _PYTHON_DOCS if calibration_texts else "no texts"
    if not seen:
        seen = _documentation(task, "train")[:calibration_texts]
    if examples is not None:
        judged = _as_read(examples.texts[:judged_texts], task)
        judged_origin = f"{examples.name} ({examples.split})"
        labels = None if examples.labels is None else examples.labels[:judged_texts]
        examples = replace(examples, texts=examples.texts[:judged_texts], labels=labels)
    else:
        # int8 must not be judged on texts that it was fitted to.
        judged = _as_read(calibration[calibration_texts:][:judged_texts], task)
        judged_origin = "other texts of the task" if judged else _PYTHON_DOCS
        judged = judged or _documentation(task, "validation")[:judged_texts]
    # Of fill-mask the labels are the masked words themselves.
    labelled = examples is not None and examples.labels is not None and task is not FILL_MASK
    return ExportTexts(
        calibration=seen,
        calibration_origin=seen_origin,
        judged=judged,
        judged_origin=judged_origin,
        examples=examples if labelled else None,
    )


def _documentation(task: Task, split: str) -> list[Text]:
    """Return paragraphs in a fixed random order, so that any first few are of many chapters."""
    paragraphs = [text for text, _ in read_python_docs(split) if len(text) <= _LONGEST_PARAGRAPH]
    order = np.random.default_rng(0).permutation(len(paragraphs))
    texts = [paragraphs[index] for index in order]
    if task is QUESTION_ANSWERING:
        # A context with the beginning of the next paragraph as its question.
        return [(second.split(".")[0][:100], first) for first, second in pairwise(texts)]
    return list(texts)


def _as_read(texts: Sequence[Text | list[str]], task: Task) -> list[Text]:
    """Return texts as the model reads them: word lists joined by spaces, pairs to embed as single texts, once each."""
    joined = [" ".join(text) if isinstance(text, list) else text for text in texts]
    if task is not FEATURE_EXTRACTION:
        return joined
    return list(dict.fromkeys(part for text in joined for part in (text if isinstance(text, tuple) else (text,))))
