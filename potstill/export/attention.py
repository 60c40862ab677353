"""One fused attention operator per layer, put into the graph while it is traced.

transformers looks its attention function up by name. Ours runs nothing: it writes one node, in one of two forms.

    fused  com.microsoft MultiHeadAttention, onnxruntime's own operator. It takes the padding mask as it comes from the
           tokenizer, and whatever is added to the scores as a second input.
    onnx   the standard's Attention (opset 23), which other runtimes know too. It takes one mask for everything.

Finding the pattern afterwards, as onnxruntime's own fusion tool does, fails on every current export (0 of 12 layers of
BERT-base).

Padding may see no token at all, in a window for one. No other token sees what becomes of it, but a head that takes the
first position of a text padded on the left does, so it is as in torch. Only a text without any token is not: torch's
own implementations differ there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

Attention = Literal["fused", "onnx"]

OPERATORS: dict[str, str] = {"fused": "MultiHeadAttention", "onnx": "Attention"}
_FUSED = f"com.microsoft::{OPERATORS['fused']}"
# Added to the score of a masked key. torch takes the lowest number there is, of which half is far enough: onnxruntime's
# Attention gives no answer at all, zeros, to a row of the lowest. MultiHeadAttention's default, -10000, is too near.
MASKED = torch.finfo(torch.float32).min / 2


@contextmanager
def traced_attention(model: PreTrainedModel, form: Attention) -> Iterator[None]:
    """Let transformers' attention functions and masks write operators inside the block; `model` cannot run there."""
    name, before = f"potstill_{form}", model.config._attn_implementation
    AttentionInterface.register(name, partial(_attend, form))
    AttentionMaskInterface.register(name, partial(_make_mask, form))
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


def write_attention(
    form: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    heads: int,
    scale: float | None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Write the operator that attends from `query` to `key` and `value`.

    Args:
        form: which operator.
        query: (B, T, heads * width), like `key`, `value` and the result.
        key: what is looked at.
        value: what is taken from there.
        heads: the number of heads of `query`.
        scale: the factor on the scores; None is 1 / sqrt(width).
        mask: which keys are seen, as this form's mask function makes it.
        bias: added to the scores, (1 | B, 1 | heads, T, T).
    """
    attributes: dict[str, int | float] = {} if scale is None else {"scale": float(scale)}
    if form == "fused":
        attributes |= {"num_heads": heads, "mask_filter_value": MASKED}
        return _write_fused(query, key, value, mask=mask, bias=bias, attributes=attributes)
    attributes |= {"q_num_heads": heads, "kv_num_heads": heads}
    if mask is None or bias is not None:
        mask = bias if mask is None else torch.where(mask, bias, MASKED)
    return write_operator(OPERATORS[form], (query, key, value, mask), attributes, version=23)


def write_operator(
    name: str, inputs: Sequence[Tensor | None], attributes: dict[str, int | float], *, version: int = 1
) -> Tensor:
    """Write a node whose result has the shape and type of its first input."""
    first = inputs[0]
    assert first is not None
    return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=first.dtype, shape=first.shape, version=version)


def _write_fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    bias: Tensor | None,
    attributes: dict[str, int | float],
) -> Tensor:
    """Tell a mask of keys, (B, T), which the operator takes, from one of pairs, (B, 1, T, T), which is added."""
    if mask is None or mask.ndim == 2:
        return write_operator(_FUSED, (query, key, value, None, mask, bias), attributes)
    pairs = torch.where(mask, 0.0 if bias is None else bias, MASKED)
    attended = write_operator(_FUSED, (query, key, value, None, None, pairs), attributes)
    # As in torch's sdpa, which sees nothing where the operator sees everything alike.
    return attended * mask.any(-1).transpose(1, 2)


def _attend(
    form: Attention,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Stand in for transformers' attention: (B, heads, T, width) each; return (B, T, heads, width)."""
    batch, heads, length, width = query.shape
    if key.shape[1] != heads:  # some share theirs
        key, value = (states.repeat_interleave(heads // states.shape[1], dim=1) for states in (key, value))
    merged = [states.transpose(1, 2).reshape(batch, length, -1) for states in (query, key, value)]
    output = write_attention(form, *merged, heads=int(heads), scale=scaling, mask=attention_mask, bias=position_bias)
    return output.reshape(batch, length, heads, width), None


def _make_mask(
    form: Attention,
    *,
    batch_size: int,
    q_length: int,
    device: torch.device,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    **_: Any,
) -> Tensor | None:
    """Make the mask that every layer gets, of the (B, T) mask and, for sliding windows, the reach to either side.

    Returns:
        bool (B, 1, T, T), which query sees which key; fused without a window int32 (B, T).
    """
    if local_size is None and form == "fused":
        return None if attention_mask is None else attention_mask.to(torch.int32)
    pairs = None if attention_mask is None else attention_mask[:, None, None, :]
    if local_size is not None:
        positions = torch.arange(q_length, device=device)
        near = (positions[:, None] - positions[None, :]).abs() <= local_size
        pairs = near[None, None] if pairs is None else near & pairs
    # The standard lets a mask broadcast; onnxruntime 1.31 insists on the queries' dimension.
    return None if pairs is None else pairs.expand(batch_size, 1, q_length, q_length)
