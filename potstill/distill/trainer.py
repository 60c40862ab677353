"""Train a student on labels and on its teacher, with transformers' `Trainer` doing the loop.

Trainer and accelerate bring the optimiser, mixed precision, accumulation, several GPUs and checkpoints. What is
ours: the loss, a teacher that can neither learn nor drop out, checkpoints that count only when they are complete, and
the choice of the best one.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from potstill.config import DistillConfig
from potstill.distill.batches import Collator, EpochRows, LengthGroupedSampler, Row, read_lengths
from potstill.distill.checkpoints import (
    CheckpointCallback,
    check_same_run,
    complete_checkpoints,
    discard_incomplete,
    newest_checkpoint,
    step_of,
    write_identity,
)
from potstill.distill.data import TrainingData
from potstill.distill.methods.objective import Objective
from potstill.distill.training_args import PaceReporter, plan_training, training_arguments
from potstill.errors import DiskError, TrainingError
from potstill.extras import require
from potstill.files import writing
from potstill.progress import Announce, Progress, keep_quiet

Scores = dict[str, float]

_WEIGHTS = "model.safetensors"
# Travels in the batch beside its tensors, and is taken out before the model sees it.
_COUNTS = "counts"
_HELD_OUT_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What training did; the model passed in holds the chosen weights."""

    steps: int
    best_step: int
    score: float
    metrics: Scores
    resumed_from: int
    dtype: str
    """`float32` or `bfloat16`, in which the products were computed."""
    history: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """How and where to train."""

    config: DistillConfig
    metric: str
    """The score that picks the best checkpoint."""
    maximise: bool
    """Whether a higher score is better; perplexity and losses are better low."""
    seed: int
    work_dir: Path
    """Receives the checkpoints."""
    resume: bool
    """Go on from the newest complete checkpoint of `work_dir`; otherwise the folder is emptied."""
    stage: str
    """What progress reports call this training, such as "distil the student"."""
    progress: Progress
    announce: Announce = keep_quiet
    """Called with the plan before the first step, and with the pace after a few."""
    about: Mapping[str, object] = field(default_factory=dict)
    """What the announced plan says of the data: names, counts and the task."""
    identity: Mapping[str, object] = field(default_factory=dict)
    """All that decides the weights; `resume` refuses checkpoints of a run with another identity."""


class Distiller(nn.Module):
    """The student and its objective as one module to train; the teacher is held but not registered as a part of it.

    So the optimiser, checkpoints and data-parallel wrappers see what learns and nothing else, and `train()` leaves the
    teacher in eval mode.
    """

    def __init__(self, student: PreTrainedModel, objective: Objective, teacher: PreTrainedModel | None) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        # In a tuple, torch does not find it: a module that is an attribute would be registered as a part.
        self._teacher = (teacher.eval().requires_grad_(False) if teacher is not None else None,)

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The frozen teacher."""
        return self._teacher[0]

    def forward(self, batch: Mapping[str, Tensor], scales: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the detached sum of each of its parts, as `Objective.forward` does."""
        return self.objective(self.student, self.teacher, batch, scales)


