"""The models of a bench, and the configurations (precision, engine) that each is measured in."""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from potstill.bench import report_schema
from potstill.bench.measure.size import count_flops_per_token, embedding_parameters
from potstill.bench.runners import LoadCommand
from potstill.bundle import MANIFEST_NAME, Bundle, read_bundle
from potstill.checkpoint import usable_positions
from potstill.config import BenchConfig
from potstill.errors import CheckpointError, UsageError
from potstill.timing.workers import child_environment, python_module

ComparisonKind: TypeAlias = Literal["like_for_like", "to_baseline", "to_own_fp32"]
BUNDLE_RUNNERS = ("onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino-cpu")
TORCH_RUNNERS = ("torch-cpu", "torch-cpu-compiled", "torch-cuda", "torch-cuda-compiled")
TORCH_PRECISIONS = ("fp32", "fp16", "bf16")
DEFAULT_RUNNER = "onnxruntime-cpu"
# No id of the hub looks like this: it is one name, or two with a slash between them.
_PATH = re.compile(r"^[./~]|/$|/.*/|\\")


@dataclass(frozen=True, slots=True)
class Configuration:
    """One row of the report: a model in one precision, run by one engine."""

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

    @property
    def on_processor(self) -> bool:
        """Whether it computes on the processor, and not on a GPU."""
        return "-cpu" in self.runner

    def load_command(self, *, seed: int, spinning: bool = True) -> LoadCommand:
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
class BenchModel:
    """A model with all that is known of it before it runs."""

    name: str
    facts: report_schema.Model
    bundle: Bundle | None
    config: Mapping[str, Any]
    """transformers' configuration, and what the manifest says of the sizes."""
    positions: int
    """The longest text that it can be given, in tokens."""

    def flops_per_token(self, configuration: Configuration, num_tokens: int) -> float | None:
        """Return the operations per token of a configuration, as its file does them; None if they are not known."""
        reads_first = False
        if self.bundle is not None and configuration.folder == self.facts.bundle:
            reads_first = self.bundle.model_record(configuration.precision).first_token_only
        counted = count_flops_per_token(self.config, [num_tokens], first_token_only=reads_first)
        return None if counted is None else counted.get(num_tokens)

    def weight_files(self, configuration: Configuration) -> list[Path]:
        """Return the files that hold a configuration's weights; none of a hub id, whose files are the hub's cache."""
        if self.bundle is not None and configuration.folder == self.facts.bundle:
            record = self.bundle.model_record(configuration.precision)
            return [self.bundle.folder / name for name in (record.file, *record.external_data)]
        folder = Path(configuration.folder)
        if not folder.is_dir():
            return []
        # transformers loads safetensors where a folder has both.
        found = (sorted(folder.glob(f"*{suffix}")) for suffix in (".safetensors", ".bin"))
        return next((files for files in found if files), [])

    def weights_sha256(self, configuration: Configuration) -> str | None:
        """Return the SHA-256 that tells whether a configuration's weights are the same as before."""
        if self.bundle is not None and configuration.folder == self.facts.bundle:
            return self.bundle.record_of(configuration.precision).sha256
        source: str | None = self.facts.source.get("sha256")
        return source


