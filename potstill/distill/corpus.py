"""Unlabelled text as rows of tokens, memory-mapped from disk: the corpus of masked-language and general distillation.

Texts are tokenised by all cores, then cut and packed by array operations, both in pieces: memory does not bound the
corpus, disk does. What was made once is found again in the cache, by everything that decides it.
"""

import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import uuid
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import datasets
import numpy as np
import pyarrow
from datasets import Dataset, Features, IterableDataset, List, Value
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from potstill.data import EMBEDDED, PYTHON_DOCS
from potstill.data.columns import pick_text_columns
from potstill.data.read import SUFFIXES, arrow_schema, read_rows, text_lines
from potstill.data.splits import HELD_OUT, find_files, is_held_out, parse_split, read_split
from potstill.distill.batches import LENGTH_COLUMN
from potstill.distill.packing import pack
from potstill.errors import DataError
from potstill.files import new_folder
from potstill.hub import check_name
from potstill.machine import available_cores
from potstill.messages import first_line
from potstill.tasks import FILL_MASK

Packing: TypeAlias = Literal["none", "blocks", "texts"]
Ints: TypeAlias = NDArray[np.int64]

_FORMAT = 1  # of the files in the cache; count up when the same settings give other rows
_FILE = "corpus.arrow"
_TEXT = "text"
# A heading or a stray word: at a share of 0.15 one of its tokens would be masked and next to nothing left to read.
_SHORTEST_TEXT = 5
_TEXTS_AT_ONCE = 1000
# Pieces that are packed together: enough to fill the rows, few enough to hold (32 MiB at 512 tokens).
_PIECES_AT_ONCE = 16384
# Below this many texts a second process costs more than it saves.
_WORTH_PROCESSES = 20_000


