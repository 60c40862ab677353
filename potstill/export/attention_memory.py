"""How much memory the attention scores of one run take, which grows with the square of the length.

A run holds a number for every pair of tokens of a text, in every head, several times over where attention is not
fused. ModernBERT's 8,192 positions with 12 heads are 3.2 GB of them for one text, and 25.8 GB for a batch of 8.
"""

import math

MOST_BYTES = 2**32
"""What one layer's scores may take when files are compared, 4 GiB; a run needs up to four times that."""
_FLOAT_BYTES = 4


def scores_bytes(texts: int, *, heads: int, length: int) -> int:
    """Return the bytes of one layer's attention scores for a batch of texts of this length in tokens."""
    return _FLOAT_BYTES * texts * heads * length**2


def most_texts(wanted: int, *, heads: int, length: int) -> int:
    """Return how many of the wanted texts of this length may run at once, and 1 where even one is too long."""
    return max(1, min(wanted, MOST_BYTES // scores_bytes(1, heads=heads, length=max(1, length))))


def longest_that_fits(texts: int, *, heads: int) -> int:
    """Return how long texts may be, in tokens, so that so many of them may run at once."""
    return math.isqrt(MOST_BYTES // scores_bytes(texts, heads=heads, length=1))
