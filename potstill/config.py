"""A recipe: everything about a run in one YAML file, checked as a whole before anything starts.

Values come from four places, of which later ones win: the defaults of the sections below, the recipe file, the command
line's flags, and `--set a.b=c`. All faults are reported at once; for an unknown key the nearest known one is suggested.

The defaults of a method and of a preset lie between the sections' own and the recipe file: see `with_defaults`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

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
from pydantic_core import ErrorDetails

from potstill.bundle import Precision
from potstill.checkpoint import trained_task
from potstill.data import choose_splits
from potstill.errors import RecipeError
from potstill.messages import describe_fault, fault_message, nearest_name

DEFAULT_SEED = 42
_CLASSIFIERS = ("text-classification", "token-classification")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A distillation method: what it can distil, and the settings and training defaults that it has."""

    name: str
    tasks: tuple[str, ...]
    settings: Mapping[str, Any]
    """Defaults of the settings that this method has and not all others do; None: the method chooses the value."""
    training: Mapping[str, object] = field(default_factory=dict)
    """Training settings whose defaults differ from those of `DistillConfig`."""


# As in TinyBERT (arXiv 1909.10351, section 4.2).
_AUGMENTATION = {"augment": 0, "augment_model": None, "augment_share": 0.4}
# 15 % as in BERT (arXiv 1810.04805, section 3.1).
_MASKING = {"mask_share": 0.15, "mask_smoothing": 0.0}
_MASKED_LM_TRAINING = {"learning_rate": 5e-4, "batch_size": 32, "gradient_accumulation": 8, "weight_decay": 0.0}

METHODS = {
    method.name: method
    for method in (
        Method(
            name="task",
            tasks=(*_CLASSIFIERS, "question-answering"),
            settings={"temperature": 2.0, "alpha_kl": 0.45, "alpha_ce": 1.0, "alpha_cos": 0.1, **_AUGMENTATION},
        ),
        # DistilBERT, arXiv 1910.01108. The loss weights are those of the released model (transformers issue 2013), the
        # optimiser's settings those of the training script.
        Method(
            name="distilbert",
            tasks=("fill-mask",),
            settings={
                "preset": None,
                "temperature": 2.0,
                "alpha_kl": 5.0,
                "alpha_mlm": 2.0,
                "alpha_cos": 1.0,
                # Perplexity 95.1 after 60 steps against 94.8 with `all`, in 0.56 of the time (docs/log.md).
                "kl_positions": "masked",
                "extra_share": 0.0,
                **_MASKING,
            },
            training={
                **_MASKED_LM_TRAINING,
                "warmup_ratio": 0.05,
                "max_grad_norm": 5.0,
                "adam_beta2": 0.98,
                "adam_epsilon": 1e-6,
            },
        ),
        # MiniLMv2, arXiv 2012.15828, section 4.1.
        Method(
            name="minilmv2",
            tasks=("fill-mask", "feature-extraction"),
            settings={"teacher_layer": None, "relation_heads": 48, "relation_weights": [1.0, 1.0, 1.0]},
            training={"learning_rate": 6e-4, "batch_size": 256, "warmup_steps": 4000, "adam_epsilon": 1e-6},
        ),
        # TinyBERT, arXiv 1909.10351: general stage on running text, task stage on a classifier's data.
        Method(
            name="tinybert",
            tasks=("fill-mask", "feature-extraction", *_CLASSIFIERS),
            settings={
                "layer_map": None,
                "temperature": 1.0,
                "alpha_embedding": 1.0,
                "alpha_hidden": 1.0,
                # 1 as in the paper, although it drowns the other losses: lower it first (docs/log.md, "Distil").
                "alpha_attention": 1.0,
                "alpha_prediction": 1.0,
                "intermediate_share": 0.8,
                **_AUGMENTATION,
            },
        ),
        # MobileBERT, arXiv 2004.02984; weights of the layer terms and T = 1 as in the authors' configuration.
        Method(
            name="mobilebert",
            tasks=("fill-mask",),
            settings={
                "temperature": 1.0,
                "alpha_feature": 1.0,
                "alpha_attention": 1.0,
                "progressive_share": 0.33,
                "alpha_kl": 0.5,
                "alpha_mlm": 0.5,
                **_MASKING,
            },
            training=_MASKED_LM_TRAINING,
        ),
        # As sentence-transformers' layer reduction and embedding distillation.
        Method(
            name="embedding",
            tasks=("feature-extraction",),
            settings={"pooling": None, "alpha_cos": 1.0, "alpha_mse": 0.0},
            training={"learning_rate": 1e-4, "batch_size": 64},
        ),
    )
}


