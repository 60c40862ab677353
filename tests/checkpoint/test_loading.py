"""A checkpoint is loaded as its files say, or refused in one line; code of its own is never run."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from potstill.checkpoint import hash_checkpoint, load_checkpoint, load_config
from potstill.errors import CheckpointError
from potstill.export.source import load_source
from potstill.serve import BundleTokenizer
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, TASKS, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION
from tests.checkpoint import made


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return made.write_checkpoint(tmp_path_factory.mktemp("good") / "model", "WordPiece as BertTokenizer")


@pytest.fixture
def folder(good, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in good.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def change_weights(folder, edit):
    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})


def change(folder, name="config.json", **keys):
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | keys), encoding="utf-8")


def refused(folder, task=TEXT_CLASSIFICATION, **options):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(folder), task, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_of_relative_positions_are_named(folder):
    name = "bert.encoder.layer.0.attention.self.distance_embedding.weight"
    change_weights(folder, lambda weights: weights.update({name: torch.ones(2 * made.LONGEST - 1, 8)}))
    assert f"does not use in a model of bert for text-classification: {name}" in refused(folder)


def test_the_projection_of_a_colbert_is_named(folder):
    made.write_model(folder, "Bert", head="Model", config={"architectures": ["HF_ColBERT"]}, vocab_size=300)
    change_weights(folder, lambda weights: weights.update({"linear.weight": torch.ones(16, 32)}))
    assert "feature-extraction: linear.weight" in refused(folder, FEATURE_EXTRACTION)


def test_a_layer_behind_the_tags_is_named(folder):
    made.write_model(folder, "Bert", head="ForTokenClassification", vocab_size=300)
    change_weights(folder, lambda weights: weights.update({"crf.transitions": torch.ones(2, 2)}))
    assert "crf.transitions" in refused(folder, TOKEN_CLASSIFICATION)


def test_heads_of_pretraining_poolers_and_old_buffers_are_left_out_without_a_word(folder):
    made.write_model(folder, "Bert", head="ForPreTraining", vocab_size=300)
    buffer = {"bert.embeddings.position_ids": torch.arange(made.LONGEST)[None]}
    change_weights(folder, lambda weights: weights.update(buffer))
    for task in (FEATURE_EXTRACTION, FILL_MASK):
        assert load_checkpoint(str(folder), task).model is not None
    made.write_model(folder, "Electra", head="ForPreTraining", vocab_size=300)
    assert load_checkpoint(str(folder), FEATURE_EXTRACTION).model is not None


def test_a_fine_tuned_classifier_may_be_asked_for_its_vectors(folder):
    assert load_checkpoint(str(folder), FEATURE_EXTRACTION).model is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_is_named(folder, value):
    name = "bert.encoder.layer.0.output.dense.weight"
    change_weights(folder, lambda weights: weights[name].__setitem__((0, 0), value))
    assert f"has NaN or infinity in {name}" in refused(folder)


def test_settings_that_steer_the_forward_pass_are_overridden(folder, good):
    change(
        folder,
        return_dict=False,
        use_return_dict=False,
        output_attentions=True,
        output_hidden_states=True,
        _attn_implementation="flash_attention_2",
        attn_implementation="flash_attention_2",
        torchscript=True,
        gradient_checkpointing=True,
        torch_dtype="float16",
        dtype="bfloat16",
    )
    inputs = {"input_ids": torch.tensor([[2, 9, 8, 3]])}
    with torch.inference_mode():
        found, expected = (load_checkpoint(str(name), TEXT_CLASSIFICATION).model(**inputs) for name in (folder, good))
    assert list(found) == ["logits"]
    assert torch.equal(found.logits, expected.logits)
    config = load_config(str(folder))
    assert config.return_dict is True
    assert not config.output_attentions


def test_more_ids_than_rows_are_refused_with_both_numbers(folder):
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer = made.word_piece()
    tokenizer.add_tokens(["<url>", "<user>", "covid19"])
    tokenizer.save(str(folder / "tokenizer.json"))
    message = refused(folder)
    assert f"gives ids up to {rows + 2} and the model has {rows} rows" in message


def test_token_types_without_rows_are_refused_with_both_numbers(folder):
    rows = made.reference(folder).get_vocab_size()
    made.write_model(folder, "Roberta", vocab_size=rows)
    assert "gives token types up to 1 and the model has 1 rows" in refused(folder)
    change(folder, "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])  # as the message says
    assert load_checkpoint(str(folder), TEXT_CLASSIFICATION).model is not None


def test_padding_on_the_left_changes_no_answer_and_is_not_published(folder):
    change(folder, "tokenizer_config.json", padding_side="left")
    source = load_source(str(folder))
    assert source.padding_side == "right"
    ours = BundleTokenizer(folder, source)
    rows = ours.rows(["good", "the film was not good and it is bad"])
    with torch.inference_mode():
        alone = source.model(**{name: torch.from_numpy(values) for name, values in ours.pad(rows[:1]).items()})
        both = source.model(**{name: torch.from_numpy(values) for name, values in ours.pad(rows).items()})
    np.testing.assert_allclose(alone.logits[0], both.logits[0], atol=1e-6)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_code_beside_the_weights_is_never_run_and_nobody_is_asked(folder, task, monkeypatch):
    ran = folder / "ran"
    (folder / "custom.py").write_text(f"open({str(ran)!r}, 'w').close()\n", encoding="utf-8")
    change(folder, model_type="mine", auto_map={"AutoConfig": "custom.C", task.model_class: "custom.M"})
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    assert "never runs" in refused(folder, task)
    assert "never runs" in refused(folder, task, new_head={})
    for load in (load_config, load_source):
        with pytest.raises(CheckpointError, match="never runs"):
            load(str(folder))
    assert not ran.exists()


def test_a_family_that_transformers_does_not_know_is_named(folder):
    change(folder, model_type="evil")
    assert "has model_type 'evil', which transformers" in refused(folder)


def test_a_setting_of_the_wrong_kind_is_named(folder):
    change(folder, hidden_size="large")
    message = refused(folder)
    assert "config.json cannot be read by transformers" in message
    assert "hidden_size" in message


def test_sizes_that_do_not_fit_the_weights_are_refused_in_one_line(folder):
    change(folder, intermediate_size=64)
    for options in ({}, {"new_head": {}}):
        message = refused(folder, **options)
        assert "3 weights of other sizes than its config.json says" in message
        assert "bert.encoder.layer.0.intermediate.dense.bias with (32,) for (64,)" in message


def test_a_head_for_other_labels_is_made_anew(folder):
    names = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    model = load_checkpoint(str(folder), TEXT_CLASSIFICATION, new_head=names).model
    assert model.classifier.weight.shape == (3, 16)
    kept = load_file(folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, kept)


def test_a_folder_without_any_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    assert "has neither tokenizer.json nor vocab.txt" in refused(folder)


def test_a_tokenizer_file_that_is_none_is_named(folder):
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer.json cannot be loaded as a tokenizer" in refused(folder)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"model_type": "funnel"}, "is a funnel model; these are not exported"),
        ({"model_type": "longformer"}, "is a longformer model; these are not exported"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "is a t5 model; these are not exported"),
        ({"is_decoder": True}, "is set up as a decoder"),
    ],
)
def test_a_family_that_is_not_exported_is_named_before_its_weights_are_read(folder, keys, said):
    change(folder, **keys)
    change_weights(folder, lambda weights: weights.clear())
    with pytest.raises(CheckpointError, match=said) as caught:
        load_source(str(folder))
    assert "modernbert or deberta-v2" in str(caught.value)


def test_a_classifiers_head_is_not_taken_for_a_taggers(folder):
    message = refused(folder, TOKEN_CLASSIFICATION)
    assert (
        "is a BertForSequenceClassification, trained for text-classification, not for token-classification" in message
    )
    assert load_checkpoint(str(folder), TOKEN_CLASSIFICATION, new_head={}).model is not None


@pytest.mark.parametrize(
    "name", ["classifier.1.weight", "classifier.dense.weight", "pre_classifier.weight", "bert.pooler.dense2.weight"]
)
def test_a_part_of_the_head_that_answers_is_never_left_out(folder, name):
    change_weights(folder, lambda weights: weights.update({name: torch.ones(16, 16)}))
    assert f"does not use in a model of bert for text-classification: {name}" in refused(folder)
    # Where the head is to be made anew, or is not asked, it matters to nobody.
    assert load_checkpoint(str(folder), TEXT_CLASSIFICATION, new_head={}).model is not None
    assert load_checkpoint(str(folder), FEATURE_EXTRACTION).model is not None


def test_weights_in_whole_numbers_are_refused_as_quantised_and_half_ones_are_read(folder):
    change_weights(folder, lambda weights: weights.update({key: value.half() for key, value in weights.items()}))
    assert load_checkpoint(str(folder), TEXT_CLASSIFICATION).model.dtype == torch.float32
    name = "bert.encoder.layer.0.output.dense.weight"
    change_weights(folder, lambda weights: weights.update({name: (weights[name] * 100).to(torch.int8)}))
    assert f"model.safetensors holds {name} as I8, so its weights are quantised" in refused(folder)


def test_a_chunked_feed_forward_is_computed_whole(folder):
    change(folder, chunk_size_feed_forward=3)
    model = load_checkpoint(str(folder), TEXT_CLASSIFICATION).model
    assert model(input_ids=torch.ones(1, 7, dtype=torch.long)).logits.shape == (1, 2)


def test_an_activation_that_is_unknown_is_called_so(folder):
    change(folder, hidden_act="foo")
    assert refused(folder).endswith("nothing is called 'foo'")


def test_a_checkpoint_is_known_by_the_files_that_decide_its_answers_and_not_by_how_long_it_took(folder):
    before = hash_checkpoint(str(folder))
    for name in ("training_args.bin", "trainer_state.json", "all_results.json", "optimizer.pt", "distill.json"):
        (folder / name).write_bytes(b"{}")
    assert hash_checkpoint(str(folder)) == before
    (folder / "added_tokens.json").write_bytes(b"{}")
    assert hash_checkpoint(str(folder)) != before
