"""Checkpoints without tokenizer.json are converted, and read texts as what their files were made with."""

import json
import unicodedata

import pytest
import sentencepiece
from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer
from transformers import AutoTokenizer

from potstill.checkpoint import load_checkpoint, load_tokenizer, save_tokenizer
from potstill.checkpoint import tokenizer as loading
from potstill.errors import CheckpointError, MissingExtraError
from potstill.serve import BundleTokenizer
from potstill.tasks import TEXT_CLASSIFICATION
from tests.checkpoint import made

# Of which sentencepiece knows nothing: special tokens in a text, and its own sign for a space.
TEXTS = [text for text in made.TEXTS if "▁" not in text and "[MASK]" not in text]
BERT_LIKE = {
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    "pad_piece": "[PAD]",
    "bos_piece": "[CLS]",
    "eos_piece": "[SEP]",
    "unk_piece": "[UNK]",
}
ALBERT_LIKE = {
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": -1,
    "eos_id": -1,
    "pad_piece": "<pad>",
    "control_symbols": "[CLS],[SEP]",
    "user_defined_symbols": "[MASK]",
}


def without_accents(text):
    return "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one)).lower()


# Family, file, how the model is trained, its ids less sentencepiece's, special tokens around a text, what goes before.
FAMILIES = {
    "DebertaV2": ("spm.model", BERT_LIKE, 0, ([1], [2]), str),
    "Albert": ("spiece.model", ALBERT_LIKE, 0, ([2], [3]), without_accents),
    "XLMRoberta": ("sentencepiece.bpe.model", {}, 1, ([0], [2]), str),
    "Camembert": ("sentencepiece.bpe.model", {}, 4, ([5], [6]), str),
}


def write(folder, family):
    file, settings, *_ = FAMILIES[family]
    content = made.train_sentencepiece(**settings)
    (folder / file).write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": f"{family}Tokenizer"}))
    made.write_model(folder, family, vocab_size=130)
    return sentencepiece.SentencePieceProcessor(model_proto=content)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sentencepiece_model_is_read_as_sentencepiece_reads_it(family, tmp_path):
    pieces = write(tmp_path, family)
    _, _, offset, (before, after), normalise = FAMILIES[family]
    tokenizer = load_checkpoint(str(tmp_path), TEXT_CLASSIFICATION).tokenizer
    unknown = tokenizer.unk_token_id
    for text in TEXTS:
        ids = [unknown if one == pieces.unk_id() else one + offset for one in pieces.encode(normalise(text))]
        assert tokenizer(text)["input_ids"] == [*before, *ids, *after], text


@pytest.mark.parametrize("family", ["DebertaV2", "Albert"])
def test_the_second_text_of_a_pair_has_type_one_where_the_model_has_two(family, tmp_path):
    write(tmp_path, family)
    tokenizer = load_tokenizer(str(tmp_path))
    encoded = tokenizer("film", "film")
    assert encoded["token_type_ids"][-1] == 1
    assert encoded["token_type_ids"][0] == 0


def test_what_was_converted_is_published_and_read_alike_by_transformers(tmp_path):
    write(tmp_path, "DebertaV2")
    out = tmp_path / "out"
    out.mkdir()
    tokenizer = load_tokenizer(str(tmp_path))
    (out / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    save_tokenizer(tokenizer, out)
    again = AutoTokenizer.from_pretrained(out)
    for text in made.TEXTS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert load_tokenizer(str(out))(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_conversion_that_reads_otherwise_than_sentencepiece_is_refused(tmp_path, monkeypatch):
    write(tmp_path, "DebertaV2")
    monkeypatch.setattr(loading, "SLOW_TO_FAST_CONVERTERS", {})
    with pytest.raises(CheckpointError, match="otherwise than sentencepiece does") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_sentencepiece_model_is_refused_in_one_line(tmp_path):
    write(tmp_path, "XLMRoberta")
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json, and transformers") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_extra_is_named_where_sentencepiece_is_missing(tmp_path, monkeypatch):
    write(tmp_path, "XLMRoberta")
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError, match=r"potstill\[distill\]"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_vocabulary_of_words_is_read_as_bert_does(lowercase, tmp_path):
    words = made.word_piece(lowercase=lowercase).get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    made.write_model(tmp_path, "Bert", vocab_size=len(words))
    tokenizer = load_checkpoint(str(tmp_path), TEXT_CLASSIFICATION).tokenizer
    own = BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=lowercase)
    for text in made.TEXTS:
        assert tokenizer(text)["input_ids"] == own.encode(text).ids, text


def test_byte_pairs_are_read_as_roberta_does(tmp_path):
    made.byte_pairs().model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    made.write_model(tmp_path, "Roberta", vocab_size=410)
    tokenizer = load_checkpoint(str(tmp_path), TEXT_CLASSIFICATION).tokenizer
    own = ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == [0, *own.encode(text).ids, 2], text


def test_byte_pairs_without_their_merges_are_refused(tmp_path):
    made.byte_pairs().model.save(str(tmp_path))
    (tmp_path / "merges.txt").unlink()
    made.write_model(tmp_path, "Roberta", vocab_size=410)
    with pytest.raises(CheckpointError, match=r"neither tokenizer.json nor merges.txt"):
        load_tokenizer(str(tmp_path))


def test_a_bundle_can_be_made_of_older_files(tmp_path):
    from potstill.export.source import load_source

    write(tmp_path, "XLMRoberta")
    out = tmp_path / "out"
    source = load_source(str(tmp_path))
    out.mkdir()
    source.config.save_pretrained(out)
    save_tokenizer(source.tokenizer, out)
    ours = BundleTokenizer(out, source)
    assert [row["input_ids"].tolist() for row in ours.rows(TEXTS[:6])] == [
        source.tokenizer(text)["input_ids"] for text in TEXTS[:6]
    ]
