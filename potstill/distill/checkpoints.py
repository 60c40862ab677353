"""Training checkpoints: which are complete, which are kept, and whether they belong to the run that resumes.

A complete checkpoint holds a file `COMPLETE`; `run.json` beside them holds what decides the run's weights.
"""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from potstill.errors import OutputError
from potstill.files import write_text

# An empty file, written after all others of a checkpoint: Trainer writes several, and a kill leaves some of them.
_COMPLETE = "COMPLETE"
_IDENTITY = "run.json"
# Differences that are named in an error.
_SHOWN = 4


class CheckpointCallback(TrainerCallback):
    """Mark a checkpoint once it is whole, and keep the newest and the k best."""

    def __init__(self, metric: str, keep_best_k: int, *, maximise: bool) -> None:
        self._metric = f"eval_{metric}"
        self._keep_best_k = keep_best_k
        self._sign = 1 if maximise else -1

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Save a checkpoint with every evaluation, so that any scored state can be chosen."""
        # An evaluation without a checkpoint once cost the best epoch: 0.8991 was never saved, 0.8933 published
        # (docs/log.md).
        control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
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
            # The newest stays even if it is bad: `--resume` goes on from it.
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


def write_identity(work_dir: Path, identity: Mapping[str, object]) -> None:
    """Write what decides the weights of the run whose checkpoints the folder will hold."""
    work_dir.mkdir(parents=True, exist_ok=True)
    write_text(work_dir / _IDENTITY, json.dumps(identity, indent=2) + "\n")


def check_same_run(work_dir: Path, identity: Mapping[str, object]) -> None:
    """Refuse to go on from the checkpoints of another run: what is trained would be neither the one nor the other.

    Args:
        work_dir: holds the checkpoints.
        identity: what decides the weights, or a part of it as far as it is known.

    Raises:
        OutputError: with what differs.
    """
    if newest_checkpoint(work_dir) is None:
        return
    file = work_dir / _IDENTITY
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        # Only the keys asked about: before anything is loaded just the settings are known, not the data's hashes.
        before = flatten({key: value for key, value in known.items() if key in identity})
    except (OSError, ValueError, AttributeError):
        before = {}
    # Through JSON as well, which makes lists of tuples and strings of numbers that are keys.
    ours = flatten(json.loads(json.dumps(identity)))
    differing = [key for key in ours | before if ours.get(key) != before.get(key)]
    if differing:
        told = [f"{key} was {_show(before.get(key))} and is {_show(ours.get(key))}" for key in differing[:_SHOWN]]
        told += [f"and {len(differing) - _SHOWN} more"] if len(differing) > _SHOWN else []
        what = "; ".join(told) if before else f"nobody knows of which, {file.name} is missing"
        raise OutputError(
            f"{work_dir} holds checkpoints of another run ({what}); pass the same settings to go on with it, or leave "
            "--resume out to start anew"
        )


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested values by dotted key: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _show(value: object) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 24 else f"{shown[:20]}..."
