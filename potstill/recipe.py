"""A recipe says everything about a run: one YAML file, checked as a whole before anything starts.

Values come from four places, later ones winning: the defaults below, the recipe file, the command line's flags,
and `--set a.b=c`. All faults are told at once, and an unknown key is answered with the nearest known one.
"""

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from potstill.bundle import Precision
from potstill.errors import RecipeError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ScratchConfig(_Section):
    """A teacher that is trained on the spot, with a WordPiece tokenizer of its own."""

    num_layers: PositiveInt = 4
    hidden_size: PositiveInt = 128
    num_heads: PositiveInt = 2
    intermediate_size: PositiveInt = 512
    vocab_size: int = Field(default=8000, ge=200)
    learning_rate: PositiveFloat = 5e-4
    batch_size: PositiveInt = 32
    epochs: PositiveFloat = 4

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        return self


class TeacherConfig(_Section):
    """The model that is distilled."""

    model: str | None = None
    """A hub id or a checkpoint folder."""
    scratch: ScratchConfig | None = None
    """Train one on the spot instead."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.model is None) == (self.scratch is None):
            raise ValueError("give either model (a hub id or a checkpoint folder) or scratch")
        return self


class StudentConfig(_Section):
    """The model that is made: a checkpoint of its own, or cut from the teacher."""

    model: str | None = None
    """A hub id or a checkpoint folder; None cuts the student from the teacher."""
    layers: int | list[int] | None = None
    """How many teacher layers to keep (spread evenly from the first), or which ones; None keeps half."""
    family: Literal["same", "distilbert"] = "same"
    """The student's architecture: the teacher's own, or DistilBERT (no token types, no pooler)."""

    @field_validator("layers", mode="before")
    @classmethod
    def _count_or_list(cls, layers: Any) -> Any:
        listed = layers if isinstance(layers, list) else [layers]
        if layers is not None and not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in listed):
            raise ValueError("must be a count such as 3 or a list of teacher layers such as [0, 2, 4]")
        if isinstance(layers, int) and layers < 1:
            raise ValueError("a student needs at least 1 layer")
        if isinstance(layers, list) and (not layers or sorted(set(layers)) != layers or layers[0] < 0):
            raise ValueError("must name teacher layers from 0 upwards, each once, in rising order")
        return layers

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.model is not None and self.layers is not None:
            raise ValueError("layers cut a student from the teacher; with model there is nothing to cut")
        return self


class DataConfig(_Section):
    """Labelled texts."""

    name: str
    """A hub id (`nyu-mll/glue:sst2`), a folder with `train` and `validation` files, or `python-docs`."""
    text_columns: list[str] | None = Field(default=None, min_length=1, max_length=2)
    """The column of the text, or two for pairs; None looks for the usual names."""
    label_column: str = "label"
    train_split: str = "train"
    eval_split: str = "validation"
    max_train_examples: PositiveInt | None = None
    max_eval_examples: PositiveInt | None = None


class DistillConfig(_Section):
    """How the student learns."""

    method: Literal["task"] = "task"
    temperature: PositiveFloat = 2.0
    alpha_kl: float = Field(default=0.45, ge=0)
    """Weight of the KL divergence from the teacher's softened answers (times temperature squared)."""
    alpha_ce: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy with the labels."""
    alpha_cos: float = Field(default=0.1, ge=0)
    """Weight of one minus the cosine between the last hidden states."""
    learning_rate: PositiveFloat = 5e-5
    batch_size: PositiveInt = 32
    gradient_accumulation: PositiveInt = 1
    epochs: PositiveFloat = 3
    max_steps: PositiveInt | None = None
    """Stop after this many optimiser steps, whatever epochs says."""
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    max_grad_norm: PositiveFloat = 1.0
    optimizer: Literal["adamw", "adafactor", "sgd"] = "adamw"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward passes; auto takes bfloat16 where the CPU or GPU computes in it."""
    log_every: PositiveInt = 50
    """Optimiser steps between two log lines."""
    eval_every: PositiveInt | None = None
    """Optimiser steps between two evaluations; None evaluates once per epoch."""
    checkpoint_every: PositiveInt | None = None
    """Optimiser steps between two checkpoints; None writes one at each evaluation."""
    keep_best_k: PositiveInt = 1
    """How many of the best checkpoints stay beside the newest; the best one becomes the student."""
    trackers: list[Literal["tensorboard", "wandb"]] = []
    allow_weak_teacher: bool = False
    """Go on with a teacher that is no better than always answering the most frequent label."""

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if self.alpha_kl == self.alpha_ce == self.alpha_cos == 0:
            raise ValueError("alpha_kl, alpha_ce and alpha_cos are all 0: there is nothing to learn from")
        return self


