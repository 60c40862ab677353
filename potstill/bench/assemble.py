"""The bench itself: from models to a report.

What is measured goes into a journal in a work folder beside the output (`.NAME.bench`), and the report is computed
from the journal. So a bench that was interrupted leaves a report of what there is, and goes on where it stopped.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from potstill import machine
from potstill.bench import environment
from potstill.bench.claims import Claim, decide, load_claims, verify
from potstill.bench.datasets import DataSet, Trial, load_trials
from potstill.bench.engines.runners import check_runner
from potstill.bench.engines.workload import check_loads, make_loads
from potstill.bench.estimate import describe as describe_estimate
from potstill.bench.estimate import estimate, fit
from potstill.bench.measuring.budget import COMPRESSED, Deadline
from potstill.bench.measuring.gather import gather_answers
from potstill.bench.measuring.measure import measure
from potstill.bench.measuring.plan import Plan
from potstill.bench.measuring.samples import FILE_NAME, Samples, open_samples, read_samples
from potstill.bench.report import REPORT_NAME, read_report, write_report
from potstill.bench.report_schema import Environment, Load, Report
from potstill.bench.subjects import Entry, Subject, list_entries, pick_baseline, read_subjects
from potstill.bench.suite import read_suite
from potstill.bench.summary import Setting, describe_rows, summarise
from potstill.config import BenchConfig
from potstill.errors import CheckError, OutputError, UsageError
from potstill.files import check_free, new_folder
from potstill.progress import Progress, silent

Tell = Callable[[str], None]
# A budget that is offered is half of what the whole bench takes, or less.
_BUDGETS_MIN = (15, 5, 2, 1)
# As many cells as a few minutes measure again.
_VERIFIED_CELLS = 6
# Their examples are words or questions with a context, which a worker does not time as texts.
_NO_TEXTS = frozenset({"token-classification", "question-answering"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is benched.

    Attributes:
        models: pairs of name and place: a bundle's folder, a checkpoint's folder or a hub id; see `name_models`.
        baseline: the model that all are held against; None takes the first.
        data: what quality is scored on; without any it stays unmeasured.
        suite: a YAML file with more data sets, each with models of its own; see `potstill.bench.suite`.
        claims: a YAML file with claims in the place of the package's three; see `potstill.bench.claims.claimfile`.
    """

    models: Sequence[tuple[str, str]]
    baseline: str | None = None
    data: Sequence[DataSet] = ()
    suite: Path | None = None
    claims: Path | None = None


