"""From a recipe to what training needs: rows, batches, the method's loss, and the score that picks a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.checkpoint import Checkpoint, read_folder
from potstill.checkpoint.model import SentenceEncoder
from potstill.config import Recipe
from potstill.data import Examples, Splits, load_examples, load_splits
from potstill.distill.augmentation import augment
from potstill.distill.batches import EpochRows, count_shared, make_collator, make_mlm_collator, tokenize
from potstill.distill.corpus import load_corpus
from potstill.distill.evaluation import Evaluation, Model, Scores, evaluate_words, problem_type_of
from potstill.distill.masking import token_counts
from potstill.distill.methods.distilbert import TripleLoss
from potstill.distill.methods.embedding import EmbeddingDistillation
from potstill.distill.methods.minilmv2 import MiniLMv2
from potstill.distill.methods.mobilebert import MobileBert
from potstill.distill.methods.objective import Objective
from potstill.distill.methods.task import TaskDistillation
from potstill.distill.methods.tinybert import TinyBert, check_map, uniform_map
from potstill.distill.packing import check_packable
from potstill.distill.teacher_embeddings import (
    add_teacher_vectors,
    collate_vectors,
    load_single_texts,
    student_head,
    teacher_head,
)
from potstill.errors import CheckpointError, DataError, RecipeError
from potstill.evaluation.trivial import trivial_scores, uniform_scores
from potstill.progress import Progress
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, Task, get_task, kind_of, lower_is_better, primary_metric

_LARGE = 24
# MiniLMv2's large teachers teach from an upper middle layer, the 21st of 24 (arXiv 2012.15828, section 4.2).
_UPPER_MIDDLE = 21 / 24
_HELD_OUT_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """What a student learns from and is scored by."""

    train_set: Dataset
    collate: Callable[[Any], Any]
    eval_set: Dataset | None
    """Rows to take the loss on where there is no score."""
    score: Callable[[Model, str], Scores] | None
    """Scores a model, told by its name; None where only the loss on `eval_set` says anything."""
    evaluation: Evaluation | None = None
    """Of labelled data: what `score` asks, for more than scores."""
    metric: str
    floor: Scores
    """What an answer scores that ignores its text; empty where there is none."""
    about: dict[str, Any]
    """The data in the report."""

    @property
    def maximise(self) -> bool:
        """Whether a higher score is better."""
        return not lower_is_better(self.metric)


def load_training_data(
    recipe: Recipe,
    teacher: Checkpoint,
    *,
    work_dir: Path,
    label_names: tuple[str, ...] | None = None,
    progress: Progress,
) -> TrainingData:
    """Load and tokenise the recipe's data as its method wants it.

    Args:
        recipe: names data, task and method.
        teacher: its tokenizer makes the rows; `embedding` also needs its vectors.
        work_dir: keeps tokenised text and vectors for the next start.
        label_names: the model's labels in their order; None takes the teacher's.
        progress: is told how far it is.

    Raises:
        DataError: if the data does not fit the task.
        RecipeError: if a setting has no effect on this data.
    """
    task = get_task(recipe.task)
    if recipe.distill.method == "embedding":
        return _pairs(recipe, teacher, work_dir=work_dir, progress=progress)
    if task in (FILL_MASK, FEATURE_EXTRACTION):
        return _running_text(recipe, teacher, work_dir=work_dir, progress=progress)
    return _labelled(recipe, teacher, task=task, label_names=label_names, progress=progress)


def make_objective(recipe: Recipe, *, teacher: PreTrainedModel, student: PreTrainedModel) -> Objective:
    """Return the loss of the recipe's method for this pair; what it learns itself starts from the recipe's seed.

    Raises:
        CheckpointError: if the method cannot compare the two.
    """
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return _make_objective(recipe, teacher, student)


def _make_objective(recipe: Recipe, teacher: PreTrainedModel, student: PreTrainedModel) -> Objective:
    config, settings = recipe.distill, recipe.distill.settings()
    if config.method in {"task", "distilbert"} and settings["alpha_cos"] > 0:
        _check_widths(student, teacher)
    match config.method:
        case "task":
            return TaskDistillation(_kind(recipe, teacher), **settings)
        case "distilbert":
            return _triple_loss(settings)
        case "minilmv2":
            depth = teacher.config.num_hidden_layers
            usual = round(depth * _UPPER_MIDDLE) - 1 if depth >= _LARGE else depth - 1
            layer = settings["teacher_layer"]
            return MiniLMv2(
                teacher_layer=usual if layer is None else layer,
                student_width=_query_width(student),
                teacher_width=_query_width(teacher),
                heads=settings["relation_heads"],
                relation_weights=settings["relation_weights"],
            )
        case "tinybert":
            return TinyBert(
                student,
                teacher,
                layer_map=_layer_map(settings["layer_map"], student, teacher),
                weights={
                    short: settings[f"alpha_{name}"]
                    for short, name in (
                        ("emb", "embedding"),
                        ("hid", "hidden"),
                        ("att", "attention"),
                        ("pred", "prediction"),
                    )
                },
                problem=None if get_task(recipe.task) in (FILL_MASK, FEATURE_EXTRACTION) else _kind(recipe, teacher),
                intermediate_share=settings["intermediate_share"],
                temperature=settings["temperature"],
            )
        case "mobilebert":
            return MobileBert(
                student,
                teacher,
                layer_map=_layer_map(None, student, teacher),
                weights={"feat": settings["alpha_feature"], "att": settings["alpha_attention"]},
                words=_triple_loss(settings | {"alpha_cos": 0.0}),
                progressive_share=settings["progressive_share"],
            )
        case "embedding":
            assert recipe.teacher.model is not None
            pooling = settings["pooling"]
            head = student_head(
                teacher_head(recipe.teacher.model, pooling),
                student=recipe.student.model,
                pooling=pooling,
                widths=(student.config.hidden_size, teacher.config.hidden_size),
            )
            return EmbeddingDistillation(head, alpha_cos=settings["alpha_cos"], alpha_mse=settings["alpha_mse"])


def teacher_as_used(recipe: Recipe, teacher: Checkpoint) -> Model:
    """Return a teacher as it is scored: of sentence vectors, with what makes them."""
    if recipe.distill.method != "embedding":
        return teacher.model
    return SentenceEncoder(teacher.model, teacher_head(teacher.name, recipe.distill.pooling).to(teacher.model.device))


def make_labels_objective(recipe: Recipe, model: PreTrainedModel) -> Objective:
    """Return the loss of the data alone, without a teacher: labels, or masked words."""
    if get_task(recipe.task) is FILL_MASK:
        return TripleLoss(temperature=1.0, alpha_kl=0.0, alpha_mlm=1.0, alpha_cos=0.0)
    return TaskDistillation(_kind(recipe, model), temperature=1.0, alpha_kl=0.0, alpha_ce=1.0, alpha_cos=0.0)


def score_of(
    training_data: TrainingData, objective: Objective, teacher: PreTrainedModel | None, *, who: str = "student"
) -> Callable[[PreTrainedModel], Scores]:
    """Return what scores a model during training: the task's score, or the loss on texts held out."""
    if training_data.score is not None:
        scorer = training_data.score
        return lambda model: scorer(objective.as_used(model), who)
    assert training_data.eval_set is not None
    assert teacher is not None
    rows, collate = training_data.eval_set, training_data.collate
    return lambda student: {"loss": held_out_loss(student, teacher, objective, rows=rows, collate=collate)}


