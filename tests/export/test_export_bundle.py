"""Bundles: what stands in them, that others can open them, and that a failed check publishes nothing."""

import json
import shutil
from importlib.util import find_spec

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)
from typer.testing import CliRunner

from potstill.bundle import BatchInvariance, Fusion, read_bundle, write_manifest
from potstill.checkpoint import load_checkpoint
from potstill.cli.app import app
from potstill.config import ExportConfig
from potstill.data import Examples
from potstill.errors import CheckpointError, OutputError, ParityError, UsageError
from potstill.export import export_bundle, precisions, quality, quantize
from potstill.export.quantize import int8_recipe
from potstill.export.source import Source
from potstill.serve import Encoder
from potstill.serve.batching import Engine, EngineSettings
from potstill.tasks import TEXT_CLASSIFICATION, get_task
from tests import tiny

TEXTS = ["we saw a wave", "snow on the peak and a trail", "sail", "the old things", "gull " * 80]
pytestmark = pytest.mark.usefixtures("few_texts")

QUICK = {"rounds": 0, "judged_texts": 60, "calibration_texts": 32}


def examples(count=80):
    rows = tiny.sentences(count, seed=11)
    return Examples(
        name="made",
        split="validation",
        texts=[text for text, _ in rows],
        labels=np.array([label for _, label in rows]),
        label_names=tiny.LABELS,
        sha256="0" * 64,
    )


def export(checkpoint, out, **settings):
    """Export without measuring speeds; texts are those of the tiny task."""
    more = {name: settings.pop(name) for name in ("task", "overwrite") if name in settings}
    texts = [text for text, _ in tiny.sentences(32, seed=9)]
    return export_bundle(
        str(checkpoint),
        out,
        config=ExportConfig(**{**QUICK, **settings}),
        calibration=texts,
        # Labels of the texts that there are: of sentences, and of nothing else.
        examples=examples() if more.get("task", "text-classification") == "text-classification" else None,
        **more,
    )


