"""What a student learns from and is scored by: the recipe's data, tokenised as its method wants it.

`load_training_data` reads one of three kinds: labelled examples, running text to mask, or single texts with the
teacher's sentence vectors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from potstill.checkpoint import Checkpoint, read_folder
from potstill.checkpoint.model import SentenceEncoder, SentenceHead
from potstill.config import Recipe
from potstill.data import Examples, Splits, load_examples, load_splits
from potstill.distill.augmentation import augment
from potstill.distill.batches import Collator, count_shared, hash_rows, make_collator, make_mlm_collator, tokenize
from potstill.distill.corpus import load_corpus, token_counts
from potstill.distill.evaluation import Evaluation
from potstill.distill.packing import check_packable
from potstill.distill.teacher_embeddings import add_teacher_vectors, load_single_texts, teacher_head
from potstill.distill.torch_session import Model, Scores, evaluate_words, problem_type_of
from potstill.errors import DataError, RecipeError
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
    teacher: Checkpoint,
    *,
    whole: Checkpoint | None = None,
    work_dir: Path,
    progress: Progress,
) -> TrainingData:
    """Load and tokenise the recipe's data as its method wants it.

    Args:
        recipe: names data, task and method.
        teacher: its tokenizer makes the rows.
        whole: the teacher as its checkpoint has it, if `teacher` is trimmed: its are the vectors of `embedding`.
        work_dir: keeps tokenised text and vectors for the next start.
        progress: is called with how far it is.

    Raises:
        DataError: if the data does not fit the task.
        RecipeError: if a setting has no effect on this data.
    """
    whole = whole or teacher
    if recipe.distill.method == "embedding":
        return _load_sentences(recipe, teacher, whole, work_dir=work_dir, progress=progress)
    if get_task(recipe.task) in (FILL_MASK, FEATURE_EXTRACTION):
        return _load_running_text(recipe, teacher, whole, work_dir=work_dir, progress=progress)
    return _load_labelled(recipe, teacher, whole, progress=progress)


def _load_labelled(recipe: Recipe, teacher: Checkpoint, whole: Checkpoint, *, progress: Progress) -> TrainingData:
    """Load labelled texts, pairs, tagged words or questions."""
    task, problem, label_names = get_task(recipe.task), problem_type_of(teacher.model), teacher.label_names
    splits = read_splits(recipe, label_names=label_names, problem_type=problem)
    train_examples, eval_examples = splits.train, splits.evaluation
    if recipe.distill.augment:
        train_examples = augment(train_examples, recipe, copies=recipe.distill.augment, progress=progress)
    if recipe.data.packing != "none":
        raise RecipeError(f"data.packing={recipe.data.packing} has no effect on labelled texts; leave it out")
    kind = kind_of(task, problem)
    evaluation, by_whole = (
        Evaluation(tokenizer, eval_examples, max_length=recipe.max_length, task=task)
        for tokenizer in (teacher.tokenizer, whole.tokenizer)
    )
    return TrainingData(
        train_set=tokenize(train_examples, teacher.tokenizer, max_length=recipe.max_length),
        collate=make_collator(teacher.tokenizer),
        eval_set=None,
        score=lambda model, who: evaluation.score(model, progress=progress, who=who),
        score_whole=lambda model, who: by_whole.score(model, progress=progress, who=who),
        evaluation=evaluation,
        metric=primary_metric(task, problem, asked=recipe.metric, num_labels=len(label_names) or None),
        # A teacher that does not beat this has nothing to teach (`run._check_teacher`).
        floor=trivial_scores(eval_examples, kind=kind),
        about=_about(eval_examples)
        | {
            "train_examples": len(train_examples),
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


def _about(examples: Examples) -> dict[str, object]:
    return {"name": examples.name, "split": examples.split, "examples": len(examples), "sha256": examples.sha256}


def read_splits(recipe: Recipe, *, label_names: Sequence[str] | None, problem_type: str | None) -> Splits:
    """Load both splits of the recipe's labelled data."""
    data = recipe.data
    return load_splits(
        data.name,
        train=(data.train_split, data.max_train_examples),
        evaluation=(data.eval_split, data.max_eval_examples),
        task=get_task(recipe.task),
        text_columns=data.text_columns,
        label_column=data.label_column,
        label_names=label_names,
        problem_type=problem_type,
    )
