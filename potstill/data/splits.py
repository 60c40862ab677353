"""Rows of a split, from the hub, from local files, or from the documentation that Python carries.

A split is a name such as `train`, or a part of one: `train/held-out` and `train/rest` are two parts that have no text
in common, `held-out` is short for the first. Which text is held out is decided by a hash of the text alone, so that
every command, whatever its seed, agrees on what no model has learned from.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from potstill.data.python_docs import CHAPTERS, read_python_docs
from potstill.data.read import SUFFIXES, Row, arrow_schema, read_rows
from potstill.errors import AbsentError, DataError
from potstill.extras import require
from potstill.hub import check_name
from potstill.messages import first_line

LabelNames: TypeAlias = Mapping[str, Sequence[str]]
"""The names of a column's label ids, by column."""

PYTHON_DOCS = "python-docs"
HELD_OUT, REST = "held-out", "rest"
HELD_OUT_SHARE = 0.1
# A file is all of these: what commands ask for where nobody names a split.
_SPLITS_OF_A_FILE = ("train", "validation", "test")

_FIXED_SEED = b"potstill held-out 42"
_HASH_BITS = 64


def read_split(name: str, split: str) -> tuple[list[Row], LabelNames]:
    """Return the rows of a whole split, and by column the label names that the data set itself has.

    Raises:
        DataError: if there is no such data set or split, a file is broken, or it has no rows.
        MissingExtraError: if a hub id or parquet file needs a library that is not installed.
    """
    base, _ = parse_split(split)
    if name == PYTHON_DOCS:
        return [{"text": text, "label": chapter} for text, chapter in read_python_docs(base)], {"label": CHAPTERS}
    files = find_files(name, base)
    rows, names = _read_hub(name, base) if files is None else _read_files(files)
    if not rows:
        raise DataError(f"{name} has no rows in its split {base!r}")
    return rows, names


