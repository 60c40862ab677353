"""MobileBERT: layer after layer the student takes over feature maps and attention, then it learns words.

Sun et al., arXiv 2004.02984: feature-map transfer (equation 2), attention transfer (equation 3), progressive knowledge
transfer (section 3.6), and pre-training distillation (equation 4). The student's body is as wide as its teacher, so
feature maps compare without a projection. Shapes: `B` texts, `T` tokens, `H` width, `h` heads.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from potstill.distill.hooks import attention_scores, capture_hidden_states, find_layers
from potstill.distill.methods.distilbert import TripleLoss
from potstill.distill.methods.objective import Batch, Objective, weighted_sum
from potstill.errors import CheckpointError

# The authors' factors of normalised map, mean and variance are 100, 5000 and 5; here relative to the first.
_MEAN_FACTOR = 50.0
_VARIANCE_FACTOR = 0.05


class MobileBert(Objective):
    """Parts `feat` and `att` of one layer after the other, then `kl` and `mlm` of the whole.

    While layer k is transferred, the layers below it rest: its input is cut from the graph, so they get no gradient.
    """

    has_unused_parameters = True

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        *,
        layer_map: Sequence[int],
        weights: Mapping[str, float],
        words: TripleLoss,
        progressive_share: float,
    ) -> None:
        """Fit the parts to a pair.

        Args:
            student: a MobileBERT with a masked-LM head.
            teacher: gives feature maps and attention.
            layer_map: the teacher layer, from 1, for each student layer.
            weights: of `feat` and `att`.
            words: the loss of the second phase.
            progressive_share: the share of the training before the second phase.

        Raises:
            CheckpointError: if feature maps or attention of the two cannot be compared.
        """
        super().__init__(weights)
        ours, theirs = student.config, teacher.config
        for what, key in (("hidden units", "hidden_size"), ("attention heads", "num_attention_heads")):
            mine, other = getattr(ours, key), getattr(theirs, key)
            if mine != other:
                raise CheckpointError(
                    f"MobileBERT's student has {mine} {what} and its teacher {other}; they are compared one by one; "
                    "cut the student with student.family=mobilebert"
                )
        self._map = list(layer_map)
        # A phase without weights is left out.
        has_layers, has_words = any(weights.values()), any(words.weights(0.0)[name] for name in ("kl", "mlm"))
        # 1 for feature maps alone, 0 for words alone.
        self._progressive_share = float(has_layers) if not (has_layers and has_words) else progressive_share
        self._share = 0.0
        self.words = words

    def weights(self, share: float) -> dict[str, float]:
        """Return the weights of the phase, and remember which layer is due."""
        self._share = share
        # By `<` alone, an only phase would end at share 1.
        progressive = share < self._progressive_share or self._progressive_share == 1
        words = {name: weight for name, weight in self.words.weights(share).items() if name != "cos"}
        return {name: weight if progressive else 0.0 for name, weight in self.part_weights.items()} | {
            name: 0.0 if progressive else weight for name, weight in words.items()
        }

    def count(self, batch: Batch) -> dict[str, int]:
        """Count tokens for maps and attention; the words' parts count for themselves."""
        tokens = int(batch["attention_mask"].sum())
        counts = self.words.count(batch)
        return {"feat": tokens, "att": tokens, "kl": counts["kl"], "mlm": counts["mlm"]}

    def due_layer(self) -> int:
        """Return the student layer, from 0, that is transferred now."""
        return min(int(self._share / self._progressive_share * len(self._map)), len(self._map) - 1)

    def forward(
        self, student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, scales: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the phase and its parts."""
        if "kl" in scales or "mlm" in scales:
            return self.words(student, teacher, batch, scales)
        layer = self.due_layer()
        with _resting_below(student, layer):
            ours = capture_hidden_states(student, batch, hidden=[layer + 1], qkv=[layer], stop=True)
        number = self._map[layer]
        with torch.no_grad():
            theirs = capture_hidden_states(teacher, batch, hidden=[number], qkv=[number - 1], stop=True)
        mask = batch["attention_mask"]
        sums = {}
        if "feat" in scales:
            sums["feat"] = feature_loss_sum(ours.hidden[layer + 1], theirs.hidden[number], mask)
        if "att" in scales:
            heads = student.config.num_attention_heads
            our_scores = attention_scores(*ours.qkv[layer][:2], heads)
            their_scores = attention_scores(*theirs.qkv[number - 1][:2], heads)
            sums["att"] = attention_loss_sum(our_scores, their_scores, mask)
        return weighted_sum(sums, scales)


@contextmanager
def _resting_below(student: PreTrainedModel, layer: int) -> Iterator[None]:
    """Cut the graph before a layer, so that the layers below it and the embeddings learn nothing meanwhile."""
    if layer == 0:
        yield
        return

    def cut(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Detached, not frozen: `requires_grad` would have to be set and undone with every layer.
        return (args[0].detach(), *args[1:])

    handle = find_layers(student)[1][layer].register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def feature_loss_sum(ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
    """Return the distance of feature maps (B, T, H), summed over tokens.

    Squared distance of the maps normalised over H, plus what normalising takes away: squared distance of their means,
    absolute distance of their variances (section 3.6: normalised difference and statistics discrepancy).
    """
    ours, theirs = ours.float(), theirs.float()
    width = (ours.shape[-1],)
    # layer_norm without weights: both maps at mean 0 and variance 1, whatever the models' own norms.
    maps = F.mse_loss(F.layer_norm(ours, width), F.layer_norm(theirs, width), reduction="none").mean(-1)
    means = (ours.mean(-1) - theirs.mean(-1)) ** 2
    variances = (ours.var(-1, correction=0) - theirs.var(-1, correction=0)).abs()
    return ((maps + _MEAN_FACTOR * means + _VARIANCE_FACTOR * variances) * mask).sum()


def attention_loss_sum(our_scores: Tensor, their_scores: Tensor, mask: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) of attention from scores (B, h, T, T), averaged over heads, summed over tokens."""
    padding = (mask == 0)[:, None, None, :]
    lowest = torch.finfo(torch.float32).min / 2
    ours, theirs = (
        F.log_softmax(scores.float().masked_fill(padding, lowest), dim=-1) for scores in (our_scores, their_scores)
    )
    # Half the lowest float instead of -inf: a key of no weight gives 0 · finite, not 0 · NaN.
    divergence = (theirs.exp() * (theirs - ours).masked_fill(padding, 0)).sum(-1).mean(1)
    return (divergence * mask).sum()
