"""A teacher's sentence vectors, computed once and kept on disk beside the training."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
from datasets import Dataset, load_from_disk
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from potstill.checkpoint import Checkpoint, hash_checkpoint, read_folder
from potstill.checkpoint.model import SentenceHead, UnitLength, find_sentence_transformers, load_head
from potstill.data import Examples, load_texts
from potstill.distill.batches import TEACHER_VECTORS, tokenize
from potstill.distill.torch_session import embed_texts
from potstill.files import new_folder
from potstill.progress import Progress
from potstill.tasks import FEATURE_EXTRACTION

# Of the length of vectors that are said to have length 1, and may have been written with few digits.
_LENGTH_TOLERANCE = 1e-2


def teacher_head(name: str, pooling: str | None) -> SentenceHead:
    """Return the head that makes a teacher's vectors: its own modules, else the pooling asked for, else the mean."""
    own = find_sentence_transformers(name)
    head = load_head(own) if own else None
    return head if head is not None else SentenceHead([pooling or "mean"])


def load_single_texts(name: str, *, split: str, text_columns: Sequence[str] | None, limit: int | None) -> list[str]:
    """Return the texts of a split, both of a pair, each once, in the order of their first appearance."""
    texts = load_texts(name, split=split, task=FEATURE_EXTRACTION, text_columns=text_columns, limit=limit)
    return list(dict.fromkeys(part for text in texts for part in (text if isinstance(text, tuple) else (text,))))


def add_teacher_vectors(
    texts: Sequence[str],
    teacher: Checkpoint,
    head: SentenceHead,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int,
    cache_dir: Path,
    progress: Progress,
) -> Dataset:
    """Return tokenised rows with the teacher's vector of each text, memory-mapped from `cache_dir`.

    The rows are made by `tokenizer`, which may have fewer pieces than the teacher's own, by which they are made else.

    The teacher reads no more of a text than its folder says, whatever the student reads. The cache is found again for
    the same texts, teacher, length and pooling. A teacher from the hub, which has no folder to hash, is known by its
    name.
    """
    # By content: a folder that was trained again has the same name and other vectors.
    who = hash_checkpoint(teacher.name) or teacher.name
    longest = min(max_length, read_folder(teacher.name).max_seq_length or max_length)
    tokenizer = tokenizer or teacher.tokenizer
    # The teacher's own is told by its checkpoint, another one by its pieces.
    pieces = [] if tokenizer is teacher.tokenizer else [sorted(tokenizer.get_vocab())]
    settings = json.dumps([who, max_length, longest, head.pooling, len(head.layers), list(texts), *pieces])
    folder = cache_dir / hashlib.sha256(settings.encode()).hexdigest()[:24]
    if not folder.is_dir():
        vectors = embed_texts(
            teacher.model,
            teacher.tokenizer,
            texts,
            max_length=longest,
            pooling=head,
            progress=progress,
            who="teacher's vectors",
        )
        rows = with_vectors(texts, vectors, tokenizer, max_length=max_length)
        with new_folder(folder, overwrite=True) as building:
            rows.save_to_disk(str(building))
    return load_from_disk(str(folder))


def with_vectors(
    texts: Sequence[str], vectors: NDArray[np.float32], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> Dataset:
    """Return tokenised rows with a vector of another model for each text, `vectors` (N, E)."""
    unlabelled = Examples(name="", split="", texts=list(texts), labels=None, label_names=(), sha256="")
    rows = tokenize(unlabelled, tokenizer, max_length=max_length)
    # From one flat array: lists of Python numbers would take many times the vectors' memory. Of a fixed size: the int32
    # offsets of other lists wrap beyond 2^31 numbers, which is 5.6 million vectors of 384.
    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), vectors.shape[1])
    return rows.add_column(TEACHER_VECTORS, column)


def head_of_vectors(vectors: NDArray[np.float32], pooling: str | None) -> SentenceHead:
    """Return the pooling for a student of bare vectors: as asked, else the mean; to length 1 if they have it."""
    have_length_1 = np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=_LENGTH_TOLERANCE)
    return SentenceHead([pooling or "mean"], [UnitLength()] if have_length_1 else [])
