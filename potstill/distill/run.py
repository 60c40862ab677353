"""Distil, fine-tune, or only cut a student: from a recipe to a published checkpoint with its report.

The public functions read from top to bottom: load, check, train, publish. Started by `accelerate launch`, every process
runs all of it; only the main one reports progress and publishes.
"""

import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from potstill.checkpoint import (
    TRAINING_REPORT,
    Checkpoint,
    count_parameters,
    fit_length,
    hash_checkpoint,
    load_checkpoint,
    load_tokenizer,
    read_folder,
    save_tokenizer,
)
from potstill.checkpoint.model import SentenceEncoder, find_sentence_transformers, write_sentence_transformers
from potstill.checkpoint.sentence_transformers import PROMPTS_FILE
from potstill.config import Recipe, build_recipe, with_splits
from potstill.data.labels import are_generic, match_names
from potstill.distill.checkpoints import check_same_run
from potstill.distill.data import TrainingData, load_training_data, read_splits
from potstill.distill.methods import Objective, make_labels_objective, make_objective
from potstill.distill.student import best_layers, choose_layers, create_student, with_random_weights
from potstill.distill.teacher import head_config, load_to_finetune, scratch_teacher, training_config
from potstill.distill.teacher_answers import check_teacher
from potstill.distill.torch_session import problem_type_of
from potstill.distill.trainer import TrainingResult, TrainingRun, make_scorer, train
from potstill.distill.trimming import plan_for_recipe
from potstill.errors import CheckpointError, RecipeError
from potstill.files import check_free, new_folder
from potstill.progress import Announce, Progress, keep_quiet, silent
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    get_task,
)

