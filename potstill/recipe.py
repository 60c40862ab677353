"""A recipe says everything about a run: one YAML file, checked as a whole before anything starts.

Values come from four places, later ones winning: the defaults below, the recipe file, the command line's flags,
and `--set a.b=c`. All faults are told at once, and an unknown key is answered with the nearest known one.
"""

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from potstill.data import choose_splits
from potstill.errors import RecipeError
from potstill.method import METHODS, PRESET_LAYERS
from potstill.sections import (
    BenchConfig,
    DataConfig,
    DistillConfig,
    ExportConfig,
    Section,
    StudentConfig,
    TaskName,
    TeacherConfig,
)
from potstill.task import trained_task


class Recipe(Section):
    """A whole run."""

    task: TaskName = "text-classification"
    metric: str | None = None
    """The score that picks the best checkpoint and is reported first; None takes the task's own."""
    teacher: TeacherConfig
    student: StudentConfig = StudentConfig()
    data: DataConfig
    tokenizer: str | None = None
    """A hub id or folder; None takes the teacher's."""
    max_length: int = Field(default=128, ge=8)
    """Longest text in tokens; more is cut."""
    seed: int = Field(default=42, ge=0)
    distill: DistillConfig = DistillConfig()
    export: ExportConfig = ExportConfig()
    bench: BenchConfig = BenchConfig()
    output_dir: str | None = None
    """Where the run writes; `--out` on the command line wins."""
    resume: bool = False
    """Go on with what output_dir holds of the same recipe; `--resume` on the command line."""

    @model_validator(mode="after")
    def _method_fits_task(self) -> Self:
        method = METHODS[self.distill.method]
        if self.task not in method.tasks:
            fitting = [other.name for other in METHODS.values() if self.task in other.tasks]
            raise ValueError(
                f"method {method.name} distils {', '.join(method.tasks)} and not {self.task}; for {self.task} there "
                f"are {', '.join(fitting)}"
            )
        if method.name == "mobilebert" and self.student.model is None and self.student.family == "distilbert":
            raise ValueError("method mobilebert makes a MobileBERT student; leave student.family out")
        return self

    @property
    def student_layers(self) -> int | list[int] | None:
        """Which layers the student keeps: its own setting, else the preset's."""
        if self.student.layers is None and self.distill.preset is not None:
            return PRESET_LAYERS[self.distill.preset]
        return self.student.layers


def with_splits(recipe: Recipe) -> Recipe:
    """Return a recipe that learns from and is scored on different rows, see `potstill.data.choose_splits`."""
    data = recipe.data
    train, evaluation = choose_splits(data.name, train=data.train_split, evaluation=data.eval_split)
    if (train, evaluation) == (data.train_split, data.eval_split):
        return recipe
    return recipe.model_copy(update={"data": data.model_copy(update={"train_split": train, "eval_split": evaluation})})


def build_recipe(
    values: Mapping[str, Any],
    *,
    overrides: Sequence[tuple[str, Any]] = (),
    origin: str = "the recipe",
    flags: Mapping[str, str] | None = None,
) -> Recipe:
    """Check `values` with `overrides` (dotted key, value) laid over them.

    Args:
        values: sections and settings.
        overrides: dotted keys with the values that win.
        origin: what the message of an error begins with; empty where the faults say enough.
        flags: what a dotted key is called on the command line, for messages.

    Raises:
        RecipeError: with every fault, one per line.
    """
    merged = _plain_copy(values)
    for key, value in overrides:
        _put(merged, key, value)
    if "task" not in merged and (task := _infer_task(merged)):
        merged["task"] = task
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        faults = [_describe(fault, flags or {}) for fault in error.errors()]
        if not origin:
            raise RecipeError("; ".join(faults)) from error
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise RecipeError(f"{origin} is not valid:\n{listed}") from error


def _infer_task(values: Mapping[str, Any]) -> str | None:
    """Return the task that the method or the teacher leaves no doubt about; None takes the default."""
    teacher, settings = (part if isinstance(part := values.get(key), Mapping) else {} for key in ("teacher", "distill"))
    method = METHODS.get(settings.get("method") or "task")
    model = teacher.get("model")
    trained = trained_task(model) if isinstance(model, str) else None
    if method is None:
        return None
    if trained in method.tasks:
        return trained
    return method.tasks[0] if len(method.tasks) == 1 else None


