"""The methods, as data: what each can distil, which settings it listens to, and their defaults with their sources."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_CLASSIFIERS = ("text-classification", "token-classification")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to distil."""

    name: str
    tasks: tuple[str, ...]
    settings: Mapping[str, Any]
    """Settings that only some methods have, with this one's defaults; None means that the method finds it out."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Where this method's training differs from the common defaults."""


_MASKING = {"mask_share": 0.15, "mask_smoothing": 0.0}
_MASKED_LM_TRAINING = {"learning_rate": 5e-4, "batch_size": 32, "gradient_accumulation": 8, "weight_decay": 0.0}

METHODS = {
    method.name: method
    for method in (
        Method(
            name="task",
            tasks=(*_CLASSIFIERS, "question-answering"),
            settings={"temperature": 2.0, "alpha_kl": 0.45, "alpha_ce": 1.0, "alpha_cos": 0.1},
        ),
        # DistilBERT, arXiv 1910.01108. The weights are those of the released model (transformers issue 2013), the
        # optimiser's are the training script's.
        Method(
            name="distilbert",
            tasks=("fill-mask",),
            settings={
                "preset": None,
                "temperature": 2.0,
                "alpha_kl": 5.0,
                "alpha_mlm": 2.0,
                "alpha_cos": 1.0,
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
                "alpha_attention": 1.0,
                "alpha_prediction": 1.0,
                "intermediate_share": 0.8,
                "augment": 0,
                "augment_model": None,
                "augment_share": 0.4,
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
    """Return the first method that can do a task, for commands that cut or fine-tune and need no more of it."""
    return next((method.name for method in METHODS.values() if task in method.tasks), None)


# The `distilbert` presets. `released` is what the published weights were trained with; `paper` is the paper's text,
# whose batches of up to 4000 texts come from accumulation.
PRESETS: Mapping[str, Mapping[str, Any]] = {
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
# Which of a 12-layer teacher's layers the presets keep.
PRESET_LAYERS = {"released": [0, 2, 4, 7, 9, 11], "paper": [0, 2, 4, 6, 8, 10]}


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `distill` with those of the chosen method and preset filled in.

    Raises:
        ValueError: if a setting is given to which the method does not listen.
    """
    given = {key: value for key, value in values.items() if value is not None}
    method = METHODS.get(given.get("method", "task"))
    if method is None:
        return dict(given)
    some_methods_only = {key for other in METHODS.values() for key in other.settings}
    ignored = sorted(key for key in given if key in some_methods_only and key not in method.settings)
    if ignored:
        raise ValueError(
            f"{ignored[0]} has no effect with method {method.name}, which listens to {', '.join(method.settings)}"
        )
    preset = PRESETS.get(str(given.get("preset")), {})
    return {**method.training, **method.settings, **preset, **given}
