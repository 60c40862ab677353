"""Dynamic masking for masked-language models: another one in each epoch, and the same one whenever it is asked again.

What is masked depends on the seed, the epoch, the row and the position in it, and on nothing else: not on the batch a
row falls into, its padding, the number of processes or workers, or what was drawn before. So a resumed run masks as the
straight run would have. Random numbers are hashes of those four (a counter-based generator, Salmon et al., SC 2011),
which also makes a whole batch one array operation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from potstill.errors import DataError, RecipeError

IGNORED = -100
"""The label of a position that is not predicted, as torch's cross entropy has it."""

# Devlin et al., arXiv 1810.04805, appendix A.1.
_MASK_SHARE = 0.8
_RANDOM_SHARE = 0.1
# SplitMix64: Steele et al., OOPSLA 2014, figure 17.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)))
# What a random number is for: two uses of the same position must not share it.
_CHOICE, _ACTION, _REPLACEMENT, _EXTRA = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """What may be masked, how much of it, and by what."""

    mask_id: int
    special: NDArray[np.bool_]
    """By token id: never masked and never a random replacement."""
    ordinary: NDArray[np.int64]
    """The ids that a random replacement is drawn from."""
    weights: NDArray[np.float64] | None
    """By token id, how readily it is chosen; None for all alike."""
    share: float
    extra_share: float
    seed: int


