"""Labelled texts from the hub, from local files, or from the documentation that Python carries.

What columns and labels mean is decided on all rows of all splits together, before rows are held out or a limit is
applied, so label ids never depend on how much of the data is used.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potstill.data.answers import Answers, names_in_answers, read_answers, read_vectors
from potstill.data.columns import (
    LABEL_REMEDY,
    NO_LABELS,
    TEXT_REMEDY,
    cell_of,
    is_numbering,
    pick_label_columns,
    pick_text_columns,
)
from potstill.data.labels import NO_LABEL, LabelReader, NumberedRow, is_missing, names_beside, read_list
from potstill.data.read import SUFFIXES, Row, text_lines
from potstill.data.splits import LabelNames, find_files, first_row, parse_split, read_split, select_part
from potstill.errors import AbsentError, DataError
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    MULTI_LABEL,
    PROBLEM_TYPES,
    QUESTION_ANSWERING,
    SINGLE_LABEL,
    TEXT_NAMES,
    TOKEN_CLASSIFICATION,
    Task,
    kind_of,
)

Text: TypeAlias = str | tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """One split of a data set: N texts and the answers that a model should give."""

    name: str
    split: str
    texts: list[Any]
    """For each example a string or a pair of strings; a list of words for token-classification, and (question, context)
    for question-answering."""
    labels: Any
    """By task and problem type, for N examples:

    - a single label: int64 ids of shape (N,)
    - several labels: float64 of shape (N, num_labels), 1 for each label that applies and 0 elsewhere
    - regression, and feature-extraction where pairs have a score: float64 of shape (N,)
    - token-classification: a list of int64 ids of shape (words,)
    - question-answering: a list of `{"text": [...], "answer_start": [...]}`, both empty where there is no answer
    - None where texts are all there is: fill-mask, feature-extraction without a score, and texts to score on of which
      none has a label

    Texts to learn from that have no label stand behind all others and have the id -1 (each of their words, for
    token-classification), or NaN.
    """
    label_names: tuple[str, ...]
    """Names by label id; the ids in decimal where the data gives no names; empty where labels are not ids."""
    sha256: str
    """SHA-256 over texts and labels in order; equal hashes mean the same test, whatever the file format."""
    problem_type: str | None = None
    """For text classifiers, one of `potstill.tasks.PROBLEM_TYPES`: as asked for, else inferred from the labels."""
    text_columns: tuple[str, ...] = ()
    label_columns: tuple[str, ...] = ()
    """Empty where no label was read; one column per label if there are several."""
    labels_read: str = ""
    """How cells were mapped to ids, in words: by name, by position, as they occur."""
    notes: tuple[str, ...] = ()
    """Remarks for the user on how the data was read, such as rows left out."""
    answers: Answers | None = None
    """A teacher's, from a column of the data."""
    num_unlabelled: int = 0
    """How many texts, the last ones, have no label."""

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """What a student may learn from beside texts with labels: the other texts of the same data, and these."""

    unlabelled: str | None = None
    """A further data set, of whose `train` split the texts are read, and no labels."""
    answers: str | None = None
    """The column of a teacher's answers, see `potstill.data.answers`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """A training and an evaluation split, read by the same rules."""

    train: Examples
    evaluation: Examples
    shared: int
    """Number of evaluation texts that are training texts, too."""


def load_examples(
    name: str,
    *,
    split: str,
    task: Task,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    problem_type: str | None = None,
    limit: int | None = None,
) -> Examples:
    """Load one split of a data set.

    Args:
        name: a hub id with an optional configuration (`nyu-mll/glue:sst2`), a folder with one file per split, one
            file, `python-docs`, or `python-functions`.
        split: `train`, `validation`, ...; a folder's file is found by this name, and a file is all of them.
            `held-out` is the tenth of the training texts that `choose_splits` holds out, `rest` the others.
        task: says which columns to look for, and what they hold.
        text_columns: the column of the text, or two for pairs; None looks for the task's usual names.
        label_column: the column of the label, or several with commas between them, each 0 or 1, for a label each;
            None, and `label` where there is no such column, look for the task's usual names.
        label_names: the model's labels in their order; what the data holds is looked up here as
            `potstill.data.labels.name_labels` does. None takes the names that the data gives, or the values that occur.
        problem_type: what a text classifier answers, one of `potstill.tasks.PROBLEM_TYPES`. None is a single label
            where the model's labels are given, and what the values look like where they are not.
        limit: keep the first so many examples.

    Raises:
        DataError: if data set, split or column is missing, a row is broken, labels differ, or nothing is left.
        UsageError: if there is no such problem type.
        MissingExtraError: if a hub id or parquet file needs a library that is not installed.
    """
    (examples,) = _load(
        name,
        [(split, limit)],
        task=task,
        text_columns=text_columns,
        label_column=label_column,
        label_names=label_names,
        problem_type=problem_type,
    )
    return examples


def load_splits(
    name: str,
    *,
    train: tuple[str, int | None],
    evaluation: tuple[str, int | None],
    task: Task,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    problem_type: str | None = None,
    extra: Extra | None = None,
) -> Splits:
    """Load a training and an evaluation split whose label ids mean the same.

    Args:
        name: as in `load_examples`.
        train: the split to learn from, and how many examples of it; None is all.
        evaluation: likewise to score on. `choose_splits` names two that share no row.
        task: as in `load_examples`.
        text_columns: as in `load_examples`.
        label_column: as in `load_examples`.
        label_names: as in `load_examples`; None takes the labels of both splits.
        problem_type: as in `load_examples`.
        extra: what is learned from beside texts with labels; None leaves texts without one out.

    Raises:
        DataError: as `load_examples`, or if all labels are equal, or every evaluation text is a training text.
    """
    ours, theirs = _load(
        name,
        [train, evaluation],
        task=task,
        text_columns=text_columns,
        label_column=label_column,
        label_names=label_names,
        problem_type=problem_type,
        extra=extra,
    )
    # Cross-entropy over one class is always 0: such a training would end with a perfect score.
    is_labelled = ours.num_unlabelled < len(ours)
    if not label_names and ours.problem_type == SINGLE_LABEL and len(ours.label_names) < 2 and is_labelled:
        raise DataError(
            f"every label in column {ours.label_columns[0]!r} of {name} is {ours.label_names[0]}: there is nothing to "
            f"tell apart; {LABEL_REMEDY}, or take data with labels"
        )
    if ours.problem_type == SINGLE_LABEL and is_labelled:
        missing = [name for place, name in enumerate(ours.label_names) if not (ours.labels == place).any()]
        note = (f"no text to learn from has the label {', '.join(missing)}",) if missing else ()
        theirs = replace(theirs, notes=(*theirs.notes, *note))
    learned = set(map(_key_of, ours.texts))
    shared = sum(_key_of(text) in learned for text in theirs.texts)
    # Some overlap is normal, in GLUE as well (16 of CoLA's 1,043 validation texts, docs/log.md): only counted.
    if shared == len(theirs):
        raise DataError(
            f"every text of {name} ({theirs.split}) is in {ours.split} as well, so a score would say nothing; take "
            "other texts to score on, or pass the training file alone, of which a tenth is held out"
        )
    return Splits(train=ours, evaluation=theirs, shared=shared)


def load_vectors(
    name: str, *, split: str, column: str, text_columns: Sequence[str] | None = None, limit: int | None = None
) -> tuple[list[str], NDArray[np.float32]]:
    """Load the different texts of a split, and for each its vector of another model from a column.

    Raises:
        AbsentError: if there is no such column.
        DataError: if a text is a pair, or a cell holds no vector.
    """
    rows, _ = read_split(name, split)
    origin, kind = f"{name} ({split})", kind_of(FEATURE_EXTRACTION)
    columns = pick_text_columns(list(rows[0]), task=FEATURE_EXTRACTION, asked=text_columns, origin=origin)
    if len(columns) != 1:
        raise DataError(f"a vector belongs to one text, and {origin} has pairs ({', '.join(columns)}); {TEXT_REMEDY}")
    if column not in rows[0]:
        raise AbsentError(f"{origin} has no column {column!r}; it has {', '.join(rows[0])}")
    numbered = _numbered(rows, kind=kind, column=columns[0], origin=origin)
    kept, texts = _part(numbered, split=split, kind=kind, columns=columns, limit=limit, origin=origin)
    vectors = read_vectors([(number, row.get(column)) for number, row in kept], column)
    first = {text: place for place, text in reversed(list(enumerate(texts)))}
    places = sorted(first.values())
    return [texts[place] for place in places], vectors[places]


def without_labels(examples: Examples, *, kind: str) -> Examples:
    """Return the examples as texts to learn from, none of which has a label."""
    none = _no_labels(examples.texts, kind=kind, width=len(examples.label_names))
    return replace(examples, labels=none, num_unlabelled=len(examples))


def load_texts(
    name: str, *, split: str, task: Task, text_columns: Sequence[str] | None = None, limit: int | None = None
) -> list[Any]:
    """Load the texts of a split as `load_examples` does, without looking for labels."""
    rows, _ = read_split(name, split)
    origin = f"{name} ({split})"
    columns = pick_text_columns(list(rows[0]), task=task, asked=text_columns, origin=origin)
    numbered = _numbered(rows, kind=kind_of(task), column=columns[0], origin=origin)
    return _part(numbered, split=split, kind=kind_of(task), columns=columns, limit=limit, origin=origin)[1]


def guess_task(name: str) -> str | None:
    """Return the only task that the columns of local data fit: words with tags, or questions, contexts and answers.

    Returns None if the columns leave a choice, and for hub ids, whose columns are unknown before they are loaded.

    Raises:
        DataError: if the first row cannot be read.
    """
    row = first_row(name)
    if row is None:
        return None
    for task in (TOKEN_CLASSIFICATION, QUESTION_ANSWERING):
        has_texts = any(all(column in row for column in columns) for columns in task.text_columns)
        if has_texts and any(column in row for column in task.label_columns):
            return task.name
    return None


def _load(
    name: str,
    splits: Sequence[tuple[str, int | None]],
    *,
    task: Task,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    label_names: Sequence[str] | None,
    problem_type: str | None,
    extra: Extra | None = None,
) -> list[Examples]:
    """Load splits together, with columns and label ids decided on all rows of all of them.

    With `extra` the first split, which is learned from, keeps its texts without a label, and no text needs one.
    """
    origins = [f"{name} ({split})" for split, _ in splits]
    known = tuple(label_names) if label_names else None
    tables, own_names = _read_tables(name, [split for split, _ in splits])
    columns = pick_text_columns(list(tables[0][0]), task=task, asked=text_columns, origin=origins[0])
    kind = kind_of(task, problem_type)
    numbered = [
        _numbered(table, kind=kind, column=columns[0], origin=origin)
        for table, origin in zip(tables, origins, strict=True)
    ]
    rows_of_all = [row for rows in numbered for _, row in rows]
    label_columns = _pick_label_columns(
        rows_of_all, task, label_column, columns=columns, known=known, origin=origins[0], extra=extra
    )
    all_rows = numbered
    unlabelled: list[NumberedRow] = []
    reader: LabelReader | None = None
    if label_columns:
        own = own_names.get(label_columns[0]) if len(label_columns) == 1 else None
        if own is None and kind == SINGLE_LABEL and len(label_columns) == 1:
            # A model's own labels may be more than occur here; the labels of a new head may have no gaps.
            own = names_beside(rows_of_all, label_columns[0], fill=known is not None)
        reader = LabelReader(task, label_columns, known=known, own=own, problem_type=problem_type)
        numbered = [
            # Of one file with both splits, what has no label is learned from, whichever split it would be in.
            _labelled(reader, rows, origin, needs_some=extra is None, keeps=extra is not None and table is tables[0])
            for rows, table, origin in zip(all_rows, tables, origins, strict=True)
        ]
        everything = [row for rows in numbered for row in rows]
        if everything:
            labelled = {number for number, _ in numbered[0]}
            unlabelled = [row for row in all_rows[0] if row[0] not in labelled] if extra else []
            # Tags are counted against words, and answers looked up in contexts; other tasks need no texts here.
            is_checked = task in (TOKEN_CLASSIFICATION, QUESTION_ANSWERING)
            reader.decide(everything, _texts(everything, kind=kind, columns=columns) if is_checked else (), columns)
        else:  # with `extra` alone: all cells are empty, which is no worse than no column
            numbered, reader, label_columns = all_rows, None, None
    found: list[Examples] = []
    rows_found: list[list[NumberedRow]] = []
    for place, ((split, limit), rows, origin) in enumerate(zip(splits, numbered, origins, strict=True)):
        # Only texts to score on may have no label at all here; texts to learn from are completed below.
        has_labels = reader is not None and (len(rows) > 0 or place == 0)
        kept, texts_of = _part(
            rows if has_labels else all_rows[place],
            split=split,
            kind=kind,
            columns=columns,
            limit=limit,
            origin=origin,
        )
        labels_of = reader.read(kept, texts_of) if reader is not None and has_labels and kept else None
        rows_found.append(kept)
        found.append(
            Examples(
                name=name,
                split=split,
                texts=texts_of,
                labels=labels_of,
                label_names=reader.names if reader else (),
                sha256=_digest(texts_of, labels_of),
                problem_type=reader.problem_type if reader else None,
                text_columns=columns,
                label_columns=label_columns or (),
                labels_read=reader.how if reader else "",
                notes=tuple(reader.notes) if reader else (),
            )
        )
    if extra is None:
        return found
    most = splits[0][1]
    more = unlabelled if most is None else unlabelled[: max(0, most - len(rows_found[0]))]
    return _with_extra(found, rows_found, more, extra, task=task, known=known, problem_type=problem_type)


def _pick_label_columns(
    rows: Sequence[Row],
    task: Task,
    asked: str | None,
    *,
    columns: tuple[str, ...],
    known: tuple[str, ...] | None,
    origin: str,
    extra: Extra | None,
) -> tuple[str, ...] | None:
    """Pick the columns of the label as `pick_label_columns` does; with `extra` there need be none."""
    if extra is None:
        return pick_label_columns(rows, task=task, asked=asked, text_columns=columns, known=known, origin=origin)
    taken = columns if extra.answers is None else (*columns, extra.answers)
    # A first row without a label may lack the column that later rows have.
    every = [_merged(rows), *rows]
    if asked == NO_LABELS and NO_LABELS not in every[0]:
        return None
    try:
        return pick_label_columns(every, task=task, asked=asked, text_columns=taken, known=known, origin=origin)
    except AbsentError as error:
        # Another column may be the label under a name of its own, and must not be overlooked; a mistyped column of
        # answers is told later.
        is_there = extra.answers is None or extra.answers in every[0]
        if is_there and any(column not in taken and not is_numbering(column) for column in every[0]):
            raise AbsentError(f"{error}; texts that have no labels: --label-column {NO_LABELS}") from error
        return None


def _labelled(
    reader: LabelReader, rows: list[NumberedRow], origin: str, *, needs_some: bool, keeps: bool
) -> list[NumberedRow]:
    """Return the rows with a label, see `LabelReader.without_unlabelled`; none, too, unless it `needs_some`."""
    try:
        return reader.without_unlabelled(rows, origin, keeps=keeps)
    except AbsentError:
        if needs_some:
            raise
        return []


def _with_extra(
    found: list[Examples],
    rows_found: list[list[NumberedRow]],
    unlabelled: list[NumberedRow],
    extra: Extra,
    *,
    task: Task,
    known: tuple[str, ...] | None,
    problem_type: str | None,
) -> list[Examples]:
    """Add the texts without a label to those to learn from, and a teacher's answers from a column to both splits.

    Args:
        found: the splits to learn from and to score on.
        rows_found: the rows that they were made of.
        unlabelled: further rows to learn from.
        extra: names what more there is.
        task: says which columns to look for in another data set.
        known: the model's labels in id order, if there is a model.
        problem_type: as asked for.
    """
    train, evaluation = found
    kind = kind_of(task, train.problem_type or problem_type)
    texts, rows, notes = list(train.texts), list(rows_found[0]), list(evaluation.notes)
    held_out = set(map(_key_of, evaluation.texts))
    # Of the same data: behind the rows with a label, but for those whose text is held out to score on.
    for row, text in zip(unlabelled, _texts(unlabelled, kind=kind, columns=train.text_columns), strict=True):
        if _key_of(text) not in held_out:
            texts.append(text)
            rows.append(row)
    own = len(texts)
    if extra.unlabelled is not None:
        further, their_texts = _read_unlabelled(extra.unlabelled, task, kind=kind, columns=train.text_columns)
        there = held_out.union(map(_key_of, texts))
        new = [place for place, text in enumerate(their_texts) if _key_of(text) not in there]
        texts += [their_texts[place] for place in new]
        rows += [further[place] for place in new]
        if len(new) < len(further):
            count = f"{len(further) - len(new):,} of {len(further):,}"
            notes.append(f"{count} texts of {extra.unlabelled} (train) are in {train.name} already and are left out")
    has_names = kind in (SINGLE_LABEL, MULTI_LABEL, TOKEN_CLASSIFICATION.name)
    names = (train.label_names or known or ()) if has_names else ()
    answers, their_answers = None, None
    if extra.answers is not None:
        cells, their_cells = (
            [(number, row.get(extra.answers)) for number, row in part] for part in (rows, rows_found[1])
        )
        # Labels may be in the one data set and answers in the other.
        part, origin = (rows[own:], f"{extra.unlabelled} (train)") if own < len(rows) else (rows, train.name)
        _check_answers(part, extra.answers, origin)
        if has_names and not names:
            names = names_in_answers(cells)
        reading: dict[str, Any] = {"column": extra.answers, "names": names, "kind": kind}
        answers = read_answers(cells[:own], texts=texts[:own], **reading)
        try:  # rows are numbered by file
            more = read_answers(cells[own:], texts=texts[own:], **reading)
        except DataError as error:
            raise DataError(f"{extra.unlabelled} {error}") from error
        answers = [*answers, *more] if isinstance(answers, list) else np.concatenate([answers, more])
        if not all(is_missing(value) for _, value in their_cells):
            their_answers = read_answers(their_cells, texts=evaluation.texts, **reading)
        # Nothing can be learned from a text of which nothing is known.
        labelled = len(train) if train.labels is not None else 0
        kept = [place for place, one in enumerate(answers) if place < labelled or not np.isnan(one).all()]
        if len(kept) < len(texts):
            count = f"{len(texts) - len(kept):,} of {len(texts):,}"
            notes.append(
                f"{count} texts have neither a label nor an answer in column {extra.answers!r} and are left out"
            )
            texts = [texts[place] for place in kept]
            answers = [answers[place] for place in kept] if isinstance(answers, list) else answers[kept]
    count_unlabelled = len(texts) - (len(train) if train.labels is not None else 0)
    none = _no_labels(texts[len(texts) - count_unlabelled :], kind=kind, width=len(names))
    labels = _joined(train.labels, none)
    described: dict[str, Any] = {"label_names": names, "problem_type": kind if kind in PROBLEM_TYPES else None}
    learned = replace(
        train,
        texts=texts,
        labels=labels,
        num_unlabelled=count_unlabelled,
        sha256=_digest(texts, labels) if count_unlabelled else train.sha256,
        answers=answers,
        **described,
    )
    return [learned, replace(evaluation, answers=their_answers, notes=tuple(notes), **described)]


def _check_answers(rows: Sequence[NumberedRow], column: str, name: str) -> None:
    if any(column in row for _, row in rows):
        if all(is_missing(row.get(column)) for _, row in rows):
            raise DataError(f"column {column!r} of {name} is empty: there is no answer to learn from")
    else:
        raise DataError(
            f"{name} has no column {column!r}; it has {', '.join(_merged(row for _, row in rows))}; name the column of "
            "the teacher's answers with --teacher-column"
        )


def load_unlabelled(name: str, *, task: Task, text_columns: Sequence[str] | None = None) -> list[Any]:
    """Load the texts of `Extra.unlabelled`: of `train`, from columns with usual names if it has not those asked for."""
    return _read_unlabelled(name, task, kind=kind_of(task), columns=tuple(text_columns or ()))[1]


def _read_unlabelled(
    name: str, task: Task, *, kind: str, columns: tuple[str, ...]
) -> tuple[list[NumberedRow], list[Any]]:
    """Return the rows of a data set's `train` split and their texts; in a text file each line is a text.

    Args:
        name: as `load_examples` takes it, or a file or folder of text.
        task: says which columns to look for.
        kind: `kind_of` the data.
        columns: of the text in the data that it is read for, which come first; empty for the usual ones.

    Raises:
        DataError: if it cannot be read, or has pairs where that has single texts.
    """
    files = find_files(name, "train", (*SUFFIXES, ".txt"))
    if files and files[0].suffix == ".txt":
        lines = [line.rstrip("\r\n") for file in files for line in text_lines(file)]
        table = [{TEXT_NAMES[0]: line} for line in lines if line.strip()]
    else:
        table, _ = read_split(name, "train")
    if not table:
        raise DataError(f"{name} has no text")
    origin = f"{name} (train)"
    asked = columns if columns and all(column in table[0] for column in columns) else None
    found = pick_text_columns(list(table[0]), task=task, asked=asked, origin=origin)
    if columns and len(found) != len(columns):
        raise DataError(
            f"{origin} has the text in {', '.join(found)}, and the labelled data in {', '.join(columns)}; both must be "
            "single texts, or pairs"
        )
    numbered = _numbered(table, kind=kind, column=found[0], origin=origin)
    return numbered, _texts(numbered, kind=kind, columns=found)


def _merged(rows: Iterable[Row]) -> Row:
    """Return a row with every column of some rows, and the first value of each that is not missing."""
    merged: Row = {}
    for row in rows:
        for column, value in row.items():
            if is_missing(merged.get(column)):
                merged[column] = value
    return merged


def _no_labels(texts: Sequence[Any], *, kind: str, width: int) -> Any:
    """Return what `Examples.labels` holds for texts without a label."""
    if kind == TOKEN_CLASSIFICATION.name:
        return [np.full(len(words), NO_LABEL, dtype=np.int64) for words in texts]
    if kind == SINGLE_LABEL:
        return np.full(len(texts), NO_LABEL, dtype=np.int64)
    return np.full((len(texts), width) if kind == MULTI_LABEL else len(texts), np.nan)


def _joined(labels: Any, none: Any) -> Any:
    if labels is None or not len(none):
        return none if labels is None else labels
    return [*labels, *none] if isinstance(none, list) else np.concatenate([labels, none])


def _read_tables(name: str, splits: Sequence[str]) -> tuple[list[list[Row]], LabelNames]:
    """Read each split once, even if two parts of it are asked for, and merge the label names of all."""
    read: dict[str, tuple[list[Row], LabelNames]] = {}
    names: dict[str, Sequence[str]] = {}
    for split in splits:
        base, _ = parse_split(split)
        if base not in read:
            read[base] = read_split(name, split)
        for column, found in read[base][1].items():
            if names.setdefault(column, found) != found:
                raise DataError(
                    f"{name} names the labels of column {column!r} {', '.join(names[column])} in {splits[0]} and "
                    f"{', '.join(found)} in {split}; write both with the same names"
                )
    return [read[parse_split(split)[0]][0] for split in splits], names


def _numbered(rows: Sequence[Row], *, kind: str, column: str, origin: str) -> list[NumberedRow]:
    """Number the rows from 1; for running text and tagged words, drop those whose text is empty."""
    # Numbered before empty rows are dropped: messages must name the row as the file has it.
    numbered: list[NumberedRow] = list(enumerate(rows, 1))
    if kind in (FILL_MASK.name, TOKEN_CLASSIFICATION.name):
        numbered = [
            (number, row)
            for number, row in numbered
            if not (value.strip() == "" if isinstance(value := row.get(column), str) else value == [])
        ]
    if not numbered:
        raise DataError(f"{origin} has nothing but empty texts in column {column!r}")
    return numbered


def _part(
    rows: Sequence[NumberedRow], *, split: str, kind: str, columns: Sequence[str], limit: int | None, origin: str
) -> tuple[list[NumberedRow], list[Any]]:
    """Return the rows of a split, or of a part of it such as `train/held-out`, and their texts."""
    _, part = parse_split(split)
    if part is None:
        kept = list(rows[:limit])
        return kept, _texts(kept, kind=kind, columns=columns)
    texts = _texts(rows, kind=kind, columns=columns)
    # Hash the context, not the question: other questions about a context seen in training give its answers away.
    asks = kind == QUESTION_ANSWERING.name
    # The limit applies within the part; a limit on the rows before would change which texts are held out.
    places = select_part([_key_of(text[1] if asks else text) for text in texts], part, origin=origin)[:limit]
    return [rows[place] for place in places], [texts[place] for place in places]


def _key_of(text: object) -> str:
    return text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)


def _texts(rows: Sequence[NumberedRow], *, kind: str, columns: Sequence[str]) -> list[Any]:
    """Return the text of each row, its pair of texts, or its list of words, as in `Examples.texts`."""
    found: list[Any] = []
    for number, row in rows:
        parts = [cell_of(row, column, number, TEXT_REMEDY) for column in columns]
        if kind == TOKEN_CLASSIFICATION.name:
            words = read_list(parts[0])
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise DataError(f"row {number}: column {columns[0]!r} holds {parts[0]!r}, not a list of words")
            found.append(words)
            continue
        for column, part in zip(columns, parts, strict=True):
            if not isinstance(part, str):
                raise DataError(f"row {number}: column {column!r} holds {part!r}, not a text")
        found.append(parts[0] if len(parts) == 1 else (parts[0], parts[1]))
    return found


def _digest(texts: Sequence[object], found: Any) -> str:
    """Hash values, not files, so that a csv and a parquet file of the same rows have the same hash."""
    listed = [ids.tolist() for ids in found] if isinstance(found, list) and hasattr(found[0], "tolist") else found
    # ASCII escapes, because JSON may hold lone surrogates, which UTF-8 cannot encode.
    content = json.dumps(
        [texts, found.tolist() if hasattr(found, "tolist") else listed], ensure_ascii=True, separators=(",", ":")
    )
    return hashlib.sha256(content.encode()).hexdigest()
