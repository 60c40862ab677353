"""MiniLMv2: how the tokens of a text relate to each other inside one layer of the teacher, shown to the student.

Relations are T x T whatever the widths and head counts of the two models, so nothing has to be projected
(Wang et al., arXiv 2012.15828).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedModel

from potstill.distill.hooks import capture_hidden_states, find_layers
from potstill.distill.methods.objective import Batch, Objective
from potstill.errors import CheckpointError

Index: TypeAlias = tuple[slice, slice | Tensor]
"""An index of rows and of tokens within them, for tensors of (B, T, ...)."""
PARTS = ("qq", "kk", "vv")
RELATION_HEADS = 48
"""For teachers of base size; the paper takes 64 for large ones (section 4.1)."""
# One block of relations. CPU: about a level 2 cache. GPU: enough to fill it.
_CPU_BLOCK_BYTES = 2**20
_GPU_BLOCK_BYTES = 256 * 2**20
# 1 to 8 at once took 124 to 145 ms (384 units) and 164 to 185 (768), within the noise (docs/log.md).
_ROWS_AT_ONCE = 2
# e^60 times the longest text times the largest value is far below float32's 3e38, and e^-60 far above its 1e-38.
_SAFE_SCORE = 60.0


class MiniLMv2(Objective):
    """Teach query-query, key-key and value-value relations of one teacher layer to the student's last layer.

    Both forwards end at the projections: what follows them in the student's last layer gets no gradient.

    Args:
        teacher_layer: the layer to learn from, counted from 0; negative ones from the end. The last for base teachers,
            an upper middle one for large teachers (21 of 24 in the paper).
        student_width: of the student's queries.
        teacher_width: of the teacher's queries.
        heads: relation heads, into which both widths are split whatever their attention heads are.
        relation_weights: of the query, key and value relations.

    Raises:
        CheckpointError: if a width cannot be split into that many heads.
    """

    has_unused_parameters = True

    def __init__(
        self,
        *,
        teacher_layer: int,
        student_width: int,
        teacher_width: int,
        heads: int = RELATION_HEADS,
        relation_weights: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__(dict(zip(PARTS, relation_weights, strict=True)))
        for who, width in (("student", student_width), ("teacher", teacher_width)):
            if width % heads:
                both = math.gcd(student_width, teacher_width)
                fitting = max(count for count in range(1, heads + 1) if both % count == 0)
                raise CheckpointError(
                    f"the {who}'s width {width} cannot be split into {heads} relation heads; "
                    f"{fitting} is the most that both models take up to there"
                )
        self._teacher_layer = teacher_layer
        self._heads = heads

    def count(self, batch: Batch) -> dict[str, int]:
        """Return the number of real tokens: each is one query."""
        return dict.fromkeys(PARTS, int((_texts(batch) != 0).sum()))

    def forward(
        self, student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, scales: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted relations' loss and the sum of each; see `Objective`."""
        ours = _projections(student, batch, -1)
        with torch.no_grad():
            theirs = _projections(teacher, batch, self._teacher_layer)
        sums = {
            part: relation_loss_sum(ours[number], theirs[number], self._heads, _texts(batch))
            for number, part in enumerate(PARTS)
            if scales.get(part, 0) > 0
        }
        loss = torch.stack([scales[part] * value for part, value in sums.items()]).sum()
        return loss, {part: value.detach() for part, value in sums.items()}


def relation_loss_sum(student: Tensor, teacher: Tensor, heads: int, texts: Tensor) -> Tensor:
    """Return the KL of the teacher's relations from the student's, summed over real tokens, averaged over heads.

    With the width split into `heads`, each of d values, the relation of a token is softmax(x Xᵀ / √d) over the tokens
    of its text (arXiv 2012.15828, equations 4 to 7). Gradients reach the student only. They are computed on the way
    forward, a few heads at a time, so that memory does not grow with batch or heads.

    Args:
        student: (B, T, H) queries, keys or values, heads side by side.
        teacher: (B, T, H'), of another width if need be.
        heads: a divisor of both widths.
        texts: (B, T) integers, 0 for padding. Tokens of a row with the same number see each other: an attention mask
            as it is, or the numbers of several texts packed in one row.
    """
    return _RelationLoss.apply(student, teacher.detach(), heads, texts)


