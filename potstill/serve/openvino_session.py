"""Run one ONNX file with OpenVINO on the CPU: the same bundle on a second engine.

It is OpenVINO's own package and not onnxruntime's provider of that name, which ran the same file at an eighth of the
speed. Importing openvino would tell its makers so, and write an id into the user's home; without openvino_telemetry,
which this module hides from it, it does neither.
"""

import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.bundle import ModelContent
from potstill.errors import BundleError, CheckError, UsageError
from potstill.extras import require
from potstill.machine import available_cores
from potstill.serve.session import Stop

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its import then fails, and is caught

openvino = require("openvino", extra="openvino")
opset = require("openvino.opset13", extra="openvino")

# One for the life of the process. Its CPU plugin gives the thread that first compiles a model a stack for signals, and
# unmaps it when the last Core and model are gone, without telling that thread if it happens in another one: the next
# signal with a handler, such as SIGTERM or SIGCHLD, then ended the process with a segmentation fault.
_CORE = openvino.Core()

# The list of tokens in a file without padding, (1, tokens), as potstill.export.unpad names it. Its length is
# rounded up to a multiple of the step, which doubles beyond each of these lengths: 8 up to 128, 16 up to 256, ...
_TOKENS = "unpad/index"
_STEP, _LENGTHS = 8, 128 * 2 ** np.arange(16)