@dataclass(frozen=True, slots=True)
class Masked:
    """A masked batch, all (B, T)."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    """The token that was there where it must be predicted, `IGNORED` elsewhere."""
    extra: NDArray[np.bool_]
    """Further positions, neither masked nor special, drawn for the distillation loss alone."""


def make_masking(
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    share: float = 0.15,
    extra_share: float = 0.0,
    counts: NDArray[np.int64] | None = None,
    smoothing: float = 0.7,
) -> Masking:
    """Return what `mask_batch` must know of a tokenizer's vocabulary: special tokens, replacements and weights.

    Args:
        tokenizer: gives the mask token and the special ones, which are left alone ([UNK] among them: it says nothing).
        seed: makes another run mask differently.
        share: of the tokens that are not special, how many are to be predicted: `ceil(share * count)` of each row.
        extra_share: of the others, how many more positions the distillation loss gets.
        counts: of each token in the corpus (`corpus.token_counts`), to favour rare ones; None treats all alike.
        smoothing: the favour is `count ** -smoothing`; 0.7 is DistilBERT's released code's, after XLM's.

    Raises:
        DataError: if the tokenizer has no mask token, or `counts` is not one for each of its tokens.
        RecipeError: if a share is not one.
    """
    if tokenizer.mask_token_id is None:
        raise DataError("the tokenizer has no mask token, so there is no masked-language training with it")
    if not 0 < share < 1 or not 0 <= extra_share <= 1:
        raise RecipeError(f"share must lie in (0, 1) and extra_share in [0, 1]; they are {share} and {extra_share}")
    size = len(tokenizer)
    special = np.zeros(size, dtype=np.bool_)
    special[tokenizer.all_special_ids] = True
    weights = None
    if counts is not None:
        if len(counts) < size:
            raise DataError(f"counts has {len(counts)} entries and the tokenizer {size}; count with its own vocabulary")
        # A token that the corpus never has counts as once: 0 to a negative power is infinite.
        weights = np.maximum(counts[:size], 1).astype(np.float64) ** -smoothing
    return Masking(
        mask_id=int(tokenizer.mask_token_id),
        special=special,
        ordinary=np.flatnonzero(~special),
        weights=weights,
        share=share,
        extra_share=extra_share,
        seed=seed,
    )


def mask_batch(
    ids: NDArray[np.int64],
    attention: NDArray[np.bool_],
    *,
    rows: Sequence[int],
    epochs: Sequence[int],
    masking: Masking,
) -> Masked:
    """Mask a batch by the 80/10/10 rule.

    In each row `ceil(share * count)` of its ordinary tokens are chosen, so at least one if there is one, without
    replacement and, with weights, one after another in proportion to them (exponential keys, Efraimidis and Spirakis
    2006). A chosen token becomes the mask with probability 0.8, another ordinary token with 0.1, or stays.

    Args:
        ids: token ids (B, T), padded on the right.
        attention: True at tokens, False at padding (B, T).
        rows: the number of each row in the corpus; with `epochs` and the seed it decides everything.
        epochs: the epoch of each row.
        masking: from `make_masking`.
    """
    keys = _row_keys(masking.seed, epochs, rows)
    ordinary = attention & ~masking.special[ids]
    weights = None if masking.weights is None else masking.weights[ids]
    chosen = _choose(ordinary, masking.share, _uniform(keys, ids.shape[1], _CHOICE), weights)
    extra = np.zeros_like(chosen)
    if masking.extra_share > 0:
        extra = _choose(ordinary & ~chosen, masking.extra_share, _uniform(keys, ids.shape[1], _EXTRA), None)
    # Only the chosen few need the other numbers.
    at_row, at_place = np.nonzero(chosen)
    action = _to_uniform(_hash(keys[at_row], at_place, _ACTION))
    # The remainder favours low ids by vocabulary / 2^64, which nobody can measure.
    number = _hash(keys[at_row], at_place, _REPLACEMENT) % np.uint64(len(masking.ordinary))
    there = ids[chosen]
    becomes = np.where(action < _MASK_SHARE + _RANDOM_SHARE, masking.ordinary[number.astype(np.int64)], there)
    # Kept and randomly replaced tokens are predicted, too: the model cannot trust what it sees (appendix A.1).
    labels = np.full_like(ids, IGNORED)
    labels[chosen] = there
    masked = ids.copy()
    masked[chosen] = np.where(action < _MASK_SHARE, masking.mask_id, becomes)
    return Masked(masked, labels, extra)


def _choose(
    allowed: NDArray[np.bool_], share: float, uniform: NDArray[np.float64], weights: NDArray[np.float64] | None
) -> NDArray[np.bool_]:
    """Choose `ceil(share * count)` of the allowed positions of each row."""
    # Rounded first: 0.15 * 20 is 3.0000000000000004 in some orders of multiplication, and must not become 4.
    wanted = np.ceil(np.round(share * allowed.sum(axis=1), 9)).astype(np.int64)
    # The smallest keys win: arrivals at exponential times of rate `weights`.
    keys = -np.log(uniform) if weights is None else -np.log(uniform) / weights
    keys[~allowed] = math.inf
    most = int(wanted.max(initial=0))
    chosen = np.zeros_like(allowed)
    if most == 0:
        return chosen
    # Only the smallest few of a row have to be told apart from the rest, and put in order.
    if most < keys.shape[1]:
        first = np.argpartition(keys, most - 1, axis=1)[:, :most]
    else:
        first = np.broadcast_to(np.arange(keys.shape[1]), keys.shape)
    order = np.take_along_axis(first, np.argsort(np.take_along_axis(keys, first, axis=1), axis=1), axis=1)
    np.put_along_axis(chosen, order, np.arange(most) < wanted[:, None], axis=1)
    return chosen


def _row_keys(seed: int, epochs: Sequence[int], rows: Sequence[int]) -> NDArray[np.uint64]:
    key = np.full(len(rows), seed, dtype=np.int64).astype(np.uint64)
    for part in (epochs, rows):
        key = _mix(key + _STEP) ^ np.asarray(part, dtype=np.int64).astype(np.uint64)
    return _mix(key + _STEP)


def _uniform(keys: NDArray[np.uint64], length: int, use: int) -> NDArray[np.float64]:
    """Return uniform random numbers in (0, 1) for every position of every row, (B, length)."""
    return _to_uniform(_hash(keys[:, None], np.arange(length)[None, :], use))


def _hash(keys: NDArray[np.uint64], places: NDArray[np.int64], use: int) -> NDArray[np.uint64]:
    # uint64 arithmetic of arrays wraps around silently, as is wanted here.
    # Four uses per position: the multiples keep their counters apart.
    return _mix(keys + (places.astype(np.uint64) * np.uint64(4) + np.uint64(use + 1)) * _STEP)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for shift, factor in _MIX:
        value = (value ^ (value >> np.uint64(shift))) * factor
    return value ^ (value >> np.uint64(31))


def _to_uniform(value: NDArray[np.uint64]) -> NDArray[np.float64]:
    # 53 bits, moved by half a step: never 0, whose logarithm is infinite.
    return ((value >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
