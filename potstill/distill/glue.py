"""GLUE of an encoder that knows no task yet: fine-tune it over tasks, learning rates, epochs and seeds, and sum up.

Each cell of the grid is one fine-tuning, whose scores are all that stays of it: `OUT/cells/<cell>.json`, written when
it is done, so that a run that was killed goes on with the cells that are missing, and in the middle of the cell it was
at. As usual for GLUE's validation sets, whose test labels are hidden, the setting of a task is the one with the best
median over the seeds on the very texts that it is reported on: small differences between models mean little, and both
sides of a comparison need the same grid.

The defaults take BERT's learning rates, batch size and one of its numbers of epochs (Devlin et al. 2019, arXiv
1810.04805, appendix A.3) and 3 seeds. DistilBERT reports medians of 5 (arXiv 1910.01108, table 1); the grid that
MiniLMv2's reimplementations publish is 1e-5, 2e-5, 3e-5, 4e-5 over 3, 5 and 10 epochs.
"""

import json
import math
import re
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

from potstill.checkpoint import count_parameters, hash_checkpoint, load_checkpoint
from potstill.config import Recipe, build_recipe
from potstill.data import load_examples
from potstill.distill.checkpoints import flatten
from potstill.distill.evaluation import Reading, evaluate
from potstill.distill.run import finetune
from potstill.errors import CheckpointError, DataError, OutputError, TrainingError, UsageError
from potstill.files import write_text
from potstill.metrics import GLUE_METRICS, glue_summary, glue_task
from potstill.progress import Progress, silent
from potstill.tasks import FEATURE_EXTRACTION, REGRESSION, SINGLE_LABEL, TEXT_CLASSIFICATION

SUMMARY = "glue.json"
"""The file of a run's summary."""
Setting: TypeAlias = tuple[float, float]
"""A learning rate and a number of epochs."""

