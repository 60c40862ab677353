"""The same bundle on the second engine: the answers are onnxruntime's, and so is what is refused."""

import json
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from potstill.bundle import MODEL_FILES, read_bundle
from potstill.cli.app import app
from potstill.errors import BundleError, CheckError, MissingExtraError, TamperedError, UsageError
from potstill.serve import Encoder
from potstill.serve.session import Stop
from tests.serve.conftest import TEXTS, seal, spoil

openvino_session = pytest.importorskip("potstill.serve.openvino_session")
