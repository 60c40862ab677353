"""`potstill distill`: make a student from a teacher; also what `finetune` and `run` print of a training."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.bundle import TrimmedVocabulary
from potstill.cli import stopping
from potstill.cli.checks import check_training
from potstill.cli.options import (
    FLAGS,
    EpochsOption,
    FamilyOption,
    JsonOption,
    LabelColumnOption,
    LayersOption,
    OverwriteOption,
    ResumeOption,
    SetOption,
    StudentTaskOption,
    TextColumnOption,
    VocabularyOption,
    column_flags,
    output_folder,
    parse_layers,
    resolve,
)
from potstill.config import METHODS, Recipe
from potstill.data.columns import NO_LABELS
from potstill.data.splits import HELD_OUT, REST, parse_split
from potstill.extras import require
from potstill.tasks import lower_is_better


def distill(
    teacher: Annotated[str | None, typer.Argument(help="Hub id or checkpoint folder.", show_default=False)] = None,
    data: Annotated[
        str | None, typer.Option(help="Hub id (nyu-mll/glue:sst2), folder of train/validation files, or a file.")
    ] = None,
    text_column: TextColumnOption = None,
    label_column: LabelColumnOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the student's checkpoint.", show_default=False)] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(
            help="Further texts, for the teacher to answer: as --data; no labels are read.", show_default=False
        ),
    ] = None,
    more_teachers: Annotated[
        list[str] | None,
        typer.Option("--teacher", help="A further teacher, averaged with TEACHER; repeatable.", show_default=False),
    ] = None,
    teacher_column: Annotated[
        str | None,
        typer.Option(
            help="No TEACHER, but the data's column with its answers: probabilities, labels, or vectors.",
            show_default=False,
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(help="Hub id or checkpoint folder to cut the student from.", show_default="TEACHER"),
    ] = None,
    task: StudentTaskOption = None,
    method: Annotated[
        str | None,
        typer.Option(help="task, distilbert, minilmv2, tinybert, mobilebert or embedding.", show_default="task"),
    ] = None,
    layers: LayersOption = None,
    family: FamilyOption = None,
    vocabulary: VocabularyOption = None,
    epochs: EpochsOption = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also train the same student without its teacher, and compare.")
    ] = False,
    recipe: Annotated[str | None, typer.Option(help="Start from a recipe; flags and --set win over it.")] = None,
    settings: SetOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a small student of a teacher.

    It learns from labelled texts, running text, or sentence embeddings.

    Example: potstill distill textattack/bert-base-uncased-SST-2 --data nyu-mll/glue:sst2 --layers 6 --out student/
    """
    others = list(more_teachers or ())
    if teacher is None and recipe is None and others:
        teacher = others.pop(0)
    flags = {
        "teacher.model": teacher,
        "teacher.ensemble": others or None,
        "teacher.column": teacher_column,
        "data.name": data,
        "data.unlabelled": unlabelled,
        **column_flags(text_column, label_column),
        "task": task,
        "distill.method": method,
        "student.model": student,
        "student.layers": parse_layers(layers),
        "student.family": family,
        "student.vocabulary": vocabulary,
        "distill.epochs": epochs,
        # None means not given: a flag that was left out must not override a recipe's `controls: true`.
        "distill.controls": controls or None,
    }
    resolved = resolve(recipe, flags=flags, settings=settings)
    folder = output_folder(out, resolved)
    check_training(resolved, folder, overwrite=overwrite, flags=FLAGS, teaches=True)
    stopping.keeps(lambda: stopping.left_by_training(folder))
    require("torch", extra="distill")
    from potstill.cli.render import print_json, progress_bars
    from potstill.distill import distill as distill_student

    with progress_bars() as progress:
        report = distill_student(
            resolved,
            folder,
            resume=resume or resolved.resume,
            overwrite=overwrite,
            progress=progress,
            announce=announce,
        )
    if as_json:
        print_json(report)
    else:
        print_student(folder, report, data=data_options(resolved))


def data_options(recipe: Recipe) -> list[str]:
    """Return the options of `export` that fit and judge int8 on the data that the student was trained on."""
    data = recipe.data
    if recipe.task not in METHODS["task"].tasks:
        return []  # running text has no labels to judge on
    # `export` holds the same tenth out by itself, so train/rest and train/held-out need not be named.
    words = ["--data", data.name]
    if data.train_split != "train" and parse_split(data.train_split) != ("train", REST):
        words += ["--split", data.train_split]
    if data.eval_split != "validation" and parse_split(data.eval_split) != ("train", HELD_OUT):
        words += ["--judged-split", data.eval_split]
    for column in data.text_columns or ():
        words += ["--text-column", column]
    return words + (["--label-column", data.label_column] if data.label_column not in (None, NO_LABELS) else [])


