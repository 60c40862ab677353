"""Sessions and encoders: the same text gets the same answer, whoever stands beside it."""

import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from potstill import machine
from potstill.bundle import MODEL_FILES
from potstill.errors import BundleError, CheckError, OtherCpuWarning, TamperedError, UsageError
from potstill.machine import available_cores
from potstill.metrics import softmax
from potstill.serve import Encoder, OnnxSession
from potstill.serve.session import Stop
from potstill.serve.tasks.text_classification import rank

TEXTS = [
    "a good film",
    "it was not very good , it was bad bad bad ! ? . a very very bad book",
    "",
    ("the film was good", "the book was bad"),
    "good",
    "x" * 500,
    ("a", "b"),
    "very " * 60,
]
# Batches of another size go through other matrix kernels: 1.9e-6 was measured here, on logits of up to 8.3.
PADDING_TOLERANCE = 1e-5
TASKS = Path("/proc/self/task")


def spoil(folder, name, change):
    """Rewrite one weight of the fp32 graph."""
    file = folder / MODEL_FILES["fp32"]
    model = onnx.load(str(file))
    for weight in model.graph.initializer:
        if weight.name == name:
            weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)), name))
    onnx.save(model, str(file))


def test_a_folder_may_be_named_by_a_string(encoder, bundle_dir):
    assert Encoder(str(bundle_dir)).predict("good") == encoder.predict("good")


def test_logits_depend_on_ids_types_and_mask(encoder):
    logits = encoder.logits(["good", "bad", ("good", "bad"), ("bad", "good")])
    assert logits.shape == (4, 3)
    assert logits.dtype == np.float32
    assert len(np.unique(logits.round(4), axis=0)) == 4


def test_logits_are_those_of_the_formula_in_numpy(encoder, bundle_dir):
    model = onnx.load(str(bundle_dir / MODEL_FILES["fp32"]))
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for text in TEXTS:
        row = encoder.tokenizer.rows([text])[0]
        mean = (weights["words"][row["input_ids"]] + weights["types"][row["token_type_ids"]]).mean(axis=0)
        want = np.tanh(mean @ weights["mix"]) @ weights["classify"]
        np.testing.assert_allclose(encoder.logits([text])[0], want, atol=1e-5)


