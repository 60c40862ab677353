"""Rows of a split, from the hub, from local files, or from the text that every Python carries.

A split is a name such as `train`, or a part of one: `train/held-out` and `train/rest` have no text in common;
`held-out` and `rest` alone are short for these. A hash of each text decides whether it is held out, so that every
command, whatever its seed and the order of rows, agrees on which texts no model was trained on.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from potstill.data.python_docs import CHAPTERS, read_python_docs
from potstill.data.python_functions import PART_NAMES, read_python_functions
from potstill.data.read import SUFFIXES, Row, arrow_schema, read_rows
from potstill.errors import AbsentError, DataError
from potstill.extras import require
from potstill.hub import check_name
from potstill.messages import first_line

LabelNames: TypeAlias = Mapping[str, Sequence[str]]
"""The names of a column's label ids, by column."""

PYTHON_DOCS, PYTHON_FUNCTIONS = "python-docs", "python-functions"
EMBEDDED = frozenset({PYTHON_DOCS, PYTHON_FUNCTIONS})
"""Data sets made of the text that every Python carries; the name of a file or folder never takes their place."""
HELD_OUT, REST = "held-out", "rest"
HELD_OUT_SHARE = 0.1
"""The share of the different texts that is held out."""
# The defaults of the commands: a single file stands for each of them; any other name would be a typing error.
_SPLITS_OF_A_FILE = ("train", "validation", "test")

# Fixed for ever: with a recipe's seed, a student of another seed would be scored on its teacher's training texts.
_FIXED_SEED = b"potstill held-out 42"
_HASH_BITS = 64


def read_split(name: str, split: str) -> tuple[list[Row], LabelNames]:
    """Return all rows of a split (of `train` for `train/rest`), and by column the label names that the data set has.

    Raises:
        AbsentError: if the data set has no such split.
        DataError: if there is no such data set, a file is broken, or it has no rows.
        MissingExtraError: if a hub id or parquet file needs a library that is not installed.
    """
    base, _ = parse_split(split)
    if name == PYTHON_DOCS:
        return [{"text": text, "label": chapter} for text, chapter in read_python_docs(base)], {"label": CHAPTERS}
    if name == PYTHON_FUNCTIONS:
        return [{"text": text, "label": part} for text, part in read_python_functions(base)], {"label": PART_NAMES}
    files = find_files(name, base)
    rows, names = _read_hub(name, base) if files is None else _read_files(files)
    if not rows:
        raise DataError(f"{name} has no rows in its split {base!r}")
    return rows, names


def first_row(name: str, split: str = "train") -> Row | None:
    """Return the first row of a local split, or None for hub ids, embedded data, and splits that do not exist.

    Raises:
        DataError: if the path does not exist, or the row cannot be read.
    """
    try:
        files = find_files(name, split)
    except AbsentError:
        return None
    return next((row for file in files or () for _, row in read_rows(file)), None)


# Splits


def parse_split(split: str) -> tuple[str, str | None]:
    """Return a split's name and its part: `held-out`, `rest`, or None for all of it."""
    if split in (HELD_OUT, REST):
        return "train", split
    base, slash, part = split.rpartition("/")
    return (base, part) if slash and part in (HELD_OUT, REST) else (split, None)


def choose_splits(name: str, *, train: str, evaluation: str) -> tuple[str, str]:
    """Return the splits to train on and to score on, so that no score is taken on training rows.

    If the two asked for are the same rows (one file, one split named twice, a folder with nothing but `train`), a tenth
    of the texts is held out: `train/rest` and `train/held-out`.
    """
    if Path(name).expanduser().is_file():
        for split in (train, evaluation):
            find_files(name, parse_split(split)[0])  # refuses a name that a file cannot have
    if parse_split(train)[1] or parse_split(evaluation)[1] or not _are_same_rows(name, train, evaluation):
        return train, evaluation
    base = train if not Path(name).expanduser().is_file() else "train"
    return f"{base}/{REST}", f"{base}/{HELD_OUT}"


def _are_same_rows(name: str, train: str, evaluation: str) -> bool:
    """Return whether the two splits would be the same rows, or a folder has files of the first alone."""
    path = Path(name).expanduser()
    if path.is_file() or train == evaluation:
        return True
    if not path.is_dir():
        return False
    suffixes = (*SUFFIXES, ".txt")
    learned, scored = (_files_of_split(path, split, suffixes) for split in (train, evaluation))
    # With further files, a missing evaluation split is more likely a wrong name, which the reader then reports.
    others = set(_data_files(path, SUFFIXES)) - set(learned)
    return len(learned) > 0 and not scored and not others


