"""From a recipe's settings to the arguments of transformers' Trainer, and to what the training will take.

`plan_training` estimates parameters, tokens, steps and memory before the start; `PaceReporter` estimates the time after
the first steps.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, TrainingArguments

from potstill.checkpoint import count_parameters
from potstill.config import DistillConfig
from potstill.machine import has_fast_bf16
from potstill.progress import Announce

# The fused AdamW walks memory once: 17 ms a step instead of 128 for 17 M parameters on 2 cores (torch 2.13).
_OPTIMIZERS = {"adamw": "adamw_torch_fused", "adafactor": "adafactor", "sgd": "sgd"}


def resolve_dtype(dtype: str) -> str:
    """Return `bfloat16` or `float32`: auto takes bfloat16 where the GPU, or without one the CPU, computes in it."""
    if dtype != "auto":
        return dtype
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if torch.cuda.is_available() else has_fast_bf16()
    return "bfloat16" if fast else "float32"


def count_steps(config: DistillConfig, num_rows: int, *, world_size: int = 1) -> tuple[int, int]:
    """Return the optimiser steps of the whole training and of one epoch over `num_rows` rows."""
    micro_batches = math.ceil(num_rows / (config.batch_size * world_size))
    per_epoch = math.ceil(micro_batches / config.gradient_accumulation)
    return config.max_steps or math.ceil(per_epoch * config.epochs), per_epoch


def training_arguments(
    config: DistillConfig, *, seed: int, work_dir: Path, num_rows: int, unused: bool = False
) -> TrainingArguments:
    """Return Trainer's arguments for a training on `num_rows` rows."""
    has_gpu = torch.cuda.is_available()
    # torchrun's and accelerate's variable: asked before there are arguments that would know.
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    total, per_epoch = count_steps(config, num_rows, world_size=world_size)
    eval_every = config.eval_every or per_epoch
    if config.warmup_steps is not None:  # never more than a tenth of a short training
        warmup_steps = min(config.warmup_steps, total // 10)
    else:
        warmup_steps = math.ceil(total * config.warmup_ratio)
    arguments = TrainingArguments(
        output_dir=str(work_dir),
        seed=seed,
        learning_rate=config.learning_rate,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        weight_decay=config.weight_decay,
        warmup_steps=warmup_steps,
        max_grad_norm=config.max_grad_norm,
        adam_beta2=config.adam_beta2,
        adam_epsilon=config.adam_epsilon,
        ddp_find_unused_parameters=unused,
        optim=_OPTIMIZERS[config.optimizer],
        bf16=resolve_dtype(config.dtype) == "bfloat16",
        use_cpu=not has_gpu,
        # Trainer would drop every column that `Distiller.forward` does not name, which is all of them.
        remove_unused_columns=False,
        dataloader_pin_memory=has_gpu,
        logging_steps=config.log_every,
        # Trainer would log the average of earlier losses in place of NaN, and nothing would stop a broken run.
        logging_nan_inf_filter=False,
        # By steps even where it is once per epoch: Trainer saves before the evaluation that ends an epoch, and a run
        # resumed from there would leave the evaluation out and draw other random numbers.
        eval_strategy="steps",
        eval_steps=eval_every,
        save_strategy="steps",
        save_steps=config.checkpoint_every or eval_every,
        report_to=list(config.trackers) or "none",
        disable_tqdm=True,
    )
    # Several GPUs without a launcher: Trainer would copy the model to each (DataParallel), and the teacher to none.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


# Of the memory estimate: weights, gradients and AdamW's two moments, float32.
_BYTES_PER_LEARNED = 16
_BYTES_PER_FROZEN = 4
# What a layer keeps for the backward pass, in units of its width and its feed-forward width, per token: inputs of the
# norms, projections, attention output and dropout masks, and input and output of the activation.
_KEPT_WIDTHS, _KEPT_FEED_FORWARD = 12, 3
# Steps before the pace is announced: the first ones allocate memory and fill caches.
_WARM_STEPS, _MEASURED_STEPS = 3, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """The size of a training, as announced before it starts."""

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


def plan_training(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    *,
    config: DistillConfig,
    lengths: list[int],
    world_size: int,
) -> TrainingPlan:
    """Return what training `student` on rows of these lengths, in tokens, will take.

    Args:
        student: learns.
        teacher: runs beside it; None without one.
        config: gives the batch size.
        lengths: of the training rows.
        world_size: how many processes share the rows.
    """
    steps, steps_per_epoch = count_steps(config, len(lengths), world_size=world_size)
    tokens = sum(lengths)
    micro_batch = tokens // max(len(lengths), 1) * config.batch_size
    settings = student.config
    width = settings.hidden_size
    feed_forward = getattr(settings, "intermediate_size", None) or getattr(settings, "hidden_dim", 4 * width)
    per_token = settings.num_hidden_layers * (_KEPT_WIDTHS * width + _KEPT_FEED_FORWARD * feed_forward) * 4
    learned, frozen = count_parameters(student), count_parameters(teacher) if teacher else None
    return TrainingPlan(
        teacher_parameters=frozen,
        student_parameters=learned,
        rows=len(lengths),
        tokens=tokens,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        tokens_per_step=micro_batch * config.gradient_accumulation,
        memory_bytes=learned * _BYTES_PER_LEARNED + (frozen or 0) * _BYTES_PER_FROZEN + micro_batch * per_token,
    )


class PaceReporter:
    """Announce once, after the first measured steps, how long the training will take."""

    def __init__(self, announce: Announce) -> None:
        self._announce = announce
        self._first: tuple[int, float] | None = None
        self._seen = 0
        self._told = False

    def step(self, done: int, total: int) -> None:
        """Take note that `done` of `total` steps are done."""
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
