"""DistilBERT: the triple loss of softened answers, masked words and the direction of the last hidden state.

Sanh et al., arXiv 1910.01108, section 3: L = 5 L_ce + 2 L_mlm + 1 L_cos, with the weights of the released checkpoints.
L_ce is T² · KL(teacher ‖ student) of the answers at temperature T (Hinton et al., arXiv 1503.02531, section 2.1).

The vocabulary is what makes it costly: logits of every token for both models, twice over. Here logits exist only at the
positions that count, a chunk at a time, and each chunk is turned into its gradient in place (`vocabulary_loss`).

Shapes: `B` texts, `T` tokens, `N` positions, `V` vocabulary entries, `E` width of what the decoder reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedModel

from potstill.distill.hooks import masked_lm_head, model_inputs
from potstill.distill.masking import IGNORED
from potstill.distill.methods.objective import Batch, Objective, hidden_cosine_sum
from potstill.errors import CheckpointError

# One buffer of logits. CPU: two of them stay in a level 3 cache of 48 MB, and the product with the weights, which is
# read once per chunk, is still at its full speed: 1.9 to 2.6 s, where 4 MB took 3.5 to 5.8 and 32 MB 2.2 to 3.2
# (docs/log.md). GPU: large enough to fill the device.
_CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
# What is worked on at once between two products on a CPU: three such blocks stay near a level 2 cache.
_BLOCK_BYTES = 512 * 2**10


class Head(NamedTuple):
    """Hidden states and the decoder that makes vocabulary logits of them: `hidden @ weight.T + bias`, (N, V)."""

    hidden: Tensor
    """(N, E)."""
    weight: Tensor
    """(V, E)."""
    bias: Tensor
    """(V,)."""


class TripleLoss(Objective):
    """Teach softened answers (kl), masked words (mlm) and the direction of the last hidden state (cos).

    DistilBERT, arXiv 1910.01108, section 3; the weights are those of the released checkpoints. A batch says in
    `positions` where the answers are compared; the collator makes them, since finding them on a GPU would wait for it.
    """

    def __init__(
        self, *, alpha_kl: float = 5.0, alpha_mlm: float = 2.0, alpha_cos: float = 1.0, temperature: float = 2.0
    ) -> None:
        super().__init__({"kl": alpha_kl, "mlm": alpha_mlm, "cos": alpha_cos})
        self._temperature = temperature

    def count(self, batch: Batch) -> dict[str, int]:
        """Return the positions compared, the positions masked, and the real tokens."""
        masked = int((batch["masked_labels"] != IGNORED).sum())
        return {"kl": len(batch["positions"]), "mlm": masked, "cos": int((batch["attention_mask"] != 0).sum())}

    def forward(
        self, student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, scales: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss and the sum of each part; see `Objective`.

        Raises:
            CheckpointError: if the vocabularies, or for cos the widths, differ.
        """
        # A part without weight costs nothing: without kl and cos the teacher does not run at all.
        wanted = {part for part in self.part_weights if scales.get(part, 0) > 0}
        ours = _last_hidden(student, batch)
        theirs = None
        if wanted & {"kl", "cos"}:
            with torch.no_grad():
                theirs = _last_hidden(teacher, batch)
        loss, sums = ours.new_zeros((), dtype=torch.float32), {}
        if wanted & {"kl", "mlm"}:
            positions = batch["positions"]
            our_head, their_head = _head_at(student, ours, positions), None
            if "kl" in wanted and theirs is not None:
                with torch.no_grad():
                    their_head = _head_at(teacher, theirs, positions)
                _require_equal("vocabulary entries", len(our_head.weight), len(their_head.weight), "use")
            loss, kl_sum, mlm_sum = vocabulary_loss(
                our_head,
                their_head,
                # Masked positions come first in `positions`, so later chunks have no labels and skip the cross-entropy.
                batch["masked_labels"].flatten()[positions],
                temperature=self._temperature,
                kl_scale=scales.get("kl", 0.0),
                mlm_scale=scales.get("mlm", 0.0),
            )
            sums = {part: value for part, value in (("kl", kl_sum), ("mlm", mlm_sum)) if part in wanted}
        if "cos" in wanted and theirs is not None:
            _require_equal("hidden units", ours.shape[-1], theirs.shape[-1], "set its weight to 0 or use")
            cosine = hidden_cosine_sum(ours, theirs, (batch["attention_mask"] != 0).to(torch.float32))
            loss, sums["cos"] = loss + scales["cos"] * cosine, cosine.detach()
        return loss, sums


def _last_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    encoder = model.base_model
    return encoder(**model_inputs(encoder, batch)).last_hidden_state


def _head_at(model: PreTrainedModel, hidden: Tensor, positions: Tensor) -> Head:
    head = masked_lm_head(model)
    return Head(head.transform(hidden.flatten(0, 1)[positions]), head.weight, head.bias)


