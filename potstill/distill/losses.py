"""What a student is told: pure functions of tensors, each with its source.

Shapes: `B` texts, `T` tokens, `C` classes, `H` hidden width. All losses are means, so that none of them grows with
batch, length or vocabulary, and padding counts in none of them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) of the answers softened by `temperature`, averaged over rows.

    The factor T² keeps the gradient's size when the temperature changes (Hinton et al., arXiv 1503.02531, section 2.1).

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: above 0; 1 compares the answers as they are.
    """
    divergence = F.kl_div(
        F.log_softmax(student_logits.float() / temperature, dim=-1),
        F.log_softmax(teacher_logits.float() / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def hidden_cosine(student_hidden: Tensor, teacher_hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Return 1 − cosine between the two hidden states of each token, averaged over the tokens that are not padding.

    The alignment term of DistilBERT (arXiv 1910.01108, section 3).

    Args:
        student_hidden: (B, T, H).
        teacher_hidden: (B, T, H).
        attention_mask: (B, T), 1 for a token, 0 for padding.
    """
    cosine = F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)
    weight = attention_mask.to(cosine.dtype)
    return ((1 - cosine) * weight).sum() / weight.sum()


def cross_entropy(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of logits (B, C) with label ids (B,), averaged over rows."""
    return F.cross_entropy(student_logits.float(), labels)


def total(parts: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Return the weighted sum of the parts; both dictionaries have the same keys."""
    return torch.stack([weights[name] * part for name, part in parts.items()]).sum()


def kl_divergence_sum(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) of the softened answers (..., C), summed over everything but the classes."""
    divergence = F.kl_div(
        F.log_softmax(student_logits.float() / temperature, dim=-1),
        F.log_softmax(teacher_logits.float() / temperature, dim=-1),
        reduction="sum",
        log_target=True,
    )
    return divergence * temperature**2


def hidden_cosine_sum(student_hidden: Tensor, teacher_hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Return 1 − cosine between hidden states (B, T, H), summed over the tokens that are not padding."""
    cosine = F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)
    return ((1 - cosine) * attention_mask).sum()
