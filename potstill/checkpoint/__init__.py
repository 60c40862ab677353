"""What a Hugging Face checkpoint is: its folder's facts, its tokenizer, and loading it. One place for every command."""

from potstill.extras import needing

with needing("distill"):
    from potstill.checkpoint.loading import (
        Checkpoint,
        accepted_inputs,
        count_parameters,
        hash_checkpoint,
        load_checkpoint,
        load_config,
        load_tokenizer,
    )

__all__ = [
    "Checkpoint",
    "accepted_inputs",
    "count_parameters",
    "hash_checkpoint",
    "load_checkpoint",
    "load_config",
    "load_tokenizer",
]