# How many rows a choice of layers is scored on: 8 batches of 32.
_ROWS_TO_CHOOSE_ON = 256


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
        progress: is called with how far each stage is.
        announce: is called with the plan before training starts, and with the pace after the first steps.

    Returns:
        The report, which is also in `OUT_DIR/distill.json`: scores of both models, parameters, steps and seconds.

    Raises:
        RecipeError: if the settings do not fit together.
        CheckpointError, DataError: before training, if teacher, student and data do not fit.
        TrainingError: if the loss is no longer a number; nothing is published.
    """
    recipe, out_dir = with_splits(_as_recipe(what, data, settings)), Path(out_dir)
    check_free(out_dir, overwrite=overwrite)
    recipe = _fit_length(recipe)
    started = time.perf_counter()
    processes = _processes()
    if not processes.is_main_process:
        progress, announce = silent, keep_quiet
    work_dir = _work_dir(out_dir)
    if resume:  # what can be known before anything is loaded; `train` compares the rest
        check_same_run(work_dir, _settings(recipe))

    teachers = _load_teachers(recipe)
    for checkpoint in teachers:
        checkpoint.model.to(processes.device)
    start = _load_start(recipe, teachers[0] if teachers else None)
    # Teacher and student read the same ids, unless the teacher's answers are stored, for which it reads on its own. So
    # a teacher that is asked at every step gets its student's smaller vocabulary, too.
    whole = start if recipe.teacher.is_stored else teachers[0]
    trimming = plan_for_recipe(recipe, whole) if recipe.student.vocabulary is not None else None
    reader = whole
    if trimming is not None:
        announce("vocabulary", trimming.record.model_dump(mode="json"))
        announce = _with_parameters(announce, count_parameters(whole.model))
        reader = trimming.trim(whole)
        start = reader if start is whole else trimming.trim(start)
    live = None if recipe.teacher.is_stored else reader
    if live is not None:
        live.model.to(processes.device)
    # The main process fills the caches of tokens, vectors and answers; the others find them.
    with processes.main_process_first():
        training_data = load_training_data(
            recipe, reader, whole=whole, teachers=() if live else teachers, work_dir=work_dir, progress=progress
        )
    teacher_scores, trimmed_scores = _score_teacher(training_data, whole, live)
    _check_teacher(teacher_scores, training_data, recipe)

    student, layers_kept = _make_student(recipe, start, live, training_data)
    objective = _make_objective(recipe, live, student.model, training_data)
    teacher = None if live is None else live.model
    run = _training_run(
        recipe,
        training_data,
        stage="distil the student",
        models=(*(checkpoint.name for checkpoint in teachers), recipe.student.model),
        work_dir=work_dir,
        resume=resume,
        progress=progress,
        announce=announce,
    )
    # Copied before training, which changes the student in place.
    untrained = copy.deepcopy(student.model) if recipe.distill.controls else None
    result = train(
        student.model,
        teacher=teacher,
        objective=objective,
        train_set=training_data.train_set,
        collate=training_data.collate,
        score=make_scorer(training_data, objective, teacher),
        run=run,
    )

    # An embedding student is scored and published with the head that its objective trained.
    used = objective.as_used(student.model)
    report = _report(recipe, training_data, result)
    described = [_describe(checkpoint) for checkpoint in teachers]
    report["teacher"] = {"column": recipe.teacher.column} if not described else described[0]
    report["teacher"] |= {"scores": teacher_scores} | ({"ensemble": described[1:]} if described[1:] else {})
    if trimming is not None:
        report["vocabulary"] = trimming.record.model_dump(mode="json")
        report["teacher"]["trimmed_scores"] = trimmed_scores
    report["student"] = _describe(student) | {
        "layers_kept": layers_kept,
        "scores": result.metrics,
        "against_trivial": _against_trivial(training_data, used, "student", progress=progress),
    }
    if untrained is not None:
        report["controls"] = _train_baselines(recipe, untrained, live, training_data, run, steps=result.steps)
    report["seconds"] = round(time.perf_counter() - started, 1)
    return _publish(student, out_dir, report=report, overwrite=overwrite, used=used, recipe=recipe)


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
        RecipeError: if the settings do not fit together.
        CheckpointError, DataError: before training, if model and data do not fit.
        TrainingError: if the loss is no longer a number; nothing is published.
    """
    check_free(out_dir, overwrite=overwrite)
    if get_task(recipe.task) is FEATURE_EXTRACTION:
        raise RecipeError("a sentence encoder is not fine-tuned on labels; distil one with method embedding")
    if recipe.distill.augment:
        raise RecipeError("distill.augment makes texts that a teacher must answer, and here is none; leave it out")
    recipe = _fit_length(with_splits(recipe))
    started = time.perf_counter()
    scratch = recipe.teacher.scratch
    if scratch is not None:
        config = training_config(scratch, recipe.distill)
        recipe = recipe.model_copy(update={"distill": config})
    processes = _processes()
    if not processes.is_main_process:
        progress, announce = silent, keep_quiet
    work_dir = _work_dir(out_dir)
    if resume:
        check_same_run(work_dir, _settings(recipe))

    teacher = load_to_finetune(recipe, announce) if scratch is None else scratch_teacher(recipe, scratch)
    with processes.main_process_first():
        training_data = load_training_data(recipe, teacher, is_taught=False, work_dir=work_dir, progress=progress)
    objective = make_labels_objective(recipe, teacher.model)
    run = _training_run(
        recipe,
        training_data,
        stage="train the teacher",
        models=(recipe.teacher.model,),
        work_dir=work_dir,
        resume=resume,
        progress=progress,
        announce=announce,
    )
    result = train(
        teacher.model,
        teacher=None,
        objective=objective,
        train_set=training_data.train_set,
        collate=training_data.collate,
        score=make_scorer(training_data, objective, None, who="teacher"),
        run=run,
    )

    report = _report(recipe, training_data, result) | {"method": "finetune"}
    report["teacher"] = _describe(teacher) | {
        "scores": result.metrics,
        "against_trivial": _against_trivial(training_data, teacher.model, "teacher", progress=progress),
    }
    report["seconds"] = round(time.perf_counter() - started, 1)
    return _publish(teacher, out_dir, report=report, overwrite=overwrite)


