"""`potstill init`: cut an untrained student from a teacher."""

from pathlib import Path
from typing import Annotated

import typer

from potstill.checkpoint import trained_task
from potstill.cli import stopping
from potstill.cli.checks import check_init
from potstill.cli.options import (
    FLAGS,
    FamilyOption,
    JsonOption,
    LayersOption,
    OverwriteOption,
    SetOption,
    StudentTaskOption,
    parse_layers,
    resolve,
)
from potstill.config import method_for
from potstill.extras import require


def init(
    teacher: Annotated[str, typer.Argument(help="Hub id or checkpoint folder.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the student's checkpoint.", show_default=False)],
    layers: LayersOption = None,
    family: FamilyOption = None,
    task: StudentTaskOption = None,
    settings: SetOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the untrained student that distilling starts from.

    It is cut from the teacher.

    Example: potstill init textattack/bert-base-uncased-SST-2 --layers 0,2,4,7,9,11 --out untrained/
    """
    task = task or trained_task(teacher)
    flags = {
        "teacher.model": teacher,
        "student.layers": parse_layers(layers),
        "student.family": family,
        "task": task,
        "distill.method": method_for(task),
        # A recipe must name data; `init` reads none.
        "data.name": "none",
    }
    resolved = resolve(None, flags=flags, settings=settings)
    check_init(resolved, out, overwrite=overwrite, flags=FLAGS)
    stopping.keeps(stopping.left_by_nothing)
    require("torch", extra="distill")
    from potstill.cli.render import print_json, print_pairs
    from potstill.distill import init_student

    report = init_student(resolved, out, overwrite=overwrite)
    if as_json:
        print_json(report)
        return
    student = report["student"]
    print_pairs(
        f"Untrained student {out}",
        {
            "architecture": f"{student['model_type']}, {student['layers']} layers of {report['teacher']['layers']}",
            "kept": student["layers_kept"],
            "parameters": f"{student['parameters']:,}",
        },
    )
