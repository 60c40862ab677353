"""Make a vocabulary smaller: choose the pieces that stay, and rewrite tokenizer.json so that it has no others.

What falls out is written in smaller pieces. Two things hold for every kind of tokenizer here:

- Nothing becomes unknown that was not. Special tokens and pieces of one character or byte stay, and so does a piece
  that cannot be spelt in those.
- A text whose pieces all stay is read as before. WordPiece takes the longest piece that fits, which is still there. BPE
  makes the same merges in the same order, because a piece stays together with the pieces that it is merged of. Unigram
  has its best path still, with the same score, and fewer others beside it.

Ids are numbered anew in their old order: a piece's new id is its place in the list of the ids that stay.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice, pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from potstill.checkpoint.folder import POSITIONS_AFTER_PADDING
from potstill.errors import CheckpointError

Counts: TypeAlias = NDArray[np.int64]
"""How often each id was seen, shape (ids,)."""

# How much a piece's share of tokens in general counts beside its share of the data's: see `Vocabulary.rank`.
_GENERAL = 0.25
# What `task` allows: docs/log.md.
_MORE_TOKENS = 1.05
_TEXTS_AT_ONCE = 1000
_KINDS = ("WordPiece", "BPE", "Unigram")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class Vocabulary:
    """The pieces of a tokenizer: which of them can go, and what each of the others needs."""

    def __init__(self, tokenizer: Tokenizer, *, name: str, special: Iterable[int] = ()) -> None:
        """Find out what cannot go.

        Args:
            tokenizer: as tokenizer.json has it, whose truncation and padding are left out; it is not changed.
            name: the checkpoint's name, for messages.
            special: ids that must stay beside those that tokenizer.json names, such as those of a configuration; ids
                that no piece has are passed over.

        Raises:
            CheckpointError: if words that are left out could not be written in smaller pieces, or the file names ids
                that no piece has.
        """
        self.name = name
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        """A copy without truncation and padding."""
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self._content: dict[str, Any] = json.loads(self.tokenizer.to_str())
        self._model: dict[str, Any] = self._content["model"]
        self._kind: str = self._model["type"]
        if self._kind not in _KINDS:
            raise CheckpointError(
                f"{name} has a tokenizer of kind {self._kind}, whose words are not made of smaller pieces, so that one "
                f"which is left out would become unknown; only {', '.join(_KINDS)} can be trimmed"
            )
        self.ids: dict[str, int] = self.tokenizer.get_vocab(with_added_tokens=True)
        """The id of each piece, added tokens included."""
        self._pieces: dict[str, int] = self.tokenizer.get_vocab(with_added_tokens=False)
        known = set(self.ids.values())
        named = _ids_named(self._content)
        if not named <= known:
            raise CheckpointError(f"the tokenizer.json of {name} names ids that no piece has: {sorted(named - known)}")
        named |= {self.ids[token["content"]] for token in self._content["added_tokens"]} | known.intersection(special)
        has_bytes = self._model.get("byte_fallback") is True
        basic = set()
        for piece, number in self._pieces.items():
            spelt = self._spell(piece)
            is_byte = has_bytes and _BYTE.fullmatch(piece) is not None
            if is_byte or spelt == [piece] or not (has_bytes or all(one in self._pieces for one in spelt)):
                basic.add(number)
        if self._kind == "Unigram":
            # What an unknown character costs is reckoned from the lowest score, which must stay what it is.
            scores = [score for _, score in self._model["vocab"]]
            basic.add(scores.index(min(scores)))
        self.unknown = _unknown_id(self._model)
        """The id of what cannot be spelt; None where everything can."""
        self.indispensable = frozenset(named | basic)
        """The ids that always stay."""

    def __len__(self) -> int:
        return len(self.ids)

    def check_size(self, size: int) -> None:
        """Refuse a size that leaves out what must stay, or leaves out nothing.

        Raises:
            CheckpointError: with the sizes that there can be.
        """
        least = len(self.indispensable)
        if not least <= size < len(self):
            raise CheckpointError(
                f"a vocabulary of {size:,} cannot be: {self.name} has {len(self):,} pieces, of which {least:,} always "
                f"stay (special tokens and single characters); ask for {least:,} to {len(self) - 1:,}"
            )

    def choose(self, counts: Counts, *, size: int | None = None, min_count: int = 0) -> list[int]:
        """Return the ids that stay, in rising order: of the pieces seen `min_count` times, the best up to `size`.

        Args:
            counts: how often each id occurs in the data.
            size: how many stay at most; None sets no limit.
            min_count: how often a piece must occur to stay. What it is merged of stays with it.

        Raises:
            CheckpointError: if that leaves out what must stay, or leaves out nothing.
        """
        if size is not None:
            self.check_size(size)
        added = self._in_order(counts, min_count=min_count)
        kept = {*self.indispensable, *added[: size - len(self.indispensable) if size is not None else None]}
        if len(kept) == len(self):
            raise CheckpointError(
                f"every piece of {self.name} occurs {min_count:,} times or more in the data, so none can go; ask for a "
                "higher count, or a size"
            )
        return sorted(kept)

    def size_for(self, counts: Counts, texts: Sequence[str]) -> int:
        """Return the smallest size, in hundreds, with which the texts have at most 5 % more tokens.

        Raises:
            CheckpointError: if that is all there are.
        """
        added, least = self._in_order(counts), len(self.indispensable)
        most = _MORE_TOKENS * int(count_pieces(self.tokenizer, texts).sum())

        def is_enough(hundreds: int) -> bool:
            kept = sorted({*self.indispensable, *added[: max(0, 100 * hundreds - least)]})
            return int(count_pieces(self.trim(kept), texts).sum()) <= most

        # Nearly always a piece more makes the texts no longer, so halving finds the place.
        hundreds = bisect_left(range(len(self) // 100), True, lo=-(-least // 100), key=is_enough)
        if 100 * hundreds >= len(self) or not is_enough(hundreds):
            raise CheckpointError(
                f"the data needs nearly all of the {len(self):,} pieces of {self.name}: with a hundred fewer its texts "
                "have 5 % more tokens; ask for a size"
            )
        return 100 * hundreds

    def rank(self, counts: Counts) -> list[str]:
        """Return the pieces that can go, those first that are worth most.

        A piece is worth its share of the data's tokens and a quarter of its share of tokens in general. The data alone
        says nothing of pieces that it does not have, though other texts will: those of another domain, and those that a
        small data set lacks by chance. How frequent pieces are in general is known by their order, as trainers number
        them so (Unigram has scores), and by Zipf's law.
        """
        can_go = [piece for piece in self._by_frequency if self.ids[piece] not in self.indispensable]
        general = np.array([self._is_used(piece) for piece in can_go]) / np.arange(1, len(can_go) + 1)
        seen = counts[[self.ids[piece] for piece in can_go]]
        worth = seen / max(1, seen.sum()) + _GENERAL * general / general.sum()
        return [can_go[place] for place in np.argsort(-worth, kind="stable")]

    def trim(self, kept: Sequence[int]) -> Tokenizer:
        """Return the tokenizer with these pieces alone, numbered from 0 in this order.

        Args:
            kept: ids in rising order, from `choose`.

        Raises:
            CheckpointError: if its ids cannot be numbered anew.
        """
        new = {old: number for number, old in enumerate(kept)}
        content = json.loads(self.tokenizer.to_str())
        model = content["model"]
        if self._kind == "Unigram":
            model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
            model["unk_id"] = new.get(model["unk_id"])
        else:
            by_id = sorted(model["vocab"].items(), key=lambda item: item[1])
            model["vocab"] = {piece: new[number] for piece, number in by_id if number in new}
        if self._kind == "BPE":
            model["merges"] = [pair for pair in model["merges"] if {*pair, self._merge(*pair)} <= model["vocab"].keys()]
        for token in content["added_tokens"]:
            token["id"] = new[self.ids[token["content"]]]
        for part in _parts(content["post_processor"]):
            for key in {"cls", "sep"} & part.keys():
                part[key][1] = new[part[key][1]]
            for token in part.get("special_tokens", {}).values():
                token["ids"] = [new[number] for number in token["ids"]]
        trimmed = Tokenizer.from_str(json.dumps(content))
        # The library numbers added tokens itself, behind all others.
        expected = {piece: new[number] for piece, number in self.ids.items() if number in new}
        if trimmed.get_vocab(with_added_tokens=True) != expected:
            raise CheckpointError(
                f"the ids of {self.name} have gaps, or added tokens lie among the others, so they cannot be numbered "
                "anew; mend its tokenizer.json"
            )
        return trimmed

    def _spell(self, piece: str) -> list[str]:
        """Return a piece in single characters: what BPE begins with, and what the others fall back on."""
        # A mark stands before pieces that continue a word (##ing), or behind those that end one (ing</w>).
        front, end = self._model.get("continuing_subword_prefix") or "", self._model.get("end_of_word_suffix") or ""
        continues, ends = len(piece) > len(front) > 0 and piece.startswith(front), end and piece.endswith(end)
        body = piece[len(front) if continues else 0 : -len(end) if ends else None]
        spelt = [front + one if number or continues else one for number, one in enumerate(body)]
        return [*spelt[:-1], spelt[-1] + end] if ends and spelt else spelt

    def _in_order(self, counts: Counts, *, min_count: int = 0) -> list[int]:
        """Return the ids that can go, by worth, each behind those that it needs: any first part of them will do."""
        order: dict[int, None] = {}
        for piece in self.rank(counts):
            if counts[self.ids[piece]] >= min_count:
                order |= dict.fromkeys(self.ids[one] for one in self._needs(piece))
        return [number for number in order if number not in self.indispensable]

    def _needs(self, piece: str) -> list[str]:
        """Return the pieces without which the tokenizer would not arrive at this one, which is the last.

        For BPE these are all that it is merged of. Inside a word it is merged as it is alone: a merge across its ends
        that came before one of its own would have left the word without this piece.
        """
        found, parts = [], self._spell(piece) if self._kind == "BPE" else []
        while len(parts) > 1:
            # Of equal ranks the leftmost, as the library does.
            rank, at = min((self._merges.get(pair, len(self._merges)), at) for at, pair in enumerate(pairwise(parts)))
            if rank == len(self._merges):
                break
            parts[at : at + 2] = [self._merge(parts[at], parts[at + 1])]
            found.append(parts[at])
        return [*found, piece]

    def _merge(self, one: str, other: str) -> str:
        return one + other.removeprefix(self._model.get("continuing_subword_prefix") or "")

    @cached_property
    def _merges(self) -> dict[tuple[str, str], int]:
        """The rank of each merge by its pair."""
        return {(one, other): rank for rank, (one, other) in enumerate(self._model.get("merges", ()))}

    @cached_property
    def _by_frequency(self) -> list[str]:
        """The pieces, the most frequent in general first."""
        if self._kind == "Unigram":
            scores = dict(self._model["vocab"])
            return sorted(self._pieces, key=lambda piece: (-scores[piece], self.ids[piece]))
        return sorted(self._pieces, key=self.ids.__getitem__)

    def _is_used(self, piece: str) -> bool:
        """Return whether a piece can occur in texts, unlike BERT's [unused0], which its pre-tokenizer takes apart."""
        if self._kind != "WordPiece" or self.tokenizer.pre_tokenizer is None:
            return True
        return len(self.tokenizer.pre_tokenizer.pre_tokenize_str(piece.removeprefix("##"))) == 1


