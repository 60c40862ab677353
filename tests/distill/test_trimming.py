"""A checkpoint with a trimmed vocabulary answers as before, whatever its family, head and tokenizer."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from potstill.checkpoint import load_checkpoint
from potstill.config import build_recipe
from potstill.distill import distill, trim
from potstill.distill.trimming import trim_model
from potstill.errors import CheckpointError, OutputError
from potstill.tasks import FEATURE_EXTRACTION, TEXT_CLASSIFICATION
from tests.checkpoint import made, sentence_folders
from tests.distill import families

KEPT = sorted({0, 1, 2, 3, *range(5, families.VOCABULARY, 2)})
KINDS = (
    "WordPiece as BertTokenizer",
    "WordPiece as RobertaTokenizer",
    "byte-level BPE as RobertaTokenizer",
    "Unigram with Precompiled as XLMRobertaTokenizer",
    "Unigram with Precompiled as DebertaV2Tokenizer",
    "Unigram with Metaspace alone as AlbertTokenizer",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Texts of a task that has half of the tokenizers' words."""
    folder = tmp_path_factory.mktemp("trimming") / "data"
    folder.mkdir()
    texts = [" ".join(word for word in text.split() if word in made.WORDS[::2]) for text in made.corpus()]
    for split, rows in (("train", texts[:80]), ("validation", texts[80:120])):
        lines = [json.dumps({"text": text}) for text in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=KINDS)
def pair(request, data, tmp_path_factory):
    """A checkpoint and what `trim` makes of it."""
    folder = tmp_path_factory.mktemp("trimming")
    made.write_checkpoint(folder / "whole", request.param)
    trim(str(folder / "whole"), folder / "smaller", data=str(data), vocabulary="min-count=1", other_data=str(data))
    return folder / "whole", folder / "smaller"


@pytest.mark.parametrize(("family", "head"), families.PAIRS)
def test_each_family_answers_the_same_to_ids_that_stay(family, head):
    model = families.build(family, head)
    smaller = trim_model(model, KEPT)
    batch = families.batch_for(model)
    batch.pop("labels", None)
    old = batch["input_ids"].apply_(lambda number: min(KEPT, key=lambda one: abs(one - number)))
    new = old.clone().apply_(KEPT.index)
    with torch.inference_mode():
        expected = model(**batch | {"input_ids": old})[0]
        found = smaller(**batch | {"input_ids": new})[0]
    if head == "ForMaskedLM":
        expected = expected[..., KEPT]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert smaller.config.vocab_size == len(KEPT) == smaller.get_input_embeddings().weight.shape[0]
    assert model.config.vocab_size == families.VOCABULARY


def test_a_head_that_is_not_tied_keeps_its_own_rows():
    model = families.build("Bert", tie_word_embeddings=False)
    smaller = trim_model(model, KEPT)
    assert torch.equal(smaller.get_output_embeddings().weight, model.get_output_embeddings().weight[KEPT])
    assert not torch.equal(smaller.get_output_embeddings().weight, smaller.get_input_embeddings().weight)


def test_special_ids_of_the_configuration_follow():
    config = {"pad_token_id": 1, "bos_token_id": 7, "eos_token_id": 9, "cls_token_id": 7, "sep_token_id": 9}
    smaller = trim_model(families.build("ModernBert", **config), KEPT)
    found = {key: getattr(smaller.config, key) for key in config}
    assert found == {key: KEPT.index(number) for key, number in config.items()}


def test_texts_whose_pieces_all_stay_have_equal_answers(pair):
    models = [AutoModelForSequenceClassification.from_pretrained(folder).eval() for folder in pair]
    files = [Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in pair]
    same = 0
    for text in [*made.TEXTS, *made.corpus()[:20], *made.WORDS]:
        encodings = [file.encode(text) for file in files]
        if encodings[0].tokens != encodings[1].tokens or len(encodings[0].ids) > made.LONGEST:
            continue
        same += 1
        answers = [
            model(input_ids=torch.tensor([encoding.ids])).logits
            for model, encoding in zip(models, encodings, strict=True)
        ]
        torch.testing.assert_close(*answers, atol=1e-6, rtol=0)
    assert same > 20


def test_transformers_reads_the_files_ids(pair):
    smaller = pair[1]
    loaded, file = AutoTokenizer.from_pretrained(smaller), Tokenizer.from_file(str(smaller / "tokenizer.json"))
    for text in [*made.TEXTS, "👩‍👩‍👧", "漢字", "مرحبا"]:
        assert loaded(text)["input_ids"] == file.encode(text).ids
    before = AutoTokenizer.from_pretrained(pair[0])
    assert loaded.pad_token == before.pad_token
    assert loaded.pad_token_id == file.token_to_id(before.pad_token)
    rows = AutoModelForSequenceClassification.from_pretrained(smaller).get_input_embeddings().weight.shape[0]
    assert rows == file.get_vocab_size()
    # No file beside it names ids of the whole vocabulary.
    assert not {"vocab.txt", "vocab.json", "merges.txt"} & {path.name for path in smaller.iterdir()}
    named = json.loads((smaller / "tokenizer_config.json").read_text()).get("added_tokens_decoder", {})
    assert all(file.token_to_id(token["content"]) == int(number) for number, token in named.items())