def test_padding_does_not_change_answers(encoder):
    alone = np.concatenate([encoder.logits([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.logits(TEXTS, batch_size=len(TEXTS)), alone, atol=PADDING_TOLERANCE)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_the_order_of_the_texts_is_restored(encoder, batch_size):
    shuffled = np.random.default_rng(1).permutation(len(TEXTS) * 5)
    texts = [(TEXTS * 5)[index] for index in shuffled]
    alone = np.concatenate([encoder.logits([text]) for text in texts])
    np.testing.assert_allclose(encoder.logits(texts, batch_size=batch_size), alone, atol=PADDING_TOLERANCE)


def test_batches_hold_texts_of_similar_length_and_the_size_asked_for(encoder, monkeypatch):
    shapes = []
    run = encoder.session.run
    monkeypatch.setattr(encoder.session, "run", lambda feeds: shapes.append(feeds["input_ids"].shape) or run(feeds))
    encoder.logits(["good " * count for count in (1, 9, 2, 8, 3)], batch_size=2)
    assert shapes == [(2, 11), (2, 5), (1, 3)]


def test_an_int8_answer_alone_equals_the_one_in_a_list_bit_for_bit(int8_encoder):
    together = int8_encoder.logits(TEXTS, batch_size=32)
    alone = np.concatenate([int8_encoder.logits([text]) for text in TEXTS])
    np.testing.assert_array_equal(together, alone)


def test_an_int8_answer_would_depend_on_its_batch_mates_in_one_run(int8_encoder):
    tokenizer, session = int8_encoder.tokenizer, int8_encoder.session
    together = session.run(tokenizer.encode(TEXTS))["logits"]
    assert np.abs(together - int8_encoder.logits(TEXTS)).max() > 1e-3


def test_int8_and_fp32_are_different_files_that_nearly_agree(encoder, int8_encoder):
    difference = np.abs(encoder.logits(TEXTS) - int8_encoder.logits(TEXTS)).max()
    assert 0 < difference < 1.0


def test_no_texts_give_no_rows(encoder):
    assert encoder.logits([]).shape == (0, 3)
    assert encoder.predict([]) == []


def test_predictions_are_sorted_probabilities(encoder):
    logits = encoder.logits(["a good film"])[0]
    answer = encoder.predict(["a good film"])[0]
    want = softmax(logits)
    assert [score["label"] for score in answer] == [encoder.manifest.labels[index] for index in np.argsort(-want)]
    assert [score["score"] for score in answer] == pytest.approx(sorted(want.tolist(), reverse=True), rel=1e-12)
    assert encoder.predict(["a good film"], top_k=1) == [answer[:1]]


def test_ranks_are_those_computed_by_hand():
    answer = rank([0.0, math.log(2.0), 0.0], ["a", "b", "c"])
    assert [score["label"] for score in answer] == ["b", "a", "c"]
    assert [score["score"] for score in answer] == pytest.approx([0.5, 0.25, 0.25])


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("logits", [[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [3e38, 0.0, -3e38]])
def test_great_logits_do_not_overflow(function, logits):
    scores = {entry["label"]: entry["score"] for entry in rank(logits, ["a", "b", "c"], function=function)}
    with np.errstate(over="ignore"):
        want = {"softmax": softmax(np.array(logits)), "sigmoid": 1 / (1 + np.exp(-np.array(logits))), "none": logits}
    assert [scores[label] for label in "abc"] == pytest.approx(list(want[function]), abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_no_number_is_an_error(bad):
    with pytest.raises(CheckError, match="NaN or infinity"):
        rank([1.0, bad], ["a", "b"])


@pytest.mark.parametrize("top_k", [0, -1, 1001, True, 1.5])
def test_a_top_k_that_cannot_be_is_refused(encoder, top_k):
    with pytest.raises(UsageError, match=r"parameters\.top_k"):
        encoder.predict(["good"], top_k=top_k)


def test_more_labels_than_there_are_means_all(encoder):
    assert encoder.predict("good", top_k=4) == encoder.predict("good")


def test_one_input_gives_one_answer_and_a_list_gives_a_list(encoder):
    answer = encoder.predict("good")
    assert encoder.predict(["good"]) == [answer]
    pair = encoder.predict(("good", "bad"))
    assert encoder.predict([("good", "bad")]) == [pair]
    assert encoder.predict({"text": "good", "text_pair": "bad"}) == pair


def test_logits_that_are_not_finite_are_a_check_error(own_bundle, resealed):
    spoil(own_bundle, "classify", lambda weight: np.full_like(weight, np.nan))
    broken = Encoder(resealed(), threads=1)
    with pytest.raises(CheckError, match="NaN or infinite logits for 2 of 2 texts"):
        broken.logits(["good", "bad"])


def test_an_id_beyond_the_vocabulary_is_a_check_error(own_bundle, resealed, capfd):
    spoil(own_bundle, "words", lambda weight: weight[:5])
    with pytest.raises(CheckError, match="failed to run"):
        Encoder(resealed(), threads=1).logits(["good"])
    capfd.readouterr()


def test_an_answer_with_another_number_of_labels_is_a_check_error(own_bundle, monkeypatch):
    """Seen when it comes where the graph leaves the number open; else the bundle is refused when it is loaded."""
    encoder = Encoder(own_bundle, threads=1)
    monkeypatch.setattr(encoder.session, "run", lambda feeds: {"logits": np.zeros((1, 2))})
    with pytest.raises(CheckError, match=r"answers in shape \(1, 2\), not \(1, 3\)"):
        encoder.logits(["good"])


def test_a_graph_with_other_inputs_than_its_manifest_is_a_bundle_error(resealed):
    with pytest.raises(BundleError, match="token_type_ids"):
        Encoder(resealed(inputs=["input_ids", "attention_mask"]))


def test_a_changed_byte_is_found_before_the_file_is_loaded(own_bundle):
    file = own_bundle / MODEL_FILES["fp32"]
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(TamperedError, match=r"model\.onnx is not the file that was exported"):
        Encoder(own_bundle)


@pytest.mark.parametrize(
    ("content", "fault"), [(b"", "is cut short"), (b"not an onnx file" * 50, "is not an ONNX file")]
)
def test_a_file_that_is_no_graph_is_refused_before_it_is_loaded(own_bundle, resealed, content, fault):
    (own_bundle / MODEL_FILES["fp32"]).write_bytes(content)
    with pytest.raises(TamperedError, match=rf"model\.onnx {fault}"):
        Encoder(resealed())
    with pytest.raises(BundleError, match=r"model\.onnx cannot be loaded by onnxruntime"):
        Encoder(own_bundle, verify=False)


@pytest.mark.parametrize(
    ("operator", "domain", "opset"),
    [
        ("NibbleGather", "com.microsoft", 20),
        ("Gather", "", 99),
        # As GatherBlockQuantized with a table of bytes in 1.21: the operator is known, for other types.
        ("And", "", 20),
    ],
)
def test_what_this_onnxruntime_does_not_know_asks_for_a_newer_one(operator, domain, opset, own_bundle, resealed):
    graph = onnx.load(own_bundle / MODEL_FILES["fp32"])
    lookup = next(node for node in graph.graph.node if node.op_type == "Gather")
    lookup.op_type, lookup.domain = operator, domain
    next(entry for entry in graph.opset_import if not entry.domain).version = opset
    onnx.save(graph, own_bundle / MODEL_FILES["fp32"])
    with pytest.raises(BundleError, match=r"cannot be loaded by onnxruntime .*; install a newer onnxruntime") as caught:
        Encoder(resealed())
    assert len(str(caught.value).splitlines()) == 1


def test_a_precision_that_is_not_there_names_those_that_are(bundle_dir):
    with pytest.raises(BundleError, match="no fp16 model; it has fp32, int8"):
        Encoder(bundle_dir, precision="fp16")


def test_a_folder_that_is_not_there_is_a_bundle_error(tmp_path):
    with pytest.raises(BundleError, match="is not a folder"):
        Encoder(tmp_path / "nowhere")


def test_threads_are_the_cores_of_this_process_unless_named(bundle_dir, encoder):
    assert OnnxSession(bundle_dir / MODEL_FILES["fp32"]).threads == available_cores()
    assert encoder.session.threads == 1
    assert encoder.session._session.get_session_options().intra_op_num_threads == 1
    with pytest.raises(UsageError, match="threads is 0"):
        OnnxSession(bundle_dir / MODEL_FILES["fp32"], threads=0)


def test_spinning_and_disabled_optimizers_reach_onnxruntime(bundle_dir, monkeypatch):
    import onnxruntime

    seen = {}
    real = onnxruntime.InferenceSession

    def spy(path, options, **settings):
        seen.update(settings, spinning=options.get_session_config_entry("session.intra_op.allow_spinning"))
        return real(path, options, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    file = bundle_dir / MODEL_FILES["fp32"]
    OnnxSession(file, threads=1, spinning=False, disabled_optimizers=["ConstantFolding"])
    assert seen["spinning"] == "0"
    assert seen["disabled_optimizers"] == ["ConstantFolding"]


def test_a_session_takes_extra_feeds_and_names_missing_ones(encoder):
    feeds = encoder.tokenizer.encode(["good"])
    answer = encoder.session.run(feeds | {"extra": feeds["input_ids"]})
    assert list(answer) == ["logits"]
    with pytest.raises(UsageError, match="needs the inputs token_type_ids"):
        encoder.session.run({name: feeds[name] for name in ("input_ids", "attention_mask")})


def test_a_stopped_run_raises_and_the_next_one_does_not(encoder, capfd):
    feeds = encoder.tokenizer.encode(["a good film"])
    expected = encoder.session.run(feeds)
    stop = Stop()
    assert not stop.is_set
    assert (encoder.session.run(feeds, stop)["logits"] == expected["logits"]).all()
    stop.set()
    assert stop.is_set
    with pytest.raises(CheckError, match="failed to run"):
        encoder.session.run(feeds, stop)
    assert (encoder.session.run(feeds, Stop())["logits"] == expected["logits"]).all()
    assert capfd.readouterr() == ("", "")


def test_serving_loads_nothing_heavy_and_prints_nothing(bundle_dir):
    code = (
        "import sys, pathlib, potstill.serve as serve\n"
        "banned = {'torch','transformers','onnx','datasets','optimum','starlette','uvicorn','typer','rich','scipy'}\n"
        "assert not banned & set(sys.modules), banned & set(sys.modules)\n"
        f"serve.Encoder(pathlib.Path({str(bundle_dir)!r}), threads=1).predict(['good'])\n"
        "assert not banned & set(sys.modules), banned & set(sys.modules)\n"
        "import potstill.serve.server\n"
        "late = {'torch','transformers','onnx','datasets','optimum'} & set(sys.modules)\n"
        "assert not late, late\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def made_for(features, *, saturation=None, **quantisation):
    record = {
        "file": MODEL_FILES["int8"],
        "quantisation": {"method": "dynamic"} | quantisation,
        "batch_invariant": False,
        "saturation": saturation,
    }
    return {"fp32": {"file": MODEL_FILES["fp32"]}, "int8": record | {"cpu_features": features}}


@pytest.mark.parametrize(
    ("made", "here", "bits", "warning"),
    [
        (["avx512_vnni"], {"avx2"}, 8, "overflow there, so the answers are wrong"),
        (["avx512_vnni"], {"avx2"}, 7, "it will be slow"),
        (["avx2"], {"avx_vnni"}, 7, "7-bit weights"),
        (["avx512_vnni"], {"avx_vnni"}, 8, None),
        (["avx2"], {"avx2", "avx512f"}, 7, None),
        ([], {"avx2"}, 8, None),
    ],
)
def test_int8_made_for_another_kind_of_cpu_warns(resealed, monkeypatch, made, here, bits, warning):
    folder = resealed(models=made_for(made, weight_bits=bits))
    monkeypatch.setattr(machine, "cpu_features", lambda: frozenset(here))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Encoder(folder, precision="int8", threads=1)
        Encoder(folder, precision="fp32", threads=1)
    assert [warning in str(entry.message) for entry in caught] == ([True] if warning else [])
    assert all(entry.category is OtherCpuWarning for entry in caught)


@pytest.mark.parametrize(("breaks", "bits", "warning"), [(False, 8, "it will be slow"), (True, 7, "answers are wrong")])
def test_what_the_export_found_of_overflows_counts_more_than_the_bits(resealed, monkeypatch, breaks, bits, warning):
    made = made_for(["avx512_vnni"], weight_bits=bits, saturation={"breaks_without_vnni": breaks})
    folder = resealed(models=made)
    monkeypatch.setattr(machine, "cpu_features", lambda: frozenset({"avx2"}))
    with pytest.warns(OtherCpuWarning, match=warning):
        Encoder(folder, precision="int8", threads=1)


def test_outputs_are_those_of_each_text_alone(encoder):
    answers = encoder.outputs(TEXTS, batch_size=3)
    np.testing.assert_allclose([answer["logits"] for answer in answers], encoder.logits(TEXTS), atol=PADDING_TOLERANCE)
    with pytest.raises(UsageError, match="batch_size is 0"):
        encoder.outputs(TEXTS, batch_size=0)


@pytest.mark.parametrize("ask", ["predict", "outputs", "logits"])
def test_a_tokenizer_that_panics_is_an_error(panicking_dir, ask):
    """Row C7 of the faults found: pyo3's PanicException is no Exception, so it ended the process with a traceback."""
    encoder = Encoder(panicking_dir, threads=1)
    with pytest.raises(CheckError, match="tokenizers library failed on a text") as caught:
        getattr(encoder, ask)(["good", "a" * 40 + "!"])
    assert "aaa" not in str(caught.value)
    assert len(encoder.predict(["good", "bad"])) == 2