def held_out_loss(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    objective: Objective,
    *,
    rows: Dataset,
    collate: Callable[[Any], Any],
) -> float:
    """Return the objective on rows held out, as it is weighed at the start of the training."""
    student.to(teacher.device)
    objective.to(teacher.device)
    weights = {name: weight for name, weight in objective.weights(0.0).items() if weight > 0}
    sums, counts = dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0)
    numbered = EpochRows(rows)
    ones = dict.fromkeys(weights, 1.0)
    for start in range(0, len(rows), _HELD_OUT_BATCH):
        batch = collate(numbered.__getitems__(range(start, min(start + _HELD_OUT_BATCH, len(rows)))))
        for name, count in objective.count(batch).items():
            if name in counts:
                counts[name] += count
        on_device = {name: value.to(teacher.device) for name, value in batch.items()}
        with torch.no_grad():
            _, parts = objective(student, teacher, on_device, ones)
        for name, value in parts.items():
            sums[name] += value.item()
    return sum(weight * sums[name] / max(counts[name], 1) for name, weight in weights.items())


def _labelled(
    recipe: Recipe, teacher: Checkpoint, *, task: Task, label_names: tuple[str, ...] | None, progress: Progress
) -> TrainingData:
    problem = problem_type_of(teacher.model)
    names = label_names or teacher.label_names
    splits = read_splits(recipe, label_names=names, problem_type=problem)
    train_examples, eval_examples = splits.train, splits.evaluation
    copies = recipe.distill.augment
    if copies:
        train_examples = augment(train_examples, recipe, copies=copies, progress=progress)
    if recipe.data.packing != "none":
        raise RecipeError(f"data.packing={recipe.data.packing} has no effect on labelled texts; leave it out")
    kind = kind_of(task, problem)

    evaluation = Evaluation(teacher.tokenizer, eval_examples, max_length=recipe.max_length, task=task)

    def score(model: Model, who: str) -> Scores:
        return evaluation.score(model, progress=progress, who=who)

    return TrainingData(
        train_set=tokenize(train_examples, teacher.tokenizer, max_length=recipe.max_length),
        collate=make_collator(teacher.tokenizer),
        eval_set=None,
        score=score,
        evaluation=evaluation,
        metric=primary_metric(task, problem, asked=recipe.metric, num_labels=len(names) or None),
        floor=trivial_scores(eval_examples, kind=kind),
        about=_about(eval_examples) | {"train_examples": len(train_examples), "kind": kind} | _about_labels(splits),
    )


