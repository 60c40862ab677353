"""Distil, fine-tune, or only cut: from a recipe to a published checkpoint with its report."""

import copy
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from potstill.checkpoint import Checkpoint, count_parameters, hash_checkpoint, load_checkpoint, load_tokenizer
from potstill.distill import scratch
from potstill.distill.arguments import count_steps, resolve_dtype
from potstill.distill.batches import read_column
from potstill.distill.controls import train_controls
from potstill.distill.evaluate import problem_type_of
from potstill.distill.examples import LENGTH_COLUMN
from potstill.distill.methods.objective import Objective
from potstill.distill.plan import make_plan
from potstill.distill.prepare import (
    Material,
    load_material,
    make_labels_objective,
    make_objective,
    read_examples,
    score_of,
    tokenizers_agree,
)
from potstill.distill.student import best_layers, choose_layers, create_student
from potstill.distill.trainer import Job, TrainingResult, train
from potstill.errors import CheckpointError, RecipeError
from potstill.progress import Announce, Progress, keep_quiet, silent
from potstill.publish import check_free, new_folder
from potstill.recipe import Recipe, build_recipe
from potstill.task import FEATURE_EXTRACTION, FILL_MASK, REGRESSION, Task, get_task

# How many batches a choice of layers is scored on.
_BATCHES_TO_CHOOSE_ON = 8


def distill(
    what: Recipe | str,
    out_dir: Path | str,
    *,
    data: str | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    announce: Announce = keep_quiet,
) -> dict[str, Any]:
    """Make a student and publish it as the checkpoint folder `out_dir`.

    Training checkpoints go to `OUT_DIR.training` beside it. Interrupted, the same call with `resume` goes on.

    Args:
        what: a recipe, or the teacher: a hub id or checkpoint folder.
        out_dir: receives the student.
        data: with a teacher's name, the data: a hub id or folder.
        settings: values of the recipe by dotted key, as on the command line: `{"student.layers": 3}`.
        resume: go on from the newest checkpoint.
        overwrite: replace what `out_dir` holds.
        progress: is told how far each stage is.
        announce: is told the plan before training starts, and the pace after the first steps.

    Returns:
        The report, which is also in `OUT_DIR/distill.json`: scores of both models, parameters, steps and seconds.

    Raises:
        RecipeError: if the settings do not fit together.
        CheckpointError, DataError: before training, if teacher, student and data do not fit.
        TrainingError: if the loss is no longer a number; nothing is published.
    """
    recipe, out_dir = _as_recipe(what, data, settings), Path(out_dir)
    check_free(out_dir, overwrite=overwrite)
    started = time.perf_counter()
    processes = _processes()
    if not processes.is_main_process:
        progress, announce = silent, keep_quiet
    teacher = _load_teacher(recipe)
    _check_length(recipe, teacher)
    teacher.model.to(processes.device)
    job = _job(recipe, out_dir, resume=resume, stage="distil the student", progress=progress)
    with processes.main_process_first():
        material = load_material(recipe, teacher, work_dir=job.work_dir, progress=progress)
    teacher_scores = material.score(teacher.model, "teacher") if material.score else {}
    _check_teacher(teacher_scores, material, recipe)
    student, layers = _load_student(recipe, teacher, material)
    objective = make_objective(recipe, teacher=teacher.model, student=student.model)
    job = replace(job, metric=material.metric, maximise=material.maximise)
    untrained = copy.deepcopy(student.model) if recipe.distill.controls else None
    result = _train(student.model, teacher.model, objective, material=material, job=job, announce=announce)
    report = _report(recipe, material=material, result=result) | {
        "teacher": _describe(teacher) | {"scores": teacher_scores},
        "student": _describe(student)
        | {
            "layers_kept": layers,
            "scores": result.metrics,
            "against_trivial": _against_trivial(material, student, "student", progress=progress),
        },
    }
    if untrained is not None:
        report["controls"] = train_controls(recipe, untrained, teacher.model, material=material, job=job)
    report["seconds"] = round(time.perf_counter() - started, 1)
    return _publish(student, out_dir, report=report, overwrite=overwrite)