def train(
    student: PreTrainedModel,
    *,
    teacher: PreTrainedModel | None,
    objective: Objective,
    train_set: Dataset,
    collate: Collator,
    score: Callable[[PreTrainedModel], Scores],
    run: TrainingRun,
) -> TrainingResult:
    """Train `student` in place and leave the weights with the best score in it.

    Args:
        student: learns.
        teacher: what `objective` compares with; frozen here. None where the labels are all there is.
        objective: the method's loss; its own parameters learn with the student.
        train_set: tokenised rows with a `length` column.
        collate: makes a batch of rows.
        score: scores the student as it stands; called at every evaluation.
        run: how and where to train.

    Raises:
        OutputError: if the run to go on with had other settings, data or checkpoints.
        TrainingError: if the loss is no longer a number; the last good checkpoint stays in the work folder.
        MissingExtraError: if a tracker is not installed.
    """
    config = run.config
    for tracker in config.trackers:
        require(tracker, extra="trackers")
    arguments = training_arguments(
        config, seed=run.seed, work_dir=run.work_dir, num_rows=len(train_set), unused=objective.has_unused_parameters
    )
    plan = plan_training(
        student, teacher, config=config, lengths=read_lengths(train_set).tolist(), world_size=arguments.world_size
    )
    run.announce("plan", asdict(plan) | {"data": run.about})
    if run.resume:
        check_same_run(run.work_dir, run.identity)
    # One process owns the folder: the others would delete what it writes.
    if arguments.should_save:
        if not run.resume:
            shutil.rmtree(run.work_dir, ignore_errors=True)
        discard_incomplete(run.work_dir)
        write_identity(run.work_dir, run.identity)
    if config.compile:
        # In place, so that names in checkpoints stay; dynamic, since every batch has its own length.
        student.base_model.compile(dynamic=True)
    distiller = Distiller(student, objective, teacher)
    checkpoints = CheckpointCallback(run.metric, config.keep_best_k, maximise=run.maximise)

    def collate_and_count(batch_rows: Sequence[Row]) -> dict[str, Any]:
        # Units are counted while the batch is on the CPU: on a GPU, reading them would stall every micro-batch.
        batch = collate(batch_rows)
        return {**batch, _COUNTS: objective.count(batch)}

    trainer = DistillationTrainer(
        distiller,
        score=score,
        arguments=arguments,
        rows=EpochRows(train_set),
        collate=collate_and_count,
        callbacks=[checkpoints, ProgressCallback(run)],
    )
    # Trainer adds it with `disable_tqdm`; it prints every log line to stdout.
    trainer.remove_callback(PrinterCallback)
    # Without resume a process may still see the old checkpoints that another one is removing.
    last = newest_checkpoint(run.work_dir) if run.resume else None
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return _choose_best(trainer, checkpoints, run, resumed_from=step_of(last) if last else 0)


