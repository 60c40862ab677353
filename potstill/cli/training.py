"""What the commands that train have in common: the plan before, the pace soon after, and the table at the end."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.data.splits import HELD_OUT

_MIB = 2**20


def announce(headline: str, figures: dict[str, object]) -> None:
    """Say on stderr what a training will take, and, after the first steps, how long."""
    sys.stderr.write("".join(f"{line}\n" for line in _LINES[headline](figures)))


def print_student(folder: Path, report: dict[str, Any], *, data: Sequence[str] = ()) -> None:
    """Print what a distillation made, next to its teacher and, if they were trained, its controls.

    Args:
        folder: of the student.
        report: as `distill` returns it.
        data: the options of the next command that name the same data and columns; int8 is fitted to and judged on it.
    """
    from potstill.cli.render import print_pairs, print_table

    old, new, metric = report["teacher"], report["student"], report["metric"]
    fewer = 1 - new["parameters"] / old["parameters"]
    kept = f", kept {new['layers_kept']}" if new["layers_kept"] else ""
    teacher_score = f", teacher {old['scores'][metric]:.4f}" if metric in old["scores"] else ""
    print_pairs(
        f"Student {folder}",
        {
            "parameters": f"{new['parameters']:,} of {old['parameters']:,} ({fewer:.1%} fewer)",
            "layers": f"{new['layers']} of {old['layers']}{kept}",
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
        if _loses(report):
            sys.stderr.write(
                "warning: without its teacher the same student is as good or better: this distillation gains nothing\n"
            )


def print_next(words: Sequence[str], trained: dict[str, Any]) -> None:
    """Print the command that comes next in one line, so that it runs as printed; or why there is nothing to go on with.

    Args:
        words: of the command.
        trained: the report's part about the model that was trained.
    """
    sentence = (trained.get("against_trivial") or {}).get("sentence")
    if sentence is None:
        sys.stdout.write(f"next  {shlex.join(words)}\n")
    else:
        sys.stdout.write(f"warning  {sentence}; look at the labels and the columns, train longer or on more data\n")


def _loses(report: dict[str, Any]) -> bool:
    from potstill.tasks import lower_is_better

    alone = report["controls"].get("no_teacher")
    if alone is None:
        return False
    metric = report["metric"]
    ours, theirs = report["student"]["scores"][metric], alone["scores"][metric]
    return bool(ours >= theirs if lower_is_better(metric) else ours <= theirs)


def _data(about: dict[str, Any]) -> list[str]:
    """Return what the data is, as it was read or found out: a user sees here what is wrong with it."""
    labels, columns = (
        about.get("labels") or [],
        {"text": about.get("text_columns"), "label": about.get("label_columns")},
    )
    problem = _PROBLEMS.get(about.get("problem_type") or "")
    named = "; ".join(f"{what}: {', '.join(names)}" for what, names in columns.items() if names)
    how = f" ({about['labels_read']})" if about.get("labels_read", "by name") != "by name" else ""
    lines = [
        f"task        {about['task']}" + (f", {problem}" if problem else ""),
        f"columns     {named}" if named else "",
        f"labels      {len(labels)}: {', '.join(labels[:_LABELS])}{', ...' if len(labels) > _LABELS else ''}{how}"
        if labels
        else "",
        f"vectors     the teacher's: {about['teacher_vectors']}" if about.get("teacher_vectors") else "",
        f"learn from  {about['train_examples']:,} of {about['name']} ({about.get('train_split')})",
        f"score on    {about['examples']:,} of {about['name']} ({about['split']})",
    ]
    if about["split"].endswith(HELD_OUT):
        lines.append("held out    a tenth of the texts, the same ones in every command: --split held-out scores them")
    if about.get("shared_texts"):
        lines.append(f"warning: {about['shared_texts']:,} of the texts to score on are among those to learn from")
    read = about.get("labels_read") or "nothing"
    lines += [f"warning: {note}" for note in about.get("notes", ()) if not note.endswith(read)]
    return [line for line in lines if line]


def _plan(figures: dict[str, Any]) -> list[str]:
    teacher = figures["teacher_parameters"]
    learns = f"{figures['student_parameters']:,}"
    parameters = f"student {learns}, teacher {teacher:,}" if teacher else learns
    return [
        *_data(figures["data"]),
        f"parameters  {parameters}",
        f"rows        {figures['rows']:,}, {figures['tokens']:,} tokens a pass",
        f"steps       {figures['steps']:,} ({figures['steps_per_epoch']:,} a pass), "
        f"about {figures['tokens_per_step']:,} tokens each",
        f"memory      about {figures['memory_bytes'] / _MIB:,.0f} MiB",
    ]


def _pace(figures: dict[str, Any]) -> list[str]:
    from potstill.cli.render import duration

    left, step = duration(figures["seconds_left"]), figures["seconds_per_step"]
    return [f"time        about {left} to go ({step:.2f} s a step, scoring not counted)"]


def _head(figures: dict[str, Any]) -> list[str]:
    before, after = figures["before"], figures["after"]
    return [f"head        new, for {_some(after)}; the model's own is for {_some(before)} and is not used"]


def _some(names: list[str]) -> str:
    return f"{len(names)} labels ({', '.join(names[:_MOST_NAMES])}{', ...' if len(names) > _MOST_NAMES else ''})"


_MOST_NAMES = 6
_PROBLEMS = {
    "single_label_classification": "one label for each text",
    "multi_label_classification": "several labels for each text",
    "regression": "an amount for each text",
}
_LABELS = 12
_LINES = {"head": _head, "plan": _plan, "pace": _pace}
_CONTROLS = {
    "untrained": "student, untrained",
    "no_teacher": "student, trained without a teacher",
    "floor": "an answer that ignores the text",
}
