"""Several data sets at once, such as GLUE's: which models answer which, from a YAML file.

    tasks:
      SST-2:
        data: nyu-mll/glue:sst2
        models: {teacher: teacher-sst2-onnx, student: student-sst2-onnx}
      MRPC:
        data: shared/mrpc
        split: test
        text_columns: [sentence1, sentence2]
        models: {teacher: teacher-mrpc-onnx, student: student-mrpc-onnx}

Places are read as on the command line: from the folder that a bench is started in, or from the hub.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from potstill.config import Section
from potstill.errors import UsageError, describe_fault, did_you_mean
from potstill.metrics import glue_task


class SuiteTask(Section):
    """One data set, and the models that answer it."""

    data: str = Field(min_length=1)
    """A hub id, folder or file."""
    models: dict[str, str] = Field(min_length=1)
    """A bundle or checkpoint by the name of a bench's model."""
    split: str = "validation"
    text_columns: list[str] | None = Field(default=None, min_length=1, max_length=2)
    """None takes the usual names, and so does `label_column`."""
    label_column: str | None = None
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many examples."""


class Suite(Section):
    """The data sets of a bench by name; GLUE's tasks are called as GLUE calls them."""

    tasks: dict[str, SuiteTask] = Field(min_length=1)


def read_suite(path: Path, *, models: Sequence[str] | None = None) -> Suite:
    """Read a suite from a YAML file.

    Args:
        path: the file.
        models: the names of the bench's models; None takes any.

    Raises:
        UsageError: if there is no such file or it is no YAML; or with every fault, one per line, if it is not valid.
    """
    values = _load(path)
    faults = _name_faults(values, models)
    try:
        suite = Suite.model_validate(values)
    except ValidationError as error:
        raise _refused(path, [*(describe_fault(fault, Suite) for fault in error.errors()), *faults]) from error
    if faults:
        raise _refused(path, faults)
    return suite.model_copy(update={"tasks": {_glue_name(name): task for name, task in suite.tasks.items()}})


def _name_faults(values: Mapping[str, Any], models: Sequence[str] | None) -> list[str]:
    """Return what is wrong with the names of data sets and models, whatever else is."""
    tasks = values.get("tasks")
    if not isinstance(tasks, Mapping):
        return []
    titles = {name: _glue_name(str(name)) for name in tasks}
    faults = [
        f"tasks.{name}: is {title}, which is there twice"
        for name, title in titles.items()
        if list(titles.values()).count(title) > 1
    ]
    for name, task in tasks.items():
        places = task.get("models") if isinstance(task, Mapping) else None
        for model, place in places.items() if isinstance(places, Mapping) else ():
            if models is not None and model not in models:
                faults.append(
                    f"tasks.{name}.models.{model}: is no model of this bench{did_you_mean(str(model), models)}"
                )
            if place == "":
                faults.append(f"tasks.{name}.models.{model}: is empty")
    return faults


def _load(path: Path) -> Any:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no file {path}; --suite names a YAML file with the data sets under tasks"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text: {error}; --suite names a YAML file") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping):
        raise UsageError(f"{path} holds no suite; it needs data sets by name under tasks")
    return values


def _refused(path: Path, faults: Sequence[str]) -> UsageError:
    listed = "\n".join(f"  {fault}" for fault in faults)
    return UsageError(f"suite {path} is not valid:\n{listed}")


def _glue_name(name: str) -> str:
    try:
        return glue_task(name)
    except UsageError:
        return name
