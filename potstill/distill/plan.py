"""What a distillation will cost, told before it starts: parameters, tokens, steps, memory, and soon the time."""

import time
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel

from potstill.checkpoint import count_parameters
from potstill.config import DistillConfig
from potstill.progress import Announce

# Weights, gradients and AdamW's two moments, float32.
_BYTES_PER_LEARNED = 16
_BYTES_PER_FROZEN = 4
# What a layer keeps for the backward pass, in units of its width and its feed-forward width, per token: inputs of the
# norms, projections, attention output and dropout masks, and input and output of the activation.
_KEPT_WIDTHS, _KEPT_FEED_FORWARD = 12, 3
# Steps before the pace is told: the first ones allocate memory and fill caches.
_WARM_STEPS, _MEASURED_STEPS = 3, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The size of a training."""

    teacher_parameters: int | None
    student_parameters: int
    rows: int
    tokens: int
    """Of one pass over the data, without padding."""
    steps: int
    steps_per_epoch: int
    tokens_per_step: int
    memory_bytes: int
    """Estimate: weights, gradients, optimiser, and what a micro-batch keeps for the backward pass."""

    def figures(self) -> dict[str, object]:
        """Return the plan as plain values."""
        return asdict(self)


def make_plan(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    *,
    config: DistillConfig,
    lengths: list[int],
    steps: tuple[int, int],
) -> Plan:
    """Return what training `student` on rows of these lengths, in tokens, will take.

    Args:
        student: learns.
        teacher: runs beside it; None without one.
        config: gives the batch size.
        lengths: of the training rows.
        steps: of the whole training, and of one epoch.
    """
    tokens = sum(lengths)
    micro_batch = tokens // max(len(lengths), 1) * config.batch_size
    settings = student.config
    width = settings.hidden_size
    feed_forward = getattr(settings, "intermediate_size", None) or getattr(settings, "hidden_dim", 4 * width)
    per_token = settings.num_hidden_layers * (_KEPT_WIDTHS * width + _KEPT_FEED_FORWARD * feed_forward) * 4
    learned, frozen = count_parameters(student), count_parameters(teacher) if teacher else None
    return Plan(
        teacher_parameters=frozen,
        student_parameters=learned,
        rows=len(lengths),
        tokens=tokens,
        steps=steps[0],
        steps_per_epoch=steps[1],
        tokens_per_step=micro_batch * config.gradient_accumulation,
        memory_bytes=learned * _BYTES_PER_LEARNED + (frozen or 0) * _BYTES_PER_FROZEN + micro_batch * per_token,
    )


class Pace:
    """Tells once, after the first measured steps, how long the training will take."""

    def __init__(self, announce: Announce) -> None:
        self._announce = announce
        self._first: tuple[int, float] | None = None
        self._seen = 0
        self._told = False

    def step(self, done: int, total: int) -> None:
        """Note that `done` of `total` steps are behind."""
        if self._told:
            return
        self._seen += 1
        if self._seen == _WARM_STEPS:
            self._first = (done, _now())
        elif self._first is not None and done - self._first[0] >= min(_MEASURED_STEPS, max(1, total // 10)):
            self._told = True
            seconds = (_now() - self._first[1]) / (done - self._first[0])
            self._announce(
                "pace",
                {"seconds_per_step": seconds, "seconds_left": seconds * (total - done), "steps_left": total - done},
            )


def _now() -> float:
    """Return the time after everything that was started has ended; GPUs run ahead of Python otherwise."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