def announce(headline: str, figures: Mapping[str, object]) -> None:
    """Print a training's announcements on stderr: what it will take and, after the first steps, how long."""
    lines = {"head": _head_lines, "vocabulary": _vocabulary_lines, "plan": _plan_lines, "pace": _pace_lines}[headline](
        figures
    )
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def print_student(folder: Path, report: dict[str, Any], *, data: Sequence[str] = ()) -> None:
    """Print a student beside its teacher and its controls, and the export command that comes next.

    Args:
        folder: the student's folder.
        report: as `potstill.distill.distill` returns it.
        data: the options of `export` that name the same data and columns.
    """
    from potstill.cli.render import print_pairs, print_table
    from potstill.cli.show import describe_trimming

    old, new, metric = report["teacher"], report["student"], report["metric"]
    parameters, layers = f"{new['parameters']:,}", str(new["layers"])
    if "parameters" in old:  # a column of answers has none
        fewer = 1 - new["parameters"] / old["parameters"]
        parameters += f" of {old['parameters']:,} ({fewer:.1%} fewer)"
        layers += f" of {old['layers']}"
    kept = f", kept {new['layers_kept']}" if new["layers_kept"] else ""
    teacher_score = f", teacher {old['scores'][metric]:.4f}" if metric in old["scores"] else ""
    if old.get("trimmed_scores"):
        teacher_score += f", {old['trimmed_scores'][metric]:.4f} with the student's vocabulary"
    trimmed = report.get("vocabulary")
    print_pairs(
        f"Student {folder}",
        {
            "parameters": parameters,
            "layers": f"{layers}{kept}",
            "vocabulary": describe_trimming(TrimmedVocabulary.model_validate(trimmed)) if trimmed else None,
            "taught by": report["data"].get("taught_by"),
            "labels": _labels_learned(report["data"], "{} of {} texts"),
            metric: f"{new['scores'][metric]:.4f}{teacher_score} ({report['data']['examples']} examples)",
            "steps": f"{report['steps']}, best at {report['best_step']}",
            "time": f"{report['seconds']:.0f} s",
        },
    )
    words = ["potstill", "export", str(folder), "--task", report["task"], *data, "--out", f"{folder}-onnx"]
    print_next(words, new)
    if "controls" in report:
        rows = [["teacher", old["scores"]], ["student", new["scores"]]]
        rows += [[_CONTROLS[name], control["scores"]] for name, control in report["controls"].items()]
        names = list(new["scores"])
        cells = [[who, *(f"{scores[key]:.4f}" if key in scores else "" for key in names)] for who, scores in rows]
        print_table("\nThe student and what it has to beat", ["model", *names], cells)
        alone = report["controls"].get("no_teacher")
        if alone is not None:
            ours, theirs = new["scores"][metric], alone["scores"][metric]
            # Equal counts as no gain: the teacher has cost its forward passes.
            if ours >= theirs if lower_is_better(metric) else ours <= theirs:
                sys.stderr.write(
                    "warning: without its teacher the same student is as good or better: "
                    "this distillation gains nothing\n"
                )


def print_next(words: Sequence[str], trained: dict[str, Any]) -> None:
    """Print the next command, or a warning if the model is no better than an answer that ignores the text.

    Args:
        words: the command and its arguments.
        trained: the report's part about the model that was trained.
    """
    sentence = (trained.get("against_trivial") or {}).get("sentence")
    if sentence is None:
        # Unwrapped, unlike what rich prints: the command must run when it is copied.
        sys.stdout.write(f"next  {shlex.join(words)}\n")
    else:
        sys.stdout.write(f"warning: {sentence}; look at the labels and the columns, train longer or on more data\n")


# How many label names are printed before an ellipsis: of the data, and of an old and a new head side by side.
_LABELS_OF_DATA, _LABELS_OF_HEAD = 12, 6
_PROBLEMS = {
    "single_label_classification": "one label for each text",
    "multi_label_classification": "several labels for each text",
    "regression": "an amount for each text",
}
_CONTROLS = {
    "untrained": "student, untrained",
    "no_teacher": "student, trained without a teacher",
    "floor": "an answer that ignores the text",
}