@pytest.fixture(scope="module")
def full_bundle(tiny_teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "bundle"
    engines = ["openvino"] if find_spec("openvino") else []
    precisions = ["fp32", "fp16", "int8", "int8-static"]
    export(tiny_teacher, folder, precisions=precisions, rounds=2, check_engines=engines)
    return folder


def test_a_bundle_holds_the_hub_layout_and_a_true_manifest(full_bundle, tiny_teacher):
    files = sorted(path.relative_to(full_bundle).as_posix() for path in full_bundle.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "config.json",
        "onnx/model.onnx",
        "onnx/model_fp16.onnx",
        "onnx/model_int8.onnx",
        "onnx/model_int8_static.onnx",
        "potstill.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    manifest = read_bundle(full_bundle).manifest
    # What transformers.js loads where its user names nothing: the file to serve, and floats on WebGPU.
    assert json.loads((full_bundle / "config.json").read_text())["transformers.js_config"] == {
        "dtype": "int8",
        "device_config": {"webgpu": {"dtype": "fp32"}},
    }
    assert set(manifest.files) == set(files) - {"README.md", "potstill.json"}
    model = load_checkpoint(str(tiny_teacher), TEXT_CLASSIFICATION).model
    assert manifest.labels == ["mountain", "sea"]
    assert manifest.problem_type == "single_label_classification"
    assert manifest.max_length == 64
    assert manifest.inputs == ["input_ids", "attention_mask", "token_type_ids"]
    assert manifest.outputs == ["logits"]
    assert manifest.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert manifest.architecture.layers == 4
    assert manifest.tokenizer_parity.texts == 2000
    assert manifest.made.packages["onnxruntime"] == onnxruntime.__version__
    assert {name: record.batch_invariant for name, record in manifest.models.items()} == {
        "fp32": True,
        "fp16": True,
        "int8": False,
        "int8-static": True,
    }
    for precision, record in manifest.models.items():
        assert record.fusion.attention_found == 4
        operators = {node.op_type for node in onnx.load(full_bundle / record.file).graph.node}
        assert ("NonZero" in operators) == record.unpadded == (precision in {"fp32", "int8-static"})
    fp32, fp16 = manifest.models["fp32"], manifest.models["fp16"]
    assert fp32.parity.max_abs_difference < 1e-4
    assert fp32.quality is None
    assert (fp16.parity.gpu, fp16.quality.verdict != "FAIL") == ("unchecked", True)


@pytest.mark.parametrize("precision", ["int8", "int8-static"])
def test_int8_says_how_it_was_made_judged_and_measured(precision, full_bundle):
    record = read_bundle(full_bundle).manifest.models[precision]
    method = "static" if precision == "int8-static" else "dynamic"
    assert int8_recipe(method).describe().items() <= record.quantisation.model_dump().items()
    assert record.quantisation.integer_products == 4 * 6 + 1
    assert record.quantisation.fp32_layers == []
    assert record.quality.holds
    assert record.quality.labelled.metric == "accuracy"
    assert record.quality.on == "made (validation)"
    assert record.invariance.texts == 60
    assert record.invariance.invariant == (precision == "int8-static")
    assert record.saturation.products == 25
    if record.speed.verdict == "not measured":  # other processes took the cores of this machine
        assert "the machine" in record.speed.failures
        return
    assert record.speed.verdict in {"faster", "slower", "no faster"}
    assert {cell.num_tokens for cell in record.speed.cells} == {16, 64}  # 128 is more than the model reads


def test_every_file_passes_the_onnx_checker(full_bundle):
    for file in (full_bundle / "onnx").iterdir():
        onnx.checker.check_model(onnx.load(file))


def test_all_precisions_name_the_same_labels(full_bundle):
    answers = {
        name: Encoder(full_bundle, precision=name).logits(TEXTS).argmax(-1)
        for name in read_bundle(full_bundle).manifest.models
    }
    for name, found in answers.items():
        assert np.array_equal(found, answers["fp32"]), name


def test_the_bundle_opens_in_plain_onnxruntime_and_tokenizers(full_bundle, tiny_teacher):
    session = onnxruntime.InferenceSession(full_bundle / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(full_bundle / "tokenizer.json"))
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


TASKS = {
    "token-classification": (BertForTokenClassification, {"num_labels": 2}, ["logits"]),
    "question-answering": (BertForQuestionAnswering, {}, ["start_logits", "end_logits"]),
    "fill-mask": (BertForMaskedLM, {}, ["logits"]),
    "feature-extraction": (BertModel, {}, ["last_hidden_state", "sentence_embedding"]),
}


@pytest.fixture(scope="module")
def random_models(tiny_teacher, tmp_path_factory):
    """A model with random weights of every task, with the tiny teacher's tokenizer."""
    tokenizer, root = AutoTokenizer.from_pretrained(tiny_teacher), tmp_path_factory.mktemp("tasks")
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    for task, (model_class, more, _) in TASKS.items():
        torch.manual_seed(0)
        model_class(BertConfig(**sizes, **more)).save_pretrained(root / task)
        tokenizer.save_pretrained(root / task)
    return root


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_exported_and_answers_like_torch(task, random_models, tmp_path):
    pooling = {"pooling": "mean"} if task == "feature-extraction" else {}
    # Random weights have no favourite among 300 words, so int8 changes many first places.
    manifest = export(random_models / task, tmp_path / "bundle", task=task, max_loss=0.6, **pooling)
    assert manifest.outputs == TASKS[task][2]
    assert manifest.models["int8"].quality.basis == "agreement"
    # transformers leaves its default names out of config.json, and other tools then see no labels.
    written = json.loads((tmp_path / "bundle" / "config.json").read_text()).get("id2label", {})
    assert list(written.values()) == manifest.labels
    checkpoint = load_checkpoint(str(random_models / task), get_task(task))
    texts = [("we saw", "a wave on the shore"), ("sail", "gull " * 80)] if task == "question-answering" else TEXTS
    answers = Encoder(tmp_path / "bundle").outputs(texts, batch_size=2)
    for text, answer in zip(texts, answers, strict=True):
        pair = text if isinstance(text, tuple) else (text, None)
        encoded = checkpoint.tokenizer(*pair, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            reference = checkpoint.model(**encoded)
        for name in manifest.outputs[: 2 if task == "question-answering" else 1]:
            np.testing.assert_allclose(answer[name], getattr(reference, name)[0].numpy(), atol=1e-4)
    if task == "feature-extraction":
        mean = answers[0]["last_hidden_state"].mean(axis=0)
        np.testing.assert_allclose(answers[0]["sentence_embedding"], mean / np.linalg.norm(mean), atol=1e-5)
        assert json.loads((tmp_path / "bundle" / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"]
        kinds = [module["type"] for module in json.loads((tmp_path / "bundle" / "modules.json").read_text())]
        assert [kind.rsplit(".")[-1] for kind in kinds] == ["Transformer", "Pooling", "Normalize"]


@pytest.mark.parametrize(("problem", "labels"), [("multi_label_classification", 3), ("regression", 1)])
def test_other_problem_types_are_exported_and_answered(problem, labels, tiny_teacher, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=32,
        n_layers=1,
        n_heads=2,
        hidden_dim=64,
        max_position_embeddings=64,
        num_labels=labels,
        problem_type=problem,
        initializer_range=0.2,
    )
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    manifest = export_bundle(
        str(tmp_path / "model"), tmp_path / "bundle", config=ExportConfig(**QUICK, max_loss=0.2), calibration=TEXTS
    )
    assert (manifest.problem_type, len(manifest.labels)) == (problem, labels)
    encoder = Encoder(tmp_path / "bundle")
    assert encoder.logits(TEXTS).shape == (5, labels)
    scores = np.array([[score["score"] for score in answer] for answer in encoder.predict(TEXTS)])
    logits = np.sort(encoder.logits(TEXTS))[:, ::-1]
    expected = logits if problem == "regression" else 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


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
    texts = [text for text, _ in tiny.sentences(200, seed=9)]
    export(outlier_teacher, tmp_path / "blind", calibration_texts=0, max_loss=0.5)
    manifest = export(outlier_teacher, tmp_path / "seen")
    assert manifest.models["int8"].quantisation.smoothing == 0.9
    assert read_bundle(tmp_path / "blind").manifest.models["int8"].quantisation.smoothing is None
    reference = Encoder(tmp_path / "seen").logits(texts)
    blind, seen = (
        np.abs(Encoder(tmp_path / name, precision="int8").logits(texts) - reference).mean()
        for name in ("blind", "seen")
    )
    assert seen < 0.5 * blind


def test_without_data_int8_is_fitted_to_and_judged_on_pythons_documentation(tiny_teacher, tmp_path):
    manifest = export_bundle(str(tiny_teacher), tmp_path / "bundle", config=ExportConfig(**QUICK, max_loss=0.3))
    record = manifest.models["int8"]
    assert record.quality.on == record.quantisation.texts == "the documentation that Python carries"
    assert record.quality.labelled is None


def test_only_the_precisions_asked_for_are_published(tiny_teacher, tmp_path):
    manifest = export(tiny_teacher, tmp_path / "bundle", precisions=["int8"])
    assert list(manifest.models) == ["int8"]
    assert [path.name for path in (tmp_path / "bundle" / "onnx").iterdir()] == ["model_int8.onnx"]


def test_words_of_four_bits_pass_the_gates_and_are_told(tiny_teacher, full_bundle, tmp_path):
    manifest = export(tiny_teacher, tmp_path / "bundle", precisions=["int8-static"], embedding_bits=4)
    record = manifest.models["int8-static"]
    assert record.quantisation.embedding_bits == manifest.made.config["embedding_bits"] == 4
    assert record.quantisation.embeddings == "words 4 bits in blocks of 32, others int8 per row"
    assert (record.quality.holds, record.invariance.invariant) == (True, True)
    assert record.fusion.onnxruntime_operators == ["GatherBlockQuantized", "MultiHeadAttention"]
    plain = read_bundle(full_bundle).manifest
    assert plain.models["int8-static"].fusion.onnxruntime_operators == ["MultiHeadAttention"]
    assert {record.fusion.opset for record in plain.models.values()} == {20}
    assert manifest.files[record.file].size_bytes < plain.files[record.file].size_bytes - 1500
    told = CliRunner().invoke(app, ["show", str(tmp_path / "bundle")], terminal_width=200).stdout
    assert "words in 4 bits" in told
    assert "opset 20 and onnxruntime's GatherBlockQuantized, MultiHeadAttention" in " ".join(told.split())


def test_an_existing_onnx_file_gets_a_manifest_gates_and_int8(full_bundle, tmp_path):
    source = full_bundle / "onnx" / "model.onnx"
    manifest = export(source, tmp_path / "bundle")
    assert manifest.source.kind == "onnx"
    assert manifest.models["fp32"].parity.reference == "the file it was made from"
    assert manifest.models["fp32"].fusion.attention_found == 4
    ours, theirs = Encoder(tmp_path / "bundle"), Encoder(full_bundle)
    np.testing.assert_allclose(ours.logits(TEXTS), theirs.logits(TEXTS), atol=1e-5)


def test_the_standard_attention_operator_is_another_file_with_the_same_answers(tiny_teacher, full_bundle, tmp_path):
    manifest = export(tiny_teacher, tmp_path / "bundle", attention="onnx", precisions=["fp32"])
    assert manifest.models["fp32"].fusion.attention == "onnx"
    assert not manifest.models["fp32"].unpadded  # for engines that must know every shape
    domains = {node.domain for node in onnx.load(tmp_path / "bundle" / "onnx" / "model.onnx").graph.node}
    assert domains <= {"", "ai.onnx"}
    np.testing.assert_allclose(
        Encoder(tmp_path / "bundle").logits(TEXTS), Encoder(full_bundle).logits(TEXTS), atol=1e-4
    )


def _broken_graph(monkeypatch, fault):
    original = precisions.build_graph

    def broken(model, **kwargs):
        graph = original(model, **kwargs)
        fault(graph)
        return graph

    monkeypatch.setattr(precisions, "build_graph", broken)


def test_a_mismatch_publishes_nothing(tiny_teacher, tmp_path, monkeypatch):
    def scale(graph):
        tensor = max(graph.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
        scaled = onnx.numpy_helper.to_array(tensor) * np.float32(1.1)
        tensor.CopyFrom(onnx.numpy_helper.from_array(scaled, tensor.name))

    _broken_graph(monkeypatch, scale)
    with pytest.raises(ParityError, match="nothing was published"):
        export(tiny_teacher, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_fusion_publishes_nothing_unless_it_is_allowed(tiny_teacher, tmp_path, monkeypatch):
    def claim_less(graph, config):
        return Fusion(attention="fused", attention_expected=4, attention_found=3)

    monkeypatch.setattr(precisions, "fusion_report", claim_less)
    with pytest.raises(ParityError, match=r"3 fused attention operators for 4 layers.*--allow-unfused"):
        export(tiny_teacher, tmp_path / "bundle", precisions=["fp32"])
    assert list(tmp_path.iterdir()) == []
    manifest = export(tiny_teacher, tmp_path / "bundle", precisions=["fp32"], allow_unfused=True)
    assert manifest.models["fp32"].fusion.attention_found == 3


def test_percentile_calibration_is_caught_by_the_gate(outlier_teacher, tmp_path, monkeypatch):
    """Scales that clip all but the middle of the values, which the few large ones do not survive."""

    def percentile(found):
        return original(quantize.Range(np.percentile(found.low, [95]), np.percentile(found.high, [5])))

    original = quantize.static_scale
    monkeypatch.setattr(quantize, "static_scale", percentile)
    refusal = r"(?s)int8 loses more than the 1\.00% allowed.*FAIL +bert\..*nothing was published"
    with pytest.raises(ParityError, match=refusal):
        export(outlier_teacher, tmp_path / "bundle", precisions=["fp32", "int8-static"], max_fp32_layers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["int8", "int8-static"])
def test_sensitive_layers_go_back_to_fp32(precision, tiny_teacher, tmp_path, monkeypatch):
    """One layer's products come out large and with the wrong sign: only that layer needs floats."""
    spoilt = "bert.encoder.layer.0.attention.output.dense"
    original = quantize._quantize_layer

    def spoil(graph, layer, found, **kwargs):
        original(graph, layer, found, **kwargs)
        if layer.name == spoilt:
            scale = next(tensor for tensor in graph.initializer if tensor.name == f"{spoilt}.weight_scale")
            scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(-9), scale.name))

    monkeypatch.setattr(quantize, "_quantize_layer", spoil)
    record = export(tiny_teacher, tmp_path / "bundle", precisions=[precision]).models[precision]
    assert record.unpadded is (precision == "int8-static")  # dynamic int8 has one text per run
    assert record.quantisation.fp32_layers == [spoilt]
    assert [step.added for step in record.quantisation.steps] == [None, spoilt]
    assert record.quantisation.steps[0].verdict == "FAIL"
    assert record.quality.holds


def test_int8_that_is_not_is_refused(tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(precisions, "quantize", lambda prepared, recipe, keep: prepared.model)
    with pytest.raises(ParityError, match="is not int8"):
        export(tiny_teacher, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_static_file_whose_answers_depend_on_the_batch_is_refused(tiny_teacher, tmp_path, monkeypatch):
    moved = BatchInvariance(invariant=False, flips=3, max_drift=0.5)
    monkeypatch.setattr(quality, "measure_batch_invariance", lambda *args, **kwargs: moved)
    with pytest.raises(ParityError, match="another answer in a batch: 3 flips"):
        export(tiny_teacher, tmp_path / "bundle", precisions=["fp32", "int8-static"])
    assert list(tmp_path.iterdir()) == []


def test_another_tokenizer_is_refused(tiny_teacher, tmp_path, monkeypatch):
    original = Source.write_files

    def spoil(source, folder):
        original(source, folder)
        content = json.loads((folder / "tokenizer.json").read_text())
        content["normalizer"] = None  # it no longer lowercases
        (folder / "tokenizer.json").write_text(json.dumps(content))

    monkeypatch.setattr(Source, "write_files", spoil)
    with pytest.raises(ParityError):
        export(tiny_teacher, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused(tiny_teacher, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        export_bundle("./nowhere", tmp_path / "bundle")
    with pytest.raises(CheckpointError, match="64 tokens"):
        export(tiny_teacher, tmp_path / "bundle", max_length=65)
    with pytest.raises(UsageError, match="pooling"):
        export(tiny_teacher, tmp_path / "bundle", pooling="mean")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        export(tiny_teacher, tmp_path / "bundle")


def test_the_manifest_says_how_it_was_made(full_bundle):
    made = json.loads((full_bundle / "potstill.json").read_text())["made"]
    assert made["config"]["attention"] == "fused"
    assert {"created", "command", "cpu", "packages"} <= set(made)
    assert made["command"].startswith("potstill.export.export_bundle('")  # and not pytest's options


def test_tags_are_judged_by_their_entities_where_labels_are_there(tmp_path):
    """The labels are what the checkpoint answers, so fp32 has F1 1; without labels, decisions are compared."""
    from potstill.distill.evaluation import Evaluation
    from potstill.tasks import TOKEN_CLASSIFICATION
    from tests.serve.tasks import models

    tokenizer = models.word_piece()
    model = models.build("token-classification", tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = [text.split() for text in models.TEXTS if text.split()] * 3
    blank = [np.zeros(len(text), dtype=np.int64) for text in words]
    data = Examples(
        name="made", split="validation", texts=words, labels=blank, label_names=tuple(models.TAGS), sha256="0" * 64
    )
    arrays = Evaluation(tokenizer, data, max_length=models.LONGEST, task=TOKEN_CLASSIFICATION).predict(model)
    tags = np.where(arrays["seen"], arrays["values"].argmax(axis=1), 0)
    data.labels[:] = [tags[arrays["texts"] == number] for number in range(len(words))]
    config = ExportConfig(**{**QUICK, "precisions": ["int8"], "max_loss": 0.9})
    calibration = [" ".join(text) for text in words]
    for examples_, basis in ((data, "f1"), (None, "agreement")):
        manifest = export_bundle(
            str(tmp_path / "model"),
            tmp_path / "out",
            task="token-classification",
            config=config,
            calibration=calibration,
            examples=examples_,
            overwrite=True,
        )
        evidence = manifest.models["int8"].quality
        assert evidence.basis == basis
        if examples_ is not None:
            assert evidence.labelled.reference == 1.0
            assert evidence.loss == pytest.approx(1 - evidence.labelled.candidate)
            judged = manifest.made.judged
            assert (judged.metric, judged.value, judged.trivial, judged.better) == ("f1", 1.0, 0.0, True)
        else:
            assert manifest.made.judged is None


# Another engine

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="pip install 'potstill[openvino]'")


@needs_openvino
def test_every_file_was_held_against_fp32_on_the_other_engine(full_bundle):
    models = read_bundle(full_bundle).manifest.models
    checks = {name: record.engines["openvino"] for name, record in models.items()}
    assert list(checks) == ["fp32", "fp16", "int8", "int8-static"]
    assert checks["fp32"].parity.max_abs_difference < 1e-4
    assert checks["fp32"].parity.reference == "fp32 in onnxruntime"
    assert all(check.quality.holds and check.quality.texts == 60 for check in checks.values())
    # One scale for a whole batch, whatever the engine.
    assert [check.invariance.invariant for check in checks.values()] == [True, True, False, True]
    assert checks["int8-static"].version.startswith("20")


@needs_openvino
def test_int8_static_is_the_same_file_on_both_engines(full_bundle):
    texts = [text for text, _ in tiny.sentences(64, seed=5)]
    ours, theirs = (
        Encoder(full_bundle, precision="int8-static", engine=engine, threads=1)
        for engine in ("openvino", "onnxruntime")
    )
    # Sums that end otherwise in the last bit are rounded to another of 256 steps now and then.
    spread = theirs.logits(texts).std()
    assert np.abs(ours.logits(texts) - theirs.logits(texts)).max() < 0.1 * spread
    alone = np.concatenate([ours.logits([text]) for text in texts])
    for batch_size in (3, 8, 32):
        assert np.abs(ours.logits(texts, batch_size=batch_size) - alone).max() < 1e-3 * spread


@needs_openvino
@pytest.mark.parametrize("precision", ["fp32", "int8-static"])
def test_batches_of_any_number_of_tokens_are_rounded_up_and_their_answers_are_not_changed(full_bundle, precision):
    ours, theirs = (
        Encoder(full_bundle, precision=precision, engine=engine, threads=1) for engine in ("openvino", "onnxruntime")
    )
    # The file's own, of the mask, and the one that fills up the list of tokens.
    runtime = ours.session.compiled_model.get_runtime_model()
    assert sum(node.get_rt_info()["layerType"] == "Pad" for node in runtime.get_ops()) == 2
    texts = [text for text, _ in tiny.sentences(64, seed=6)]
    for count in (1, 2, 9, 17, 33, 64):  # up to some 700 tokens, over all steps up to 64
        rows = ours.tokenizer.rows(texts[:count])
        found, expected = (encoder.session.run(encoder.tokenizer.pad(rows))["logits"] for encoder in (ours, theirs))
        tolerance = 1e-5 if precision == "fp32" else 0.1 * expected.std() + 0.05
        np.testing.assert_allclose(found, expected, atol=tolerance)


@needs_openvino
@pytest.mark.parametrize(
    ("precisions", "wrong", "message"),
    [
        (["fp32"], lambda logits: logits + 1e-2, r"differs from fp32 in onnxruntime by 0\.01"),
        (["int8"], lambda logits: -logits, r"int8 in OpenVINO loses .* nothing was published; without --check-engine"),
        (["fp16"], lambda logits: logits + 0.5 * (len(logits) > 7), "fp16 in OpenVINO gives a text another"),
    ],
)
def test_a_file_that_does_not_hold_there_is_not_published(
    tiny_teacher, tmp_path, monkeypatch, precisions, wrong, message
):
    from potstill.serve.openvino_session import OpenVinoSession

    run = OpenVinoSession.run
    spoilt = precisions[0].replace("-", "_")

    def spoil(self, feeds, stop=None):
        found = run(self, feeds, stop)
        is_meant = self.model_file.stem in {f"model_{spoilt}", "model" if spoilt == "fp32" else ""}
        return {name: wrong(values) if is_meant else values for name, values in found.items()}

    monkeypatch.setattr(OpenVinoSession, "run", spoil)
    with pytest.raises(ParityError, match=message):
        export(tiny_teacher, tmp_path / "bundle", precisions=precisions, check_engines=["openvino"])
    assert not list(tmp_path.iterdir())


@needs_openvino
def test_a_quantised_file_is_batched_on_another_engine_only_where_that_was_seen_to_change_nothing(
    full_bundle, tmp_path
):
    def batches(folder, precision):
        encoder = Encoder(folder, precision=precision, engine="openvino", threads=1)
        plan = Engine({"tiny": encoder}, settings=EngineSettings(threads=1, runners=1)).warm_up().models["tiny"]
        seen, run = [], encoder.session.run
        encoder.session.run = lambda feeds: seen.append(len(feeds["input_ids"])) or run(feeds)
        encoder.logits([text for text, _ in tiny.sentences(8, seed=5)])
        return encoder.batch_invariant, max(seen), plan.batch_tokens == 1

    assert batches(full_bundle, "int8-static")[:2] == (True, 8)
    folder = tmp_path / "bundle"
    shutil.copytree(full_bundle, folder)
    manifest = read_bundle(folder).manifest
    seen = manifest.models["int8-static"].engines["openvino"]
    moved = seen.model_copy(update={"invariance": seen.invariance.model_copy(update={"invariant": False})})
    for engines in ({"openvino": moved}, {}):  # seen to move, and not looked at
        records = {name: one.model_copy(update={"engines": engines}) for name, one in manifest.models.items()}
        write_manifest(folder, manifest.model_copy(update={"models": records}))
        assert batches(folder, "int8-static") == (False, 1, True)
    assert batches(folder, "fp32")[:2] == (True, 8)
    assert Encoder(folder, precision="int8-static", threads=1).batch_invariant


def test_an_engine_that_nobody_knows_is_refused_as_a_setting():
    with pytest.raises(ValueError, match="check_engines"):
        ExportConfig(check_engines=["tensorrt"])


@needs_openvino
def test_a_server_runs_each_number_of_tokens_once_before_it_is_ready(full_bundle):
    encoder = Encoder(full_bundle, precision="int8-static", engine="openvino", threads=1)
    assert encoder.session.sizes(300) == [*range(8, 129, 8), *range(144, 257, 16), 288]
    assert Encoder(full_bundle, precision="int8", engine="openvino", threads=1).session.sizes(300) == []
    assert Encoder(full_bundle, precision="int8-static", threads=1).session.sizes(300) == []
    seen, run = set(), encoder.session.run
    encoder.session.run = lambda feeds, stop=None: seen.add(int(feeds["attention_mask"].sum())) or run(feeds, stop)
    plan = Engine({"tiny": encoder}, settings=EngineSettings(threads=1, runners=1)).warm_up().models["tiny"]
    assert set(encoder.session.sizes(max(plan.batch_tokens, 64))) <= seen
