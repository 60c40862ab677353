"""The bench itself: from two bundles to a report."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from potstill import machine
from potstill.bench import claims, quality, report, runner, stats
from potstill.bench.workload import Cell, check_cells, make_cells, read_vocabulary
from potstill.bundle import Bundle, read_bundle
from potstill.data import Examples
from potstill.errors import CheckError, UsageError
from potstill.progress import Progress, silent
from potstill.publish import check_free
from potstill.sections import BenchConfig
from potstill.task import get_task
from potstill.timing import Estimate, client, ratio_interval

TEACHER, STUDENT = "teacher", "student"
_BASELINE = f"{TEACHER}/fp32"
# (what, baseline's precision, candidate's precision): the teacher's against the student's.
_COMPARISONS = (("fp32", "fp32", "fp32"), ("int8", "int8", "int8"), ("mixed", "fp32", "int8"))
# Offsets of the seeded generators, so that adding draws to one never moves another.
_TURNS, _RATIOS, _RETENTION = 1, 2, 3


def bench(
    bundles: Mapping[str, Path],
    *,
    examples: Examples | None,
    config: BenchConfig,
    out_dir: Path,
    seed: int,
    overwrite: bool = False,
    command: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure a teacher and a student against each other and write the report.

    Args:
        bundles: `teacher` and `student` -> their bundle folders.
        examples: what quality is scored on; None leaves quality unmeasured.
        config: what is measured, and for how long.
        out_dir: gets report.json, report.md and report.html, whole or not at all.
        seed: of the inputs, the order of turns and the bootstraps.
        overwrite: replace what `out_dir` holds.
        command: how to do this again, for the report.
        progress: is told what is going on.

    Returns:
        The report, as report.json holds it.

    Raises:
        OutputError: if `out_dir` is in the way.
        BundleError, TamperedError: if a bundle cannot be used.
        UsageError: if a cell is longer than a model has positions, or the labels differ.
        CheckError: if no model could be measured at all.
    """
    check_free(out_dir, overwrite=overwrite)
    opened = {name: read_bundle(bundles[name]) for name in (TEACHER, STUDENT)}
    cells = make_cells(config.batch_sizes, config.num_tokens)
    precisions = _check(opened, cells=cells, config=config, examples=examples)
    threads = config.threads or machine.available_cores()
    environment = machine.describe() | {"threads": threads, "spinning": False}
    requests = {
        f"{name}/{precision}": {
            "bundle": str(bundle.folder), "precision": precision, "threads": threads, "seed": seed
        }
        for name, bundle in opened.items()
        for precision in precisions
    }  # fmt: skip
    evidence = _gather(requests, cells=cells, config=config, examples=examples, seed=seed, progress=progress)
    environment |= {"load_before": environment.pop("load_average"), "load_after": machine.describe()["load_average"]}
    content = _assemble(evidence, opened=opened, precisions=precisions, cells=cells, config=config, seed=seed)
    head = {
        "schema": report.SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "seed": seed,
        "config": config.model_dump(mode="json"),
        "environment": environment,
    }
    result = head | content | {"notes": _notes(environment, opened=opened, examples=examples)}
    report.write_report(result, out_dir, overwrite=overwrite)
    return result


def _check(
    opened: Mapping[str, Bundle], *, cells: list[Cell], config: BenchConfig, examples: Examples | None
) -> list[str]:
    """Refuse what cannot be measured before anything starts; return the precisions to measure."""
    teacher, student = opened[TEACHER], opened[STUDENT]
    both = [precision for precision in teacher.manifest.models if precision in student.manifest.models]
    precisions: list[str] = list(config.precisions or both)
    if not precisions:
        raise UsageError(
            f"{teacher.folder} has {', '.join(teacher.manifest.models)} and {student.folder} has "
            f"{', '.join(student.manifest.models)}; a fair comparison needs one precision that both have"
        )
    for name, bundle in opened.items():
        for precision in precisions:
            bundle.model_record(precision)
        read_vocabulary(bundle)
        check_cells(cells, name=name, manifest=bundle.manifest)
    if teacher.manifest.task != student.manifest.task:
        raise UsageError(f"the teacher does {teacher.manifest.task}, the student {student.manifest.task}")
    if examples is not None:
        if teacher.manifest.labels != student.manifest.labels:
            raise UsageError(
                f"the teacher's labels are {', '.join(teacher.manifest.labels)}, the student's "
                f"{', '.join(student.manifest.labels)}; quality can be compared on the same labels only"
            )
        quality.check_labels(examples, num_labels=len(teacher.manifest.labels), name=TEACHER)
    return precisions


