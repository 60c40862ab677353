"""Compute a report from the journal of a bench, whole or interrupted, and the answers to its data sets."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from potstill import machine
from potstill.bench import environment
from potstill.bench.claims import decide
from potstill.bench.config import DataSet, ResolvedBench, split_journal_key
from potstill.bench.measure.results import summarise_measurements
from potstill.bench.measure.samples import Samples
from potstill.bench.measure.size import compressed_bytes
from potstill.bench.models import list_comparisons
from potstill.bench.report_schema import Contestant, Environment, Failure, Latency, Model, Peaks, Report, Score
from potstill.evaluation.comparison import Comparison, asked_for_other_words, compare_glue, compare_models
from potstill.evaluation.predictions import Predictions, load_predictions
from potstill.progress import Progress, silent

# With more waiting tasks per core than this, other processes were at work.
_BUSY_LOAD = 0.5


def make_report(bench: ResolvedBench, journal: Samples, work: Path, *, elapsed_s: float | None = None) -> Report:
    """Compute the report of what the journal and the answers in `work` hold, whole or not."""
    measured = summarise_measurements(bench, journal)
    compared, unanswered, incomparable = _compare_quality(bench, journal, work)
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
    # Without the compressed sizes: packing takes time that somebody who interrupts a bench does not have.
    contestants = [Contestant(**row) for row in rows] if rows else describe_contestants(bench, journal, compress=False)
    data = [{name: getattr(each, name) for name in DataSet.__slots__} for each in bench.data]
    keys = [each.key for each in bench.configurations]
    failures = []
    for failure in (
        *measured.failures,
        *incomparable,
    ):  # those of a data set's own model are its configuration's at that data set
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
    return decide_claims(report, bench)


def decide_claims(report: Report, bench: ResolvedBench) -> Report:
    """Return the report with the claims of a bench, decided by what the report says."""
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


def _compare_quality(
    bench: ResolvedBench, journal: Samples, work: Path
) -> tuple[list[Comparison], list[str], list[Failure]]:
    """Return the quality on every data set that was answered, what is still unanswered, and what cannot be compared."""
    compared, unanswered, incomparable = list[Comparison](), list[str](), list[Failure]()
    for dataset in bench.datasets:
        answered: dict[str, Predictions] = {}
        tokens: dict[str, float | None] = {}
        for each in dataset.configurations:
            key = dataset.journal_key(each.key)
            answers = journal.get("answers", key, dataset.name)
            # What has failed is not still to be answered.
            failed = any(journal.get("failure", key, *place) for place in (("load", ""), ("quality", dataset.name)))
            if answers is not None:
                answered[each.key] = load_predictions(work / "answers" / answers["file"])
                tokens[each.key] = answers.get("mean_tokens")
            elif not failed:
                unanswered.append(f"quality of {each.key} on {dataset.name}")
        for key in asked_for_other_words(answered, baseline=bench.baseline.key):
            del answered[key]
            reason = "its tokenizer splits words otherwise than the baseline's: asked for others, it has no score"
            incomparable.append(Failure(key=key, stage="quality", where=dataset.name, kind="error", reason=reason))
        if answered:
            comparison = compare_models(
                answered,
                dataset.examples,
                name=dataset.name,
                kind=dataset.kind,
                metric=dataset.metric,
                baseline=bench.baseline.key,
                pairs=list_comparisons(dataset.configurations, baseline=bench.baseline.key),
                seed=bench.seed,
                resamples=bench.config.resamples,
            )
            scores = [row.model_copy(update={"tokens_per_text": tokens[row.key]}) for row in comparison.quality.scores]
            notes = [*comparison.quality.notes, *_tell_tokens(scores, baseline=bench.baseline.key)]
            quality = comparison.quality.model_copy(update={"scores": scores, "notes": notes})
            compared.append(replace(comparison, quality=quality))
    return compared, unanswered, incomparable


def _tell_tokens(scores: Sequence[Score], *, baseline: str) -> list[str]:
    """Return a sentence for every model that writes the same texts with another number of tokens than the baseline."""
    tokens = {row.key: row.tokens_per_text for row in scores}
    base, told = tokens.get(baseline), dict[str, str]()
    for key, own in tokens.items():
        if base and own and own != base:
            model, others = key.partition("/")[0], baseline.partition("/")[0]
            told[model] = (
                f"{model} reads {own / base:.2f} times as many tokens of a text as {others} ({own:.1f} against "
                f"{base:.1f}): times at fixed lengths do not show it, those of own texts do."
            )
    return list(told.values())


def add_flops(bench: ResolvedBench, row: Latency, peaks: Peaks | None) -> Latency:
    """Add how many operations a second a row makes on the grid, and their share of the machine's peak.

    A share above 1 is no share: the count of operations or the peak is wrong then, as where an engine has faster
    kernels than the bare product's. It is left out, as is that of a row or a peak which the machine disturbed.
    """
    configuration = next(each for each in bench.configurations if each.key == row.key)
    num_tokens = row.load.num_tokens
    if num_tokens is None or not row.p50_ms:
        return row
    per_token = bench.models[configuration.model].flops_per_token(configuration, num_tokens)
    if per_token is None:
        return row
    rate = per_token * num_tokens * row.load.batch_size / (row.p50_ms / 1e3)
    peak = None
    if peaks is not None and configuration.on_processor:
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
