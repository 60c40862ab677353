"""Cut a student from its teacher: some of the layers, all of the rest.

A student starts from the teacher's own weights because that is worth several points: DistilBERT's ablation loses
3.7 GLUE points with random weights (arXiv 1910.01108, table 4). Two families are made: the teacher's own with fewer
layers, and DistilBERT from a BERT teacher. DistilBERT has no token types, so the teacher's vector for type 0 is added
to the positions; for single texts nothing changes by that, and a pair's second half loses its mark.
"""

import copy
import re
from collections.abc import Sequence

import torch
from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
)

from potstill.errors import CheckpointError

# transformers' DistilBERT has this epsilon in its code, not in its configuration.
_DISTILBERT_EPSILON = 1e-12

_TO_DISTILBERT = (
    (r"^bert\.encoder\.layer\.", "distilbert.transformer.layer."),
    (r"^bert\.embeddings\.", "distilbert.embeddings."),
    (r"^bert\.pooler\.dense\.", "pre_classifier."),
    (r"\.attention\.self\.query\.", ".attention.q_lin."),
    (r"\.attention\.self\.key\.", ".attention.k_lin."),
    (r"\.attention\.self\.value\.", ".attention.v_lin."),
    (r"\.attention\.output\.dense\.", ".attention.out_lin."),
    (r"\.attention\.output\.LayerNorm\.", ".sa_layer_norm."),
    (r"\.intermediate\.dense\.", ".ffn.lin1."),
    (r"\.output\.dense\.", ".ffn.lin2."),
    (r"\.output\.LayerNorm\.", ".output_layer_norm."),
)


def create_student(
    teacher: PreTrainedModel, *, layers: int | Sequence[int] | None = None, family: str = "same"
) -> PreTrainedModel:
    """Return a new model with the chosen layers of `teacher` and copies of all its other weights.

    Args:
        teacher: any encoder of transformers whose layers stand in one list; it is not changed.
        layers: which layers to keep, or how many (spread evenly from the first: 3 of 6 are 0, 2, 4); None keeps half.
        family: `same` for the teacher's architecture, `distilbert` for DistilBERT from a BERT teacher.

    Raises:
        CheckpointError: if the teacher has not these layers, or cannot become that family.
    """
    total = teacher.config.num_hidden_layers
    kept = choose_layers(total, layers)
    if family == "distilbert" and teacher.config.model_type != "distilbert":
        return _cut_distilbert(teacher, kept)
    return _cut_same_family(teacher, kept)


def choose_layers(total: int, layers: int | Sequence[int] | None) -> list[int]:
    """Return the teacher layers that a student keeps, out of `total`.

    Raises:
        CheckpointError: if there are fewer than asked for, or a named one does not exist.
    """
    if layers is None:
        layers = max(1, total // 2)
    if isinstance(layers, int):
        if not 1 <= layers <= total:
            raise CheckpointError(
                f"a student of {layers} layers cannot be cut from a teacher with {total}; ask for 1 to {total}"
            )
        return [number * total // layers for number in range(layers)]
    beyond = [layer for layer in layers if not 0 <= layer < total]
    if beyond or not layers:
        raise CheckpointError(f"the teacher has layers 0 to {total - 1}, so the student cannot keep {list(layers)}")
    return list(layers)


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


def _cut_same_family(teacher: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    prefix, _ = find_layers(teacher)
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [teacher.config.layer_types[layer] for layer in kept]
    student = type(teacher)(config)
    student.load_state_dict(_renumber(teacher.state_dict(), prefix, kept), strict=True)
    return student.eval()


def _cut_distilbert(teacher: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    _check_becomes_distilbert(teacher)
    state = _renumber(teacher.state_dict(), "bert.encoder.layer", kept)
    token_types = state.pop("bert.embeddings.token_type_embeddings.weight")
    state["bert.embeddings.position_embeddings.weight"] = (
        state["bert.embeddings.position_embeddings.weight"] + token_types[0]
    )
    student = DistilBertForSequenceClassification(_distilbert_config(teacher, len(kept)))
    student.load_state_dict({_rename(key): value for key, value in state.items()}, strict=True)
    return student.eval()


def _check_becomes_distilbert(teacher: PreTrainedModel) -> None:
    config = teacher.config
    if config.model_type != "bert" or not type(teacher).__name__.endswith("ForSequenceClassification"):
        raise CheckpointError(
            f"a DistilBERT student is cut from a BERT classifier, and this teacher is {type(teacher).__name__}; "
            "use student.family=same"
        )
    if config.hidden_act not in {"gelu", "relu"} or config.layer_norm_eps != _DISTILBERT_EPSILON:
        raise CheckpointError(
            f"DistilBERT has GELU or ReLU and a layer-norm epsilon of {_DISTILBERT_EPSILON}; this teacher has "
            f"{config.hidden_act} and {config.layer_norm_eps}; use student.family=same"
        )


def _distilbert_config(teacher: PreTrainedModel, num_layers: int) -> DistilBertConfig:
    config = teacher.config
    return DistilBertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        n_layers=num_layers,
        n_heads=config.num_attention_heads,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        activation=config.hidden_act,
        initializer_range=config.initializer_range,
        pad_token_id=config.pad_token_id,
        id2label=config.id2label,
        label2id=config.label2id,
        problem_type=config.problem_type,
    )


def _renumber(state: dict[str, torch.Tensor], prefix: str, kept: Sequence[int]) -> dict[str, torch.Tensor]:
    """Drop the layers that are not kept and number the others from 0."""
    new_number = {old: new for new, old in enumerate(kept)}
    pattern = re.compile(rf"^{re.escape(prefix)}\.(\d+)\.")
    renumbered = {}
    for key, value in state.items():
        found = pattern.match(key)
        if found is None:
            renumbered[key] = value
        elif int(found[1]) in new_number:
            renumbered[f"{prefix}.{new_number[int(found[1])]}.{key[found.end() :]}"] = value
    return renumbered


def _rename(key: str) -> str:
    for pattern, replacement in _TO_DISTILBERT:
        key = re.sub(pattern, replacement, key)
    return key
