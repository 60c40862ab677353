"""Hugging Face checkpoints: read a folder's metadata, load the tokenizer, load the model.

- `folder`: what the JSON files and safetensors headers say; needs no torch
- `sentence_transformers`: pooling, Dense layers and prompts of such a folder; needs no torch
- `tokenizer`: the tokenizer as tokenizer.json has it, which transformers 5 does not promise
- `model`: weights, configuration, sentence heads; needs torch and transformers

`folder` is imported at once, so that every command can refuse a checkpoint before torch is loaded; the rest lazily.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from potstill.checkpoint.folder import (
    TRAINING_REPORT,
    Folder,
    find_folder,
    fit_length,
    read_folder,
    task_of,
    task_of_architectures,
    trained_task,
    usable_positions,
)
from potstill.extras import require

if TYPE_CHECKING:
    from potstill.checkpoint.model import (
        Checkpoint,
        accepted_inputs,
        count_parameters,
        hash_checkpoint,
        load_checkpoint,
        load_config,
        load_tokenizer,
        reference_tokenizer,
        save_tokenizer,
    )

__all__ = [
    "TRAINING_REPORT",
    "Checkpoint",
    "Folder",
    "accepted_inputs",
    "count_parameters",
    "find_folder",
    "fit_length",
    "hash_checkpoint",
    "load_checkpoint",
    "load_config",
    "load_tokenizer",
    "read_folder",
    "reference_tokenizer",
    "save_tokenizer",
    "task_of",
    "task_of_architectures",
    "trained_task",
    "usable_positions",
]


def __getattr__(name: str) -> Any:
    """Import `potstill.checkpoint.model` at the first use of one of its names (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # The error names the extra to install, where an ImportError from deep inside would not.
    for module in ("torch", "transformers"):
        require(module, extra="distill")
    return getattr(import_module("potstill.checkpoint.model"), name)