_TRAINED_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
_REGRESSIONS = ("STS-B",)
# MNLI has two validation splits: genres of the training data, and others.
_MATCHED, _MISMATCHED = "validation_matched", "validation_mismatched"
_SPLIT_IN_TWO = ("MNLI",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The grid: every combination of task, learning rate, epochs and seed is one fine-tuning."""

    tasks: Sequence[str] | None = None
    """GLUE's names in any spelling; None takes those that a data folder has, of a hub id all nine."""
    learning_rates: Sequence[float] = (2e-5, 3e-5, 5e-5)
    epochs: Sequence[float] = (3,)
    seeds: Sequence[int] = (1, 2, 3)
    batch_size: int = 32
    max_length: int = 128
    train_limit: int | None = None
    """Train on the first so many examples of each task."""
    eval_limit: int | None = None
    """Score on the first so many examples of each task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where one task's data is, and the splits to score on."""

    task: str
    """GLUE's spelling."""
    name: str
    """A hub id with its configuration, or a folder."""
    eval_split: str
    second_split: str | None
    """MNLI's mismatched validation texts, where there are any."""

    @property
    def short(self) -> str:
        """The task in small letters and figures: `sst2`."""
        return _short(self.task)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """One fine-tuning of the grid."""

    task: str
    recipe: Recipe
    source: Source

    @property
    def setting(self) -> Setting:
        return self.recipe.distill.learning_rate, self.recipe.distill.epochs

    @property
    def name(self) -> str:
        rate, epochs = self.setting
        return f"{self.source.short}-lr{rate:g}-ep{epochs:g}-seed{self.recipe.seed}"

    def file(self, out_dir: Path) -> Path:
        return out_dir / "cells" / f"{self.name}.json"


def run_glue(
    model: str | Path,
    out_dir: str | Path,
    *,
    data: str | Path,
    grid: Grid | None = None,
    teacher: str | Path | None = None,
    reference: str | Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Fine-tune an encoder on every cell of the grid and return its row of the GLUE table, also in `OUT_DIR/glue.json`.

    A fine-tuning whose loss is no longer a number fails; its learning rate and epochs are then not chosen.

    Args:
        model: a hub id or checkpoint folder of an encoder without a task.
        out_dir: receives the cells and the summary.
        data: the front of a hub id, `nyu-mll/glue`, or a folder with one folder per task: cola, mnli, mrpc, qnli, qqp,
            rte, sst2, stsb, wnli.
        grid: what to try; None takes the defaults of `Grid`.
        teacher: another encoder, which is put through the same grid (in `OUT_DIR/teacher`) and compared with.
        reference: instead of it a `glue.json` of an earlier run, or a JSON object of scores by task, as shares of 1.
        resume: go on with what `out_dir` holds; also with a wider grid, of which only the new cells are run.
        progress: is called with how far it is.

    Returns:
        `tasks` (by task the chosen `learning_rate` and `epochs`, `median`, `min` and `max` over the seeds, and all
        `settings`), and what `metrics.glue_summary` makes of the medians; with a teacher or reference also its row as
        `reference`, and what is kept of it on the tasks where it scored above 0.

    Raises:
        UsageError, DataError: if a task is unknown or its data missing, or the reference does not fit.
        RecipeError, CheckpointError: if a value of the grid or an encoder is not valid, or is fine-tuned already.
        OutputError: if `out_dir` has content and `resume` is false, or cells of another run.
        TrainingError: if every setting of a task fails.
    """
    started, out_dir, grid = time.perf_counter(), Path(out_dir), grid or Grid()
    if None not in (teacher, reference):
        raise UsageError("a teacher and a reference are two rows to compare with; give one of them")
    if out_dir.is_file():
        raise OutputError(f"{out_dir} is a file; name a folder with --out")
    if out_dir.is_dir() and any(out_dir.iterdir()) and not resume:
        raise OutputError(f"{out_dir} is not empty; go on with its cells by --resume, or name another folder")
    sources = find_sources(str(data), grid.tasks)
    reference_scores = read_reference(Path(reference), list(sources)) if reference is not None else None
    # By the name in progress reports, which is also the folder of the model's cells.
    models = {"": str(model)} | ({"teacher": str(teacher)} if teacher is not None else {})
    # Everything is checked for both models before the first of many hours is spent.
    cells = {who: _make_cells(name, grid, sources) for who, name in models.items()}
    encoders = {who: _describe_encoder(name) for who, name in models.items()}
    for who in models:
        _check_cells(cells[who], out_dir / who, sha256=encoders[who]["sha256"])
    listed = replace(grid, tasks=list(sources))
    shown = {field.name: getattr(listed, field.name) for field in fields(listed)}
    summary: dict[str, Any] = {
        "data": str(data),
        "grid": {name: list(value) if isinstance(value, Sequence) else value for name, value in shown.items()},
    }
    rows = {}
    for who, encoder in encoders.items():
        tasks = _run_cells(
            cells[who], out_dir / who, who=who, sha256=encoder["sha256"], resume=resume, progress=progress
        )
        rows[who] = encoder | {"tasks": tasks} | glue_summary({task: tasks[task]["median"] for task in tasks})
        write_text(out_dir / who / SUMMARY, _to_json(rows[who] | summary))
    summary = rows.pop("") | summary | rows
    if "teacher" in rows:
        reference_scores = rows["teacher"]["scores"]
    if reference_scores is not None:
        # Tasks on which the reference has learned nothing have no share to keep.
        usable = {task: score for task, score in summary["scores"].items() if reference_scores[task] > 0}
        compared = glue_summary(usable, reference_scores)
        summary["reference"] = glue_summary({task: reference_scores[task] for task in summary["scores"]})
        for key in ("retention", "retention_by_definition", "worst_task"):
            if key in compared:
                summary[key] = compared[key]
    summary["seconds"] = round(time.perf_counter() - started, 1)
    write_text(out_dir / SUMMARY, _to_json(summary))
    return summary


def _make_cells(model: str, grid: Grid, sources: Mapping[str, Source]) -> list[_Cell]:
    """Return every combination of task, learning rate, epochs and seed, each once."""
    for field in fields(grid):
        values = getattr(grid, field.name)
        if isinstance(values, Sequence) and not values:
            raise UsageError(f"the grid has no {field.name.replace('_', ' ')}; give at least one")
    rates, epochs, seeds = (tuple(dict.fromkeys(axis)) for axis in (grid.learning_rates, grid.epochs, grid.seeds))
    cells = []
    for source, rate, passes, seed in product(sources.values(), rates, epochs, seeds):
        values = {
            "teacher": {"model": model},
            "metric": GLUE_METRICS[source.task],
            "max_length": grid.max_length,
            "seed": int(seed),
            "data": {
                "name": source.name,
                "problem_type": REGRESSION if source.task in _REGRESSIONS else SINGLE_LABEL,
                "eval_split": source.eval_split,
                "max_train_examples": grid.train_limit,
                "max_eval_examples": grid.eval_limit,
            },
            "distill": {"learning_rate": rate, "epochs": passes, "batch_size": grid.batch_size},
        }
        cells.append(_Cell(task=source.task, source=source, recipe=build_recipe(values, origin="the GLUE grid")))
    return cells


def _describe_encoder(name: str) -> dict[str, Any]:
    """Return what the summary says of an encoder.

    Raises:
        CheckpointError: if it cannot be loaded, or has a head that was trained for a task: that would go on learning,
            where all others start anew.
    """
    model = load_checkpoint(name, FEATURE_EXTRACTION).model
    # Loaded as a bare encoder, a classifier would pass: only its `architectures` tell.
    trained = [kind for kind in model.config.architectures or [] if kind.endswith(_TRAINED_HEADS)]
    if trained:
        raise CheckpointError(
            f"{name} is a {trained[0]}, fine-tuned for a task already; GLUE fine-tunes an encoder anew for each task, "
            "so name the encoder that this was made of"
        )
    return {"model": name, "sha256": hash_checkpoint(name), "parameters": count_parameters(model)}


def _check_cells(cells: Sequence[_Cell], out_dir: Path, *, sha256: str | None) -> None:
    """Refuse cells of another run, and data that cannot be read, before anything is trained."""
    missing = {}
    for cell in cells:
        file = cell.file(out_dir)
        if not file.is_file():
            missing[cell.task] = cell
            continue
        known = json.loads(file.read_text(encoding="utf-8"))
        ours = flatten({"sha256": sha256, "recipe": cell.recipe.model_dump(mode="json")})
        other = flatten({key: known.get(key) for key in ("sha256", "recipe")})
        differing = next((key for key in ours | other if ours.get(key) != other.get(key)), None)
        if differing is not None:
            raise OutputError(
                f"{file} comes from another run: its {differing.removeprefix('recipe.')} is {other.get(differing)!r}, "
                f"not {ours.get(differing)!r}; name another folder"
            )
    for cell in missing.values():
        data = cell.recipe.data
        for split in (data.train_split, data.eval_split):
            # One row is enough to know that the split, its columns and its labels can be read.
            load_examples(data.name, split=split, task=TEXT_CLASSIFICATION, problem_type=data.problem_type, limit=1)


def _run_cells(
    cells: Sequence[_Cell], out_dir: Path, *, who: str, sha256: str | None, resume: bool, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Run the cells that are missing and return each task's choice."""
    by_task: dict[str, list[_Cell]] = {}
    for cell in cells:
        by_task.setdefault(cell.task, []).append(cell)
    chosen = {}
    for task, ours in by_task.items():
        stage = f"{who} {task}".strip()
        outcomes = []
        for number, cell in enumerate(ours):
            rate, epochs = cell.setting
            note = f"learning rate {rate:g}, {epochs:g} epochs, seed {cell.recipe.seed}"
            progress(stage, number, len(ours), note)
            outcomes.append(_run_cell(cell, out_dir, sha256=sha256, resume=resume, progress=progress))
        chosen[task] = choose(task, [cell.setting for cell in ours], outcomes)
        progress(stage, len(ours), len(ours), f"{GLUE_METRICS[task]} {chosen[task]['median']:.4f}")
    return chosen


def _run_cell(cell: _Cell, out_dir: Path, *, sha256: str | None, resume: bool, progress: Progress) -> dict[str, Any]:
    """Run a cell unless its file exists, and return the file's content."""
    file = cell.file(out_dir)
    if file.is_file():
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return known
    folder = file.with_name(cell.name)

    def inside(stage: str, done: int, total: int, note: str) -> None:
        # Scoring has counts of its own, which would make the bar jump.
        if not stage.startswith("score"):
            progress("fine-tune", done, total, note)

    outcome: dict[str, Any] = {"sha256": sha256, "recipe": cell.recipe.model_dump(mode="json")}
    try:
        report = finetune(cell.recipe, folder, resume=resume, overwrite=True, progress=inside)
        outcome |= {"scores": report["teacher"]["scores"], "num_examples": report["data"]["examples"]}
        outcome |= {key: report[key] for key in ("floor", "steps", "best_step", "seconds")}
        if cell.source.second_split is not None:
            reading = Reading(split=cell.source.second_split, limit=cell.recipe.data.max_eval_examples)
            found = evaluate(folder, data=cell.source.name, max_length=cell.recipe.max_length, reading=reading)
            outcome["second_scores"] = found["scores"]
    except TrainingError as error:  # one rate that is too high must not cost the others
        outcome["failed"] = str(error)
    # The file marks the cell as done, so it is written before the training's folders go. A failed cell is done, too.
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, _to_json(outcome))
    for left in (folder, folder.with_name(f"{folder.name}.training")):
        shutil.rmtree(left, ignore_errors=True)
    return outcome


def find_sources(data: str, tasks: Sequence[str] | None) -> dict[str, Source]:
    """Return each task's data by GLUE's spelling, in GLUE's order.

    Args:
        data: the front of a hub id, such as `nyu-mll/glue`, or a folder with one folder per task.
        tasks: in any spelling; None takes those that the folder has, of a hub id all.

    Raises:
        UsageError: if a task is unknown.
        DataError: if a task's folder is missing, or `data` names a single task.
    """
    asked = None if tasks is None else {glue_task(name) for name in tasks}
    if asked is not None and not asked:
        raise UsageError("no task is named; give at least one, such as sst2")
    root = Path(data).expanduser()
    if root.is_dir():
        return _sources_in_folder(root, asked)
    if data.startswith((".", "/", "~")) or data.count("/") > 1:
        raise DataError(f"there is no folder {data}; name a folder with one folder per task, or nyu-mll/glue")
    if ":" in data:
        raise DataError(f"{data} is the data of one task; leave out what follows the colon, and choose by --tasks")
    return {
        task: Source(
            task=task,
            name=f"{data}:{_short(task)}",
            eval_split=_MATCHED if task in _SPLIT_IN_TWO else "validation",
            second_split=_MISMATCHED if task in _SPLIT_IN_TWO else None,
        )
        for task in GLUE_METRICS
        if asked is None or task in asked
    }


def _sources_in_folder(root: Path, asked: set[str] | None) -> dict[str, Source]:
    folders = {_short(path.name): path for path in sorted(root.iterdir()) if path.is_dir()}
    known = [task for task in GLUE_METRICS if _short(task) in folders]
    if not known:
        raise DataError(
            f"{root} has no folder of a task of GLUE; expected {', '.join(map(_short, GLUE_METRICS))}, with train and "
            "validation files in each"
        )
    missing = [_short(task) for task in GLUE_METRICS if asked is not None and task in asked and task not in known]
    if missing:
        raise DataError(f"{root} has no folder {', '.join(missing)}; it has {', '.join(map(_short, known))}")
    found = {}
    for task in known:
        if asked is None or task in asked:
            folder = folders[_short(task)]
            splits = {file.stem for file in folder.iterdir()} if task in _SPLIT_IN_TWO else set()
            found[task] = Source(
                task=task,
                name=str(folder),
                eval_split=_MATCHED if _MATCHED in splits else "validation",
                second_split=_MISMATCHED if _MISMATCHED in splits else None,
            )
    return found


def _short(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def choose(task: str, tried: Sequence[Setting], outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the setting with the best median over its seeds, and under `settings` what every setting scored.

    Args:
        task: in GLUE's spelling.
        tried: the setting of each fine-tuning.
        outcomes: its `scores` (or `failed`), `floor`, `num_examples`, and for MNLI `second_scores`.

    Raises:
        TrainingError: if no setting has a score with every seed.
    """
    metric = GLUE_METRICS[task]
    by_setting: dict[Setting, list[Mapping[str, Any]]] = {}
    for setting, outcome in zip(tried, outcomes, strict=True):
        by_setting.setdefault(setting, []).append(outcome)
    settings = [
        {"learning_rate": rate, "epochs": epochs} | _spread([_value(one, "scores", metric) for one in found])
        for (rate, epochs), found in by_setting.items()
    ]
    # A setting that fails with one seed is not robust, and a median over fewer seeds is not comparable.
    whole = [setting for setting in settings if setting["median"] is not None]
    if not whole:
        raise TrainingError(
            f"{task} failed with every setting: {outcomes[0].get('failed', 'its scores are no numbers')}"
        )
    best = max(whole, key=lambda setting: setting["median"])
    chosen = by_setting[best["learning_rate"], best["epochs"]]
    second = [_value(one, "second_scores", metric) for one in chosen if "second_scores" in one]
    return {
        "metric": metric,
        "num_examples": chosen[0]["num_examples"],
        "floor": chosen[0]["floor"][metric],
        **best,
        **({"mismatched": _spread(second)} if second else {}),
        "settings": settings,
    }


def _value(outcome: Mapping[str, Any], key: str, metric: str) -> float | None:
    value = outcome.get(key, {}).get(metric)
    return float(value) if value is not None and math.isfinite(value) else None


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return `values` with their median, least and greatest; nothing but the values where a seed has failed."""
    found = [value for value in values if value is not None]
    whole = len(found) == len(values)
    return {
        "median": statistics.median(found) if whole else None,
        "min": min(found) if whole else None,
        "max": max(found) if whole else None,
        "values": list(values),
    }


def read_reference(file: Path, tasks: Sequence[str]) -> dict[str, float]:
    """Return the scores of `tasks` in a run's summary, or in a JSON object of scores by task.

    Raises:
        UsageError: if it cannot be read, lacks a task, or has scores that are no shares of 1.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = content.get("scores", content)
        scores = {glue_task(name): float(score) for name, score in found.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"cannot read {file} as a reference: {error}; expected a run's {SUMMARY} or an object of scores by task"
        ) from error
    missing = [task for task in tasks if task not in scores]
    if missing:
        raise UsageError(f"{file} has no score of {', '.join(missing)}; choose other tasks or another reference")
    # Papers print percentages, which would make every retention a hundredth.
    large = next((task for task in tasks if scores[task] > 1), None)
    if large is not None:
        raise UsageError(f"{file} has {scores[large]} for {large}; scores are shares of 1: {scores[large] / 100:g}")
    return {task: scores[task] for task in tasks}


def _to_json(content: Mapping[str, object]) -> str:
    return json.dumps(content, indent=2) + "\n"
