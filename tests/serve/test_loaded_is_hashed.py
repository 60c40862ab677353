"""The bytes that are hashed are the bytes that are loaded, whoever changes the files meanwhile."""

import gc
import hashlib
import json
import shutil
import threading
import tracemalloc
from itertools import cycle

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from potstill.bench.runners import open_runner
from potstill.bundle import MODEL_FILES, ModelRecord, record_files
from potstill.errors import TamperedError
from potstill.serve import Encoder
from tests.serve.conftest import seal

TEXTS = ["a good film", "it was bad", "the book is very warm"]
FP32 = MODEL_FILES["fp32"]
DATA = "onnx/model.onnx_data"


def other_weights(file):
    """Return a model file's bytes with every weight negated, so that every answer is another."""
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(-values, tensor.name))
    return model.SerializeToString()


def other_tokenizer(file):
    content = json.loads(file.read_bytes())
    vocabulary = content["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    return json.dumps(content).encode()


@pytest.fixture
def external_bundle(own_bundle):
    """Give a bundle whose weights are in a file of their own, as those over 2 GB are."""
    model = onnx.load(own_bundle / FP32)
    onnx.save(model, own_bundle / FP32, save_as_external_data=True, location="model.onnx_data", size_threshold=100)
    (own_bundle / MODEL_FILES["int8"]).unlink()
    seal(own_bundle, models={"fp32": ModelRecord(file=FP32, external_data=[DATA])}, files=record_files(own_bundle))
    return own_bundle


@pytest.fixture
def swap_when_hashed(monkeypatch):
    """Give a function that has a file replaced at the moment at which its hash is known."""

    def arm(file, content):
        wanted = hashlib.sha256(file.read_bytes()).hexdigest()
        swapped = []

        def replace(digest):
            if digest == wanted and not swapped:
                swapped.append(digest)
                other = file.with_name("other")
                other.write_bytes(content)
                other.replace(file)
            return digest

        class Hash:
            def __init__(self, inner):
                self._inner = inner

            def hexdigest(self):
                return replace(self._inner.hexdigest())

            def __getattr__(self, name):
                return getattr(self._inner, name)

        sha256, file_digest = hashlib.sha256, hashlib.file_digest
        monkeypatch.setattr(hashlib, "sha256", lambda *given, **more: Hash(sha256(*given, **more)))
        monkeypatch.setattr(hashlib, "file_digest", lambda *given: Hash(file_digest(*given)))
        return swapped

    return arm


def engines():
    def encoder(folder):
        return Encoder(folder, threads=1).logits

    def openvino(folder):
        return Encoder(folder, engine="openvino", threads=1).logits

    def runner(folder):
        opened = open_runner(
            {
                "runner": "onnxruntime-cpu",
                "folder": str(folder),
                "precision": "fp32",
                "threads": 1,
                "spinning": False,
                "max_length": None,
            }
        )

        def logits(texts):
            rows = opened.tokenizer.rows(texts)
            return np.concatenate([opened.run(opened.tokenizer.pad([row]))["logits"] for row in rows])

        return logits

    return [
        pytest.param(encoder, id="Encoder"),
        pytest.param(openvino, id="OpenVINO"),
        pytest.param(runner, id="bench"),
    ]


@pytest.mark.parametrize("load", engines())
@pytest.mark.parametrize(("name", "other"), [(FP32, other_weights), ("tokenizer.json", other_tokenizer)])
def test_a_file_that_is_swapped_once_it_is_hashed_is_not_loaded(own_bundle, swap_when_hashed, load, name, other):
    wanted = load(own_bundle)(TEXTS)
    swapped = swap_when_hashed(own_bundle / name, other(own_bundle / name))
    logits = load(own_bundle)
    assert swapped, "the file was never hashed"
    np.testing.assert_allclose(logits(TEXTS), wanted, atol=1e-5)


@pytest.mark.parametrize("load", engines())
def test_neither_are_weights_in_a_file_of_their_own(external_bundle, swap_when_hashed, load):
    wanted = load(external_bundle)(TEXTS)
    content = (external_bundle / DATA).read_bytes()
    swapped = swap_when_hashed(external_bundle / DATA, content[::-1])
    logits = load(external_bundle)
    assert swapped, "the file was never hashed"
    np.testing.assert_allclose(logits(TEXTS), wanted, atol=1e-5)


def test_nor_is_a_config_that_decides_what_a_score_is(task_bundle, tmp_path, swap_when_hashed):
    folder = shutil.copytree(task_bundle("regression"), tmp_path / "bundle")
    (folder / "config.json").write_text(json.dumps({"problem_type": "regression"}))
    seal(
        folder,
        task="text-classification",
        problem_type="regression",
        labels=["amount"],
        models={"fp32": ModelRecord(file=FP32)},
    )
    wanted = Encoder(folder, threads=1).predict("a good film")
    swapped = swap_when_hashed(folder / "config.json", b"{}")  # a sigmoid, as transformers' pipeline has it
    try:
        found = Encoder(folder, threads=1).predict("a good film")
    except TamperedError:
        found = wanted
    assert swapped
    assert found == wanted


@pytest.mark.parametrize("external", [False, True])
def test_while_another_process_swaps_files_a_load_is_right_or_refused(request, external):
    folder = request.getfixturevalue("external_bundle" if external else "own_bundle")
    wanted = Encoder(folder, threads=1).logits(TEXTS)
    file = folder / (DATA if external else FP32)
    right = file.read_bytes()
    wrong = right[::-1] if external else other_weights(file)
    stop = threading.Event()

    def swap():
        for content in cycle((wrong, right)):
            if stop.is_set():
                return
            other = file.with_name("other")
            other.write_bytes(content)
            other.replace(file)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        refused = loaded = 0
        for _ in range(600):
            try:
                logits = Encoder(folder, threads=1).logits(TEXTS)
            except TamperedError:
                refused += 1
            else:
                loaded += 1
                np.testing.assert_allclose(logits, wanted, atol=1e-5)
            if refused >= 10 and loaded >= 20:
                break
    finally:
        stop.set()
        thread.join()
    assert loaded > 0
    assert refused > 0, "nothing was swapped in time: the test shows nothing"


@pytest.mark.parametrize("external", [False, True])
def test_the_bytes_are_let_go_of_once_the_model_is_loaded(own_bundle, external):
    """Else every model is in memory twice for good; onnxruntime's own session would keep them."""
    model = onnx.load(own_bundle / FP32)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4_000_000, np.float32), "ballast"))
    onnx.save(model, own_bundle / FP32, save_as_external_data=external, location="model.onnx_data", size_threshold=100)
    seal(own_bundle, models={"fp32": ModelRecord(file=FP32, external_data=[DATA] * external)})
    tracemalloc.start()
    try:
        encoder = Encoder(own_bundle, threads=1)
        gc.collect()
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak > 16_000_000  # it was read
    assert now < 4_000_000
    assert encoder.logits(TEXTS).shape == (3, 3)
