"""Train a student on labels and on its teacher, with transformers' `Trainer` doing the loop.

Trainer and accelerate bring the optimiser, mixed precision, accumulation, several GPUs and checkpoints. What is
ours: the loss, a teacher that can neither learn nor drop out, checkpoints that count only when they are complete, and
the choice of the best one.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_model
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from potstill import metrics
from potstill.checkpoint import accepted_inputs
from potstill.distill import losses
from potstill.distill.batches import LENGTH_COLUMN, LengthGroupedSampler, make_collator
from potstill.errors import CheckpointError, TrainingError
from potstill.extras import require
from potstill.machine import has_fast_bf16
from potstill.progress import Progress
from potstill.recipe import DistillConfig

_COMPLETE = "COMPLETE"
# The fused AdamW walks memory once: 17 ms a step instead of 128 for 17 M parameters on 2 cores (torch 2.13).
_OPTIMIZERS = {"adamw": "adamw_torch_fused", "adafactor": "adafactor", "sgd": "sgd"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What training did; the model passed in holds the chosen weights."""

    steps: int
    best_step: int
    score: float
    metrics: dict[str, float]
    resumed_from: int
    history: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How and where to train."""

    config: DistillConfig
    metric: str
    """The entry of `metrics.classification` that picks the best checkpoint."""
    seed: int
    work_dir: Path
    """Receives the checkpoints."""
    resume: bool
    """Go on from the newest complete checkpoint of `work_dir`; otherwise the folder is emptied."""
    stage: str
    """The name under which progress is told."""
    progress: Progress


def train(
    student: PreTrainedModel,
    *,
    teacher: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    train_set: Dataset,
    eval_set: Dataset,
    job: Job,
) -> TrainingResult:
    """Train `student` in place and leave the weights that scored best on `eval_set` in it.

    Without a teacher only the labels count.

    Raises:
        CheckpointError: if teacher and student cannot be compared.
        TrainingError: if the loss is no longer a number; the last good checkpoint stays in the work folder.
        MissingExtraError: if a tracker is not installed.
    """
    config = job.config
    for tracker in config.trackers:
        require(tracker, extra="trackers")
    if teacher is not None:
        _check_pair(student, teacher, config)
    if not job.resume:
        shutil.rmtree(job.work_dir, ignore_errors=True)
    keeper = _CheckpointKeeper(job.metric, config.keep_best_k)
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher,
        weights={"kl": config.alpha_kl, "ce": config.alpha_ce, "cos": config.alpha_cos},
        temperature=config.temperature,
        args=_arguments(config, seed=job.seed, work_dir=job.work_dir, num_rows=len(train_set)),
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=make_collator(tokenizer),
        compute_metrics=_score,
        callbacks=[keeper, _ProgressReporter(job)],
    )
    trainer.remove_callback(PrinterCallback)
    last = newest_checkpoint(job.work_dir)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return _choose_best(trainer, keeper, job.metric, resumed_from=_step_of(last) if last else 0)


class DistillationTrainer(Trainer):
    """A Trainer whose loss is labels + softened answers + last hidden states."""

    def __init__(
        self, *, teacher: PreTrainedModel | None, weights: dict[str, float], temperature: float, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        # Our losses are means over the micro-batch, so Trainer has to divide by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self._teacher = teacher.eval().requires_grad_(False).to(self.args.device) if teacher else None
        self._weights = weights if teacher else {"ce": 1.0}
        self._temperature = temperature
        self._student_inputs = accepted_inputs(self.model)
        self._teacher_inputs = accepted_inputs(teacher) if teacher else []
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedSampler(dataset[LENGTH_COLUMN], batch_size=batch_size, seed=self.args.seed)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss, and the student's outputs if asked; evaluation is by the labels alone."""
        labels = inputs["labels"]
        need_hidden = model.training and self._weights.get("cos", 0) > 0
        outputs = model(**_pick(inputs, self._student_inputs), output_hidden_states=need_hidden)
        if not model.training:
            loss = losses.cross_entropy(outputs.logits, labels)
            return (loss, {"logits": outputs.logits}) if return_outputs else loss
        parts = {"ce": losses.cross_entropy(outputs.logits, labels)} if self._weights["ce"] > 0 else {}
        if self._teacher is not None:
            parts |= self._teacher_parts(inputs, outputs, need_hidden=need_hidden)
        self._remember(parts)
        loss = losses.total(parts, self._weights)
        return (loss, outputs) if return_outputs else loss

    def _teacher_parts(
        self, inputs: dict[str, torch.Tensor], outputs: Any, *, need_hidden: bool
    ) -> dict[str, torch.Tensor]:
        assert self._teacher is not None
        with torch.no_grad():
            target = self._teacher(**_pick(inputs, self._teacher_inputs), output_hidden_states=need_hidden)
        parts = {}
        if self._weights["kl"] > 0:
            parts["kl"] = losses.kl_divergence(outputs.logits, target.logits, self._temperature)
        if need_hidden:
            parts["cos"] = losses.hidden_cosine(
                outputs.hidden_states[-1], target.hidden_states[-1], inputs["attention_mask"]
            )
        return parts

    def _remember(self, parts: dict[str, torch.Tensor]) -> None:
        """Add the parts up on their device: reading them here would stall a GPU at every step."""
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=part.device)) + part.detach()
        self._count += 1

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Write the log line with the mean of each part of the loss, and stop when the loss is no number."""
        if "loss" in logs and self._count:
            logs |= {f"loss_{name}": round(value.item() / self._count, 5) for name, value in self._sums.items()}
            self._sums, self._count = {}, 0
        super().log(logs, *args, **kwargs)
        if not math.isfinite(logs.get("loss", 0.0)):
            raise TrainingError(
                f"the loss is {logs['loss']} at step {self.state.global_step}: lower distill.learning_rate or set "
                f"distill.dtype=float32; the last good checkpoint is in {self.args.output_dir}"
            )


class _CheckpointKeeper(TrainerCallback):
    """Mark a checkpoint once it is whole, and keep the newest and the k best."""

    def __init__(self, metric: str, keep_best_k: int) -> None:
        self._metric = f"eval_{metric}"
        self._keep_best_k = keep_best_k

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_save = True  # what was scored can be chosen

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(args.output_dir)
        (folder / f"checkpoint-{state.global_step}" / _COMPLETE).touch()
        scores = self.scores(state)
        checkpoints = complete_checkpoints(folder)
        scored = [path for path in checkpoints if _step_of(path) in scores]
        best = sorted(scored, key=lambda path: scores[_step_of(path)], reverse=True)[: self._keep_best_k]
        for path in checkpoints:
            if path not in best and path != checkpoints[-1]:
                shutil.rmtree(path)

    def scores(self, state: TrainerState) -> dict[int, float]:
        """Return the score of each step that was evaluated."""
        return {entry["step"]: entry[self._metric] for entry in state.log_history if self._metric in entry}


class _ProgressReporter(TrainerCallback):
    """Tell the listener of every step."""

    def __init__(self, job: Job) -> None:
        self._stage, self._progress, self._metric = job.stage, job.progress, f"eval_{job.metric}"
        self._note = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress(self._stage, state.global_step, state.max_steps, self._note)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress(self._stage, state.global_step, state.max_steps, self._note)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        latest = state.log_history[-1] if state.log_history else {}
        if "loss" in latest:
            self._note = f"loss {latest['loss']:.3f}"
        elif self._metric in latest:
            self._note = f"{self._metric.removeprefix('eval_')} {latest[self._metric]:.4f}"


def complete_checkpoints(work_dir: Path) -> list[Path]:
    """Return the checkpoints that were written to their end, oldest first; remove the others."""
    found = []
    for path in work_dir.glob("checkpoint-*"):
        if (path / _COMPLETE).is_file():
            found.append(path)
        else:
            shutil.rmtree(path)
    return sorted(found, key=_step_of)


def newest_checkpoint(work_dir: Path) -> Path | None:
    """Return the newest complete checkpoint, or None."""
    return next(reversed(complete_checkpoints(work_dir)), None)


def resolve_dtype(dtype: str) -> str:
    """Return `bfloat16` or `float32`: auto takes bfloat16 where the GPU, or without one the CPU, computes in it."""
    if dtype != "auto":
        return dtype
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if torch.cuda.is_available() else has_fast_bf16()
    return "bfloat16" if fast else "float32"


def _arguments(config: DistillConfig, *, seed: int, work_dir: Path, num_rows: int) -> TrainingArguments:
    has_gpu = torch.cuda.is_available()
    eval_every = config.eval_every or math.ceil(num_rows / (config.batch_size * config.gradient_accumulation))
    return TrainingArguments(
        output_dir=str(work_dir),
        seed=seed,
        learning_rate=config.learning_rate,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=max(config.batch_size, 32),
        gradient_accumulation_steps=config.gradient_accumulation,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_ratio,
        max_grad_norm=config.max_grad_norm,
        optim=_OPTIMIZERS[config.optimizer],
        bf16=resolve_dtype(config.dtype) == "bfloat16",
        use_cpu=not has_gpu,
        remove_unused_columns=False,
        dataloader_pin_memory=has_gpu,
        logging_steps=config.log_every,
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


def _choose_best(
    trainer: DistillationTrainer, keeper: _CheckpointKeeper, metric: str, *, resumed_from: int
) -> TrainingResult:
    """Score the final weights, and go back to a kept checkpoint that was better."""
    scores = keeper.scores(trainer.state)
    final_step = trainer.state.global_step
    if final_step not in scores:
        trainer.evaluate()
        scores = keeper.scores(trainer.state)
    on_disk = {_step_of(path): path for path in complete_checkpoints(Path(trainer.args.output_dir))}
    best_step = max((step for step in scores if step in on_disk or step == final_step), key=lambda step: scores[step])
    if best_step != final_step:
        load_model(trainer.model, on_disk[best_step] / "model.safetensors", device=str(trainer.args.device))
    trainer.model.eval()
    best = next(
        entry for entry in trainer.state.log_history if entry["step"] == best_step and f"eval_{metric}" in entry
    )
    return TrainingResult(
        steps=final_step,
        best_step=best_step,
        score=scores[best_step],
        metrics={name: best[f"eval_{name}"] for name in metrics.CLASSIFICATION},
        resumed_from=resumed_from,
        history=trainer.state.log_history,
    )


def _score(prediction: EvalPrediction) -> dict[str, float]:
    return metrics.classification(prediction.label_ids, prediction.predictions)


def _check_pair(student: PreTrainedModel, teacher: PreTrainedModel, config: DistillConfig) -> None:
    pairs = [("labels", "num_labels"), ("vocabulary entries", "vocab_size")]
    if config.alpha_cos > 0:
        pairs.append(("hidden units", "hidden_size"))
    for what, key in pairs:
        ours, theirs = getattr(student.config, key), getattr(teacher.config, key)
        if ours != theirs:
            way_out = "set distill.alpha_cos=0 or " if key == "hidden_size" else ""
            raise CheckpointError(
                f"the student has {ours} {what} and the teacher {theirs}; {way_out}use a student that fits"
            )


def _pick(inputs: dict[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in inputs.items() if name in names}


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
