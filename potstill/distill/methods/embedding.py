"""Sentence embeddings: the student's vector of a text learns the teacher's, which is computed once and kept.

As in sentence-transformers' recipes of layer reduction and embedding distillation. Shapes: `B` texts, `T` tokens, `H`
width of the student, `E` width of the teacher's vectors.
"""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from potstill.checkpoint.model import SentenceEncoder, SentenceHead, pool
from potstill.distill.hooks import base, model_inputs
from potstill.distill.methods.objective import Batch, Objective
from potstill.distill.methods.task import combine

__all__ = ["TEACHER_VECTORS", "EmbeddingDistillation", "embed", "pool"]

TEACHER_VECTORS = "teacher_vectors"
"""The key of a batch under which the teacher's vectors (B, E) are."""


class EmbeddingDistillation(Objective):
    """Parts `cos` (one minus cosine) and `mse` (squared distance) of the vectors that the student's head makes.

    The head is the student's: what it has learned is scored, published and exported with the student.
    """

    # A pooler that the embedding does not go through learns nothing.
    has_unused_parameters = True

    def __init__(self, head: SentenceHead, *, alpha_cos: float, alpha_mse: float) -> None:
        """Take what makes a vector as wide as the teacher's of the student's token vectors."""
        super().__init__()
        self.head = head
        self._weights = {"cos": alpha_cos, "mse": alpha_mse}

    def as_used(self, student: PreTrainedModel) -> SentenceEncoder:
        """Return the student with its head."""
        return SentenceEncoder(student, self.head.to(student.device))

    def weights(self, share: float) -> dict[str, float]:
        """Return the same weights throughout."""
        return self._weights

    def count(self, batch: Batch) -> dict[str, int]:
        """Count texts."""
        return dict.fromkeys(self._weights, len(batch["input_ids"]))

    def forward(
        self, student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, scales: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts; the teacher does not run, its vectors are in the batch."""
        theirs = batch[TEACHER_VECTORS].float()
        ours = embed(student, batch, self.head)
        sums = {}
        if "cos" in scales:
            sums["cos"] = (1 - F.cosine_similarity(ours, theirs, dim=-1)).sum()
        if "mse" in scales:
            sums["mse"] = F.mse_loss(ours, theirs, reduction="none").mean(-1).sum()
        return combine(sums, scales)


def embed(model: PreTrainedModel, batch: Batch, pooling: str | SentenceHead) -> Tensor:
    """Return one vector per text, (B, E): pooled over its tokens, or what a head of sentence-transformers makes."""
    encoder = base(model)
    states = encoder(**model_inputs(encoder, batch)).last_hidden_state
    if isinstance(pooling, str):
        return pool(states, batch["attention_mask"], pooling)
    vectors: Tensor = pooling.to(states.device)(states.float(), batch["attention_mask"])
    return vectors
