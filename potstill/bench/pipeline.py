"""The bench itself: from models to a report.

Samples go into a journal in a work folder beside the output (`.NAME.bench`), and the report is computed from the
journal. So a bench that was interrupted leaves a report of what there is, and can be resumed where it stopped.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from potstill import machine
from potstill.bench import environment, verify
from potstill.bench.budget import COMPRESSED, Deadline, Fit, describe_costs, estimate, fit, reduce
from potstill.bench.claims import decide, load_claims
from potstill.bench.config import DataSet, Request, ResolvedBench, resolve, split_journal_key
from potstill.bench.measure.cold_start import measure_cold_starts
from potstill.bench.measure.latency import measure_latency
from potstill.bench.measure.quality import collect_answers
from potstill.bench.measure.results import summarise_measurements
from potstill.bench.measure.run import BenchRun
from potstill.bench.measure.samples import FILE_NAME, Samples, open_samples, read_samples
from potstill.bench.measure.throughput import measure_scaling
from potstill.bench.models import compressed_bytes, list_comparisons
from potstill.bench.report import REPORT_NAME, read_report, write_report
from potstill.bench.report_schema import Contestant, Environment, Latency, Model, Peaks, Report
from potstill.config import DEFAULT_SEED, BenchConfig
from potstill.errors import CheckError, OutputError
from potstill.evaluation.comparison import Comparison, compare_glue, compare_models
from potstill.evaluation.predictions import load_predictions
from potstill.files import check_free, new_folder
from potstill.progress import Progress, silent

Tell = Callable[[str], None]
# A budget that is offered is half of what the whole bench takes, or less.
_OFFERED_BUDGETS_MIN = (15, 5, 2, 1)
# As many cells as a few minutes measure again.
_VERIFIED_CELLS = 6
# With more waiting tasks per core than this, other processes were at work.
_BUSY_LOAD = 0.5


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
    work = out_dir.resolve().with_name(f".{out_dir.resolve().name}.bench")
    interrupted = (work / FILE_NAME).is_file()
    if interrupted and not (resume or overwrite):
        raise OutputError(
            f"a bench into {out_dir} was interrupted; pass --resume to go on with it, or --overwrite to start anew"
        )
    # An incomplete report is made of what the work folder holds, so nothing is lost with it.
    check_free(out_dir, overwrite=overwrite or (resume and (interrupted or _read_finished(out_dir) is not None)))
    claims = load_claims(request.claims)
    resolved = resolve(request, config=config or BenchConfig(), claims=claims, seed=seed, command=command)
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
    less = {"cold_starts": 0, "throughput_batch_sizes": [], "thread_scaling": False, "compressed": False}
    less |= {"peak": False, "budget_s": None}
    request = Request(
        models=sample.places,
        baseline=report.baseline_model,
        data=[each for each in sets if each.title in sample.data],
    )
    config = BenchConfig.model_validate(settings | less)
    resolved = resolve(request, config=config, claims=(), seed=report.seed, command="")
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
    wanted = _journal_head(bench, report.environment)
    changed = [name for name in ("models", "data", "config", "seed") if journal.head.get(name) != wanted[name]]
    if changed:
        raise OutputError(
            f"{out_dir} holds a report of other {' and '.join(changed)}; pass --overwrite, or name another folder"
        )
    decided = report.model_copy(update={"claims": decide(report, bench.claims)})
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
    spent_s = float(journal.get("elapsed") or 0.0)
    deadline = None
    if budget_s is not None:
        fitting = Fit(**journal.once(("fit",), lambda: asdict(fitting) if fitting is not None else None))
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
        measure(run, score_quality=lambda: collect_answers(run, bench.datasets, work / "answers"))
        rows = describe_contestants(bench, journal, compress=run.has_time(0.0, COMPRESSED), progress=progress)
        journal.once(("rows",), lambda: [row.model_dump(mode="json") for row in rows])
    except KeyboardInterrupt as stop:
        interrupted = stop
    elapsed_s = spent_s + time.monotonic() - began
    journal.put(("elapsed",), elapsed_s)
    if interrupted is None and deadline is not None:
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


def measure(run: BenchRun, *, score_quality: Callable[[], None] = lambda: None) -> None:
    """Measure everything that is not in the journal yet.

    A failure of a configuration costs what it was asked and is written down. `KeyboardInterrupt` passes through once
    all processes are ended; a round that it cuts off leaves no trace, and another call goes on there. With a deadline,
    what there is no time for stays unmeasured.

    Args:
        run: what is measured, and where it is written down.
        score_quality: comes after the latency, before what matters less.
    """
    measure_latency(run)
    score_quality()
    measure_cold_starts(run)
    measure_scaling(run)


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
    with new_folder(out_dir, overwrite=True) as building:
        write_report(report, building)
        shutil.copyfile(journal.file, building / FILE_NAME)


def make_report(bench: ResolvedBench, journal: Samples, work: Path, *, elapsed_s: float | None = None) -> Report:
    """Compute the report of what the journal and the answers in `work` hold, whole or not."""
    measured = summarise_measurements(bench, journal)
    compared, unanswered = _compare_quality(bench, journal, work)
    found = environment.describe(threads=bench.threads, load_before=journal.get("load before"))
    if measured.peaks:
        fp32, int8 = measured.peaks.get("fp32"), measured.peaks.get("int8")
        peaks = Peaks(threads=bench.threads, fp32_flops_per_s=fp32, int8_ops_per_s=int8)
        found = found.model_copy(update={"peaks": peaks})
    missing = [*measured.missing, *unanswered]
    left_out: list[str] = []
    if journal.get("ended"):  # it came to its end: what is missing had no time
        missing, left_out = [], [*(journal.get("fit") or {}).get("left_out", ()), *missing]
    rows = journal.get("rows")
    contestants = [Contestant(**row) for row in rows] if rows else describe_contestants(bench, journal, compress=False)
    data = [{name: getattr(each, name) for name in DataSet.__slots__} for each in bench.data]
    keys = [each.key for each in bench.configurations]
    failures = []
    for failure in measured.failures:  # those of a data set's own model are its configuration's at that data set
        key, dataset = split_journal_key(failure.key)
        failures.append(failure.model_copy(update={"key": key, "where": failure.where or dataset}))
    report = Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        complete=not (missing or rows is None),
        missing=missing,
        left_out=left_out,
        elapsed_s=elapsed_s,
        command=bench.command,
        seed=bench.seed,
        config=bench.config.model_dump(mode="json") | {"data": data},
        baseline=bench.baseline.key,
        candidates=[name for name in bench.models if name != bench.baseline.model],
        environment=found,
        noise=measured.noise,
        models={name: model.facts for name, model in bench.models.items()},
        contestants=contestants,
        cold_start=measured.cold_start,
        latency=[add_flops(bench, row, found.peaks) for row in measured.latency],
        ratios=measured.ratios,
        throughput=measured.throughput,
        scaling=measured.scaling,
        memory=measured.memory,
        quality=[each.quality for each in compared],
        glue=compare_glue(compared, baseline=bench.baseline.key, candidates=keys),
        energy=measured.energy,
        failures=failures,
        notes=_list_notes(bench, found, contestants),
    )
    return report.model_copy(update={"claims": decide(report, bench.claims)})


def describe_contestants(
    bench: ResolvedBench, journal: Samples, *, compress: bool = True, progress: Progress = silent
) -> list[Contestant]:
    """Return what each row is; with `compress` also how small its files become, which takes time."""
    contestants = []
    compressing = compress and bench.config.compressed
    for number, each in enumerate(bench.configurations):
        model, loaded = bench.models[each.model], journal.get("load", each.key) or {}
        files = model.weight_files(each)
        compressed = None
        if compressing:
            progress("compress the files", number, len(bench.configurations), each.key)
            compressed = compressed_bytes(files) if files else None
        is_bundle = model.bundle is not None and each.folder == model.facts.bundle
        record = model.bundle.model_record(each.precision) if is_bundle and model.bundle else None
        contestants.append(
            Contestant(
                key=each.key,
                model=each.model,
                precision=each.precision,
                runner=each.runner,
                device=loaded.get("device", "cpu"),
                threads=each.threads,
                file_bytes=sum(file.stat().st_size for file in files) or None,
                compressed_bytes=compressed,
                sha256=loaded.get("sha256", {}),
                quantisation=record.quantisation.model_dump(mode="json") if record and record.quantisation else None,
                batch_invariant=record.batch_invariant if record else True,
            )
        )
    if compressing:
        progress("compress the files", len(contestants), len(contestants), "")
    return contestants


def _compare_quality(bench: ResolvedBench, journal: Samples, work: Path) -> tuple[list[Comparison], list[str]]:
    """Return the quality on every data set that was answered, and what is still unanswered."""
    compared, unanswered = [], []
    for dataset in bench.datasets:
        files = {}
        for each in dataset.configurations:
            key = dataset.journal_key(each.key)
            answers = journal.get("answers", key, dataset.name)
            failed = any(journal.get("failure", key, *place) for place in (("load", ""), ("quality", dataset.name)))
            if answers is not None:
                files[each.key] = work / "answers" / answers["file"]
            elif not failed:
                unanswered.append(f"quality of {each.key} on {dataset.name}")
        if files:
            compared.append(
                compare_models(
                    {key: load_predictions(file) for key, file in files.items()},
                    dataset.examples,
                    name=dataset.name,
                    kind=dataset.kind,
                    metric=dataset.metric,
                    baseline=bench.baseline.key,
                    pairs=list_comparisons(dataset.configurations, baseline=bench.baseline.key),
                    seed=bench.seed,
                    resamples=bench.config.resamples,
                )
            )
    return compared, unanswered


def add_flops(bench: ResolvedBench, row: Latency, peaks: Peaks | None) -> Latency:
    """Add how many operations a second a row makes on the grid, and their share of the machine's peak.

    A share above 1 is no share: the count of operations or the peak is wrong then, as where an engine has faster
    kernels than the bare product's. It is left out, as is that of a row or a peak which the machine disturbed.
    """
    configuration = next(each for each in bench.configurations if each.key == row.key)
    per_token = bench.models[configuration.model].facts.flops_per_token
    if row.load.num_tokens is None or not row.p50_ms or not per_token:
        return row
    # Exact between the lengths: attention grows with the length, all else does not depend on it.
    flops = float(np.interp(row.load.num_tokens, list(per_token), list(per_token.values())))
    rate = flops * row.load.num_tokens * row.load.batch_size / (row.p50_ms / 1e3)
    peak = None
    if peaks is not None and configuration.runner.endswith("cpu"):
        by_precision = {"fp32": peaks.fp32_flops_per_s, "fp16": peaks.fp16_flops_per_s, "bf16": peaks.bf16_flops_per_s}
        is_int8 = configuration.precision.startswith("int8")
        peak = peaks.int8_ops_per_s if is_int8 else by_precision.get(configuration.precision)
    share = rate / peak if peak and not row.disturbed else None
    return row.model_copy(update={"flops_per_s": rate, "peak_share": share if share and share <= 1 else None})


def _list_notes(bench: ResolvedBench, found: Environment, contestants: Sequence[Contestant]) -> list[str]:
    """Return sentences about how it was measured and what stood in the way."""
    notes = [
        "Each row ran in a process of its own; all took turns, in random order, in every round, and whoever waited for "
        "its turn was stopped by the system, so that nobody's idle threads took a core from another.",
        "A call on the grid is random ordinary tokens, without padding or tokenisation; one on own texts is one text "
        "of the data in its own length. Texts per second of one caller are batch size / p50.",
    ]
    load, cores = found.load_before, found.cores
    if load and load[0] > _BUSY_LOAD * cores:
        notes.append(f"The machine was busy before the bench began: load {load[0]:.1f} on {cores} cores.")
    if found.threads > cores:
        notes.append(f"{found.threads} threads share {cores} cores; every time is longer than it need be.")
    if any(row.quantisation for row in contestants) and not machine.has_fast_int8():
        notes.append("This CPU has no VNNI, AMX or dot product: int8 gains little here and can lose exactness.")
    if not bench.datasets:
        notes.append("Quality was not measured: no data was given.")
    elif any(not row.batch_invariant for row in contestants):
        notes.append("Dynamic int8 was scored one text at a time, because its answers depend on batch mates.")
    facts: dict[str, Model] = {name: model.facts for name, model in bench.models.items()}
    random = [name for name, model in facts.items() if "random" in str(model.source.get("weights", ""))]
    if random:
        notes.append(f"The weights of {', '.join(random)} are random: size and speed do not depend on them.")
    if any("cuda" in each.runner or "tensorrt" in each.runner for each in bench.configurations):
        notes.append("On a GPU a call ends when the device has finished; inputs and outputs stay on it.")
    return notes
