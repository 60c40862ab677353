"""Score a checkpoint with torch, on the same batches as training."""

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill import metrics
from potstill.checkpoint import accepted_inputs
from potstill.data import Examples
from potstill.distill.batches import make_collator, tokenize
from potstill.progress import Progress, silent

_BATCH_SIZE = 32


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    max_length: int,
    progress: Progress = silent,
    who: str = "model",
) -> dict[str, float]:
    """Return the classification metrics of a torch model on labelled texts, in its own precision."""
    rows = tokenize(examples, tokenizer, max_length=max_length)
    by_length = np.argsort(rows["length"], kind="stable")
    collate, wanted = make_collator(tokenizer), accepted_inputs(model)
    logits, labels = [], []
    with torch.inference_mode():
        for start in range(0, len(rows), _BATCH_SIZE):
            batch = collate([rows[int(number)] for number in by_length[start : start + _BATCH_SIZE]])
            inputs = {name: value.to(model.device) for name, value in batch.items() if name in wanted}
            logits.append(model(**inputs).logits.float().cpu())
            labels.append(batch["labels"])
            progress(f"score the {who}", min(start + _BATCH_SIZE, len(rows)), len(rows), "")
    return metrics.classification(torch.cat(labels).numpy(), torch.cat(logits).numpy())
