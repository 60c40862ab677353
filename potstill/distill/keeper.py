"""Which checkpoints stay: those that are whole, the newest, and the best."""

import math
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_COMPLETE = "COMPLETE"


class CheckpointKeeper(TrainerCallback):
    """Mark a checkpoint once it is whole, and keep the newest and the k best."""

    def __init__(self, metric: str, keep_best_k: int, *, maximise: bool) -> None:
        self._metric = f"eval_{metric}"
        self._keep_best_k = keep_best_k
        self._sign = 1 if maximise else -1

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have a checkpoint written: what was scored can be chosen."""
        control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint, and remove those that are neither among the best nor the newest."""
        if not args.should_save:
            return
        folder = Path(args.output_dir)
        (folder / f"checkpoint-{state.global_step}" / _COMPLETE).touch()
        scores = self.scores(state)
        checkpoints = complete_checkpoints(folder)
        scored = [path for path in checkpoints if step_of(path) in scores]
        best = sorted(scored, key=lambda path: scores[step_of(path)], reverse=True)[: self._keep_best_k]
        for path in checkpoints:
            if path not in best and path != checkpoints[-1]:
                shutil.rmtree(path)

    def scores(self, state: TrainerState) -> dict[int, float]:
        """Return the score of each step that was evaluated, higher for better; what is no number is worst."""
        found = {
            entry["step"]: self._sign * entry[self._metric] for entry in state.log_history if self._metric in entry
        }
        return {step: -math.inf if math.isnan(score) else score for step, score in found.items()}


def complete_checkpoints(work_dir: Path) -> list[Path]:
    """Return the checkpoints that were written to their end, oldest first."""
    return sorted((path for path in work_dir.glob("checkpoint-*") if (path / _COMPLETE).is_file()), key=step_of)


def newest_checkpoint(work_dir: Path) -> Path | None:
    """Return the newest complete checkpoint, or None."""
    return next(reversed(complete_checkpoints(work_dir)), None)


def discard_incomplete(work_dir: Path) -> None:
    """Remove the checkpoints that were cut off while they were written."""
    complete = complete_checkpoints(work_dir)
    for path in work_dir.glob("checkpoint-*"):
        if path not in complete:
            shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])
