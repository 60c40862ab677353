"""What a student learns from and is scored by: the recipe's data, tokenised as its method wants it.

`load_training_data` reads one of three kinds: labelled examples, running text to mask, or single texts with the
teacher's sentence vectors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from potstill.checkpoint import Checkpoint, read_folder
from potstill.checkpoint.model import SentenceEncoder, SentenceHead
from potstill.config import Recipe
from potstill.data import Examples, Extra, Splits, load_examples, load_splits, load_vectors, without_labels
from potstill.distill.augmentation import augment
from potstill.distill.batches import Collator, count_shared, hash_rows, make_collator, make_mlm_collator, tokenize
from potstill.distill.corpus import load_corpus, token_counts
from potstill.distill.evaluation import Evaluation
from potstill.distill.packing import check_packable
from potstill.distill.teacher_answers import ask_teachers, check_teacher, score_answers, with_labels_and_answers
from potstill.distill.teacher_embeddings import (
    add_teacher_vectors,
    head_of_vectors,
    load_single_texts,
    teacher_head,
    with_vectors,
)
from potstill.distill.torch_session import Model, Scores, evaluate_words, problem_type_of
from potstill.errors import AbsentError, DataError, RecipeError
from potstill.evaluation.trivial import trivial_scores, uniform_scores
from potstill.progress import Progress
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, get_task, kind_of, lower_is_better, primary_metric


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Tokenised training rows, how they are batched, and how a student is scored."""

    train_set: Dataset
    collate: Collator
    eval_set: Dataset | None
    """Rows to take the loss on where there is no score."""
    score: Callable[[Model, str], Scores] | None
    """Returns a model's scores; takes it and its name for progress. None where only the loss can be taken."""
    score_whole: Callable[[Model, str], Scores] | None = None
    """As `score`, of a teacher whose vocabulary is whole, where that of the rows is trimmed."""
    evaluation: Evaluation | None = None
    """For labelled data: what `score` is made of; it also compares a model with trivial answers."""
    metric: str
    """The score that picks the best checkpoint."""
    floor: Scores
    """The best scores, by metric, of answers that ignore the text; empty where there is none."""
    teacher_head: SentenceHead | None = None
    """For method `embedding`: pooling and further layers that make the teacher's sentence vectors."""
    vector_width: int | None = None
    """For vectors from a column of the data: how many numbers each has."""
    num_labelled: int | None = None
    """How many of the rows, the first ones, have a label; None where rows are no labelled texts."""
    teacher_scores: Scores | None = None
    """Of stored answers: how good they are, and `teacher_floor` how good an answer that ignores the text is there."""
    teacher_floor: Scores = field(default_factory=dict)
    about: dict[str, object]
    """What the report says of the data: names, splits, counts and hashes, as JSON values."""

    @property
    def maximise(self) -> bool:
        """Whether a higher score is better."""
        return not lower_is_better(self.metric)

    def hashes(self) -> dict[str, object]:
        """Return SHA-256 hashes of the training and evaluation data, by which a resumed run is recognised."""
        evaluation = self.about.get("sha256")
        if not evaluation and self.eval_set is not None:
            evaluation = hash_rows(self.eval_set)
        return {"training data": hash_rows(self.train_set), "evaluation data": evaluation or None}


def load_training_data(
    recipe: Recipe,
    reader: Checkpoint,
    *,
    whole: Checkpoint | None = None,
    teachers: Sequence[Checkpoint] = (),
    is_taught: bool = True,
    work_dir: Path,
    progress: Progress,
) -> TrainingData:
    """Load and tokenise the recipe's data as its method wants it.

    Args:
        recipe: names data, task and method.
        reader: its tokenizer makes the rows, and its labels are those of the data. It is the teacher, or if answers are
            stored what the student starts from.
        whole: the teacher as its checkpoint has it, if it is trimmed: its are the vectors of `embedding`.
        teachers: those whose answers are stored in the rows.
        is_taught: whether there is a teacher, so that texts without a label can be learned from.
        work_dir: keeps tokenised text, vectors and answers for the next start.
        progress: is called with how far it is.

    Raises:
        DataError: if the data does not fit the task.
        RecipeError: if a setting has no effect on this data.
    """
    whole = whole or reader
    if recipe.distill.method == "embedding" and recipe.teacher.column is not None:
        return _load_given_vectors(recipe, reader, progress=progress)
    if recipe.distill.method == "embedding":
        return _load_sentences(recipe, reader, whole, work_dir=work_dir, progress=progress)
    if get_task(recipe.task) in (FILL_MASK, FEATURE_EXTRACTION):
        return _load_running_text(recipe, reader, whole, work_dir=work_dir, progress=progress)
    return _load_labelled(recipe, reader, whole, teachers, is_taught=is_taught, work_dir=work_dir, progress=progress)