def _require_equal(what: str, ours: int, theirs: int, way_out: str) -> None:
    if ours != theirs:
        raise CheckpointError(
            f"the student has {ours} {what} and the teacher {theirs}; {way_out} a student that fits its teacher"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """What the student is compared with, and how much each comparison weighs."""

    teacher: Head | None
    labels: Tensor
    temperature: float
    kl_scale: float
    mlm_scale: float
    chunk: int
    product_dtype: torch.dtype
    with_gradients: bool

    @property
    def factor(self) -> float:
        """The factor left out of the gradients in the logits, and multiplied in with the last products."""
        return self.kl_scale * self.temperature if self.teacher else self.mlm_scale


def vocabulary_loss(
    student: Head,
    teacher: Head | None,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    kl_scale: float = 1.0,
    mlm_scale: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `kl_scale · KL + mlm_scale · MLM` over N positions, and the two sums themselves, detached.

    KL is T² · KL(teacher ‖ student) of the answers softened by T (Hinton et al., arXiv 1503.02531, section 2.1), MLM
    the cross-entropy of the unsoftened answers with the labels (both as in DistilBERT, arXiv 1910.01108, section 3).
    Gradients reach the student's three tensors only. They are computed on the way forward, from the logits of one
    chunk at a time, so that never more than chunk x V numbers exist per model; a second backward through the same
    graph computes them again.

    Args:
        student: its hidden states, decoder weights and bias.
        teacher: the same positions; another width is fine, the vocabulary is the same. None: labels only.
        labels: (N,), `IGNORED` where there is nothing to predict. Fastest if the others come first.
        temperature: T, above 0.
        kl_scale: weight of the KL sum.
        mlm_scale: weight of the MLM sum.
        chunk: positions at a time; by default what fits the caches.
    """
    device = student.hidden.device.type
    terms = _Terms(
        teacher=teacher if kl_scale > 0 else None,
        labels=labels,
        temperature=temperature if kl_scale > 0 and teacher else 1.0,
        kl_scale=kl_scale,
        mlm_scale=mlm_scale,
        chunk=chunk or _rows_in(_CHUNK_BYTES.get(device, _CHUNK_BYTES["cuda"]), student.weight.shape[0]),
        product_dtype=(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else student.hidden.dtype),
        # Asked here, because it is always off inside an autograd Function's forward.
        with_gradients=torch.is_grad_enabled(),
    )
    return _VocabularyLoss.apply(*student, terms)


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor, terms: _Terms
    ) -> tuple[Tensor, Tensor, Tensor]:
        student = Head(hidden, weight, bias)
        wanted = ctx.needs_input_grad[:3] if terms.with_gradients else (False,) * 3
        kl_sum, mlm_sum, ctx.gradients = _compute(student, terms, wanted)
        ctx.terms = terms
        ctx.save_for_backward(*student)
        # The sums are for the log: `backward` has no gradient for them.
        ctx.mark_non_differentiable(kl_sum, mlm_sum)
        return terms.kl_scale * kl_sum + terms.mlm_scale * mlm_sum, kl_sum, mlm_sum

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # Taken, not kept: they are scaled in place below, and a second backward must start from new ones.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            terms = replace(ctx.terms, with_gradients=True)
            gradients = _compute(Head(*ctx.saved_tensors), terms, ctx.needs_input_grad[:3])[2]
        # In place: the gradient of the decoder is the largest tensor of all, and nobody else holds it.
        return *(None if one is None else one.mul_(grad_outputs[0]) for one in gradients), None


def _compute(
    student: Head, terms: _Terms, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """Return the KL sum, the MLM sum and the gradients that are wanted."""
    # Precision is chosen by hand here: products in `product_dtype`, softmax and sums in float32.
    with torch.autocast(student.hidden.device.type, enabled=False):
        # float64 stays float64, so that gradients can be checked by finite differences.
        dtype = torch.float64 if student.hidden.dtype == torch.float64 else torch.float32
        gradients = tuple(torch.zeros_like(one) if want else None for one, want in zip(student, wanted, strict=True))
        low = Head(student.hidden.to(terms.product_dtype), student.weight.to(terms.product_dtype), student.bias)
        rows, vocabulary = min(terms.chunk, len(student.hidden)), len(student.weight)
        # Two buffers for all chunks: memory does not grow with the positions.
        buffers = student.hidden.new_empty((2 if terms.teacher else 1, rows, vocabulary), dtype=dtype)
        sums = student.hidden.new_zeros(2, dtype=dtype)
        for start in range(0, len(student.hidden), max(rows, 1)):
            part = slice(start, start + rows)
            logits = _logits(low, part, buffers[0], terms.temperature)
            targets = _logits(terms.teacher, part, buffers[1], terms.temperature) if terms.teacher else None
            sums += _logits_to_gradient(logits, targets, terms.labels[part], terms)
            if any(wanted):
                _add_gradients(gradients, logits, low, part, terms.factor)
    # Hinton's T² keeps the gradient's size; the chunks' sums are without it.
    return sums[0] * terms.temperature**2, sums[1], gradients


def _logits(head: Head, part: slice, buffer: Tensor, temperature: float) -> Tensor:
    """Fill the buffer with the logits of some positions, divided by the temperature."""
    hidden = head.hidden[part].to(head.weight.dtype)
    out = buffer[: len(hidden)]
    if out.dtype == head.weight.dtype:
        # The temperature on the narrow side: no pass over the logits.
        torch.mm(hidden / temperature, head.weight.t(), out=out)
    else:
        out.copy_(hidden @ head.weight.t()).div_(temperature)
    return out.add_(head.bias / temperature)


def _logits_to_gradient(logits: Tensor, targets: Tensor | None, labels: Tensor, terms: _Terms) -> Tensor:
    """Replace a chunk of student logits by their gradient over `terms.factor`; return the sums of KL / T² and MLM."""
    rows = _rows_in(_BLOCK_BYTES, logits.shape[1]) if logits.is_cpu else len(logits)
    scratch = torch.empty_like(logits[:rows]) if targets is not None else logits
    sums = logits.new_zeros(2)
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        block, target = logits[part], None if targets is None else targets[part]
        sums += _block_to_gradient(block, target, scratch[: len(block)], labels[part], terms)
    return sums


def _block_to_gradient(
    student: Tensor, teacher: Tensor | None, scratch: Tensor, labels: Tensor, terms: _Terms
) -> Tensor:
    """Do what `_logits_to_gradient` does for a few rows; the teacher's logits and `scratch` are overwritten too."""
    known = (labels != IGNORED).unsqueeze(1)
    label = labels.unsqueeze(1).where(known, 0)
    # Softmax by hand and in place: each step reuses the block that holds its input.
    student.sub_(student.amax(-1, keepdim=True))
    answer = student.gather(1, label)
    kl, teacher_total = student.new_zeros(()), student.new_ones(())
    if teacher is not None:
        teacher.sub_(teacher.amax(-1, keepdim=True))
        torch.exp(teacher, out=scratch)
        teacher_total = scratch.sum(-1, keepdim=True)
        scratch.div_(teacher_total)
        # KL = Σ p (t - s) + log(Z_s / Z_t), with t and s the shifted logits: `teacher` holds t - s from here on.
        teacher.sub_(student)
        kl = torch.dot(scratch.view(-1), teacher.view(-1))
    student.exp_()
    total = student.sum(-1, keepdim=True)
    student.div_(total)
    if teacher is not None:  # one logarithm per row: the difference of two sums of them would lose digits
        kl = kl + (total / teacher_total).log_().sum()
    mlm = student.new_zeros(())
    # On a GPU, asking whether a label is known would wait for the device; there the work is done in vain.
    if terms.mlm_scale > 0 and (not labels.is_cpu or bool(known.any())):
        weight = known.to(student.dtype) * (terms.mlm_scale / terms.factor)
        # softmax(z) is softmax(z / T) to the power of T, normalised again: no second round of exponentials.
        power = terms.temperature
        powered = student if power == 1 else torch.pow(student, power, out=teacher)
        powered_total = powered.sum(-1, keepdim=True)
        mlm = ((powered_total.log() - power * (answer - total.log())) * known).sum()
        if power == 1:
            student.mul_(weight + (teacher is not None))
        else:
            student.addcmul_(powered, weight / powered_total)
        # The gradient of the cross-entropy is softmax - onehot; the label's column is known, so no one-hot is made.
        student.scatter_add_(1, label, -weight)
    elif teacher is None:
        student.zero_()
    if teacher is not None:
        student.sub_(scratch)
    return torch.stack([kl, mlm])


def _add_gradients(
    gradients: tuple[Tensor | None, ...], logits: Tensor, student: Head, part: slice, factor: float
) -> None:
    """Carry the gradient in the logits of some positions on to hidden states, weight and bias."""
    to_hidden, to_weight, to_bias = gradients
    low = logits.to(student.weight.dtype)
    if to_hidden is not None:
        to_hidden[part] = (low @ student.weight).mul_(factor)
    if to_weight is not None and to_weight.dtype == low.dtype:
        # Product and sum in one call; it needs one dtype for all, which bfloat16 products have not.
        to_weight.addmm_(low.t(), student.hidden[part], alpha=factor)
    elif to_weight is not None:
        to_weight.add_(low.t() @ student.hidden[part], alpha=factor)
    if to_bias is not None:
        to_bias.add_(logits.sum(0), alpha=factor)


def _rows_in(size: int, columns: int) -> int:
    """Return how many rows of float32 fill `size` bytes, at least one."""
    return max(1, size // (4 * columns))