class OpenVinoSession:
    """One model compiled by OpenVINO; `run` may be called from several threads at once."""

    def __init__(self, model: Path | ModelContent, *, threads: int | None = None, runners: int = 1) -> None:
        """Load a model.

        Args:
            model: as in `OnnxSession`.
            threads: threads of one run; None takes the cores this process may use.
            runners: how many runs go on at a time; more wait for each other. Each has threads and working memory of
                its own, and all share the weights.

        Raises:
            UsageError: if `threads` or `runners` is below 1.
            BundleError: if OpenVINO cannot load the file.
            CheckError: if OpenVINO would compute with other threads, or in another precision, than asked.
        """
        self.threads = available_cores() if threads is None else threads
        for name, count in (("threads", self.threads), ("runners", runners)):
            if count < 1:
                raise UsageError(f"{name} is {count}; it must be at least 1")
        self.model_file = model if isinstance(model, Path) else model.file
        settings = {
            "NUM_STREAMS": runners,  # two runs in one stream would wait for each other
            "INFERENCE_NUM_THREADS": self.threads * runners,
            # As many threads as were asked for, even where two share a core; and none bound to a core, which every
            # other process on this machine would take as well.
            "ENABLE_HYPER_THREADING": True,
            "ENABLE_CPU_PINNING": False,
            # Without it, CPUs that can compute files of float32 in bfloat16 do.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        # The model is let go of with the bytes behind it when this returns; the compiled one has weights of its own.
        read = _read(model, self.model_file)
        # Before it is compiled, which merges an output's name with those of other tensors.
        self.inputs = tuple(port.any_name for port in read.inputs)
        self.outputs = tuple(port.any_name for port in read.outputs)
        self.output_widths: dict[str, int | None] = {
            port.any_name: None if port.partial_shape[-1].is_dynamic else port.partial_shape[-1].get_length()
            for port in read.outputs
        }
        self._rows_of_tables = _sizes_of_tables(read)
        try:
            self._is_rounded = _round_up_the_list_of_tokens(read)
            self._compiled = _CORE.compile_model(read, "CPU", settings)
        except RuntimeError as error:
            raise _cannot_be_loaded(self.model_file, error) from error
        for name in ("NUM_STREAMS", "INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT"):
            given = self._compiled.get_property(name)
            given = given.get_type_name() if hasattr(given, "get_type_name") else given
            if given != settings[name]:
                raise CheckError(f"{self.model_file}: OpenVINO takes {name} {given}, not {settings[name]} as asked")
        # A request is a run's inputs and outputs; each thread takes one that no other thread has.
        self._idle: deque[Any] = deque()

    @property
    def compiled_model(self) -> Any:
        """Return the underlying openvino.CompiledModel."""
        return self._compiled

    def sizes(self, most: int) -> list[int]:
        """Return the numbers of tokens up to `most` that others are rounded to; none if the file computes padding."""
        found = [0]
        while self._is_rounded and found[-1] < most:
            found.append(found[-1] + _STEP * 2 ** int((found[-1] >= _LENGTHS).sum()))
        return [size for size in found[1:] if size <= most]

    def run(self, feeds: Mapping[str, NDArray[Any]], stop: Stop | None = None) -> dict[str, NDArray[Any]]:
        """Return every output by name, as `potstill.serve.session.Session` says."""
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise UsageError(f"{self.model_file} needs the inputs {', '.join(missing)}; given: {', '.join(feeds)}")
        for name, rows in self._rows_of_tables.items():
            ids = feeds[name]
            if ids.size and not 0 <= ids.min() <= ids.max() < rows:
                raise CheckError(
                    f"{self.model_file} failed to run: {name} go up to {ids.max()}, its table to {rows - 1}"
                )
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        given = {name: feeds[name] for name in self.inputs}
        try:
            if stop is None:
                request.infer(given, share_inputs=True, share_outputs=True)
            else:
                # Of a run in the caller's own thread, `cancel` is not heeded.
                with stop.calling(request.cancel):
                    request.start_async(given, share_inputs=True)
                    if stop.is_set:  # before, when there was nothing to cancel
                        request.cancel()
                    request.wait()
                if stop.is_set:
                    raise CheckError(f"{self.model_file} failed to run: it was stopped")
            # Copied, because the next run writes into the same memory.
            return {name: request.get_output_tensor(at).data.copy() for at, name in enumerate(self.outputs)}
        except RuntimeError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckError(f"{self.model_file} failed to run: {lines[-1].strip()[:300]}") from error
        finally:
            self._idle.append(request)


def _read(model: Path | ModelContent, file: Path) -> Any:
    """Return the openvino.Model of a file, or of bytes whose hash was checked.

    Raises:
        BundleError: if it cannot be read.
    """
    try:
        if isinstance(model, ModelContent) and model.weights:
            # It opens files of weights by itself, so it gets copies of the checked bytes in a folder of this user.
            with TemporaryDirectory() as folder:
                for name, content in {file.name: model.model, **model.weights}.items():
                    (Path(folder) / name).write_bytes(content)
                return _CORE.read_model(Path(folder) / file.name)
        if isinstance(model, Path) and not model.is_file():
            raise BundleError(f"{model} does not exist; export the checkpoint again")
        return _CORE.read_model(model if isinstance(model, Path) else model.model)
    except RuntimeError as error:
        raise _cannot_be_loaded(file, error) from error


def _cannot_be_loaded(file: Path, error: RuntimeError) -> BundleError:
    # The first lines of its errors name its own source files, the last ones say what is wrong.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1][:300] if lines else type(error).__name__
    return BundleError(f"{file} cannot be loaded by OpenVINO {openvino.__version__}: {said}")


def _sizes_of_tables(model: Any) -> dict[str, int]:
    """Return how many rows the table has, from which an input picks, by the input's name.

    OpenVINO reads zeros beyond a table's end, where onnxruntime refuses the run.
    """
    sizes: dict[str, int] = {}
    for parameter in model.get_parameters():
        for target in parameter.output(0).get_target_inputs():
            node = target.get_node()
            rows = node.input_value(0).get_partial_shape()[0] if node.get_type_name() == "Gather" else None
            if rows is not None and target.get_index() == 1 and not rows.is_dynamic:
                sizes[parameter.get_friendly_name()] = rows.get_length()
    return sizes


def _round_up_the_list_of_tokens(model: Any) -> bool:
    """Have a file without padding compute at most an eighth more tokens than there are, so that few sizes occur.

    For each size that it has not seen OpenVINO makes new products, which takes longer than a text of 100 tokens, and it
    keeps them: of a MiniLM's int8-static 3 MB for each size (docs/log.md). The tokens that are added are the first one
    again, and nobody reads them. Return whether there is such a list.
    """
    for node in model.get_ordered_ops():
        for output in node.outputs():
            if _TOKENS in output.get_names():
                readers = list(output.get_target_inputs())  # before there is one more
                count = opset.gather(opset.shape_of(output, output_type="i64"), np.array([1]), np.int64(0))
                longer = opset.convert(opset.greater(count, _LENGTHS), "i64")
                steps = opset.multiply(longer, _STEP * 2 ** np.arange(len(_LENGTHS)))
                step = opset.add(opset.reduce_sum(steps, np.array([0]), keep_dims=True), np.array([_STEP]))
                missing = opset.floor_mod(opset.subtract(np.array([0]), count), step)
                ends = opset.concat([np.array([0]), missing], axis=0)
                rounded = opset.pad(output, np.array([0, 0]), ends, "constant", np.int64(0))
                for reader in readers:
                    reader.replace_source_output(rounded.output(0))
                return True
    return False
