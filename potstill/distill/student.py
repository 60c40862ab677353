"""Cut a student from its teacher: some of the layers, all of the rest.

A student starts from the teacher's own weights because that is worth several points: DistilBERT's ablation loses
3.7 GLUE points with random weights (arXiv 1910.01108, table 4). Layers are chosen here, units in
`width_pruning`, and other families than the teacher's are made in `student_families`.
"""

import copy
import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from potstill.distill.hooks import find_layers
from potstill.distill.student_families import to_distilbert, to_mobilebert
from potstill.distill.width_pruning import prune_width
from potstill.errors import CheckpointError

FAMILIES = ("same", "distilbert", "mobilebert")


def create_student(
    teacher: PreTrainedModel,
    *,
    layers: int | Sequence[int] | None = None,
    family: str = "same",
    hidden_size: int | None = None,
    num_heads: int | None = None,
    intermediate_size: int | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Return a new model with the chosen layers of `teacher` and copies of all its other weights, on the CPU.

    Args:
        teacher: an encoder of transformers whose layers stand in one list, with or without a head, which is copied
            whole; it is not changed.
        layers: which layers to keep, or how many (spread evenly from the first: 3 of 6 are 0, 2, 4); None keeps half.
            A MobileBERT student takes only their number, and None is all.
        family: `same` for the teacher's architecture, `distilbert` from a BERT teacher, `mobilebert` for a bottleneck
            student of the teacher's width, with random layers.
        hidden_size: a narrower residual stream; the units that stay are chosen by `width_pruning.prune_width`.
        num_heads: None keeps the width of a head; for `mobilebert` the teacher's.
        intermediate_size: None scales it with the hidden size.
        seed: of what starts at random, which is `mobilebert`'s layers.

    Raises:
        CheckpointError: if the teacher has not these layers, or cannot become that family or width.
    """
    own, total, width = teacher.config.model_type, teacher.config.num_hidden_layers, teacher.config.hidden_size
    if family not in FAMILIES:
        raise CheckpointError(f"there is no student family {family!r}; use one of {', '.join(FAMILIES)}")
    if family == "mobilebert" and own != "mobilebert":
        if hidden_size not in {None, width}:
            raise CheckpointError(
                f"a MobileBERT student has its teacher's width {width}, not {hidden_size}: its bottlenecks make it "
                "small; leave hidden_size out"
            )
        return to_mobilebert(
            teacher,
            num_layers=total if layers is None else len(choose_layers(total, layers)),
            num_heads=num_heads,
            intermediate_size=intermediate_size,
            seed=seed,
        )
    student = _keep_layers(teacher, choose_layers(total, layers))
    if family == "distilbert" and own != "distilbert":
        student = to_distilbert(student)
    if (hidden_size, num_heads, intermediate_size) == (None, None, None):
        return student
    return prune_width(student, hidden_size=hidden_size, num_heads=num_heads, intermediate_size=intermediate_size)


def with_random_weights(model: PreTrainedModel, *, seed: int) -> PreTrainedModel:
    """Return a model of the same class and configuration with the weights that transformers draws for a new one.

    The global random state stays as it was.
    """
    # CPU only: the model is made there, and forking every GPU's state would initialise CUDA.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(copy.deepcopy(model.config)).eval()


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
        # Every k-th from the first, as DistilBERT takes one layer out of two (arXiv 1910.01108, section 3).
        return [number * total // layers for number in range(layers)]
    beyond = [layer for layer in layers if not 0 <= layer < total]
    if beyond or not layers:
        raise CheckpointError(f"the teacher has layers 0 to {total - 1}, so the student cannot keep {list(layers)}")
    return list(layers)


def candidate_layers(total: int, count: int) -> list[list[int]]:
    """Return the subsets of `count` layers that are worth trying, without repetition.

    Evenly from the first; evenly up to the last; evenly with both ends, which for 6 of 12 is DistilBERT's
    0, 2, 4, 7, 9, 11; the topmost; the lowest.

    Raises:
        CheckpointError: if there are fewer layers than asked for.
    """
    from_first = choose_layers(total, count)
    to_last = sorted(total - 1 - layer for layer in from_first)
    both_ends = [round(number * (total - 1) / max(1, count - 1)) for number in range(count)]
    subsets = [from_first, to_last, both_ends, list(range(total - count, total)), list(range(count))]
    return [subset for number, subset in enumerate(subsets) if subset not in subsets[:number]]


def best_layers(
    teacher: PreTrainedModel,
    count: int,
    score: Callable[[PreTrainedModel], float],
    *,
    candidates: Sequence[Sequence[int]] | None = None,
    family: str = "same",
) -> tuple[list[int], dict[tuple[int, ...], float]]:
    """Try several subsets of layers and return the one whose untrained student scores best, with all the scores.

    Among equals the earlier candidate wins; a score that is not a number loses. One student is in memory at a time.

    Args:
        teacher: see `create_student`.
        count: how many layers to keep.
        score: what to make large, such as the accuracy on a few batches or a negative loss.
        candidates: the subsets to try; None is those of `candidate_layers`.
        family: of the students to score, `same` or `distilbert`.

    Raises:
        CheckpointError: if there is nothing to choose, or a candidate cannot be cut.
    """
    if family == "mobilebert":
        raise CheckpointError("a MobileBERT student takes no layers of its teacher to choose from; give their number")
    if candidates is None:
        candidates = candidate_layers(teacher.config.num_hidden_layers, count)
    if not candidates:
        raise CheckpointError("there are no candidate layers to choose from; name at least one subset")
    scores: dict[tuple[int, ...], float] = {}
    for layers in candidates:
        found = float(score(create_student(teacher, layers=layers, family=family)))
        # max() with NaN depends on the order: every comparison with it is false.
        scores[tuple(layers)] = -math.inf if math.isnan(found) else found
    best = max(scores, key=lambda layers: scores[layers])
    return list(best), scores


def _keep_layers(teacher: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Return a new model with the kept layers, numbered from 0, and all other weights of the teacher."""
    prefix, _ = find_layers(teacher)
    config = copy.deepcopy(teacher.config)
    if getattr(config, "layer_types", None):
        # ModernBERT: local and global attention go with the layer, not with its new number.
        config.layer_types = [teacher.config.layer_types[layer] for layer in kept]
    config.num_hidden_layers = len(kept)
    pattern = re.compile(rf"^{re.escape(prefix)}\.(\d+)\.")
    state = {}
    for key, value in teacher.state_dict().items():
        found = pattern.match(key)
        if found is None:
            state[key] = value
            continue
        for new, old in enumerate(kept):  # a layer may be kept twice
            if old == int(found[1]):
                state[f"{prefix}.{new}.{key[found.end() :]}"] = value
    if config.model_type == "modernbert":
        _fit_first_norm(state, config, prefix, kept)
    student = type(teacher)(config)
    # Strict: a weight left out or named wrongly would stay random without a word.
    student.load_state_dict(state, strict=True)
    return student.eval()


def _fit_first_norm(state: dict[str, Tensor], config: PretrainedConfig, prefix: str, kept: Sequence[int]) -> None:
    """Give ModernBERT's first layer the form it must have: no norm before its attention.

    The embeddings are normalised already, which is why the first layer has none. If another layer becomes the first,
    its norm's scale and shift are folded into the projection that reads from it. `state` and `config` are changed in
    place.
    """
    if 0 in kept[1:]:
        raise CheckpointError(
            f"ModernBERT's layer 0 has no norm before its attention and can only stay first, not as in {list(kept)}"
        )
    norm, fused = f"{prefix}.0.attn_norm", f"{prefix}.0.attn.Wqkv"
    scale, shift = state.pop(f"{norm}.weight", None), state.pop(f"{norm}.bias", None)
    if shift is not None and f"{fused}.bias" not in state:  # norm_bias without attention_bias: all layers get one, of 0
        config.attention_bias = True
        for name in [name for name in state if name.endswith((".attn.Wqkv.weight", ".attn.Wo.weight"))]:
            state[f"{name.removesuffix('weight')}bias"] = state[name].new_zeros(state[name].shape[0])
    # W (γ x + β) = (W γ) x + W β, so the shift is taken with the weights as they are, before they are scaled.
    if shift is not None:
        state[f"{fused}.bias"] = state[f"{fused}.bias"] + state[f"{fused}.weight"] @ shift
    if scale is not None:
        state[f"{fused}.weight"] = state[f"{fused}.weight"] * scale
