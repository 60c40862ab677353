"""The vectors of a sentence-transformers folder: a bundle gives those that its modules make, or there is no bundle."""

import json

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertModel

from potstill.bundle import read_bundle
from potstill.checkpoint import hash_checkpoint
from potstill.config import ExportConfig
from potstill.errors import CheckpointError, UsageError
from potstill.export import export_bundle
from potstill.export.source import load_source
from potstill.serve import Encoder
from tests import tiny
from tests.checkpoint.sentence_folders import dense, make_folder, new_pooling, old_pooling, pooled
from tests.cli.conftest import potstill  # noqa: F401 (a fixture)
from tests.export import small

pytestmark = pytest.mark.usefixtures("few_texts")

WIDTH, LONGEST = 32, 20
TEXTS = ["we saw a wave", "snow on the peak and a trail", "sail", "the old things " * 12]
NORMALIZE = ("Normalize", {}, {})


def own_vectors(folder, texts, mode, *, longest, after):
    """Return vectors by the rule written out: each text alone, ids by tokenizer.json itself, no code of the package."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    model = BertModel.from_pretrained(folder).eval()
    vectors = []
    for text in texts:
        encoded = tokenizer.encode(text)
        with torch.inference_mode():
            given = model(input_ids=torch.tensor([encoded.ids]), token_type_ids=torch.tensor([encoded.type_ids]))
        vectors.append(after(pooled(given.last_hidden_state[0], mode)).numpy())
    return np.stack(vectors)


@pytest.fixture(scope="module")
def folder(tiny_teacher, tmp_path_factory):
    """A CLS model with a Dense layer, length 1, and fewer tokens than the encoder has positions for."""
    made = tmp_path_factory.mktemp("sentences") / "model"
    layer = dense(WIDTH, 24)
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": None}
    return make_folder(
        made, old_pooling("cls"), layer, NORMALIZE, encoder=tiny_teacher, longest=LONGEST, prompts=prompts
    )


@pytest.fixture(scope="module")
def expected(folder):
    _, _, state = dense(WIDTH, 24)

    def after(vector):
        raw = torch.tanh(state["linear.weight"].double() @ vector + state["linear.bias"].double())
        return raw / raw.norm()

    return own_vectors(folder, TEXTS, "cls", longest=LONGEST, after=after)


@pytest.fixture(scope="module")
def bundle(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("sentences") / "bundle"
    config = ExportConfig(calibration_texts=32, judged_texts=48, rounds=0, max_loss=0.05)
    export_bundle(str(folder), out, task="feature-extraction", config=config, calibration=tiny.texts(80))
    return out


def test_a_bundle_gives_the_vectors_that_the_folder_describes(bundle, expected):
    found = np.array(Encoder(bundle, precision="fp32").predict(TEXTS))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    found = np.array(Encoder(bundle, precision="int8").predict(TEXTS))
    assert (found * expected).sum(1).min() > 0.95


def test_without_the_vectors_of_tokens_the_last_layer_is_computed_for_the_first_alone(
    bundle, folder, tiny_teacher, expected, tmp_path
):
    config = ExportConfig(calibration_texts=32, judged_texts=48, rounds=0, max_loss=0.05, token_vectors=False)
    lean = export_bundle(
        str(folder), tmp_path / "lean", task="feature-extraction", config=config, calibration=tiny.texts(80)
    )
    assert lean.outputs == ["sentence_embedding"]
    both = read_bundle(bundle).manifest
    assert both.outputs == ["last_hidden_state", "sentence_embedding"]
    for manifest, only in ((lean, True), (both, False)):
        assert {name: record.first_token_only for name, record in manifest.models.items()} == {
            "fp32": only,
            "int8": only,
        }
    found = np.array(Encoder(tmp_path / "lean", precision="fp32").predict(TEXTS))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    file = tmp_path / "lean" / "onnx" / "model.onnx"
    for source, reason in ((tiny_teacher, "has no pooling, so nothing would be left"), (file, "keeps its outputs")):
        with pytest.raises(UsageError, match=reason):
            load_source(str(source), task="feature-extraction", token_vectors=False)


def test_a_bundle_says_how_its_vectors_are_made_and_where_texts_are_cut(bundle):
    manifest = read_bundle(bundle).manifest
    assert manifest.max_length == LONGEST
    assert (manifest.pooling.mode, manifest.pooling.normalize, manifest.pooling.projected) == ("cls", True, True)
    said = " ".join(manifest.source.notes)
    assert f"cut to {LONGEST} tokens, the max_seq_length of" in said
    assert "query 'query: '" in said


def test_token_vectors_are_not_pooled_in_place_of_a_dense_layer(bundle):
    encoder = Encoder(bundle, precision="fp32")
    assert len(encoder.predict(["sail"], parameters={"dimensions": 24})[0]) == 24
    with pytest.raises(UsageError, match="vectors have 24"):
        encoder.predict(["sail"], parameters={"dimensions": 25})
    with pytest.raises(UsageError, match="gives vectors of length 1 and nothing else"):
        encoder.predict(["sail"], parameters={"normalize": False})


def test_a_bundle_is_a_sentence_transformers_folder_of_the_same_vectors(bundle, folder):
    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "sentence_bert_config.json"):
        ours, theirs = (json.loads((where / name).read_text()) for where in (bundle, folder))
        assert {key: ours[key] for key in theirs} == theirs if isinstance(theirs, dict) else ours == theirs
    assert (bundle / "config_sentence_transformers.json").is_file()
    files = read_bundle(bundle).manifest.files
    assert "2_Dense/model.safetensors" in files


def test_the_command_says_what_the_folder_decides_and_refuses_what_contradicts_it(
    folder,
    tiny_teacher,
    tmp_path,
    potstill,  # noqa: F811
):
    asked = ["export", str(folder), "--out", str(tmp_path / "out"), "--task", "feature-extraction"]
    code, _, said = potstill(*asked, "--pooling", "mean")
    assert code == 2
    assert "pools by cls; leave --pooling out" in said
    code, _, said = potstill(*asked, "--no-normalize")
    assert code == 2
    assert "--no-normalize contradicts" in said
    code, _, said = potstill("export", tiny_teacher, "--out", tmp_path / "out", "--no-token-vectors")
    assert code == 2
    assert "--no-token-vectors leaves one vector of a text; text-classification has none" in said
    with pytest.raises(CheckpointError, match=rf"max_length is 30; max_seq_length of .* is {LONGEST}"):
        load_source(str(folder), task="feature-extraction", max_length=30)
    with pytest.raises(UsageError, match="text-classification has none"):
        load_source(str(folder), pooling="cls")


def test_two_folders_that_differ_in_a_dense_layer_alone_are_two_sources(folder, tmp_path):
    other = make_folder(tmp_path / "other", old_pooling("cls"), dense(WIDTH, 24, seed=9), NORMALIZE, encoder=folder)
    assert hash_checkpoint(str(other)) != hash_checkpoint(str(folder))


@pytest.mark.parametrize("opset", [11, 17, 20])
def test_an_onnx_file_of_a_sentence_transformers_folder_is_pooled_as_that_says(tiny_teacher, tmp_path, opset):
    modes = ("max", "weightedmean")
    made = make_folder(tmp_path / "model", new_pooling(*modes), NORMALIZE, encoder=tiny_teacher, longest=LONGEST)
    (made / "model.safetensors").unlink()
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    table = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), WIDTH)).astype(np.float32)
    graph = small.model(
        [onnx.helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        ["last_hidden_state"],
        constants={"table": table},
    )
    graph.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, ["batch", "length", WIDTH])
    )
    next(known for known in graph.opset_import if known.domain == "").version = opset
    (made / "onnx").mkdir()
    onnx.save(graph, made / "onnx" / "model.onnx")
    out = tmp_path / "bundle"
    manifest = export_bundle(
        str(made), out, task="feature-extraction", config=ExportConfig(precisions=["fp32"], rounds=0)
    )
    assert manifest.outputs == ["last_hidden_state", "sentence_embedding"]
    assert (manifest.pooling.mode, manifest.max_length) == ("max+weightedmean", LONGEST)
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    for text, found in zip(TEXTS, Encoder(out).predict(TEXTS), strict=True):
        states = torch.from_numpy(table[tokenizer.encode(text).ids])
        joined = torch.cat([pooled(states, mode) for mode in modes])
        np.testing.assert_allclose(found, joined / joined.norm(), atol=1e-6)
