"""Read the inner states of any supported encoder: hidden states, query/key/value projections, the masked-LM head.

The methods ask for layers by number and need not know the family. States are taken by forward hooks that live for one
forward pass. So nothing is stored that no loss reads (`output_hidden_states` keeps every layer), attention may run in a
fused kernel (`output_attentions` forces the eager one), and the pass can end at the last state that is wanted.

Families: BERT, RoBERTa and XLM-RoBERTa, DistilBERT, ELECTRA, MobileBERT, ModernBERT. A model is recognised by the names
of its modules and not by `model_type`, so that close relatives work too.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from potstill.checkpoint.model import SentenceHead, pool
from potstill.distill.packing import packed_inputs
from potstill.errors import CheckpointError

# What a batch may hold for the model. Labels and the like are for the losses; given to the model, it would compute its
# own loss.
_MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")


@dataclass(slots=True)
class CapturedStates:
    """The states taken from one forward pass.

    Attributes:
        hidden: (B, T, H) by number: 0 is the input of the first layer, k the output of layer k counted from 1.
            ModernBERT normalises once more after its last layer; that is not in here, but in the base model's
            `last_hidden_state`.
        qkv: query, key and value of a layer counted from 0, each (B, T, H') as the projections give them, heads side
            by side. H' is MobileBERT's bottleneck width. ModernBERT's are those before the rotary embedding.
        output: what the model returned; None if the pass was stopped.
    """

    hidden: dict[int, Tensor] = field(default_factory=dict)
    qkv: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    output: ModelOutput | None = None


@dataclass(frozen=True, slots=True)
class MaskedLMHead:
    """A masked-LM head in two steps, so that logits are computed for the masked positions only.

    The logits of hidden states (N, H) are `F.linear(transform(states), weight, bias)`, (N, V). Gradients reach the
    model's parameters through all three.
    """

    transform: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor


class _StopForward(Exception):
    """Ends a forward pass from inside a hook; never leaves `capture_hidden_states`."""


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the list of encoder layers of a model and its name in the state dictionary.

    Raises:
        CheckpointError: if there is no such list, as in ALBERT, which shares one layer.
    """
    total = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            return name, module
    raise CheckpointError(f"{model.config.model_type} models do not keep their layers in one list; they cannot be cut")


def model_inputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor | dict[str, Tensor]]:
    """Return what a model's forward takes of a batch; DistilBERT and ModernBERT have no token types.

    Packed texts get the mask and positions that keep them apart.

    Raises:
        CheckpointError: if the batch is packed and the model cannot keep texts apart, as MobileBERT.
    """
    parameters = inspect.signature(model.forward).parameters
    given: dict[str, Tensor | dict[str, Tensor]] = dict(batch)
    if "segments" in batch:
        given |= packed_inputs(batch, model.config, dtype=model.dtype)
    return {name: given[name] for name in _MODEL_INPUTS if name in given and name in parameters}


def capture_hidden_states(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    *,
    hidden: Sequence[int] = (),
    qkv: Sequence[int] = (),
    stop: bool = False,
) -> CapturedStates:
    """Run a model once and return the states that were asked for, with their graph where gradients are on.

    The hooks are gone when this returns, also after an error. With `stop` the pass ends as soon as the last state is
    there. To train under DistributedDataParallel, call this inside the wrapped module's forward: a stop that crossed
    the wrapper would skip its preparation of the backward pass, and parameters behind the stop are unused, which it
    must be told (`find_unused_parameters`).

    Args:
        model: an encoder with or without a head; its mode and attention kernel stay as they are.
        inputs: a batch; what the model does not take is left out, and labels are never passed. Packed texts, which come
            with `segments` and `position_ids`, are kept apart (`packing.packed_inputs`).
        hidden: numbers 0 to L, see `CapturedStates`.
        qkv: layers 0 to L - 1.
        stop: give up the rest of the pass; without a state to wait for it runs to its end.

    Raises:
        CheckpointError: if the model has no such layer, or its attention is of no known family.
    """
    _, layers = find_layers(model)
    for what, numbers, last in (
        ("hidden states", hidden, len(layers)),
        ("attention projections of layers", qkv, len(layers) - 1),
    ):
        beyond = [number for number in numbers if not 0 <= number <= last]
        if beyond:
            raise CheckpointError(f"the model has {what} 0 to {last}, not {beyond}; choose among them")
    # Which module gives each state, by (kind, layer number, part).
    modules = {("hidden", number, 0): layers[max(number - 1, 0)] for number in sorted(set(hidden))}
    for layer in sorted(set(qkv)):
        for part, projection in enumerate(_qkv_projections(layers[layer])):
            modules["qkv", layer, part] = projection
    seen: dict[tuple[str, int, int], Tensor] = {}

    def keep(key: tuple[str, int, int], state: Tensor) -> None:
        seen[key] = state
        if stop and len(seen) == len(modules):
            raise _StopForward

    handles = [_add_hook(module, key, keep) for key, module in modules.items()]
    captured = CapturedStates()
    try:
        captured.output = model(**model_inputs(model, inputs))
    except _StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
    captured.hidden = {number: seen["hidden", number, 0] for number in hidden}
    for layer in qkv:
        states = [seen[key] for key in modules if key[:2] == ("qkv", layer)]
        query, key, value = states[0].chunk(3, dim=-1) if len(states) == 1 else states
        captured.qkv[layer] = (query, key, value)
    return captured