def _gather(
    requests: Mapping[str, Mapping[str, Any]],
    *,
    cells: list[Cell],
    config: BenchConfig,
    examples: Examples | None,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    plan = runner.Plan(
        rounds=config.rounds,
        block_s=config.block_s,
        min_calls=stats.calls_per_round(config.min_samples, config.rounds),
    )
    with client.running({name: client.python_module("potstill.bench.worker") for name in requests}) as workers:
        team = runner.Team(dict(workers))
        load_ms = runner.load(team, requests, progress=progress)
        if not load_ms:
            raise CheckError(f"no model could be measured; the first: {team.failures[0]['reason']}")
        timings = runner.measure(team, cells, plan=plan, rng=np.random.default_rng([seed, _TURNS]), progress=progress)
        # Before quality: its many lengths would grow onnxruntime's arena beyond what the grid needs.
        memory = runner.read_memory(team)
        logits = runner.score(team, examples, progress=progress) if examples is not None else {}
        return {
            "timings": timings, "memory": memory, "load_ms": load_ms, "logits": logits, "failures": team.failures,
            "examples": examples,
        }  # fmt: skip


def _assemble(
    evidence: Mapping[str, Any],
    *,
    opened: Mapping[str, Bundle],
    precisions: list[str],
    cells: list[Cell],
    config: BenchConfig,
    seed: int,
) -> dict[str, Any]:
    """Turn what was gathered into the report's rows and verdicts."""
    threads = config.threads or machine.available_cores()
    timings: runner.Timings = evidence["timings"]
    models = {name: _model(bundle, precisions) for name, bundle in opened.items()}
    ratios = _ratios(timings, cells, resamples=config.resamples, rng=np.random.default_rng([seed, _RATIOS]))
    scored = None
    if evidence["examples"] is not None:
        scored = quality.compare(
            evidence["logits"],
            evidence["examples"],
            task=get_task(opened[TEACHER].manifest.task),
            baseline=_BASELINE,
            rng=np.random.default_rng([seed, _RETENTION]),
            resamples=config.resamples,
        )
    failed = {failure["model"]: failure["reason"] for failure in evidence["failures"]}
    return {
        "models": models,
        "latency": _latency(timings, threads=threads),
        "ratios": ratios,
        "memory": [
            {"model": key.split("/")[0], "precision": key.split("/")[1], "load_ms": evidence["load_ms"][key]} | parts
            for key, parts in evidence["memory"].items()
        ],
        "quality": scored,
        "claims": [
            claims.decide_size(models), _speed_claim(ratios, cells, failed), _quality_claim(scored, failed)
        ],
        "failures": evidence["failures"],
    }  # fmt: skip


def _model(bundle: Bundle, precisions: list[str]) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.folder),
        "parameters": manifest.parameters,
        "architecture": manifest.architecture,
        "labels": manifest.labels,
        "source": manifest.source,
        "precisions": {
            precision: {
                "size_bytes": bundle.record_of(precision).size_bytes,
                "sha256": bundle.record_of(precision).sha256,
                "quantisation": bundle.model_record(precision).quantisation,
                "batch_invariant": bundle.model_record(precision).batch_invariant,
            }
            for precision in precisions
        },
    }


def _latency(timings: runner.Timings, *, threads: int) -> list[dict[str, Any]]:
    rows = []
    for (key, cell), rounds in timings.items():
        model, precision = key.split("/")
        row: dict[str, Any] = {
            "model": model, "precision": precision, "device": "cpu", "batch_size": cell.batch_size,
            "num_tokens": cell.num_tokens, "threads": threads,
        } | stats.summarise(np.concatenate(rounds))  # fmt: skip
        p50_ms = row["p50_ms"]
        row["throughput_per_s"] = cell.batch_size * 1e3 / p50_ms if p50_ms else None
        rows.append(row)
    return rows


