"""Load and hash transformers checkpoints, with errors that say what to do. Needs torch and transformers."""

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from potstill.bundle import sha256_of
from potstill.errors import CheckpointError
from potstill.hub import check_name
from potstill.task import FEATURE_EXTRACTION, Task

# Everything that decides how a checkpoint answers; training states beside it do not.
_HASHED_SUFFIXES = (".safetensors", ".bin", ".json", ".txt", ".model")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model with its tokenizer and where they came from."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels in the order of the model's outputs."""
        names = self.model.config.id2label
        return tuple(str(names[number]) for number in range(self.model.config.num_labels))


def load_checkpoint(
    name: str, task: Task, *, tokenizer: str | None = None, new_head: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Load a hub id or folder as a model of `task`, in float32 and eval mode, with its tokenizer.

    Args:
        name: a hub id or checkpoint folder.
        task: says which class of model.
        tokenizer: a hub id or folder; None takes the model's own.
        new_head: settings of the configuration, such as labels, for an encoder whose head is yet to be trained; None
            refuses a checkpoint without a trained head.

    Raises:
        CheckpointError: if it does not exist, cannot be read, or has no trained head for the task.
    """
    _check_folder(name)
    check_name(name, "model")
    try:
        config = AutoConfig.from_pretrained(name, **(new_head or {}))
        model, loading = getattr(transformers, task.model_class).from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            # A head for other labels is made anew; whether it was more than the head is looked at below.
            ignore_mismatched_sizes=new_head is not None,
        )
    except Exception as error:  # whatever a broken file makes transformers, torch or safetensors raise
        raise CheckpointError(f"cannot load {name!r} for {task.name}: {_short(error)}") from error
    _check_weights(name, task, model, loading, head_may_be_new=new_head is not None)
    model.eval()
    return Checkpoint(name, model, load_tokenizer(tokenizer or name))


def load_config(name: str) -> PretrainedConfig:
    """Load the configuration of a hub id or checkpoint folder.

    Raises:
        CheckpointError: if there is none, or none that transformers reads.
    """
    _check_folder(name)
    check_name(name, "model")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot load the configuration of {name!r}: {_short(error)}") from error
    return config


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the fast tokenizer of a hub id or folder.

    Raises:
        CheckpointError: if there is none; a bundle needs tokenizer.json, which only fast tokenizers have.
    """
    check_name(name, "model", what="the tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot load the tokenizer of {name!r}: {_short(error)}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{name!r} has only a slow tokenizer; convert it to tokenizer.json first")
    return tokenizer


def count_parameters(model: torch.nn.Module) -> int:
    """Count the parameters of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def hash_checkpoint(name: str) -> str | None:
    """Return one SHA-256 over the files of a checkpoint folder by name and content; None for a hub id."""
    folder = Path(name)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.suffix in _HASHED_SUFFIXES):
        digest.update(f"{file.name} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def accepted_inputs(model: torch.nn.Module) -> list[str]:
    """Return which of the tokenizer's outputs a model takes, in transformers' order; DistilBERT has no token types."""
    parameters = inspect.signature(model.forward).parameters
    return [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in parameters]


def _check_folder(name: str) -> None:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{name} has no config.json, so it is not a transformers checkpoint")
    elif path.is_absolute() or name.startswith((".", "~")) or name.endswith("/") or name.count("/") > 1:
        raise CheckpointError(f"there is no checkpoint folder {name}; name a folder or a hub id")


def _check_weights(
    name: str, task: Task, model: PreTrainedModel, loading: dict[str, Any], *, head_may_be_new: bool
) -> None:
    """Refuse weights that would be random, except where they are no part of the answer or are about to be trained."""
    missing = sorted({*map(str, loading["missing_keys"]), *(str(key) for key, *_ in loading["mismatched_keys"])})
    if task is FEATURE_EXTRACTION:  # pooled by us, from the tokens
        missing = [key for key in missing if not key.startswith("pooler.")]
    encoder = f"{model.base_model_prefix}."
    lost = [key for key in missing if key.startswith(encoder) and ".pooler." not in key]
    if missing and (lost or not head_may_be_new):
        raise CheckpointError(
            f"{name} has no trained weights for {', '.join((lost or missing)[:4])}: it is not fine-tuned for "
            f"{task.name}; fine-tune it first (`potstill finetune`) or name another checkpoint"
        )


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