def count_pieces(tokenizer: Tokenizer, texts: Iterable[str]) -> Counts:
    """Count each id in the texts; the special tokens around them are left out."""
    counts = np.zeros(max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1, dtype=np.int64)
    texts = iter(texts)
    while some := list(islice(texts, _TEXTS_AT_ONCE)):
        encodings = tokenizer.encode_batch(some, add_special_tokens=False)
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), dtype=np.int64)
        counts += np.bincount(ids, minlength=len(counts))
    return counts


def special_ids(config: Mapping[str, object]) -> set[int]:
    """Return the ids that a config.json names, and those below the padding's where positions are counted from it."""
    found = {value for key, value in config.items() if key.endswith("_token_id") and isinstance(value, int)}
    if config.get("model_type") in POSITIONS_AFTER_PADDING:
        # Their positions begin behind the padding's id, which must stay what it is; MPNet's is always 1.
        padding = 1 if config["model_type"] == "mpnet" else config.get("pad_token_id", 1)
        found |= set(range(padding + 1)) if isinstance(padding, int) else set()
    return found


def _ids_named(content: dict[str, Any]) -> set[int]:
    """Return the ids that tokenizer.json names as the unknown token's and in its post-processor."""
    unknown = _unknown_id(content["model"])
    found = set() if unknown is None else {unknown}
    for part in _parts(content["post_processor"]):
        found |= {part[key][1] for key in {"cls", "sep"} & part.keys()}
        found |= {number for token in part.get("special_tokens", {}).values() for number in token["ids"]}
    return found


def _unknown_id(model: dict[str, Any]) -> int | None:
    found: int | None = model["unk_id"] if model["type"] == "Unigram" else model["vocab"].get(model["unk_token"])
    return found


def _parts(post_processor: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yield a post-processor's parts: those of a sequence, else itself."""
    if post_processor is not None and "processors" in post_processor:
        for one in post_processor["processors"]:
            yield from _parts(one)
    elif post_processor is not None:
        yield post_processor
