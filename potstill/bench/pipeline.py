"""The bench itself: from models to a report.

Samples go into a journal in a work folder beside the output (`.NAME.bench`), and the report is computed from the
journal. So a bench that was interrupted leaves a report of what there is, and can be resumed where it stopped.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from potstill.bench import environment, verify
from potstill.bench.budget import COMPRESSED, Deadline, Fit, describe_costs, estimate, fit, reduce
from potstill.bench.config import DataSet, Request, ResolvedBench, resolve
from potstill.bench.measure.run import BenchRun
from potstill.bench.measure.samples import FILE_NAME, Samples, open_samples, read_samples
from potstill.bench.measure.stages import measure
from potstill.bench.report import REPORT_NAME, read_report, write_report
from potstill.bench.report_builder import decide_claims, describe_contestants, make_report
from potstill.bench.report_schema import Environment, Report
from potstill.config import DEFAULT_SEED, BenchConfig
from potstill.errors import CheckError, OutputError
from potstill.files import check_free, new_folder
from potstill.progress import Progress, silent

Tell = Callable[[str], None]
# A budget that is offered is half of what the whole bench takes, or less.
_OFFERED_BUDGETS_MIN = (15, 5, 2, 1)
# As many cells as a few minutes measure again.
_VERIFIED_CELLS = 6


def bench(
    request: Request,
    *,
    out_dir: Path,
    config: BenchConfig | None = None,
    seed: int = DEFAULT_SEED,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    tell: Tell = lambda sentence: None,
    progress: Progress = silent,
) -> Report:
    """Measure models side by side, decide the claims and write the report.

    Args:
        request: the models, the data and the claims.
        out_dir: gets report.json, report.md, report.html and the raw samples.
        config: what is measured, and for how long.
        seed: of the inputs, the order of turns and the bootstraps.
        resume: go on with a bench that was interrupted; of one that is finished only the claims are decided anew.
        overwrite: replace what `out_dir` holds; an old report is then not taken for this bench's.
        command: how to do this again, for the report.
        tell: called with a sentence, before the waiting begins, about what the data can and cannot show.
        progress: called with stage, steps done, steps in all and a note.

    Raises:
        OutputError: if `out_dir` is in the way, or holds a bench of other models or settings.
        BundleError, TamperedError, CheckpointError: if a model cannot be used.
        UsageError, DataError, RecipeError: if models, loads, data or claims do not fit.
        MissingError: if this machine lacks an engine.
        CheckError: if nothing could be measured at all.
        KeyboardInterrupt: after writing what there is.
    """
    began = time.monotonic()
    # Beside the output and not inside it, which is replaced as a whole when the report is there.
    work = out_dir.resolve().with_name(f".{out_dir.resolve().name}.bench")
    interrupted = (work / FILE_NAME).is_file()
    if interrupted and not (resume or overwrite):
        raise OutputError(
            f"a bench into {out_dir} was interrupted; pass --resume to go on with it, or --overwrite to start anew"
        )
    # An incomplete report is made of what the work folder holds, so nothing is lost with it.
    check_free(out_dir, overwrite=overwrite or (resume and (interrupted or _read_finished(out_dir) is not None)))
    resolved = resolve(request, config=config or BenchConfig(), seed=seed, command=command)
    # With both, --overwrite clears a finished report out of the way and --resume goes on with what was interrupted.
    finished = _read_finished(out_dir) if resume and not overwrite else None
    if finished is not None:
        return _decide_again(finished, resolved, out_dir)
    for dataset in resolved.datasets:
        for sentence in (*dataset.examples.notes, dataset.power().sentence):
            tell(f"{dataset.name}: {sentence}")
    return _run(resolved, work, out_dir, began=began, resume=resume, tell=tell, progress=progress)


def verify_report(
    place: Path, *, seed: int = 0, tell: Tell = lambda sentence: None, progress: Progress = silent
) -> list[verify.Finding]:
    """Measure a sample of a report's cells again, and say of each whether it still holds.

    Args:
        place: the report's folder or JSON file.
        seed: of the sample.
        tell: called with what is measured.
        progress: called with stage, steps done, steps in all and a note.

    Raises:
        UsageError: if there is no report, or a model is not where it was.
        CheckError: if nothing could be measured.
    """
    report = read_report(place)
    sample = verify.draw_sample(report, np.random.default_rng([seed, len(report.latency)]), _VERIFIED_CELLS)
    tell(f"{', '.join(sample.keys)} at {', '.join(map(str, sample.loads))} {', '.join(sample.data)}".strip())
    settings = dict(report.config)
    sets = [DataSet(**each) for each in settings.pop("data", [])]
    # What is not compared is not measured.
    less = {"cold_starts": 0, "throughput_batch_sizes": [], "thread_scaling": False, "compressed": False}
    less |= {"peak": False, "budget_s": None}
    request = Request(
        models=sample.places,
        baseline=report.baseline_model,
        data=[each for each in sets if each.title in sample.data],
    )
    config = BenchConfig.model_validate(settings | less)
    resolved = resolve(request, config=config, seed=report.seed)
    resolved = resolved.select(keys=sample.keys, loads=sample.loads)
    with tempfile.TemporaryDirectory() as folder:
        work, out_dir = Path(folder) / "work", Path(folder) / "report"
        fresh = _run(resolved, work, out_dir, began=time.monotonic(), progress=progress)
    return verify.check(report, fresh, sample=sample)


def _read_finished(out_dir: Path) -> Report | None:
    """Return the complete report that is there, if there is one."""
    report = read_report(out_dir) if (out_dir / REPORT_NAME).is_file() else None
    return report if report is not None and report.complete else None


def _decide_again(report: Report, bench: ResolvedBench, out_dir: Path) -> Report:
    """Return a finished report with the claims as they are asked for now, which needs no new measurement."""
    journal = read_samples(out_dir / FILE_NAME)
    # With the report's machine and not this one: nothing is measured here.
    wanted = _journal_head(bench, report.environment)
    changed = [name for name in ("models", "data", "config", "seed") if journal.head.get(name) != wanted[name]]
    if changed:
        raise OutputError(
            f"{out_dir} holds a report of other {' and '.join(changed)}; pass --overwrite, or name another folder"
        )
    decided = decide_claims(report, bench)
    if decided.claims != report.claims:
        _publish(decided, journal, out_dir)
    return decided


def _run(
    bench: ResolvedBench,
    work: Path,
    out_dir: Path,
    *,
    began: float,
    resume: bool = False,
    tell: Tell = lambda sentence: None,
    progress: Progress,
) -> Report:
    """Measure what is missing, then publish; after Ctrl-C publish what there is.

    Args:
        bench: what is measured.
        work: holds the journal and the answers.
        out_dir: gets the report.
        resume: whether to go on with what `work` holds.
        began: when the whole bench did, by `time.monotonic()`: a budget counts from there.
        tell: called with how long it takes, and what there is no time for.
        progress: called with stage, steps done, steps in all and a note.
    """
    budget_s, fitting = bench.config.budget_s, None
    if budget_s is not None and not (resume and (work / FILE_NAME).is_file()):
        fitting = fit(bench, budget_s, elapsed_s=time.monotonic() - began)
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    before = environment.describe(threads=bench.threads)
    journal = open_samples(work, head=_journal_head(bench, before))
    # The parts of an interrupted bench share one budget.
    spent_s = float(journal.get("elapsed") or 0.0)
    deadline = None
    if budget_s is not None:
        # Chosen once: a resumed bench has less time left, but must go on with the same loads.
        fitting = Fit(**journal.once(("fit",), lambda: asdict(fitting or fit(bench, budget_s, elapsed_s=0.0))))
        bench = reduce(bench, fitting)
        end = time.perf_counter() + budget_s - spent_s - (time.monotonic() - began)
        deadline = Deadline(end, time.perf_counter, fitting.reserved_s, fitting.starts_s)
        parts = [f"latency at {' and '.join(fitting.loads)}", *fitting.reserved_s]
        tell(f"This takes the {budget_s:g} s of its budget: {', '.join(parts)}.")
        if fitting.left_out:
            tell(f"The budget leaves out: {', '.join(fitting.left_out)}.")
    else:
        costs = estimate(bench)
        shorter = next((minutes for minutes in _OFFERED_BUDGETS_MIN if 120 * minutes <= sum(costs.values())), None)
        hint = f" --budget {shorter}m would keep it to {shorter} min." if shorter else ""
        tell(f"This takes {describe_costs(costs)}.{hint}")
    interrupted: KeyboardInterrupt | None = None
    try:
        run = BenchRun(bench=bench, journal=journal, progress=progress, deadline=deadline)
        journal.once(("load before",), lambda: before.load_before)
        measure(run, answers=work / "answers")
        rows = describe_contestants(bench, journal, compress=run.has_time(0.0, COMPRESSED), progress=progress)
        # Last of all: without them `make_report` calls the report incomplete.
        journal.once(("rows",), lambda: [row.model_dump(mode="json") for row in rows])
    # Kept, and raised again once the report of what there is has been written.
    except KeyboardInterrupt as stop:
        interrupted = stop
    elapsed_s = spent_s + time.monotonic() - began
    journal.put(("elapsed",), elapsed_s)
    if interrupted is None and deadline is not None:
        # From here on, what is missing had no time, and resuming would not bring it.
        journal.put(("ended",), True)
    report = make_report(bench, journal, work, elapsed_s=elapsed_s)
    if not report.latency and interrupted is None:
        raise CheckError(_why_nothing(report, budget_s))
    if report.latency or report.quality:
        _publish(report, journal, out_dir)
    journal.finish()
    if interrupted is not None:
        raise interrupted
    shutil.rmtree(work, ignore_errors=True)
    return report


def _why_nothing(report: Report, budget_s: float | None) -> str:
    """Say why nothing was measured."""
    if report.failures:
        return f"no model could be measured; the first: {report.failures[0].reason}"
    if budget_s is not None:
        return (
            f"the budget of {budget_s:g} s was over before one round was, since this machine is slow or busy; "
            "pass a larger --budget, or bench when it is quiet"
        )
    return "no model could be measured: no row finished a round"


def _journal_head(bench: ResolvedBench, found: Environment) -> dict[str, object]:
    """Return what must be the same for an interrupted bench to go on."""
    return {
        "config": bench.config.model_dump(mode="json"),
        "seed": bench.seed,
        "models": {
            each.key: [each.folder, bench.models[each.model].weights_sha256(each)] for each in bench.configurations
        },
        "data": {
            dataset.name: [dataset.examples.sha256, [each.folder for each in dataset.configurations]]
            for dataset in bench.datasets
        },
        "environment": environment.identity(found),
    }


def _publish(report: Report, journal: Samples, out_dir: Path) -> None:
    # Built beside the old report and renamed, so that a crash leaves one of the two whole.
    with new_folder(out_dir, overwrite=True) as building:
        write_report(report, building)
        shutil.copyfile(journal.file, building / FILE_NAME)
