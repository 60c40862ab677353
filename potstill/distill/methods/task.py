"""Task distillation: labels, the teacher's softened answers, and its last hidden states.

The softened answers are those of Hinton et al., arXiv 1503.02531, section 2.1; the cosine of the hidden states is
DistilBERT's (arXiv 1910.01108, section 3).

Shapes: `B` texts, `T` tokens, `C` classes, `H` hidden width. Every loss is a sum over its units (texts, labelled
tokens, tokens), so that the trainer can average over a whole step, and padding counts in none of them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from potstill.distill.batches import TEACHER_ANSWERS
from potstill.distill.hooks import capture_hidden_states
from potstill.distill.masking import IGNORED
from potstill.distill.methods.objective import Batch, Objective, hidden_cosine_sum, kl_divergence_sum, weighted_sum


class TaskDistillation(Objective):
    """Parts `ce` (labels), `kl` (the teacher's answers) and `cos` (last hidden states), for every labelled task.

    Regression has no distribution to compare: there `ce` and `kl` are squared errors against label and teacher, and the
    temperature has no effect.

    `ce` is a mean over what has a label, `kl` over what has an answer: a batch may hold texts without the one or the
    other. Answers that are in the batch (`teacher_answers`) take the place of the teacher, which does not run then.

    Args:
        problem: what the models answer, a key of `potstill.tasks.METRICS`.
        temperature: softens the answers of both.
        alpha_kl: weight of the teacher's answers.
        alpha_ce: weight of the labels.
        alpha_cos: weight of the hidden states, which need equal widths.
    """

    def __init__(self, problem: str, *, temperature: float, alpha_kl: float, alpha_ce: float, alpha_cos: float) -> None:
        super().__init__({"ce": alpha_ce, "kl": alpha_kl, "cos": alpha_cos})
        self._problem = problem
        self._temperature = temperature

    def count(self, batch: Batch) -> dict[str, int]:
        """Count texts, or words, with a label and with an answer, and tokens for the cosine."""
        kl = int(has_answer(batch).sum()) if TEACHER_ANSWERS in batch else count_answers(batch)
        return {"ce": count_labels(batch), "kl": kl, "cos": int(batch["attention_mask"].sum())}

    def forward(
        self, student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, scales: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts; the teacher runs only if a part needs it."""
        # Scales hold only parts with a weight, so a missing key means that the part costs nothing.
        want_states = "cos" in scales
        our_last = student.config.num_hidden_layers
        ours = capture_hidden_states(student, batch, hidden=[our_last] if want_states else [])
        sums = {}
        if "ce" in scales:
            sums["ce"] = label_loss_sum(ours.output, batch, self._problem)
        if TEACHER_ANSWERS in batch:
            if "kl" in scales:
                stored = ModelOutput(logits=batch[TEACHER_ANSWERS])
                sums["kl"] = answer_loss_sum(ours.output, stored, batch, self._problem, self._temperature)
        elif "kl" in scales or "cos" in scales:
            their_last = teacher.config.num_hidden_layers
            with torch.no_grad():
                theirs = capture_hidden_states(teacher, batch, hidden=[their_last] if want_states else [])
            if "kl" in scales:
                sums["kl"] = answer_loss_sum(ours.output, theirs.output, batch, self._problem, self._temperature)
            if want_states:
                sums["cos"] = hidden_cosine_sum(
                    ours.hidden[our_last], theirs.hidden[their_last], batch["attention_mask"]
                )
        return weighted_sum(sums, scales)


def count_labels(batch: Batch) -> int:
    """Count the texts, or words, that have a label."""
    labels = batch.get("labels")
    if labels is None:
        return len(batch["input_ids"])
    if labels.dtype == torch.int64:  # -1 is none, and -100 a token that is not the first of a word
        return int((labels >= 0).sum())
    return int((~labels.isnan()).sum()) if labels.dim() == 1 else int((~labels.isnan().any(-1)).sum())


def has_answer(batch: Batch) -> Tensor:
    """Return which texts (B,), or first tokens of words (B, T), have an answer of a stored teacher, as bool."""
    known = ~batch[TEACHER_ANSWERS].isnan().any(-1)
    return known if known.dim() == 1 else known & (batch["labels"] != IGNORED)


def count_answers(batch: Batch) -> int:
    """Count what a teacher is asked about: texts, or words."""
    labels = batch.get("labels")
    # By dtype: several labels per text are (B, C) as well, but floats.
    if labels is not None and labels.dtype == torch.int64 and labels.dim() == 2:
        return int((labels != IGNORED).sum())
    return len(batch["input_ids"])


def label_loss_sum(output: ModelOutput, batch: Batch, problem: str) -> Tensor:
    """Return the loss of the labels, summed over texts or words that have one.

    Cross-entropy with label ids (B,) or (B, T); for several labels per text the binary cross-entropy with (B, C),
    averaged over classes; for regression the squared error; for answers in a text the mean over start and end. Ids
    below 0, and NaN, are no labels.

    Args:
        output: of the student: `logits` (B, C) or (B, T, C), or `start_logits` and `end_logits` (B, T).
        batch: holds `labels`, or `start_positions` and `end_positions` (B,).
        problem: see `TaskDistillation`.
    """
    if problem == "question-answering":
        return sum(
            # A question is one unit, as in BERT's own loss: the mean of start and end.
            F.cross_entropy(logits, batch[position], reduction="sum") / 2
            for logits, position in zip(_span_logits(output, batch), ("start_positions", "end_positions"), strict=True)
        )
    logits, labels = output.logits.float(), batch["labels"]
    if problem == "regression":
        guesses, wanted = logits.squeeze(-1), labels.float()
        # Without a label, the guess itself is what was wanted: no error, and no gradient.
        return F.mse_loss(guesses, torch.where(wanted.isnan(), guesses.detach(), wanted), reduction="sum")
    if problem == "multi_label_classification":
        wanted = labels.float()
        each = F.binary_cross_entropy_with_logits(logits, wanted.nan_to_num(), reduction="none").mean(-1)
        return each.where(~wanted.isnan().any(-1), 0).sum()
    wanted = labels.flatten().where(labels.flatten() >= 0, IGNORED)
    return F.cross_entropy(logits.flatten(0, -2), wanted, ignore_index=IGNORED, reduction="sum")


def answer_loss_sum(ours: ModelOutput, theirs: ModelOutput, batch: Batch, problem: str, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) of the softened answers, summed over texts or labelled tokens.

    For several labels per text each class is a yes or no, and they are averaged; for answers in a text, start and end
    are; for regression it is the squared distance. Stored answers of NaN are left out. Arguments as in
    `label_loss_sum`.
    """
    if problem == "question-answering":
        pairs = zip(_span_logits(ours, batch), _span_logits(theirs, batch), strict=True)
        return sum(kl_divergence_sum(our, their, temperature) / 2 for our, their in pairs)
    our, their = ours.logits.float(), theirs.logits.float()
    if TEACHER_ANSWERS in batch:
        known = has_answer(batch)
        our, their = our[known], their[known]
    elif problem == "token-classification":
        # The words' first tokens alone, as they alone are scored; padding goes with the rest.
        counted = batch["labels"] != IGNORED
        our, their = our[counted], their[counted]
    if problem == "regression":
        return F.mse_loss(our.squeeze(-1), their.squeeze(-1), reduction="sum")
    if problem == "multi_label_classification":
        # sigmoid(z) is softmax([z, 0]), so one KL serves both, stable for large z.
        our, their = (torch.stack([logits, torch.zeros_like(logits)], dim=-1) for logits in (our, their))
        return kl_divergence_sum(our, their, temperature) / our.shape[-2]
    return kl_divergence_sum(our, their, temperature)


def _span_logits(output: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits of start and end, each (B, T) in float32, very low at padding."""
    padding = batch["attention_mask"] == 0
    # Not -inf: in the KL, 0 · (-inf + inf) would be NaN. Nor the lowest number, which a temperature below 1 divides.
    lowest = -1e30
    start, end = (logits.float().masked_fill(padding, lowest) for logits in (output.start_logits, output.end_logits))
    return start, end