def _ratios(
    timings: runner.Timings, cells: list[Cell], *, resamples: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    rows = []
    for cell in cells:
        for comparison, teacher_precision, student_precision in _COMPARISONS:
            baseline, candidate = f"{TEACHER}/{teacher_precision}", f"{STUDENT}/{student_precision}"
            if (baseline, cell) not in timings or (candidate, cell) not in timings:
                continue
            estimate = ratio_interval(timings[baseline, cell], timings[candidate, cell], rng=rng, resamples=resamples)
            rows.append(
                {"comparison": comparison, "baseline": baseline, "candidate": candidate,
                 "batch_size": cell.batch_size, "num_tokens": cell.num_tokens, "rounds": len(timings[baseline, cell]),
                 "value": estimate.value, "interval": estimate.interval()}
            )  # fmt: skip
    return rows


def _speed_claim(ratios: list[dict[str, Any]], cells: list[Cell], failed: Mapping[str, str]) -> dict[str, Any]:
    cell = Cell(1, max(cell.num_tokens for cell in cells))
    wanted = ("fp32", cell.batch_size, cell.num_tokens)
    for row in ratios:
        if (row["comparison"], row["batch_size"], row["num_tokens"]) == wanted:
            return claims.decide_speed(Estimate(row["value"], *row["interval"]), cell=str(cell))
    absent = f"fp32 at {cell} was not measured for both models"
    return claims.decide_speed(None, cell=str(cell), reason=_reason(failed, otherwise=absent))


def _quality_claim(scored: Mapping[str, Any] | None, failed: Mapping[str, str]) -> dict[str, Any]:
    if scored is None:
        return claims.decide_quality(None, reason="no data was given (--data)")
    for row in scored["retention"]:
        if row["candidate"] == f"{STUDENT}/fp32":
            return claims.decide_quality(Estimate(row["value"], *row["interval"]), metric=scored["metric"])
    absent = "fp32 was not scored for both models"
    if scored["values"].get(_BASELINE) == 0:
        absent = "the teacher is right nowhere"
    return claims.decide_quality(None, reason=_reason(failed, otherwise=absent))


def _reason(failed: Mapping[str, str], *, otherwise: str) -> str:
    for key in (_BASELINE, f"{STUDENT}/fp32"):
        if key in failed:
            return f"{key} failed: {failed[key]}"
    return otherwise


def _notes(environment: Mapping[str, Any], *, opened: Mapping[str, Bundle], examples: Examples | None) -> list[str]:
    """Say what a reader must know to believe the numbers, or not to."""
    notes = [
        "Each model in each precision ran in a process of its own; all took turns, in random order, in every round.",
        "Threads that wait do not spin (onnxruntime's allow_spinning=0): a neighbour's spinning threads would double "
        "the times. With the cores to itself a model can be a little faster than shown.",
        "Latency is one caller's session.run on random ordinary tokens, without padding and without tokenisation; "
        "throughput is batch size / p50.",
    ]
    load, cores = environment["load_before"], environment["cores"]
    if load and load[0] > 0.5 * cores:
        notes.append(f"The machine was busy before the bench began: load {load[0]:.1f} on {cores} cores.")
    if environment["threads"] > cores:
        notes.append(f"{environment['threads']} threads share {cores} cores; every time is longer than it need be.")
    if "int8" in opened[STUDENT].manifest.models and not machine.has_fast_int8():
        notes.append("This CPU has no VNNI, AMX or dot product: int8 gains little here and can lose exactness.")
    if examples is None:
        notes.append("Quality was not measured: no data was given.")
    elif any(not record.batch_invariant for bundle in opened.values() for record in bundle.manifest.models.values()):
        notes.append("Dynamic int8 was scored one text at a time, because its answers depend on batch mates.")
    return notes
