"""Data sets: labelled texts from local files, the hub, or the text that Python carries, for every command.

    read.py         the one reader of data files: jsonl, json, csv, tsv, parquet, arrow, with a place to resume from
    splits.py       the files and rows of a split, what is held out of it, and the label names beside it
    columns.py      which columns are the text and the label
    labels.py       what a column of labels holds, as numbers
    answers.py      what a column of a teacher's answers holds, as numbers
    examples.py     all of that together: `load_examples`
    python_docs.py, python_functions.py
                    the embedded data sets

Local files need nothing but the standard library (parquet and arrow need pyarrow), so that an edge box can score
quality too; only a hub id needs `datasets`.
"""

from potstill.data.examples import (
    Examples,
    Extra,
    Splits,
    Text,
    guess_task,
    load_examples,
    load_splits,
    load_texts,
    load_unlabelled,
    load_vectors,
    without_labels,
)
from potstill.data.splits import EMBEDDED, PYTHON_DOCS, choose_splits

__all__ = [
    "EMBEDDED",
    "PYTHON_DOCS",
    "Examples",
    "Extra",
    "Splits",
    "Text",
    "choose_splits",
    "guess_task",
    "load_examples",
    "load_splits",
    "load_texts",
    "load_unlabelled",
    "load_vectors",
    "without_labels",
]