class DistillationTrainer(Trainer):
    """A Trainer whose loss is an objective's, exact under accumulation and over several processes."""

    # Each part is divided by its count over all micro-batches and processes of the step, before it is added up.
    loss_is_scaled_for_ga = True
    control: TrainerControl

    def __init__(
        self,
        distiller: Distiller,
        *,
        score: Callable[[PreTrainedModel], Scores],
        arguments: TrainingArguments,
        rows: EpochRows,
        collate: Collator,
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(
            model=distiller,
            args=arguments,
            train_dataset=rows,
            eval_dataset=rows,  # Trainer insists on one; `evaluate` brings its own texts
            data_collator=collate,
            callbacks=callbacks,
        )
        self._distiller = distiller
        self._score = score
        if self._distiller.teacher is not None:
            half = self.args.bf16 and self.args.device.type != "cpu"
            # Trainer moves the model alone to the device, and the teacher is no part of it.
            self._distiller.teacher.to(self.args.device, torch.bfloat16 if half else torch.float32)
        self._scales: dict[str, float] = {}
        self._totals: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._steps_summed = 0

    def _get_train_sampler(self, train_dataset: EpochRows | None = None) -> LengthGroupedSampler:
        rows = self.train_dataset if train_dataset is None else train_dataset
        # Grouped by whole steps: however a step is cut into micro-batches and processes, it holds the same rows.
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return rows.sampler(batch_size=batch_size, seed=self.args.seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """Fetch the micro-batches of one step, and learn from their counts what each part of the loss weighs."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        weights = self._distiller.objective.weights(self.state.global_step / max(self.state.max_steps, 1))
        counts = [batch.pop(_COUNTS) for batch in batches]
        # A part's divisor is its count in the whole step. A mean of micro-batch means would weigh short ones too much.
        totals = torch.tensor([[float(count[name]) for name in weights] for count in counts]).sum(0)
        world = self.args.world_size
        if world > 1:
            totals = self.accelerator.reduce(totals.to(device), "sum")
        self._totals = dict(zip(weights, totals.clamp(min=1).tolist(), strict=True)) if batches else {}
        # Data-parallel gradients are averaged over the processes; the factor makes the average a sum.
        self._scales = {name: weights[name] * world / total for name, total in self._totals.items() if weights[name]}
        self._steps_summed += 1
        return batches, None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: object = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return this micro-batch's share of the step's loss."""
        loss, sums = model(inputs, self._scales)
        for name, value in sums.items():
            # Added up where they are: reading them here would stall a GPU at every step.
            known = self._sums.get(name, torch.zeros((), device=value.device))
            self._sums[name] = known + value.detach() / self._totals[name]
        return (loss, {}) if return_outputs else loss

    def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
        """Score the student as `potstill evaluate` would, in every process, with the same result."""
        started = time.perf_counter()
        # In eval mode by hand: Trainer's own evaluation loop, which would do that, is not called.
        student = self._distiller.student
        was_training = student.training
        scores = {f"eval_{name}": value for name, value in self._score(student.eval()).items()}
        student.train(was_training)
        scores["eval_seconds"] = round(time.perf_counter() - started, 3)
        self.log(dict(scores))
        # Here, because Trainer's `evaluate` is replaced: `CheckpointCallback` asks for a checkpoint by it.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def log(self, logs: dict[str, float], *args: object, **kwargs: object) -> None:
        """Log the mean of each part of the loss; stop the training if the loss is NaN or infinite."""
        if "loss" in logs and self._sums:
            names = sorted(self._sums)
            # Sorted names: processes add up by position, so all must stack in one order.
            values = self.accelerator.reduce(torch.stack([self._sums[name] for name in names]), "sum").tolist()
            logs |= {
                f"loss_{name}": round(value / self._steps_summed, 5) for name, value in zip(names, values, strict=True)
            }
            self._sums, self._steps_summed = {}, 0
        super().log(logs, *args, **kwargs)
        if not math.isfinite(logs.get("loss", 0.0)):
            self._stop(f"the loss is {logs['loss']}")

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        # Before writing, so that the newest checkpoint is always one to go on from.
        if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            self._stop("the weights are no longer numbers")
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            with writing(folder):
                super()._save_checkpoint(model, trial)
        except DiskError:
            shutil.rmtree(folder, ignore_errors=True)  # half a checkpoint only takes room
            raise

    def _stop(self, what: str) -> None:
        raise TrainingError(
            f"{what} at step {self.state.global_step}: lower distill.learning_rate or set distill.dtype=float32; the "
            f"last good checkpoint is in {self.args.output_dir}"
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if state_dict is not None:  # gathered from shards
            super()._save(output_dir, state_dict)
        else:  # Trainer's own way of saving a bare module stumbles over tied weights.
            save_model(self._distiller, str(folder / _WEIGHTS))
            torch.save(self.args, folder / "training_args.bin")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_model(self._distiller, Path(resume_from_checkpoint) / _WEIGHTS, device=str(self.args.device))


class ProgressCallback(TrainerCallback):
    """Report every step, with the newest loss or score, and the pace."""

    def __init__(self, run: TrainingRun) -> None:
        self._stage, self._progress, self._metric = run.stage, run.progress, f"eval_{run.metric}"
        self._pace = PaceReporter(run.announce)
        self._note = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Report the first step, which is not 0 if the training was resumed."""
        self._progress(self._stage, state.global_step, state.max_steps, self._note)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Report the step with the newest loss or score."""
        # The last step is reported by `_choose_best`, with the score that it leads to.
        if state.global_step < state.max_steps:
            self._progress(self._stage, state.global_step, state.max_steps, self._note)
        self._pace.step(state.global_step, state.max_steps)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Keep the newest loss or score for the next step."""
        latest = state.log_history[-1] if state.log_history else {}
        if "loss" in latest:
            self._note = f"loss {latest['loss']:.3f}"
        elif self._metric in latest:
            self._note = f"{self._metric.removeprefix('eval_')} {latest[self._metric]:.4f}"


def _choose_best(
    trainer: DistillationTrainer, checkpoints: CheckpointCallback, run: TrainingRun, *, resumed_from: int
) -> TrainingResult:
    """Score the final weights, and load a kept checkpoint instead if it scored better."""
    # One process writes checkpoints; the others must not look for them before it has ended.
    trainer.accelerator.wait_for_everyone()
    scores = checkpoints.scores(trainer.state)
    final_step = trainer.state.global_step
    if final_step not in scores:
        trainer.evaluate()
        scores = checkpoints.scores(trainer.state)
    on_disk = {step_of(path): path for path in complete_checkpoints(Path(trainer.args.output_dir))}
    # Only what still exists can be chosen: a kept checkpoint, or the weights in memory.
    best_step = max((step for step in scores if step in on_disk or step == final_step), key=lambda step: scores[step])
    distiller = trainer.model
    if best_step != final_step:
        # The objective's own parameters go back as well: an embedding's head belongs to the same step.
        load_model(distiller, on_disk[best_step] / _WEIGHTS, device=str(trainer.args.device))
    distiller.eval()
    metric = f"eval_{run.metric}"
    best = next(entry for entry in trainer.state.log_history if entry["step"] == best_step and metric in entry)
    measured = {name.removeprefix("eval_"): value for name, value in best.items() if name.startswith("eval_")}
    del measured["seconds"]
    run.progress(run.stage, final_step, final_step, f"{run.metric} {best[metric]:.4f}")
    return TrainingResult(
        steps=final_step,
        best_step=best_step,
        score=best[metric],
        metrics=measured,
        resumed_from=resumed_from,
        dtype="bfloat16" if trainer.args.bf16 else "float32",
        history=trainer.state.log_history,
    )


def make_scorer(
    training_data: TrainingData, objective: Objective, teacher: PreTrainedModel | None, *, who: str = "student"
) -> Callable[[PreTrainedModel], Scores]:
    """Return what scores a student during training: the task's score, or the loss on texts held out.

    Args:
        training_data: from `load_training_data`.
        objective: the method's; it may add a head to the student, and is the loss that is taken.
        teacher: what the loss compares with; None where the data has a score, or a stored teacher's answers.
        who: what progress reports call the student.
    """
    score, rows = training_data.score, training_data.eval_set
    if score is not None:
        return lambda student: score(objective.as_used(student), who)
    assert rows is not None
    return lambda student: {
        "loss": held_out_loss(student, teacher, objective, rows=rows, collate=training_data.collate)
    }


def held_out_loss(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    objective: Objective,
    *,
    rows: Dataset,
    collate: Collator,
) -> float:
    """Return the objective on rows held out, as it is weighed at the start of the training."""
    # Called for untrained students too (`student.best_of`), which Trainer has not placed.
    device = student.device if teacher is None else teacher.device
    student.to(device)
    objective.to(device)
    weights = {name: weight for name, weight in objective.weights(0.0).items() if weight > 0}
    sums, counts = dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0)
    numbered = EpochRows(rows)
    ones = dict.fromkeys(weights, 1.0)
    for start in range(0, len(rows), _HELD_OUT_BATCH):
        batch = collate(numbered.__getitems__(range(start, min(start + _HELD_OUT_BATCH, len(rows)))))
        for name, count in objective.count(batch).items():
            if name in counts:
                counts[name] += count
        on_device = {name: value.to(device) for name, value in batch.items()}
        with torch.no_grad():
            _, parts = objective(student, teacher, on_device, ones)
        for name, value in parts.items():
            sums[name] += value.item()
    return sum(weight * sums[name] / max(counts[name], 1) for name, weight in weights.items())
