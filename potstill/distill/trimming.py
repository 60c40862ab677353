"""Trim a checkpoint's vocabulary to the texts of a task: tokenizer, word embeddings, masked-LM head, configuration.

Half of a small encoder is a table of 30,000 words of which a task uses a third. `potstill.checkpoint.vocabulary` says
which pieces can stay; here are the texts that they are counted on, the model, what it costs, and the folder.
"""

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from potstill.bundle import TokensPerText, TrimmedVocabulary
from potstill.checkpoint import (
    TRAINING_REPORT,
    Checkpoint,
    count_parameters,
    hash_checkpoint,
    load_checkpoint,
    read_folder,
    save_tokenizer,
)
from potstill.checkpoint.folder import read_json
from potstill.checkpoint.model import find_sentence_transformers
from potstill.checkpoint.sentence_transformers import MODULES_FILE, PROMPTS_FILE, SentenceTransformers
from potstill.checkpoint.vocabulary import Vocabulary, count_pieces, special_ids
from potstill.config import Recipe, parse_vocabulary
from potstill.data import PYTHON_DOCS, choose_splits, load_texts, load_unlabelled
from potstill.distill.corpus import iterate_texts
from potstill.errors import AbsentError, CheckpointError
from potstill.files import check_free, new_folder
from potstill.progress import Announce, keep_quiet
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, Task, get_task