def test_positions_behind_the_padding_stay_where_they_are(pair):
    whole, smaller = (json.loads((folder / "config.json").read_text()) for folder in pair)
    if whole["model_type"] in {"roberta", "xlm-roberta"}:
        assert whole["pad_token_id"] == smaller["pad_token_id"] == 1


def test_the_report_counts_rows_parameters_and_tokens(pair, data):
    record = json.loads((pair[1] / "distill.json").read_text())["vocabulary"]
    rows = [
        AutoModelForSequenceClassification.from_pretrained(folder).get_input_embeddings().weight.shape[0]
        for folder in pair
    ]
    assert [record["rows_before"], record["rows"]] == rows
    width = AutoModelForSequenceClassification.from_pretrained(pair[1]).get_input_embeddings().weight.shape[1]
    assert record["parameters_saved"] == (rows[0] - rows[1]) * width
    texts = [json.loads(line)["text"] for line in (data / "validation.jsonl").read_text().splitlines()]
    for key, folder in (("before", pair[0]), ("after", pair[1])):
        file = Tokenizer.from_file(str(folder / "tokenizer.json"))
        mean = sum(len(file.encode(text, add_special_tokens=False).ids) for text in texts) / len(texts)
        assert record["tokens_per_text"][0][key] == pytest.approx(mean)
    assert record["counted_on"] == f"{data} (train)"


def test_a_folder_of_sentence_transformers_keeps_its_modules(data, tmp_path):
    made.write_tokenizer(tmp_path / "encoder", made.word_piece(), "BertTokenizer", made.BRACKETS)
    size = made.word_piece().get_vocab_size()
    made.write_model(tmp_path / "encoder", "Bert", head="Model", vocab_size=size)
    dense = sentence_folders.dense(16, 8)
    whole = sentence_folders.make_folder(
        tmp_path / "whole",
        sentence_folders.old_pooling("mean", width=16),
        dense,
        ("Normalize", {}, {}),
        encoder=tmp_path / "encoder",
        longest=20,
        prompts={"prompts": {"query": "q: "}},
    )
    trim(str(whole), tmp_path / "smaller", data=str(data), vocabulary="min-count=1", other_data=str(data))
    kept = ("modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "sentence_bert_config.json")
    for name in (*kept, "config_sentence_transformers.json"):
        assert (tmp_path / "smaller" / name).read_bytes() == (whole / name).read_bytes()
    assert load_checkpoint(str(tmp_path / "smaller"), FEATURE_EXTRACTION).model.config.vocab_size < size


def test_a_student_learns_with_the_pieces_of_its_task(tiny_teacher, tiny_data, tmp_path):
    values = {"teacher": {"model": str(tiny_teacher)}, "data": {"name": str(tiny_data)}, "max_length": 32}
    settings = {"student.layers": 2, "student.vocabulary": "min-count=20", "student.other_data": str(tiny_data)}
    settings |= {"distill.learning_rate": 1e-3, "distill.epochs": 2}
    told = []
    report = distill(
        build_recipe(values, overrides=list(settings.items())),
        tmp_path / "student",
        announce=lambda headline, figures: told.append((headline, figures)),
    )
    assert [headline for headline, _ in told[:2]] == ["vocabulary", "plan"]
    assert told[0][1] == report["vocabulary"]
    assert told[1][1]["teacher_parameters"] == report["teacher"]["parameters"]
    rows = report["vocabulary"]["rows"]
    assert (
        rows
        < report["vocabulary"]["rows_before"]
        == load_checkpoint(str(tiny_teacher), TEXT_CLASSIFICATION).model.config.vocab_size
    )
    student = load_checkpoint(str(tmp_path / "student"), TEXT_CLASSIFICATION)
    assert student.model.config.vocab_size == len(student.tokenizer) == rows
    # The teacher's score is that of its whole vocabulary; the trimmed one that taught is told beside it.
    assert report["teacher"]["scores"]["accuracy"] >= 0.95
    assert set(report["teacher"]["trimmed_scores"]) == set(report["teacher"]["scores"])
    assert report["student"]["scores"]["accuracy"] >= 0.9
    assert report["teacher"]["parameters"] - report["student"]["parameters"] > report["vocabulary"]["parameters_saved"]


def test_nothing_is_written_where_something_is(data, tmp_path):
    whole = made.write_checkpoint(tmp_path / "whole", KINDS[0])
    with pytest.raises(OutputError, match="is not empty"):
        trim(str(whole), whole, data=str(data))
    with pytest.raises(CheckpointError, match="a vocabulary of 3 cannot be"):
        trim(str(whole), tmp_path / "smaller", data=str(data), vocabulary=3)
    assert not (tmp_path / "smaller").exists()