class _RelationLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, student: Tensor, teacher: Tensor, heads: int, texts: Tensor) -> Tensor:
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        total = student.new_zeros((), dtype=dtype)
        # The gradient is made on the way forward, while a block of relations is in the cache; nothing T x T is kept.
        gradient = torch.zeros_like(student, dtype=dtype)
        with torch.autocast(student.device.type, enabled=False):
            for place, apart in _groups(texts, heads):
                ours, theirs = (_columns(states[place].to(dtype), heads) for states in (student, teacher))
                losses, slopes = _group_loss(ours, theirs, apart)
                if apart is not None:
                    # Padding was compared with padding: finite, and taken out here.
                    real = (texts[place] != 0).repeat_interleave(heads, 0)
                    losses, slopes = losses * real, slopes * real.unsqueeze(1)
                total += losses.sum()
                gradient[place] = slopes.unflatten(0, (-1, heads)).flatten(1, 2).mT
            # The chain rule for the scaling in `_columns`, and the mean over heads.
            gradient.mul_((student.shape[-1] // heads) ** -0.25 / heads)
        ctx.gradient, ctx.dtype = gradient, student.dtype
        return total / heads

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return (ctx.gradient * grad_outputs[0]).to(ctx.dtype), None, None, None


def _groups(texts: Tensor, heads: int) -> Iterator[tuple[Index, Tensor | None]]:
    """Yield the index of tokens that are worked on together, and which pairs of them, (b, n, n), do not see each other.

    On a CPU one text at a time, cut to its tokens: nothing is spent on padding or on pairs of different texts.
    """
    if not texts.is_cpu:
        yield from _whole_rows(texts, heads)
        return
    start = 0
    for rows in map(len, _alike(texts)):
        numbers, place = texts[start], slice(start, start + rows)
        for number in numbers[numbers != 0].unique():
            tokens = (numbers == number).nonzero().squeeze(1)
            first, last = int(tokens[0]), int(tokens[-1])
            # A slice is a view; an index tensor copies.
            in_one_piece = last - first + 1 == len(tokens)
            yield (place, slice(first, last + 1) if in_one_piece else tokens), None
        start += rows


def _alike(texts: Tensor) -> Iterator[list[Tensor]]:
    """Yield runs of rows whose texts lie in the same places, as in a batch of full blocks: fewer and larger steps."""
    run: list[Tensor] = []
    for row in texts:
        if run and (len(run) == _ROWS_AT_ONCE or not torch.equal(row, run[0])):
            yield run
            run = []
        run.append(row)
    yield run


def _whole_rows(texts: Tensor, heads: int) -> Iterator[tuple[Index, Tensor | None]]:
    """Do as `_groups` without reading lengths, which would stall a GPU; padding is taken out of the loss later."""
    rows = max(1, _GPU_BLOCK_BYTES // (4 * heads * texts.shape[1] ** 2))
    for start in range(0, len(texts), rows):
        numbers = texts[start : start + rows]
        yield (slice(start, start + rows), slice(None)), numbers.unsqueeze(-1) != numbers.unsqueeze(-2)


def _columns(states: Tensor, heads: int) -> Tensor:
    """Return (b, n, H) as contiguous (b * heads, d, n), scaled so that plain products are the scaled ones."""
    width = states.shape[-1] // heads
    # d^-1/4 on both sides of the product is the 1 / √d of equation 4, on the narrow matrices.
    turned = torch.empty_like(states.mT, memory_format=torch.contiguous_format).copy_(states.mT)
    return turned.mul_(width**-0.25).unflatten(1, (heads, width)).flatten(0, 1)


def _group_loss(student: Tensor, teacher: Tensor, apart: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the KL of each token, (c, n), and the gradient of their sum in the student's (c, d, n).

    With P and Q the relations of teacher and student, KL = Σ P (S' - S) + log Z - log Z', where S = Xᵀ X. Its gradient
    in S is Q - P, in X it is X (Q + Qᵀ - P - Pᵀ), and Σⱼ Pᵢⱼ Sᵢⱼ is xᵢ · Σⱼ Pᵢⱼ xⱼ: all of it is products of P and Q
    with narrow matrices, so that neither has to be normalised, subtracted or kept.
    """
    (own,), own_back, own_log = _relate(student, [student], student, apart)
    (agreed, expected), their_back, their_log = _relate(teacher, [student, teacher], student, apart)
    losses = expected.mul_(teacher).sum(1) - (student * agreed).sum(1) + own_log - their_log
    return losses, own.add_(own_back).sub_(agreed).sub_(their_back)


def _relate(
    x: Tensor, values: Sequence[Tensor], back_values: Tensor, apart: Tensor | None
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return each of the values times Rᵀ, back_values R, and log Z: R = softmax(Xᵀ X), Z the sums before division.

    Tokens are the last axis everywhere: it is long, and broadcasting and summing along narrow ones is slow.
    """
    count, _, length = x.shape
    # No score is larger than the largest square of a length. While that is small, exponentials need no shift by the
    # highest of their row, and are as symmetric as the scores.
    safe = apart is None and float(x.square().sum(1).amax()) <= _SAFE_SCORE
    step = count if apart is not None else max(1, _CPU_BLOCK_BYTES // (x.element_size() * length**2))
    buffer = x.new_empty(min(step, count), length, length)
    products, back = [torch.empty_like(value) for value in values], torch.empty_like(back_values)
    total, highest = x.new_empty(count, length), x.new_zeros(count, length)
    for start in range(0, count, step):
        part = slice(start, start + step)
        block = torch.bmm(x[part].mT, x[part], out=buffer[: min(step, count - start)])
        if apart is not None:
            # Never a whole row: every token sees itself, so there is always a finite highest score.
            block.unflatten(0, (len(apart), -1)).masked_fill_(apart.unsqueeze(1), -torch.inf)
        # e^x of a large score overflows; the shift by the row's highest cancels in the division.
        if not safe:
            torch.amax(block, -1, out=highest[part])
            block.sub_(highest[part].unsqueeze(-1))
        torch.sum(block.exp_(), -1, out=total[part])
        share = total[part].unsqueeze(1).reciprocal()
        for value, product in zip(values, products, strict=True):
            # Without the shift exp(Xᵀ X) is symmetric, and a transposed operand can be saved.
            torch.bmm(value[part], block if safe else block.mT, out=product[part])
            product[part].mul_(share)
        torch.bmm(back_values[part] * share, block, out=back[part])
    return products, back, total.log_().add_(highest)


def _projections(model: PreTrainedModel, batch: Batch, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value (B, T, H) of a layer, having computed nothing after them."""
    encoder = model.base_model
    number = layer % len(find_layers(encoder)[1]) if layer < 0 else layer
    return capture_hidden_states(encoder, batch, qkv=[number], stop=True).qkv[number]


def _texts(batch: Batch) -> Tensor:
    return batch["segments"] if "segments" in batch else batch["attention_mask"]
