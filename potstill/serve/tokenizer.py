"""Turn texts into a model's inputs with the `tokenizers` library alone.

The library only splits each text into ids; truncation, special tokens and padding are done here in numpy. Truncation
within the library cuts a pair of long texts into every combination of their parts, which is quadratic in time and
memory: 34 s and 3.9 GB for two of 128,000 characters (docs/log.md). And changing a tokenizer's settings per call fails
with "Already borrowed" as soon as two threads use it (huggingface/tokenizers#537).

transformers is no reference for the ids: version 5 rebuilds tokenizers from their class names, and gives other ids than
`tokenizer.json` where the two do not fit (docs/log.md).
"""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from potstill.errors import BundleError, TamperedError, UsageError

Text: TypeAlias = str | tuple[str, str]
"""One text, or a pair of them."""
Row: TypeAlias = dict[str, NDArray[np.int64]]
"""One text's inputs, without padding: input name -> array of shape (tokens,)."""
Ints: TypeAlias = NDArray[np.int64]

# Input name -> the attribute of a `tokenizers.Encoding` that holds it.
_ATTRIBUTES = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
# Texts and characters handed to Rust at once: enough to keep its threads busy, few enough that its encodings, of some
# hundred bytes per token, stay small.
_CHUNK, _CHUNK_CHARACTERS = 1024, 65_536
between_chunks: ContextVar[Callable[[], None]] = ContextVar("between_chunks", default=lambda: None)
"""Hook that is called between two chunks, in the tokenising thread: a server handles shorter requests there."""
# Texts that are encoded to see which special tokens the tokenizer adds; the first that has a token is used.
_PROBES = ("a", "the", "1", ".", "中")
# What `clean_up_tokenization_spaces` does in transformers (PreTrainedTokenizerBase.clean_up_tokenization).
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class TokenizerSettings(Protocol):
    """The facts about a model that its tokenizer needs; a bundle's manifest has all of them."""

    @property
    def inputs(self) -> Sequence[str]:
        """The names of the model's inputs."""

    @property
    def max_length(self) -> int:
        """Tokens of the longest row, special tokens included."""

    @property
    def padding_side(self) -> str:
        """`left` or `right`."""

    @property
    def pad_token_id(self) -> int:
        """The id with which short rows are padded."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """One whole text in T tokens, without special tokens and without truncation."""

    ids: list[int]
    """The T token ids."""
    places: Ints
    """Start and end of each token in characters of the text, shape (T, 2)."""
    words: Ints
    """The number of the word to which each token belongs, shape (T,); -1 for none."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens around one text, or around and between two."""

    ids: tuple[list[int], ...]
    """Their ids: before the first text, after it, and for a pair after the second."""
    types: tuple[list[int], ...]
    """Their token types, in the same shape."""
    text_types: tuple[int, ...]
    """The token type of each text's own tokens."""

    @property
    def size(self) -> int:
        """Return how many special tokens there are."""
        return sum(map(len, self.ids))


