"""One fused attention operator per layer, put into the graph while it is traced.

transformers looks its attention function up by name. Ours runs nothing: it writes a `com.microsoft`
MultiHeadAttention node, which takes the padding mask as it comes from the tokenizer. Finding the pattern afterwards,
as onnxruntime's own fusion tool does, fails on every current export (0 of 12 layers of BERT-base).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

_NAME = "potstill_fused"
OPERATOR = "MultiHeadAttention"
DOMAIN = "com.microsoft"


@contextmanager
def fused_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let `model` trace into fused attention operators inside the block; it cannot run there."""
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _padding_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _padding_mask(*, attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
    """Pass the (B, T) mask on as it is, instead of spreading it to (B, 1, T, T)."""
    return attention_mask


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Write the operator for query, key and value of shape (B, heads, T, width); return (B, T, heads, width)."""
    batch, heads, length, width = query.shape
    flat = (batch, length, heads * width)
    merged = [states.transpose(1, 2).reshape(flat) for states in (query, key, value)]
    mask = None if attention_mask is None else attention_mask.to(torch.int32)
    attributes: dict[str, int | float] = {"num_heads": int(heads)}
    if scaling is not None:
        attributes["scale"] = float(scaling)
    output = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{OPERATOR}", (*merged, None, mask), attributes, dtype=query.dtype, shape=flat, version=1
    )
    return output.reshape(batch, length, heads, width), None