@dataclass(frozen=True, slots=True)
class _SpecialTokens:
    """The special tokens that a tokenizer puts around a text, by id."""

    before: list[int]
    after: list[int]
    separator: int | None
    has_token_types: bool

    @property
    def count(self) -> int:
        return len(self.before) + len(self.after)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Pieces of text (`values[start : start + length]`), in the order of the rows they go to."""

    values: NDArray[np.int32]
    starts: Ints
    lengths: Ints
    per_row: Ints
    """How many consecutive pieces share a row."""


def load_corpus(  # noqa: PLR0913 - what, from where, and how; each is named by the recipe
    name: str,
    *,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    text_column: str | None = None,
    packing: Packing = "none",
    limit: int | None = None,
    num_proc: int | None = None,
    streaming: bool = False,
    cache_dir: Path | None = None,
) -> Dataset:
    """Load a split of unlabelled text as rows of tokens.

    Rows have `input_ids`, `attention_mask`, `token_type_ids` where the tokenizer makes them, and `length`; with
    packing `texts` also `segments` (1, 2, ... by text) and `position_ids` (restarting with each text).

    Texts of fewer than 5 tokens are left out. Longer ones than a row are cut into full rows and a rest of 5 tokens or
    more, so nothing else is thrown away.

    Args:
        name: a folder with a file (or shards `SPLIT-*`) per split, a file, a hub id with an optional configuration
            (`owner/name:config`), `python-docs`, or `python-functions`. In a text file each line is a text.
        split: `train`, `validation`, ...
        tokenizer: a fast one.
        max_length: the tokens of a row at most, special ones counted.
        text_column: the column of the text; None takes the first of the usual names that is there.
        packing: `none` gives each piece its own row. `blocks` cuts running text, documents parted by a separator
            (RoBERTa's FULL-SENTENCES, arXiv 1907.11692, section 4.2), into rows of exactly `max_length`; what is left
            at the end, less than one row, is dropped. `texts` puts whole pieces together into rows; attention must
            stay inside each (`packing.packed_inputs`).
        limit: keep the first so many texts.
        num_proc: processes that tokenise; None takes all usable cores, or one where there is little to do. The rows
            do not depend on it.
        streaming: read a hub data set as a stream, so that only `limit` texts of it are fetched.
        cache_dir: keeps the result, and finds it again for the same data, tokenizer and settings; None keeps it in the
            system's temporary folder for as long as the returned data set lives. When several processes share a cache,
            let one of them go first.

    Raises:
        DataError: if the data is missing, a row is broken, or nothing is left.
    """
    special = _special_tokens(tokenizer, max_length)
    files = find_files(name, parse_split(split)[0], (*SUFFIXES, ".txt"))
    is_hub = files is None and name not in EMBEDDED
    if streaming and limit is None:
        raise DataError("streaming needs a limit: without one the whole data set would be fetched and written")
    if streaming and not is_hub:
        raise DataError(f"streaming is for data sets of the hub, and {name} is none; files are always read as a stream")
    hub = _load_from_hub(name, split=split, column=text_column, streaming=streaming) if is_hub else None
    # Whatever decides the rows is in the folder's name, so an outdated cache is never found.
    settings = [_FORMAT, name, split, _source_state(files, hub), text_column, limit, max_length, packing, streaming]
    folder = _folder(cache_dir, [*settings, _tokenizer_state(tokenizer)])
    if not (folder / _FILE).is_file():
        # Whole or not at all: a killed run leaves no half corpus that the next would take for the data.
        with new_folder(folder, overwrite=True) as building:
            found = () if is_hub else read_texts(split=split, files=files, column=text_column, embedded=name)
            texts = _keep_texts(hub, found, building / "texts.arrow", limit=limit, origin=f"{name} ({split})")
            room = max_length - special.count
            # Only running text is parted by separators; elsewhere the special tokens part the texts.
            end = [special.separator] if packing == "blocks" and special.separator is not None else []
            tokens = _tokenize(texts, tokenizer, building, room=room, end=end, num_proc=num_proc)
            if packing == "blocks":
                pieces = _cut_into_blocks(tokens, room=room)
            else:
                pieces = _whole_pieces(tokens, special=special, capacity=max_length if packing == "texts" else None)
            _write_rows(building / _FILE, pieces, special=special, is_packed=packing == "texts")
            for file in building.iterdir():
                if file.name != _FILE:
                    file.unlink()
    corpus = Dataset.from_file(str(folder / _FILE))
    if cache_dir is None:
        # The rows are memory-mapped, so the folder must live as long as the data set.
        weakref.finalize(corpus, _remove, folder, os.getpid())
    return corpus


def token_counts(corpus: Dataset, vocab_size: int) -> NDArray[np.int64]:
    """Count each token id of a corpus: int64 (vocab_size,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for table in corpus.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=10_000):
        found = np.bincount(table["input_ids"].combine_chunks().flatten().to_numpy(), minlength=vocab_size)
        if len(found) > vocab_size:
            raise DataError(f"the corpus has token {len(found) - 1} and the vocabulary {vocab_size} entries")
        counts += found
    return counts


def _folder(cache_dir: Path | None, settings: list[object]) -> Path:
    if cache_dir is None:
        return Path(tempfile.gettempdir()) / f"potstill-corpus-{uuid.uuid4().hex}"
    return cache_dir / f"corpus-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]}"


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker of a loader drops its copy of the data set, too
        shutil.rmtree(folder, ignore_errors=True)


def _special_tokens(tokenizer: PreTrainedTokenizerBase, max_length: int) -> _SpecialTokens:
    """Return what the tokenizer puts around a text, if a row of `max_length` has room for more."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, is_special = encoded["input_ids"], encoded["special_tokens_mask"]
    inside = [place for place, flag in enumerate(is_special) if not flag]
    if not inside:
        raise DataError("the tokenizer makes nothing of the letter 'a'; use one that was trained on text")
    special = _SpecialTokens(
        before=ids[: inside[0]],
        after=ids[inside[-1] + 1 :],
        separator=tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id,
        has_token_types="token_type_ids" in tokenizer.model_input_names,
    )
    if max_length < special.count + _SHORTEST_TEXT:
        raise DataError(
            f"max_length is {max_length}; with the special tokens it takes {special.count + _SHORTEST_TEXT}"
        )
    return special


def _source_state(files: list[Path] | None, hub: tuple[Dataset | IterableDataset, str] | None) -> object:
    """Return what changes when the data does, as far as that can be known without reading it."""
    if files is not None:
        # Not the content: a corpus that fills a disk should not be read twice.
        return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    if hub is not None:
        return getattr(hub[0], "_fingerprint", None)  # a stream has none: its name, split and limit must do
    # Embedded data comes with the interpreter and changes with it.
    return sys.version


def _tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left behind by the last call of the tokenizer; each call here sets its own.
    return {key: value for key, value in state.items() if key not in {"truncation", "padding"}}


def read_texts(
    *, split: str, files: list[Path] | None, column: str | None, embedded: str = PYTHON_DOCS
) -> Iterator[str]:
    """Yield the texts of files, or of an embedded data set for None, in their order; blank ones are left out.

    Files are read as a stream, whatever their size; only a `.json` array is held whole.

    Raises:
        DataError: with the file and the row, at the first row that cannot be read.
    """
    base, part = parse_split(split)
    texts = (row["text"] for row in read_split(embedded, base)[0]) if files is None else _texts_of_files(files, column)
    return (text for text in texts if part is None or is_held_out(text) == (part == HELD_OUT))


def iterate_texts(
    name: str, *, split: str, column: str | None = None, limit: int | None = None, streaming: bool = False
) -> Iterator[str]:
    """Yield the texts of a split of running text, at most the first `limit`; arguments and errors as `load_corpus`."""
    files = find_files(name, parse_split(split)[0], (*SUFFIXES, ".txt"))
    texts: Iterable[str]
    if files is None and name not in EMBEDDED:
        loaded, found = _load_from_hub(name, split=split, column=column, streaming=streaming)
        texts = (str(row[found]) for row in loaded)
    else:
        texts = read_texts(split=split, files=files, column=column, embedded=name)
    return itertools.islice(texts, limit)


def _texts_of_files(files: Sequence[Path], column: str | None) -> Iterator[str]:
    for file in files:
        for number, text in _numbered_texts(file, column):
            if not isinstance(text, str):
                raise DataError(f"{file} row {number}: the text column holds {text!r}, not a text; mend or remove it")
            if text.strip():
                yield text


def _numbered_texts(file: Path, column: str | None) -> Iterator[tuple[int, object]]:
    """Yield (row or line number from 1, text)."""
    if file.suffix == ".txt":
        yield from enumerate((line.rstrip("\r\n") for line in text_lines(file)), 1)
        return
    chosen = ""
    if file.suffix in (".parquet", ".arrow"):
        chosen = _text_column(arrow_schema(file).names, column, origin=str(file))
    for number, row in read_rows(file, [chosen] if chosen else None):
        chosen = chosen or _text_column(list(row), column, origin=f"{file} row {number}")
        if chosen not in row:
            raise DataError(f"{file} row {number} has no column {chosen!r}; it has {', '.join(row) or 'none'}")
        yield number, row[chosen]


def _load_from_hub(
    name: str, *, split: str, column: str | None, streaming: bool
) -> tuple[Dataset | IterableDataset, str]:
    """Return a split of the hub (`owner/name` or `owner/name:configuration`) and the name of its text column.

    Streaming, nothing is downloaded before the rows are read.

    Raises:
        DataError: if it cannot be loaded, or has no such column.
    """
    if parse_split(split)[1] is not None:
        raise DataError(f"no texts can be held out of {name!r}, which is on the hub; name its split to score on")
    check_name(name, "dataset")
    repository, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, configuration or None, split=split, streaming=streaming)
    except Exception as error:  # the hub client raises many kinds, all meaning the same here
        raise DataError(
            f"cannot load {name!r} ({split}) from the hub: {first_line(error)}; check the name and the network, or "
            "pass a folder"
        ) from error
    columns = loaded.column_names or list(next(iter(loaded), {}))
    return loaded, _text_column(columns, column, origin=f"{name} ({split})")


def _text_column(columns: Sequence[str], asked: str | None, *, origin: str) -> str:
    return pick_text_columns(columns, task=FILL_MASK, asked=[asked] if asked else None, origin=origin)[0]


def _keep_texts(
    hub: tuple[Dataset | IterableDataset, str] | None,
    texts: Iterable[str],
    file: Path,
    *,
    limit: int | None,
    origin: str,
) -> Dataset:
    """Return the first `limit` texts as a memory-mapped data set with one column.

    A data set of the hub lies on disk already and is not copied; a stream of it, and the texts of files, go to `file`.
    """
    if hub is not None:
        loaded, column = hub
        if isinstance(loaded, Dataset):
            chosen = loaded.select(range(min(limit or len(loaded), len(loaded))))
            if len(chosen) == 0:
                raise DataError(f"{origin} has no text")
            return chosen.select_columns([column]).rename_column(column, _TEXT)
        texts = (row[column] for row in loaded)
    features = Features({_TEXT: Value("string")})
    kept = itertools.islice(texts, limit)
    parts = iter(lambda: list(itertools.islice(kept, _TEXTS_AT_ONCE)), [])
    _write_arrow(file, features, ([pyarrow.array(part, pyarrow.string())] for part in parts))
    found = Dataset.from_file(str(file))
    if len(found) == 0:
        raise DataError(f"{origin} has no text")
    return found


def _tokenize(
    texts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    building: Path,
    *,
    room: int,
    end: list[int],
    num_proc: int | None,
) -> Dataset:
    """Return the texts' token ids, `end` after each and no other special ones, in pieces of at most `room`."""

    def cut(ids: list[int]) -> Iterator[list[int]]:
        bounds = [*range(0, len(ids), room), len(ids)]
        if len(bounds) > 2:  # the last piece takes from the one before it what it lacks of the shortest text
            bounds[-2] = min(bounds[-2], len(ids) - _SHORTEST_TEXT)
        return (ids[start:stop] for start, stop in itertools.pairwise(bounds))

    def encode(batch: dict[str, list[object]]) -> dict[str, list[list[int]]]:
        for text in batch[_TEXT]:
            if not isinstance(text, str):
                raise DataError(f"the text column holds {text!r}, not a text; remove such rows, or name another column")
        encoded = tokenizer(
            batch[_TEXT],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # else it warns of texts longer than the model, which are cut here
        )["input_ids"]
        return {"ids": [piece for ids in encoded if len(ids) >= _SHORTEST_TEXT for piece in cut(ids + end)]}

    # Only the speed: `datasets` keeps the order of the rows for any number of processes.
    if num_proc is None:
        num_proc = available_cores() if len(texts) >= _WORTH_PROCESSES else 1
    tokens = texts.map(
        encode,
        batched=True,
        batch_size=_TEXTS_AT_ONCE,
        remove_columns=texts.column_names,
        features=Features({"ids": List(Value("int32"))}),
        num_proc=num_proc if num_proc > 1 else None,
        cache_file_name=str(building / "tokens.arrow"),
        load_from_cache_file=False,
        # Given, because `datasets` would otherwise hash the function with the whole tokenizer in it.
        new_fingerprint=hashlib.sha256(str(building).encode()).hexdigest()[:16],
        desc="tokenise",
    )
    if len(tokens) == 0:
        raise DataError(f"the data has no text of {_SHORTEST_TEXT} tokens or more")
    return tokens


def _cut_into_blocks(tokens: Dataset, *, room: int) -> Iterator[_Pieces]:
    """Cut running text into pieces of `room`; if there is less than one in all, that is the only one."""
    # What a batch leaves over begins the next one: documents run on across batches.
    rest = np.empty(0, dtype=np.int32)
    is_first = True
    for values, _ in _token_arrays(tokens):
        values = np.concatenate([rest, values])
        count = len(values) // room
        if count:
            lengths = np.full(count, room, dtype=np.int64)
            yield _Pieces(values, np.cumsum(lengths) - lengths, lengths, np.ones_like(lengths))
            is_first = False
        rest = values[count * room :]
    if is_first:
        one = np.ones(1, dtype=np.int64)
        yield _Pieces(rest, 0 * one, len(rest) * one, one)


def _whole_pieces(tokens: Dataset, *, special: _SpecialTokens, capacity: int | None) -> Iterator[_Pieces]:
    """Give each piece its own row, or with a capacity pack them into rows of so many tokens."""
    for values, lengths in _token_arrays(tokens):
        starts, per_row = np.cumsum(lengths) - lengths, np.ones_like(lengths)
        if capacity is not None:
            # Each packed text keeps its own special tokens, so it reads as if it were alone.
            rows = pack(lengths + special.count, capacity)
            order = np.array([piece for row in rows for piece in row])
            starts, lengths, per_row = starts[order], lengths[order], np.array([len(row) for row in rows])
        yield _Pieces(values, starts, lengths, per_row)


def _token_arrays(tokens: Dataset) -> Iterator[tuple[NDArray[np.int32], Ints]]:
    """Yield the ids of many pieces in one array, and the length of each piece."""
    for table in tokens.with_format("arrow").iter(batch_size=_PIECES_AT_ONCE):
        column = table["ids"].combine_chunks()
        yield column.flatten().to_numpy(), column.value_lengths().to_numpy().astype(np.int64)


def _write_rows(file: Path, groups: Iterator[_Pieces], *, special: _SpecialTokens, is_packed: bool) -> None:
    kinds = {"input_ids": "int32", "attention_mask": "int8"}
    kinds |= {"token_type_ids": "int8"} if special.has_token_types else {}
    kinds |= {"segments": "int16", "position_ids": "int32"} if is_packed else {}
    features = Features({name: List(Value(kind)) for name, kind in kinds.items()} | {LENGTH_COLUMN: Value("int32")})

    def columns(pieces: _Pieces) -> list[pyarrow.Array]:
        ids, lengths = _add_special_tokens(pieces, special)
        row_ends = np.cumsum(lengths)[np.cumsum(pieces.per_row) - 1]
        # int32 offsets bound one batch to 2^31 tokens; `_PIECES_AT_ONCE` pieces stay far below.
        offsets = pyarrow.array(np.concatenate([[0], row_ends]).astype(np.int32))
        values: dict[str, NDArray[Any]] = {
            "input_ids": ids,
            "attention_mask": np.ones(len(ids)),
            "token_type_ids": np.zeros(len(ids)),
            "segments": np.repeat(_count_up(pieces.per_row) + 1, lengths),
            "position_ids": _count_up(lengths),
        }
        lists = [
            pyarrow.ListArray.from_arrays(offsets, pyarrow.array(values[name].astype(kind)))
            for name, kind in kinds.items()
        ]
        return [*lists, pyarrow.array(np.diff(row_ends, prepend=0).astype(np.int32))]

    _write_arrow(file, features, map(columns, groups))


def _add_special_tokens(pieces: _Pieces, special: _SpecialTokens) -> tuple[NDArray[np.int32], Ints]:
    """Return all pieces in one array, special tokens around each, and the length of each with them."""
    lengths = pieces.lengths + special.count
    ends = np.cumsum(lengths)
    starts = ends - lengths
    ids = np.empty(int(ends[-1]), dtype=np.int32)
    for number, token in enumerate(special.before):
        ids[starts + number] = token
    for number, token in enumerate(special.after):
        ids[ends - len(special.after) + number] = token
    within = _count_up(pieces.lengths)
    source = np.repeat(pieces.starts, pieces.lengths) + within
    ids[np.repeat(starts + len(special.before), pieces.lengths) + within] = pieces.values[source]
    return ids, lengths


def _count_up(lengths: Ints) -> Ints:
    """Return 0 .. n-1 for each length n, one after another."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _write_arrow(file: Path, features: Features, batches: Iterable[list[pyarrow.Array]]) -> None:
    schema = features.arrow_schema
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        for columns in batches:
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