def parse_section(name: str, values: Mapping[str, Any], *, flags: Mapping[str, str] | None = None) -> Any:
    """Check the values of one section of a recipe, such as `export`, given as flags.

    Args:
        name: of the section.
        values: its settings.
        flags: what a dotted key is called on the command line, for messages.

    Raises:
        RecipeError: with every fault.
    """
    section = type(Recipe.model_fields[name].default)
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        faults = "; ".join(
            _describe({**fault, "loc": (name, *fault["loc"])}, flags or {}, section=name) for fault in error.errors()
        )
        raise RecipeError(faults) from error


def load_recipe(
    name: str, *, overrides: Sequence[tuple[str, Any]] = (), flags: Mapping[str, str] | None = None
) -> Recipe:
    """Load a shipped recipe by its name, or one from a YAML file, with `overrides` laid over it.

    Raises:
        RecipeError: if there is no such recipe, it is no YAML, or it is not valid.
    """
    text = recipe_text(name)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{name} holds no settings; `potstill recipes sst2` prints one to start from")
    return build_recipe(values, overrides=overrides, origin=f"recipe {name}", flags=flags)


def recipe_text(name: str) -> str:
    """Return the text of a shipped recipe or a recipe file.

    Raises:
        RecipeError: if there is neither.
    """
    if name in recipe_names():
        return resources.files("potstill").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")
    file = Path(name)
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(f"{name} is not UTF-8 at byte {error.start}, so it is no recipe") from error
    if file.is_dir():
        raise RecipeError(f"{name} is a folder; a recipe is a YAML file, or one of {', '.join(recipe_names())}")
    near = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise RecipeError(
        f"there is no recipe {name!r}{meant}; shipped are {', '.join(recipe_names())}, or name a YAML file"
    )


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    folder = resources.files("potstill").joinpath("recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def parse_setting(text: str) -> tuple[str, Any]:
    """Split a `--set` argument into its dotted key and its value, read as YAML.

    Raises:
        RecipeError: if it is not of the form a.b=c.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not all(part.strip() for part in key.split(".")):
        raise RecipeError(f"--set {text!r} is not of the form section.key=value, such as distill.epochs=1")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {text!r}: {value!r} is not a YAML value") from error


def to_yaml(recipe: Recipe) -> str:
    """Write a recipe with every value spelled out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _plain_copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain_copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        if not isinstance(inner, dict):
            inner = values[section] = {}
        values = inner
    values[last] = value


def _describe(fault: Mapping[str, Any], flags: Mapping[str, str], *, section: str = "") -> str:
    """Return one fault in a line, in the words of the command line for the keys that it has flags for."""
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(str(fault['loc'][-1]), _known_keys(fault['loc'][:-1]))}"
    # A list's entry is called as the list is.
    flag = flags.get(where) or flags.get(".".join(str(part) for part in fault["loc"] if not isinstance(part, int)))
    if flag and isinstance(fault["input"], Mapping | BaseModel):
        return f"{flag} is missing" if fault["type"] == "missing" else f"{flag}: {_plain_message(fault)}"
    if flag:
        sign = "=" if flag.startswith("--set ") else " "
        return f"{flag}{sign}{_shown(fault['input'])}: {_plain_message(fault)}"
    if fault["type"] == "missing":
        return f"{where}: is missing"
    message = _plain_message(fault)
    if flags and where == section:  # of several options together
        return message
    shown = "" if isinstance(fault["input"], Mapping | BaseModel) else f" (it is {fault['input']!r})"
    return f"{where or 'recipe'}: {message}{shown}"


def _plain_message(fault: Mapping[str, Any]) -> str:
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _known_keys(location: Sequence[Any]) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        section = next(kind for kind in kinds if issubclass(kind, BaseModel))
    return list(section.model_fields)


def _nearest(word: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else f"; known are {', '.join(known)}"
