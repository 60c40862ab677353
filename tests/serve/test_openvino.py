"""The same bundle on the second engine: onnxruntime's answers, and the same things refused."""

import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from potstill import extras
from potstill.bundle import MODEL_FILES
from potstill.errors import BundleError, CheckError, MissingExtraError, TamperedError, UsageError
from potstill.serve import Encoder, OnnxSession
from potstill.serve.session import Stop
from tests.serve.test_encoder import TEXTS, spoil

openvino_session = pytest.importorskip("potstill.serve.openvino_session", reason="pip install 'potstill[openvino]'")


@pytest.fixture(scope="module")
def openvino_encoder(bundle_dir):
    return Encoder(bundle_dir, engine="openvino", threads=1, runners=2)


def test_openvino_gives_the_answers_of_onnxruntime(encoder, openvino_encoder):
    assert (encoder.engine, openvino_encoder.engine) == ("onnxruntime", "openvino")
    np.testing.assert_allclose(openvino_encoder.logits(TEXTS), encoder.logits(TEXTS), atol=1e-5)
    assert openvino_encoder.predict("good", top_k=1)[0]["label"] == encoder.predict("good", top_k=1)[0]["label"]
    assert openvino_encoder.session.inputs == encoder.session.inputs
    assert openvino_encoder.session.output_widths == encoder.session.output_widths


@pytest.mark.parametrize("name", ["ner", "mask", "vector", "regression"])
def test_so_it_does_in_the_other_tasks(task_bundle, task_encoder, name):
    texts = ["a good film", "the book was very bad"]
    found = Encoder(task_bundle(name), engine="openvino", threads=1).outputs(texts)
    for ours, theirs in zip(found, task_encoder(name).outputs(texts), strict=True):
        assert ours.keys() == theirs.keys()
        for output in ours:
            np.testing.assert_allclose(ours[output], theirs[output], atol=1e-5)


def test_answers_alone_and_in_batches_are_equal_up_to_rounding(openvino_encoder):
    alone = np.concatenate([openvino_encoder.logits([text]) for text in TEXTS])
    np.testing.assert_allclose(openvino_encoder.logits(TEXTS, batch_size=len(TEXTS)), alone, atol=1e-5)


def test_it_computes_in_float32_with_the_threads_that_were_asked_for(bundle_dir):
    compiled = openvino_session.OpenVinoSession(bundle_dir / MODEL_FILES["fp32"], threads=1, runners=2).compiled_model
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert (compiled.get_property("NUM_STREAMS"), compiled.get_property("INFERENCE_NUM_THREADS")) == (2, 2)
    with pytest.raises(UsageError, match="runners is 0; it must be at least 1"):
        openvino_session.OpenVinoSession(bundle_dir / MODEL_FILES["fp32"], runners=0)
    with pytest.raises(UsageError, match="threads is 0"):
        Encoder(bundle_dir, engine="openvino", threads=0)


def test_many_threads_may_ask_at_once_and_each_gets_its_own_answer(openvino_encoder):
    wanted = [openvino_encoder.logits([text]) for text in TEXTS]
    wrong = []

    def ask(seed):
        for number in np.random.default_rng(seed).integers(len(TEXTS), size=40):
            # Rounding aside: an answer of another text differs in the first digit.
            if not np.allclose(openvino_encoder.logits([TEXTS[number]]), wanted[number], atol=1e-5):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_run_keeps_its_outputs_when_the_next_one_begins(openvino_encoder):
    session, tokenizer = openvino_encoder.session, openvino_encoder.tokenizer
    first = session.run(tokenizer.encode(["good"]))["logits"]
    before = first.copy()
    session.run(tokenizer.encode(["bad"]))
    assert np.array_equal(first, before)


def test_an_id_beyond_the_table_is_refused_where_openvino_would_read_zeros(own_bundle, resealed):
    spoil(own_bundle, "words", lambda weight: weight[:5])
    with pytest.raises(CheckError, match=r"failed to run: input_ids go up to \d+, its table to 4"):
        Encoder(resealed(), engine="openvino", threads=1).logits(["good"])


def test_a_stopped_run_ends_in_an_error_and_the_next_ones_are_right(openvino_encoder):
    session = openvino_encoder.session
    feeds = openvino_encoder.tokenizer.encode(["good"])
    expected, stop = session.run(feeds)["logits"], Stop()
    assert np.array_equal(session.run(feeds, stop)["logits"], expected)
    stop.set()
    with pytest.raises(CheckError, match=r"failed to run: .*(stopped|cancel)"):
        session.run(feeds, stop)
    assert np.array_equal(session.run(feeds, Stop())["logits"], expected)