def method_for(task: str | None) -> str | None:
    """Return the first method for a task, for commands that only cut or fine-tune but must build a valid recipe."""
    return next((method.name for method in METHODS.values() if task in method.tasks), None)


# Presets of `distilbert`: `released` is what the published weights were trained with, `paper` what the paper says (its
# batches of up to 4000 texts are 125 accumulated batches of 32).
PRESETS: Mapping[str, Mapping[str, object]] = {
    "released": {"temperature": 2.0, "alpha_kl": 5.0, "alpha_mlm": 2.0, "alpha_cos": 1.0, "mask_smoothing": 0.7},
    "paper": {
        "temperature": 3.0,
        "alpha_kl": 0.5,
        "alpha_mlm": 2.0,
        "alpha_cos": 1.0,
        "learning_rate": 5e-4,
        "batch_size": 32,
        "gradient_accumulation": 125,
    },
}
# The layers of a 12-layer teacher, from 0, that the presets keep; the released model was not cut evenly.
PRESET_LAYERS = {"released": [0, 2, 4, 7, 9, 11], "paper": [0, 2, 4, 6, 8, 10]}


def with_defaults(values: Mapping[str, object]) -> dict[str, Any]:
    """Return the settings of `distill` with the defaults of the chosen method and preset filled in.

    Raises:
        ValueError: if a setting is given that the method does not have; pydantic turns it into a fault.
    """
    given = {key: value for key, value in values.items() if value is not None}
    method = METHODS.get(str(given.get("method", "task")))
    if method is None:  # pydantic reports an unknown method itself
        return dict(given)
    some_methods_only = {key for other in METHODS.values() for key in other.settings}
    ignored = sorted(key for key in given if key in some_methods_only and key not in method.settings)
    if ignored:
        raise ValueError(
            f"{ignored[0]} has no effect with method {method.name}, which listens to {', '.join(method.settings)}"
        )
    preset = PRESETS.get(str(given.get("preset")), {})
    # Later ones win: what is given over the preset, and the preset over the method.
    return {**method.training, **method.settings, **preset, **given}


# The sections of a recipe: what can be set, with defaults, limits, and what each setting means

Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Runner = Literal[
    "onnxruntime-cpu",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "openvino-cpu",
    "torch-cpu",
    "torch-cpu-compiled",
    "torch-cuda",
    "torch-cuda-compiled",
]
TaskName = Literal[
    "text-classification", "token-classification", "question-answering", "fill-mask", "feature-extraction"
]


class Section(BaseModel):
    """One part of a recipe: unknown keys are faults, and nothing changes after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


_Section = TypeVar("_Section", bound=Section)


class ScratchConfig(Section):
    """A teacher that is trained on the spot, with a WordPiece tokenizer of its own."""

    num_layers: PositiveInt = 4
    """Layers of the encoder."""
    hidden_size: PositiveInt = 128
    """Its width; a multiple of num_heads."""
    num_heads: PositiveInt = 2
    """Attention heads of each layer."""
    intermediate_size: PositiveInt = 512
    """Width of the feed-forward layers."""
    vocab_size: int = Field(default=8000, ge=200)
    """Pieces of the tokenizer, which is trained on the texts."""
    learning_rate: PositiveFloat = 5e-4
    """The highest learning rate of its training."""
    batch_size: PositiveInt = 32
    """Texts of a batch in its training."""
    epochs: PositiveFloat = 4
    """Passes over the data in its training."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        return self


class TeacherConfig(Section):
    """What teaches: a model, several whose answers are averaged, or a column of the data with a model's answers."""

    model: str | None = None
    """A hub id or a checkpoint folder."""
    scratch: ScratchConfig | None = None
    """Train one on the spot instead."""
    column: str | None = None
    """Take the answers from this column of the data instead: probabilities, labels, or vectors (docs/data.md)."""
    ensemble: list[str] = []
    """Further models, whose probabilities are averaged with the model's. Labels are matched by name, and each reads
    with its own tokenizer."""
    stored: bool | None = None
    """Ask the model once, before the training, and not at every step: that costs less from the second pass on, and lets
    it have another tokenizer than the student. None does so with several models alone."""

    @property
    def is_stored(self) -> bool:
        """Whether all answers are there before the training."""
        return self.column is not None or bool(self.ensemble) or self.stored is True

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if [self.model, self.scratch, self.column].count(None) != 2:
            raise ValueError("give one of model (a hub id or a checkpoint folder), scratch or column")
        if self.ensemble and self.column is not None:
            raise ValueError(
                "an ensemble is averaged with a model, and a column takes the place of models; give one of both"
            )
        if self.stored is False and self.is_stored:
            raise ValueError("the answers of a column, or of several models, are always stored; leave stored out")
        return self