def _load_labelled(
    recipe: Recipe,
    reader: Checkpoint,
    whole: Checkpoint,
    teachers: Sequence[Checkpoint],
    *,
    is_taught: bool,
    work_dir: Path,
    progress: Progress,
) -> TrainingData:
    """Load texts, pairs, tagged words or questions, with labels and, if there is a teacher, without."""
    task, problem, label_names = get_task(recipe.task), problem_type_of(reader.model), reader.label_names
    splits = read_splits(recipe, label_names=label_names, problem_type=problem, is_taught=is_taught)
    train_examples, eval_examples = splits.train, splits.evaluation
    if recipe.distill.augment:
        train_examples = augment(train_examples, recipe, copies=recipe.distill.augment, progress=progress)
    if recipe.data.packing != "none":
        raise RecipeError(f"data.packing={recipe.data.packing} has no effect on labelled texts; leave it out")
    kind = kind_of(task, problem)
    metric = primary_metric(task, problem, asked=recipe.metric, num_labels=len(label_names) or None)
    if teachers:
        ask = partial(
            ask_teachers,
            task=task,
            label_names=label_names,
            max_length=recipe.max_length,
            cache_dir=work_dir.with_name(f"{work_dir.name}-answers"),
            progress=progress,
        )
        # Each alone: in a mean of three, one whose labels stand in another order would hardly be seen.
        for teacher in teachers if len(teachers) > 1 and not recipe.distill.allow_weak_teacher else ():
            judged = with_labels_and_answers(ask([teacher], eval_examples))
            if judged is not None:
                scores, floors = score_answers(judged, kind=kind, metric=metric), trivial_scores(judged, kind=kind)
                check_teacher(f"teacher {teacher.name}", scores, floors, metric=metric)
        train_examples, eval_examples = (ask(teachers, examples) for examples in (train_examples, eval_examples))
    teacher_scores, teacher_floor = None, {}
    if recipe.teacher.is_stored and is_taught:
        judged = with_labels_and_answers(eval_examples) or with_labels_and_answers(train_examples)
        teacher_scores = score_answers(judged, kind=kind, metric=metric) if judged else {}
        teacher_floor = trivial_scores(judged, kind=kind) if judged else {}
    evaluation, by_whole, eval_set = None, None, None
    if eval_examples.labels is not None:
        evaluation, by_whole = (
            Evaluation(tokenizer, eval_examples, max_length=recipe.max_length, task=task)
            for tokenizer in (reader.tokenizer, whole.tokenizer)
        )
    else:  # nothing to score by: what is left is how far the student is from its teacher on texts that it did not see
        metric = "loss"
        unlabelled = without_labels(eval_examples, kind=kind)
        if recipe.teacher.is_stored and unlabelled.answers is None:
            raise DataError(
                f"{eval_examples.name} ({eval_examples.split}) has neither labels nor answers in column "
                f"{recipe.teacher.column!r}, so there is nothing to score on; give one of them"
            )
        eval_set = tokenize(unlabelled, reader.tokenizer, max_length=recipe.max_length)
    return TrainingData(
        train_set=tokenize(train_examples, reader.tokenizer, max_length=recipe.max_length),
        collate=make_collator(reader.tokenizer),
        eval_set=eval_set,
        score=(lambda model, who: evaluation.score(model, progress=progress, who=who)) if evaluation else None,
        score_whole=(lambda model, who: by_whole.score(model, progress=progress, who=who)) if by_whole else None,
        evaluation=evaluation,
        metric=metric,
        # A teacher that does not beat this has nothing to teach (`run._check_teacher`).
        floor=trivial_scores(eval_examples, kind=kind) if evaluation else {},
        num_labelled=len(train_examples) - train_examples.num_unlabelled,
        teacher_scores=teacher_scores,
        teacher_floor=teacher_floor,
        about=_about(eval_examples)
        | {
            "train_examples": len(train_examples),
            "labelled_examples": len(train_examples) - train_examples.num_unlabelled,
            "unlabelled": recipe.data.unlabelled,
            "taught_by": _taught_by(recipe) if is_taught else None,
            "scored_by": "loss" if evaluation is None else "labels",
            "kind": kind,
            "train_split": splits.train.split,
            "train_sha256": splits.train.sha256,
            "problem_type": splits.train.problem_type,
            "text_columns": list(splits.train.text_columns),
            "label_columns": list(splits.train.label_columns),
            "labels": list(splits.train.label_names),
            "labels_read": splits.train.labels_read,
            "shared_texts": splits.shared,
            "notes": list(splits.evaluation.notes),
        },
    )


