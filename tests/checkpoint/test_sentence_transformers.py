"""What a sentence-transformers folder says is read or refused, and vectors are made by its rule."""

import json

import pytest
import torch
from torch.nn import functional

from potstill.checkpoint.model import SentenceHead, find_sentence_transformers, load_head, write_sentence_transformers
from potstill.checkpoint.sentence_transformers import check_pooling, read_sentence_transformers
from potstill.errors import CheckpointError, UsageError
from tests.checkpoint.sentence_folders import (
    OLD_FLAGS,
    dense,
    make_folder,
    new_pooling,
    old_pooling,
    pooled,
    write_json,
)

MODES = tuple(OLD_FLAGS)
WIDTH = 6
NORMALIZE = ("Normalize", {}, {})


def some_states():
    """Return token vectors of four texts of 1, 5, 3 and 7 tokens, what stands at padding, and the mask."""
    torch.manual_seed(0)
    lengths = (1, 5, 3, 7)
    states = torch.randn(len(lengths), max(lengths), WIDTH)
    mask = torch.zeros(states.shape[:2], dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
        states[row, length:] = 100.0  # nobody's answer
    return states, mask


def texts_of(states, mask):
    return [row[: int(seen.sum())] for row, seen in zip(states, mask, strict=True)]


@pytest.mark.parametrize("spelling", [old_pooling, new_pooling])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_in_both_spellings_pools_as_the_rule_says(tmp_path, spelling, mode):
    found = read_sentence_transformers(make_folder(tmp_path, spelling(mode, width=WIDTH)))
    states, mask = some_states()
    expected = torch.stack([pooled(text, mode) for text in texts_of(states, mask)])
    torch.testing.assert_close(load_head(found)(states, mask).double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("spelling", [old_pooling, new_pooling])
def test_several_modes_stand_side_by_side_in_sentence_transformers_order(tmp_path, spelling):
    found = read_sentence_transformers(make_folder(tmp_path, spelling("cls", "max", "mean", width=WIDTH)))
    states, mask = some_states()
    expected = torch.stack(
        [torch.cat([pooled(text, mode) for mode in ("cls", "max", "mean")]) for text in texts_of(states, mask)]
    )
    assert found.mode == "cls+max+mean"
    torch.testing.assert_close(load_head(found)(states, mask).double(), expected, atol=1e-6, rtol=1e-6)


def test_a_pooling_without_settings_is_the_mean(tmp_path):
    assert read_sentence_transformers(make_folder(tmp_path, {})).pooling == ("mean",)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("torch.nn.modules.activation.Tanh", torch.tanh),
        ("torch.nn.modules.linear.Identity", lambda vector: vector),
        ("torch.nn.modules.activation.ReLU", torch.relu),
        ("torch.nn.modules.activation.Sigmoid", torch.sigmoid),
        ("torch.nn.GELU", functional.gelu),
        ("torch.nn.modules.activation.SiLU", functional.silu),
    ],
)
def test_a_dense_layer_keeps_its_activation_and_its_weights(tmp_path, activation, function, pickled):
    layer = dense(WIDTH, 4, activation=activation)
    found = read_sentence_transformers(
        make_folder(tmp_path, old_pooling("mean", width=WIDTH), layer, NORMALIZE, pickled=pickled)
    )
    states, mask = some_states()
    weight, bias = (layer[2][f"linear.{name}"].double() for name in ("weight", "bias"))
    raw = torch.stack([function(weight @ pooled(text, "mean") + bias) for text in texts_of(states, mask)])
    expected = raw / raw.norm(dim=1, keepdim=True)
    assert [part.out_features for part in found.dense] == [4]
    assert found.normalize
    torch.testing.assert_close(load_head(found)(states, mask).double(), expected, atol=1e-6, rtol=1e-6)