class BundleTokenizer:
    """The tokenizer of one bundle; safe to use from several threads.

    Its ids and masks are those of the checkpoint's own fast tokenizer with `padding=True, truncation=True`. A lone
    surrogate, which no UTF-8 text can hold, is read as U+FFFD, the replacement character.
    """

    def __init__(
        self, folder: Path, settings: TokenizerSettings, *, read: Callable[[str], bytes] | None = None
    ) -> None:
        """Load `tokenizer.json` from a bundle's folder.

        Args:
            folder: the bundle.
            settings: the model's inputs, length and padding, from the manifest.
            read: returns a file's bytes by name, as `Bundle.read`, which checks their hash; None reads the files.

        Raises:
            BundleError: if the file cannot be loaded, or the settings ask for inputs that no tokenizer makes.
        """
        unknown = [name for name in settings.inputs if name not in _ATTRIBUTES]
        if unknown or "input_ids" not in settings.inputs:
            raise BundleError(f"{folder} wants the inputs {settings.inputs}; potstill makes {', '.join(_ATTRIBUTES)}")
        self.max_length = settings.max_length
        self._inputs = tuple(settings.inputs)
        self.pads_left = settings.padding_side == "left"
        """Whether short rows are padded in front."""
        self.pad_id = settings.pad_token_id
        """The token with which short rows are padded."""
        self._pad_values = {"input_ids": self.pad_id}
        read = read or (lambda name: (folder / name).read_bytes())
        config = _config(folder, read)
        self._tokenizer, self.truncation_side = _load(folder, config, read)
        """`left` or `right`: the end of a long text that is cut."""
        _check_special_tokens(self._tokenizer, folder)
        if self._tokenizer.id_to_token(self.pad_id) is None:
            raise BundleError(
                f"{folder} pads with the id {self.pad_id}, which no token of tokenizer.json has; export it again"
            )
        self.single, self.pair = _frame(self._tokenizer, folder, pair=False), _frame(self._tokenizer, folder, pair=True)
        """The special tokens around one text, and those around two."""
        self._constants = {count: self._constant_inputs(frame) for count, frame in ((1, self.single), (2, self.pair))}
        if self.max_length <= self.pair.size:
            raise BundleError(
                f"max_length {self.max_length} leaves no room beside the {self.pair.size} special tokens of a pair"
            )
        self.mask_id = _token_id(self._tokenizer, config, "mask_token")
        """The id of [MASK]; None where the tokenizer has none."""
        self.first_id = _token_id(self._tokenizer, config, "cls_token")
        """The id of [CLS], which opens a row and stands for all of it; None where the tokenizer has none."""
        self.unknown_id = _token_id(self._tokenizer, config, "unk_token")
        """The id of [UNK], for a piece that the vocabulary lacks; None where the tokenizer has none."""
        model = self._tokenizer.model
        self.continues_words = bool(getattr(model, "continuing_subword_prefix", None))
        """Whether a token's own writing shows that it continues a word, as WordPiece's ## does."""
        # As in transformers, which does not clean up texts of byte-pair tokenizers.
        self._cleans_up = bool(config.get("clean_up_tokenization_spaces")) and type(model).__name__ != "BPE"

    def encode(self, texts: Sequence[Text]) -> dict[str, Ints]:
        """Return the inputs that the model declares, each of shape (texts, longest of them in tokens)."""
        return self.pad(self.rows(texts))

    def lengths(self, texts: Sequence[Text]) -> Ints:
        """Return how many tokens the model sees of each text, special tokens included; shape (texts,)."""
        return np.array([len(row["input_ids"]) for row in self.rows(texts)], dtype=np.int64)

    def rows(self, texts: Sequence[Text], *, side: str | None = None) -> list[Row]:
        """Return each text's inputs without padding, in order, truncated to `max_length`.

        Args:
            texts: texts and pairs; of a pair the longer text is cut first.
            side: which end of a long text is cut, `left` or `right`; None is the tokenizer's own.

        Raises:
            UsageError: if `texts` is one string, or an element is neither a text nor a pair.
        """
        if isinstance(texts, str):
            raise UsageError("one string was given where a list of texts is expected; write [text]")
        sides = [_sides(text) for text in texts]
        ids = self._ids([part for parts in sides for part in parts])
        return [self._row([next(ids) for _ in parts], side or self.truncation_side) for parts in sides]

    def pieces(self, texts: Sequence[str]) -> list[Pieces]:
        """Return all tokens of each text with their places; nothing is truncated."""
        found = []
        for chunk in _chunks([without_surrogates(text) for text in texts]):
            for encoding in self._tokenizer.encode_batch(chunk, add_special_tokens=False):
                words = [-1 if word is None else word for word in encoding.word_ids]
                places = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
                found.append(Pieces(encoding.ids, places, np.array(words, np.int64)))
        return found

    def frame(self, *parts: Sequence[int]) -> Row:
        """Return the inputs of one text's ids, or of two, with the special tokens around them; nothing is cut."""
        frame = self.single if len(parts) == 1 else self.pair
        row: Row = {"input_ids": np.array(_weave(frame.ids, parts), dtype=np.int64)}
        tokens = len(row["input_ids"])
        for name, value in self._constants[len(parts)].items():
            # A view of a constant: three new arrays per text cost 50 us after a run emptied the caches (docs/log.md).
            row[name] = value[:tokens] if tokens <= len(value) else np.full(tokens, value[0])
        if len(row) < len(self._inputs):
            texts = [[kind] * len(ids) for ids, kind in zip(parts, frame.text_types, strict=True)]
            row["token_type_ids"] = np.array(_weave(frame.types, texts), dtype=np.int64)
        return row

    def kept(self, tokens: int) -> slice:
        """Return which of a single text's tokens remain after truncation."""
        room = self.max_length - self.single.size
        return _end(tokens, room, self.truncation_side)

    def token(self, number: int) -> str:
        """Return a token as the vocabulary writes it, such as "##ing"; "" for an id beyond the vocabulary."""
        return self._tokenizer.id_to_token(number) or ""

    def id_of(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary writes it; None if there is none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def vocabulary_size(self) -> int:
        """Return the number of tokens, added ones included."""
        return int(self._tokenizer.get_vocab_size())

    def join(self, tokens: Sequence[str]) -> str:
        """Return the text of tokens as the vocabulary writes them (transformers' `convert_tokens_to_string`)."""
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    def decode(self, rows: Sequence[Sequence[int]], *, skip_special: bool = False) -> list[str]:
        """Return the text of each row of ids (transformers' `decode`)."""
        texts: list[str] = self._tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=skip_special)
        if self._cleans_up:
            for wrong, right in _CLEAN_UP:
                texts = [text.replace(wrong, right) for text in texts]
        return texts

    def pad(self, rows: Sequence[Row]) -> dict[str, NDArray[np.int64]]:
        """Stack rows into arrays of shape (rows, longest row), padded on the model's side."""
        longest = max((len(row["input_ids"]) for row in rows), default=0)
        padded = {}
        for name in self._inputs:
            block = np.full((len(rows), longest), self._pad_values.get(name, 0), dtype=np.int64)
            for target, row in zip(block, rows, strict=True):
                length = len(row[name])
                target[slice(longest - length, None) if self.pads_left else slice(length)] = row[name]
            padded[name] = block
        return padded

    def copy(self) -> Tokenizer:
        """Return a separate `tokenizers.Tokenizer` that truncates; pass its encodings to `row_of`."""
        own = copy.deepcopy(self._tokenizer)
        # deepcopy goes through tokenizer.json, which does not hold this setting.
        own.encode_special_tokens = self._tokenizer.encode_special_tokens
        own.enable_truncation(self.max_length, strategy="longest_first", direction=self.truncation_side)
        return own

    def ordinary_ids(self, vocab_size: int | None = None) -> NDArray[np.int64]:
        """Return the ids of ordinary text, ascending, without special and added tokens.

        Args:
            vocab_size: the model's, which may be smaller or larger than the tokenizer's; larger ids are left out.
        """
        added = self._tokenizer.get_added_tokens_decoder()
        frame = np.concatenate([row["input_ids"] for row in self.rows(["", ("", "")])])
        special = [*(number for number, token in added.items() if token.special), *self._pad_values.values()]
        size = self._tokenizer.get_vocab_size(with_added_tokens=False)
        ids = np.arange(size if vocab_size is None else min(size, vocab_size), dtype=np.int64)
        return np.setdiff1d(ids, np.concatenate([np.array(special, dtype=np.int64), frame]))

    def row_of(self, encoding: Any) -> Row:
        """Return the model's inputs from a `tokenizers.Encoding`, without padding."""
        return {name: np.array(getattr(encoding, _ATTRIBUTES[name]), dtype=np.int64) for name in self._inputs}

    def _constant_inputs(self, frame: Frame) -> Row:
        """Return the inputs that have one value for every token, at full length and read-only, to take views of."""
        values = {"attention_mask": 1} if "attention_mask" in self._inputs else {}
        types = {*frame.text_types, *(kind for kinds in frame.types for kind in kinds)}
        if "token_type_ids" in self._inputs and len(types) == 1:
            values["token_type_ids"] = types.pop()
        found = {name: np.full(self.max_length, value, dtype=np.int64) for name, value in values.items()}
        for array in found.values():
            array.flags.writeable = False
        return found

    def _ids(self, texts: Sequence[str]) -> Iterator[list[int]]:
        for chunk in _chunks(texts):
            # encode_batch releases the GIL, encode does not; the fast variant leaves offsets out.
            for encoding in self._tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
                yield encoding.ids

    def _row(self, parts: Sequence[list[int]], side: str) -> Row:
        if len(parts) == 1:
            return self.frame(parts[0][_end(len(parts[0]), self.max_length - self.single.size, side)])
        first, second = parts
        room = self.max_length - self.pair.size
        if len(first) + len(second) > room:
            sizes = _longest_first(len(first), len(second), room)
            first, second = (part[_end(len(part), size, side)] for part, size in zip(parts, sizes, strict=True))
        return self.frame(first, second)


