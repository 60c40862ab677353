"""What single families of models need before they trace into a clean graph.

Most need nothing: their attention goes through transformers' AttentionInterface. MPNet and DeBERTa compute their own,
with scores that depend on how far apart two tokens are. Everything about that which depends on the weights alone is
computed here once and becomes a constant of the graph. Every change is gone again after the trace.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from potstill.export.attention import MASKED, Attention, traced_attention, write_attention, write_operator

# Further apart than this, MPNet knows "far" only (`relative_position_bucket`'s max_distance).
_MPNET_REACH = 128

_Change = tuple[nn.Module, dict[str, Any]]


@contextmanager
def traceable(model: PreTrainedModel, form: Attention) -> Iterator[None]:
    """Let `model` trace into one attention operator per layer inside the block; it cannot run there.

    A family that computes attention in its own way, and is not known here, keeps it: its graph has no operator.
    """
    with ExitStack() as stack, torch.no_grad():
        changes = [change for module in model.modules() for change in _changes(module, form)]
        for module, members in changes:
            stack.enter_context(_changed(module, members))
        if model._supports_attention_backend or model.config.model_type == "mpnet":
            stack.enter_context(traced_attention(model, form))
        yield


def _changes(module: nn.Module, form: Attention) -> list[_Change]:
    match type(module).__name__:
        case "MPNetEncoder":
            return _mpnet(module, form)
        case "DebertaV2Encoder":
            return _deberta(module, form)
        case "ModernBertModel":
            return _modernbert(module, form)
        case "MobileBertLMPredictionHead":
            return [(module, {"forward": partial(_mobilebert_vocabulary, module)})]
        case "GELUActivation":
            return [(module, {"forward": functional.gelu})]
        case "NewGELUActivation" | "FastGELUActivation":
            return [(module, {"forward": partial(functional.gelu, approximate="tanh")})]
    return []


@contextmanager
def _changed(module: nn.Module, members: dict[str, Any]) -> Iterator[None]:
    """Give `module` other methods and further constants inside the block."""
    before = {name: vars(module)[name] for name in members if name in vars(module)}
    for name, member in members.items():
        if isinstance(member, Tensor):
            module.register_buffer(name, member, persistent=False)
        else:
            setattr(module, name, member)
    try:
        yield
    finally:
        for name in members:
            delattr(module, name)
        vars(module).update(before)


def _distances(length: int, reach: int, device: torch.device) -> Tensor:
    """Return query position minus key position for every pair, (T, T), as a row of a table from -reach to reach."""
    positions = torch.arange(length, device=device)
    return (positions[:, None] - positions[None, :]).clamp(-reach, reach) + reach


# MPNet (arXiv 2004.09297): one learned number per head and distance, the same in all layers.


def _mpnet(encoder: Any, form: Attention) -> list[_Change]:
    distances = torch.arange(-_MPNET_REACH, _MPNET_REACH + 1)
    # Theirs is key minus query.
    bias = encoder.relative_attention_bias(encoder.relative_position_bucket(-distances))
    members = {"bias_by_distance": bias[:, :, None], "compute_position_bias": partial(_mpnet_bias, encoder)}
    attentions = [layer.attention.attn for layer in encoder.layer]
    return [(encoder, members)] + [
        (attention, {"forward": partial(_mpnet_attention, attention, form)}) for attention in attentions
    ]


def _mpnet_bias(encoder: Any, hidden: Tensor) -> Tensor:
    """Look the biases up, (1, heads, T, T)."""
    pairs = encoder.bias_by_distance[_distances(hidden.shape[1], _MPNET_REACH, hidden.device)]
    return pairs.permute(3, 2, 0, 1)


def _mpnet_attention(
    module: Any,
    form: Attention,
    hidden: Tensor,
    mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor]:
    attended = write_attention(
        form,
        module.q(hidden),
        module.k(hidden),
        module.v(hidden),
        heads=module.num_attention_heads,
        scale=module.attention_head_size**-0.5,
        mask=mask,
        bias=position_bias,
    )
    return (module.o(attended),)


# DeBERTa v2 and v3 (arXiv 2006.03654, eq. 4): the score of two tokens is content to content, which the operator
# computes, plus content to position (c2p) plus position to content (p2c). Both have a column per distance, of which
# every pair takes its own.


def _deberta(encoder: Any, form: Attention) -> list[_Change]:
    members: dict[str, Any] = {"get_attention_mask": _pairs_of_tokens}
    attentions = [layer.attention.self for layer in encoder.layer]
    if encoder.relative_attention:
        reach, span = encoder.max_relative_positions, attentions[0].pos_ebd_size
        members["column_by_distance"] = _deberta_columns(encoder, reach=reach, span=span)
        members["get_rel_pos"] = partial(_deberta_pairs, encoder, reach)
    embeddings = encoder.get_rel_embedding()
    return [(encoder, members)] + [
        (
            attention,
            {"forward": partial(_deberta_attention, attention, form)} | _deberta_positions(attention, embeddings),
        )
        for attention in attentions
    ]


def _deberta_columns(encoder: Any, *, reach: int, span: int) -> Tensor:
    """Return which of the 2 * span columns belongs to a distance from -reach to reach."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distances = torch.arange(-reach, reach + 1)
    if encoder.position_buckets > 0:
        distances = make_log_bucket_position(distances, encoder.position_buckets, reach).long()
    return (distances + span).clamp(0, 2 * span - 1)