def _running_text(recipe: Recipe, teacher: Checkpoint, *, work_dir: Path, progress: Progress) -> TrainingData:
    data, settings = recipe.data, recipe.distill.settings()
    masked = "mask_share" in settings
    train_set, eval_set = (
        load_corpus(
            data.name,
            split=split,
            tokenizer=teacher.tokenizer,
            max_length=recipe.max_length,
            text_column=data.text_columns[0] if data.text_columns else None,
            packing=data.packing if split == data.train_split else "none",
            limit=limit,
            num_proc=data.num_proc,
            streaming=data.streaming,
            cache_dir=work_dir.with_name(f"{work_dir.name}-text"),
        )
        for split, limit in _splits(recipe)
    )
    if data.packing == "texts":
        check_packable(teacher.model.config)
        if recipe.distill.method == "tinybert":
            raise RecipeError("data.packing=texts puts strangers in the attention that tinybert compares; use none")
    about = {"name": data.name, "split": data.eval_split, "examples": len(eval_set), "train_examples": len(train_set)}
    about |= {"train_split": data.train_split, "shared_texts": count_shared(eval_set, train_set)}
    _check_shared(about)
    if not masked:
        return TrainingData(
            train_set=train_set,
            collate=make_mlm_collator(teacher.tokenizer, seed=recipe.seed, mask=False),
            eval_set=eval_set,
            score=None,
            metric="loss",
            floor={},
            about=about,
        )
    smoothing = settings["mask_smoothing"]
    vocabulary = teacher.model.config.vocab_size

    def score(model: Model, who: str) -> Scores:
        assert not isinstance(model, SentenceEncoder)
        share = settings["mask_share"]
        return evaluate_words(model, teacher.tokenizer, eval_set, mask_share=share, progress=progress, who=who)

    return TrainingData(
        train_set=train_set,
        collate=make_mlm_collator(
            teacher.tokenizer,
            seed=recipe.seed,
            share=settings["mask_share"],
            counts=token_counts(train_set, vocabulary) if smoothing else None,
            smoothing=smoothing,
            extra_share=settings.get("extra_share", 0.0),
            kl_positions=settings.get("kl_positions", "masked"),
        ),
        eval_set=eval_set,
        score=score,
        metric=primary_metric(FILL_MASK, asked=recipe.metric),
        floor=uniform_scores(vocabulary),
        about=about,
    )