class ExportConfig(_Section):
    """Which files a bundle holds."""

    precisions: list[Precision] = Field(default=["fp32", "int8"], min_length=1)
    opset: int = Field(default=20, ge=18, le=23)
    calibration_texts: int = Field(default=256, ge=0)
    """How many training texts int8 may see to balance outliers; 0 quantises blindly."""

    @model_validator(mode="after")
    def _supported(self) -> Self:
        if "fp16" in self.precisions:
            raise ValueError("fp16 is a precision for GPUs that this version does not export; use fp32 and int8")
        return self


class BenchConfig(_Section):
    """What is measured, and for how long."""

    batch_sizes: list[PositiveInt] = Field(default=[1, 8], min_length=1)
    num_tokens: list[PositiveInt] = Field(default=[16, 128], min_length=1)
    threads: PositiveInt | None = None
    """Intra-op threads of every model; None takes the cores that this process may use."""
    precisions: list[Precision] | None = Field(default=None, min_length=1)
    """Which files of the bundles are measured; None takes those that both bundles have."""
    rounds: int = Field(default=12, ge=5)
    """How often all models take their turn in each cell; the intervals come from the rounds."""
    block_s: PositiveFloat = 0.25
    """How long one model's turn lasts at least, in seconds."""
    min_samples: int = Field(default=64, ge=11)
    """Calls per cell at least; p90 needs 64 (MLPerf's early-stopping rule)."""
    resamples: int = Field(default=2000, ge=200)
    """Bootstrap resamples behind every interval."""


class Recipe(_Section):
    """A whole run."""

    task: Literal["text-classification"] = "text-classification"
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


def build_recipe(
    values: Mapping[str, Any], *, overrides: Sequence[tuple[str, Any]] = (), origin: str = "the recipe"
) -> Recipe:
    """Check `values` with `overrides` (dotted key, value) laid over them.

    Raises:
        RecipeError: with every fault, one per line.
    """
    merged = _plain_copy(values)
    for key, value in overrides:
        _put(merged, key, value)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        faults = "\n".join(f"  {_describe(fault)}" for fault in error.errors())
        raise RecipeError(f"{origin} is not valid:\n{faults}") from error


def parse_section(name: str, values: Mapping[str, Any]) -> Any:
    """Check the values of one section of a recipe, such as `export`, given as flags.

    Raises:
        RecipeError: with every fault.
    """
    section = type(Recipe.model_fields[name].default)
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        faults = "; ".join(_describe({**fault, "loc": (name, *fault["loc"])}) for fault in error.errors())
        raise RecipeError(faults) from error


def load_recipe(name: str, *, overrides: Sequence[tuple[str, Any]] = ()) -> Recipe:
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
    return build_recipe(values, overrides=overrides, origin=f"recipe {name}")


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
    near = _nearest(name, recipe_names())
    raise RecipeError(
        f"there is no recipe {name!r}{near}; shipped are {', '.join(recipe_names())}, or name a YAML file"
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


def _describe(fault: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(str(fault['loc'][-1]), _known_keys(fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"{where}: is missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    shown = "" if isinstance(fault["input"], Mapping | BaseModel) else f" (it is {fault['input']!r})"
    return f"{where or 'recipe'}: {message[:1].lower()}{message[1:]}{shown}"


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
