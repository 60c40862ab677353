"""What the commands that train have in common: the plan before, the pace soon after, and the table at the end."""

import sys
from pathlib import Path
from typing import Any

_MIB = 2**20


def announce(headline: str, figures: dict[str, object]) -> None:
    """Say on stderr what a training will take, and, after the first steps, how long."""
    sys.stderr.write("".join(f"{line}\n" for line in _LINES[headline](figures)))


def print_student(folder: Path, report: dict[str, Any]) -> None:
    """Print what a distillation made, next to its teacher and, if they were trained, its controls."""
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
            **next_or_warning(f"potstill export {folder} --task {report['task']} --out {folder}-onnx", new),
        },
    )
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


def next_or_warning(command: str, trained: dict[str, Any]) -> dict[str, str]:
    """Return the row that ends a training's table: what to do next, or that the model has learnt nothing to go on with.

    Args:
        command: what to do next.
        trained: the report's part about the model.
    """
    sentence = (trained.get("against_trivial") or {}).get("sentence")
    if sentence is None:
        return {"next": command}
    return {"warning": f"{sentence}; look at the labels and the columns, train longer or on more data"}


def _loses(report: dict[str, Any]) -> bool:
    from potstill.task import lower_is_better

    alone = report["controls"].get("no_teacher")
    if alone is None:
        return False
    metric = report["metric"]
    ours, theirs = report["student"]["scores"][metric], alone["scores"][metric]
    return bool(ours >= theirs if lower_is_better(metric) else ours <= theirs)


def _plan(figures: dict[str, Any]) -> list[str]:
    teacher = figures["teacher_parameters"]
    of = f", teacher {teacher:,}" if teacher else ""
    return [
        f"parameters  student {figures['student_parameters']:,}{of}",
        f"data        {figures['rows']:,} rows, {figures['tokens']:,} tokens a pass",
        f"steps       {figures['steps']:,} ({figures['steps_per_epoch']:,} a pass), "
        f"about {figures['tokens_per_step']:,} tokens each",
        f"memory      about {figures['memory_bytes'] / _MIB:,.0f} MiB",
    ]


def _pace(figures: dict[str, Any]) -> list[str]:
    from potstill.cli.render import duration

    left, step = duration(figures["seconds_left"]), figures["seconds_per_step"]
    return [f"time        about {left} to go ({step:.2f} s a step, scoring not counted)"]


_LINES = {"plan": _plan, "pace": _pace}
_CONTROLS = {
    "untrained": "student, untrained",
    "no_teacher": "student, trained without a teacher",
    "floor": "an answer that ignores the text",
}
