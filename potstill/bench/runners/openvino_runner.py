"""Run a bundle with OpenVINO on the CPU, in the session that serves it."""

from dataclasses import replace
from pathlib import Path

from potstill.bench.runners import LoadCommand, read_verified_bundle
from potstill.bench.runners.onnxruntime_runner import SessionRunner
from potstill.serve.openvino_session import OpenVinoSession


def open_runner(command: LoadCommand) -> SessionRunner:
    """Load a bundle's precision by a worker's load command; its `spinning` is not used.

    Raises:
        BundleError, TamperedError: if the bundle cannot be used.
        CheckError: if OpenVINO would compute with other threads, or in another precision, than asked.
    """
    bundled = read_verified_bundle(Path(command["folder"]), command["precision"], max_length=command["max_length"])
    session = OpenVinoSession(bundled.read_model(), threads=command["threads"])
    return SessionRunner(session, replace(bundled, inputs=session.inputs))
