"""TinyBERT's data augmentation: copies of each text in which a masked-language model replaced some words.

Algorithm 1 of arXiv 1909.10351. Words that are one piece are masked and replaced by one of the model's likeliest words;
those of several pieces, for which the authors took neighbours among GloVe vectors, stay. The copies keep their text's
label; the method asks only the teacher about them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.checkpoint import load_checkpoint
from potstill.checkpoint.folder import USUAL_LENGTH, longest_text
from potstill.config import Recipe
from potstill.data import Examples
from potstill.distill.hooks import masked_lm_head, model_inputs
from potstill.errors import RecipeError
from potstill.progress import Progress
from potstill.tasks import FILL_MASK

# M of the algorithm: from how many of the likeliest words one is drawn.
_CANDIDATES = 15
_MASKED_AT_ONCE = 64


def augment(examples: Examples, recipe: Recipe, *, copies: int, progress: Progress) -> Examples:
    """Return the examples followed by `copies` altered ones of each, the same for the same seed.

    Raises:
        RecipeError: if no masked-language model is named, or the texts are no plain ones.
        CheckpointError: if the model has no trained masked-LM head.
    """
    name = recipe.distill.augment_model
    if name is None:
        raise RecipeError("distill.augment needs a masked-language model; set distill.augment_model")
    if len(examples) and isinstance(examples.texts[0], list):
        raise RecipeError("distill.augment alters plain texts and pairs, not tagged words; set distill.augment=0")
    proposer = load_checkpoint(name, FILL_MASK)
    generator = np.random.default_rng(recipe.seed)
    share = recipe.distill.augment_share or 0.0
    texts: list[Any] = list(examples.texts)
    for number, text in enumerate(examples.texts, 1):
        parts = text if isinstance(text, tuple) else (text,)
        altered = [
            alter(part, proposer.model, proposer.tokenizer, copies=copies, share=share, generator=generator)
            for part in parts
        ]
        # The k-th copy of a pair is made of the k-th copies of both sides.
        texts += [copy if isinstance(text, tuple) else copy[0] for copy in zip(*altered, strict=True)]
        progress("augment the data", number, len(examples), "")
    labels = np.concatenate([examples.labels, np.repeat(examples.labels, copies, axis=0)])
    return replace(examples, texts=texts, labels=labels)


def alter(
    text: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    copies: int,
    share: float,
    generator: np.random.Generator,
) -> list[str]:
    """Return `copies` of a text, in each of which every replaceable word is replaced with probability `share`."""
    words = text.split()
    replaceable, proposals = propose(words, model, tokenizer)
    found = []
    for _ in range(copies):
        copy = list(words)
        for place, candidates in zip(replaceable, proposals, strict=True):
            if candidates and generator.random() < share:
                # Uniform among the candidates, as in algorithm 1, not by their probability.
                copy[place] = candidates[int(generator.integers(len(candidates)))]
        found.append(" ".join(copy))
    return found


def propose(
    words: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[list[str]]]:
    """Return the words that are one piece, by number, and the likeliest other words in the place of each."""
    if not words:
        return [], []
    longest = longest_text(model.config.to_dict(), tokenizer.model_max_length) or USUAL_LENGTH
    # As words, so that every piece knows its word (`word_ids`).
    encoded = tokenizer(
        [list(words)], is_split_into_words=True, truncation=True, max_length=longest, return_tensors="pt"
    )
    word_ids = encoded.word_ids(0)
    pieces = {word: word_ids.count(word) for word in set(word_ids) if word is not None}
    places = [at for at, word in enumerate(word_ids) if word is not None and pieces[word] == 1]
    encoder, head = model.base_model, masked_lm_head(model)
    proposals: list[list[str]] = []
    for start in range(0, len(places), _MASKED_AT_ONCE):
        part = torch.tensor(places[start : start + _MASKED_AT_ONCE])
        batch = {name: value.repeat(len(part), 1) for name, value in encoded.items()}
        rows = torch.arange(len(part))
        there = batch["input_ids"][rows, part]
        batch["input_ids"] = batch["input_ids"].index_put((rows, part), torch.tensor(tokenizer.mask_token_id))
        with torch.inference_mode():
            states = encoder(**model_inputs(encoder, batch)).last_hidden_state[rows, part]
            logits = torch.nn.functional.linear(head.transform(states), head.weight, head.bias)
            # One more, since the word itself is often among them and is no replacement.
            likeliest = logits.topk(_CANDIDATES + 1).indices
        for original, candidates in zip(there.tolist(), likeliest.tolist(), strict=True):
            tokens = [tokenizer.convert_ids_to_tokens(one) for one in candidates if one != original]
            # Leaves out pieces inside words (`##ing`), special tokens and punctuation.
            proposals.append([token for token in tokens[:_CANDIDATES] if token.isalnum()])
    return [word_ids[at] for at in places], proposals
