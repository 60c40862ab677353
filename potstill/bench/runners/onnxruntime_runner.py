"""Run a bundle with onnxruntime: on the CPU in the session that serves it, on a GPU with its inputs already there."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnxruntime

from potstill.bench.environment import describe_gpus
from potstill.bench.runners import Feeds, LoadCommand, VerifiedBundle, read_verified_bundle
from potstill.errors import CheckError
from potstill.serve import OnnxSession
from potstill.serve.session import Session

# TensorRT takes what it can and leaves the rest to CUDA; the session refuses it if that were a product.
_PROVIDERS = {
    "onnxruntime-cpu": ("CPUExecutionProvider",),
    "onnxruntime-cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "onnxruntime-tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}


def open_runner(command: LoadCommand) -> "SessionRunner":
    """Load a bundle's precision by a worker's load command.

    Raises:
        BundleError, TamperedError: if the bundle cannot be used.
        CheckError: if the provider asked for would not run it.
    """
    providers = _PROVIDERS[command["runner"]]
    on_gpu = command["runner"] != "onnxruntime-cpu"
    # Since onnxruntime 1.21.
    if on_gpu and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds the CUDA that pip installed
    bundled = read_verified_bundle(Path(command["folder"]), command["precision"], max_length=command["max_length"])
    session = OnnxSession(
        bundled.read_model(),
        threads=command["threads"],
        spinning=command["spinning"],
        disabled_optimizers=bundled.disabled_optimizers,
        providers=providers,
    )
    return (DeviceRunner if on_gpu else SessionRunner)(session, replace(bundled, inputs=session.inputs))


class SessionRunner:
    """A model in a session on the CPU: what is timed is what ships."""

    def __init__(self, session: Session, bundled: VerifiedBundle) -> None:
        """Take a loaded session and what its bundle says."""
        self.session = session
        self.device = "cpu"
        self.inputs, self.outputs = bundled.inputs, bundled.outputs
        self.tokenizer, self.vocab_size = bundled.tokenizer, bundled.vocab_size
        self.batch_invariant, self.pooling, self.files = bundled.batch_invariant, bundled.pooling, bundled.files
        self.run = session.run

    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        """Return the session's own run."""
        run = self.session.run
        return lambda: run(feeds)

    def gpu_memory(self) -> dict[str, int]:
        """Return nothing: there is no GPU."""
        return {}


class DeviceRunner(SessionRunner):
    """The same on another device, where timed calls find their inputs and leave their outputs."""

    def __init__(self, session: OnnxSession, bundled: VerifiedBundle, *, device: str = "cuda", number: int = 0) -> None:
        """Take a loaded session; `device` and `number` are onnxruntime's words for where it runs."""
        super().__init__(session, bundled)
        self._own = session.onnxruntime_session
        self._place = (device, number)
        names = [gpu["name"] for gpu in describe_gpus()]
        self.device = f"{device}:{number}" + (f" ({names[number]})" if number < len(names) else "")

    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        """Copy the inputs to the device; return a call that runs there and waits until the work is done."""
        own = self._own
        binding = own.io_binding()
        for name in self.inputs:
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(feeds[name], *self._place))
        for name in self.session.outputs:
            # Without a shape: onnxruntime allocates each output on the device, and leaves it there.
            binding.bind_output(name, *self._place)
        # Copies may still be under way, and the first timed call must not wait for them.
        binding.synchronize_inputs()

        def call() -> object:
            try:
                # This returns when the work is queued; the call is over when the device is done with it.
                own.run_with_iobinding(binding)
                binding.synchronize_outputs()
            except Exception as error:  # onnxruntime's errors have no common base but this
                raise CheckError(f"{self.session.model_file} failed to run: {error}") from error
            return binding

        return call
