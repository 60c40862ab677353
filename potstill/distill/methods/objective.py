"""The base class of the methods, and the losses that several of them share.

Shapes: `B` texts, `T` tokens, `C` classes, `H` hidden width. Losses are sums over their units, so that the trainer can
average over a whole step; divided by the count they grow neither with batch, length nor vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from potstill.checkpoint.model import SentenceEncoder

Batch = Mapping[str, Tensor]


class Objective(nn.Module, ABC):
    """The base of every method; it may hold learned projections, which train with the student.

    A loss is made of named parts. Each part is a sum over its units (texts, tokens, positions) and knows how many
    units a micro-batch has, so that the trainer can divide by the count over all micro-batches and processes of a
    step: accumulating, or spreading the same texts over more processes, changes nothing.
    """

    has_unused_parameters = False
    """Whether some of the student's parameters get no gradient, which DistributedDataParallel must be told."""

    def __init__(self, part_weights: Mapping[str, float]) -> None:
        """Store the weight of each part by its name."""
        super().__init__()
        self.part_weights = dict(part_weights)

    def weights(self, share: float) -> dict[str, float]:
        """Return the weight of each part at this `share` (0 to 1) of the training; 0 leaves a part out.

        The same all through the training, unless a method has stages.
        """
        return self.part_weights

    @abstractmethod
    def count(self, batch: Batch) -> dict[str, int]:
        """Return how many units each part has in this micro-batch, read from tensors on the CPU."""

    def as_used(self, student: PreTrainedModel) -> PreTrainedModel | SentenceEncoder:
        """Return the student as it is scored and published: with what the method trains for it beside it."""
        return student

    @abstractmethod
    def forward(
        self, student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, scales: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, `sum(scales[k] * sums[k])`, and the detached sums; parts without a scale are not computed.

        Args:
            student: learns; run with gradients.
            teacher: frozen and in eval mode; run without.
            batch: tensors on the models' device, see `batches`.
            scales: the weight of each part divided by its count over the whole step.
        """


def weighted_sum(sums: dict[str, Tensor], scales: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss `sum(scales[k] * sums[k])`, and the sums detached: what `Objective.forward` returns."""
    loss = torch.stack([scales[name] * value for name, value in sums.items()]).sum()
    return loss, {name: value.detach() for name, value in sums.items()}


def kl_divergence_sum(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) of the answers softened by `temperature`, summed over all but the classes.

    The factor T² keeps the gradient's size when the temperature changes (Hinton et al., arXiv 1503.02531, section 2.1).

    Args:
        student_logits: (..., C).
        teacher_logits: (..., C).
        temperature: above 0; 1 compares the answers as they are.
    """
    divergence = F.kl_div(
        # float32 also under autocast: bfloat16 has 8 bits, fewer than the difference of two good answers needs.
        F.log_softmax(student_logits.float() / temperature, dim=-1),
        F.log_softmax(teacher_logits.float() / temperature, dim=-1),
        reduction="sum",
        log_target=True,
    )
    return divergence * temperature**2


def hidden_cosine_sum(student_hidden: Tensor, teacher_hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Return 1 − cosine between the two hidden states of each token, summed over the tokens that are not padding.

    The alignment term of DistilBERT (arXiv 1910.01108, section 3).

    Args:
        student_hidden: (B, T, H).
        teacher_hidden: (B, T, H).
        attention_mask: (B, T), 1 for a token, 0 for padding.
    """
    cosine = F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)
    return ((1 - cosine) * attention_mask).sum()
