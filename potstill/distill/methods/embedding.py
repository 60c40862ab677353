"""Sentence embeddings: the student's vector of a text learns the teacher's, which is computed once and kept.

As in sentence-transformers' recipes of layer reduction and embedding distillation. Shapes: `B` texts, `T` tokens, `H`
width of the student, `E` width of the teacher's vectors.
"""

import copy
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from potstill.checkpoint.model import (
    DenseLayer,
    SentenceEncoder,
    SentenceHead,
    UnitLength,
    find_sentence_transformers,
    load_head,
)
from potstill.checkpoint.sentence_transformers import Dense, check_pooling
from potstill.distill.batches import TEACHER_VECTORS
from potstill.distill.hooks import embed
from potstill.distill.methods.objective import Batch, Objective, weighted_sum


class EmbeddingDistillation(Objective):
    """Parts `cos` (one minus cosine) and `mse` (squared distance) of the vectors that the student's head makes.

    The head is the student's: what it has learned is scored, published and exported with the student.
    """

    # A pooler that the embedding does not go through learns nothing.
    has_unused_parameters = True

    def __init__(self, head: SentenceHead, *, alpha_cos: float, alpha_mse: float) -> None:
        """Store the head that makes vectors as wide as the teacher's of the student's token vectors."""
        super().__init__({"cos": alpha_cos, "mse": alpha_mse})
        self.head = head

    def as_used(self, student: PreTrainedModel) -> SentenceEncoder:
        """Return the student with its head."""
        return SentenceEncoder(student, self.head.to(student.device))

    def count(self, batch: Batch) -> dict[str, int]:
        """Count texts."""
        return dict.fromkeys(self.part_weights, len(batch["input_ids"]))

    def forward(
        self, student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, scales: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts; the teacher does not run, its vectors are in the batch."""
        # Computed once for all epochs (`teacher_embeddings`), so a step costs the student alone.
        theirs = batch[TEACHER_VECTORS].float()
        ours = embed(student, batch, self.head)
        sums = {}
        if "cos" in scales:
            sums["cos"] = (1 - F.cosine_similarity(ours, theirs, dim=-1)).sum()
        if "mse" in scales:
            sums["mse"] = F.mse_loss(ours, theirs, reduction="none").mean(-1).sum()
        return weighted_sum(sums, scales)


def student_head(
    teacher: SentenceHead,
    *,
    student: str | None,
    pooling: str | None,
    student_width: int,
    teacher_width: int,
) -> SentenceHead:
    """Return the head that makes a student's vectors, as wide as the teacher's and of length 1 where those are.

    It is the head that the student's own folder describes; else a copy of the teacher's head where that fits; else the
    pooling alone. Where the widths differ, a linear layer that is learned with the student follows.

    Args:
        teacher: the teacher's.
        student: the folder or hub id of a student that is not cut from the teacher.
        pooling: what is asked for; None pools as the teacher does.
        student_width: of the student's token vectors.
        teacher_width: of the teacher's.

    Raises:
        UsageError: if another pooling is asked for than the student's folder describes.
    """
    own = find_sentence_transformers(student) if student else None
    head = load_head(own) if own else None
    if own is not None and head is not None:
        check_pooling(own, pooling=pooling, normalize=None, option="distill.pooling")
    elif pooling in (None, "+".join(teacher.pooling)) and student_width == teacher_width:
        return copy.deepcopy(teacher)
    else:
        head = SentenceHead([pooling] if pooling else teacher.pooling)
    layers, width, wanted = list(head.layers), head.width(student_width), teacher.width(teacher_width)
    if width != wanted:
        # sentence-transformers loads it as its `Dense`.
        layers.append(DenseLayer(Dense("", width, wanted, bias=False, activation="Identity", residual=False)))
    if _gives_unit_length(teacher) and not _gives_unit_length(SentenceHead([], layers)):
        # The targets have length 1, and a pooling or a head of the student's own does not give that.
        layers.append(UnitLength())
    return SentenceHead(head.pooling, layers)


def _gives_unit_length(head: SentenceHead) -> bool:
    return len(head.layers) > 0 and isinstance(head.layers[-1], UnitLength)