def read_models(named: Sequence[tuple[str, str]]) -> dict[str, BenchModel]:
    """Read what is known of every model before it runs.

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
    return {name: _read_model(name, found) for name, found in places.items()}


def name_models(places: Sequence[str]) -> list[tuple[str, str]]:
    """Read `NAME=PLACE` or `PLACE`; without a name, the folder's own, numbered where two folders are called alike.

    Raises:
        UsageError: if a name is empty, or has characters that keys are made of.
    """
    named: list[tuple[str, str]] = []
    for text in places:
        name, separator, place = text.partition("=")
        if not separator:
            # `.` has no name until it is resolved.
            name, place = _free_name(Path(text).name or Path(text).resolve().name, {taken for taken, _ in named}), text
        # Keys are made with / and @, the journal's names with #.
        if not re.fullmatch(r"[\w.+-]+( [\w.+-]+)*", name):
            raise UsageError(
                f"{name!r} is no name for a model; take letters, digits, dots and hyphens: teacher={place}"
            )
        named.append((name, place))
    return named


def list_configurations(models: Mapping[str, BenchModel], config: BenchConfig, *, threads: int) -> list[Configuration]:
    """Return every precision and engine of every model that the settings ask for, in the order of the models.

    Raises:
        UsageError: if a model has none of the runners or precisions asked for.
    """
    configurations: list[Configuration] = []
    for name, model in models.items():
        facts = model.facts
        bundled = [str(precision) for precision in model.bundle.manifest.models] if model.bundle else []
        before = len(configurations)
        for runner in config.runners or (DEFAULT_RUNNER, "torch-cpu"):
            folder = facts.bundle if runner in BUNDLE_RUNNERS else facts.checkpoint
            if folder is None:
                continue
            if runner in TORCH_RUNNERS:
                precisions = [str(name) for name in config.precisions or ["fp32"] if name in TORCH_PRECISIONS]
            else:
                precisions = [str(name) for name in config.precisions or bundled if name in bundled]
            configurations += [
                Configuration(
                    key=f"{name}/{precision}" + ("" if runner == DEFAULT_RUNNER else f"@{runner}"),
                    model=name,
                    precision=precision,
                    runner=runner,
                    folder=folder,
                    threads=threads,
                    task=facts.task,
                    problem_type=facts.problem_type,
                    max_length=facts.max_length,
                )
                for precision in precisions
            ]
        if len(configurations) == before:
            asked = ", ".join([*(config.precisions or []), *(config.runners or [])])
            have = bundled or list(TORCH_PRECISIONS)
            raise UsageError(f"{name} ({facts.bundle or facts.checkpoint}) has no {asked}; it has {', '.join(have)}")
    return configurations


def pick_baseline(configurations: Sequence[Configuration], model: str) -> Configuration:
    """Return the configuration that all others are compared with: the model's fp32 where it has one, else its first.

    Raises:
        UsageError: if no model is called so.
    """
    rows = [each for each in configurations if each.model == model]
    if not rows:
        names = list(dict.fromkeys(each.model for each in configurations))
        raise UsageError(f"--baseline {model}: no model is called so; there are {', '.join(names)}")
    return next((each for each in rows if each.precision == "fp32"), rows[0])


def list_comparisons(
    configurations: Sequence[Configuration], *, baseline: str
) -> list[tuple[ComparisonKind, str, str]]:
    """Return all pairs that are compared: kind of comparison, key of the baseline, key of the candidate.

    Like for like is the baseline's model in the same precision and engine. A model's other precisions are compared with
    its own fp32 where that is not the baseline anyway.
    """
    rows = {(each.model, each.precision, each.runner): each.key for each in configurations}
    models = {each.key: each.model for each in configurations}
    found: list[tuple[ComparisonKind, str, str]] = []
    if baseline not in models:
        return found
    for each in configurations:
        like = rows.get((models[baseline], each.precision, each.runner))
        own = rows.get((each.model, "fp32", each.runner))
        if like is not None and each.model != models[baseline]:
            found.append(("like_for_like", like, each.key))
        if each.key != baseline:
            found.append(("to_baseline", baseline, each.key))
        if own is not None and own not in (baseline, each.key):
            found.append(("to_own_fp32", own, each.key))
    return found


def _is_bundle(place: str) -> bool:
    folder = Path(place).expanduser()
    if (folder / MANIFEST_NAME).exists():
        return True
    # A path to nothing is a mistake; anything else that is not here is taken for an id of the hub.
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


def _read_model(name: str, places: Mapping[str, str]) -> BenchModel:
    """Read one model, whose bundle's and checkpoint's places are given by kind."""
    bundle = read_bundle(Path(places["bundle"])) if "bundle" in places else None
    checkpoint = _describe_checkpoint(places["checkpoint"]) if "checkpoint" in places else None
    if bundle is not None:
        manifest = bundle.manifest
        config = _read_config(bundle)
        facts = report_schema.Model(
            bundle=str(bundle.folder),
            checkpoint=places.get("checkpoint"),
            task=manifest.task,
            problem_type=manifest.problem_type,
            labels=manifest.labels,
            parameters=manifest.parameters,
            encoder_parameters=manifest.architecture.encoder_parameters or manifest.parameters,
            architecture=manifest.architecture.model_dump(mode="json"),
            source=manifest.source.model_dump(mode="json"),
            max_length=manifest.max_length,
            embedding_parameters=embedding_parameters(config),
            flops_per_token=count_flops_per_token(config),
        )
        if checkpoint and (checkpoint["task"], checkpoint["labels"]) != (facts.task, facts.labels):
            raise UsageError(
                f"{name}: the bundle does {facts.task} ({', '.join(facts.labels)}), the checkpoint "
                f"{checkpoint['task']} ({', '.join(checkpoint['labels'])}); call them by two names"
            )
    else:
        assert checkpoint is not None
        config = checkpoint.pop("config")
        facts = report_schema.Model(
            checkpoint=places["checkpoint"],
            embedding_parameters=embedding_parameters(config),
            flops_per_token=count_flops_per_token(config),
            **checkpoint,
        )
    positions = usable_positions(config) or facts.max_length
    return BenchModel(name=name, facts=facts, bundle=bundle, config=config, positions=positions)


def _read_config(bundle: Bundle) -> dict[str, Any]:
    """Return transformers' configuration, and what the manifest says of the sizes where there is none."""
    file = bundle.folder / "config.json"
    own: dict[str, Any] = {}
    # A file that the manifest lists is read through the bundle, which checks its hash.
    if file.name in bundle.manifest.files:
        own = json.loads(bundle.read(file.name))
    elif file.is_file():
        own = json.loads(file.read_text(encoding="utf-8"))
    # Where both name a size, transformers' own configuration counts.
    return {**bundle.manifest.architecture.model_dump(mode="json"), **own}


def _describe_checkpoint(checkpoint: str) -> dict[str, Any]:
    """Return a checkpoint's facts, read by a process of its own so that torch stays out of this one."""
    command = (*python_module("potstill.bench.runners.torch_runner"), checkpoint)
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise CheckpointError(lines[-1].removeprefix("error: "))
    # The last line, because libraries may print something before it.
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts
