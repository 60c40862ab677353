"""What a folder says of itself is read from its own files, before torch, and refused in one line where it cannot be."""

import json
import subprocess
import sys

import pytest
import torch
import transformers

from potstill.checkpoint import read_folder, task_of, usable_positions
from potstill.errors import CheckpointError
from tests.checkpoint import made


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return made.write_checkpoint(tmp_path_factory.mktemp("good") / "model", "WordPiece as BertTokenizer")


@pytest.fixture
def folder(good, tmp_path):
    """Return a folder of one's own whose files may be broken."""
    for file in good.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(folder, **keys):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys), encoding="utf-8")


def refused(folder):
    with pytest.raises(CheckpointError) as caught:
        read_folder(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_facts_need_neither_torch_nor_transformers(good):
    code = (
        "import sys; from potstill.checkpoint import read_folder; folder = read_folder(sys.argv[1]); "
        "print(folder.model_type, folder.task.name, folder.labels, folder.usable_positions, folder.vocabulary_rows, "
        "[name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(good)], capture_output=True, text=True, check=True)
    rows = json.loads((good / "config.json").read_text())["vocab_size"]
    assert done.stdout == f"bert text-classification ('LABEL_0', 'LABEL_1') {made.LONGEST} {rows} []\n"


def test_labels_stand_in_the_order_of_their_numbers(folder):
    change(folder, id2label={"1": "good", "0": "bad"})
    assert read_folder(folder).labels == ("bad", "good")


@pytest.mark.parametrize(
    ("head", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("XLMRobertaForTokenClassification", "token-classification"),
        ("MPNetForQuestionAnswering", "question-answering"),
        ("DebertaV2ForMaskedLM", "fill-mask"),
        ("DistilBertModel", "feature-extraction"),
        ("HF_ColBERT", None),
    ],
)
def test_the_task_is_that_of_the_architecture(folder, head, task):
    change(folder, architectures=[head])
    found = task_of(folder)
    assert (found and found.name) == task


@pytest.mark.parametrize("family", ["Bert", "Roberta", "XLMRoberta", "MPNet", "DistilBert", "Electra", "Albert"])
def test_the_model_reads_a_text_of_all_its_usable_positions_and_none_that_is_longer(family, tmp_path):
    model = made.write_model(tmp_path, family, head="Model", vocab_size=30)
    longest = read_folder(tmp_path).usable_positions
    assert longest == made.LONGEST
    with torch.inference_mode():
        model(input_ids=torch.full((1, longest), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 7))


def test_relative_positions_have_no_end(tmp_path):
    model = made.write_model(tmp_path, "DebertaV2", head="Model", vocab_size=30)
    assert read_folder(tmp_path).usable_positions is None
    with torch.inference_mode():
        assert model(input_ids=torch.full((1, 3 * made.LONGEST), 7)).last_hidden_state.isfinite().all()


def test_positions_are_counted_from_behind_the_padding():
    assert usable_positions({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}) == 512
    assert usable_positions({"model_type": "roberta", "max_position_embeddings": 130, "pad_token_id": 0}) == 129
    assert usable_positions({"model_type": "xlm-roberta", "max_position_embeddings": 514}) == 512
    assert usable_positions({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 0}) == 512
    assert usable_positions({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}) == 512
    # It has absolute positions, too.
    assert usable_positions({"model_type": "deberta-v2", "max_position_embeddings": 512}) == 512
    assert usable_positions({"model_type": "bert"}) is None


def test_the_longest_text_is_the_smaller_of_positions_and_the_tokenizers_limit(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for limit, longest in ((16, 16), (10**30, made.LONGEST), (1e30, made.LONGEST), (512, made.LONGEST)):
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": limit}))
        assert read_folder(folder).longest == longest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "config.json is not JSON"),
        ("", "config.json is not JSON"),
        ("[1]", "config.json holds a list where an object is expected"),
        ('"bert"', "config.json holds a str where"),
        ("[" * 100_000, "config.json is not JSON"),
        ("{}", "config.json has no model_type"),
    ],
    ids=["cut", "empty", "list", "text", "deep", "nameless"],
)
def test_a_config_that_is_none_is_named(folder, text, expected):
    (folder / "config.json").write_text(text, encoding="utf-8")
    assert expected in refused(folder)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"id2label": {"1": "a", "2": "b", "5": "c"}}, "numbers its labels 1, 2, 5; expected 0 to 2"),
        ({"id2label": {"one": "a", "0": "b"}}, "numbers its labels 0, one; expected 0 to 1"),
        ({"id2label": ["a", "b"]}, "id2label that is no object"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "names 3 labels (a, b, c) and the head in the weights has 2"),
        ({"id2label": {"0": "a"}}, "names 1 labels (a) and the head in the weights has 2 rows"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config (bitsandbytes)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config (gptq)"),
        ({"auto_map": {"AutoModel": "custom.Model"}}, "asks for code of its own (auto_map), which potstill never runs"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"position_embedding_type": "relative_key_query"}, "transformers 5 does not use"),
    ],
)
def test_what_would_be_read_otherwise_than_meant_is_refused(folder, keys, expected):
    change(folder, **keys)
    message = refused(folder)
    assert expected in message
    assert "config.json" in message


