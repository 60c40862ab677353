"""TinyBERT: embeddings, hidden states and attention scores of mapped layers, then the answers.

Jiao et al., arXiv 1909.10351: attention loss (equation 7), hidden states (equation 8), embeddings (equation 9),
prediction (equation 10), layer by layer (equations 6 and 11). Shapes: `B` texts, `T` tokens, `H` width, `h` heads.

The general stage learns from running text, unmasked, and has no answers; the task stage learns the inner states first
and the answers afterwards. Attention is compared before the softmax, as in the paper, but recomputed from the
projections, so the models keep their fast attention kernels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from potstill.distill.hooks import attention_scores, capture_hidden_states
from potstill.distill.methods.objective import Batch, Objective, weighted_sum
from potstill.distill.methods.task import answer_loss_sum, count_answers
from potstill.errors import CheckpointError

_STATES = ("emb", "hid", "att")


class TinyBert(Objective):
    """Parts `emb`, `hid`, `att` while inner states are learned, `pred` after that.

    The projection H_student → H_teacher is one for all layers, as in the authors' code, and there is none where the
    widths are equal.
    """

    has_unused_parameters = True

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        *,
        layer_map: Sequence[int],
        weights: Mapping[str, float],
        problem: str | None,
        intermediate_share: float,
        temperature: float,
    ) -> None:
        """Fit the parts to a pair.

        Args:
            student: learns.
            teacher: gives the states.
            layer_map: see `uniform_layer_map`.
            weights: of `emb`, `hid`, `att` and `pred`.
            problem: what the models answer, or None for the general stage.
            intermediate_share: the share of the training before the answers; ignored in the general stage.
            temperature: softens the answers; 1 in the paper.

        Raises:
            CheckpointError: if the attention of the two cannot be compared head by head, or nothing is left to learn.
        """
        super().__init__(weights)
        ours, theirs = student.config, teacher.config
        if weights["att"] > 0 and ours.num_attention_heads != theirs.num_attention_heads:
            raise CheckpointError(
                f"TinyBERT compares attention head by head, and the student has {ours.num_attention_heads} heads, the "
                f"teacher {theirs.num_attention_heads}; set student.num_heads={theirs.num_attention_heads} or "
                "distill.alpha_attention=0, or use minilmv2"
            )
        if problem is None and not any(weights[name] for name in _STATES):
            raise CheckpointError(
                "TinyBERT's general stage learns from embeddings, hidden states and attention, and all their weights "
                "are 0; set distill.alpha_embedding, alpha_hidden or alpha_attention"
            )
        self._map = list(layer_map)
        self._problem = problem
        # A stage without weights is left out.
        has_states, has_answers = any(weights[name] for name in _STATES), problem is not None and weights["pred"] > 0
        # 1 for inner states alone, 0 for answers alone.
        self._intermediate_share = float(not has_answers) if not (has_states and has_answers) else intermediate_share
        self._temperature = temperature
        same_width = ours.hidden_size == theirs.hidden_size
        # Learned with the student and thrown away: as part of the objective it is in checkpoints, not in the student.
        self.projection = nn.Identity() if same_width else nn.Linear(ours.hidden_size, theirs.hidden_size)

    def weights(self, share: float) -> dict[str, float]:
        """Return the weights of the stage that this share of the training belongs to."""
        early = share < self._intermediate_share or self._intermediate_share == 1
        return {name: weight if (name != "pred") == early else 0.0 for name, weight in self.part_weights.items()}

    def count(self, batch: Batch) -> dict[str, int]:
        """Count tokens for states, pairs of tokens for attention, texts or labelled tokens for answers."""
        lengths = batch["attention_mask"].sum(-1)
        tokens = int(lengths.sum())
        return {"emb": tokens, "hid": tokens, "att": int((lengths**2).sum()), "pred": count_answers(batch)}

    def forward(
        self, student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, scales: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts, running both models only as far as they are compared."""
        if "pred" in scales:
            ours = capture_hidden_states(student, batch)
            with torch.no_grad():
                theirs = capture_hidden_states(teacher, batch)
            assert self._problem is not None
            pred = answer_loss_sum(ours.output, theirs.output, batch, self._problem, self._temperature)
            return weighted_sum({"pred": pred}, scales)
        return weighted_sum(self._inner(student, teacher, batch, scales), scales)

    def _inner(
        self, student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, scales: Mapping[str, float]
    ) -> dict[str, Tensor]:
        # Hidden states count from 1 (0 is the embeddings' output), projections from 0.
        numbers = list(range(1, len(self._map) + 1))
        zero = [0] if "emb" in scales else []
        want_hidden, want_attention = "hid" in scales, "att" in scales
        ours = capture_hidden_states(
            student,
            batch,
            hidden=zero + (numbers if want_hidden else []),
            qkv=[number - 1 for number in numbers] if want_attention else [],
            stop=True,
        )
        with torch.no_grad():
            theirs = capture_hidden_states(
                teacher,
                batch,
                hidden=zero + (self._map if want_hidden else []),
                qkv=[layer - 1 for layer in self._map] if want_attention else [],
                stop=True,
            )
        mask = batch["attention_mask"]
        sums = {}
        if zero:
            sums["emb"] = self._distance(ours.hidden[0], theirs.hidden[0], mask)
        pairs = list(zip(numbers, self._map, strict=True))
        if want_hidden:
            sums["hid"] = sum(self._distance(ours.hidden[m], theirs.hidden[n], mask) for m, n in pairs)
        if want_attention:
            heads = student.config.num_attention_heads
            sums["att"] = sum(
                attention_distance_sum(
                    attention_scores(*ours.qkv[m - 1][:2], heads), attention_scores(*theirs.qkv[n - 1][:2], heads), mask
                )
                for m, n in pairs
            )
        return sums

    def _distance(self, ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
        return hidden_distance_sum(self.projection(ours), theirs, mask)


def uniform_layer_map(student_layers: int, teacher_layers: int) -> list[int]:
    """Return the teacher layer, from 1, that each student layer learns from: [4, 8, 12] for 3 of 12 (section 4.1)."""
    # The last student layer always learns from the last of the teacher, whose states its head reads.
    return [number * teacher_layers // student_layers for number in range(1, student_layers + 1)]


def check_layer_map(layer_map: Sequence[int], student_layers: int, teacher_layers: int) -> None:
    """Raise CheckpointError unless the map names a teacher layer, from 1, for each student layer, in rising order."""
    fits = len(layer_map) == student_layers and all(1 <= layer <= teacher_layers for layer in layer_map)
    if not fits or sorted(layer_map) != list(layer_map):
        raise CheckpointError(
            f"distill.layer_map is {list(layer_map)}; it must name one of the teacher's layers 1 to {teacher_layers} "
            f"for each of the {student_layers} student layers, in rising order"
        )


def hidden_distance_sum(ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
    """Return the squared distance of states (B, T, H), averaged over H and summed over tokens (equation 8)."""
    distance = F.mse_loss(ours.float(), theirs.float(), reduction="none").mean(-1)
    return (distance * mask).sum()


def attention_distance_sum(ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
    """Return the squared distance of scores (B, h, T, T), averaged over heads and summed over pairs (equation 7)."""
    # Before the softmax scores are large: 39 of a loss of 40 at first on WikiText-2 (docs/log.md).
    distance = F.mse_loss(ours.float(), theirs.float(), reduction="none").mean(1)
    return (distance * (mask[:, :, None] * mask[:, None, :])).sum()