def _load(folder: Path, config: dict[str, Any], read: Callable[[str], bytes]) -> tuple[Tokenizer, str]:
    """Return the tokenizer without truncation and padding, and the end at which it is set to cut long texts."""
    file = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_buffer(read(file.name))
    except TamperedError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise BundleError(f"{file} cannot be loaded as a tokenizer: {error}; export the checkpoint again") from error
    # The same order as transformers: its own file first, then what tokenizer.json says.
    side = config.get("truncation_side") or (tokenizer.truncation or {}).get("direction", "right")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens", False))
    return tokenizer, "left" if side == "left" else "right"


def _check_special_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Refuse at load time what would make the library panic, or return ids of no token, at the first text.

    Raises:
        BundleError: if the vocabulary is empty, or the template names tokens without ids or ids without tokens.
    """
    file = folder / "tokenizer.json"
    if not tokenizer.get_vocab_size(with_added_tokens=False):
        raise BundleError(f"{file} has an empty vocabulary; export the checkpoint again")
    if tokenizer.post_processor is None:
        return
    # A pickled post-processor is its part of tokenizer.json.
    processor = json.loads(tokenizer.post_processor.__getstate__())
    for part in processor.get("processors", [processor]):  # one, or several in a row
        if part["type"] != "TemplateProcessing":
            continue
        known = part["special_tokens"]
        for piece in (*part["single"], *part["pair"]):
            name = piece["SpecialToken"]["id"] if "SpecialToken" in piece else None
            ids = known[name]["ids"] if name in known else []
            if name is not None and (not ids or any(tokenizer.id_to_token(number) is None for number in ids)):
                raise BundleError(
                    f"{file} puts {name} around texts, with the ids {ids}; expected ids of its vocabulary; "
                    "export the checkpoint again"
                )


def _frame(tokenizer: Tokenizer, folder: Path, *, pair: bool) -> Frame:
    """Return the special tokens around a text, or a pair, found by encoding one with and without them.

    Raises:
        BundleError: if the texts do not appear once each, in order and unchanged, between the special tokens.
    """
    probe = next((text for text in _PROBES if tokenizer.encode(text, add_special_tokens=False).ids), _PROBES[0])
    whole = tokenizer.encode(probe, probe if pair else None)
    ids, types = whole.ids, whole.type_ids
    text = tokenizer.encode(probe, add_special_tokens=False).ids
    # sequence_ids: for each token the number of its text, None for special tokens.
    places = [[at for at, side in enumerate(whole.sequence_ids) if side == number] for number in range(1 + pair)]
    edges = [0]
    for place in places:
        is_whole = bool(place) and place == list(range(place[0], place[0] + len(text)))
        if not is_whole or ids[place[0] : place[-1] + 1] != text or place[0] < edges[-1]:
            raise BundleError(f"{folder / 'tokenizer.json'} does not put one text behind the other, once each")
        edges += [place[0], place[-1] + 1]
    edges.append(len(ids))
    gaps = [slice(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    return Frame(
        ids=tuple(ids[gap] for gap in gaps),
        types=tuple(types[gap] for gap in gaps),
        text_types=tuple(types[place[0]] for place in places),
    )


def _token_id(tokenizer: Tokenizer, config: dict[str, Any], name: str) -> int | None:
    token = config.get(name)
    # transformers writes either an object (AddedToken) or the token itself.
    token = token.get("content") if isinstance(token, dict) else token
    found: int | None = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return found


def _weave(frame: Sequence[list[int]], parts: Sequence[Sequence[int]]) -> list[int]:
    """Return the ids (or types) of a frame with those of its texts between them."""
    woven = [*frame[0]]
    for part, after in zip(parts, frame[1:], strict=True):
        woven += [*part, *after]
    return woven


def _end(tokens: int, room: int, side: str) -> slice:
    """Return which of a text's tokens remain where there is room for `room`."""
    return slice(max(0, tokens - room), None) if side == "left" else slice(room)


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each text remain.

    The rule, also for which text gets the odd token, is `LongestFirst` in `truncate_encodings` of the tokenizers
    library.
    """
    short, long = sorted((first, second))
    long = min(long, max(short, room - short))
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for text in texts:
        if chunk and (len(chunk) == _CHUNK or characters + len(text) > _CHUNK_CHARACTERS):
            yield chunk
            between_chunks.get()()
            chunk, characters = [], 0
        chunk.append(text)
        characters += len(text)
    if chunk:
        yield chunk


def _config(folder: Path, read: Callable[[str], bytes]) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(read(file.name))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not JSON; export the checkpoint again") from error
    return content if isinstance(content, dict) else {}


def _sides(text: Text) -> tuple[str, ...]:
    if isinstance(text, str):
        return (without_surrogates(text),)
    if isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text):
        return without_surrogates(text[0]), without_surrogates(text[1])
    raise UsageError(f"a text must be a str or a (str, str) tuple, not {type(text).__name__}")


def without_surrogates(text: str) -> str:
    """Return the text without surrogates, which UTF-8 cannot hold: a pair becomes its character, others U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # The detour over UTF-16 joins surrogates that form a pair and replaces those that do not.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