def finetune(
    recipe: Recipe,
    out_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    announce: Announce = keep_quiet,
) -> dict[str, Any]:
    """Train the recipe's teacher on its data, without a teacher of its own, and publish the checkpoint.

    With `teacher.scratch` model and tokenizer are made on the spot; with `teacher.model` a checkpoint is fine-tuned,
    with a new head if it has none for the task. The settings of `distill` that say how to train count, those of its
    method do not.

    Raises:
        As `distill`.
    """
    check_free(out_dir, overwrite=overwrite)
    if get_task(recipe.task) is FEATURE_EXTRACTION:
        raise RecipeError("a sentence encoder is not fine-tuned on labels; distil one with method embedding")
    started = time.perf_counter()
    task, config = get_task(recipe.task), recipe.teacher.scratch
    teacher = _new_teacher(recipe, task) if config is None else scratch.new_teacher(recipe, config)
    if config is not None:
        recipe = recipe.model_copy(update={"distill": scratch.training_config(config, recipe.distill)})
    processes = _processes()
    if not processes.is_main_process:
        progress, announce = silent, keep_quiet
    job = _job(recipe, out_dir, resume=resume, stage="train the teacher", progress=progress)
    names = teacher.label_names if problem_type_of(teacher.model) != REGRESSION else None
    with processes.main_process_first():
        material = load_material(recipe, teacher, work_dir=job.work_dir, label_names=names, progress=progress)
    objective = make_labels_objective(recipe, teacher.model)
    job = replace(job, metric=material.metric, maximise=material.maximise)
    result = _train(teacher.model, None, objective, material=material, job=job, announce=announce)
    report = _report(recipe, material=material, result=result) | {
        "method": "finetune",
        "teacher": _describe(teacher)
        | {
            "scores": result.metrics,
            "against_trivial": _against_trivial(material, teacher, "teacher", progress=progress),
        },
        "seconds": round(time.perf_counter() - started, 1),
    }
    return _publish(teacher, out_dir, report=report, overwrite=overwrite)


