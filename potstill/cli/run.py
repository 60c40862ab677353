"""`potstill run`: the whole chain from one recipe."""

from pathlib import Path
from typing import Annotated

import typer

from potstill.bundle import read_bundle
from potstill.cli.settings import JsonOption, OverwriteOption, ResumeOption, SetOption, output_folder, resolve
from potstill.extras import require


def run(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `potstill recipes`) or a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Folder for everything the run makes.", show_default=False)] = None,
    settings: SetOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Distil a student, export teacher and student, bench both and decide the claims.

    Example: potstill run sst2 --out out/sst2 --set student.layers=3 --set data.name=my-data/
    """
    resolved = resolve(recipe, flags={}, settings=settings)
    folder = output_folder(out, resolved)
    for module, extra in (("torch", "distill"), ("onnx", "export"), ("psutil", "bench")):
        require(module, extra=extra)
    from potstill.cli.render import out as stdout
    from potstill.cli.render import progress_bars
    from potstill.cli.report import render_report
    from potstill.cli.training import announce
    from potstill.pipeline import run as run_pipeline

    with progress_bars() as progress:
        report = run_pipeline(
            resolved,
            folder,
            resume=resume or resolved.resume,
            overwrite=overwrite,
            progress=progress,
            announce=announce,
        )
    if as_json:
        typer.echo(report.model_dump_json(by_alias=True))
        return
    render_report(report, stdout)
    made = read_bundle(folder / "student", verify=False).manifest.models
    best = "int8" if "int8" in made else next(iter(made))
    stdout.print(
        f"\nReport: {folder / 'report' / 'report.html'}\n"
        f"Serve:  potstill serve {folder / 'student'} --precision {best}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
