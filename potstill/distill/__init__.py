"""Distil a student from a teacher.

from potstill.distill import create_student, distill
from potstill.recipe import load_recipe

report = distill(load_recipe("sst2"), Path("student"))
"""

import json
import time
from pathlib import Path
from typing import Any

from potstill.checkpoint import Checkpoint, count_parameters, hash_checkpoint, load_checkpoint
from potstill.data import Examples, load_examples
from potstill.distill import scratch
from potstill.distill.batches import tokenize
from potstill.distill.evaluate import evaluate_model
from potstill.distill.student import choose_layers, create_student
from potstill.distill.trainer import Job, TrainingResult, resolve_dtype, train
from potstill.errors import CheckpointError
from potstill.metrics import majority_share
from potstill.progress import Progress, silent
from potstill.publish import check_free, new_folder
from potstill.recipe import Recipe
from potstill.task import get_task

__all__ = ["create_student", "distill", "evaluate_model", "init_student", "read_report", "train_teacher"]


def distill(
    recipe: Recipe, out_dir: Path, *, resume: bool = False, overwrite: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Make the recipe's student from its teacher and data, and publish it as the checkpoint folder `out_dir`.

    Training checkpoints go to `OUT_DIR.training` beside it. Interrupted, the same call with `resume` goes on.

    Returns:
        The report, which is also in `OUT_DIR/distill.json`: scores of both models, parameters, steps and seconds.

    Raises:
        CheckpointError, DataError: before training, if teacher, student and data do not fit.
        TrainingError: if the loss is no longer a number; nothing is published.
    """
    check_free(out_dir, overwrite=overwrite)
    started = time.perf_counter()
    task = get_task(recipe.task)
    teacher = _load_teacher(recipe)
    _check_length(recipe, teacher)
    student = _load_student(recipe, teacher)
    train_examples, eval_examples = _load_data(recipe, label_names=teacher.label_names)
    teacher_scores = evaluate_model(
        teacher.model, teacher.tokenizer, eval_examples, max_length=recipe.max_length, progress=progress, who="teacher"
    )
    _check_teacher(teacher_scores[task.metric], eval_examples, recipe)
    result = train(
        student.model,
        teacher=teacher.model,
        tokenizer=teacher.tokenizer,
        train_set=tokenize(train_examples, teacher.tokenizer, max_length=recipe.max_length),
        eval_set=tokenize(eval_examples, teacher.tokenizer, max_length=recipe.max_length),
        job=Job(
            config=recipe.distill,
            metric=task.metric,
            seed=recipe.seed,
            work_dir=out_dir.with_name(f"{out_dir.name}.training"),
            resume=resume,
            stage="distil the student",
            progress=progress,
        ),
    )
    report = _report(recipe, examples=eval_examples, result=result, seconds=time.perf_counter() - started) | {
        "teacher": _describe(teacher) | {"scores": teacher_scores},
        "student": _describe(student) | {"layers_kept": _layers_kept(recipe, teacher), "scores": result.metrics},
    }
    with new_folder(out_dir, overwrite=overwrite) as folder:
        _save(student, folder, report=report)
    return report


def train_teacher(
    recipe: Recipe, out_dir: Path, *, resume: bool = False, overwrite: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Train the recipe's `teacher.scratch` and its tokenizer on the recipe's data, and publish the checkpoint."""
    config = recipe.teacher.scratch
    if config is None:
        raise CheckpointError("this recipe has no teacher.scratch to train")
    check_free(out_dir, overwrite=overwrite)
    started = time.perf_counter()
    train_examples, eval_examples = _load_data(recipe, label_names=None)
    max_length = recipe.max_length
    tokenizer = scratch.train_tokenizer(train_examples.texts, vocab_size=config.vocab_size, max_length=max_length)
    model = scratch.untrained_classifier(
        config, tokenizer=tokenizer, examples=train_examples, max_length=max_length, seed=recipe.seed
    )
    result = train(
        model,
        teacher=None,
        tokenizer=tokenizer,
        train_set=tokenize(train_examples, tokenizer, max_length=max_length),
        eval_set=tokenize(eval_examples, tokenizer, max_length=max_length),
        job=Job(
            config=scratch.training_config(config, recipe.distill),
            metric=get_task(recipe.task).metric,
            seed=recipe.seed,
            work_dir=out_dir.with_name(f"{out_dir.name}.training"),
            resume=resume,
            stage="train the teacher",
            progress=progress,
        ),
    )
    teacher = Checkpoint("scratch", model, tokenizer)
    report = _report(recipe, examples=eval_examples, result=result, seconds=time.perf_counter() - started) | {
        "teacher": _describe(teacher) | {"scores": result.metrics}
    }
    with new_folder(out_dir, overwrite=overwrite) as folder:
        _save(teacher, folder, report=report)
    return report


def init_student(recipe: Recipe, out_dir: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Publish the student as it is before training: cut from the teacher, or loaded."""
    check_free(out_dir, overwrite=overwrite)
    teacher = _load_teacher(recipe)
    student = _load_student(recipe, teacher)
    report = {
        "teacher": _describe(teacher),
        "student": _describe(student) | {"layers_kept": _layers_kept(recipe, teacher)},
        "steps": 0,
    }
    with new_folder(out_dir, overwrite=overwrite) as folder:
        _save(student, folder, report=report)
    return report


def read_report(checkpoint_dir: Path) -> dict[str, Any] | None:
    """Return the report that `distill` left in a checkpoint folder, or None."""
    file = checkpoint_dir / "distill.json"
    content: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return content


def _save(checkpoint: Checkpoint, folder: Path, *, report: dict[str, Any]) -> None:
    checkpoint.model.save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    (folder / "distill.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _load_teacher(recipe: Recipe) -> Checkpoint:
    if recipe.teacher.model is None:
        raise CheckpointError("name a teacher: teacher.model is a hub id or a checkpoint folder")
    teacher = load_checkpoint(recipe.teacher.model, get_task(recipe.task), tokenizer=recipe.tokenizer)
    if len(teacher.tokenizer) > teacher.model.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {len(teacher.tokenizer)} entries and the teacher {teacher.model.config.vocab_size}; "
            "use the teacher's own tokenizer"
        )
    return teacher


def _check_teacher(score: float, examples: Examples, recipe: Recipe) -> None:
    """Refuse a teacher that has nothing to teach: not fine-tuned, or with its labels in another order."""
    majority = majority_share(examples.labels)
    if score <= majority and not recipe.distill.allow_weak_teacher:
        raise CheckpointError(
            f"the teacher's accuracy is {score:.3f}, and always answering the most frequent label has {majority:.3f}: "
            "it is not fine-tuned for this task, or its labels stand in another order than the data's; "
            "set distill.allow_weak_teacher=true to go on"
        )


def _check_length(recipe: Recipe, teacher: Checkpoint) -> None:
    longest = getattr(teacher.model.config, "max_position_embeddings", None)
    if longest is not None and recipe.max_length > longest:
        raise CheckpointError(
            f"max_length is {recipe.max_length} and the teacher has {longest} positions; "
            f"set max_length to {longest} or less"
        )


def _load_student(recipe: Recipe, teacher: Checkpoint) -> Checkpoint:
    wanted = recipe.student
    if wanted.model is not None:
        return load_checkpoint(wanted.model, get_task(recipe.task), tokenizer=recipe.tokenizer)
    model = create_student(teacher.model, layers=wanted.layers, family=wanted.family)
    return Checkpoint("student", model, teacher.tokenizer)


def _load_data(recipe: Recipe, *, label_names: tuple[str, ...] | None) -> tuple[Examples, Examples]:
    data, task = recipe.data, get_task(recipe.task)
    train_examples, eval_examples = (
        load_examples(
            data.name,
            split=split,
            task=task,
            text_columns=data.text_columns,
            label_column=data.label_column,
            label_names=label_names,
            limit=limit,
        )
        for split, limit in (
            (data.train_split, data.max_train_examples),
            (data.eval_split, data.max_eval_examples),
        )
    )
    return train_examples, eval_examples


def _layers_kept(recipe: Recipe, teacher: Checkpoint) -> list[int] | None:
    if recipe.student.model is not None:
        return None
    return choose_layers(teacher.model.config.num_hidden_layers, recipe.student.layers)


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.model.config
    return {
        "name": checkpoint.name,
        "sha256": hash_checkpoint(checkpoint.name),
        "model_type": config.model_type,
        "parameters": count_parameters(checkpoint.model),
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
    }


def _report(recipe: Recipe, *, examples: Examples, result: TrainingResult, seconds: float) -> dict[str, Any]:
    return {
        "method": recipe.distill.method,
        "data": {"name": examples.name, "split": examples.split, "examples": len(examples), "sha256": examples.sha256},
        "dtype": resolve_dtype(recipe.distill.dtype),
        "steps": result.steps,
        "best_step": result.best_step,
        "resumed_from": result.resumed_from,
        "seconds": round(seconds, 1),
        "recipe": recipe.model_dump(mode="json"),
        "history": result.history,
    }