def select_part(keys: Sequence[str], part: str | None, *, origin: str) -> list[int]:
    """Return the indices of the texts that belong to a part; a tenth of the different texts is held out.

    Args:
        keys: one string per text; texts with equal keys are in the same part.
        part: as `parse_split` returns it.
        origin: the data's name in messages.

    Raises:
        DataError: if there are not two different texts.
    """
    if part is None:
        return list(range(len(keys)))
    numbers = {key: _number_of(key) for key in keys}
    if len(numbers) < 2:
        raise DataError(
            f"{origin} has one text alone, so none can be held out to score on; give a folder with train and "
            "validation files"
        )
    # The tenth with the smallest hashes, exactly; a threshold could leave a small file without any.
    count = max(1, round(HELD_OUT_SHARE * len(numbers)))
    held_out = set(sorted(numbers, key=lambda key: (numbers[key], key))[:count])
    return [place for place, key in enumerate(keys) if (key in held_out) == (part == HELD_OUT)]


def is_held_out(text: str) -> bool:
    """Return whether a text of a stream is held out, by a threshold on its hash: about a tenth of all are."""
    return _number_of(text) < HELD_OUT_SHARE * (1 << _HASH_BITS)


def _number_of(key: str) -> int:
    """Hash a text to a uniform integer below 2**64, the same on every machine (unlike Python's own `hash`)."""
    # JSON may hold lone surrogates, which plain UTF-8 refuses.
    content = key.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, key=_FIXED_SEED, digest_size=_HASH_BITS // 8).digest())


# Files


def find_files(name: str, split: str, suffixes: Sequence[str] = SUFFIXES) -> list[Path] | None:
    """Return the files of a split in order, or None if `name` is a hub id or embedded.

    A single file stands for `train`, `validation` and `test` alike. In a folder, a split is `SPLIT.suffix`, the shards
    `SPLIT-*.suffix` (either also in `data/`), or what the folder SPLIT holds.

    Raises:
        AbsentError: if the folder has no such split.
        DataError: if the path does not exist, a file cannot have such a split, or the folder has it in two formats.
    """
    path = Path(name).expanduser()
    if name in EMBEDDED:
        return None
    if path.is_file():
        if split not in _SPLITS_OF_A_FILE:
            raise DataError(
                f"{path} is one file and has no split {split!r}; leave the split out, ask for {REST} or {HELD_OUT}, or "
                "name a folder with a file per split"
            )
        return [path]
    if path.is_dir():
        found = _files_of_split(path, split, suffixes)
        if found:
            return found
        have = ", ".join(str(file.relative_to(path)) for file in _data_files(path, suffixes)) or "no data files"
        raise AbsentError(f"{path} has no {split} split ({split}{{{','.join(suffixes)}}}); it has {have}")
    # A hub id has one slash at most and no suffix of data; anything else was meant as a path.
    if name.startswith((".", "/", "~")) or path.suffix in suffixes or name.count("/") > 1:
        raise DataError(
            f"there is no file or folder {name}; name a data folder, a file, or a hub id such as nyu-mll/glue:sst2"
        )
    return None


def _files_of_split(folder: Path, split: str, suffixes: Sequence[str]) -> list[Path]:
    """Return the files of the first pattern that matches; shards sort by name, as `datasets` numbers them."""
    for pattern in (f"{split}{{}}", f"{split}-*{{}}", f"{split}/*{{}}", f"data/{split}{{}}", f"data/{split}-*{{}}"):
        found = {suffix: sorted(folder.glob(pattern.format(suffix))) for suffix in suffixes}
        # json in a split's folder is not rows: `save_to_disk` puts state.json and dataset_info.json beside the shards.
        found = {
            suffix: files for suffix, files in found.items() if files and (suffix != ".json" or "/*" not in pattern)
        }
        if len(found) > 1:
            names = ", ".join(files[0].name for files in found.values())
            raise DataError(f"{folder} has the split {split!r} more than once, as {names}; name the file, or move one")
        if found:
            return next(iter(found.values()))
    return []


