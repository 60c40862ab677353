"""From labelled examples to rows of tokens, and from rows to padded batches of similar length.

`tokenize` makes the rows, `EpochRows` and `LengthGroupedSampler` give them in an order that a resumed run finds again,
`make_collator` and `make_mlm_collator` pad them, and mask them for masked-language training.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from potstill.checkpoint.tokenizer import glues_words
from potstill.data import Examples
from potstill.distill.masking import IGNORED, make_masking, mask_batch
from potstill.errors import CheckpointError, DataError, RecipeError
from potstill.serve.tasks.question_answering import STRIDE, QuestionParameters
from potstill.tasks import MULTI_LABEL, REGRESSION

Row: TypeAlias = dict[str, Any]
"""A tokenised row by column: the model's inputs (lists or arrays of T ids) and its labels."""
Batch: TypeAlias = dict[str, torch.Tensor]
Collator: TypeAlias = Callable[[Sequence[Row]], Batch]

LENGTH_COLUMN = "length"
LABELS = "labels"
TEACHER_ANSWERS = "teacher_answers"
"""Column of the rows and key of the batch for a teacher's logits: (C,) and (B, C); for tags (T * C,) and (B, T, C)."""
TEACHER_VECTORS = "teacher_vectors"
"""Column of the rows and key of the batch for the teacher's sentence vectors, (E,) and (B, E)."""
# Batches that are sorted by length together: enough to leave little padding, few enough to stay shuffled.
_BATCHES_PER_POOL = 50
# Of a teacher's stored answers: float32 softmax gives such numbers, and a temperature of 4 makes 0.001 of them.
_LEAST_PROBABILITY = 1e-12
# Rows that are counted or hashed at once.
_ROWS_AT_ONCE = 10_000
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "segments")
_ANSWER_POSITIONS = ("start_positions", "end_positions")
# The server's default: a question is cut in training as it will be cut in serving.
_LONGEST_QUESTION: int = QuestionParameters().max_question_len


