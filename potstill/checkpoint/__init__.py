"""What a Hugging Face checkpoint is: its folder's facts, its tokenizer, and loading it. One place for every command.

The facts need no torch, so checks can come before it; what loads a checkpoint is imported at its first use.
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
    """Import what needs torch and transformers when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module in ("torch", "transformers"):
        require(module, extra="distill")
    return getattr(import_module("potstill.checkpoint.model"), name)