def _head_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return the line that says that the model's own head is for other labels and is not used."""
    before, after = (
        f"{len(names)} labels ({_shorten(names, _LABELS_OF_HEAD)})" for names in (figures["before"], figures["after"])
    )
    return [f"head        new, for {after}; the model's own is for {before} and is not used"]


def _vocabulary_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return the lines about what trimming the vocabulary saves, and what it costs on texts of two domains."""
    lines = [
        f"vocabulary  {figures['rows']:,} of {figures['rows_before']:,} pieces, counted on {figures['counted_on']}: "
        f"{figures['parameters_saved']:,} parameters fewer"
    ]
    for texts in figures["tokens_per_text"]:
        more = texts["after"] / texts["before"] - 1
        lines.append(
            f"tokens      {texts['after']:.1f} a text of {texts['texts']}, with all pieces {texts['before']:.1f} "
            f"({more:+.1%})"
        )
    return lines


def _plan_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return the lines about what is trained, on what, and the steps and memory that it takes."""
    teacher, student = figures["teacher_parameters"], f"{figures['student_parameters']:,}"
    return [
        *_data_lines(figures["data"]),
        f"parameters  {f'student {student}, teacher {teacher:,}' if teacher else student}",
        f"rows        {figures['rows']:,}, {figures['tokens']:,} tokens a pass",
        f"steps       {figures['steps']:,} ({figures['steps_per_epoch']:,} a pass), "
        f"about {figures['tokens_per_step']:,} tokens each",
        f"memory      about {figures['memory_bytes'] / 2**20:,.0f} MiB",
    ]


def _pace_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return the line with the time that the training will take, estimated from its first steps."""
    from potstill.cli.render import duration

    left, step = duration(figures["seconds_left"]), figures["seconds_per_step"]
    return [f"time        about {left} to go ({step:.2f} s a step, scoring not counted)"]


def _data_lines(about: Mapping[str, Any]) -> list[str]:
    """Return the lines about the data as it was read, by which a user sees a wrong column or label before training."""
    problem = _PROBLEMS.get(about.get("problem_type") or "")
    lines = [f"task        {about['task']}" + (f", {problem}" if problem else "")]
    columns = {"text": about.get("text_columns"), "label": about.get("label_columns")}
    named = "; ".join(f"{what}: {', '.join(names)}" for what, names in columns.items() if names)
    if named:
        lines.append(f"columns     {named}")
    labels, read = about.get("labels") or [], about.get("labels_read") or "by name"
    if labels:
        how = f" ({read})" if read != "by name" else ""
        lines.append(f"labels      {len(labels)}: {_shorten(labels, _LABELS_OF_DATA)}{how}")
    if about.get("teacher_vectors"):
        lines.append(f"vectors     the teacher's: {about['teacher_vectors']}")
    if about.get("taught_by"):
        lines.append(f"taught by   {about['taught_by']}")
    further = f" and {about['unlabelled']}" if about.get("unlabelled") else ""
    labelled = _labels_learned(about, ", {} of them with a label") or ""
    lines += [
        f"learn from  {about['train_examples']:,} of {about['name']} ({about.get('train_split')}){further}{labelled}",
        f"score on    {about['examples']:,} of {about['name']} ({about['split']})",
    ]
    if about.get("scored_by") == "loss":
        lines.append(
            "warning: no text to score on has a label; the score is the loss, how far the student is from its teacher"
        )
    if about["split"].endswith(HELD_OUT):
        lines.append("held out    a tenth of the texts, the same ones in every command: --split held-out scores them")
    if about.get("shared_texts"):
        lines.append(f"warning: {about['shared_texts']:,} of the texts to score on are among those to learn from")
    # A note that ends in how labels were read repeats what the line of labels says.
    return lines + [f"warning: {note}" for note in about.get("notes", ()) if not note.endswith(read)]


def _labels_learned(about: Mapping[str, Any], words: str) -> str | None:
    """Return `words` with how many rows have a label, of how many; None if all have one or the method needs none."""
    labelled, rows = about.get("labelled_examples"), about.get("train_examples")
    return None if labelled in (None, rows) else words.format(f"{labelled:,}" if labelled else "none", f"{rows:,}")


def _shorten(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