def parse_vocabulary(asked: object) -> tuple[int | None, int | None]:
    """Return the size that a vocabulary is trimmed to, and the least count of a piece; both None for `task`.

    Raises:
        ValueError: if it is none of `task`, a size, and `min-count=N`.
    """
    found = re.fullmatch(r"(?:(min-count)=)?([1-9]\d*)", str(asked))
    if found is None and asked != "task":
        raise ValueError("must be task, a size such as 9000, or min-count=5 for the pieces that occur 5 times or more")
    if found is None:
        return None, None
    number = int(found[2])
    return (None, number) if found[1] else (number, None)


class StudentConfig(Section):
    """The model that is made: cut from the teacher, or from a checkpoint of its own."""

    model: str | None = None
    """A hub id or a checkpoint folder to start from, such as an encoder that was never fine-tuned, which gets a new
    head for the task; None starts from the teacher."""
    layers: int | list[int] | None = None
    """How many layers to keep (spread evenly from the first), or which ones; None keeps half of the teacher's, and all
    of `model`."""
    best_of: bool = False
    """Try several choices of so many layers on a few batches, and keep the one that scores best untrained."""
    family: Literal["same", "distilbert", "mobilebert"] = "same"
    """The student's architecture: the teacher's own, DistilBERT (no token types, no pooler), or MobileBERT."""
    hidden_size: PositiveInt | None = None
    """Width of a narrower student; None keeps the teacher's."""
    num_heads: PositiveInt | None = None
    """Attention heads of a narrower student; None keeps the width of a head."""
    intermediate_size: PositiveInt | None = None
    """Width of a narrower student's feed-forward layers; None scales it with hidden_size."""
    start: Literal["copied", "random"] = "copied"
    """Whether the student has the weights of what it is cut from, or its shape alone and random weights."""

    vocabulary: int | str | None = None
    """Trim the vocabulary to the training texts: `task` (their tokens become 5 % more at most), a size such as 9000, or
    `min-count=5` for the pieces that occur so often; None keeps all of it."""
    other_data: str | None = None
    """Texts of another domain, to tell what a trimmed vocabulary costs there; None is Python's documentation."""

    @field_validator("vocabulary", mode="before")
    @classmethod
    def _known_vocabulary(cls, vocabulary: Any) -> Any:
        if vocabulary is None:
            return None
        size, _ = parse_vocabulary(vocabulary)
        return vocabulary if size is None else size

    @field_validator("layers", mode="before")
    @classmethod
    def _count_or_list(cls, layers: Any) -> Any:
        listed = layers if isinstance(layers, list) else [layers]
        # A bool is an int: `layers: true` would otherwise be one layer.
        if layers is not None and not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in listed):
            raise ValueError("must be a count such as 3 or a list of teacher layers such as [0, 2, 4]")
        if isinstance(layers, int) and layers < 1:
            raise ValueError("a student needs at least 1 layer")
        if isinstance(layers, list) and (not layers or sorted(set(layers)) != layers or layers[0] < 0):
            raise ValueError("must name teacher layers from 0 upwards, each once, in rising order")
        return layers

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.best_of and not isinstance(self.layers, int):
            raise ValueError("best_of needs a count of layers to choose, such as layers=3")
        if self.best_of and self.start == "random":
            raise ValueError("best_of scores what layers know before training, and random ones know nothing")
        if self.hidden_size is None and (self.num_heads or self.intermediate_size):
            raise ValueError("num_heads and intermediate_size shape a narrower student; set hidden_size as well")
        return self


class DataConfig(Section):
    """Labelled texts, or running text for the masked-language methods."""

    name: str
    """A hub id (`nyu-mll/glue:sst2`), a folder with `train` and `validation` files, a file, `python-docs`, or
    `python-functions`."""
    text_columns: list[str] | None = Field(default=None, min_length=1, max_length=2)
    """The column of the text, or two for pairs; None looks for the usual names."""
    label_column: str | None = None
    """The column of the label, or `a,b,c` if each label has one, or `none` if texts have no label for `distill`; None
    looks for the task's usual names."""
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    """What a text classifier's labels are, to fine-tune one; None takes what they look like, and a model that is
    fine-tuned knows."""
    packing: Literal["none", "blocks", "texts"] = "none"
    """Running text: one text per row in batches of similar length, full blocks across texts, or whole texts packed."""
    streaming: bool = False
    """Read a hub data set as a stream and keep only max_train_examples rows of it."""
    num_proc: PositiveInt | None = None
    """Processes that tokenise running text; None takes the cores that this process may use."""
    labels: list[str] | None = Field(default=None, min_length=2)
    """The labels in the order of their ids, if neither a model nor the data names them."""
    unlabelled: str | None = None
    """A further data set, from whose texts the student learns what its teacher answers."""
    train_split: str = "train"
    """The split that is learned from."""
    eval_split: str = "validation"
    """The split that is scored on, and that picks the best checkpoint."""
    max_train_examples: PositiveInt | None = None
    """Learn from so many rows at most; None takes all."""
    max_eval_examples: PositiveInt | None = None
    """Score on so many rows at most; None takes all."""


