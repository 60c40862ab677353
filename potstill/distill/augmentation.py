"""TinyBERT's data augmentation: copies of each text in which a masked-language model replaced some words.

Algorithm 1 of arXiv 1909.10351. Words that are one piece are masked and replaced by one of the model's likeliest words;
those of several pieces, for which the authors took neighbours among GloVe vectors, stay. The copies have no label: with
another word, the old one may be wrong. The teacher says what they are.
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
from potstill.data.labels import NO_LABEL
from potstill.distill.hooks import masked_lm_head, model_inputs
from potstill.errors import RecipeError
from potstill.progress import Progress
from potstill.tasks import FILL_MASK

# M of the algorithm: from how many of the likeliest words one is drawn.
_CANDIDATES = 15
_MASKED_AT_ONCE = 64


def augment(examples: Examples, recipe: Recipe, *, copies: int, progress: Progress) -> Examples:
    """Return the examples followed by `copies` altered ones of each, without labels, the same for the same seed.

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
    added = np.repeat(examples.labels, copies, axis=0)
    none = np.full_like(added, np.nan if added.dtype.kind == "f" else NO_LABEL)
    return replace(
        examples,
        texts=texts,
        labels=np.concatenate([examples.labels, none]),
        num_unlabelled=examples.num_unlabelled + len(none),
    )


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
    # As one text and not as words: byte-level tokenizers would glue them together.
    encoded = tokenizer(
        [" ".join(words)], truncation=True, max_length=longest, return_offsets_mapping=True, return_tensors="pt"
    )
    begins = np.cumsum([0, *(len(word) + 1 for word in words)])
    # By a token's last character, since its first may be the space before the word; special tokens have none.
    word_ids = [
        int(np.searchsorted(begins, end, side="left")) - 1 if end > start else None
        for start, end in encoded.pop("offset_mapping")[0].tolist()
    ]
    pieces = {word: word_ids.count(word) for word in set(word_ids) if word is not None}
    places = [at for at, word in enumerate(word_ids) if word is not None and pieces[word] == 1]
    encoder, head, marker = model.base_model, masked_lm_head(model), _word_marker(tokenizer)
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
            spelt = [
                # A marked vocabulary may write its letters as bytes, too.
                tokenizer.convert_tokens_to_string([token]).strip() if marker else token
                for token in tokens[:_CANDIDATES]
                if token.startswith(marker)
            ]
            # Leaves out pieces inside words (`##ing`), special tokens and punctuation.
            proposals.append([word for word in spelt if word.isalnum()])
    return [word for at in places if (word := word_ids[at]) is not None], proposals


def _word_marker(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what a vocabulary writes before a word's first piece: nothing (BERT), Ġ (RoBERTa) or ▁ (SentencePiece)."""
    last = tokenizer.tokenize("a a")[-1]
    return last.removesuffix("a") if last.endswith("a") else ""