def test_a_run_that_goes_on_is_stopped_from_another_thread(tmp_path):
    """Forty products of large matrices take a second or more; the stop comes after a tenth of one."""
    width = 1024
    weight = numpy_helper.from_array(np.full((width, width), 1e-3, np.float32), "weight")
    nodes = [onnx.helper.make_node("MatMul", [f"x{step}", "weight"], [f"x{step + 1}"]) for step in range(40)]
    shape = [onnx.helper.make_tensor_value_info(name, 1, ["n", width]) for name in ("x0", "x40")]
    graph = onnx.helper.make_graph(nodes, "long", shape[:1], shape[1:], [weight])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), tmp_path / "long.onnx")
    session = openvino_session.OpenVinoSession(tmp_path / "long.onnx", threads=1)
    feeds, stop = {"x0": np.ones((1024, width), np.float32)}, Stop()
    session.run({"x0": feeds["x0"][:1]})
    timer = threading.Timer(0.05, stop.set)
    started = time.perf_counter()
    timer.start()
    with pytest.raises(CheckError, match="failed to run"):
        session.run(feeds, stop)
    stopped = time.perf_counter() - started
    started = time.perf_counter()
    session.run(feeds)
    assert stopped < 0.7 * (time.perf_counter() - started)


def test_a_missing_input_is_named(openvino_encoder):
    with pytest.raises(UsageError, match="needs the inputs"):
        openvino_encoder.session.run({"input_ids": np.ones((1, 2), np.int64)})


def test_a_file_that_is_no_graph_is_refused_in_one_line(own_bundle):
    (own_bundle / MODEL_FILES["fp32"]).write_bytes(b"not an onnx file" * 50)
    with pytest.raises(TamperedError):
        Encoder(own_bundle, engine="openvino")
    with pytest.raises(BundleError, match=r"model\.onnx cannot be loaded by OpenVINO 20") as refused:
        Encoder(own_bundle, engine="openvino", verify=False)
    assert "\n" not in str(refused.value)


def test_an_operator_that_only_onnxruntime_has_is_named(tmp_path):
    node = onnx.helper.make_node("QAttention", ["x"], ["y"], domain="com.microsoft", num_heads=1)
    shape = [onnx.helper.make_tensor_value_info(name, 1, ["n", 4]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "other", shape[:1], shape[1:])
    ids = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=ids), tmp_path / "other.onnx")
    with pytest.raises(BundleError, match=r"cannot be loaded by OpenVINO .*QAttention") as refused:
        openvino_session.OpenVinoSession(tmp_path / "other.onnx")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"nothing\.onnx does not exist"):
        openvino_session.OpenVinoSession(tmp_path / "nothing.onnx")


def test_an_engine_that_does_not_exist_is_told_with_those_that_do(bundle_dir):
    with pytest.raises(UsageError, match="engine is 'tensorrt'; expected onnxruntime or openvino"):
        Encoder(bundle_dir, engine="tensorrt")


def test_an_engine_that_is_not_installed_is_told_with_its_extra(bundle_dir, monkeypatch):
    monkeypatch.delitem(sys.modules, "potstill.serve.openvino_session")
    real = extras.import_module

    def without(name):
        if name == "openvino":
            raise ModuleNotFoundError("No module named 'openvino'", name="openvino")
        return real(name)

    monkeypatch.setattr(extras, "import_module", without)
    with pytest.raises(MissingExtraError, match=r"openvino is not installed .*pip install 'potstill\[openvino\]'"):
        Encoder(bundle_dir, engine="openvino")


def test_onnxruntime_alone_loads_no_openvino_and_openvino_reports_to_nobody(bundle_dir):
    code = (
        "import sys, pathlib\n"
        "from potstill.serve import Encoder\n"
        f"folder = pathlib.Path({str(bundle_dir)!r})\n"
        "Encoder(folder, threads=1).predict(['good'])\n"
        "assert not [name for name in sys.modules if name.startswith('openvino')]\n"
        "Encoder(folder, engine='openvino', threads=1).predict(['good'])\n"
        "import openvino.tools.ovc.telemetry_utils as told\n"
        "assert told.tm.__name__ == 'openvino.tools.ovc.telemetry_stub', told.tm\n"
        "assert not {'torch', 'transformers', 'onnx', 'datasets'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_both_sessions_ignore_what_the_graph_does_not_declare(bundle_dir, encoder, openvino_encoder):
    feeds = encoder.tokenizer.encode(["good"]) | {"another": np.zeros(1)}
    ours, theirs = openvino_encoder.session.run(feeds), OnnxSession(bundle_dir / MODEL_FILES["fp32"]).run(feeds)
    np.testing.assert_allclose(ours["logits"], theirs["logits"], atol=1e-5)


DROPPED = """
import signal, subprocess, sys, threading
from potstill.serve import Encoder

kept = [Encoder(sys.argv[1], engine="openvino", threads=1)]
thread = threading.Thread(target=kept.clear)
thread.start()
thread.join()
signal.signal(signal.SIGCHLD, lambda *_: None)
subprocess.run(["true"])
"""


def test_a_signal_does_no_harm_after_another_thread_dropped_the_model(bundle_dir):
    done = subprocess.run([sys.executable, "-c", DROPPED, bundle_dir], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