def init_student(recipe: Recipe, out_dir: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Publish the student as it is before training: cut from the teacher, or loaded."""
    check_free(out_dir, overwrite=overwrite)
    teacher = _load_teacher(recipe)
    student, layers = _load_student(recipe, teacher, None)
    report = {
        "teacher": _describe(teacher),
        "student": _describe(student) | {"layers_kept": layers},
        "steps": 0,
    }
    return _publish(student, out_dir, report=report, overwrite=overwrite)


def read_report(checkpoint_dir: Path) -> dict[str, Any] | None:
    """Return the report that `distill` left in a checkpoint folder, or None."""
    file = checkpoint_dir / "distill.json"
    content: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return content


def _as_recipe(what: Recipe | str, data: str | None, settings: Mapping[str, Any] | None) -> Recipe:
    if isinstance(what, Recipe):
        if data is not None or settings:
            raise RecipeError("a recipe names its data and settings itself; change it instead of passing them as well")
        return what
    if data is None:
        raise RecipeError(f"name the data to distil {what!r} on: data is a hub id or a folder")
    given = {"teacher.model": what, "data.name": data, **(settings or {})}
    return build_recipe({}, overrides=list(given.items()), origin="what you asked for")


def _job(recipe: Recipe, out_dir: Path, *, resume: bool, stage: str, progress: Progress) -> Job:
    return Job(
        config=recipe.distill,
        metric="loss",
        maximise=False,
        seed=recipe.seed,
        work_dir=out_dir.with_name(f"{out_dir.name}.training"),
        resume=resume,
        stage=stage,
        progress=progress,
    )


def _train(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    objective: Objective,
    *,
    material: Material,
    job: Job,
    announce: Announce,
) -> TrainingResult:
    lengths = read_column(material.train_set, LENGTH_COLUMN).tolist()
    steps = count_steps(job.config, len(lengths), world_size=_processes().num_processes)
    plan = make_plan(student, teacher, config=job.config, lengths=lengths, steps=steps)
    announce("plan", plan.figures())
    return train(
        student,
        teacher=teacher,
        objective=objective,
        train_set=material.train_set,
        collate=material.collate,
        score=score_of(material, objective, teacher),
        job=replace(job, announce=announce),
    )


def _against_trivial(
    material: Material, checkpoint: Checkpoint, who: str, *, progress: Progress
) -> dict[str, Any] | None:
    """Return how a trained model's score stands against an answer that ignores the text; None without labels."""
    if material.evaluation is None:
        return None
    evaluation, metric = material.evaluation, material.metric
    return evaluation.against_trivial(checkpoint.model, metric=metric, progress=progress, who=who).to_json()


def _publish(checkpoint: Checkpoint, out_dir: Path, *, report: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Write the checkpoint whole or not at all; of several processes one does, and the others wait."""
    processes = _processes()
    if processes.is_main_process:
        with new_folder(out_dir, overwrite=overwrite) as folder:
            checkpoint.model.save_pretrained(folder)
            checkpoint.tokenizer.save_pretrained(folder)
            (folder / "distill.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    processes.wait_for_everyone()
    return report


def _processes() -> PartialState:
    """Return the processes that train together: one, or those that `accelerate launch` started."""
    return PartialState(cpu=not torch.cuda.is_available())


def _load_teacher(recipe: Recipe) -> Checkpoint:
    if recipe.teacher.model is None:
        raise CheckpointError("name a teacher: teacher.model is a hub id or a checkpoint folder")
    teacher = load_checkpoint(recipe.teacher.model, get_task(recipe.task), tokenizer=recipe.tokenizer)
    _check_vocabulary(teacher)
    return teacher


def _new_teacher(recipe: Recipe, task: Task) -> Checkpoint:
    """Load the model to fine-tune, with a head for the data's labels if it has none yet."""
    assert recipe.teacher.model is not None
    head: dict[str, Any] = {}
    if task not in (FILL_MASK, FEATURE_EXTRACTION):
        problem = recipe.data.problem_type
        data = recipe.data
        examples = read_examples(
            recipe, split=data.train_split, limit=data.max_train_examples, label_names=None, problem_type=problem
        )
        if problem == REGRESSION:
            head = {"num_labels": 1, "problem_type": REGRESSION}
        elif examples.label_names:
            head = scratch.labels_config(examples.label_names) | ({"problem_type": problem} if problem else {})
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        teacher = load_checkpoint(recipe.teacher.model, task, tokenizer=recipe.tokenizer, new_head=head)
    _check_vocabulary(teacher)
    _check_length(recipe, teacher)
    return teacher


def _check_vocabulary(teacher: Checkpoint) -> None:
    config = teacher.model.config
    if len(teacher.tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {len(teacher.tokenizer)} entries and the teacher {config.vocab_size}; "
            "use the teacher's own tokenizer"
        )


def _check_length(recipe: Recipe, teacher: Checkpoint) -> None:
    longest = getattr(teacher.model.config, "max_position_embeddings", None)
    if longest is not None and recipe.max_length > longest:
        raise CheckpointError(
            f"max_length is {recipe.max_length} and the teacher has {longest} positions; "
            f"set max_length to {longest} or less"
        )


def _check_teacher(scores: dict[str, float], material: Material, recipe: Recipe) -> None:
    """Refuse a teacher that has nothing to teach: not fine-tuned, or with its labels in another order."""
    metric = material.metric
    if metric not in scores or metric not in material.floor or recipe.distill.allow_weak_teacher:
        return
    score, floor = scores[metric], material.floor[metric]
    if (score <= floor) if material.maximise else (score >= floor):
        raise CheckpointError(
            f"the teacher's {metric} is {score:.3f}, and an answer that ignores the text has {floor:.3f}: "
            "it is not fine-tuned for this task, or its labels stand in another order than the data's; "
            "set distill.allow_weak_teacher=true to go on"
        )


def _load_student(
    recipe: Recipe, teacher: Checkpoint, material: Material | None
) -> tuple[Checkpoint, list[int] | None]:
    """Return the student and the teacher layers that it kept, if it was cut."""
    wanted = recipe.student
    if wanted.model is not None:
        student = load_checkpoint(wanted.model, get_task(recipe.task))
        _check_pair(student, teacher)
        return student, None
    layers = recipe.student_layers
    if wanted.best_of:
        layers = _best_of(recipe, teacher.model, material)
    family = "mobilebert" if recipe.distill.method == "mobilebert" else wanted.family
    model = create_student(
        teacher.model,
        layers=layers,
        family=family,
        hidden_size=wanted.hidden_size,
        num_heads=wanted.num_heads,
        intermediate_size=wanted.intermediate_size,
        seed=recipe.seed,
    )
    kept = None if family == "mobilebert" else choose_layers(teacher.model.config.num_hidden_layers, layers)
    return Checkpoint("student", model, teacher.tokenizer), kept


def _best_of(recipe: Recipe, teacher: PreTrainedModel, material: Material | None) -> list[int]:
    """Return the layers whose untrained student has the lowest loss on a few batches."""
    count = recipe.student.layers
    if material is None:
        raise RecipeError("student.best_of scores students on data, and `init` has none; name the layers")
    assert isinstance(count, int)
    rows = material.train_set.select(range(min(len(material.train_set), _BATCHES_TO_CHOOSE_ON * 32)))
    task_alone = replace(material, eval_set=rows, score=None)

    def score(student: PreTrainedModel) -> float:
        objective = make_objective(recipe, teacher=teacher, student=student)
        return -score_of(task_alone, objective, teacher)(student)["loss"]

    return best_layers(teacher, count, score, family=recipe.student.family)[0]


def _check_pair(student: Checkpoint, teacher: Checkpoint) -> None:
    ours, theirs = student.model.config, teacher.model.config
    if ours.vocab_size != theirs.vocab_size or not tokenizers_agree(student.tokenizer, load_tokenizer(teacher.name)):
        raise CheckpointError(
            f"the vocabularies differ: {student.name} has {ours.vocab_size} entries, {teacher.name} "
            f"{theirs.vocab_size}, or numbers them in another way; distillation compares tokens one by one, so take a "
            "student with the teacher's tokenizer"
        )
    if getattr(ours, "num_labels", None) != getattr(theirs, "num_labels", None):
        raise CheckpointError(
            f"the student has {ours.num_labels} labels and the teacher {theirs.num_labels}; use a student that fits"
        )


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


def _report(recipe: Recipe, *, material: Material, result: TrainingResult) -> dict[str, Any]:
    return {
        "method": recipe.distill.method,
        "task": recipe.task,
        "metric": material.metric,
        "data": material.about,
        "floor": material.floor,
        "dtype": resolve_dtype(recipe.distill.dtype),
        "steps": result.steps,
        "best_step": result.best_step,
        "resumed_from": result.resumed_from,
        "recipe": recipe.model_dump(mode="json"),
        "history": result.history,
    }