def _data_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the data files in a folder and in its immediate subfolders, for messages and to tell single splits."""
    notes = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
    places = (folder, *(path for path in sorted(folder.iterdir()) if path.is_dir()))
    files = [file for place in places for file in sorted(place.iterdir())]
    return [file for file in files if file.suffix in suffixes and file.name not in notes]


def _read_files(files: Sequence[Path]) -> tuple[list[Row], LabelNames]:
    rows: list[Row] = []
    names: dict[str, Sequence[str]] = {}
    for file in files:
        before = len(rows)
        rows.extend(row for _, row in read_rows(file))
        if len(rows) == before and len(files) == 1:
            raise DataError(f"{file} is empty; it needs at least one row")
        for column, found in label_names(file).items():
            if names.setdefault(column, found) != found:
                raise DataError(
                    f"{file} names the labels of column {column!r} {', '.join(found)}, and {files[0].name} "
                    f"{', '.join(names[column])}; write both with the same names"
                )
    return rows, names


# The hub


def _read_hub(name: str, split: str) -> tuple[list[Row], LabelNames]:
    datasets = require("datasets", extra="distill")
    check_name(name, "dataset")
    repository, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, configuration or None, split=split)
    except Exception as error:  # the hub client raises many kinds, all meaning the same here
        raise AbsentError(
            f"cannot load {name!r} ({split}) from the hub: {first_line(error)}; check the name and the network, "
            "or pass a folder with train and validation files"
        ) from error
    named = ((column, hub_label_names(feature)) for column, feature in loaded.features.items())
    return list(loaded), {column: names for column, names in named if names}


def hub_label_names(feature: object) -> Sequence[str] | None:
    """Return the names of a `datasets` feature that is a ClassLabel or a list of them, or None."""
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return tuple(names) if names else None


# Names of labels that a data set carries beside its rows


def label_names(file: Path) -> dict[str, tuple[str, ...]]:
    """Return label names by column, as `datasets` writes them into a file's metadata or into files beside it.

    The sources, of which the first that names any label wins: the metadata of parquet and arrow, `dataset_info.json`,
    `dataset_infos.json`, and the dataset card (`README.md`).

    Raises:
        DataError: if a parquet or arrow file cannot be read.
    """
    if file.suffix in (".parquet", ".arrow"):
        metadata = (arrow_schema(file).metadata or {}).get(b"huggingface")
        found = _names_in_info(_parsed(metadata).get("info")) if metadata else {}
        if found:
            return found
    for folder in (file.parent, *([file.parent.parent] if file.parent.name == "data" else [])):
        info, infos, card = (folder / name for name in ("dataset_info.json", "dataset_infos.json", "README.md"))
        for described in (
            _names_in_info(_parsed(info.read_bytes())) if info.is_file() else {},
            # What `datasets` 1 and 2 wrote of all configurations.
            _where_agreed(map(_names_in_info, _parsed(infos.read_bytes()).values())) if infos.is_file() else {},
            _names_in_card(card),
        ):
            if described:
                return described
    return {}


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _where_agreed(found: Iterable[LabelNames]) -> dict[str, tuple[str, ...]]:
    """Return the label names of the columns on which all configurations agree: which one a file is of is unknown."""
    by_column: dict[str, set[tuple[str, ...]]] = {}
    for each in found:
        for column, names in each.items():
            by_column.setdefault(column, set()).add(tuple(names))
    return {column: names.pop() for column, names in by_column.items() if len(names) == 1}


def _names_in_info(info: object) -> dict[str, tuple[str, ...]]:
    """Return label names by column from the JSON of a `datasets.DatasetInfo`."""
    features = info.get("features") if isinstance(info, dict) else None
    if not isinstance(features, dict):
        return {}
    return {str(column): names for column, feature in features.items() if (names := _class_names(feature))}


def _class_names(feature: object) -> tuple[str, ...] | None:
    """Return the names of a ClassLabel in JSON, or of one in a list, which versions of `datasets` write differently."""
    if isinstance(feature, list) and len(feature) == 1:
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return None
    if isinstance(feature.get("names"), list):
        return tuple(map(str, feature["names"]))
    return _class_names(feature.get("feature"))


def _names_in_card(file: Path) -> dict[str, tuple[str, ...]]:
    """Return label names by column from `dataset_info` in the YAML header of a dataset card."""
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return {}
    import yaml

    try:
        card = yaml.safe_load(text.split("---", 2)[1])
    except yaml.YAMLError:
        return {}
    infos = card.get("dataset_info") if isinstance(card, dict) else None
    features = (
        (info.get("features") or []) if isinstance(info, dict) else []
        for info in (infos if isinstance(infos, list) else [infos])
    )
    return _where_agreed(
        {str(feature.get("name")): names}
        for listed in features
        for feature in listed
        if (names := _card_names(feature))
    )


def _card_names(feature: object) -> tuple[str, ...] | None:
    """Return the names in `{dtype: {class_label: {names: {"0": ...}}}}`, or in the same under `sequence` or `list`."""
    if not isinstance(feature, dict):
        return None
    for key in ("dtype", "sequence", "list"):
        inner = feature.get(key)
        if isinstance(inner, dict):
            names = (inner.get("class_label") or {}).get("names")
            if isinstance(names, dict):
                # YAML keeps the ids as text: "10" would sort before "2".
                return tuple(str(names[number]) for number in sorted(names, key=int))
            if isinstance(names, list):
                return tuple(map(str, names))
            if (deeper := _card_names(inner)) is not None:
                return deeper
    return None
