"""Texts that are longer than a model reads, window by window."""

from collections.abc import Iterator, Sequence

from potstill.serve.tokenizer import BundleTokenizer, Row


def windows(tokens: int, *, room: int, stride: int, side: str = "right") -> Iterator[slice]:
    """Yield the windows of a text of so many tokens; neighbours share `stride` tokens, and one at least there is.

    They are those of the tokenizers library (`Encoding::truncate`): from the beginning, the last one perhaps shorter,
    or with `side` "left" from the end backwards.

    Args:
        tokens: the text's.
        room: tokens of a window, above `stride`.
        stride: tokens that neighbours share.
        side: the end at which texts are cut.
    """
    step = room - stride
    for start in range(0, max(tokens, 1), step):
        stop = min(start + room, tokens)
        yield slice(tokens - stop, tokens - start) if side == "left" else slice(start, stop)
        if stop == tokens:
            return


def count_windows(tokens: int, *, room: int, stride: int) -> int:
    """Return how many windows there are."""
    return 1 if tokens <= room else 1 + -(-(tokens - room) // (room - stride))


def window_rows(
    tokenizer: BundleTokenizer, question: Sequence[int], context: Sequence[int], *, room: int, stride: int
) -> Iterator[tuple[Row, slice, slice]]:
    """Yield the inputs of a question with each window of its context; which part of the context it is, and of the row.

    Args:
        tokenizer: the model's.
        question: its ids, all of which are read.
        context: its ids.
        room: the context's tokens in a window.
        stride: tokens that neighbours share.
    """
    first = len(tokenizer.pair.ids[0]) + len(question) + len(tokenizer.pair.ids[1])
    for part in windows(len(context), room=room, stride=stride, side=tokenizer.truncation_side):
        ids = context[part]
        yield tokenizer.frame(question, ids), part, slice(first, first + len(ids))