def test_an_adapter_is_no_checkpoint(folder):
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in refused(folder)


def test_weights_that_are_cut_short_are_named_before_they_are_read(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for count, expected in ((5, "cut short"), (len(whole) // 2, "cut short"), (len(whole) - 1, "cut short")):
        file.write_bytes(whole[:count])
        assert expected in refused(folder)
    file.write_bytes(whole[:8] + b"x" * (len(whole) - 8))
    assert "header" in refused(folder)


def test_shapes_of_a_split_checkpoint_are_those_of_all_its_files(tmp_path):
    model = transformers.BertModel(transformers.BertConfig(**made.SIZES, vocab_size=300))
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    found = read_folder(tmp_path)
    assert found.tensors == {name: tuple(values.shape) for name, values in model.state_dict().items()}
    assert (found.vocabulary_rows, found.token_type_rows) == (300, 2)
    shards[-1].unlink()
    assert shards[-1].name in refused(tmp_path)


def test_a_folder_that_is_not_there_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for name in ("out/studnet", "./studnet", str(tmp_path / "none"), "a/b/c"):
        with pytest.raises(CheckpointError, match="there is no"):
            read_folder(name)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_folder(tmp_path / "out")


def test_a_hub_id_is_read_from_the_hubs_cache(good, monkeypatch):
    asked = []
    monkeypatch.setattr("potstill.checkpoint.folder.check_name", lambda *_: None)  # the hub has it
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(good))
    assert read_folder("owner/model").labels == ("LABEL_0", "LABEL_1")
    assert asked == ["owner/model"]


def test_a_name_that_the_hub_does_not_have_is_told_in_one_line(monkeypatch):
    def fail(name, **_):
        raise OSError("Repository not found\nand more")

    monkeypatch.setattr("potstill.checkpoint.folder.check_name", lambda *_: None)  # it answered just now
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match="there is no folder studnet, and the hub gives no such") as caught:
        read_folder("studnet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"label2id": {"bad": 1, "good": 0}}, "label 'bad' is 0 in id2label and 1 in label2id"),
        ({"id2label": {"0": "x", "1": "x"}}, "calls two labels 'x'"),
        ({"id2label": {"0": None, "1": "x"}}, "has an id2label with None, which is no name"),
        ({"problem_type": "foo"}, "has problem_type 'foo'; expected single_label_classification"),
        ({"model_type": ["bert"]}, "has no model_type that is a name"),
        ({"hidden_dropout_prob": float("nan")}, "has hidden_dropout_prob nan, which is no amount"),
    ],
)
def test_settings_that_contradict_each_other_or_are_none_are_refused_with_the_files_name(folder, keys, said):
    change(folder, **({"id2label": {"0": "bad", "1": "good"}, "label2id": None} | keys))
    message = refused(folder)
    assert said in message
    assert "config.json" in message


def test_names_that_only_label2id_has_are_the_labels_and_default_ones_beside_names_are_not(folder):
    file = folder / "config.json"
    content = json.loads(file.read_text()) | {"label2id": {"good": 1, "bad": 0}}
    content.pop("id2label", None)
    file.write_text(json.dumps(content))
    assert read_folder(folder).labels == ("bad", "good")
    change(folder, id2label={"0": "bad", "1": "good"}, label2id={"LABEL_0": 0, "LABEL_1": 1})
    assert read_folder(folder).labels == ("bad", "good")


@pytest.mark.parametrize("limit", [True, 0.5, float("nan"), -1])
def test_a_limit_that_is_no_length_is_none(folder, limit):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": limit}))
    assert read_folder(folder).tokenizer_limit is None