def tokenize(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
    """Return rows with the tokenizer's inputs unpadded, `length` in tokens, and their labels if there are any.

    - A text or pair is a row; `labels` is a class id, a score, or a vector with one 0/1 per class.
    - Words (token classification) are a row; `labels` holds one id per token: the word's on its first token, -100 on
      all others.
    - Where the examples have a teacher's answers, `teacher_answers` holds them as logits, of words on first tokens.
    - A question with its context becomes one row per window of the context, which share 128 tokens where there is room.
      `start_positions` and `end_positions` are the answer's first and last token, or both that of the [CLS] token
      where the window does not hold the whole answer.

    Token types are always there when the tokenizer makes them: a BERT teacher needs them even when its DistilBERT
    student has none.

    Raises:
        DataError: if a row cannot be tokenised, or `max_length` leaves no room for a question and its context.
        CheckpointError: if the tokenizer cannot take lists of words.
    """
    labels = examples.labels
    if len(examples.texts) and isinstance(examples.texts[0], list):
        columns = _tokenize_words(examples, tokenizer, max_length=max_length)
    elif labels is not None and len(labels) > 0 and isinstance(labels[0], dict):
        columns = _tokenize_questions(examples, tokenizer, max_length=max_length)
    else:
        pairs = [text if isinstance(text, tuple) else (text, None) for text in examples.texts]
        seconds = [second for _, second in pairs]
        encoded = tokenizer(
            [first for first, _ in pairs],
            # None for all: a list of None would be tokenised as a list of second texts.
            seconds if any(second is not None for second in seconds) else None,
            truncation=True,
            max_length=max_length,
        )
        columns = {**encoded, **({} if labels is None else {LABELS: list(labels)})}
        if examples.answers is not None:
            columns[TEACHER_ANSWERS] = list(to_logits(np.asarray(examples.answers), examples.problem_type))
    columns[LENGTH_COLUMN] = [len(ids) for ids in columns["input_ids"]]
    return Dataset.from_dict(columns)


def to_logits(answers: NDArray[np.float64], problem_type: str | None) -> NDArray[np.float32]:
    """Return logits whose softmax, or sigmoid for several labels, are a teacher's probabilities; amounts as they are.

    Softened by a temperature they give what the teacher's own would: both differ by a constant in each row.

    Args:
        answers: (..., C); NaN stays.
        problem_type: of a text classifier; None for tags.
    """
    if problem_type == REGRESSION:
        return answers.astype(np.float32)
    # 0, as of a label without a probability, becomes next to nothing: its logarithm would be infinite.
    likely = np.log(np.maximum(answers, _LEAST_PROBABILITY))
    if problem_type == MULTI_LABEL:
        likely -= np.log(np.maximum(1 - answers, _LEAST_PROBABILITY))
    return likely.astype(np.float32)


def _tokenize_words(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> dict[str, Any]:
    if glues_words(tokenizer):
        raise CheckpointError(
            "this tokenizer marks a word by the space before it, so it cannot take lists of words; set "
            '"add_prefix_space": true in the pre_tokenizer of its tokenizer.json'
        )
    encoded = tokenizer(list(examples.texts), is_split_into_words=True, truncation=True, max_length=max_length)
    columns: dict[str, Any] = {**encoded}
    if examples.labels is None:
        return columns
    columns[LABELS] = []
    for number, (words, labels) in enumerate(zip(examples.texts, examples.labels, strict=True)):
        if len(labels) != len(words):
            raise DataError(f"row {number + 1} has {len(words)} words and {len(labels)} labels; each word needs one")
        # Only a word's first token is labelled, as in BERT (arXiv 1810.04805, section 5.3).
        token_labels, seen = [], {None}  # special tokens belong to no word
        for word in encoded.word_ids(number):
            token_labels.append(IGNORED if word in seen else int(labels[word]))
            seen.add(word)
        columns[LABELS].append(token_labels)
    if examples.answers is not None:
        columns[TEACHER_ANSWERS] = []
        for number, answers in enumerate(examples.answers):
            first = np.array(columns[LABELS][number]) != IGNORED
            words = np.array([0 if word is None else word for word in encoded.word_ids(number)])
            # Other tokens are never compared, whatever they hold.
            logits = np.where(first[:, None], to_logits(answers, None)[words], 0)
            columns[TEACHER_ANSWERS].append(logits.astype(np.float32).reshape(-1))
    return columns


def _tokenize_questions(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> dict[str, Any]:
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    longest = min(_LONGEST_QUESTION, room // 2)
    if longest < 1:
        raise DataError(f"max_length is {max_length}; a question and its context need more")
    # Spaces in front of a question, which SQuAD has, would count as text to some tokenizers.
    questions = [str(question).lstrip() for question, _ in examples.texts]
    offsets = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    encoded = tokenizer(
        [
            # Cut as text: `only_second` never cuts the question, and fails where it leaves no room for the context.
            question if len(spans) <= longest else question[: spans[longest - 1][1]]
            for question, spans in zip(questions, offsets, strict=True)
        ],
        [context for _, context in examples.texts],
        truncation="only_second",
        max_length=max_length,
        # The library refuses a stride that is not smaller than the room for the context.
        stride=min(STRIDE, (room - longest) // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    owners = encoded.pop("overflow_to_sample_mapping")
    all_offsets = encoded.pop("offset_mapping")
    columns: dict[str, Any] = {**encoded, "start_positions": [], "end_positions": []}
    for number, window_offsets in enumerate(all_offsets):
        is_context = np.array([part == 1 for part in encoded.sequence_ids(number)])
        # The question's offsets count from its own beginning and would match answers at the context's.
        spans = np.where(is_context[:, None], np.array(window_offsets, dtype=np.int32), -1)
        first, last = _answer_tokens(spans, examples.labels[owners[number]])
        if first < 0:  # [CLS] means "no answer here"
            ids = list(encoded["input_ids"][number])
            first = last = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
        columns["start_positions"].append(first)
        columns["end_positions"].append(last)
    return columns


def _answer_tokens(spans: NDArray[np.int32], answers: Mapping[str, Sequence[Any]]) -> tuple[int, int]:
    """Return the first and last token of the first answer, or -1 twice where this window lacks a part of it.

    Args:
        spans: (T, 2), where in the context each token begins and ends; -1 for tokens outside of it.
        answers: `text` and `answer_start` of each answer.
    """
    inside = np.flatnonzero(spans[:, 1] > spans[:, 0])
    if not len(answers["text"]) or not len(inside):
        return -1, -1
    start = int(answers["answer_start"][0])
    end = start + len(answers["text"][0])
    # A part of an answer is no answer: the next window has the whole, or none has.
    if spans[inside[0], 0] > start or spans[inside[-1], 1] < end:
        return -1, -1
    # Touched, not enclosed: a token may reach over either end of the answer.
    touched = inside[(spans[inside, 1] > start) & (spans[inside, 0] < end)]
    return (int(touched[0]), int(touched[-1])) if len(touched) else (-1, -1)


class LengthGroupedSampler(Sampler[int]):
    """Yield row numbers so that each `batch_size` consecutive rows have similar lengths, shuffled anew in each epoch.

    The order depends on seed and epoch alone. transformers' own sampler draws it from torch's global generator, so a
    run resumed in the middle of an epoch sees some rows twice and others never.

    With `with_epoch` it gives `epoch * rows + row` instead, for `EpochRows`.
    """

    def __init__(
        self, lengths: Sequence[int] | NDArray[np.integer], *, batch_size: int, seed: int, with_epoch: bool = False
    ) -> None:
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._with_epoch = with_epoch
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; the training loop calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        # Made anew in each epoch: nothing is carried over that a resumed run would not have.
        generator = np.random.default_rng((self._seed, self._epoch))
        order = generator.permutation(len(self._lengths))
        size = self._batch_size * _BATCHES_PER_POOL
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        by_length = np.concatenate([pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools])
        batches = np.split(by_length, range(self._batch_size, len(order), self._batch_size))
        # The last batch may be short, and only there: moved, it would shift the bounds of all that follow.
        turns = [*generator.permutation(len(batches) - 1), len(batches) - 1]
        offset = self._epoch * len(order) if self._with_epoch else 0
        # Batch by batch: millions of Python numbers at once would take more memory than the rows' lengths.
        return (number for turn in turns for number in (batches[turn] + offset).tolist())


class EpochRows(TorchDataset[Row]):
    """A data set whose rows know their number and the epoch they are read for.

    Row `epoch * len(rows) + row` has the columns of `row`, and `row` and `epoch`. The epoch travels in the number, an
    integer like any other: so it reaches the collator through accelerate's sharding and skipping of batches and into
    the loader's workers, none of which has to know of it. Columns of numbers come as arrays.
    """

    def __init__(self, rows: Dataset) -> None:
        self._rows = rows
        self._arrow = rows.with_format("arrow")
        self._sampler: LengthGroupedSampler | None = None

    def sampler(self, *, batch_size: int, seed: int) -> LengthGroupedSampler:
        """Return the length-grouped sampler of these rows."""
        lengths = read_lengths(self._rows)
        self._sampler = LengthGroupedSampler(lengths, batch_size=batch_size, seed=seed, with_epoch=True)
        return self._sampler

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the sampler.

        A loader of several processes that skips batches after a resume does not find the sampler by itself
        (accelerate 1.15), and would go on in the order of epoch 0; but it does tell the data set.
        """
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int) -> Row:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int]) -> list[Row]:
        epochs, rows = np.divmod(np.asarray(keys), len(self._rows))
        # torch's loader asks for a whole batch where this method exists: one read of the arrow table instead of B.
        table = self._arrow[rows.tolist()]
        columns = {name: _cells(table[name]) for name in table.column_names}
        columns |= {"row": rows.tolist(), "epoch": epochs.tolist()}
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def read_lengths(rows: Dataset) -> NDArray[np.integer]:
    """Return the length of each row in tokens, (rows,)."""
    return rows.select_columns([LENGTH_COLUMN]).with_format("arrow")[:][LENGTH_COLUMN].to_numpy()


def count_shared(rows: Dataset, others: Dataset) -> int:
    """Return how many of the first rows have the tokens of some row of the others."""
    wanted = list(_token_rows(rows))
    shared = set(wanted).intersection(_token_rows(others))
    return sum(row in shared for row in wanted)


def _token_rows(rows: Dataset) -> Iterator[bytes]:
    for table in rows.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        column = table["input_ids"].combine_chunks()
        values, lengths = column.flatten().to_numpy(), column.value_lengths().to_numpy()
        yield from (part.tobytes() for part in np.split(values, np.cumsum(lengths)[:-1]))


def hash_rows(rows: Dataset) -> str:
    """Return a SHA-256 over everything that rows hold, in their order."""
    digest = hashlib.sha256()
    for table in rows.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        sink = pyarrow.BufferOutputStream()
        # Chunks and metadata differ between rows just made and the same read from a cache; neither is what is learned.
        plain = table.combine_chunks().replace_schema_metadata(None)
        with pyarrow.ipc.new_stream(sink, plain.schema) as writer:
            writer.write_table(plain)
        digest.update(sink.getvalue())
    return digest.hexdigest()


def make_collator(tokenizer: PreTrainedTokenizerBase) -> Collator:
    """Return a function that pads labelled rows on the right, to the longest of their batch.

    The batch has the model's inputs (B, T), int64, and where the rows have them
    - `labels`: int64 (B,) of class ids, float32 (B,) of scores, float32 (B, C) of several labels at once, or int64
      (B, T) with one per token, -100 at padding;
    - `start_positions` and `end_positions`, int64 (B,);
    - `teacher_answers`: float32 (B, C), or (B, T, C) for tags, NaN where there is no answer;
    - `teacher_vectors`: float32 (B, E).

    Padding is on the right because encoders number positions from the left.
    """

    def collate(rows: Sequence[Row]) -> Batch:
        batch: dict[str, NDArray[np.generic]] = {**_pad_inputs(rows, tokenizer)}
        if LABELS in rows[0]:
            labels = [np.asarray(row[LABELS]) for row in rows]
            if labels[0].dtype.kind == "f":
                batch[LABELS] = np.stack(labels).astype(np.float32)
            elif labels[0].ndim == 0:
                batch[LABELS] = np.stack(labels).astype(np.int64)
            else:
                batch[LABELS] = _pad(labels, batch["input_ids"].shape[1], IGNORED)
        if TEACHER_ANSWERS in rows[0]:
            batch[TEACHER_ANSWERS] = _stack_answers(rows, batch)
        for name in _ANSWER_POSITIONS:
            if name in rows[0]:
                batch[name] = np.array([row[name] for row in rows], dtype=np.int64)
        if TEACHER_VECTORS in rows[0]:
            batch[TEACHER_VECTORS] = np.stack([np.asarray(row[TEACHER_VECTORS], dtype=np.float32) for row in rows])
        return _to_tensors(batch)

    return collate


def _stack_answers(rows: Sequence[Row], batch: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
    """Return a stored teacher's logits, (B, C); (B, T, C) where each of the batch's tokens has a label."""
    answers = [np.asarray(row[TEACHER_ANSWERS], dtype=np.float32) for row in rows]
    if batch[LABELS].ndim == 1 or batch[LABELS].dtype != np.int64:
        return np.stack(answers)
    classes = len(answers[0]) // len(rows[0]["input_ids"])
    padded = np.zeros((*batch[LABELS].shape, classes), dtype=np.float32)
    for number, cells in enumerate(answers):
        padded[number, : len(cells) // classes] = cells.reshape(-1, classes)
    return padded


def make_mlm_collator(
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    mask: bool = True,
    share: float = 0.15,
    counts: NDArray[np.int64] | None = None,
    smoothing: float = 0.7,
    extra_share: float = 0.0,
    kl_positions: Literal["masked", "all"] = "masked",
) -> Collator:
    """Return a function that pads rows of `EpochRows` and masks them (`masking.make_masking`, `mask_batch`).

    The batch has the model's inputs (B, T), int64, `input_ids` with its masks; with packing `position_ids` and
    `segments` (B, T); and
    - `masked_labels` (B, T): the token that was there, -100 where nothing is to be predicted;
    - `positions` (N,): the places b * T + t where vocabulary logits are needed, the masked ones first. With
      `kl_positions` masked they are these and `extra_share` of the others; with `all`, every token that is not
      padding, as in DistilBERT's released code.

    With `mask` False the inputs stay whole and the last two are missing.

    Raises:
        RecipeError: if a setting would have no effect.
        DataError: from `make_masking`, and from the function if rows come without `row` and `epoch`.
    """
    if kl_positions == "all" and extra_share > 0:
        raise RecipeError(f"extra_share={extra_share} has no effect with kl_positions='all'; set one of them")
    if not mask:
        return lambda rows: _to_tensors(_pad_inputs(rows, tokenizer))
    masking = make_masking(
        tokenizer, seed=seed, share=share, extra_share=extra_share, counts=counts, smoothing=smoothing
    )

    def collate(rows: Sequence[Row]) -> Batch:
        if "row" not in rows[0] or "epoch" not in rows[0]:
            raise DataError("rows to be masked need their row and epoch: read them through EpochRows(data set)")
        batch = _pad_inputs(rows, tokenizer)
        is_token = batch["attention_mask"].astype(np.bool_)
        masked = mask_batch(
            batch["input_ids"],
            is_token,
            rows=[row["row"] for row in rows],
            epochs=[row["epoch"] for row in rows],
            masking=masking,
        )
        chosen = masked.labels != IGNORED
        others = is_token & ~chosen if kl_positions == "all" else masked.extra
        positions = np.concatenate([np.flatnonzero(chosen), np.flatnonzero(others)])
        batch |= {"input_ids": masked.ids, "masked_labels": masked.labels, "positions": positions}
        return _to_tensors(batch)

    return collate


def _cells(column: pyarrow.ChunkedArray) -> Sequence[Any]:
    """Return a column's cells: lists of numbers as views of one array, half the time of lists of Python numbers."""
    kind = column.type
    if not pyarrow.types.is_list(kind) or not pyarrow.types.is_primitive(kind.value_type):
        return column.to_pylist()
    together = column.combine_chunks()
    bounds = np.cumsum(together.value_lengths().to_numpy())[:-1]
    return np.split(together.flatten().to_numpy(zero_copy_only=False), bounds)


def _pad_inputs(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, NDArray[np.int64]]:
    # To the longest of the batch, not to max_length: most of the saving of length-grouped batches.
    length = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    return {name: _pad([row[name] for row in rows], length, fill.get(name, 0)) for name in _INPUTS if name in rows[0]}


def _pad(lists: Sequence[Sequence[int] | NDArray[np.generic]], length: int, value: int) -> NDArray[np.int64]:
    padded = np.full((len(lists), length), value, dtype=np.int64)
    for number, cells in enumerate(lists):
        padded[number, : len(cells)] = cells
    return padded


def _to_tensors(batch: Mapping[str, NDArray[np.generic]]) -> Batch:
    return {name: torch.from_numpy(values) for name, values in batch.items()}