def init_student(recipe: Recipe, out_dir: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Publish the student as it is before training: cut from the teacher, or loaded."""
    check_free(out_dir, overwrite=overwrite)
    recipe = _fit_length(recipe)
    if recipe.teacher.column is not None:
        raise RecipeError("a column of answers is for training; `init` only cuts a student from a model")
    teacher = _load_teachers(recipe)[0]
    student, layers_kept = _make_student(recipe, _load_start(recipe, teacher), teacher, None)
    report = {
        "teacher": _describe(teacher),
        "student": _describe(student) | {"layers_kept": layers_kept},
        "steps": 0,
    }
    used = None
    if recipe.distill.method == "embedding":
        used = make_objective(recipe, teacher=teacher.model, student=student.model).as_used(student.model)
    return _publish(student, out_dir, report=report, overwrite=overwrite, used=used, recipe=recipe)


def read_report(checkpoint_dir: Path) -> dict[str, Any] | None:
    """Return the report that `distill` left in a checkpoint folder, or None."""
    file = checkpoint_dir / TRAINING_REPORT
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


def _fit_length(recipe: Recipe) -> Recipe:
    """Check `max_length` against the longest input of the recipe's models; if it was not set, take that instead."""
    names: list[str | None] = [recipe.teacher.model, recipe.student.model]
    if recipe.teacher.is_stored and recipe.student.model is not None:
        names = [recipe.student.model]  # each teacher reads as much as it can
    fitted = fit_length(filter(None, names), recipe.max_length, was_set="max_length" in recipe.model_fields_set)
    return recipe if fitted == recipe.max_length else recipe.model_copy(update={"max_length": fitted})


def _work_dir(out_dir: Path) -> Path:
    return out_dir.with_name(f"{out_dir.name}.training")


def _processes() -> PartialState:
    """Return the processes that train together: one, or those that `accelerate launch` started."""
    return PartialState(cpu=not torch.cuda.is_available())


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that decide the weights of a training."""
    # A resumed run may export, bench or track differently; none of that moves a weight.
    content: dict[str, Any] = recipe.model_dump(mode="json", exclude={"export", "bench", "output_dir", "resume"})
    del content["data"]["num_proc"], content["distill"]["trackers"], content["student"]["other_data"]
    return content


def _training_run(
    recipe: Recipe,
    training_data: TrainingData,
    *,
    stage: str,
    models: Sequence[str | None],
    work_dir: Path,
    resume: bool,
    progress: Progress,
    announce: Announce,
) -> TrainingRun:
    return TrainingRun(
        config=recipe.distill,
        metric=training_data.metric,
        maximise=training_data.maximise,
        seed=recipe.seed,
        work_dir=work_dir,
        resume=resume,
        stage=stage,
        progress=progress,
        announce=announce,
        about=training_data.about | {"task": recipe.task},
        identity=_identity(recipe, training_data, models=models),
    )


def _identity(recipe: Recipe, training_data: TrainingData, *, models: Sequence[str | None]) -> dict[str, object]:
    """Return all that decides the weights of a training; a resumed run must have the same."""
    content: dict[str, object] = _settings(recipe)
    content |= training_data.hashes()
    content["checkpoints"] = [hash_checkpoint(name) or name for name in models if name is not None]
    # Dropout is drawn in each process for its own rows, so their number moves the weights.
    content["processes"] = _processes().num_processes
    return content


def _load_teachers(recipe: Recipe) -> list[Checkpoint]:
    """Load the teacher and those that it is averaged with; none if a column of the data has the answers."""
    teacher = recipe.teacher
    if teacher.model is None and teacher.column is None:
        raise CheckpointError("name a teacher: teacher.model is a hub id or a checkpoint folder")
    task, models = get_task(recipe.task), [] if teacher.model is None else [teacher.model]
    first = [load_checkpoint(name, task, tokenizer=recipe.tokenizer) for name in models]
    return first + [load_checkpoint(name, task) for name in teacher.ensemble]


def _with_parameters(announce: Announce, teacher: int) -> Announce:
    """Return an `announce` whose plan has the parameters of the whole teacher, not those of the one that is trimmed."""

    def announce_whole(headline: str, figures: dict[str, object]) -> None:
        is_plan = headline == "plan" and figures["teacher_parameters"] is not None
        announce(headline, figures | ({"teacher_parameters": teacher} if is_plan else {}))

    return announce_whole


def _score_teacher(
    training_data: TrainingData, whole: Checkpoint, live: Checkpoint | None
) -> tuple[dict[str, float], dict[str, float] | None]:
    """Return a teacher's scores, and those with the student's smaller vocabulary, if it has one.

    Args:
        training_data: what it is scored on; has the scores of stored answers.
        whole: the teacher as its checkpoint has it.
        live: the teacher that is asked at every step; None if answers are stored.
    """
    if live is None or training_data.score is None:
        return training_data.teacher_scores or {}, None
    head = training_data.teacher_head

    def as_used(model: PreTrainedModel) -> PreTrainedModel | SentenceEncoder:
        return model if head is None else SentenceEncoder(model, head.to(model.device))

    scores = (training_data.score_whole or training_data.score)(as_used(whole.model), "teacher")
    return scores, None if live is whole else training_data.score(as_used(live.model), "trimmed teacher")


def _check_teacher(scores: dict[str, float], training_data: TrainingData, recipe: Recipe) -> None:
    if not recipe.distill.allow_weak_teacher:
        floors = training_data.teacher_floor or training_data.floor
        check_teacher("the teacher", scores, floors, metric=training_data.metric)


def _make_student(
    recipe: Recipe, source: Checkpoint, teacher: Checkpoint | None, training_data: TrainingData | None
) -> tuple[Checkpoint, list[int] | None]:
    """Return the student before training, and the layers that it kept of what it was cut from, if it was cut.

    Args:
        recipe: its section `student` says what to make.
        source: what it is cut from, see `_load_start`.
        teacher: that it learns from at every step; None if answers are stored.
        training_data: what a choice of layers is scored on; None for `init`, which has no data.
    """
    wanted = recipe.student
    layers = recipe.student_layers if wanted.model is None else wanted.layers
    model, kept = source.model, None
    if wanted.model is None or layers is not None or wanted.hidden_size is not None or wanted.family != "same":
        total = source.model.config.num_hidden_layers
        if wanted.best_of:
            layers = _choose_best_layers(recipe, source.model, teacher, training_data)
        elif wanted.model is not None and layers is None:
            layers = total
        family = "mobilebert" if recipe.distill.method == "mobilebert" else wanted.family
        kept = None if family == "mobilebert" else choose_layers(total, layers)
        model = create_student(
            source.model,
            layers=layers,
            family=family,
            hidden_size=wanted.hidden_size,
            num_heads=wanted.num_heads,
            intermediate_size=wanted.intermediate_size,
            seed=recipe.seed,
        )
    if wanted.start == "random":
        model = with_random_weights(model, seed=recipe.seed)
    # It learns from texts as the teacher's tokenizer reads them; a tokenizer of its own may normalise otherwise.
    tokenizer = source.tokenizer if teacher is None else teacher.tokenizer
    return Checkpoint(wanted.model or "student", model, tokenizer), kept


def _load_start(recipe: Recipe, teacher: Checkpoint | None) -> Checkpoint:
    """Load what the student starts from: the teacher, or the checkpoint that the recipe names.

    An encoder without a head gets one for the teacher's labels, or for the data's if there is no model that teaches.
    """
    if recipe.student.model is None:
        assert teacher is not None
        return teacher
    task, trained = get_task(recipe.task), read_folder(recipe.student.model).task
    head: dict[str, object] | None = None
    # Trained for words, or for vectors alone: a good encoder, and no head to lose.
    if task not in (trained, FEATURE_EXTRACTION) and trained in (None, FEATURE_EXTRACTION, FILL_MASK):
        if recipe.student.best_of:
            raise RecipeError(
                f"student.best_of scores students before training, and {recipe.student.model} has no head for "
                f"{task.name} yet, so all are as bad; name the layers"
            )
        if task not in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION):
            head = {}
        elif teacher is not None:
            head = head_config(teacher.label_names, problem_type_of(teacher.model))
        else:
            problem = recipe.data.problem_type
            examples = read_splits(recipe, label_names=None, problem_type=problem, is_taught=True).train
            head = head_config(examples.label_names, examples.problem_type)
    # A new head is drawn from the recipe's seed, whatever was drawn before.
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        tokenizer = recipe.tokenizer if recipe.teacher.is_stored else None
        start = load_checkpoint(recipe.student.model, task, tokenizer=tokenizer, new_head=head)
    if not recipe.teacher.is_stored and teacher is not None:
        _check_same_vocabulary(start, teacher, method=recipe.distill.method)
    if teacher is not None and task in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION):
        _match_labels(start, teacher, is_stored=recipe.teacher.is_stored)
    return start


def _match_labels(student: Checkpoint, teacher: Checkpoint, *, is_stored: bool) -> None:
    """Give outputs without names the teacher's, and refuse outputs that mean other labels than the teacher's.

    The data is read by the labels of one of the two, and logits are compared by position: a student that calls its
    outputs otherwise would be published with the answers exchanged.

    Args:
        student: with a head of its own.
        teacher: the first one; further ones are matched by name when they are asked.
        is_stored: whether answers are matched by name later, so that a teacher without names may pass.
    """
    ours, theirs = student.label_names, teacher.label_names
    if len(ours) != len(theirs) or (is_stored and are_generic(theirs)):
        return
    found = match_names(theirs, ours)
    if found is not None and list(found.values()) == list(range(len(ours))):
        return
    if not are_generic(ours):
        raise CheckpointError(
            f"the outputs of {student.name} are called {', '.join(ours[:8])}, and those of the teacher "
            f"{', '.join(theirs[:8])}; take a student with the teacher's labels in the teacher's order, or an encoder "
            "without a head"
        )
    student.model.config.id2label = dict(enumerate(theirs))
    student.model.config.label2id = {name: number for number, name in enumerate(theirs)}


def _make_objective(
    recipe: Recipe, teacher: Checkpoint | None, student: PreTrainedModel, training_data: TrainingData | None
) -> Objective:
    """Return the loss for a teacher that is asked at every step, or None for stored answers or vectors."""
    vectors = None
    if training_data is not None and training_data.vector_width is not None and training_data.teacher_head is not None:
        vectors = (training_data.teacher_head, training_data.vector_width)
    return make_objective(recipe, teacher=None if teacher is None else teacher.model, student=student, vectors=vectors)


def _choose_best_layers(
    recipe: Recipe, source: PreTrainedModel, teacher: Checkpoint | None, training_data: TrainingData | None
) -> list[int]:
    """Return the layers of `source` whose untrained student has the lowest loss on a few batches."""
    count = recipe.student.layers
    if training_data is None:
        raise RecipeError("student.best_of scores students on data, and `init` has none; name the layers")
    assert isinstance(count, int)
    rows = training_data.train_set.select(range(min(len(training_data.train_set), _ROWS_TO_CHOOSE_ON)))
    loss_alone = replace(training_data, eval_set=rows, score=None)

    def score(student: PreTrainedModel) -> float:
        objective = _make_objective(recipe, teacher, student, training_data)
        return -make_scorer(loss_alone, objective, None if teacher is None else teacher.model)(student)["loss"]

    return best_layers(source, count, score, family=recipe.student.family)[0]


def _check_same_vocabulary(student: Checkpoint, teacher: Checkpoint, *, method: str) -> None:
    """Refuse a pair whose tokens or labels cannot be compared one by one."""
    ours, theirs = student.model.config, teacher.model.config
    vocabulary = load_tokenizer(teacher.name).get_vocab()
    if ours.vocab_size != theirs.vocab_size or student.tokenizer.get_vocab() != vocabulary:
        raise CheckpointError(
            f"the vocabularies differ: {student.name} has {ours.vocab_size} entries, {teacher.name} "
            f"{theirs.vocab_size}, or numbers them in another way; distillation compares tokens one by one, so take a "
            "student with the teacher's tokenizer"
            + ("" if method != "task" else ", or set teacher.stored=true, with which each reads on its own")
        )
    if getattr(ours, "num_labels", None) != getattr(theirs, "num_labels", None):
        raise CheckpointError(
            f"the student has {ours.num_labels} labels and the teacher {theirs.num_labels}; use a student that fits"
        )


def _train_baselines(
    recipe: Recipe,
    untrained: PreTrainedModel,
    teacher: Checkpoint | None,
    training_data: TrainingData,
    run: TrainingRun,
    *,
    steps: int,
) -> dict[str, dict[str, object]]:
    """Return what the student has to beat, by name, with the scores of each under `scores`.

    - `untrained`: the student as it was cut from the teacher;
    - `no_teacher`: the same student trained on the labels alone, or on running text without a teacher, as long: where
      every text has a label, on the same batches in the same order; left out where there is nothing to learn from;
    - `floor`: what an answer scores that ignores the text; left out where there is none.

    Args:
        recipe: of the distillation.
        untrained: a copy of the student before it; it is trained here.
        teacher: of the distillation; None if its answers are stored.
        training_data: its data.
        run: its training, whose work folder gets a sibling.
        steps: how many it took.
    """
    objective = _make_objective(recipe, teacher, untrained, training_data)
    score = make_scorer(training_data, objective, None if teacher is None else teacher.model)
    baselines: dict[str, dict[str, object]] = {"untrained": {"scores": score(untrained)}}
    if training_data.floor:
        baselines["floor"] = {"scores": training_data.floor}
    rows, labelled = training_data.train_set, training_data.num_labelled
    if training_data.score is None or recipe.distill.method == "embedding" or labelled == 0:
        return baselines
    if labelled is not None and labelled < len(rows):
        rows = rows.select(range(labelled))
        # Fewer rows make shorter passes; it gets as many steps, and is scored as often.
        every = run.config.eval_every or -(-steps // max(1, round(run.config.epochs)))
        run = replace(run, config=run.config.model_copy(update={"max_steps": steps, "eval_every": every}))
    result = train(
        untrained,
        teacher=None,
        objective=make_labels_objective(recipe, untrained),
        train_set=rows,
        collate=training_data.collate,
        score=score,
        run=replace(
            run,
            work_dir=run.work_dir.with_name(f"{run.work_dir.name}-control"),
            stage="train the control",
            announce=keep_quiet,
        ),
    )
    baselines["no_teacher"] = {"scores": result.metrics, "steps": result.steps, "best_step": result.best_step}
    return baselines


def _against_trivial(
    training_data: TrainingData, model: PreTrainedModel | SentenceEncoder, who: str, *, progress: Progress
) -> dict[str, object] | None:
    """Compare a trained model's score with an answer that ignores the text; None without labels."""
    if training_data.evaluation is None:
        return None
    evaluation, metric = training_data.evaluation, training_data.metric
    return evaluation.against_trivial(model, metric=metric, progress=progress, who=who).model_dump(mode="json")


def _describe(checkpoint: Checkpoint) -> dict[str, object]:
    config = checkpoint.model.config
    return {
        "name": checkpoint.name,
        "sha256": hash_checkpoint(checkpoint.name),
        "model_type": config.model_type,
        "parameters": count_parameters(checkpoint.model),
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
    }


def _report(recipe: Recipe, training_data: TrainingData, result: TrainingResult) -> dict[str, Any]:
    return {
        "method": recipe.distill.method,
        "task": recipe.task,
        "metric": training_data.metric,
        "data": training_data.about,
        "floor": training_data.floor,
        "dtype": result.dtype,
        "steps": result.steps,
        "best_step": result.best_step,
        "resumed_from": result.resumed_from,
        "recipe": recipe.model_dump(mode="json"),
        "history": result.history,
    }


def _publish(
    checkpoint: Checkpoint,
    out_dir: Path,
    *,
    report: dict[str, Any],
    overwrite: bool,
    used: PreTrainedModel | SentenceEncoder | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Write the checkpoint whole or not at all; of several processes one does, and the others wait.

    A sentence encoder gets the files by which sentence-transformers, and every command here, make its vectors.

    Args:
        checkpoint: the model and its tokenizer.
        out_dir: the folder.
        report: what is written beside them.
        overwrite: whether the folder may be replaced.
        used: the model as it is scored.
        recipe: what it was trained by.
    """
    processes = _processes()
    if processes.is_main_process:
        with new_folder(out_dir, overwrite=overwrite) as folder:
            checkpoint.model.save_pretrained(folder)
            save_tokenizer(checkpoint.tokenizer, folder)
            if isinstance(used, SentenceEncoder) and recipe is not None:
                # The prompts that a student's texts need are its own, else its teacher's.
                names = filter(None, (recipe.student.model, recipe.teacher.model))
                folders = filter(None, map(find_sentence_transformers, names))
                prompts = next((found.folder / PROMPTS_FILE for found in folders), None)
                write_sentence_transformers(
                    used.head,
                    folder,
                    width=checkpoint.model.config.hidden_size,
                    max_length=recipe.max_length,
                    prompts=prompts,
                )
            (folder / TRAINING_REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    # Nobody returns before the folder is there, or the caller's next step would not find it.
    processes.wait_for_everyone()
    return report
