"""Put one attention operator per layer into the graph while it is traced.

transformers looks its attention function up by name (`AttentionInterface`). The function registered here computes
nothing: it writes one node into the traced graph, in one of two forms.

    fused  com.microsoft MultiHeadAttention, onnxruntime's own operator. It takes the tokenizer's padding mask, and
           anything that is added to the scores as a separate input.
    onnx   Attention of the ONNX standard (opset 23), for other runtimes. It takes one mask for everything.

Finding the pattern in the finished graph, as onnxruntime's fusion tool does, finds 0 of 12 layers of BERT-base in a
dynamo export (docs/log.md).

A padding position may see no token at all, for instance with a sliding window. Its output reaches no other token, but a
head that reads the first position of a text padded on the left uses it, so it is computed as torch does. The exception
is a text without any token, where torch's own attention implementations differ from each other.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, reduce
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

Attention = Literal["fused", "onnx"]

OPERATORS: dict[str, str] = {"fused": "MultiHeadAttention", "onnx": "Attention"}
_FUSED = f"com.microsoft::{OPERATORS['fused']}"
# Added to the score of a masked key. torch adds the lowest float, with which onnxruntime's Attention gives zeros for a
# fully masked row; half of it does not. MultiHeadAttention's default, -10000, leaves weight on masked keys where scores
# are large (docs/log.md).
MASKED = torch.finfo(torch.float32).min / 2


@contextmanager
def traced_attention(model: PreTrainedModel, form: Attention) -> Iterator[None]:
    """Make `model` write attention operators while it is traced inside the block; it cannot be run there."""
    # Registering is global and harmless: only a configuration that names the function uses it.
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
    """Write one attention operator into the traced graph.

    Args:
        form: which operator.
        query: (B, T, heads * width), like `key`, `value` and the result.
        key: see `query`.
        value: see `query`.
        heads: the number of heads.
        scale: the factor on the scores; None is 1 / sqrt(width).
        mask: which keys are seen, as `_make_mask` returns it for this form.
        bias: added to the scores; (1 or B, 1 or heads, T, T).
    """
    attributes: dict[str, int | float] = {} if scale is None else {"scale": float(scale)}
    if form == "fused":
        attributes |= {"num_heads": heads, "mask_filter_value": MASKED}
        return _write_fused(query, key, value, mask=mask, bias=bias, attributes=attributes)
    attributes |= {"q_num_heads": heads, "kv_num_heads": heads}
    if mask is None or bias is not None:
        # The standard operator has one mask input, boolean or added, so a bias absorbs the mask.
        mask = bias if mask is None else torch.where(mask, bias, MASKED)
    return write_operator(OPERATORS[form], (query, key, value, mask), attributes, version=23)


def write_operator(
    name: str, inputs: Sequence[Tensor | None], attributes: dict[str, int | float], *, version: int = 1
) -> Tensor:
    """Write a node whose output has the shape and dtype of its first input."""
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
    """Write MultiHeadAttention; a mask (B, T) is an input of its own, one of pairs (B, 1, T, T) joins the bias."""
    if mask is None or mask.ndim == 2:
        return write_operator(_FUSED, (query, key, value, None, mask, bias), attributes)
    pairs = torch.where(mask, 0.0 if bias is None else bias, MASKED)
    attended = write_operator(_FUSED, (query, key, value, None, None, pairs), attributes)
    # A query that may see no key gets zeros from torch's sdpa, but the mean of all values from the operator.
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
    **_: object,
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface: takes (B, heads, T, width), returns (B, T, heads, width)."""
    batch, heads, length, width = query.shape
    if key.shape[1] != heads:  # grouped queries: several heads share a key and value
        key, value = (states.repeat_interleave(heads // states.shape[1], dim=1) for states in (key, value))
    # Both operators take merged heads; `merge_heads` removes these reshapes together with the model's own.
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
    **_: object,
) -> Tensor | None:
    """Implement transformers' mask interface; the result reaches `_attend` in every layer.

    Args:
        form: which operator.
        batch_size: B.
        q_length: T.
        device: of the mask.
        attention_mask: bool (B, T); None sees all keys.
        local_size: how many positions a sliding window reaches to either side.

    Returns:
        int32 (B, T) for the fused form without a window; else bool (B, 1, T, T), which query sees which key.
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


# Changes that some families need for the trace. Most need none, because they use AttentionInterface. MPNet and DeBERTa
# compute attention themselves, with scores that depend on the distance of two tokens. What depends on weights only is
# computed once here and becomes a constant of the graph. All changes are undone after the trace.

# Beyond this distance all of MPNet's relative positions share a bucket (`relative_position_bucket`'s max_distance).
_MPNET_REACH = 128

_Change = tuple[nn.Module, dict[str, object]]


@contextmanager
def traceable(model: PreTrainedModel, form: Attention) -> Iterator[None]:
    """Make `model` trace into one attention operator per layer inside the block; it cannot be run there.

    An unknown family that does not use AttentionInterface traces as it is, without such operators.
    """
    with ExitStack() as stack, torch.no_grad():
        changes = [change for module in model.modules() for change in _changes(module, form)]
        for module, members in changes:
            stack.enter_context(_changed(module, members))
        if model._supports_attention_backend or model.config.model_type == "mpnet":
            stack.enter_context(traced_attention(model, form))
        yield


def _changes(module: nn.Module, form: Attention) -> list[_Change]:
    # By class name, so that no family's module has to be imported.
    match type(module).__name__:
        case "MPNetEncoder":
            return _mpnet(module, form)
        case "DebertaV2Encoder":
            return _deberta(module, form)
        case "ModernBertModel":
            return _modernbert(module, form)
        case "MobileBertLMPredictionHead":
            return [(module, {"forward": partial(_mobilebert_vocabulary, module)})]
        # transformers' own forms may be written out in Pow, Tanh or Erf; torch's function becomes one Gelu (opset 20).
        case "GELUActivation":
            return [(module, {"forward": functional.gelu})]
        case "NewGELUActivation" | "FastGELUActivation":
            return [(module, {"forward": partial(functional.gelu, approximate="tanh")})]
    return []


@contextmanager
def _changed(module: nn.Module, members: dict[str, object]) -> Iterator[None]:
    """Replace methods of `module`, and add tensors as buffers, inside the block."""
    # Only what the instance itself has: methods of the class come back when ours are deleted.
    before = {name: vars(module)[name] for name in members if name in vars(module)}
    for name, member in members.items():
        if isinstance(member, Tensor):
            # As a buffer, a tensor becomes an initializer of the graph; not persistent, so that no state_dict has it.
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
    """Return clamp(query position - key position) + reach, (T, T): an index into a table from -reach to reach."""
    positions = torch.arange(length, device=device)
    return (positions[:, None] - positions[None, :]).clamp(-reach, reach) + reach


# MPNet (arXiv 2004.09297): one learned number per head and distance, the same in all layers.


def _mpnet(encoder: nn.Module, form: Attention) -> list[_Change]:
    distances = torch.arange(-_MPNET_REACH, _MPNET_REACH + 1)
    # MPNet counts key minus query. (2 * reach + 1, heads)
    bias = encoder.relative_attention_bias(encoder.relative_position_bucket(-distances))
    members = {"bias_by_distance": bias[:, :, None], "compute_position_bias": partial(_mpnet_bias, encoder)}
    attentions = [layer.attention.attn for layer in encoder.layer]
    return [(encoder, members)] + [
        (attention, {"forward": partial(_mpnet_attention, attention, form)}) for attention in attentions
    ]


def _mpnet_bias(encoder: nn.Module, hidden: Tensor) -> Tensor:
    """Return the score bias of every pair, (1, heads, T, T)."""
    pairs = encoder.bias_by_distance[_distances(hidden.shape[1], _MPNET_REACH, hidden.device)]
    return pairs.permute(3, 2, 0, 1)


def _mpnet_attention(
    module: nn.Module,
    form: Attention,
    hidden: Tensor,
    mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: object,
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


# DeBERTa v2 and v3 (arXiv 2006.03654, eq. 4): the score of two tokens is content-to-content, which the operator
# computes, plus content-to-position (c2p) plus position-to-content (p2c). The latter two are products with one column
# per distance, from which every pair gathers its own; their sum is the operator's bias.


def _deberta(encoder: nn.Module, form: Attention) -> list[_Change]:
    members: dict[str, object] = {"get_attention_mask": _pairs_of_tokens}
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


def _deberta_columns(encoder: nn.Module, *, reach: int, span: int) -> Tensor:
    """Return the column, of 2 * span, for each distance from -reach to reach, (2 * reach + 1,)."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distances = torch.arange(-reach, reach + 1)
    if encoder.position_buckets > 0:
        distances = make_log_bucket_position(distances, encoder.position_buckets, reach).long()
    return (distances + span).clamp(0, 2 * span - 1)


def _deberta_positions(attention: nn.Module, embeddings: Tensor | None) -> dict[str, Tensor]:
    """Return the projected and scaled embeddings of all distances, which transformers computes anew in each run."""
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


def _deberta_scale(attention: nn.Module) -> float:
    # 1 / sqrt(3 d) with all three kinds of score, after eq. 4 of the paper.
    kinds = 1 + sum(kind in attention.pos_att_type for kind in ("c2p", "p2c"))
    return float((attention.attention_head_size * kinds) ** -0.5)


def _split(states: Tensor, attention: nn.Module) -> Tensor:
    """Reshape (B, T, heads * width) to (B, heads, T, width)."""
    heads = attention.num_attention_heads
    return states.reshape(states.shape[0], states.shape[1], heads, -1).transpose(1, 2)


def _pairs_of_tokens(mask: Tensor) -> Tensor:
    """Return which query may see which key, bool (B, 1, T, T); padding sees nothing."""
    tokens = mask.bool()
    return tokens[:, None, :, None] & tokens[:, None, None, :]


def _deberta_pairs(encoder: nn.Module, reach: int, hidden: Tensor, *_: object) -> Tensor:
    """Return the column of every pair, (1, 1, T, T)."""
    return encoder.column_by_distance[_distances(hidden.shape[1], reach, hidden.device)][None, None]


def _deberta_attention(
    module: nn.Module,
    form: Attention,
    hidden: Tensor,
    mask: Tensor,
    *_: object,
    relative_pos: Tensor | None = None,
    **__: object,
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
    # The mask is in the bias, so the operator gets none of its own.
    bias = torch.where(mask, reduce(torch.add, distant) if distant else 0.0, MASKED)
    attended = write_attention(form, query, key, value, heads=heads, scale=_deberta_scale(module), bias=bias)
    return attended, None


# ModernBERT (arXiv 2412.13663): rotary positions, for which both operator sets have a node. Global and local layers
# have different base frequencies, so each kind has its own tables.


def _modernbert(model: nn.Module, form: Attention) -> list[_Change]:
    rotary = model.rotary_emb
    positions = torch.arange(model.config.max_position_embeddings)[None]
    members: dict[str, object] = {}
    for kind in sorted(set(model.config.layer_types)):
        tables = rotary(torch.zeros(()), positions, kind)
        # transformers repeats the table for both halves of the width; the operators take one half.
        members |= {
            f"{kind}_{name}": table[0, :, : table.shape[-1] // 2].contiguous()
            for name, table in zip(("cos", "sin"), tables, strict=True)
        }
    return [(rotary, members)] + [
        (layer.attn, {"forward": partial(_modernbert_attention, layer.attn, rotary, layer.attention_type, form)})
        for layer in model.layers
    ]


def _modernbert_attention(
    module: nn.Module,
    rotary: nn.Module,
    kind: str,
    form: Attention,
    hidden: Tensor,
    attention_mask: Tensor | None = None,
    **_: object,
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
    """Write the RotaryEmbedding operator for (B, T, heads * width)."""
    positions = torch.arange(states.shape[1], device=states.device).expand(states.shape[:2])
    if form == "fused":
        # OpenVINO needs `interleaved`, which onnxruntime does not, and misreads a single start offset as positions.
        flags: dict[str, int | float] = {"num_heads": heads, "interleaved": 0}
        return write_operator("com.microsoft::RotaryEmbedding", (states, positions, *tables), flags)
    return write_operator("RotaryEmbedding", (states, *tables, positions), {"num_heads": heads}, version=23)


def _mobilebert_vocabulary(module: nn.Module, hidden: Tensor) -> Tensor:
    """Compute MobileBERT's vocabulary logits as two products instead of one with a concatenated matrix.

    So the table of word embeddings stays a single constant, which lookup and product share.
    """
    hidden = module.transform(hidden)
    width = module.decoder.in_features
    return module.decoder(hidden[..., :width]) + hidden[..., width:] @ module.dense.weight