def test_layers_apply_in_the_order_of_the_file_without_bias_with_residual_and_layer_norm(tmp_path):
    first = dense(WIDTH, WIDTH, bias=False, seed=1, use_residual=True)
    second = dense(WIDTH, 3, seed=2, activation="torch.nn.modules.linear.Identity", use_residual=True)
    second[2]["residual.weight"] = torch.randn(3, WIDTH)
    norm = ("LayerNorm", {"dimension": 3}, {"norm.weight": torch.tensor([1.0, 2.0, 3.0]), "norm.bias": torch.ones(3)})
    layers = (NORMALIZE, first, ("Dropout", {"dropout": 0.5}, {}), second, norm)
    head = load_head(read_sentence_transformers(make_folder(tmp_path, new_pooling("max", width=WIDTH), *layers)))
    states, mask = some_states()
    for text, found in zip(texts_of(states, mask), head(states, mask), strict=True):
        vector = pooled(text, "max")
        vector = vector / vector.norm()
        vector = torch.tanh(first[2]["linear.weight"].double() @ vector) + vector
        weight, bias, residual = (
            second[2][name].double() for name in ("linear.weight", "linear.bias", "residual.weight")
        )
        vector = weight @ vector + bias + residual @ vector
        centred = vector - vector.mean()
        vector = centred / (centred.square().mean() + 1e-5).sqrt() * torch.tensor([1.0, 2.0, 3.0]) + 1
        torch.testing.assert_close(found.double(), vector, atol=1e-5, rtol=1e-5)


def test_what_is_written_is_read_back_as_the_same_vectors(tmp_path):
    layers = (dense(WIDTH, WIDTH, use_residual=True), NORMALIZE)
    original = load_head(
        read_sentence_transformers(make_folder(tmp_path / "a", old_pooling("cls", "mean", width=3), *layers))
    )
    (tmp_path / "b").mkdir()
    write_sentence_transformers(original, tmp_path / "b", width=3, max_length=77)
    found = read_sentence_transformers(tmp_path / "b")
    states, mask = some_states()
    assert found.max_seq_length == 77
    assert torch.equal(load_head(found)(states[..., :3], mask), original(states[..., :3], mask))


def test_a_folder_without_modules_is_none_of_sentence_transformers(tmp_path):
    assert read_sentence_transformers(tmp_path) is None
    assert find_sentence_transformers("nobody/has-this-model") is None


def test_the_length_is_read_and_an_encoder_one_level_down_is_found(tmp_path):
    make_folder(tmp_path, old_pooling("mean"))
    rows = json.loads((tmp_path / "modules.json").read_text())
    rows[0]["path"] = "0_Transformer"
    write_json(tmp_path / "modules.json", rows)
    write_json(tmp_path / "0_Transformer" / "sentence_roberta_config.json", {"max_seq_length": 75})
    found = read_sentence_transformers(tmp_path)
    assert (found.encoder_path, found.max_seq_length) == ("0_Transformer", 75)


def test_prompts_are_told_and_a_default_one_is_refused(tmp_path):
    prompts = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": None}
    found = read_sentence_transformers(make_folder(tmp_path, old_pooling("mean"), prompts=prompts))
    assert "query 'query: '" in found.notes()[0]
    assert "document" not in found.notes()[0]
    write_json(tmp_path / "config_sentence_transformers.json", prompts | {"default_prompt_name": "query"})
    with pytest.raises(CheckpointError, match=r"config_sentence_transformers.json puts the prompt 'query: '"):
        read_sentence_transformers(tmp_path)
    write_json(tmp_path / "config_sentence_transformers.json", prompts | {"default_prompt_name": "document"})
    assert read_sentence_transformers(tmp_path).prompts == {"query": "query: "}


def test_lower_casing_that_the_tokenizer_does_not_do_is_refused(tmp_path):
    make_folder(tmp_path, old_pooling("mean"))
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": True})
    write_json(tmp_path / "tokenizer.json", {"normalizer": {"type": "BertNormalizer", "lowercase": False}})
    with pytest.raises(CheckpointError, match=r"sentence_bert_config.json has do_lower_case"):
        read_sentence_transformers(tmp_path)
    inner = [{"type": "NFC"}, {"type": "Lowercase"}]
    for normalizer in ({"type": "BertNormalizer", "lowercase": True}, {"type": "Sequence", "normalizers": inner}):
        write_json(tmp_path / "tokenizer.json", {"normalizer": normalizer})
        assert read_sentence_transformers(tmp_path).max_seq_length == 9


def change(content, **values):
    return {**content, **values}


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("modules.json", {"a": 1}, "modules.json is not a list of modules"),
        ("modules.json", [{"type": "pylate.models.Dense", "path": ""}], "names the module pylate.models.Dense"),
        ("modules.json", [{"type": "sentence_transformers.models.CLIPModel", "path": ""}], "CLIPModel, which is not"),
        ("modules.json", [{"type": "sentence_transformers.models.Pooling", "path": ""}], "begins with Pooling"),
        (
            "modules.json",
            [
                {"type": "sentence_transformers.models.Transformer", "path": ""},
                {"type": "sentence_transformers.models.Dense", "path": "2_Dense"},
            ],
            "Dense before any Pooling",
        ),
        (
            "modules.json",
            [{"type": "sentence_transformers.models.Transformer", "path": "../elsewhere"}],
            "leaves the folder",
        ),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "config.json pools by attention"),
        ("1_Pooling/config.json", {"pooling_mode_first_and_last": True}, "pools by pooling_mode_first_and_last"),
        ("1_Pooling/config.json", {"pooling_mode": 3}, "pools by 3"),
        ("1_Pooling/config.json", old_pooling("mean", "max", width=32), "takes vectors of 32 numbers, and what .* 64"),
        ("2_Dense/config.json", {"in_features": 32}, "has out_features None"),
        (
            "2_Dense/config.json",
            change(dense(32, 4)[1], activation_function="mine.Act"),
            "activation_function mine.Act",
        ),
        (
            "2_Dense/config.json",
            change(dense(32, 4)[1], module_input_name="token_embeddings"),
            "token_embeddings as in",
        ),
        ("2_Dense/config.json", change(dense(32, 4)[1], rank=3), "settings rank"),
        ("sentence_bert_config.json", {"max_seq_length": "many"}, "max_seq_length 'many'"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task 'fill-mask'"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line_that_names_the_file(tmp_path, file, content, complaint):
    make_folder(tmp_path, old_pooling("mean", width=32), dense(32, 4))
    write_json(tmp_path / file, content)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        read_sentence_transformers(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_damaged_file_and_missing_or_foreign_weights_are_refused(tmp_path):
    make_folder(tmp_path, old_pooling("mean", width=32), dense(32, 4))
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"2_Dense has no model.safetensors or pytorch_model.bin"):
        read_sentence_transformers(tmp_path)
    torch.save({"linear.weight": torch.zeros(3, 3)}, tmp_path / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is not the weights that its config.json describes"):
        load_head(read_sentence_transformers(tmp_path))
    (tmp_path / "1_Pooling" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config.json cannot be read as JSON"):
        read_sentence_transformers(tmp_path)


def test_options_that_contradict_the_folder_are_refused(tmp_path):
    found = read_sentence_transformers(make_folder(tmp_path, old_pooling("cls", width=32), NORMALIZE))
    check_pooling(found, pooling="cls", normalize=True)
    check_pooling(found, pooling=None, normalize=None)
    with pytest.raises(UsageError, match=r"pooling is mean, and .*modules.json pools by cls"):
        check_pooling(found, pooling="mean", normalize=None)
    with pytest.raises(UsageError, match=r"--no-normalize contradicts .*modules.json"):
        check_pooling(found, pooling=None, normalize=False)


def test_a_head_of_random_float16_states_gives_finite_vectors():
    states, mask = some_states()
    head = SentenceHead(MODES)
    assert torch.isfinite(head(states.half(), mask)).all()


def test_a_pooling_whose_flags_are_all_false_is_not_guessed(tmp_path):
    make_folder(tmp_path, old_pooling())
    with pytest.raises(CheckpointError, match=r"1_Pooling/config.json pools by nothing"):
        read_sentence_transformers(tmp_path)
