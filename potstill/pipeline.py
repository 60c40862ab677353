"""Run a whole recipe: train or take the teacher, distil, export both, bench them and decide the claims.

    out/
      run.json              the resolved recipe and what made it
      checkpoints/teacher   only if the recipe trains one
      checkpoints/student
      teacher/  student/    the bundles
      report/               report.json, report.md, report.html

Every folder appears whole or not at all, so a stage is finished if its folder exists. An interrupted run continues with
`resume`; training continues from its newest checkpoint.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from potstill import machine
from potstill.bundle import CARD_NAME, read_bundle
from potstill.checkpoint import fit_length
from potstill.config import ExportConfig, Recipe, build_recipe, with_splits
from potstill.data import Text, load_examples, load_texts
from potstill.errors import OutputError
from potstill.files import check_free, write_text
from potstill.progress import Announce, Progress, keep_quiet, silent
from potstill.tasks import FEATURE_EXTRACTION, get_task

if TYPE_CHECKING:
    from potstill.bench.report_schema import Report

RUN_FILE = "run.json"
_CHECKPOINTS = "checkpoints"
# What each stage makes, in the order of the stages, and its folder.
_STAGES = {
    "the teacher": f"{_CHECKPOINTS}/teacher",
    "the student": f"{_CHECKPOINTS}/student",
    "the teacher's bundle": "teacher",
    "the student's bundle": "student",
    "the report": "report",
}
# The settings that may differ between a run and the one that resumes it: they change no result.
_NOT_THE_RECIPE = {"output_dir", "resume"}


def run(
    recipe: Recipe,
    out_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    announce: Announce = keep_quiet,
    tell: Callable[[str], None] = lambda sentence: None,
) -> "Report":
    """Run every stage of a recipe that `out_dir` does not hold yet, and return the report.

    Args:
        recipe: the checked recipe.
        out_dir: the folder for everything the run makes.
        resume: continue the run in `out_dir`.
        overwrite: replace what is in `out_dir`.
        progress: called with the progress of each stage.
        announce: called with the plan of a training before it starts, and its pace after the first steps.
        tell: called with what the bench will take, and what its data can show, before it starts.

    Raises:
        OutputError: if `out_dir` has content and neither `resume` nor `overwrite` is given, or if it holds a run of
            another recipe.
        PotstillError: whatever a stage raises; what was finished before stays.
    """
    recipe = with_splits(recipe)
    check_out(recipe, out_dir, resume=resume, overwrite=overwrite)
    run_file = out_dir / RUN_FILE
    if not (resume and run_file.is_file()) or _is_bare(out_dir):
        if out_dir.is_dir():
            shutil.rmtree(out_dir)
        out_dir.mkdir(parents=True)
        made_by = {"command": machine.command_line(), "environment": machine.describe()}
        content = {"recipe": recipe.model_dump(mode="json"), **made_by}
        write_text(run_file, json.dumps(content, indent=2) + "\n")
    # BaseException: a Ctrl-C in the first stage must clear up as well.
    try:
        return _run_stages(recipe, out_dir, progress=progress, announce=announce, tell=tell)
    except BaseException:
        if _is_bare(out_dir):  # nothing is kept that the next start would stumble over
            shutil.rmtree(out_dir, ignore_errors=True)
        raise


def _run_stages(
    recipe: Recipe, out_dir: Path, *, progress: Progress, announce: Announce, tell: Callable[[str], None]
) -> "Report":
    """Run the stages in order, but those whose folder exists; each stage's package is imported when it is needed."""
    # The teacher: one that is named, else one that is trained first.
    teacher = recipe.teacher.model
    if teacher is None:
        teacher = str(out_dir / _STAGES["the teacher"])
        if not Path(teacher).is_dir():
            from potstill.distill import finetune

            # Always resume: whether anything may be kept was decided by `check_out`.
            finetune(recipe, Path(teacher), resume=True, progress=progress, announce=announce)

    # The student.
    student = out_dir / _STAGES["the student"]
    if not student.is_dir():
        from potstill.distill import distill

        # The folder of the trained teacher takes the place of `scratch`: a recipe has one of the two.
        taught_by = recipe.teacher.model_copy(update={"model": teacher, "scratch": None})
        distilled = recipe.model_copy(update={"teacher": taught_by})
        distill(distilled, student, resume=True, progress=progress, announce=announce)

    # Their bundles, both with the longest text and the pooling of the student's training: one bench compares them.
    checkpoints = {"teacher": teacher, "student": str(student)}
    data, task = recipe.data, get_task(recipe.task)
    for role, checkpoint in checkpoints.items():
        if (out_dir / role).is_dir():
            continue
        from potstill.export import export_bundle, peek

        _, label_names, problem_type = peek(checkpoint, task=recipe.task)
        calibration: list[Text] = []
        if recipe.export.calibration_texts:
            calibration = load_texts(
                data.name,
                split=data.train_split,
                task=task,
                text_columns=data.text_columns,
                limit=recipe.export.calibration_texts,
            )
        export_bundle(
            checkpoint,
            out_dir / role,
            task=recipe.task,
            # A student's checkpoint already holds the tokenizer that it was trained with.
            tokenizer=recipe.tokenizer if role == "teacher" else None,
            config=export_config(recipe, checkpoints.values()),
            calibration=calibration,
            examples=load_examples(
                data.name,
                split=data.eval_split,
                task=task,
                text_columns=data.text_columns,
                label_column=data.label_column,
                label_names=label_names,
                problem_type=problem_type,
                limit=data.max_eval_examples,
            ),
            progress=progress,
        )

    # The report.
    from potstill.bench import DataSet, Request, bench
    from potstill.bench.report.card import card_with_report

    scored = DataSet(
        data=data.name,
        split=data.eval_split,
        text_columns=data.text_columns,
        label_column=data.label_column,
        limit=data.max_eval_examples,
    )
    report = bench(
        Request(models=[(role, str(out_dir / role)) for role in checkpoints], data=[scored]),
        config=recipe.bench,
        out_dir=out_dir / "report",
        seed=recipe.seed,
        resume=True,
        command=machine.command_line() or "",
        tell=tell,
        progress=progress,
    )
    # The cards as the exports wrote them know nothing of the bench.
    for role in checkpoints:
        card = card_with_report(read_bundle(out_dir / role, verify=False).manifest, report, name=role)
        if card is not None:
            write_text(out_dir / role / CARD_NAME, card)
    return report