# Enough to tell tokens per text to half a percent.
_MEASURED_TEXTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """A split of a data set of which only the texts are read."""

    name: str
    split: str
    task: Task
    text_columns: Sequence[str] | None = None
    limit: int | None = None
    running: bool = False
    """Whether it is running text, which is read as a stream."""
    streaming: bool = False
    """Whether a hub data set is read as one, too."""
    unlabelled: str | None = None
    """A further data set of texts, see `potstill.data.Extra`."""

    def read(self, limit: int | None = None) -> Iterator[str]:
        """Yield its texts, at most the first `limit`: both of a pair, and words joined by spaces."""
        most = min(filter(None, (limit, self.limit)), default=None)
        if self.running:
            column = self.text_columns[0] if self.text_columns else None
            yield from iterate_texts(self.name, split=self.split, column=column, limit=most, streaming=self.streaming)
            return
        columns = self.text_columns
        found = load_texts(self.name, split=self.split, task=self.task, text_columns=columns, limit=most)
        if self.unlabelled is not None and limit is None:
            found = [*found, *load_unlabelled(self.unlabelled, task=self.task, text_columns=columns)]
        for text in found:
            yield from (" ".join(text),) if isinstance(text, list) else (text,) if isinstance(text, str) else text

    def __str__(self) -> str:
        return f"{self.name} ({self.split})" + (f" and {self.unlabelled}" if self.unlabelled else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimming:
    """Which ids of a vocabulary stay, and what that saves and costs."""

    vocabulary: Vocabulary
    kept: list[int]
    """The ids that stay, in rising order; the new id of each is its place."""
    record: TrimmedVocabulary

    def trim(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return a copy, of a checkpoint with this vocabulary, that has the kept pieces alone."""
        tokenizer = copy.deepcopy(checkpoint.tokenizer)
        # The class around it asks this one for every id.
        tokenizer._tokenizer = self.vocabulary.trim(self.kept)
        return Checkpoint(checkpoint.name, trim_model(checkpoint.model, self.kept), tokenizer)


def plan_trimming(
    checkpoint: Checkpoint, asked: str | int, *, counted: TextSource, measured: Sequence[TextSource]
) -> Trimming:
    """Choose the pieces that stay, and measure what that saves and costs.

    Args:
        checkpoint: whose vocabulary it is; it is not changed.
        asked: `task`, a size, or `min-count=N`: see `potstill.config.StudentConfig.vocabulary`.
        counted: the texts of the task, on which the pieces are counted.
        measured: texts whose tokens are counted before and after.

    Raises:
        CheckpointError: if the vocabulary cannot be trimmed at all, or not so.
        DataError: if texts cannot be read.
    """
    named = special_ids(checkpoint.model.config.to_dict())
    vocabulary = Vocabulary(
        checkpoint.tokenizer.backend_tokenizer,
        name=checkpoint.name,
        special={*named, *checkpoint.tokenizer.all_special_ids},
    )
    size, min_count = parse_vocabulary(asked)
    if size is not None:
        vocabulary.check_size(size)
    counts = count_pieces(vocabulary.tokenizer, counted.read())
    if asked == "task":
        size = vocabulary.size_for(counts, list(counted.read(_MEASURED_TEXTS)))
    kept = vocabulary.choose(counts, size=size, min_count=min_count or 0)
    smaller, model = vocabulary.trim(kept), checkpoint.model
    record = TrimmedVocabulary(
        asked=str(asked),
        rows=len(kept),
        rows_before=model.get_input_embeddings().weight.shape[0],
        parameters_saved=count_parameters(model) - count_parameters(trim_model(model, kept)),
        counted_on=str(counted),
        tokens_per_text=[_measure(source, vocabulary, kept, smaller) for source in measured],
    )
    return Trimming(vocabulary=vocabulary, kept=kept, record=record)


def plan_for_recipe(recipe: Recipe, teacher: Checkpoint) -> Trimming:
    """Plan the trimming of a recipe's teacher to its training texts; arguments and errors as `plan_trimming`."""
    data, task = recipe.data, get_task(recipe.task)
    assert recipe.student.vocabulary is not None
    counted = TextSource(
        name=data.name,
        split=data.train_split,
        task=task,
        text_columns=data.text_columns,
        limit=data.max_train_examples,
        running=task in (FILL_MASK, FEATURE_EXTRACTION) and recipe.distill.method != "embedding",
        streaming=data.streaming,
        unlabelled=data.unlabelled,
    )
    measured = measured_texts(counted, split=data.eval_split, other=recipe.student.other_data)
    return plan_trimming(teacher, recipe.student.vocabulary, counted=counted, measured=measured)


def measured_texts(counted: TextSource, *, split: str, other: str | None) -> list[TextSource]:
    """Return the texts on which trimming is measured: the data's own that are not counted, and of another domain.

    Args:
        counted: the texts that pieces are counted on.
        split: the data's split to measure on; where it has none, the counted texts are measured.
        other: a data set of another domain; None is the documentation that Python carries.
    """
    own, elsewhere = replace(counted, split=split, limit=None, unlabelled=None), other or PYTHON_DOCS
    if next(_tried(own), None) is None:
        own = counted
    if elsewhere == counted.name:
        return [own]
    beside = TextSource(name=elsewhere, split="validation", task=FILL_MASK, running=True)
    if next(_tried(beside), None) is None:
        beside = replace(beside, split="train")
    return [own, beside]


def _tried(source: TextSource) -> Iterator[str]:
    """Yield the first text, or nothing if the data has no such split."""
    with suppress(AbsentError):
        yield from source.read(1)


def _measure(source: TextSource, vocabulary: Vocabulary, kept: Sequence[int], smaller: Tokenizer) -> TokensPerText:
    """Count the tokens of some texts before and after, special ones left out.

    Raises:
        CheckpointError: if something has become unknown, which theory excludes for tokenizers that a trainer made.
    """
    texts = list(source.read(_MEASURED_TEXTS))
    before, after = count_pieces(vocabulary.tokenizer, texts), count_pieces(smaller, texts)
    if vocabulary.unknown is not None and after[kept.index(vocabulary.unknown)] > before[vocabulary.unknown]:
        raise CheckpointError(
            f"without those pieces words of {source} would become unknown, because the single characters of "
            f"{vocabulary.name} do not spell them; its vocabulary cannot be trimmed so"
        )
    tokens = [int(counts.sum()) / len(texts) for counts in (before, after)]
    return TokensPerText(texts=str(source), num_texts=len(texts), before=tokens[0], after=tokens[1])


def trim_model(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Return a new model with these rows of the vocabulary alone, on the CPU, in eval mode.

    What has a row per piece is found by comparing with a model of the smaller configuration: word embeddings, narrow
    ones of ALBERT and ELECTRA, and a masked-LM head's decoder and bias, tied or not, MobileBERT's columns included.

    Args:
        model: any encoder of transformers, with or without a head; it is not changed.
        kept: ids in rising order; the new id of each is its place.
    """
    new = {old: number for number, old in enumerate(kept)}
    config = copy.deepcopy(model.config)
    config.vocab_size = len(kept)
    for key, number in model.config.to_dict().items():
        if key.endswith("_token_id") and isinstance(number, int):
            setattr(config, key, new.get(number))
    smaller = type(model)(config)
    rows, before, state = torch.tensor(kept), model.state_dict(), {}
    for key, wanted in smaller.state_dict().items():
        value = before[key].cpu()
        for axis in [axis for axis, size in enumerate(wanted.shape) if value.shape[axis] != size]:
            value = value.index_select(axis, rows)
        state[key] = value
    # Strict: a weight left out or named wrongly would stay random without a word.
    smaller.load_state_dict(state, strict=True)
    return smaller.eval()


def trim(
    checkpoint: str,
    out_dir: Path | str,
    *,
    data: str,
    vocabulary: str | int = "task",
    task: str | None = None,
    text_columns: Sequence[str] | None = None,
    other_data: str | None = None,
    overwrite: bool = False,
    announce: Announce = keep_quiet,
) -> dict[str, Any]:
    """Write a checkpoint whose vocabulary is trimmed to a data set's training texts; nothing is trained.

    Args:
        checkpoint: a hub id or checkpoint folder, of sentence-transformers too.
        out_dir: the folder to write.
        data: a hub id, folder or file with texts of the task; pieces are counted on its training split.
        vocabulary: `task`, a size, or `min-count=N`: see `potstill.config.StudentConfig.vocabulary`.
        task: the hub's name of the task; None takes what the checkpoint was trained for.
        text_columns: the column of the text, or two for pairs; None looks for the usual names.
        other_data: texts of another domain, on which tokens are counted as well; None takes Python's documentation.
        overwrite: replace what `out_dir` holds.
        announce: is called with what will be saved and lost before anything is written.

    Returns:
        The report, which is also in `OUT_DIR/distill.json`: `vocabulary` and `trimmed_from`, beside what an earlier
        training reported.

    Raises:
        CheckpointError, DataError: if the vocabulary cannot be trimmed, or the texts cannot be read.
        OutputError: if `out_dir` is in the way.
    """
    out_dir = Path(out_dir)
    check_free(out_dir, overwrite=overwrite)
    folder = read_folder(checkpoint)
    known = get_task(task) if task else folder.task or FEATURE_EXTRACTION
    sentences = find_sentence_transformers(checkpoint) if folder.root is not None else None
    loaded = load_checkpoint(checkpoint, known)
    train, evaluation = choose_splits(data, train="train", evaluation="validation")
    counted = TextSource(name=data, split=train, task=known, text_columns=text_columns, running=known is FILL_MASK)
    trimming = plan_trimming(
        loaded, vocabulary, counted=counted, measured=measured_texts(counted, split=evaluation, other=other_data)
    )
    record = trimming.record.model_dump(mode="json")
    announce("vocabulary", record)
    smaller = trimming.trim(loaded)
    earlier = folder.path / TRAINING_REPORT
    report = (read_json(earlier) if earlier.is_file() else {}) | {
        "vocabulary": record,
        "trimmed_from": {
            "name": checkpoint,
            "sha256": hash_checkpoint(checkpoint),
            "parameters": count_parameters(loaded.model),
        },
    }
    # As it was stored: load_checkpoint reads everything as float32.
    stored = getattr(torch, str(folder.config.get("dtype") or folder.config.get("torch_dtype") or "float32"))
    with new_folder(out_dir, overwrite=overwrite) as building:
        place = building / (sentences.encoder_path if sentences else "")
        place.mkdir(exist_ok=True)
        smaller.model.to(stored).save_pretrained(place)
        save_tokenizer(smaller.tokenizer, place)
        if sentences is not None:
            _copy_modules(sentences, building)
        (building / TRAINING_REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def _copy_modules(found: SentenceTransformers, target: Path) -> None:
    """Copy what makes a folder one of sentence-transformers, all but the encoder itself."""
    for row in json.loads((found.folder / MODULES_FILE).read_text(encoding="utf-8")):
        module = found.folder / row["path"]
        if row["path"] not in ("", found.encoder_path) and module.is_dir():  # a Normalize may have no folder
            shutil.copytree(module, target / row["path"])
    files = [found.folder / MODULES_FILE, found.folder / PROMPTS_FILE, found.encoder_file]
    for file in files:
        if file is not None and file.is_file():
            shutil.copyfile(file, target / file.relative_to(found.folder))