class DistillConfig(Section):
    """How the student learns; what only some methods have is None with the others."""

    method: Literal["task", "distilbert", "minilmv2", "tinybert", "mobilebert", "embedding"] = "task"
    """What the student learns from its teacher: see docs/distill.md."""
    preset: Literal["released", "paper"] | None = None
    """For `distilbert`: the settings of the released weights, or those of the paper's text."""
    temperature: PositiveFloat | None = None
    """Divides logits before they are compared; the KL divergence is multiplied by its square."""
    alpha_kl: Weight | None = None
    """Weight of the KL divergence from the teacher's softened answers (times temperature squared)."""
    alpha_ce: Weight | None = None
    """Weight of the loss of the labels (cross-entropy; squared error for regression)."""
    alpha_mlm: Weight | None = None
    """Weight of the cross-entropy with the masked tokens."""
    alpha_cos: Weight | None = None
    """Weight of one minus the cosine between the last hidden states, or between the embeddings of texts."""
    alpha_mse: Weight | None = None
    """Weight of the squared distance between the embeddings of texts."""
    alpha_embedding: Weight | None = None
    """Weight of the squared distance between the outputs of the embedding layers."""
    alpha_hidden: Weight | None = None
    """Weight of the squared distance between the hidden states of mapped layers."""
    alpha_attention: Weight | None = None
    """Weight of the attention of mapped layers: squared distance of scores (TinyBERT), KL of shares (MobileBERT)."""
    alpha_prediction: Weight | None = None
    """Weight of the teacher's answers in TinyBERT's last stage."""
    alpha_feature: Weight | None = None
    """Weight of MobileBERT's feature maps."""
    kl_positions: Literal["masked", "all"] | None = None
    """Where the teacher's word predictions are compared: at the masked positions, or at every token."""
    extra_share: Share | None = None
    """With kl_positions masked: the share of the other positions that is sampled as well."""
    mask_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the tokens to predict; of these 80 % become [MASK], 10 % a random token, 10 % stay."""
    mask_smoothing: float | None = Field(default=None, ge=0)
    """Draw rare tokens more often, by count to the power of minus this; 0 draws all alike, DistilBERT used 0.7."""
    teacher_layer: int | None = Field(default=None, ge=0)
    """For `minilmv2`: the teacher layer, from 0; None takes the last, of 24 and more the 21st."""
    relation_heads: PositiveInt | None = None
    """For `minilmv2`: into how many heads the relations of teacher and student are cut, so that widths may differ."""
    relation_weights: list[Weight] | None = Field(default=None, min_length=3, max_length=3)
    """Weights of the relations between queries, between keys, and between values."""
    layer_map: list[int] | None = None
    """For `tinybert`: how many teacher layers each student layer stands for, such as [2, 4, 6]; None spreads evenly."""
    intermediate_share: Share | None = None
    """For `tinybert` on a classifier: the share of the training before the answers are learned."""
    augment: int | None = Field(default=None, ge=0)
    """How many altered copies of each text are added to the data, for the teacher to answer; they get no label."""
    augment_model: str | None = None
    """The masked-language model that proposes other words."""
    augment_share: Share | None = None
    """The probability with which a word is replaced."""
    progressive_share: Share | None = None
    """For `mobilebert`: the share of the training in which layers are transferred, one after the other."""
    pooling: Literal["mean", "cls"] | None = None
    """For `embedding`: how the student makes one vector of a text's tokens; None does as the teacher, whose folder
    says it if it is one of sentence-transformers and which else takes the mean."""
    learning_rate: PositiveFloat = 5e-5
    """The highest learning rate; it rises during the warm-up and falls to 0 in a straight line."""
    batch_size: PositiveInt = 32
    """Rows that a process takes at once."""
    gradient_accumulation: PositiveInt = 1
    """Batches before an optimiser step."""
    epochs: PositiveFloat = 3
    """Passes over the data; a fraction stops within one."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimiser steps, whatever epochs says."""
    weight_decay: float = Field(default=0.01, ge=0)
    """The optimiser's weight decay."""
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of warm-up instead of warmup_ratio; never more than a tenth of all."""
    max_grad_norm: PositiveFloat = 1.0
    """Longer gradients are cut to this length."""
    optimizer: Literal["adamw", "adafactor", "sgd"] = "adamw"
    """The optimiser."""
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    """Adam's decay of squared gradients."""
    adam_epsilon: PositiveFloat = 1e-8
    """Adam's epsilon."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward passes; auto takes bfloat16 where the CPU or GPU computes in it."""
    compile: bool = False
    """Compile the student with torch.compile; it needs a C++ compiler, and minutes before the first step."""
    log_every: PositiveInt = 50
    """Optimiser steps between two log lines."""
    eval_every: PositiveInt | None = None
    """Optimiser steps between two evaluations; None evaluates once per epoch."""
    checkpoint_every: PositiveInt | None = None
    """Optimiser steps between two checkpoints; None writes one at each evaluation."""
    keep_best_k: PositiveInt = 1
    """How many of the best checkpoints stay beside the newest; the best one becomes the student."""
    trackers: list[Literal["tensorboard", "wandb"]] = []
    """Where the training's curves are also sent to (`potstill[trackers]`)."""
    controls: bool = False
    """Also train the same student without its teacher, and report it beside the untrained one."""
    allow_weak_teacher: bool = False
    """Go on with a teacher that is no better than an answer that ignores the text."""

    # Before fields are checked: defaults of methods must pass the same limits as values that are given.
    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        return with_defaults(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _compilable(self) -> Self:
        from_inside = self.method in {"minilmv2", "tinybert", "mobilebert"} or (
            self.method == "task" and self.alpha_cos
        )
        if self.compile and from_inside:
            raise ValueError(
                f"compile cannot be used with method {self.method}, which takes states from inside the model"
                + (" unless alpha_cos is 0" if self.method == "task" else "")
            )
        return self

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        weights = {key: value for key, value in self.settings().items() if key.startswith("alpha_")}
        if weights and not any(weights.values()):
            raise ValueError(f"{', '.join(weights)} are all 0: there is nothing to learn from")
        return self

    def settings(self) -> dict[str, Any]:
        """Return the settings that belong to the chosen method."""
        return {key: getattr(self, key) for key in METHODS[self.method].settings}


class ExportConfig(Section):
    """Which files a bundle holds, and what they must pass."""

    precisions: list[Precision] = Field(default=["fp32", "int8"], min_length=1)
    """The files to write: see docs/export.md."""
    attention: Literal["fused", "onnx"] = "fused"
    """The operator of every layer: onnxruntime's own, or the standard's of opset 23, which other runtimes know too."""
    opset: int | None = Field(default=None, ge=18, le=23)
    """None takes 20, or 23 for the standard operator."""
    unpad: bool | None = None
    """Leave padding out of the products of fp32 and int8-static, so that batches cost what their tokens cost. Not for
    engines that must know every shape beforehand; None does so with fused attention, which is onnxruntime's own."""
    first_token_only: bool = True
    """Where the head reads the first token alone, compute the last layer for it alone; other heads are not touched."""
    max_length: PositiveInt | None = None
    """Longest text in tokens; None takes the tokenizer's own, at most the model's positions."""
    allow_unfused: bool = False
    """Publish a graph in which a layer has no fused attention operator."""
    pooling: Literal["mean", "cls", "max"] | None = None
    """One vector per text within a feature extractor's graph; None does what a sentence-transformers folder says."""
    normalize: bool | None = None
    """Whether that vector has length 1; None does what the folder says, and elsewhere yes."""
    token_vectors: bool = True
    """Whether a graph that makes one vector per text gives those of all tokens, too."""
    embedding_bits: Literal[4, 8] = 8
    """Bits of an int8 file's table of words. 4 takes half the bytes: blocks of 32 numbers with a scale each."""
    calibration_texts: int = Field(default=256, ge=0)
    """How many texts int8 may see to balance outliers and, if static, to fix its scales; 0 quantises blindly."""
    judged_texts: int = Field(default=1000, ge=1)
    """How many texts int8 is held against fp32 on."""
    # 1 % is strict without labels: docs/log.md, "Export".
    max_loss: float = Field(default=0.01, gt=0, lt=1)
    """The share of the score, or without labels of the answers, that a quantised file may lose."""
    max_label_loss: float | None = Field(default=None, gt=0, le=1)
    """By how much the recall of any label, or type of entity, may fall in a quantised file: 0.05 is 5 points, and 1
    refuses nothing. Only a fall beyond chance is refused. None takes five times max_loss."""
    max_fp32_layers: int = Field(default=4, ge=0)
    """How many layers may go back to fp32 to hold that."""
    tune: bool = False
    """Try the recipes that matter on this machine and keep the fastest that holds."""
    rounds: int = Field(default=5, ge=0)
    """Turns that fp32 and int8 take to be compared in speed; 0 leaves it unmeasured."""
    check_engines: list[Literal["openvino"]] = []
    """Other engines on which every file must hold as well; onnxruntime is always one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.attention == "onnx" and self.opset is not None and self.opset < 23:
            raise ValueError(f"attention onnx is standard from opset 23 on, and opset is {self.opset}; leave it out")
        if "int8-static" in self.precisions and not self.calibration_texts:
            raise ValueError("int8-static needs texts to fix its scales; set calibration_texts above 0")
        if self.embedding_bits == 4 and not {"int8", "int8-static"} & set(self.precisions):
            raise ValueError(
                f"embedding_bits is 4, which is of int8 files, and precisions are {', '.join(self.precisions)}; "
                "add int8 or int8-static, or leave it out"
            )
        if self.tune and self.rounds < 2:
            raise ValueError("tune compares speeds, so rounds must be at least 2")
        if self.rounds == 1:
            raise ValueError(
                "rounds is 1, and an interval needs 2 turns of each file; set 2 or more, or 0 for no speeds"
            )
        return self

    @property
    def label_loss(self) -> float:
        """By how much the recall of any label may fall: its own setting, else what goes with max_loss."""
        # Of nine labels of one size, one that loses 5 points costs the score half a point.
        return min(1.0, 5 * self.max_loss) if self.max_label_loss is None else self.max_label_loss


class BenchConfig(Section):
    """What is measured, and for how long."""

    batch_sizes: list[PositiveInt] = Field(default=[1, 8], min_length=1)
    """Texts at once, in the grid of latencies."""
    num_tokens: list[PositiveInt] = Field(default=[16, 128], min_length=1)
    """Lengths of the texts in tokens, in the grid of latencies."""
    threads: PositiveInt | None = None
    """Intra-op threads of every model; None takes the cores that this process may use."""
    precisions: list[Literal["fp32", "fp16", "bf16", "int8", "int8-static"]] | None = Field(default=None, min_length=1)
    """fp32, fp16, bf16, int8, int8-static; None takes what each bundle has, and fp32 of a checkpoint."""
    runners: list[Runner] | None = Field(default=None, min_length=1)
    """Which engines run the models; None takes onnxruntime on the CPU for bundles, torch on the CPU for checkpoints."""
    # 12 rounds and 6 launches, with 2 more where intervals are wide: docs/log.md, "Bench", "A/A and A/B".
    rounds: int = Field(default=12, ge=5)
    """How often all models take their turn in each cell; the intervals come from the rounds."""
    launches: int = Field(default=6, ge=1)
    """How often all processes are started anew during the rounds, for 8 to 10 s each: a process keeps its own 0.5 to
    2 % for life."""
    extra_launches: int = Field(default=2, ge=0)
    """How many more launches are made for the cells whose intervals are widest, if wider than 2.5 % on either side. Of
    20 runs of a bundle against itself, all were within 3 % with them, and 17 without."""
    block_s: PositiveFloat = 0.25
    """How long one model's turn lasts at least, in seconds."""
    budget_s: PositiveFloat | None = None
    """Seconds for the whole bench, from its start to the report. What does not fit is left out, the least important
    first, and what is left over goes into rounds where the intervals are widest. None makes `rounds` of each."""
    again: bool = True
    """Whether the baseline runs a second time beside itself, which shows how small a difference can be seen."""
    peak: bool = True
    """Whether a bare matrix product takes its turns among the models, which shows what this machine can do at best."""
    max_repeats: int = Field(default=2, ge=0)
    """How often a cell that the machine disturbed is measured anew."""
    warm_up_s: PositiveFloat = 3.0
    """How long a cell may take at most to become stationary."""
    realistic: bool = True
    """Whether the data's own texts are a load too, with and without tokenisation."""
    realistic_texts: int = Field(default=128, ge=1)
    """How many of the data's texts that load has."""
    throughput_batch_sizes: list[PositiveInt] = [1, 16]
    """Texts at once, to measure the throughput; empty measures none."""
    throughput_tokens: PositiveInt = 64
    """Length of the texts, in tokens, whose throughput is measured."""
    callers: list[PositiveInt] = Field(default=[1, 4], min_length=1)
    """Threads of one process that ask at once."""
    thread_scaling: bool = True
    """Whether one thread, two, four and so on up to all cores are compared."""
    compressed: bool = True
    """Whether the files are compressed too, to tell how small a download is; it takes 1 to 2 seconds for each."""
    cold_starts: int = Field(default=6, ge=0)
    """Fresh processes per model; 0 measures none."""
    timeout_s: PositiveFloat = 120.0
    """A model that does not answer for so long has hung, and is restarted for the next cell."""
    resamples: int = Field(default=2000, ge=200)
    """Bootstrap resamples behind every interval."""


class Recipe(Section):
    """A whole run."""

    task: TaskName = "text-classification"
    """What the models answer, as the hub names it; left out, it is the teacher's."""
    metric: str | None = None
    """The score that picks the best checkpoint and is reported first; None takes the task's own."""
    teacher: TeacherConfig
    student: StudentConfig = StudentConfig()
    data: DataConfig
    tokenizer: str | None = None
    """A hub id or folder; None takes the teacher's."""
    max_length: int = Field(default=128, ge=8)
    """Longest text in tokens; more is cut."""
    seed: int = Field(default=DEFAULT_SEED, ge=0)
    """Of the weights that are drawn, the order of the batches and the masks."""
    distill: DistillConfig = DistillConfig()
    export: ExportConfig = ExportConfig()
    bench: BenchConfig = BenchConfig()
    output_dir: str | None = None
    """Where the run writes; `--out` on the command line wins."""
    resume: bool = False
    """Go on with what output_dir holds of the same recipe; `--resume` on the command line."""

    # Before fields are checked, since the method's own default does not say that nobody asked for it.
    @model_validator(mode="before")
    @classmethod
    def _stored_answers_have_no_states(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        teacher, settings = values.get("teacher"), values.get("distill", {})
        if not isinstance(teacher, Mapping) or not isinstance(settings, Mapping):
            return values
        stored = teacher.get("column") or teacher.get("ensemble") or teacher.get("stored")
        if not stored or settings.get("method", "task") != "task" or settings.get("alpha_cos") is not None:
            return values
        return {**values, "distill": {**settings, "alpha_cos": 0.0}}

    @model_validator(mode="after")
    def _answers_fit(self) -> Self:
        teacher, method = self.teacher, self.distill.method
        if teacher.column is not None and self.student.model is None:
            raise ValueError("a column of answers has no layers to cut a student from; set student.model to an encoder")
        if self.distill.augment and teacher.column is not None:
            raise ValueError("augment makes new texts, of which a column says nothing; it takes a teacher.model")
        if self.distill.augment and self.task not in ("text-classification", "fill-mask", "feature-extraction"):
            raise ValueError(
                f"augment alters plain texts and pairs, whose words have no place of their own, not {self.task}"
            )
        if teacher.is_stored and method != "task" and not (method == "embedding" and teacher.column is not None):
            given = "column" if teacher.column is not None else "ensemble" if teacher.ensemble else "stored"
            raise ValueError(f"method {method} learns from inside its teacher, so teacher.{given} is for method task")
        if teacher.is_stored and self.distill.alpha_cos and method == "task":
            raise ValueError("alpha_cos compares hidden states, and stored answers have none; leave it out")
        is_labelled = self.task in _CLASSIFIERS and method in ("task", "tinybert")
        if self.task == "question-answering" and teacher.is_stored:
            raise ValueError(
                "an answer is a place among one tokenizer's tokens, so a teacher of questions is asked live"
            )
        if self.data.unlabelled is not None and not is_labelled:
            why = "questions need their answers" if self.task == "question-answering" else f"{method} reads no labels"
            raise ValueError(f"data.unlabelled is for classifiers and tags; {why}")
        return self

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
        if self.task == "fill-mask" and self.export.embedding_bits == 4:
            raise ValueError("export.embedding_bits is 4, and fill-mask needs the table of words in 8; leave it out")
        return self

    @property
    def student_layers(self) -> int | list[int] | None:
        """Which layers the student keeps: its own setting, else the preset's."""
        if self.student.layers is None and self.distill.preset is not None:
            return PRESET_LAYERS[self.distill.preset]
        return self.student.layers


# Reading and checking recipes


def with_splits(recipe: Recipe) -> Recipe:
    """Return the recipe with splits such that no score is taken on training rows, see `potstill.data.choose_splits`."""
    data = recipe.data
    train, evaluation = choose_splits(data.name, train=data.train_split, evaluation=data.eval_split)
    if (train, evaluation) == (data.train_split, data.eval_split):
        return recipe
    return recipe.model_copy(update={"data": data.model_copy(update={"train_split": train, "eval_split": evaluation})})


def build_recipe(
    values: Mapping[str, object],
    *,
    overrides: Sequence[tuple[str, object]] = (),
    origin: str = "the recipe",
    flags: Mapping[str, str] | None = None,
) -> Recipe:
    """Build a recipe from nested values, with overrides laid over them.

    Args:
        values: sections and settings, as in a recipe file.
        overrides: (dotted key, value) pairs, such as ("distill.epochs", 1); they win over `values`, later over earlier.
        origin: what an error message begins with; empty lists the faults alone.
        flags: the command-line options that dotted keys have, for messages.

    Raises:
        RecipeError: with every fault, one per line (in one line if `origin` is empty).
    """
    # Copied in depth: overrides must not change the caller's recipe.
    merged = _copy_nested(values)
    for key, value in overrides:
        _set_dotted(merged, key, value)
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


def _infer_task(values: Mapping[str, object]) -> str | None:
    """Return the teacher's own task if the method has it, else the method's only task; None takes the default."""
    teacher, student, settings = (
        part if isinstance(part := values.get(key), Mapping) else {} for key in ("teacher", "student", "distill")
    )
    method = METHODS.get(settings.get("method") or "task")
    # Without a model that teaches, the one to start from says it.
    model = teacher.get("model") or (student.get("model") if teacher.get("column") else None)
    trained = trained_task(model) if isinstance(model, str) else None
    if method is None:
        return None
    if trained in method.tasks:
        return trained
    return method.tasks[0] if len(method.tasks) == 1 else None


def parse_section(
    section: type[_Section], values: Mapping[str, object], *, flags: Mapping[str, str] | None = None
) -> _Section:
    """Build one section of a recipe from values that were given as options.

    Args:
        section: its class, such as `ExportConfig`.
        values: its settings by field name.
        flags: the command-line options that dotted keys such as `export.opset` have, for messages.

    Raises:
        RecipeError: with every fault.
    """
    name = next(key for key, field in Recipe.model_fields.items() if field.annotation is section)
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        faults = error.errors()
        # As keys of a whole recipe, so that faults of a section and of a recipe are described alike.
        for fault in faults:
            fault["loc"] = (name, *fault["loc"])
        raise RecipeError("; ".join(_describe(fault, flags or {}, section=name) for fault in faults)) from error


def load_recipe(
    name: str, *, overrides: Sequence[tuple[str, object]] = (), flags: Mapping[str, str] | None = None
) -> Recipe:
    """Load a shipped recipe by its name, or a YAML file, with `overrides` laid over it as in `build_recipe`.

    Raises:
        RecipeError: if there is no such recipe, it is not YAML, or it is not valid.
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
    file = Path(name).expanduser()
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(f"{name} is not UTF-8 at byte {error.start}, so it is no recipe") from error
    if file.is_dir():
        raise RecipeError(f"{name} is a folder; a recipe is a YAML file, or one of {', '.join(recipe_names())}")
    near = nearest_name(name, recipe_names())
    meant = f"; did you mean {near!r}?" if near else ""
    raise RecipeError(
        f"there is no recipe {name!r}{meant}; shipped are {', '.join(recipe_names())}, or name a YAML file"
    )


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    folder = resources.files("potstill").joinpath("recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def parse_setting(text: str) -> tuple[str, object]:
    """Split a `--set` argument into its dotted key and its value, which is read as YAML.

    Raises:
        RecipeError: if it is not of the form a.b=c, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not all(part.strip() for part in key.split(".")):
        raise RecipeError(f"--set {text!r} is not of the form section.key=value, such as distill.epochs=1")
    # PyYAML follows YAML 1.1, in which 5e-5 is a string; pydantic makes it a number.
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {text!r}: {value!r} is not a YAML value") from error


def to_yaml(recipe: Recipe) -> str:
    """Return a recipe as YAML with every value, defaults included."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _copy_nested(values: Mapping[str, object]) -> dict[str, Any]:
    """Copy nested mappings; lists are shared, since `_set_dotted` replaces them whole."""
    return {key: _copy_nested(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _set_dotted(values: dict[str, Any], key: str, value: object) -> None:
    """Set `a.b` in nested dicts; a section that is missing or no mapping is replaced by a new one."""
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        if not isinstance(inner, dict):
            inner = values[section] = {}
        values = inner
    values[last] = value


def _describe(fault: ErrorDetails, flags: Mapping[str, str], *, section: str = "") -> str:
    """Return a validation fault as one line, which names the option in place of the key where there is one."""
    where = ".".join(str(part) for part in fault["loc"])
    # A fault in an entry of a list is named by the list's option.
    flag = flags.get(where) or flags.get(".".join(str(part) for part in fault["loc"] if not isinstance(part, int)))
    value = fault["input"]
    if fault["type"] == "extra_forbidden" or not flag:
        if flags and where == section and fault["type"] not in ("extra_forbidden", "missing"):  # of several options
            return fault_message(fault)
        return describe_fault(fault, Recipe, whole="recipe")
    if isinstance(value, Mapping | BaseModel):
        return f"{flag} is missing" if fault["type"] == "missing" else f"{flag}: {fault_message(fault)}"
    shown = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{flag}{'=' if flag.startswith('--set ') else ' '}{shown}: {fault_message(fault)}"