def first_row(name: str, split: str = "train") -> Row | None:
    """Return the first row of a local split; None of a hub id, of `python-docs`, and where there is no such split.

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
    """Return the name of a split, and which part of it is meant: `held-out`, `rest`, or None for all of it."""
    if split in (HELD_OUT, REST):
        return "train", split
    base, slash, part = split.rpartition("/")
    return (base, part) if slash and part in (HELD_OUT, REST) else (split, None)


def choose_splits(name: str, *, train: str, evaluation: str) -> tuple[str, str]:
    """Return the splits to learn from and to score on, so that nothing is scored on what was learned.

    Where they would be the same rows (one file, one split named twice, a folder with nothing but `train`), a part of
    the texts is held out: `train/rest` and `train/held-out`.
    """
    if Path(name).expanduser().is_file():
        for split in (train, evaluation):
            find_files(name, parse_split(split)[0])  # refuses a name that a file cannot have
    if parse_split(train)[1] or parse_split(evaluation)[1] or not _are_same_rows(name, train, evaluation):
        return train, evaluation
    base = train if not Path(name).expanduser().is_file() else "train"
    return f"{base}/{REST}", f"{base}/{HELD_OUT}"


def _are_same_rows(name: str, train: str, evaluation: str) -> bool:
    """Return whether the two splits would be the same rows, or there is nothing but the first."""
    path = Path(name).expanduser()
    if path.is_file() or train == evaluation:
        return True
    if not path.is_dir():
        return False
    suffixes = (*SUFFIXES, ".txt")
    learned, scored = (_files_of_split(path, split, suffixes) for split in (train, evaluation))
    others = set(_data_files(path, SUFFIXES)) - set(learned)
    return len(learned) > 0 and not scored and not others


def select_part(keys: Sequence[str], part: str | None, *, origin: str) -> list[int]:
    """Return the places of the texts that belong to a part: a tenth of the different texts is held out.

    Args:
        keys: what tells texts apart; equal ones are in the same part.
        part: as `parse_split` returns it.
        origin: named in messages.

    Raises:
        DataError: if there are not two different texts to part.
    """
    if part is None:
        return list(range(len(keys)))
    numbers = {key: _number_of(key) for key in keys}
    if len(numbers) < 2:
        raise DataError(
            f"{origin} has one text alone, so none can be held out to score on; give a folder with train and "
            "validation files"
        )
    count = max(1, round(HELD_OUT_SHARE * len(numbers)))
    held_out = set(sorted(numbers, key=lambda key: (numbers[key], key))[:count])
    return [place for place, key in enumerate(keys) if (key in held_out) == (part == HELD_OUT)]


def is_held_out(text: str) -> bool:
    """Return whether a text of a stream is held out: about a tenth of all are."""
    return _number_of(text) < HELD_OUT_SHARE * (1 << _HASH_BITS)


def _number_of(key: str) -> int:
    content = key.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, key=_FIXED_SEED, digest_size=_HASH_BITS // 8).digest())


# Files


def find_files(name: str, split: str, suffixes: Sequence[str] = SUFFIXES) -> list[Path] | None:
    """Return the files of a split in their order, or None where `name` is no path but a hub id or `python-docs`.

    A file is itself, whichever usual split is asked for. In a folder, or its folder `data`, they are `SPLIT.suffix`,
    the shards `SPLIT-*.suffix`, or what the folder SPLIT holds.

    Raises:
        DataError: if the path does not exist, the file or folder has no such split, or has it in two formats.
    """
    path = Path(name).expanduser()
    if name == PYTHON_DOCS:
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
    if name.startswith((".", "/", "~")) or path.suffix in suffixes or name.count("/") > 1:
        raise DataError(
            f"there is no file or folder {name}; name a data folder, a file, or a hub id such as nyu-mll/glue:sst2"
        )
    return None


def _files_of_split(folder: Path, split: str, suffixes: Sequence[str]) -> list[Path]:
    for pattern in (f"{split}{{}}", f"{split}-*{{}}", f"{split}/*{{}}", f"data/{split}{{}}", f"data/{split}-*{{}}"):
        found = {suffix: sorted(folder.glob(pattern.format(suffix))) for suffix in suffixes}
        # A loader's own notes, not rows: state.json and dataset_info.json lie beside the shards of `save_to_disk`.
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
    """Return what looks like data in a folder and the folders in it."""
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
    """Return the names of a column of labels, or of lists of labels."""
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return tuple(names) if names else None


# Names of labels that a data set carries beside its rows


def label_names(file: Path) -> dict[str, tuple[str, ...]]:
    """Return by column the names of its label ids, as `datasets` writes them into parquet, arrow and a README.

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
    """Return the names of columns on which all configurations of a data set agree."""
    by_column: dict[str, set[tuple[str, ...]]] = {}
    for each in found:
        for column, names in each.items():
            by_column.setdefault(column, set()).add(tuple(names))
    return {column: names.pop() for column, names in by_column.items() if len(names) == 1}


def _names_in_info(info: object) -> dict[str, tuple[str, ...]]:
    """Read the features of a `DatasetInfo` as JSON."""
    features = info.get("features") if isinstance(info, dict) else None
    if not isinstance(features, dict):
        return {}
    return {str(column): names for column, feature in features.items() if (names := _class_names(feature))}


def _class_names(feature: object) -> tuple[str, ...] | None:
    if isinstance(feature, list) and len(feature) == 1:
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return None
    if isinstance(feature.get("names"), list):
        return tuple(map(str, feature["names"]))
    return _class_names(feature.get("feature"))


def _names_in_card(file: Path) -> dict[str, tuple[str, ...]]:
    """Read `dataset_info` of the YAML in front of a dataset card, where all configurations agree on a column."""
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
    """Read `{dtype: {class_label: {names: {"0": ...}}}}`, or the same under `sequence` or `list`."""
    if not isinstance(feature, dict):
        return None
    for key in ("dtype", "sequence", "list"):
        inner = feature.get(key)
        if isinstance(inner, dict):
            names = (inner.get("class_label") or {}).get("names")
            if isinstance(names, dict):
                return tuple(str(names[number]) for number in sorted(names, key=int))
            if isinstance(names, list):
                return tuple(map(str, names))
            if (deeper := _card_names(inner)) is not None:
                return deeper
    return None
