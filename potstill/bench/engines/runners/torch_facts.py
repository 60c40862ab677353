"""What a checkpoint is, told by a process of its own.

    python -m potstill.bench.engines.runners.torch_facts CHECKPOINT

The last line of stdout is JSON: the fields of `report_schema.Model`, and `config` as transformers has it.
"""

import json
import sys
from typing import Any

from potstill.checkpoint.folder import read_folder
from potstill.checkpoint.model import (
    count_parameters,
    hash_checkpoint,
    load_checkpoint,
    load_config,
    load_sentence_encoder,
)
from potstill.errors import CheckpointError, PotstillError
from potstill.tasks import FEATURE_EXTRACTION, REGRESSION, TASKS, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION

# A tokenizer without a limit says 1e30; a text of this length is what every family takes.
_LONGEST = 512


def facts(name: str) -> dict[str, Any]:
    """Return what the bench needs to know of a hub id or checkpoint folder.

    Raises:
        CheckpointError: if it cannot be loaded, or has no head of a task that potstill knows.
    """
    config = load_config(name)
    folder = read_folder(name)
    task = folder.task
    if task is None:
        named = ", ".join(config.architectures or []) or "model without a name"
        raise CheckpointError(f"{name} is a {named}, which does none of {', '.join(TASKS)}")
    head = None
    if task is FEATURE_EXTRACTION:
        loaded, head = load_sentence_encoder(name)
    else:
        loaded = load_checkpoint(name, task)
    model, problem = loaded.model, None
    if task is TEXT_CLASSIFICATION:
        problem = config.problem_type or (REGRESSION if config.num_labels == 1 else None)
    encoder = getattr(model, model.base_model_prefix, model)
    return {
        "task": task.name,
        "problem_type": problem,
        "labels": list(loaded.label_names) if task in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION) else [],
        "parameters": count_parameters(model) + (count_parameters(head) if head is not None else 0),
        "encoder_parameters": count_parameters(encoder),
        "architecture": {
            "model_type": config.model_type,
            "hidden_size": getattr(config, "hidden_size", None),
            "vocab_size": config.vocab_size,
            "max_position_embeddings": getattr(config, "max_position_embeddings", None),
        },
        "source": {"name": name, "sha256": hash_checkpoint(name), "kind": "checkpoint"},
        "max_length": min(folder.longest or _LONGEST, _LONGEST),
        "config": json.loads(config.to_json_string(use_diff=False)),
    }


def main() -> None:
    """Print the facts of the checkpoint that the command line names."""
    try:
        sys.stdout.write(json.dumps(facts(sys.argv[1])) + "\n")
    except PotstillError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
