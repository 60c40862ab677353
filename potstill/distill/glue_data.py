"""Where GLUE's tasks are: on the hub under one name, or in one folder with a folder per task."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.errors import DataError, UsageError
from potstill.metrics import GLUE_METRICS, glue_task

_MATCHED, _MISMATCHED = "validation_matched", "validation_mismatched"
_SPLIT_IN_TWO = ("MNLI",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One task's data."""

    task: str
    """GLUE's spelling."""
    name: str
    """A hub id with its configuration, or a folder."""
    eval_split: str
    second_split: str | None
    """MNLI's mismatched validation texts, where there are any."""

    @property
    def short(self) -> str:
        """The task in small letters and figures: `sst2`."""
        return _short(self.task)


def find_sources(data: str, tasks: Sequence[str] | None) -> dict[str, Source]:
    """Return each task's data by GLUE's spelling, in GLUE's order.

    Args:
        data: the front of a hub id, such as `nyu-mll/glue`, or a folder with one folder per task.
        tasks: in any spelling; None takes those that the folder has, of a hub id all.

    Raises:
        UsageError: if a task is unknown.
        DataError: if a task's folder is missing, or `data` names a single task.
    """
    asked = None if tasks is None else {glue_task(name) for name in tasks}
    if asked is not None and not asked:
        raise UsageError("no task is named; give at least one, such as sst2")
    root = Path(data).expanduser()
    if root.is_dir():
        return _in_folder(root, asked)
    if data.startswith((".", "/", "~")) or data.count("/") > 1:
        raise DataError(f"there is no folder {data}; name a folder with one folder per task, or nyu-mll/glue")
    if ":" in data:
        raise DataError(f"{data} is the data of one task; leave out what follows the colon, and choose by --tasks")
    return {
        task: Source(task=task, name=f"{data}:{_short(task)}", eval_split=_MATCHED, second_split=_MISMATCHED)
        if task in _SPLIT_IN_TWO
        else Source(task=task, name=f"{data}:{_short(task)}", eval_split="validation", second_split=None)
        for task in GLUE_METRICS
        if asked is None or task in asked
    }


def _in_folder(root: Path, asked: set[str] | None) -> dict[str, Source]:
    folders = {_short(path.name): path for path in sorted(root.iterdir()) if path.is_dir()}
    found = {task: folders[_short(task)] for task in GLUE_METRICS if _short(task) in folders}
    if not found:
        raise DataError(
            f"{root} has no folder of a task of GLUE; expected {', '.join(map(_short, GLUE_METRICS))}, with train and "
            "validation files in each"
        )
    missing = [_short(task) for task in GLUE_METRICS if asked is not None and task in asked and task not in found]
    if missing:
        raise DataError(f"{root} has no folder {', '.join(missing)}; it has {', '.join(map(_short, found))}")
    return {task: _source(task, path) for task, path in found.items() if asked is None or task in asked}


def _source(task: str, folder: Path) -> Source:
    splits = {file.stem for file in folder.iterdir()} if task in _SPLIT_IN_TWO else set()
    return Source(
        task=task,
        name=str(folder),
        eval_split=_MATCHED if _MATCHED in splits else "validation",
        second_split=_MISMATCHED if _MISMATCHED in splits else None,
    )


def _short(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
