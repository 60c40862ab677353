"""Make a model narrower by keeping its strongest units, heads and feed-forward units.

Taking the leading columns keeps units by accident of their order. Here every choice is by the size of weights, and
needs no data, in four steps:

1. The residual stream is one space from the embeddings to the head, so one set of its units is kept everywhere. A unit
   counts by what the layer norms let through and what is read from it: the mean of its squared norm weights times the
   sum, over all matrices that have the stream as columns, of its share of the matrix's squared norm.
2. In each layer the heads are kept whose value and output matrices have the largest product of norms: what a head can
   add to the stream.
3. If the heads get narrower too, query-key units and value-output units are kept within each head by the product of
   their two norms; queries are scaled so that the same attention comes out where nothing was lost.
4. In each layer the feed-forward units are kept by the product of the norms of their input and output weights.

What this cannot keep: a layer norm takes its mean and variance over fewer units, and what other units carried is gone.
A narrowed model is a start for training, not a smaller copy.
"""

import copy
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.distill.hooks import find_layers
from potstill.errors import CheckpointError

State = dict[str, Tensor]
Axes = tuple[str | None, ...]

# What the rows and the columns of a module's weight are, by the end of its name; the first that matches holds.
_AXES: tuple[tuple[str, str | None, str | None], ...] = (
    (r"(word|position|token_type|tok)_embeddings$", None, "embedding"),
    (r"embeddings_project$", "hidden", "embedding"),
    (r"embeddings\.(LayerNorm|norm)$", "embedding", None),
    (r"attention\.(self\.query|self\.key|q_lin|k_lin)$|attn\.W[qk]$", "query-key", "hidden"),
    (r"attention\.(self\.value|v_lin)$|attn\.Wv$", "value", "hidden"),
    (r"attention\.(output\.dense|out_lin)$|attn\.Wo$", "hidden", "value"),
    (r"intermediate\.dense$|ffn\.lin1$|mlp\.Wi_(input|gate)$", "feed-forward", "hidden"),
    (r"\d\.output\.dense$|ffn\.lin2$|mlp\.Wo$", "hidden", "feed-forward"),
    (r"generator_predictions\.dense$", "embedding", "hidden"),
    (r"generator_predictions\.LayerNorm$", "embedding", None),
    (r"generator_lm_head$", None, "embedding"),
    (r"(LayerNorm|norm)$", "hidden", None),
    (r"(pooler|transform|head|classifier)\.dense$|pre_classifier$|vocab_transform$", "hidden", "hidden"),
    (r"(decoder|vocab_projector|classifier|qa_outputs|out_proj)$", None, "hidden"),
    (r"(cls\.predictions|lm_head)$", None, None),
)
# ModernBERT's fused weights, taken apart while choosing.
_FUSED = {"Wqkv": ("Wq", "Wk", "Wv"), "Wi": ("Wi_input", "Wi_gate")}


class _Sizes(NamedTuple):
    hidden: int
    heads: int
    intermediate: int


def prune_width(
    model: PreTrainedModel,
    *,
    hidden_size: int | None = None,
    num_heads: int | None = None,
    intermediate_size: int | None = None,
) -> PreTrainedModel:
    """Return a new model of the same family and depth with fewer units; `model` is not changed.

    Args:
        model: BERT, RoBERTa, DistilBERT, ELECTRA or ModernBERT, with any head.
        hidden_size: width of the residual stream; None keeps it.
        num_heads: None keeps the width of a head, and so needs a multiple of it as the hidden size.
        intermediate_size: width of the feed-forward layers; None scales it with the hidden size.

    Raises:
        CheckpointError: if a size is larger than the model's or the sizes do not fit each other or the family.
    """
    config = model.config
    before = _Sizes(config.hidden_size, config.num_attention_heads, getattr(config, _intermediate_name(model)))
    sizes = _fitting_sizes(model, before, hidden=hidden_size, heads=num_heads, intermediate=intermediate_size)
    state = _unfuse(model.state_dict())
    axes = {key: _axes_of(key, value, model) for key, value in state.items()}
    units = _largest(_stream_strength(state, axes), sizes.hidden)  # step 1
    state = {key: _take(value, axes[key], {"hidden": units}) for key, value in state.items()}
    width, new_width = before.hidden // before.heads, sizes.hidden // sizes.heads
    prefix, layers = find_layers(model)
    for number in range(len(layers)):
        inside = {key: value for key, value in state.items() if key.startswith(f"{prefix}.{number}.")}
        heads = _largest(_strength(inside, axes, "value", group=width), sizes.heads)  # step 2
        chosen = {}
        for kind in ("query-key", "value"):  # step 3
            strengths = _strength(inside, axes, kind).view(before.heads, width)
            chosen[kind] = torch.cat([head * width + _largest(strengths[head], new_width) for head in heads])
        chosen["feed-forward"] = _largest(_strength(inside, axes, "feed-forward"), sizes.intermediate)  # step 4
        state |= {key: _take(value, axes[key], chosen) for key, value in inside.items()}
    narrowing = (sizes.hidden / sizes.heads) / (before.hidden / before.heads)
    if narrowing != 1:  # undo that a narrower head divides its scores by the root of a smaller width
        for key in state:
            if re.search(r"\.(query|q_lin)\.(weight|bias)$", key):
                state[key] = state[key] * narrowing**0.5
    config = copy.deepcopy(config)
    if getattr(config, "embedding_size", None) == config.hidden_size:
        config.embedding_size = sizes.hidden
    config.hidden_size, config.num_attention_heads = sizes.hidden, sizes.heads
    setattr(config, _intermediate_name(model), sizes.intermediate)
    student = type(model)(config)
    student.load_state_dict(_fuse(state), strict=True)
    return student.eval()


