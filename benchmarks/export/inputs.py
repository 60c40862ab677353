"""The inputs that every contestant gets; numpy alone, because it runs in every environment."""

from collections.abc import Iterable

import numpy as np

# Below them stand the special tokens of the vocabulary.
FIRST_ORDINARY_ID = 5


def make_feeds(
    names: Iterable[str], *, batch_size: int, num_tokens: int, vocab_size: int, seed: int
) -> dict[str, np.ndarray]:
    """Return int64 arrays of shape (batch_size, num_tokens): random ordinary tokens, all attended to."""
    rng, shape = np.random.default_rng([seed, batch_size, num_tokens]), (batch_size, num_tokens)
    known = {
        "input_ids": rng.integers(FIRST_ORDINARY_ID, vocab_size, size=shape),
        "attention_mask": np.ones(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
    }
    return {name: known[name] for name in names}