def _pairs(recipe: Recipe, teacher: Checkpoint, *, work_dir: Path, progress: Progress) -> TrainingData:
    """Return the data's single texts with the teacher's vectors, scored by the similarity of pairs if it has any."""
    head = teacher_head(teacher.name, recipe.distill.pooling)
    (train_split, train_limit), (eval_split, eval_limit) = _splits(recipe)
    data, tokenizer = recipe.data, teacher.tokenizer
    train_set, eval_set = (
        add_teacher_vectors(
            load_single_texts(data.name, split=split, text_columns=data.text_columns, limit=limit),
            teacher,
            head,
            max_length=recipe.max_length,
            cache_dir=work_dir.with_name(f"{work_dir.name}-vectors"),
            progress=progress,
        )
        for split, limit in ((train_split, train_limit), (eval_split, eval_limit))
    )
    examples = load_examples(
        data.name,
        split=eval_split,
        task=get_task(recipe.task),
        text_columns=data.text_columns,
        label_column=data.label_column,
        limit=eval_limit,
    )
    collate = collate_vectors(make_collator(tokenizer))

    evaluation = Evaluation(tokenizer, examples, max_length=recipe.max_length, task=FEATURE_EXTRACTION)

    def score(model: Model, who: str) -> Scores:
        return evaluation.score(model, progress=progress, who=who)

    has_scores = examples.labels is not None
    return TrainingData(
        train_set=train_set,
        collate=collate,
        eval_set=eval_set,
        score=score if has_scores else None,
        evaluation=evaluation if has_scores else None,
        metric=primary_metric(FEATURE_EXTRACTION, asked=recipe.metric) if has_scores else "loss",
        floor=trivial_scores(examples, kind=FEATURE_EXTRACTION.name),
        about=_about(examples)
        | {
            "train_examples": len(train_set),
            "train_split": train_split,
            "teacher_vectors": head.describe(),
            "notes": [*examples.notes, *read_folder(teacher.name).notes],
            "text_columns": list(examples.text_columns),
            "label_columns": list(examples.label_columns),
        },
    )


def read_splits(recipe: Recipe, *, label_names: Sequence[str] | None, problem_type: str | None) -> Splits:
    """Load both splits of the recipe's labelled data."""
    data = recipe.data
    train, evaluation = _splits(recipe)
    return load_splits(
        data.name,
        train=train,
        evaluation=evaluation,
        task=get_task(recipe.task),
        text_columns=data.text_columns,
        label_column=data.label_column,
        label_names=label_names,
        problem_type=problem_type,
    )


def _check_shared(about: dict[str, Any]) -> None:
    if about["shared_texts"] == about["examples"]:
        raise DataError(
            f"every text of {about['name']} ({about['split']}) is in {about['train_split']} as well, so a score would "
            "say nothing; take other texts to score on, or pass the training file alone, of which a tenth is held out"
        )


def _splits(recipe: Recipe) -> tuple[tuple[str, int | None], tuple[str, int | None]]:
    data = recipe.data
    return (data.train_split, data.max_train_examples), (data.eval_split, data.max_eval_examples)


def _about(examples: Examples) -> dict[str, Any]:
    return {"name": examples.name, "split": examples.split, "examples": len(examples), "sha256": examples.sha256}


def _about_labels(splits: Splits) -> dict[str, Any]:
    """Return how labelled data was read, for the plan and the report."""
    ours, theirs = splits.train, splits.evaluation
    return {
        "train_split": ours.split,
        "train_sha256": ours.sha256,
        "problem_type": ours.problem_type,
        "text_columns": list(ours.text_columns),
        "label_columns": list(ours.label_columns),
        "labels": list(ours.label_names),
        "labels_read": ours.labels_read,
        "shared_texts": splits.shared,
        "notes": list(theirs.notes),
    }


def _kind(recipe: Recipe, model: PreTrainedModel) -> str:
    return kind_of(get_task(recipe.task), problem_type_of(model))


def _triple_loss(settings: dict[str, Any]) -> TripleLoss:
    return TripleLoss(**{name: settings[name] for name in ("temperature", "alpha_kl", "alpha_mlm", "alpha_cos")})


def _check_widths(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    ours, theirs = student.config.hidden_size, teacher.config.hidden_size
    if ours != theirs:
        raise CheckpointError(
            f"the student has {ours} hidden units and the teacher {theirs}, and the cosine compares them one by one; "
            "set distill.alpha_cos=0, or take tinybert or minilmv2 for a narrower student"
        )


def _query_width(model: PreTrainedModel) -> int:
    """Return the width of a model's queries: MobileBERT's are as wide as its bottleneck."""
    return getattr(model.config, "true_hidden_size", None) or model.config.hidden_size


def _layer_map(asked: list[int] | None, student: PreTrainedModel, teacher: PreTrainedModel) -> list[int]:
    ours, theirs = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    return check_map(asked, ours, theirs) if asked else uniform_map(ours, theirs)


def tokenizers_agree(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Return whether two tokenizers number the same pieces alike, which every comparison of tokens rests on."""
    return bool(one.get_vocab() == other.get_vocab())