def _deberta_positions(attention: Any, embeddings: Tensor | None) -> dict[str, Tensor]:
    """Project the embeddings of all distances, as every run would do again; the scores' factor is in them."""
    if embeddings is None:
        return {}
    rows = embeddings[: 2 * attention.pos_ebd_size]
    factor = _deberta_scale(attention)
    shared = attention.share_att_key
    positions = {}
    if "c2p" in attention.pos_att_type:
        keys = (attention.key_proj if shared else attention.pos_key_proj)(rows)
        positions["position_keys"] = _split(keys[None], attention)[0].transpose(-1, -2) * factor
    if "p2c" in attention.pos_att_type:
        queries = (attention.query_proj if shared else attention.pos_query_proj)(rows)
        positions["position_queries"] = _split(queries[None], attention)[0] * factor
    return {name: value.contiguous() for name, value in positions.items()}


def _deberta_scale(attention: Any) -> float:
    kinds = 1 + sum(kind in attention.pos_att_type for kind in ("c2p", "p2c"))
    return float((attention.attention_head_size * kinds) ** -0.5)


def _split(states: Tensor, attention: Any) -> Tensor:
    """Turn (B, T, heads * width) into (B, heads, T, width)."""
    heads = attention.num_attention_heads
    return states.reshape(states.shape[0], states.shape[1], heads, -1).transpose(1, 2)


def _pairs_of_tokens(mask: Tensor) -> Tensor:
    """Return which query may see which key, (B, 1, T, T): padding is blind too."""
    tokens = mask.bool()
    return tokens[:, None, :, None] & tokens[:, None, None, :]


def _deberta_pairs(encoder: Any, reach: int, hidden: Tensor, *_: Any) -> Tensor:
    """Look up the column of every pair, (1, 1, T, T)."""
    return encoder.column_by_distance[_distances(hidden.shape[1], reach, hidden.device)][None, None]


def _deberta_attention(
    module: Any, form: Attention, hidden: Tensor, mask: Tensor, *_: Any, relative_pos: Tensor | None = None, **__: Any
) -> tuple[Tensor, None]:
    query, key, value = module.query_proj(hidden), module.key_proj(hidden), module.value_proj(hidden)
    batch, length, heads = hidden.shape[0], hidden.shape[1], module.num_attention_heads
    distant = []
    if relative_pos is not None:
        columns = relative_pos.expand(batch, heads, length, length)
        if "c2p" in module.pos_att_type:
            scores = _split(query, module) @ module.position_keys
            distant.append(scores.gather(-1, columns))
        if "p2c" in module.pos_att_type:
            scores = module.position_queries @ _split(key, module).transpose(-1, -2)
            distant.append(scores.gather(-2, columns))
    bias = torch.where(mask, reduce(torch.add, distant) if distant else 0.0, MASKED)
    attended = write_attention(form, query, key, value, heads=heads, scale=_deberta_scale(module), bias=bias)
    return attended, None


# ModernBERT (arXiv 2412.13663): positions are rotations of query and key, for which there is an operator.


def _modernbert(model: Any, form: Attention) -> list[_Change]:
    rotary = model.rotary_emb
    positions = torch.arange(model.config.max_position_embeddings)[None]
    members: dict[str, Any] = {}
    for kind in sorted(set(model.config.layer_types)):
        tables = rotary(torch.zeros(()), positions, kind)
        # The second half of the width repeats the first.
        members |= {
            f"{kind}_{name}": table[0, :, : table.shape[-1] // 2].contiguous()
            for name, table in zip(("cos", "sin"), tables, strict=True)
        }
    return [(rotary, members)] + [
        (layer.attn, {"forward": partial(_modernbert_attention, layer.attn, rotary, layer.attention_type, form)})
        for layer in model.layers
    ]


def _modernbert_attention(
    module: Any, rotary: Any, kind: str, form: Attention, hidden: Tensor, attention_mask: Tensor | None = None, **_: Any
) -> tuple[Tensor, None]:
    query, key, value = module.Wqkv(hidden).chunk(3, dim=-1)
    heads = module.config.num_attention_heads
    tables = (getattr(rotary, f"{kind}_cos"), getattr(rotary, f"{kind}_sin"))
    attended = write_attention(
        form,
        _rotate(form, query, tables, heads=heads),
        _rotate(form, key, tables, heads=heads),
        value,
        heads=heads,
        scale=module.head_dim**-0.5,
        mask=attention_mask,
    )
    return module.out_drop(module.Wo(attended)), None


def _rotate(form: Attention, states: Tensor, tables: tuple[Tensor, Tensor], *, heads: int) -> Tensor:
    """Write the operator that turns (B, T, heads * width) by its positions."""
    positions = torch.arange(states.shape[1], device=states.device).expand(states.shape[:2])
    if form == "fused":
        # OpenVINO wants the attribute, which onnxruntime need not have, and misreads a start in place of positions.
        flags: dict[str, Any] = {"num_heads": heads, "interleaved": 0}
        return write_operator("com.microsoft::RotaryEmbedding", (states, positions, *tables), flags)
    return write_operator("RotaryEmbedding", (states, *tables, positions), {"num_heads": heads}, version=23)


def _mobilebert_vocabulary(module: Any, hidden: Tensor) -> Tensor:
    """Multiply by the word embeddings and by the rest of the matrix one after the other, without joining them."""
    hidden = module.transform(hidden)
    width = module.decoder.in_features
    return module.decoder(hidden[..., :width]) + hidden[..., width:] @ module.dense.weight