def export_config(recipe: Recipe, checkpoints: Iterable[str]) -> ExportConfig:
    """Return the recipe's export settings with the longest text and the pooling of the student's training filled in."""
    given = recipe.export
    pooling = given.pooling or (recipe.distill.pooling if recipe.task == FEATURE_EXTRACTION.name else None)
    longest = given.max_length or fit_length(
        checkpoints, recipe.max_length, was_set="max_length" in recipe.model_fields_set
    )
    return given.model_copy(update={"max_length": longest, "pooling": pooling})


def check_out(recipe: Recipe, out_dir: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise if the output folder has content that may not be replaced, or a run of another recipe.

    A folder in which a run began and finished nothing counts as free.

    Raises:
        OutputError: with the options that would help.
    """
    run_file = out_dir / RUN_FILE
    if run_file.is_file() and _is_bare(out_dir):
        check_free(out_dir, overwrite=True)
        return
    if resume and run_file.is_file():
        before = build_recipe(json.loads(run_file.read_text(encoding="utf-8"))["recipe"], origin=str(run_file))
        ours, theirs = (made.model_dump(mode="json", exclude=_NOT_THE_RECIPE) for made in (recipe, before))
        changed = [key for key in ours if ours[key] != theirs[key]]
        if changed:
            raise OutputError(
                f"{out_dir} holds a run of another recipe (it differs in {', '.join(changed)}); pass the same "
                "settings to resume it, or --overwrite to start anew"
            )
        return
    try:
        check_free(out_dir, overwrite=overwrite)
    except OutputError as error:
        if run_file.is_file() and not overwrite:
            raise OutputError(
                f"{out_dir} holds a run already ({', '.join(finished(out_dir)) or 'its first stage is begun'}); pass "
                "--resume to go on with it, --overwrite to start anew, or name another folder"
            ) from error
        raise


def finished(out_dir: Path) -> dict[str, Path]:
    """Return the finished stages of a run in order: what each has made, and its folder."""
    return {what: out_dir / place for what, place in _STAGES.items() if (out_dir / place).is_dir()}


def _is_bare(out_dir: Path) -> bool:
    """Return whether a folder holds a run that has begun and left nothing to resume from."""
    names = {path.name for path in out_dir.iterdir()} if out_dir.is_dir() else set()
    if RUN_FILE not in names or names - {RUN_FILE, _CHECKPOINTS} or finished(out_dir):
        return False
    checkpoints = out_dir / _CHECKPOINTS
    # Training checkpoints that are complete, and tokenised texts or teacher vectors in the folders beside them.
    kept = (*checkpoints.glob("*.training*/checkpoint-*/COMPLETE"), *checkpoints.glob("*.training-*/*/*"))
    return not any(path.is_file() for path in kept)
