"""The two comparisons that several methods share: pure functions of tensors, each with its source.

Shapes: `B` texts, `T` tokens, `C` classes, `H` hidden width. Both are sums over their units, so that the trainer can
average over a whole step; divided by the count they grow neither with batch, length nor vocabulary.
"""

from torch import Tensor
from torch.nn import functional as F


def kl_divergence_sum(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) of the answers softened by `temperature`, summed over all but the classes.

    The factor T² keeps the gradient's size when the temperature changes (Hinton et al., arXiv 1503.02531, section 2.1).

    Args:
        student_logits: (..., C).
        teacher_logits: (..., C).
        temperature: above 0; 1 compares the answers as they are.
    """
    divergence = F.kl_div(
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
