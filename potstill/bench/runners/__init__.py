"""One interface to all engines that run a model; each engine is imported only in the process that uses it.

`check_runner` says before anything starts whether this machine has an engine; `open_runner` loads a model with it.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from potstill.bench.environment import has_gpu
from potstill.bundle import Bundle, ModelContent, read_bundle, verify_files
from potstill.config import Runner as RunnerName
from potstill.errors import MissingError, MissingExtraError, UsageError
from potstill.serve import BundleTokenizer

RUNNERS: tuple[str, ...] = get_args(RunnerName)
_MODULES = {
    "onnxruntime": "potstill.bench.runners.onnxruntime_runner",
    "openvino": "potstill.bench.runners.openvino_runner",
    "torch": "potstill.bench.runners.torch_runner",
}
_NEEDS = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino",), "torch": ("torch", "transformers")}
_HOW = {
    "onnxruntime": "pip install 'potstill[serve]'",
    "openvino": "pip install 'potstill[openvino]'",
    "torch": "pip install 'potstill[distill]'",
}
_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
# torch in a process of its own: the one that only asks keeps its memory and its threads.
_ASK_TORCH = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"


Feeds: TypeAlias = Mapping[str, NDArray[np.int64]]
"""A batch as the models take it: input name -> (batch size, tokens)."""
Outputs: TypeAlias = dict[str, NDArray[Any]]
"""Output name -> numbers, the batch first."""


class LoadCommand(TypedDict):
    """The arguments of the command that makes a worker load a model."""

    do: Literal["load"]
    runner: str
    folder: str
    """A bundle for onnxruntime and OpenVINO; a checkpoint folder or hub id for torch."""
    precision: str
    threads: int
    seed: int
    spinning: bool
    task: str
    problem_type: str | None
    max_length: int | None


class Runner(Protocol):
    """A loaded model; several threads may call it at once, each with calls that it prepared itself.

    Attributes:
        device: `cpu`, or for example `cuda:0 (NVIDIA H200)`.
        inputs: the model's inputs.
        outputs: its outputs, the task's first.
        tokenizer: texts to inputs.
        vocab_size: how many ids it knows; None where it does not say.
        batch_invariant: whether a text's answer is independent of its batch mates.
        pooling: how one vector is made of a text's token vectors: `mean`, `cls` or `max`.
        files: of every file that was loaded, its name and SHA-256.
    """

    device: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tokenizer: BundleTokenizer
    vocab_size: int | None
    batch_invariant: bool
    pooling: str

    @property
    def files(self) -> Mapping[str, str]:
        """Return the SHA-256 of every file that was loaded, by name."""

    def run(self, feeds: Feeds) -> Outputs:
        """Return every output by name, as float32 or float64 arrays; `feeds` hold one batch, padded."""

    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        """Return the call that is timed: its inputs are where they are needed, and it returns when the work is done."""

    def gpu_memory(self) -> dict[str, int]:
        """Return `gpu_peak_allocated_bytes` and `gpu_peak_reserved_bytes`, where the engine counts them."""


def find_opener(name: str) -> Callable[[LoadCommand], Runner]:
    """Import the engine of a runner and return its `open_runner`.

    Raises:
        UsageError: if there is no such runner.
        MissingExtraError: if the engine is not installed.
    """
    opener: Callable[[LoadCommand], Runner] = import_module(_MODULES[_installed(name)]).open_runner
    return opener


def open_runner(command: LoadCommand) -> Runner:
    """Load a model by a worker's load command (`potstill.bench.worker`).

    Raises:
        BundleError, CheckpointError: if it cannot be loaded.
        TamperedError: if a bundle's file is not the one that its manifest names.
        CheckError: if another device than the one asked for would run it.
        UsageError: if the engine has no such precision.
    """
    return find_opener(command["runner"])(command)


def check_runner(name: str) -> None:
    """Make sure that this machine can run an engine, without loading it here.

    Raises:
        UsageError: if there is no such runner.
        MissingExtraError: if the engine is not installed.
        MissingError: if it is, but not for GPUs, or there is no GPU.
    """
    engine, device = _installed(name), name.split("-")[1]
    if device == "cpu":
        return
    if not has_gpu():
        raise MissingError(f"runner {name} needs an NVIDIA GPU, and this machine shows none (nvidia-smi, /dev/nvidia*)")
    if engine == "onnxruntime":
        import onnxruntime

        provider, available = _PROVIDERS[device], onnxruntime.get_available_providers()
        if provider not in available:
            raise MissingError(
                f"runner {name} needs {provider}; onnxruntime {onnxruntime.__version__} here has "
                f"{', '.join(available)}: pip uninstall onnxruntime, then pip install 'potstill[serve-gpu]'"
            )
        return
    asked = subprocess.run([sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, check=False)
    # The last three words: torch may print more before them, and prints nothing where its import fails.
    version, cuda, found = (asked.stdout.split() or ["?", "?", "no"])[-3:]
    if found != "True":
        raise MissingError(
            f"runner {name} needs torch with CUDA; torch {version} here was built for CUDA {cuda} and finds no device: "
            "install the build for this GPU's driver, see https://pytorch.org/get-started/locally"
        )


def _installed(name: str) -> str:
    """Return the engine of a runner, after making sure that it is installed."""
    if name not in RUNNERS:
        raise UsageError(f"runner {name!r} is not known; expected {', '.join(RUNNERS)}")
    engine = name.split("-")[0]
    for module in _NEEDS[engine]:
        # Only looked up: an import would bring the engine into the process that asks.
        if find_spec(module) is None:
            raise MissingExtraError(f"{module} is not installed and runner {name} needs it: {_HOW[engine]}")
    return engine


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedBundle:
    """One precision of a bundle whose files were checked; see `potstill.bench.runners.Runner` for the rest."""

    bundle: Bundle
    precision: str
    model_file: Path
    disabled_optimizers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tokenizer: BundleTokenizer
    vocab_size: int | None
    batch_invariant: bool
    pooling: str
    files: dict[str, str]

    def read_model(self) -> ModelContent:
        """Return the bytes to load, checked as they were read.

        Raises:
            TamperedError: if the file has changed.
        """
        return self.bundle.read_model(self.precision)


def read_verified_bundle(folder: Path, precision: str, *, max_length: int | None = None) -> VerifiedBundle:
    """Check every file of a bundle and return what is needed to run one precision of it.

    Args:
        folder: the bundle.
        precision: which file.
        max_length: the longest text in tokens, where it shall be shorter than the bundle's own.

    Raises:
        BundleError: if it is no bundle, or has no such precision.
        TamperedError: if a file is not the one that the manifest names.
    """
    bundle = read_bundle(folder, verify=False)
    # The others are hashed as they are read for loading: one pass, and no gap between check and use.
    verify_files(bundle, but=bundle.loaded_files(precision))
    manifest, record = bundle.manifest, bundle.model_record(precision)
    if max_length is not None and max_length < manifest.max_length:
        manifest = manifest.model_copy(update={"max_length": max_length})
    # The files that decide an answer, whose hashes a report lists.
    loaded = [record.file, *record.external_data, "tokenizer.json", "tokenizer_config.json"]
    return VerifiedBundle(
        bundle=bundle,
        precision=precision,
        model_file=bundle.model_file(precision),
        disabled_optimizers=tuple(record.disabled_optimizers or manifest.disabled_optimizers),
        inputs=tuple(manifest.inputs),
        outputs=tuple(manifest.outputs),
        tokenizer=BundleTokenizer(folder, manifest, read=bundle.read),
        vocab_size=manifest.architecture.vocab_size,
        batch_invariant=record.batch_invariant,
        pooling=manifest.pooling.mode if manifest.pooling else "mean",
        files={name: manifest.files[name].sha256 for name in loaded if name in manifest.files},
    )
