"""From a journal to a report: everything that is computed once the measuring is over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from potstill.bench import environment
from potstill.bench.claims import Claim, decide
from potstill.bench.datasets import DataSet, Trial, split_asked
from potstill.bench.engines.size import compressed_bytes
from potstill.bench.measuring.budget import Deadline
from potstill.bench.measuring.plan import Plan
from potstill.bench.measuring.results import results
from potstill.bench.measuring.samples import Samples
from potstill.bench.notes import list_notes
from potstill.bench.report_schema import Contestant, Environment, Failure, Latency, Load, Peaks, Report
from potstill.bench.subjects import Entry, Subject, list_pairs
from potstill.config import BenchConfig
from potstill.evaluation.comparison import Comparison, compare_glue, compare_models
from potstill.evaluation.predictions import load_predictions
from potstill.progress import Progress

_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A bench, checked and ready to run.

    Attributes:
        subjects: the models by name.
        entries: the rows.
        baseline: the row that all are held against.
        loads: what latency is measured at.
        trials: what quality is scored on.
        texts: the data's own, for the loads that are not random tokens.
        data: how the data sets were asked for.
        claims: what is decided.
        config: what is measured, and for how long.
        seed: of everything.
        command: how to do it again.
        threads: of each row.
    """

    subjects: Mapping[str, Subject]
    entries: tuple[Entry, ...]
    baseline: Entry
    loads: tuple[Load, ...]
    trials: tuple[Trial, ...]
    texts: tuple[Any, ...]
    data: tuple[DataSet, ...]
    claims: tuple[Claim, ...]
    config: BenchConfig
    seed: int
    command: str
    threads: int

    def only(self, *, keys: Sequence[str], loads: Sequence[Load]) -> "Setting":
        """Return the same with some of the rows and loads."""
        trials = [replace(t, entries=tuple(row for row in t.entries if row.key in keys)) for t in self.trials]
        return replace(
            self,
            entries=tuple(entry for entry in self.entries if entry.key in keys),
            loads=tuple(loads),
            trials=tuple(trials),
        )

    def within(self, fit: Mapping[str, Any]) -> "Setting":
        """Return the same with what `potstill.bench.estimate.fit` has found to fit into the budget."""
        loads = {str(load): load for load in self.loads}
        return replace(
            self,
            config=self.config.model_copy(update=fit["config"]),
            loads=tuple(loads[name] for name in fit["loads"]),
            trials=self.trials if fit["with_data"] else (),
        )

    def file_bytes(self, entry: Entry) -> int | None:
        """Return the bytes of the files with a row's weights; None of a hub id."""
        return sum(file.stat().st_size for file in _files(self.subjects[entry.model], entry)) or None

    def plan(self, journal: Samples, *, progress: Progress, deadline: Deadline | None = None) -> Plan:
        """Return what the measuring needs."""
        return Plan(
            entries=self.entries,
            loads=self.loads,
            baseline=self.baseline.key,
            config=self.config,
            journal=journal,
            seed=self.seed,
            texts=list(self.texts) or None,
            progress=progress,
            deadline=deadline,
        )

    def head(self, found: Environment) -> dict[str, Any]:
        """Return what must be the same for an interrupted bench to go on."""
        return {
            "config": self.config.model_dump(mode="json"),
            "seed": self.seed,
            "models": {entry.key: [entry.folder, _hash(self.subjects[entry.model], entry)] for entry in self.entries},
            "data": {
                trial.name: [trial.examples.sha256, [row.folder for row in trial.entries]] for trial in self.trials
            },
            "environment": environment.identity(found),
        }

    def settings(self) -> dict[str, Any]:
        """Return the configuration as the report holds it, the data sets among it."""
        data = [{name: getattr(each, name) for name in DataSet.__slots__} for each in self.data]
        return self.config.model_dump(mode="json") | {"data": data}


def summarise(setting: Setting, journal: Samples, work: Path, *, elapsed_s: float | None = None) -> Report:
    """Compute the report of what the journal and the answers in `work` hold, whole or not."""
    measured = results(
        journal,
        setting.entries,
        setting.loads,
        baseline=setting.baseline.key,
        config=setting.config,
        seed=setting.seed,
    )
    compared, unanswered = _compare_quality(setting, journal, work)
    best = measured.peaks
    peaks = Peaks(threads=setting.threads, fp32_flops_per_s=best.get("fp32"), int8_ops_per_s=best.get("int8"))
    found = environment.describe(
        threads=setting.threads, load_before=journal.get("load before"), peaks=peaks if best else None
    )
    missing = [*measured.missing, *unanswered]
    left_out: list[str] = []
    if journal.get("ended"):  # it came to its end: what is missing had no time
        missing, left_out = [], [*(journal.get("fit") or {}).get("left_out", ()), *missing]
    rows = journal.get("rows")
    contestants = [Contestant(**row) for row in rows] if rows else describe_rows(setting, journal, compress=False)
    models = {name: subject.facts for name, subject in setting.subjects.items()}
    report = Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        complete=not (missing or rows is None),
        missing=missing,
        left_out=left_out,
        elapsed_s=elapsed_s,
        command=setting.command,
        seed=setting.seed,
        config=setting.settings(),
        baseline=setting.baseline.key,
        candidates=[name for name in setting.subjects if name != setting.baseline.model],
        environment=found,
        noise=measured.noise,
        models=models,
        contestants=contestants,
        cold_start=measured.cold_start,
        latency=[_with_flops(setting, row, found.peaks) for row in measured.latency],
        ratios=measured.ratios,
        throughput=measured.throughput,
        scaling=measured.scaling,
        memory=measured.memory,
        quality=[each.quality for each in compared],
        glue=compare_glue(compared, baseline=setting.baseline.key, candidates=[entry.key for entry in setting.entries]),
        energy=measured.energy,
        failures=[_readable(failure) for failure in measured.failures],
        notes=list_notes(found, entries=setting.entries, models=models, rows=contestants, trials=len(setting.trials)),
    )
    return report.model_copy(update={"claims": decide(report, setting.claims)})


