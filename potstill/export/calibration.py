"""The texts that an export sees: some to calibrate int8, others to judge it.

Where nobody names data, they are paragraphs of the documentation that every Python carries: real English, though not
the task's, and without labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from potstill.data import Examples, Text
from potstill.data.python_docs import read_python_docs
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, QUESTION_ANSWERING, Task

# A thousand of them are read several times; about 80 tokens each.
_LONGEST_PARAGRAPH = 400
_PYTHON_DOCS = "the documentation that Python carries"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportTexts:
    """Texts, and where they are from in words."""

    calibration: list[Text]
    """Int8 may fit itself to these."""
    calibration_origin: str
    judged: list[Text]
    """Int8 is held against fp32 on these."""
    judged_origin: str
    examples: Examples | None = None
    """The judged texts as the data has them, with what a model should answer; None where nobody knows."""


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
        task: what the model answers.
        calibration: texts of the task; empty takes Python's documentation.
        examples: texts to judge int8 on, with or without labels; None takes those of `calibration` that are not
            needed there, or Python's documentation.
        calibration_texts: how many int8 may see at most.
        judged_texts: how many it is judged on at most.
    """
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
        judged = _as_read(calibration[calibration_texts:][:judged_texts], task)
        judged_origin = "other texts of the task" if judged else _PYTHON_DOCS
        judged = judged or _documentation(task, "validation")[:judged_texts]
    # Words that are masked are their own labels.
    labelled = examples is not None and examples.labels is not None and task is not FILL_MASK
    return ExportTexts(
        calibration=seen,
        calibration_origin=seen_origin,
        judged=judged,
        judged_origin=judged_origin,
        examples=examples if labelled else None,
    )


def _documentation(task: Task, split: str) -> list[Text]:
    """Return paragraphs in a fixed random order, so that the first ones are not of one chapter."""
    paragraphs = [text for text, _ in read_python_docs(split) if len(text) <= _LONGEST_PARAGRAPH]
    order = np.random.default_rng(0).permutation(len(paragraphs))
    texts = [paragraphs[index] for index in order]
    if task is QUESTION_ANSWERING:
        return [(second.split(".")[0][:100], first) for first, second in pairwise(texts)]
    return list(texts)


def _as_read(texts: Sequence[Text | list[str]], task: Task) -> list[Text]:
    """Return texts as a model reads them: words as the text that they are of, embedded pairs one by one."""
    joined = [" ".join(text) if isinstance(text, list) else text for text in texts]
    if task is not FEATURE_EXTRACTION:
        return joined
    return list(dict.fromkeys(part for text in joined for part in (text if isinstance(text, tuple) else (text,))))
