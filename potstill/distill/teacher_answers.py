"""Ask teachers once, before the training: their answers become a column of the rows, from which the loss reads them.

So several teachers can be averaged, and each may have its own tokenizer; after the first pass over the data a step
costs the student alone. A column of the data with answers (`potstill.data.answers`) goes the same way from there.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.checkpoint import Checkpoint, hash_checkpoint, read_folder
from potstill.data import Examples
from potstill.data.labels import are_generic, match_names
from potstill.distill.batches import to_logits
from potstill.distill.evaluation import Evaluation
from potstill.distill.torch_session import Scores, problem_type_of
from potstill.errors import CheckpointError
from potstill.evaluation.scores import score
from potstill.files import new_folder
from potstill.metrics import softmax
from potstill.progress import Progress
from potstill.tasks import MULTI_LABEL, REGRESSION, TOKEN_CLASSIFICATION, Task, kind_of, lower_is_better

_FILE = "answers.npy"


def ask_teachers(
    teachers: Sequence[Checkpoint],
    examples: Examples,
    *,
    task: Task,
    label_names: Sequence[str],
    max_length: int,
    cache_dir: Path,
    progress: Progress,
) -> Examples:
    """Return the examples with the mean of the teachers' probabilities, or numbers, in the order of `label_names`.

    Each teacher reads with its own tokenizer, no more of a text than its folder says, and answers as when it is served.
    What it said is found again in `cache_dir` for the same texts and teacher; one from the hub is known by its name.

    Raises:
        CheckpointError: if a teacher answers another kind of question, or has other labels.
    """
    kind = kind_of(task, problem_type_of(teachers[0].model))
    answers = []
    for teacher in teachers:
        asked = kind_of(task, problem_type_of(teacher.model))
        if asked != kind:
            raise CheckpointError(
                f"{teacher.name} answers {asked}, and {teachers[0].name} {kind}; all must answer alike"
            )
        columns = [0] if kind == REGRESSION else _label_places(teacher, label_names)
        own = _ask(teacher, examples, task=task, max_length=max_length, cache_dir=cache_dir, progress=progress)
        answers.append(own[:, columns])
    # Of several, the mean of probabilities and not of logits: teachers differ in how far their logits reach.
    mean = np.mean(answers, axis=0)
    if kind == TOKEN_CLASSIFICATION.name:
        return replace(examples, answers=np.split(mean, np.cumsum([len(words) for words in examples.texts])[:-1]))
    return replace(examples, answers=mean)


def score_answers(examples: Examples, *, kind: str, metric: str) -> Scores:
    """Return the scores of a teacher's answers against the labels, where both are there; empty if they nowhere are.

    Args:
        examples: with answers.
        kind: `potstill.tasks.kind_of`.
        metric: the one that comes first.
    """
    both = with_labels_and_answers(examples)
    if both is None:
        return {}
    assert both.answers is not None
    predictions: dict[str, NDArray[Any]]
    if isinstance(both.answers, list):
        values = np.concatenate(both.answers)
        seen = np.asarray(~np.isnan(values).any(axis=-1))
        of = np.repeat(np.arange(len(both)), [len(words) for words in both.texts])
        predictions = {"values": to_logits(values, None), "texts": of, "seen": seen}
    else:
        predictions = {"values": to_logits(both.answers, both.problem_type)}
    found = score(predictions, both, kind=kind, metric=metric).scores
    return {metric: found[metric]} | found


def check_teacher(who: str, scores: Mapping[str, float], floors: Mapping[str, float], *, metric: str) -> None:
    """Refuse a teacher that has nothing to teach: not fine-tuned, or with its labels in another order.

    Args:
        who: begins the sentence, as "the teacher".
        scores: its own; none decide nothing.
        floors: those of an answer that ignores the text.
        metric: the one that decides; where it has no score, the first one there is.

    Raises:
        CheckpointError: if its score is no better than the floor.
    """
    metric = metric if metric in scores else next(iter(scores), "")
    if metric not in floors:
        return
    reached, floor = scores[metric], floors[metric]
    if (reached >= floor) if lower_is_better(metric) else (reached <= floor):
        raise CheckpointError(
            f"{who}'s {metric} is {reached:.3f}, and an answer that ignores the text has {floor:.3f}: "
            "it is not fine-tuned for this task, or its labels stand in another order than the data's; "
            "set distill.allow_weak_teacher=true to go on"
        )


def with_labels_and_answers(examples: Examples) -> Examples | None:
    """Return the examples that have a label and an answer, or None if there are none."""
    if examples.labels is None or examples.answers is None:
        return None
    count = len(examples) - examples.num_unlabelled
    has = [not np.isnan(np.asarray(examples.answers[place])).all() for place in range(count)]
    places = np.flatnonzero(has)
    if not len(places):
        return None

    def chosen(values: Any) -> Any:
        return values[places] if isinstance(values, np.ndarray) else [values[place] for place in places]

    return replace(
        examples,
        texts=chosen(examples.texts),
        labels=chosen(examples.labels),
        answers=chosen(examples.answers),
        num_unlabelled=0,
    )


def _ask(
    teacher: Checkpoint, examples: Examples, *, task: Task, max_length: int, cache_dir: Path, progress: Progress
) -> NDArray[np.float64]:
    """Return a teacher's probabilities, or numbers, for each text, or word, in the order of its own labels."""
    # By content: a folder that was trained again has the same name and other answers.
    who = hash_checkpoint(teacher.name) or teacher.name
    longest = min(max_length, read_folder(teacher.name).longest or max_length)
    told = json.dumps([who, task.name, longest, examples.texts])
    folder = cache_dir / f"answers-{hashlib.sha256(told.encode()).hexdigest()[:24]}"
    if not folder.is_dir():
        evaluation = Evaluation(teacher.tokenizer, examples, max_length=longest, task=task)
        found = evaluation.ask(teacher.model, progress=progress, who=f"teacher {Path(teacher.name).name}")
        with new_folder(folder, overwrite=True) as building:
            values = found["values"].astype(np.float64)
            if "seen" in found:  # of words: nothing is said of those behind the longest input
                values[~found["seen"]] = np.nan
            np.save(building / _FILE, values)
    values = np.load(folder / _FILE, allow_pickle=False)
    kind = kind_of(task, problem_type_of(teacher.model))
    if kind == MULTI_LABEL:
        values = 1 / (1 + np.exp(-values))
    elif kind != REGRESSION:
        values = softmax(values)
    return values


def _label_places(teacher: Checkpoint, label_names: Sequence[str]) -> list[int]:
    """Return which of a teacher's outputs each label is.

    Raises:
        CheckpointError: with both lists, if they are not the same labels by name.
    """
    found = match_names(label_names, teacher.label_names)
    if found is None and are_generic(teacher.label_names):  # LABEL_0 names nothing but a position
        found = {name: place for place, name in enumerate(label_names)}
    if found is None or len(label_names) != len(teacher.label_names):
        raise CheckpointError(
            f"{teacher.name} has the labels {', '.join(teacher.label_names[:8])}, and the student "
            f"{', '.join(label_names[:8])}; answers are matched by name, so write the same names into the id2label of "
            "its config.json"
        )
    return [found[name] for name in label_names]
