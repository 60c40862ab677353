"""The texts that an export sees: some to calibrate int8, others to judge it.

Where nobody names data, they are paragraphs of the documentation that every Python carries: real English, though not
the task's, and without labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from potstill.data import Examples, Text
from potstill.pydocs import read_python_docs
from potstill.task import QUESTION_ANSWERING, TOKEN_CLASSIFICATION, Task

# A thousand of them are read several times; about 80 tokens each.
_LONGEST_PARAGRAPH = 400
_PYTHON_DOCS = "the documentation that Python carries"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Texts, and where they are from."""

    calibration: list[Text]
    """Int8 may fit itself to these."""
    judged: list[Text]
    """Int8 is held against fp32 on these."""
    labels: Any = None
    """What a model should answer to the judged texts; None where nobody knows, or labels are not one per text."""
    origin: dict[str, str]
    """`calibration` and `judged` in words."""


def make_probe(
    task: Task, *, calibration: Sequence[Any], examples: Examples | None, calibration_texts: int, judged_texts: int
) -> Probe:
    """Choose the texts of an export.

    Args:
        task: what the model answers.
        calibration: texts of the task; empty takes Python's documentation.
        examples: texts to judge int8 on, with or without labels; None takes those of `calibration` that are not
            needed there, or Python's documentation.
        calibration_texts: how many int8 may see at most.
        judged_texts: how many it is judged on at most.
    """
    seen = [_as_text(text) for text in calibration[:calibration_texts]]
    origin = {"calibration": "texts of the task" if seen else _PYTHON_DOCS if calibration_texts else "no texts"}
    if not seen:
        seen = _documentation(task, "train")[:calibration_texts]
    if examples is not None:
        labels = examples.labels[:judged_texts] if _one_label_per_text(examples.labels, task) else None
        judged = [_as_text(text) for text in examples.texts[:judged_texts]]
        origin["judged"] = f"{examples.name} ({examples.split})"
    else:
        labels, judged = None, [_as_text(text) for text in calibration[calibration_texts:][:judged_texts]]
        origin["judged"] = "other texts of the task" if judged else _PYTHON_DOCS
        judged = judged or _documentation(task, "validation")[:judged_texts]
    return Probe(calibration=seen, judged=judged, labels=labels, origin=origin)


def _documentation(task: Task, split: str) -> list[Text]:
    """Return paragraphs in a fixed random order, so that the first ones are not of one chapter."""
    paragraphs = [text for text, _ in read_python_docs(split) if len(text) <= _LONGEST_PARAGRAPH]
    order = np.random.default_rng(0).permutation(len(paragraphs))
    texts = [paragraphs[index] for index in order]
    if task is QUESTION_ANSWERING:
        return [(second.split(".")[0][:100], first) for first, second in pairwise(texts)]
    return list(texts)


def _as_text(text: Any) -> Text:
    """Write words as the text that they are of."""
    return " ".join(text) if isinstance(text, list) else text


def _one_label_per_text(labels: Any, task: Task) -> bool:
    return labels is not None and task not in {QUESTION_ANSWERING, TOKEN_CLASSIFICATION}