def bench(
    request: Request,
    *,
    out_dir: Path,
    config: BenchConfig | None = None,
    seed: int = 42,
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
        tell: is told, before the waiting begins, what the data can and cannot show.
        progress: is told what is going on.

    Raises:
        OutputError: if `out_dir` is in the way, or holds a bench of other models or settings.
        BundleError, TamperedError, CheckpointError: if a model cannot be used.
        UsageError, DataError, RecipeError: if models, loads, data or claims do not fit.
        MissingError: if this machine lacks an engine.
        CheckError: if no row could be measured at all.
        KeyboardInterrupt: after writing what there is.
    """
    began = time.monotonic()
    work = _make_way(out_dir, resume=resume, overwrite=overwrite)
    claims = load_claims(request.claims)
    setting = _set_up(request, config=config or BenchConfig(), claims=claims, seed=seed, command=command)
    # With both, --overwrite clears a finished report out of the way and --resume goes on with what was interrupted.
    finished = _finished(out_dir) if resume and not overwrite else None
    if finished is not None:
        return _decide_again(finished, setting, out_dir)
    for trial in setting.trials:
        for sentence in (*trial.examples.notes, trial.power().sentence):
            tell(f"{trial.name}: {sentence}")
    return _run(setting, work, out_dir, began=began, resume=resume, tell=tell, progress=progress)


def verify_report(
    place: Path, *, seed: int = 0, tell: Tell = lambda sentence: None, progress: Progress = silent
) -> list[verify.Finding]:
    """Measure a sample of a report's cells again, and say of each whether it still holds.

    Args:
        place: the report's folder or JSON file.
        seed: of the sample.
        tell: is told what is measured.
        progress: is told how far it is.

    Raises:
        UsageError: if there is no report, or a model is not where it was.
        CheckError: if nothing could be measured.
    """
    report = read_report(place)
    planned = verify.plan(report, np.random.default_rng([seed, len(report.latency)]), _VERIFIED_CELLS)
    tell(f"{', '.join(planned.keys)} at {', '.join(map(str, planned.loads))} {', '.join(planned.data)}".strip())
    settings = dict(report.config)
    sets = [DataSet(**each) for each in settings.pop("data", [])]
    less = {"cold_starts": 0, "throughput_batch_sizes": [], "thread_scaling": False, "compressed": False}
    less |= {"peak": False, "budget_s": None}
    request = Request(
        models=planned.places,
        baseline=report.baseline_model,
        data=[each for each in sets if each.title in planned.data],
    )
    config = BenchConfig.model_validate(settings | less)
    setting = _set_up(request, config=config, claims=(), seed=report.seed, command="")
    setting = setting.only(keys=planned.keys, loads=planned.loads)
    with tempfile.TemporaryDirectory() as folder:
        fresh = _run(setting, Path(folder) / "work", Path(folder) / "report", began=time.monotonic(), progress=progress)
    return verify.check(report, fresh, planned=planned)


def _finished(out_dir: Path) -> Report | None:
    """Return the complete report that is there, if there is one."""
    report = read_report(out_dir) if (out_dir / REPORT_NAME).is_file() else None
    return report if report is not None and report.complete else None


def _decide_again(report: Report, setting: Setting, out_dir: Path) -> Report:
    """Return a finished report with the claims as they are asked for now, which needs no new measurement."""
    journal = read_samples(out_dir / FILE_NAME)
    wanted = setting.head(report.environment)
    changed = [name for name in ("models", "data", "config", "seed") if journal.head.get(name) != wanted[name]]
    if changed:
        raise OutputError(
            f"{out_dir} holds a report of other {' and '.join(changed)}; pass --overwrite, or name another folder"
        )
    again = report.model_copy(update={"claims": decide(report, setting.claims)})
    if again.claims != report.claims:
        _publish(again, journal, out_dir)
    return again


def _make_way(out_dir: Path, *, resume: bool, overwrite: bool) -> Path:
    """Return the work folder; refuse what would lose something."""
    work = out_dir.resolve().with_name(f".{out_dir.resolve().name}.bench")
    interrupted = (work / FILE_NAME).is_file()
    if interrupted and not (resume or overwrite):
        raise OutputError(
            f"a bench into {out_dir} was interrupted; pass --resume to go on with it, or --overwrite to start anew"
        )
    # An incomplete report is made of what the work folder holds, so nothing is lost with it.
    check_free(out_dir, overwrite=overwrite or (resume and (interrupted or _finished(out_dir) is not None)))
    return work


def _set_up(request: Request, *, config: BenchConfig, claims: Sequence[Claim], seed: int, command: str) -> Setting:
    """Refuse what cannot be measured before anything starts."""
    if not request.models:
        raise UsageError("there is no model to bench; name a bundle or a checkpoint")
    names = list(dict.fromkeys(name for name, _ in request.models))
    if request.baseline is not None and request.baseline not in names:
        raise UsageError(f"--baseline {request.baseline}: no model is called so; there are {', '.join(names)}")
    if request.suite is not None:
        read_suite(request.suite, models=names)
    subjects = read_subjects(request.models)
    threads = config.threads or machine.available_cores()
    entries = list_entries(subjects, config, threads=threads)
    for runner in dict.fromkeys(entry.runner for entry in entries):
        check_runner(runner)
    base = pick_baseline(entries, request.baseline or next(iter(subjects)))
    loads = make_loads(config.batch_sizes, config.num_tokens)
    for name, subject in subjects.items():
        check_loads(loads, name=name, positions=subject.positions)
    _check_tasks(subjects, base)
    trials = load_trials(
        request.data, suite=request.suite, subjects=subjects, entries=entries, baseline=base, config=config
    )
    texts = _realistic_texts(trials, config)
    if texts:
        loads = [*loads, Load(kind="texts"), Load(kind="texts_tokenised")]
    return Setting(
        subjects=subjects,
        entries=tuple(entries),
        baseline=base,
        loads=tuple(loads),
        trials=tuple(trials),
        texts=tuple(texts),
        data=tuple(request.data),
        claims=tuple(claims),
        config=config,
        seed=seed,
        command=command,
        threads=threads,
    )


def _check_tasks(subjects: dict[str, Subject], base: Entry) -> None:
    wanted = subjects[base.model].facts
    for name, subject in subjects.items():
        if subject.facts.task != wanted.task:
            raise UsageError(
                f"{base.model} does {wanted.task}, {name} {subject.facts.task}; only models of one task can be compared"
            )


def _realistic_texts(trials: Sequence[Trial], config: BenchConfig) -> list[object]:
    """Return every so many-th text of the first data set; words and questions are asked another way."""
    if (
        not config.realistic
        or not trials
        or trials[0].own
        or trials[0].kind in {"token-classification", "question-answering"}
    ):
        return []
    texts = trials[0].examples.texts
    step = max(1, len(texts) // config.realistic_texts)
    return list(texts[::step][: config.realistic_texts])


def _run(
    setting: Setting,
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
        setting: what is measured.
        work: holds the journal and the answers.
        out_dir: gets the report.
        resume: whether to go on with what `work` holds.
        began: when the whole bench did, by `time.monotonic()`: a budget counts from there.
        tell: is told how long it takes, and what there is no time for.
        progress: is told what is going on.
    """
    budget_s, fitted = setting.config.budget_s, None
    goes_on = resume and (work / FILE_NAME).is_file()
    if budget_s is not None and not goes_on:
        fitted = asdict(fit(setting, budget_s, elapsed_s=time.monotonic() - began))
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    before = environment.describe(threads=setting.threads)
    journal = open_samples(work, head=setting.head(before))
    spent_s = float(journal.get("elapsed") or 0.0)
    deadline = None
    if budget_s is not None:
        fitted = journal.once(("fit",), lambda: fitted)
        setting = setting.within(fitted)
        end = time.perf_counter() + budget_s - spent_s - (time.monotonic() - began)
        deadline = Deadline(end, time.perf_counter, fitted["reserved_s"], fitted["starts_s"])
        parts = [f"latency at {' and '.join(fitted['loads'])}", *fitted["reserved_s"]]
        tell(f"This takes the {budget_s:g} s of its budget: {', '.join(parts)}.")
        if fitted["left_out"]:
            tell(f"The budget leaves out: {', '.join(fitted['left_out'])}.")
    else:
        costs = estimate(setting)
        shorter = next((minutes for minutes in _BUDGETS_MIN if 120 * minutes <= sum(costs.values())), None)
        hint = f" --budget {shorter}m would keep it to {shorter} min." if shorter else ""
        tell(f"This takes {describe_estimate(costs)}.{hint}")
    interrupted: KeyboardInterrupt | None = None
    try:
        plan = setting.plan(journal, progress=progress, deadline=deadline)
        _measure(setting, plan, work, before=before)
    except KeyboardInterrupt as stop:
        interrupted = stop
    elapsed_s = spent_s + time.monotonic() - began
    journal.put(("elapsed",), elapsed_s)
    if interrupted is None and deadline is not None:
        journal.put(("ended",), True)
    report = summarise(setting, journal, work, elapsed_s=elapsed_s)
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
    if report.failures:
        return f"no model could be measured; the first: {report.failures[0].reason}"
    if budget_s is not None:
        return (
            f"the budget of {budget_s:g} s was over before one round was, since this machine is slow or busy; "
            "pass a larger --budget, or bench when it is quiet"
        )
    return "no model could be measured: no row finished a round"


def _measure(setting: Setting, plan: Plan, work: Path, *, before: Environment) -> None:
    journal = plan.journal
    journal.once(("load before",), lambda: before.load_before)

    def answer() -> None:
        for trial in setting.trials:
            gather_answers(trial.plan(plan), {trial.name: (trial.examples.texts, trial.kind)}, work / "answers")

    measure(plan, answer=answer)
    rows = describe_rows(setting, journal, compress=plan.has(0.0, COMPRESSED), progress=plan.progress)
    journal.once(("rows",), lambda: [row.model_dump(mode="json") for row in rows])


def _publish(report: Report, journal: Samples, out_dir: Path) -> None:
    with new_folder(out_dir, overwrite=True) as building:
        write_report(report, building)
        shutil.copyfile(journal.file, building / FILE_NAME)