def _taught_by(recipe: Recipe) -> str:
    """Return in words what the student learns from beside labels."""
    teacher = recipe.teacher
    if teacher.column is not None:
        return f"column {teacher.column!r} of the data"
    names = [str(teacher.model), *teacher.ensemble]
    if len(names) > 1:
        return f"{', '.join(names[:-1])} and {names[-1]}, averaged, each asked once"
    return f"{names[0]}, asked " + ("once" if teacher.is_stored else "at every step")


def _load_running_text(
    recipe: Recipe, teacher: Checkpoint, whole: Checkpoint, *, work_dir: Path, progress: Progress
) -> TrainingData:
    """Load unlabelled text, masked where the method learns words, and scored by perplexity then."""
    data, settings = recipe.data, recipe.distill.settings()
    splits = (data.train_split, data.max_train_examples), (data.eval_split, data.max_eval_examples)
    train_set, eval_set, eval_set_of_whole = (
        load_corpus(
            data.name,
            split=split,
            tokenizer=tokenizer,
            max_length=recipe.max_length,
            text_column=data.text_columns[0] if data.text_columns else None,
            # Each held-out text is alone, so that scores do not depend on packing.
            packing=data.packing if split == data.train_split else "none",
            limit=limit,
            num_proc=data.num_proc,
            streaming=data.streaming,
            cache_dir=work_dir.with_name(f"{work_dir.name}-text"),
        )
        for (split, limit), tokenizer in (
            (splits[0], teacher.tokenizer),
            (splits[1], teacher.tokenizer),
            (splits[1], whole.tokenizer),
        )
    )
    if data.packing == "texts":
        check_packable(teacher.model.config)
        if recipe.distill.method == "tinybert":
            raise RecipeError("data.packing=texts puts strangers in the attention that tinybert compares; use none")
    about = {
        "name": data.name,
        "split": data.eval_split,
        "examples": len(eval_set),
        "train_examples": len(train_set),
        "train_split": data.train_split,
        "shared_texts": count_shared(eval_set, train_set),
    }
    # Such as a file that was given as both splits.
    if about["shared_texts"] == about["examples"]:
        raise DataError(
            f"every text of {data.name} ({data.eval_split}) is in {data.train_split} as well, so a score would "
            "say nothing; take other texts to score on, or pass the training file alone, of which a tenth is held out"
        )
    if "mask_share" not in settings:
        return TrainingData(
            train_set=train_set,
            collate=make_mlm_collator(teacher.tokenizer, seed=recipe.seed, mask=False),
            eval_set=eval_set,
            score=None,
            metric="loss",
            floor={},
            about=about,
        )
    share, smoothing, vocabulary = settings["mask_share"], settings["mask_smoothing"], teacher.model.config.vocab_size

    def scorer(tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> Callable[[Model, str], Scores]:
        def score(model: Model, who: str) -> Scores:
            assert not isinstance(model, SentenceEncoder)
            return evaluate_words(model, tokenizer, rows, mask_share=share, progress=progress, who=who)

        return score

    return TrainingData(
        train_set=train_set,
        collate=make_mlm_collator(
            teacher.tokenizer,
            seed=recipe.seed,
            share=share,
            counts=token_counts(train_set, vocabulary) if smoothing else None,
            smoothing=smoothing,
            extra_share=settings.get("extra_share", 0.0),
            kl_positions=settings.get("kl_positions", "masked"),
        ),
        eval_set=eval_set,
        score=scorer(teacher.tokenizer, eval_set),
        score_whole=scorer(whole.tokenizer, eval_set_of_whole),
        metric=primary_metric(FILL_MASK, asked=recipe.metric),
        floor=uniform_scores(vocabulary),
        about=about,
    )


def _load_sentences(
    recipe: Recipe, teacher: Checkpoint, whole: Checkpoint, *, work_dir: Path, progress: Progress
) -> TrainingData:
    """Load single texts with the teacher's vectors, scored by the similarity of pairs if the data has scores."""
    data, head = recipe.data, teacher_head(teacher.name, recipe.distill.pooling)
    train_set, eval_set = (
        add_teacher_vectors(
            load_single_texts(data.name, split=split, text_columns=data.text_columns, limit=limit),
            whole,
            head,
            tokenizer=teacher.tokenizer,
            max_length=recipe.max_length,
            cache_dir=work_dir.with_name(f"{work_dir.name}-vectors"),
            progress=progress,
        )
        for split, limit in ((data.train_split, data.max_train_examples), (data.eval_split, data.max_eval_examples))
    )
    examples = load_examples(
        data.name,
        split=data.eval_split,
        task=get_task(recipe.task),
        text_columns=data.text_columns,
        label_column=data.label_column,
        limit=data.max_eval_examples,
    )
    evaluation = by_whole = None
    if examples.labels is not None:
        evaluation, by_whole = (
            Evaluation(tokenizer, examples, max_length=recipe.max_length, task=FEATURE_EXTRACTION)
            for tokenizer in (teacher.tokenizer, whole.tokenizer)
        )
    return TrainingData(
        train_set=train_set,
        collate=make_collator(teacher.tokenizer),
        eval_set=eval_set,
        score=(lambda model, who: evaluation.score(model, progress=progress, who=who)) if evaluation else None,
        score_whole=(lambda model, who: by_whole.score(model, progress=progress, who=who)) if by_whole else None,
        evaluation=evaluation,
        teacher_head=head,
        metric=primary_metric(FEATURE_EXTRACTION, asked=recipe.metric) if evaluation else "loss",
        floor=trivial_scores(examples, kind=FEATURE_EXTRACTION.name),
        about=_about(examples)
        | {
            "train_examples": len(train_set),
            "train_split": data.train_split,
            "teacher_vectors": head.describe(),
            "notes": [*examples.notes, *read_folder(teacher.name).notes],
            "text_columns": list(examples.text_columns),
            "label_columns": list(examples.label_columns),
        },
    )


def _load_given_vectors(recipe: Recipe, reader: Checkpoint, *, progress: Progress) -> TrainingData:
    """Load single texts with the vectors of another model from a column, scored as `_load_sentences`."""
    data, column, task = recipe.data, recipe.teacher.column, get_task(recipe.task)
    assert column is not None
    texts, vectors = load_vectors(
        data.name, split=data.train_split, column=column, text_columns=data.text_columns, limit=data.max_train_examples
    )
    train_set = with_vectors(texts, vectors, reader.tokenizer, max_length=recipe.max_length)
    about: dict[str, object]
    evaluation, eval_set = None, None
    try:
        held_out, their_vectors = load_vectors(
            data.name,
            split=data.eval_split,
            column=column,
            text_columns=data.text_columns,
            limit=data.max_eval_examples,
        )
    except AbsentError:
        # Without vectors it must be pairs with a score.
        examples = load_examples(
            data.name,
            split=data.eval_split,
            task=task,
            label_column=data.label_column,
            limit=data.max_eval_examples,
        )
        if examples.labels is None:
            raise
        evaluation = Evaluation(reader.tokenizer, examples, max_length=recipe.max_length, task=task)
        about = _about(examples) | {"notes": list(examples.notes)}
    else:
        if their_vectors.shape[1] != vectors.shape[1]:
            raise DataError(
                f"column {column!r} of {data.name} holds vectors of {vectors.shape[1]} numbers in {data.train_split} "
                f"and of {their_vectors.shape[1]} in {data.eval_split}; all must come from one model"
            )
        eval_set = with_vectors(held_out, their_vectors, reader.tokenizer, max_length=recipe.max_length)
        about = {"name": data.name, "split": data.eval_split, "examples": len(held_out), "notes": []}
    head = head_of_vectors(vectors, recipe.distill.pooling)
    return TrainingData(
        train_set=train_set,
        collate=make_collator(reader.tokenizer),
        eval_set=eval_set,
        score=(lambda model, who: evaluation.score(model, progress=progress, who=who)) if evaluation else None,
        evaluation=evaluation,
        teacher_head=head,
        vector_width=vectors.shape[1],
        metric=primary_metric(FEATURE_EXTRACTION, asked=recipe.metric) if evaluation else "loss",
        floor={},
        about=about
        | {
            "train_examples": len(train_set),
            "train_split": data.train_split,
            "taught_by": _taught_by(recipe),
            "teacher_vectors": f"{vectors.shape[1]} numbers each" + (", length 1" if len(head.layers) else ""),
        },
    )


def _about(examples: Examples) -> dict[str, object]:
    return {"name": examples.name, "split": examples.split, "examples": len(examples), "sha256": examples.sha256}


def read_splits(
    recipe: Recipe, *, label_names: Sequence[str] | None, problem_type: str | None, is_taught: bool = False
) -> Splits:
    """Load both splits of the recipe's labelled data, and what is learned from without labels if there is a teacher."""
    data = recipe.data
    return load_splits(
        data.name,
        train=(data.train_split, data.max_train_examples),
        evaluation=(data.eval_split, data.max_eval_examples),
        task=get_task(recipe.task),
        text_columns=data.text_columns,
        label_column=data.label_column,
        label_names=label_names or data.labels,
        problem_type=problem_type,
        extra=Extra(unlabelled=data.unlabelled, answers=recipe.teacher.column) if is_taught else None,
    )
