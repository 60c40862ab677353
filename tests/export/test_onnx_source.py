"""ONNX models that others have exported: found in each layout, understood, or refused by name."""

import json
import os
import shutil

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from tokenizers import Tokenizer

from potstill.bundle import read_bundle
from potstill.config import ExportConfig
from potstill.errors import BundleError, CheckpointError, TamperedError, UsageError
from potstill.export import export_bundle
from potstill.export.onnx_files import check_model
from potstill.export.onnx_source import find_onnx_source
from potstill.serve import Encoder
from tests import onnx_graphs as graphs

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
AXES = ("batch_size", "sequence_length")
FP32 = graphs.classifier()
INT8 = graphs.classifier(graphs.dynamic_product)


def write_config(folder, architecture="BertForSequenceClassification", **changes):
    config = {"model_type": "bert", "architectures": [architecture], "id2label": {"0": "bad", "1": "good"}} | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def write_model(file, graph=FP32):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(graph.SerializeToString())
    return file


def graph_of(outputs, *, inputs=("input_ids", "attention_mask"), axes=AXES, kind=INT64):
    """Make a graph that gives each of `outputs` (name -> axes behind the batch) from the ids."""
    info, node = helper.make_tensor_value_info, helper.make_node
    nodes = [node("Gather", ["words", "input_ids"], ["x"]), node("ReduceSum", ["x", "tokens"], ["total"], keepdims=0)]
    for name, dims in outputs.items():
        nodes.append(node("Identity", ["x" if len(dims) == 2 else "total"], [name]))
    return graphs.model(
        nodes,
        {"words": np.ones((50, 2), np.float32), "tokens": np.array([1])},
        inputs=[info(name, kind, axes) for name in inputs],
        outputs=[info(name, FLOAT, [axes[0], *dims]) for name, dims in outputs.items()],
    )


def refusal(source, kind=CheckpointError, **how):
    with pytest.raises(kind) as caught:
        find_onnx_source(source, **how)
    return str(caught.value)


@pytest.fixture
def flat(tmp_path):
    """As `optimum-cli export onnx` writes it."""
    folder = write_config(tmp_path / "flat")
    write_model(folder / "model.onnx")
    write_model(folder / "model_quantized.onnx", INT8)
    (folder / "ort_config.json").write_text("{}")
    return folder


@pytest.fixture
def hub(tmp_path):
    """As a repository for transformers.js looks."""
    folder = write_config(tmp_path / "hub")
    for name, graph in {"model": FP32, "model_quantized": INT8, "model_fp16": graphs.classifier(dtype="f2")}.items():
        write_model(folder / "onnx" / f"{name}.onnx", graph)
    return folder


def test_a_flat_folder_of_optimum(flat):
    found = find_onnx_source(flat)
    assert (found.file, found.folder) == (flat / "model.onnx", flat)
    assert found.task == "text-classification"
    assert found.inputs == ("input_ids", "attention_mask")
    assert found.outputs == ("logits",)
    assert found.labels == ("bad", "good")
    assert found.parameters == sum(weight.size for weight in graphs.weights().values())
    assert found.config.model_type == "bert"


def test_a_repository_for_transformers_js(hub):
    found = find_onnx_source(str(hub))
    assert (found.file, found.folder) == (hub / "onnx" / "model.onnx", hub)
    assert find_onnx_source(hub / "onnx") == found


def test_a_file_with_its_files_beside_it_or_one_level_up(flat, hub, monkeypatch):
    assert find_onnx_source(flat / "model.onnx") == find_onnx_source(flat)
    assert find_onnx_source(hub / "onnx" / "model.onnx") == find_onnx_source(hub)
    monkeypatch.chdir(hub / "onnx")
    assert find_onnx_source("model.onnx").folder == hub


def test_a_file_by_another_name(tmp_path):
    folder = write_config(tmp_path / "own")
    write_model(folder / "classifier.onnx")
    assert find_onnx_source(folder).file == folder / "classifier.onnx"
    write_model(folder / "onnx" / "other.onnx")
    assert refusal(folder) == (
        f"{folder} has classifier.onnx, onnx/other.onnx, and it is not clear which is meant; name the fp32 file itself"
    )
    assert find_onnx_source(folder / "classifier.onnx").file == folder / "classifier.onnx"


def test_two_files_of_the_usual_name_are_refused(flat):
    write_model(flat / "onnx" / "model.onnx")
    assert f"{flat} has model.onnx, onnx/model.onnx, and it is not clear" in refusal(flat)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_a_folder_with_the_checkpoints_own_weights_is_a_checkpoint(hub, weights):
    (hub / weights).write_bytes(b"weights")
    assert find_onnx_source(hub) is None
    assert find_onnx_source(hub / "onnx" / "model.onnx").folder == hub


def test_what_has_no_onnx_file_is_for_somebody_else(tmp_path):
    assert find_onnx_source(write_config(tmp_path / "checkpoint")) is None
    assert find_onnx_source("sentence-transformers/all-MiniLM-L6-v2") is None
    assert find_onnx_source(tmp_path / "nothing") is None
    (tmp_path / "model.bin").write_bytes(b"x")
    assert find_onnx_source(tmp_path / "model.bin") is None


def test_an_onnx_file_that_is_not_there_is_refused(tmp_path):
    assert f"there is no file {tmp_path / 'model.onnx'}" in refusal(tmp_path / "model.onnx")


def test_missing_files_are_named(flat):
    (flat / "tokenizer.json").unlink()
    assert refusal(flat) == f"{flat} has no tokenizer.json; save the checkpoint's fast tokenizer there"
    (flat / "config.json").unlink()
    assert f"there is no config.json beside {flat / 'model.onnx'} nor one level up" in refusal(flat)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "no-such-family"}', "{}"])
def test_a_configuration_that_transformers_does_not_read_is_refused(flat, content):
    (flat / "config.json").write_text(content)
    assert f"{flat / 'config.json'} cannot be read by transformers" in refusal(flat)


def test_a_configuration_never_runs_code(flat):
    write_config(flat, auto_map={"AutoConfig": "evil.Config"}, model_type="evil")
    (flat / "evil.py").write_text("raise SystemExit('ran')")
    assert "cannot be read by transformers" in refusal(flat)


def test_a_file_of_a_lower_precision_is_what_it_is_and_its_weights_are_counted(hub):
    total = sum(weight.size for weight in graphs.weights().values())
    for name, precision in (("model", "fp32"), ("model_quantized", "int8"), ("model_fp16", "fp16")):
        found = find_onnx_source(hub / "onnx" / f"{name}.onnx")
        assert (found.precision, found.weight_only, found.parameters) == (precision, False, total)
    write_model(hub / "onnx" / "other.onnx", graphs.classifier(graphs.cast_product))
    found = find_onnx_source(hub / "onnx" / "other.onnx")
    assert (found.precision, found.weight_only, found.parameters) == ("int8", True, total)
    write_model(hub / "onnx" / "other.onnx", graphs.classifier(graphs.static_product))
    assert find_onnx_source(hub / "onnx" / "other.onnx").precision == "int8-static"


def test_a_folder_with_nothing_but_a_quantised_file_is_that(hub):
    for name in ("model", "model_fp16"):
        (hub / "onnx" / f"{name}.onnx").unlink()
    assert find_onnx_source(hub).precision == "int8"


def four_bits(number, x, weight, y):
    (inner, columns), n = weight.shape, number
    arrays = {f"w{n}": np.zeros((columns, 1, inner // 2), np.uint8), f"ws{n}": np.ones((columns, 1), np.float32)}
    settings = {"K": inner, "N": columns, "bits": 4, "block_size": 16, "domain": "com.microsoft"}
    return [helper.make_node("MatMulNBits", [x, f"w{n}", f"ws{n}"], [y], **settings)], arrays


def test_a_precision_that_no_bundle_has_is_refused(hub):
    write_model(hub / "onnx" / "other.onnx", graphs.classifier(four_bits))
    assert "other.onnx has weights of 4 bits (MatMulNBits); a bundle holds fp32, fp16 and int8" in refusal(
        hub / "onnx" / "other.onnx"
    )
    write_model(hub / "onnx" / "other.onnx", graphs.classifier(dtype="f8"))
    message = refusal(hub / "onnx" / "other.onnx")
    assert "other.onnx is not fp32: 0 of its 1600 float weights have 32 bits" in message
    assert message.endswith("name the fp32 file, the others are made from it")


def four_bit_words(kind):
    """An int8 file whose table of words has 4 bits, in bytes with two numbers each or in ONNX's own type."""
    graph = graphs.classifier(graphs.dynamic_product)
    words = next(tensor for tensor in graph.graph.initializer if tensor.name == "words")
    rows, columns = words.dims
    wide = columns if kind == TensorProto.UINT4 else columns // 2
    words.CopyFrom(TensorProto(name="words", data_type=kind, dims=[rows, wide], raw_data=bytes(rows * columns // 2)))
    scales = np.ones((rows, 1), np.float32)
    graph.graph.initializer.append(numpy_helper.from_array(scales, "scales"))
    settings = {"block_size": columns, "gather_axis": 0, "quantize_axis": 1, "domain": "com.microsoft"}
    inputs = ["words", "input_ids", "scales"]
    graph.graph.node[0].CopyFrom(helper.make_node("GatherBlockQuantized", inputs, ["hidden0"], **settings))
    return graph


def test_a_table_of_words_may_have_four_bits_and_counts_in_full(hub):
    file = write_model(hub / "onnx" / "other.onnx", four_bit_words(TensorProto.UINT8))
    found = find_onnx_source(file)
    assert (found.precision, found.weight_only) == ("int8", False)
    assert found.parameters == sum(weight.size for weight in graphs.weights().values())
    check_model(file)
    write_model(file, four_bit_words(TensorProto.UINT4))
    assert "other.onnx has weights of uint4" in refusal(file)


@pytest.mark.parametrize(
    ("architecture", "outputs", "task"),
    [
        ("BertForTokenClassification", {"logits": [AXES[1], 2]}, "token-classification"),
        ("RobertaForQuestionAnswering", {"start_logits": [2], "end_logits": [2]}, "question-answering"),
        ("DistilBertForMaskedLM", {"logits": [AXES[1], 2]}, "fill-mask"),
        ("BertModel", {"last_hidden_state": [AXES[1], 2]}, "feature-extraction"),
        ("BertModel", {"last_hidden_state": [AXES[1], 2], "pooler_output": [2]}, "feature-extraction"),
        # What sentence-transformers' checkpoints often are: trained as masked LMs, exported for their vectors.
        ("MPNetForMaskedLM", {"last_hidden_state": [AXES[1], 2]}, "feature-extraction"),
        ("BertModel", {"token_embeddings": [AXES[1], 2], "sentence_embedding": [2]}, "feature-extraction"),
        ("XLMRobertaForSequenceClassification", {"logits": [2]}, "text-classification"),
    ],
)
def test_the_task_comes_from_the_architecture_and_the_outputs(tmp_path, architecture, outputs, task):
    write_config(tmp_path, architecture)
    write_model(tmp_path / "model.onnx", graph_of(outputs))
    found = find_onnx_source(tmp_path)
    assert found.task == task
    assert found.outputs == tuple(name for name in outputs if name != "pooler_output")


def test_a_task_that_is_given_goes_before_the_architecture(tmp_path):
    write_config(tmp_path, "BertForPreTraining")
    write_model(tmp_path / "model.onnx", graph_of({"logits": [AXES[1], 2]}))
    assert "is not known from the architecture BertForPreTraining and the outputs logits; name one" in refusal(tmp_path)
    assert find_onnx_source(tmp_path, task="fill-mask").task == "fill-mask"
    with pytest.raises(UsageError, match="task 'summarization' is not known"):
        find_onnx_source(tmp_path, task="summarization")


def test_an_architecture_that_is_not_named_asks_for_the_task(flat):
    write_config(flat, architectures=None)
    assert "is not known from the architecture that is not named and the outputs logits" in refusal(flat)


@pytest.mark.parametrize(
    ("outputs", "how", "fault"),
    [
        ({"scores": [2]}, {}, "gives scores; text-classification needs logits; name another --task"),
        ({"start_logits": [2]}, {"task": "question-answering"}, "needs start_logits, end_logits"),
        ({"token_embeddings": [AXES[1], 2]}, {"task": "feature-extraction"}, "gives token_embeddings; feature-extract"),
        ({"logits": [2], "scores": [2]}, {}, "gives scores, which text-classification does not have"),
        ({"logits": [AXES[1], 2]}, {}, "gives logits with 3 axes; text-classification has 2; name another --task"),
        ({"logits": [2]}, {"task": "token-classification"}, "gives logits with 2 axes; token-classification has 3"),
    ],
)
def test_outputs_that_the_task_does_not_have_are_refused(flat, outputs, how, fault):
    write_model(flat / "model.onnx", graph_of(outputs))
    assert fault in refusal(flat, **how)


def test_labels_of_another_model_are_refused(flat):
    write_config(flat, id2label={"0": "a", "1": "b", "2": "c"})
    assert "answers with 2 labels and config.json names 3" in refusal(flat)


def test_an_input_that_no_tokenizer_makes_is_refused(flat):
    inputs = ("input_ids", "position_ids")
    write_model(flat / "model.onnx", graph_of({"logits": [2]}, inputs=inputs))
    assert "takes position_ids; a tokenizer makes input_ids, attention_mask, token_type_ids" in refusal(flat)


@pytest.mark.parametrize(
    ("axes", "shape"),
    [((1, "n"), "1 x n"), (("n", 128), "n x 128"), ((8, 128), "8 x 128"), (("n", "t", "k"), "n x t x k")],
)
def test_shapes_that_are_not_free_are_refused(flat, axes, shape):
    write_model(flat / "model.onnx", graph_of({"logits": [2]}, axes=axes))
    assert f"takes input_ids in the shape {shape}; expected batch x length, both free" in refusal(flat)


def test_inputs_of_another_type_are_refused(flat):
    write_model(flat / "model.onnx", graph_of({"logits": [2]}, kind=TensorProto.INT32))
    assert "takes input_ids as int32; expected int64" in refusal(flat)


def test_constants_that_old_files_list_as_inputs_are_none(flat):
    graph = graph_of({"logits": [2]})
    graph.graph.input.append(helper.make_tensor_value_info("words", FLOAT, [50, 2]))
    write_model(flat / "model.onnx", graph)
    assert find_onnx_source(flat).inputs == ("input_ids", "attention_mask")


def test_weights_in_a_second_file_are_found_and_those_outside_refused(flat, tmp_path):
    graphs.keep_outside(FP32, flat / "model.onnx", "model.onnx_data", content=flat / "model.onnx_data")
    assert find_onnx_source(flat).parameters == sum(weight.size for weight in graphs.weights().values())
    graphs.keep_outside(FP32, flat / "model.onnx", "../secret", content=tmp_path / "secret")
    assert "'../secret', which leaves its folder" in refusal(flat, TamperedError)


def test_a_truncated_file_and_a_pointer_to_one_are_refused(flat):
    os.truncate(flat / "model.onnx", 500)
    assert "model.onnx is cut short or damaged" in refusal(flat, TamperedError)
    (flat / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "model.onnx is not an ONNX file" in refusal(flat, BundleError)


@pytest.mark.usefixtures("few_texts")
@pytest.mark.parametrize("asked", [["fp32"], ["int8-static", "fp16"]])
def test_a_quantised_file_is_published_as_what_it_is_whatever_is_asked_for(tiny_bundle, tmp_path, asked):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bundle / name, theirs / name)
    quantize_dynamic(  # as another tool does it
        tiny_bundle / "onnx" / "model.onnx",
        theirs / "quantised.onnx",
        op_types_to_quantize=["MatMul", "Gather", "Gemm"],
        extra_options={"DefaultTensorType": FLOAT},
    )
    config = ExportConfig(precisions=asked, judged_texts=20, calibration_texts=1)
    manifest = export_bundle(str(theirs), tmp_path / "bundle", config=config)
    assert list(manifest.models) == ["int8"]
    assert manifest.models["int8"].quantisation.made_by == "another tool"
    assert not manifest.models["int8"].batch_invariant
    assert manifest.parameters == read_bundle(tiny_bundle).manifest.parameters
    assert "quantised.onnx is int8 already, so it is published as that and nothing else" in manifest.source.notes[0]
    plain = onnxruntime.InferenceSession(theirs / "quantised.onnx", providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(theirs / "tokenizer.json"))
    tokenizer.no_padding()
    text = "we saw a wave and old snow"
    encoded = tokenizer.encode(text)
    known = {
        "input_ids": encoded.ids,
        "attention_mask": encoded.attention_mask,
        "token_type_ids": encoded.type_ids,
    }
    feeds = {entry.name: np.array([known[entry.name]]) for entry in plain.get_inputs()}
    logits = plain.run(None, feeds)[0][0]
    expected = np.exp(logits) / np.exp(logits).sum()
    scores = {
        answer["label"]: answer["score"] for answer in Encoder(tmp_path / "bundle", precision="int8").predict(text)
    }
    np.testing.assert_allclose([scores[label] for label in manifest.labels], expected, atol=1e-5)
