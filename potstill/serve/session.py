"""Run one ONNX file with onnxruntime: on the CPU, unless another provider is asked for; and what every engine offers.

Importing this module sets an environment variable: since 1.29 onnxruntime sends telemetry and leaves a database in the
user's home, unless ORT_DISABLE_TELEMETRY is set before it is loaded (microsoft/onnxruntime#27379).
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from potstill.bundle import ModelContent
from potstill.errors import BundleError, CheckError, UsageError
from potstill.machine import available_cores
from potstill.messages import first_line

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

_CPU = "CPUExecutionProvider"
# Operators that multiply matrices, in ONNX and in onnxruntime's own domain (com.microsoft: FusedMatMul, Attention...).
_PRODUCT = re.compile("MatMul|Gemm|Attention")
# What onnxruntime says of an operator, an operator set or a type that it does not know.
_UNKNOWN = re.compile(
    "not a registered function|No Op registered|under development|Could not find an implementation|Type Error: Type"
)
# onnxruntime's log severities (3 error, 4 fatal); what it logs goes to stderr, past Python's logging.
_ERRORS_ONLY = 3
_NOTHING = 4


class Stop:
    """End one run from another thread: the engine stops at the next operator, and the session's `run` raises."""

    def __init__(self) -> None:
        self.options = onnxruntime.RunOptions()
        self.options.log_severity_level = _NOTHING  # a stopped run is worth no line on stderr
        self.is_set = False
        self._lock = threading.Lock()
        self._cancel: Callable[[], object] | None = None

    def set(self) -> None:
        """End the run that was given this; a later run with it fails at once."""
        self.is_set = True  # first: whoever catches the run's error reads it to tell a stop from a failure
        self.options.terminate = True
        # Under the lock, so that it ends this run and never the next one of the same request.
        with self._lock:
            if self._cancel is not None:
                self._cancel()

    @contextmanager
    def calling(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Have `set` call `cancel` while the block runs, for an engine that has no `RunOptions`."""
        with self._lock:
            self._cancel = cancel
        try:
            yield
        finally:
            with self._lock:
                self._cancel = None


class Session(Protocol):
    """A loaded model, whatever engine runs it; `run` may be called from several threads at once."""

    threads: int
    """Of one run."""
    model_file: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_widths: dict[str, int | None]
    """The length of each output's last axis; None where the graph leaves it open."""

    def sizes(self, most: int) -> list[int]:
        """Return the numbers of tokens, up to `most`, for each of which the first run takes time and memory."""

    def run(self, feeds: Mapping[str, NDArray[Any]], stop: Stop | None = None) -> dict[str, NDArray[Any]]:
        """Return every output by name; feeds that the graph does not declare are ignored.

        Raises:
            UsageError: if an input of the graph is not among `feeds`.
            CheckError: if the run was stopped, or fails, for example because an id is beyond the vocabulary.
        """


class OnnxSession:
    """One loaded model; `run` may be called from several threads at once (microsoft/onnxruntime#114)."""

    def __init__(
        self,
        model: Path | ModelContent,
        *,
        threads: int | None = None,
        spinning: bool = True,
        disabled_optimizers: Sequence[str] = (),
        optimise: bool = True,
        providers: Sequence[str] = (_CPU,),
    ) -> None:
        """Load a model.

        Args:
            model: an ONNX file that this process wrote or trusts; or the bytes of one, whose hash was checked, because
                a crafted file can crash the process here. The bytes are not kept.
            threads: threads within an operator. None takes the cores this process may use; onnxruntime's own
                default is the host's cores, whatever a container's quota says (microsoft/onnxruntime#29510).
            spinning: whether idle threads wait busily. It is faster where the cores are free, slower where they
                are shared.
            disabled_optimizers: names of onnxruntime's graph optimisers to leave out.
            optimise: whether onnxruntime may rewrite the graph at all.
            providers: onnxruntime's execution providers; the first is the one that must run the model.

        Raises:
            UsageError: if `threads` is below 1.
            BundleError: if onnxruntime cannot load the file.
            CheckError: if another provider than the first is in use, or runs one of the model's products.
        """
        self.threads = available_cores() if threads is None else threads
        if self.threads < 1:
            raise UsageError(f"threads is {threads}; it must be at least 1")
        self.model_file = model if isinstance(model, Path) else model.file
        provider = providers[0]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        # Operators run one after the other (ORT_SEQUENTIAL), so a pool to run several at once would be idle.
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ERRORS_ONLY
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        if provider != _CPU:
            available = onnxruntime.get_available_providers()
            if provider not in available:  # onnxruntime would warn and take the CPU
                raise CheckError(
                    f"{self.model_file} shall run on {provider}; this onnxruntime has {', '.join(available)}"
                )
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self._session = _load(model, options, disabled_optimizers, providers)
        in_use = self._session.get_providers()
        if in_use[:1] != [provider]:
            raise CheckError(f"{self.model_file} runs on {in_use}, not on {provider} as asked")
        if provider != _CPU:
            self._refuse_fallback(provider)
        self.inputs = tuple(node.name for node in self._session.get_inputs())
        self.outputs = tuple(node.name for node in self._session.get_outputs())
        shapes = {node.name: node.shape or [None] for node in self._session.get_outputs()}
        self.output_widths: dict[str, int | None] = {
            name: shape[-1] if isinstance(shape[-1], int) else None for name, shape in shapes.items()
        }
        """The length of each output's last axis; None where the graph leaves it open."""

    @property
    def onnxruntime_session(self) -> Any:
        """Return the underlying onnxruntime.InferenceSession."""
        return self._session

    def run(self, feeds: Mapping[str, NDArray[Any]], stop: Stop | None = None) -> dict[str, NDArray[Any]]:
        """Return every output by name; feeds that the graph does not declare are ignored.

        Raises:
            UsageError: if an input of the graph is not among `feeds`.
            CheckError: if the run was stopped, or fails, for example because an id is beyond the vocabulary.
        """
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise UsageError(f"{self.model_file} needs the inputs {', '.join(missing)}; given: {', '.join(feeds)}")
        try:
            results = self._session.run(
                None, {name: feeds[name] for name in self.inputs}, None if stop is None else stop.options
            )
        except Exception as error:  # as in _load
            raise CheckError(f"{self.model_file} failed to run: {first_line(error)}") from error
        return dict(zip(self.outputs, map(np.asarray, results), strict=True))

    def sizes(self, most: int) -> list[int]:
        """Return nothing: onnxruntime prepares nothing for a size."""
        return []

    def _refuse_fallback(self, provider: str) -> None:
        """Refuse a session whose matrix products run on another provider; operators on shapes may run on the CPU.

        Raises:
            CheckError: if one of the products does.
        """
        elsewhere = {
            f"{node.op_type} on {part.ep_name}"
            for part in self._session.get_provider_graph_assignment_info()
            if part.ep_name != provider
            for node in part.get_nodes()
            if _PRODUCT.search(node.op_type)
        }
        if elsewhere:
            raise CheckError(
                f"{self.model_file}: {provider} leaves products to others ({', '.join(sorted(elsewhere))}), so this "
                "would not measure it; take another precision or provider"
            )


def _load(
    model: Path | ModelContent, options: Any, disabled_optimizers: Sequence[str], providers: Sequence[str]
) -> Any:
    """Make an onnxruntime.InferenceSession of a file, or of bytes whose hash was checked."""
    source: str | bytes
    if isinstance(model, ModelContent):
        file, source = model.file, model.model
        if model.weights:  # external data would else be read from the disk again, after it was checked
            names, contents = list(model.weights), list(model.weights.values())
            options.add_external_initializers_from_files_in_memory(names, contents, list(map(len, contents)))
    else:
        file, source = model, str(model)
        if not file.is_file():
            raise BundleError(f"{file} does not exist; export the checkpoint again")
    try:
        session = onnxruntime.InferenceSession(
            source,
            options,
            providers=list(providers),
            disabled_optimizers=list(disabled_optimizers),
            enable_fallback=0,  # the fallback prints on stdout and tries other providers
        )
    except Exception as error:  # onnxruntime's errors have no common base but this
        reason = first_line(error)
        # A file of a newer operator set, or with an operator or a type of numbers that this build does not have.
        help_ = (
            "install a newer onnxruntime, or export the checkpoint again with an older --opset and 8 --embedding-bits"
            if _UNKNOWN.search(str(error))
            else "export the checkpoint again"
        )
        raise BundleError(
            f"{file} cannot be loaded by onnxruntime {onnxruntime.__version__}: {reason}; {help_}"
        ) from error
    # InferenceSession keeps the bytes for the fallback, which is off: the model would stay in memory twice.
    session._model_bytes = None
    return session