def _add_hook(
    module: nn.Module, key: tuple[str, int, int], keep: Callable[[tuple[str, int, int], Tensor], None]
) -> torch.utils.hooks.RemovableHandle:
    if key == ("hidden", 0, 0):  # the first layer's input: ELECTRA widens its embeddings on the way there
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: keep(key, args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    return module.register_forward_hook(
        lambda _, args, output: keep(key, output[0] if isinstance(output, tuple) else output)
    )


def attention_scores(query: Tensor, key: Tensor, num_heads: int) -> Tensor:
    """Return the scaled dot products of queries and keys before mask and softmax, (B, heads, T, T).

    This is what softmax turns into attention (Vaswani et al., arXiv 1706.03762, equation 1), computed from captured
    projections, so that no model has to run its eager attention to be compared. ModernBERT's are without its rotary
    positions: content with content.

    Args:
        query: (B, T, H').
        key: (B, T, H').
        num_heads: how many heads share H'; any divisor, for relation heads as in MiniLMv2.
    """
    width = query.shape[-1] // num_heads
    queries, keys = (states.unflatten(-1, (num_heads, width)).transpose(1, 2) for states in (query, key))
    return queries @ keys.transpose(-1, -2) * width**-0.5


def embed(model: PreTrainedModel, batch: Mapping[str, Tensor], pooling: str | SentenceHead) -> Tensor:
    """Return one vector per text, (B, E).

    Args:
        model: an encoder with or without a head.
        batch: input_ids and attention_mask (B, T), and what else the model takes.
        pooling: `mean`, `cls` or `max` over the last hidden states (E = H), or the head of a sentence-transformers
            model, which is applied to them.
    """
    states = model.base_model(**model_inputs(model.base_model, batch)).last_hidden_state
    if isinstance(pooling, str):
        return pool(states, batch["attention_mask"], pooling)
    vectors: Tensor = pooling.to(states.device)(states.float(), batch["attention_mask"])
    return vectors


def masked_lm_head(model: PreTrainedModel) -> MaskedLMHead:
    """Return the masked-LM head of a model in parts; a decoder without bias has one of zeros.

    Raises:
        CheckpointError: if the model has no masked-LM head of a known family.
    """

    def head(transform: Callable[[Tensor], Tensor], decoder: nn.Linear) -> MaskedLMHead:
        bias = decoder.bias if decoder.bias is not None else decoder.weight.new_zeros(decoder.out_features)
        return MaskedLMHead(transform, decoder.weight, bias)

    if hasattr(model, "lm_head"):  # RoBERTa
        lm_head = model.lm_head
        return head(lambda states: lm_head.layer_norm(F.gelu(lm_head.dense(states))), lm_head.decoder)
    if hasattr(model, "vocab_projector"):  # DistilBERT
        return head(
            lambda states: model.vocab_layer_norm(model.activation(model.vocab_transform(states))),
            model.vocab_projector,
        )
    if hasattr(model, "generator_lm_head"):  # ELECTRA
        return head(model.generator_predictions, model.generator_lm_head)
    if hasattr(model, "head") and hasattr(model, "decoder"):  # ModernBERT
        return head(model.head, model.decoder)
    predictions = getattr(getattr(model, "cls", None), "predictions", None)
    if predictions is None:
        raise CheckpointError(
            f"{type(model).__name__} has no masked-LM head of a known family; load the checkpoint for fill-mask"
        )
    if hasattr(predictions, "dense"):  # MobileBERT: half of its decoder is the embeddings, half its own
        weight = torch.cat([predictions.decoder.weight, predictions.dense.weight.t()], dim=1)
        return MaskedLMHead(predictions.transform, weight, predictions.decoder.bias)
    return head(predictions.transform, predictions.decoder)  # BERT


def _qkv_projections(layer: nn.Module) -> tuple[nn.Module, ...]:
    """Return the query, key and value projections of an encoder layer, or the single module that fuses them."""
    if hasattr(layer, "attn") and hasattr(layer.attn, "Wqkv"):  # ModernBERT
        return (layer.attn.Wqkv,)
    attention: Any = getattr(layer, "attention", None)
    if hasattr(attention, "q_lin"):  # DistilBERT
        return attention.q_lin, attention.k_lin, attention.v_lin
    inner = getattr(attention, "self", None)
    if inner is None or not hasattr(inner, "query"):
        raise CheckpointError(
            f"{type(layer).__name__} has its attention where no known family has it; use a method without attention"
        )
    return inner.query, inner.key, inner.value
