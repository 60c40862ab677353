"""What every test may use: no network, and one tiny teacher with its data and its bundle."""

import os
import signal
from pathlib import Path

import pytest

# Set before any library is imported: they read it once.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MPLBACKEND": "agg",
        # Tiny models lose more to waiting threads than they win by them.
        "OMP_NUM_THREADS": "1",
    }
)

# A shell starts its background jobs with SIGINT ignored, and what a test starts would inherit that; a handler it does
# not. (A `preexec_fn` would do it by running Python between fork and exec, which can hang in a process with threads.)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A folder with train.jsonl and validation.jsonl."""
    from tests import tiny

    return tiny.write_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    """A trained checkpoint of 4 layers x 32 units."""
    from tests import tiny

    return tiny.make_teacher(tmp_path_factory.mktemp("tiny") / "teacher")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory, tiny_teacher) -> Path:
    """The tiny teacher's bundle with fp32 and int8."""
    from potstill.export import export_bundle
    from tests import tiny

    folder = tmp_path_factory.mktemp("tiny") / "teacher-onnx"
    export_bundle(str(tiny_teacher), folder, config=tiny.export_config(), calibration=tiny.texts(80))
    return folder
