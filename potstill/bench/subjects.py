"""What is benched: models by name, and the rows that their precisions and engines make."""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from potstill.bench import report_schema
from potstill.bench.engines.size import count_flops_per_token, embedding_parameters
from potstill.bundle import MANIFEST_NAME, Bundle, read_bundle
from potstill.checkpoint import usable_positions
from potstill.config import BenchConfig
from potstill.errors import CheckpointError, UsageError
from potstill.timing.client import environment, python_module

Comparison: TypeAlias = Literal["like_for_like", "to_baseline", "to_own_fp32"]
BUNDLE_RUNNERS = ("onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino-cpu")
TORCH_RUNNERS = ("torch-cpu", "torch-cpu-compiled", "torch-cuda", "torch-cuda-compiled")
TORCH_PRECISIONS = ("fp32", "fp16", "bf16")
_USUAL = "onnxruntime-cpu"
# No id of the hub looks like this: it is one name, or two with a slash between them.
_PATH = re.compile(r"^[./~]|/$|/.*/|\\")


@dataclass(frozen=True, slots=True)
class Entry:
    """One row to be measured: a model in one precision, run by one engine."""

    key: str
    model: str
    precision: str
    runner: str
    folder: str
    """A bundle for onnxruntime and OpenVINO; a checkpoint folder or hub id for torch."""
    threads: int
    task: str
    problem_type: str | None
    max_length: int

    def load_command(self, *, seed: int, spinning: bool = True) -> dict[str, Any]:
        """Return the message that makes a worker load it."""
        return {
            "do": "load",
            "runner": self.runner,
            "folder": self.folder,
            "precision": self.precision,
            "threads": self.threads,
            "seed": seed,
            "spinning": spinning,
            "task": self.task,
            "problem_type": self.problem_type,
            "max_length": self.max_length,
        }


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with all that is known of it before it runs."""

    name: str
    facts: report_schema.Model
    bundle: Bundle | None
    positions: int
    """The longest text that it can be given, in tokens."""


def read_subjects(named: Sequence[tuple[str, str]]) -> dict[str, Subject]:
    """Look at every model.

    Args:
        named: pairs of name and place: a bundle's folder, a checkpoint's folder or a hub id. A name may have one bundle
            and one checkpoint, which are then rows of the same model.

    Raises:
        BundleError, TamperedError, CheckpointError: if one cannot be used.
        UsageError: if a name has two bundles or two checkpoints, or its two do different things.
    """
    places: dict[str, dict[str, str]] = {}
    for name, place in named:
        kind = "bundle" if _is_bundle(place) else "checkpoint"
        if kind in places.setdefault(name, {}):
            raise UsageError(
                f"{name} is given twice, as {places[name][kind]} and {place}; call one of them otherwise: NAME={place}"
            )
        places[name][kind] = place
    return {name: _subject(name, found) for name, found in places.items()}


def name_models(places: Sequence[str]) -> list[tuple[str, str]]:
    """Read `NAME=PLACE` or `PLACE`; without a name, the folder's own, numbered where two folders are called alike.

    Raises:
        UsageError: if a name is empty, or has characters that keys are made of.
    """
    named: list[tuple[str, str]] = []
    for text in places:
        name, separator, place = text.partition("=")
        if not separator:
            name, place = _free_name(Path(text).name or Path(text).resolve().name, {taken for taken, _ in named}), text
        if not re.fullmatch(r"[\w.+-]+( [\w.+-]+)*", name):
            raise UsageError(
                f"{name!r} is no name for a model; take letters, digits, dots and hyphens: teacher={place}"
            )
        named.append((name, place))
    return named


def list_entries(subjects: Mapping[str, Subject], config: BenchConfig, *, threads: int) -> list[Entry]:
    """Return the rows that the settings ask for, in the order of the models.

    Raises:
        UsageError: if a model has none of the runners or precisions asked for.
    """
    entries = []
    for name, subject in subjects.items():
        rows = [
            Entry(
                key=_key(name, precision, runner),
                model=name,
                precision=precision,
                runner=runner,
                folder=folder,
                threads=threads,
                task=subject.facts.task,
                problem_type=subject.facts.problem_type,
                max_length=subject.facts.max_length,
            )
            for runner, folder in _runners(subject, config)
            for precision in _precisions(subject, config, runner=runner)
        ]
        if not rows:
            asked = ", ".join([*(config.precisions or []), *(config.runners or [])])
            have = list(subject.bundle.manifest.models) if subject.bundle else list(TORCH_PRECISIONS)
            raise UsageError(
                f"{name} ({subject.facts.bundle or subject.facts.checkpoint}) has no {asked}; it has {', '.join(have)}"
            )
        entries += rows
    return entries


def pick_baseline(entries: Sequence[Entry], model: str) -> Entry:
    """Return the row that all others are held against: the model's fp32 where it has one, else its first.

    Raises:
        UsageError: if no model is called so.
    """
    rows = [entry for entry in entries if entry.model == model]
    if not rows:
        names = list(dict.fromkeys(entry.model for entry in entries))
        raise UsageError(f"--baseline {model}: no model is called so; there are {', '.join(names)}")
    return next((entry for entry in rows if entry.precision == "fp32"), rows[0])


def list_pairs(entries: Sequence[Entry], *, baseline: str) -> list[tuple[Comparison, str, str]]:
    """Return who is compared with whom: comparison, the key that is held against, the candidate's key.

    Like for like is the baseline's model in the same precision and engine. A model's fp32 is held against its other
    precisions where it is not the baseline anyway.
    """
    rows = {(entry.model, entry.precision, entry.runner): entry.key for entry in entries}
    models = {entry.key: entry.model for entry in entries}
    found: list[tuple[Comparison, str, str]] = []
    if baseline not in models:
        return found
    for entry in entries:
        like = rows.get((models[baseline], entry.precision, entry.runner))
        own = rows.get((entry.model, "fp32", entry.runner))
        if like is not None and entry.model != models[baseline]:
            found.append(("like_for_like", like, entry.key))
        if entry.key != baseline:
            found.append(("to_baseline", baseline, entry.key))
        if own is not None and own not in (baseline, entry.key):
            found.append(("to_own_fp32", own, entry.key))
    return found


def _key(model: str, precision: str, runner: str) -> str:
    return f"{model}/{precision}" + ("" if runner == _USUAL else f"@{runner}")


def _runners(subject: Subject, config: BenchConfig) -> list[tuple[str, str]]:
    bundle, checkpoint = subject.facts.bundle, subject.facts.checkpoint
    wanted = config.runners or (_USUAL, "torch-cpu")
    found = []
    for runner in wanted:
        place = bundle if runner in BUNDLE_RUNNERS else checkpoint
        if place is not None:
            found.append((runner, place))
    return found


def _precisions(subject: Subject, config: BenchConfig, *, runner: str) -> list[str]:
    if runner in TORCH_RUNNERS:
        return [name for name in config.precisions or ["fp32"] if name in TORCH_PRECISIONS]
    assert subject.bundle is not None
    have = [str(name) for name in subject.bundle.manifest.models]
    return [name for name in config.precisions or have if name in have]


def _is_bundle(place: str) -> bool:
    folder = Path(place)
    if (folder / MANIFEST_NAME).exists():
        return True
    if not folder.exists() and _PATH.search(place):
        raise UsageError(f"there is no folder {place}; name a bundle, a checkpoint's folder or a hub id")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UsageError(
            f"{place} is neither a bundle ({MANIFEST_NAME}) nor a checkpoint (config.json); export a checkpoint first: "
            f"potstill export CHECKPOINT --out {place}"
        )
    return False


def _free_name(name: str, taken: set[str]) -> str:
    name = re.sub(r"[^\w.+-]+", "-", name) or "model"
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _subject(name: str, found: Mapping[str, str]) -> Subject:
    bundle = read_bundle(Path(found["bundle"])) if "bundle" in found else None
    described = _describe(found["checkpoint"]) if "checkpoint" in found else None
    if bundle is not None:
        config = _read_config(bundle)
        facts = _bundle_facts(bundle, config, checkpoint=found.get("checkpoint"))
        if described and (described["task"], described["labels"]) != (facts.task, facts.labels):
            raise UsageError(
                f"{name}: the bundle does {facts.task} ({', '.join(facts.labels)}), the checkpoint "
                f"{described['task']} ({', '.join(described['labels'])}); call them by two names"
            )
    else:
        assert described is not None
        config = described.pop("config")
        facts = report_schema.Model(checkpoint=found["checkpoint"], **described, **_sizes(config))
    return Subject(name=name, facts=facts, bundle=bundle, positions=usable_positions(config) or facts.max_length)


def _bundle_facts(bundle: Bundle, config: Mapping[str, Any], *, checkpoint: str | None) -> report_schema.Model:
    manifest = bundle.manifest
    return report_schema.Model(
        bundle=str(bundle.folder),
        checkpoint=checkpoint,
        task=manifest.task,
        problem_type=manifest.problem_type,
        labels=manifest.labels,
        parameters=manifest.parameters,
        encoder_parameters=manifest.architecture.encoder_parameters or manifest.parameters,
        architecture=manifest.architecture.model_dump(mode="json"),
        source=manifest.source.model_dump(mode="json"),
        max_length=manifest.max_length,
        **_sizes(config),
    )


def _read_config(bundle: Bundle) -> dict[str, Any]:
    """Return transformers' configuration, and what the manifest says of the sizes where there is none."""
    file = bundle.folder / "config.json"
    own: dict[str, Any] = {}
    if file.name in bundle.manifest.files:
        own = json.loads(bundle.read(file.name))
    elif file.is_file():
        own = json.loads(file.read_text(encoding="utf-8"))
    return {**bundle.manifest.architecture.model_dump(mode="json"), **own}


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"embedding_parameters": embedding_parameters(config), "flops_per_token": count_flops_per_token(config)}


def _describe(checkpoint: str) -> dict[str, Any]:
    """Ask a process of its own, so that torch stays out of this one."""
    command = (*python_module("potstill.bench.engines.runners.torch_facts"), checkpoint)
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise CheckpointError(lines[-1].removeprefix("error: "))
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts
