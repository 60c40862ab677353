"""Bundles: what stands in them, that others can open them, and that a failed check publishes nothing."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

import potstill.export as exporting
from potstill.bundle import read_bundle
from potstill.checkpoint import load_checkpoint
from potstill.errors import CheckpointError, OutputError, ParityError
from potstill.export import export_bundle
from potstill.export.quantise import count_quantised, int8_recipe
from potstill.export.smooth import smooth
from potstill.sections import ExportConfig
from potstill.serve import Encoder, OnnxSession
from potstill.task import TEXT_CLASSIFICATION

TEXTS = ["we saw a wave", "snow on the peak and a trail", "sail", "the old things", "gull " * 80]


def test_a_bundle_holds_the_hub_layout_and_a_true_manifest(tiny_bundle, tiny_teacher):
    files = sorted(path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file())
    assert files == [
        "config.json",
        "onnx/model.onnx",
        "onnx/model_int8.onnx",
        "potstill.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    manifest = read_bundle(tiny_bundle).manifest
    model = load_checkpoint(str(tiny_teacher), TEXT_CLASSIFICATION).model
    assert manifest.labels == ["mountain", "sea"]
    assert manifest.max_length == 64
    assert manifest.inputs == ["input_ids", "attention_mask", "token_type_ids"]
    assert manifest.outputs == ["logits"]
    assert manifest.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert manifest.architecture["layers"] == 4
    assert manifest.models["fp32"].fusion["attention_found"] == 4
    assert manifest.models["fp32"].batch_invariant
    assert not manifest.models["int8"].batch_invariant
    assert manifest.models["fp32"].parity["max_abs_difference"] < 1e-4
    assert manifest.made["packages"]["onnxruntime"] == onnxruntime.__version__


def test_both_files_pass_the_onnx_checker(tiny_bundle):
    for file in (tiny_bundle / "onnx").iterdir():
        onnx.checker.check_model(onnx.load(file))


def test_the_bundle_opens_in_plain_onnxruntime_and_tokenizers(tiny_bundle, tiny_teacher):
    session = onnxruntime.InferenceSession(tiny_bundle / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    checkpoint = load_checkpoint(str(tiny_teacher), TEXT_CLASSIFICATION)
    for text in TEXTS:
        encoded = tokenizer.encode(text)
        feeds = {
            "input_ids": np.array([encoded.ids]),
            "attention_mask": np.array([encoded.attention_mask]),
            "token_type_ids": np.array([encoded.type_ids]),
        }
        with torch.inference_mode():
            reference = checkpoint.model(**checkpoint.tokenizer(text, truncation=True, return_tensors="pt")).logits
        np.testing.assert_allclose(session.run(["logits"], feeds)[0], reference.numpy(), atol=1e-4)


def test_int8_names_the_same_labels_and_is_really_integer(tiny_bundle):
    counts = count_quantised(tiny_bundle / "onnx" / "model_int8.onnx")
    assert counts["integer_matmuls"] == 4 * 6 + 2
    assert counts["float_matmuls"] == 0
    assert read_bundle(tiny_bundle).manifest.models["int8"].quantisation == int8_recipe() | counts
    fp32, int8 = (Encoder(tiny_bundle, precision=precision) for precision in ("fp32", "int8"))
    assert np.array_equal(fp32.logits(TEXTS).argmax(-1), int8.logits(TEXTS).argmax(-1))


@pytest.fixture(scope="module")
def outlier_teacher(tiny_teacher, tmp_path_factory):
    """The tiny teacher with one attention channel 100 times as large, taken back behind: the same answers."""
    checkpoint = load_checkpoint(str(tiny_teacher), TEXT_CLASSIFICATION)
    with torch.no_grad():
        for layer in checkpoint.model.bert.encoder.layer:
            layer.attention.self.value.weight[0] *= 100
            layer.attention.self.value.bias[0] *= 100
            layer.attention.output.dense.weight[:, 0] /= 100
    folder = tmp_path_factory.mktemp("outlier") / "teacher"
    checkpoint.model.save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    return folder


def test_texts_for_calibration_keep_outliers_from_spoiling_int8(outlier_teacher, tmp_path):
    from tests import tiny

    texts = [text for text, _ in tiny.sentences(200, seed=9)]
    export_bundle(str(outlier_teacher), tmp_path / "blind")
    manifest = export_bundle(str(outlier_teacher), tmp_path / "seen", calibration=texts[:64])
    assert manifest.models["int8"].quantisation["smoothing"] == {"alpha": 0.8, "texts": 64}
    reference = Encoder(tmp_path / "seen").logits(texts)
    blind, seen = (
        np.abs(Encoder(tmp_path / name, precision="int8").logits(texts) - reference).mean()
        for name in ("blind", "seen")
    )
    assert seen < 0.5 * blind


def test_smoothing_changes_no_answer(tiny_bundle, tmp_path):
    model = onnx.load(tiny_bundle / "onnx" / "model.onnx")
    encoder = Encoder(tiny_bundle)
    feeds = encoder.tokenizer.encode(TEXTS)
    before = encoder.session.run(feeds)["logits"]
    assert smooth(model, [feeds]) == 4 * 4
    onnx.save(model, tmp_path / "smooth.onnx")
    after = OnnxSession(tmp_path / "smooth.onnx").run(feeds)["logits"]
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_embeddings_have_a_scale_per_row(tiny_bundle):
    fp32, int8 = (onnx.load(tiny_bundle / "onnx" / name).graph for name in ("model.onnx", "model_int8.onnx"))
    tables = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in (*fp32.initializer, *int8.initializer)}
    name = next(name.removesuffix("_int8") for name in tables if name.endswith("word_embeddings.weight_int8"))
    assert tables[f"{name}_int8"].dtype == np.int8
    assert tables[f"{name}_scale"].shape == (len(tables[name]), 1)
    error = np.abs(tables[f"{name}_int8"] * tables[f"{name}_scale"] - tables[name])
    assert (error <= np.abs(tables[name]).max(axis=1, keepdims=True) / 254 * 1.001).all()
    assert name not in {tensor.name for tensor in int8.initializer}


def test_without_vnni_weights_have_seven_bits(monkeypatch):
    from potstill import machine

    monkeypatch.setattr(machine, "cpu_features", lambda: frozenset({"avx2"}))
    assert int8_recipe()["reduce_range"] is True
    monkeypatch.setattr(machine, "cpu_features", lambda: frozenset({"avx2", "avx512_vnni"}))
    assert int8_recipe()["reduce_range"] is False


def test_only_the_precisions_asked_for_are_published(tiny_teacher, tmp_path):
    manifest = export_bundle(str(tiny_teacher), tmp_path / "bundle", config=ExportConfig(precisions=["int8"]))
    assert list(manifest.models) == ["int8"]
    assert [path.name for path in (tmp_path / "bundle" / "onnx").iterdir()] == ["model_int8.onnx"]


def test_a_mismatch_publishes_nothing(tiny_teacher, tmp_path, monkeypatch):
    original = exporting.build_graph

    def broken(model, **kwargs):
        graph = original(model, **kwargs)
        tensor = max(graph.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
        scaled = onnx.numpy_helper.to_array(tensor) * np.float32(1.1)
        tensor.CopyFrom(onnx.numpy_helper.from_array(scaled, tensor.name))
        return graph

    monkeypatch.setattr(exporting, "build_graph", broken)
    with pytest.raises(ParityError, match="nothing was published"):
        export_bundle(str(tiny_teacher), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused(tiny_teacher, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        export_bundle("./nowhere", tmp_path / "bundle")
    with pytest.raises(CheckpointError, match="64 tokens"):
        export_bundle(str(tiny_teacher), tmp_path / "bundle", max_length=65)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        export_bundle(str(tiny_teacher), tmp_path / "bundle")


def test_the_manifest_says_how_it_was_made(tiny_bundle):
    made = json.loads((tiny_bundle / "potstill.json").read_text())["made"]
    assert made["config"]["opset"] == 20
    assert {"created", "command", "cpu", "packages"} <= set(made)
