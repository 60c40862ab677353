"""Several texts in one row: which go together, and how a model keeps them apart.

A packed row carries `segments` (0 for padding, then the number of the text) and `position_ids` that restart with each
text. Attention must stay within a segment, or the texts change each other's hidden states.
"""

from bisect import bisect_left, insort
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from potstill.errors import CheckpointError

# Where the numbering of positions starts: RoBERTa counts from behind its padding id.
_FROM_PADDING_ID = ("roberta", "xlm-roberta", "camembert")
_PACKABLE = ("bert", "distilbert", "electra", "modernbert", *_FROM_PADDING_ID)


def pack(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Return which texts share a row: longest first, each into the fullest row that still has room for it.

    Best-fit decreasing over row lengths (Krell et al., arXiv 2107.02027, section 3). The same lengths give the same
    rows, and every text is in exactly one.
    """
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # by the room that is left
    rooms: list[int] = []  # the keys of open_rows, ascending
    for number in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[number])
        # The smallest room that is large enough: the fullest row that fits.
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del rooms[at], open_rows[room]
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(number)
        left = room - length
        if left not in open_rows:
            open_rows[left] = []
            insort(rooms, left)
        open_rows[left].append(row)
    return rows


def pair_mask(segments: Tensor) -> Tensor:
    """Return which positions see each other: bool (B, 1, T, T) for segments (B, T).

    Padding (segment 0) sees padding: a row of the mask without any True makes softmax give NaN in some kernels.
    """
    return (segments[:, None, :, None] == segments[:, None, None, :]).contiguous()


def check_packable(config: PreTrainedConfig) -> None:
    """Refuse a model that cannot keep packed texts apart.

    Raises:
        CheckpointError: with the reason.
    """
    # By a list of families: one that ignores a 4-D mask or position ids would mix the texts without a word.
    family, attention = config.model_type, config._attn_implementation
    if family == "mobilebert" and config.trigram_input:
        raise CheckpointError(
            "packing='texts' cannot be used with mobilebert: its embedding of a token also reads the tokens beside "
            "it, across the border of two texts; use packing='none' or 'blocks'"
        )
    if family not in (*_PACKABLE, "mobilebert"):
        raise CheckpointError(
            f"packing='texts' is not known to be safe with {family}; it is with {', '.join(_PACKABLE)}; "
            "use packing='none' or 'blocks'"
        )
    if attention not in {"sdpa", "eager"}:
        raise CheckpointError(
            f"packing='texts' needs attn_implementation sdpa or eager, and this {family} has {attention!r}"
        )


def packed_inputs(
    batch: Mapping[str, Tensor], config: PreTrainedConfig, *, dtype: torch.dtype
) -> dict[str, Tensor | dict[str, Tensor]]:
    """Return the mask and positions that make a model treat each packed text as if it were alone.

    Args:
        batch: `segments` and `position_ids`, int (B, T).
        config: the model's; families differ in the form of the mask and in their first position.
        dtype: of the hidden states; eager attention adds the mask to its scores in it.

    Returns:
        `attention_mask` (B, 1, T, T), for ModernBERT one per kind of layer, and `position_ids` (B, T), to be passed to
        the model in place of the batch's own.

    Raises:
        CheckpointError: if the model cannot do it (`check_packable`).
    """
    check_packable(config)
    positions, full = batch["position_ids"], pair_mask(batch["segments"])
    mask: Tensor | dict[str, Tensor] = _as_needed(full, config, dtype)
    if config.model_type == "modernbert":
        places = torch.arange(full.shape[-1], device=full.device)
        # The local layers' window, half of `local_attention` on either side. It is over places in the row: within a
        # text, distances are the same as in the text alone.
        near = (places[:, None] - places[None, :]).abs() <= config.sliding_window
        mask = {"full_attention": mask, "sliding_attention": _as_needed(full & near, config, dtype)}
    if config.model_type in _FROM_PADDING_ID:
        # RoBERTa shifts positions by its padding id only where it makes them itself, for rows of one text.
        positions = torch.where(batch["segments"] > 0, positions + config.pad_token_id + 1, config.pad_token_id)
    return {"attention_mask": mask, "position_ids": positions}


def _as_needed(mask: Tensor, config: PreTrainedConfig, dtype: torch.dtype) -> Tensor:
    if config._attn_implementation == "sdpa":
        return mask
    # Eager attention adds the mask to the scores, sdpa takes it as truth values.
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