def _intermediate_name(model: PreTrainedModel) -> str:
    return "hidden_dim" if model.config.model_type == "distilbert" else "intermediate_size"


def _fitting_sizes(
    model: PreTrainedModel, before: _Sizes, *, hidden: int | None, heads: int | None, intermediate: int | None
) -> _Sizes:
    """Return the sizes of the narrow model, with what was not asked for chosen.

    Raises:
        CheckpointError: if they do not fit the model, its family, or each other.
    """
    config, head_size = model.config, before.hidden // before.heads
    if config.model_type == "mobilebert":
        raise CheckpointError(
            "a MobileBERT cannot be narrowed, because its bottlenecks tie its widths; give fewer layers instead"
        )
    if hidden is not None and hidden < config.hidden_size and hidden == getattr(config, "embedding_size", None):
        raise CheckpointError(
            f"an ELECTRA whose hidden_size equals its embedding_size {hidden} has no projection between them, and the "
            "teacher's could not be kept; ask for another hidden_size"
        )
    hidden = before.hidden if hidden is None else hidden
    if heads is None:
        if hidden % head_size:
            raise CheckpointError(
                f"hidden_size {hidden} is not a multiple of the teacher's head size {head_size}; "
                "ask for a multiple of it, or name num_heads for narrower heads"
            )
        heads = hidden // head_size
    if intermediate is None:
        intermediate = max(1, round(before.intermediate * hidden / before.hidden))
    sizes = _Sizes(hidden, heads, intermediate)
    for name, new, old in zip(("hidden_size", "num_heads", "intermediate_size"), sizes, before, strict=True):
        if not 1 <= new <= old:
            raise CheckpointError(f"{name} {new} cannot be cut from a teacher with {old}; ask for 1 to {old}")
    if hidden % heads or hidden // heads > head_size:
        raise CheckpointError(
            f"num_heads {heads} does not fit hidden_size {hidden}: it must divide it into heads of at most "
            f"the teacher's {head_size} units; {hidden // head_size} heads would keep that size"
        )
    if config.model_type == "modernbert" and hidden // heads != head_size:
        raise CheckpointError(
            f"ModernBERT's heads cannot get narrower than {head_size}, because their units are paired for the rotary "
            "positions; leave num_heads out and ask for a multiple of that as hidden_size"
        )
    return sizes


def _axes_of(key: str, value: Tensor, model: PreTrainedModel) -> Axes:
    """Return what each dimension of a parameter counts; None is one that stays whole."""
    module = key.rpartition(".")[0]
    found = [axes for pattern, *axes in _AXES if re.search(pattern, module)]
    if not found:
        raise CheckpointError(
            f"{model.config.model_type} models cannot be narrowed: nothing is known of {key}; leave hidden_size, "
            "num_heads and intermediate_size out"
        )
    # ELECTRA's embeddings have a width of their own, unless it is the stream's.
    config = model.config
    embedding = "hidden" if getattr(config, "embedding_size", config.hidden_size) == config.hidden_size else None
    return tuple(embedding if axis == "embedding" else axis for axis in found[0][: value.dim()])


def _stream_strength(state: State, axes: Mapping[str, Axes]) -> Tensor:
    """Return the importance of each unit of the residual stream, (H,); step 1 above."""
    is_norm = {key for key in state if axes[key] == ("hidden",) and key.lower().endswith("norm.weight")}
    norms = [value.double().square() for key, value in state.items() if key in is_norm]
    shares = []
    for key, value in state.items():
        if value.dim() == 2 and axes[key][1] == "hidden":
            squares = value.double().square().sum(dim=0)
            # A share, so that the embedding matrix does not outvote all others by its size.
            shares.append(squares / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny))
    return torch.stack(norms).mean(dim=0) * torch.stack(shares).sum(dim=0)


def _strength(state: State, axes: Mapping[str, Axes], kind: str, *, group: int = 1) -> Tensor:
    """Return, for each group of units of a kind, the product of its norms in the matrices that have it."""
    norms = []
    for key, value in state.items():
        if value.dim() == 2 and kind in axes[key]:
            squares = value.double().square().sum(dim=1 - axes[key].index(kind))
            norms.append(squares.view(-1, group).sum(dim=1).sqrt())
    return torch.stack(norms).prod(dim=0)


def _largest(strengths: Tensor, count: int) -> Tensor:
    """Return the numbers of the `count` largest, ascending; among equals the first."""
    # Ascending again, so that units keep their order, and a width that is not cut changes nothing.
    return strengths.argsort(descending=True, stable=True)[:count].sort().values


def _take(value: Tensor, axes: Axes, chosen: Mapping[str, Tensor]) -> Tensor:
    for dim, axis in enumerate(axes):
        if axis is not None and axis in chosen:
            value = value.index_select(dim, chosen[axis])
    return value


def _unfuse(state: State) -> State:
    apart = {}
    for key, value in state.items():
        module, _, kind = key.rpartition(".")
        parent, _, name = module.rpartition(".")
        parts = _FUSED.get(name, (name,))
        for part, piece in zip(parts, value.chunk(len(parts)) if len(parts) > 1 else (value,), strict=True):
            apart[f"{parent}.{part}.{kind}" if len(parts) > 1 else key] = piece
    return apart


def _fuse(state: State) -> State:
    whole = dict(state)
    for fused, parts in _FUSED.items():
        for key in [key for key in whole if f".{parts[0]}." in key]:
            pieces = [whole.pop(key.replace(f".{parts[0]}.", f".{part}.")) for part in parts]
            whole[key.replace(f".{parts[0]}.", f".{fused}.")] = torch.cat(pieces)
    return whole