def describe_rows(
    setting: Setting, journal: Samples, *, compress: bool = True, progress: Progress | None = None
) -> list[Contestant]:
    """Return what each row is; with `compress` also how small its files become, which takes time."""
    files = {entry.key: _files(setting.subjects[entry.model], entry) for entry in setting.entries}
    small: dict[str, int] = {}
    if compress and setting.config.compressed:
        small = _compress(files, progress)
    return [_contestant(setting, journal, entry, files[entry.key], small.get(entry.key)) for entry in setting.entries]


def _compress(files: Mapping[str, list[Path]], progress: Progress | None) -> dict[str, int]:
    found = {}
    for number, (key, own) in enumerate(files.items()):
        if progress is not None:
            progress("compress the files", number, len(files), key)
        if own:
            found[key] = compressed_bytes(own)
    if progress is not None:
        progress("compress the files", len(files), len(files), "")
    return found


def _contestant(
    setting: Setting, journal: Samples, entry: Entry, files: Sequence[Path], compressed: int | None
) -> Contestant:
    subject, loaded = setting.subjects[entry.model], journal.get("load", entry.key) or {}
    bundled = subject.bundle is not None and entry.folder == subject.facts.bundle
    record = subject.bundle.model_record(entry.precision) if bundled and subject.bundle else None
    return Contestant(
        key=entry.key,
        model=entry.model,
        precision=entry.precision,
        runner=entry.runner,
        device=loaded.get("device", "cpu"),
        threads=entry.threads,
        file_bytes=sum(file.stat().st_size for file in files) or None,
        compressed_bytes=compressed,
        sha256=loaded.get("sha256", {}),
        quantisation=record.quantisation.model_dump(mode="json") if record and record.quantisation else None,
        batch_invariant=record.batch_invariant if record else True,
    )


def _files(subject: Subject, entry: Entry) -> list[Path]:
    """Return the files that hold a row's weights; none of a hub id, whose files are the hub's cache."""
    if subject.bundle is not None and entry.folder == subject.facts.bundle:
        record = subject.bundle.model_record(entry.precision)
        return [subject.bundle.folder / name for name in (record.file, *record.external_data)]
    folder = Path(entry.folder)
    if not folder.is_dir():
        return []
    for suffix in _WEIGHTS:
        found = sorted(folder.glob(f"*{suffix}"))
        if found:
            return found
    return []


def _hash(subject: Subject, entry: Entry) -> str | None:
    if subject.bundle is not None and entry.folder == subject.facts.bundle:
        return subject.bundle.record_of(entry.precision).sha256
    source: str | None = subject.facts.source.get("sha256")
    return source


def _compare_quality(setting: Setting, journal: Samples, work: Path) -> tuple[list[Comparison], list[str]]:
    """Return the quality on every data set that somebody answered, and what is still unanswered."""
    compared, unanswered = [], []
    for trial in setting.trials:
        files = {}
        for entry in trial.entries:
            asked = trial.asked(entry.key)
            told = journal.get("answers", asked, trial.name)
            failed = any(journal.get("failure", asked, *place) for place in (("load", ""), ("quality", trial.name)))
            if told is not None:
                files[entry.key] = work / "answers" / told["file"]
            elif not failed:
                unanswered.append(f"quality of {entry.key} on {trial.name}")
        if files:
            compared.append(
                compare_models(
                    {key: load_predictions(file) for key, file in files.items()},
                    trial.examples,
                    name=trial.name,
                    kind=trial.kind,
                    metric=trial.metric,
                    baseline=setting.baseline.key,
                    pairs=list_pairs(trial.entries, baseline=setting.baseline.key),
                    seed=setting.seed,
                    resamples=setting.config.resamples,
                )
            )
    return compared, unanswered


def _with_flops(setting: Setting, row: Latency, peaks: Peaks | None) -> Latency:
    """Add how many operations a second a row makes on the grid, and their share of the machine's peak.

    A share above 1 is no share: the count of operations or the peak is wrong then, as where an engine has faster
    kernels than the bare product's. It is left out, as is that of a row or a peak which the machine disturbed.
    """
    entry = next(entry for entry in setting.entries if entry.key == row.key)
    per_token = setting.subjects[entry.model].facts.flops_per_token
    if row.load.num_tokens is None or not row.p50_ms or not per_token:
        return row
    # Exact between the lengths: attention grows with the length, all else does not depend on it.
    flops = float(np.interp(row.load.num_tokens, list(per_token), list(per_token.values())))
    rate = flops * row.load.num_tokens * row.load.batch_size / (row.p50_ms / 1e3)
    peak = _peak(peaks, entry.precision) if entry.runner.endswith("cpu") else None
    share = rate / peak if peak and not row.disturbed else None
    return row.model_copy(update={"flops_per_s": rate, "peak_share": share if share and share <= 1 else None})


def _peak(peaks: Peaks | None, precision: str) -> float | None:
    if peaks is None:
        return None
    if precision.startswith("int8"):
        return peaks.int8_ops_per_s
    return {"fp32": peaks.fp32_flops_per_s, "fp16": peaks.fp16_flops_per_s, "bf16": peaks.bf16_flops_per_s}.get(
        precision
    )


def _readable(failure: Failure) -> Failure:
    key, data = split_asked(failure.key)
    return failure.model_copy(update={"key": key, "where": failure.where or data})
