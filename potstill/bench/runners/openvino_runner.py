"""Run a bundle's ONNX file with OpenVINO, on the CPU."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import openvino

from potstill.bench.runners import Feeds, LoadCommand, Outputs, VerifiedBundle, read_verified_bundle
from potstill.bundle import ModelContent
from potstill.errors import BundleError, CheckError


def open_runner(command: LoadCommand) -> "OpenVinoRunner":
    """Load a bundle's precision by a worker's load command; its `spinning` is not used.

    Raises:
        BundleError, TamperedError: if the bundle cannot be used.
    """
    bundled = read_verified_bundle(Path(command["folder"]), command["precision"], max_length=command["max_length"])
    settings = {
        # All threads work on one call; the hint THROUGHPUT would divide them among several.
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": command["threads"],
        # Without it newer CPUs compute fp32 files in bfloat16.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    content = bundled.read_model()
    try:
        compiled = _compile(content, settings)
    except RuntimeError as error:
        raise BundleError(
            f"{bundled.model_file} cannot be loaded by OpenVINO {openvino.__version__}: {error}"
        ) from error
    # OpenVINO takes the number as a limit and may compute with fewer.
    used = compiled.get_property("INFERENCE_NUM_THREADS")
    if used != command["threads"]:
        raise CheckError(f"{bundled.model_file} runs on {used} threads, not on {command['threads']} as asked")
    return OpenVinoRunner(compiled, bundled)


def _compile(content: ModelContent, settings: Mapping[str, Any]) -> Any:
    core = openvino.Core()
    if not content.weights:
        return core.compile_model(core.read_model(content.model), "CPU", settings)
    # It opens files of weights by itself, so it gets copies in a private folder that no other user can write to.
    with TemporaryDirectory() as folder:
        file = Path(folder) / content.file.name
        for name, data in {file.name: content.model, **content.weights}.items():
            (file.parent / name).write_bytes(data)
        return core.compile_model(str(file), "CPU", settings)


class OpenVinoRunner:
    """A compiled model; each thread has a request of its own."""

    def __init__(self, compiled: Any, bundled: VerifiedBundle) -> None:
        """Take a model compiled by OpenVINO and what its bundle says."""
        self.device = "cpu"
        self.inputs = tuple(port.any_name for port in compiled.inputs)
        self.outputs = bundled.outputs
        self.tokenizer, self.vocab_size = bundled.tokenizer, bundled.vocab_size
        self.batch_invariant, self.pooling, self.files = bundled.batch_invariant, bundled.pooling, bundled.files
        self._compiled, self._own = compiled, threading.local()

    def run(self, feeds: Feeds) -> Outputs:
        """Return every output by name."""
        self.prepare(feeds)()
        request = self._request()
        # Copied, because the next call writes into the same tensors.
        return {port.any_name: request.get_tensor(port).data.copy() for port in self._compiled.outputs}

    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        """Return a call on tensors that share the feeds' memory."""
        # Both are held: a tensor does not keep the array alive that it looks into.
        arrays = {name: np.ascontiguousarray(feeds[name]) for name in self.inputs}
        held = arrays, {name: openvino.Tensor(values, shared_memory=True) for name, values in arrays.items()}

        def call() -> object:
            try:
                # The outputs stay in the request's memory: copying them to numpy is no part of the model's time.
                return self._request().infer(held[1], share_outputs=True)
            except RuntimeError as error:
                raise CheckError(f"OpenVINO failed to run: {error}") from error

        return call

    def gpu_memory(self) -> dict[str, int]:
        """Return nothing: there is no GPU."""
        return {}

    def _request(self) -> Any:
        if not hasattr(self._own, "request"):
            # A request runs one call at a time, so threads cannot share it.
            self._own.request = self._compiled.create_infer_request()
        return self._own.request
