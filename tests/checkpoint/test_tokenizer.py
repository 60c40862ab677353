"""Every command reads texts as the checkpoint's tokenizer.json says, whatever class its name would make of it."""

import json

import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

from potstill.bench.runners import torch_runner
from potstill.checkpoint import load_checkpoint, load_tokenizer, reference_tokenizer, save_tokenizer
from potstill.config import ExportConfig, build_recipe
from potstill.data import Examples
from potstill.distill import distill
from potstill.distill.batches import make_collator, tokenize
from potstill.distill.corpus import load_corpus
from potstill.errors import CheckpointError
from potstill.export import export_bundle, tokenizer_parity
from potstill.export.source import load_source
from potstill.export.tokenizer_parity import check_tokenizer_parity
from potstill.serve import BundleTokenizer
from potstill.tasks import TEXT_CLASSIFICATION
from tests.checkpoint import made
from tests.tiny import write_data

ALL = (*made.TEXTS, *made.PAIRS)
WITH_TYPES = {
    "WordPiece as BertTokenizer",
    "WordPiece as DistilBertTokenizer beside a BERT",
    "WordPiece as ElectraTokenizer",
    "Unigram with Metaspace alone as AlbertTokenizer",
}


@pytest.fixture(scope="module", params=made.KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return made.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model", kind)


@pytest.fixture(scope="module")
def checkpoint(folder):
    return load_checkpoint(str(folder), TEXT_CLASSIFICATION)


def equal(found, expected):
    """Compare ids, and types where the model is given any."""
    assert found["input_ids"] == expected["input_ids"]
    if "token_type_ids" in found:
        assert found["token_type_ids"] == expected["token_type_ids"]


def of_rows(rows):
    return {name: [row[name].tolist() for row in rows] for name in rows[0] if name != "attention_mask"}


def test_token_types_are_given_where_the_model_has_rows_for_them(kind, checkpoint):
    if kind in WITH_TYPES:
        assert "token_type_ids" in checkpoint.tokenizer.model_input_names
    if kind == "WordPiece as RobertaTokenizer":
        assert "token_type_ids" not in checkpoint.tokenizer.model_input_names


@pytest.mark.parametrize("texts", [made.TEXTS, made.PAIRS], ids=["alone", "pairs"])
def test_training_and_evaluation_collate_the_files_ids(folder, checkpoint, texts):
    examples = Examples(name="", split="", texts=list(texts), labels=None, label_names=(), sha256="")
    rows = tokenize(examples, checkpoint.tokenizer, max_length=made.LONGEST)
    batch = make_collator(checkpoint.tokenizer)([rows[number] for number in range(len(rows))])
    mask = batch.pop("attention_mask")
    found = {name: made.unpadded(values, mask) for name, values in batch.items()}
    equal(found, made.columns(made.reference(folder).encode_batch(list(texts))))


def test_running_text_has_the_files_ids(folder, checkpoint, tmp_path):
    texts = [*made.corpus()[:5], *(text.strip() for text in made.TEXTS if len(text.split()) > 4)]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = load_corpus(str(tmp_path), split="train", tokenizer=checkpoint.tokenizer, max_length=made.LONGEST)
    own = made.reference(folder, max_length=1000)
    # Texts of fewer than 5 tokens are left out, and long ones are cut into several rows.
    least = 5 + own.num_special_tokens_to_add(is_pair=False)
    expected = [ids for ids in (own.encode(text).ids for text in texts) if least <= len(ids) <= made.LONGEST]
    assert len(expected) > 5
    assert all(ids in rows["input_ids"] for ids in expected)


def test_the_bundle_reads_the_files_ids_and_publishes_the_file(folder, kind, tmp_path):
    source = load_source(str(folder))
    source.config.save_pretrained(tmp_path)
    save_tokenizer(source.tokenizer, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    ours = BundleTokenizer(tmp_path, source)
    assert ("token_type_ids" in source.inputs) or kind not in WITH_TYPES
    equal(of_rows(ours.rows(ALL)), made.columns(made.reference(folder).encode_batch(list(ALL))))


def test_whoever_loads_the_bundle_by_transformers_gets_the_files_ids(folder, tmp_path):
    source = load_source(str(folder))
    source.config.save_pretrained(tmp_path)
    save_tokenizer(source.tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    own = made.reference(folder, max_length=10_000)
    for text in made.TEXTS:
        assert loaded(text)["input_ids"] == own.encode(text).ids
    assert loaded.pad_token_id == source.tokenizer.pad_token_id
    assert loaded.mask_token_id == source.tokenizer.mask_token_id


def test_benchs_torch_runner_reads_the_files_ids(folder):
    command = {"precision": "fp32", "runner": "torch-cpu", "threads": 1, "max_length": None}
    command |= {"task": "text-classification", "folder": str(folder)}
    runner = torch_runner.open_runner(command)
    equal(of_rows(runner.tokenizer.rows(ALL)), made.columns(made.reference(folder).encode_batch(list(ALL))))


def test_a_file_that_cuts_and_pads_is_published_without_that(tmp_path):
    folder = made.write_checkpoint(tmp_path / "model", "WordPiece as BertTokenizer")
    own = made.reference(folder)
    own.enable_truncation(8)
    own.enable_padding(length=8, direction="left")
    own.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer("the film was not good and it is bad")["input_ids"][-1] == tokenizer.sep_token_id
    assert len(tokenizer("the film was not good and it is bad")["input_ids"]) == 11
    save_tokenizer(tokenizer, tmp_path)
    published = json.loads((tmp_path / "tokenizer.json").read_bytes())
    assert published["padding"] is published["truncation"] is None


@pytest.mark.parametrize(
    ("saved", "named"),
    [
        ("WordPiece as BertTokenizer", "BertTokenizer"),
        # Whose ids RobertaTokenizer, the family's own, would not give.
        ("WordPiece as RobertaTokenizer", "PreTrainedTokenizerFast"),
    ],
)
def test_a_generic_tokenizer_is_published_by_a_name_that_other_tools_know(saved, named, tmp_path):
    folder = made.write_checkpoint(tmp_path / "model", saved)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    # As transformers 5 writes it.
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "TokenizersBackend"}))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_tokenizer(load_tokenizer(str(folder)), tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == named
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("the film").input_ids == made.reference(folder).encode("the film").ids


def test_special_tokens_that_only_an_older_file_or_the_class_names_are_found(tmp_path):
    folder = made.write_checkpoint(tmp_path / "model", "WordPiece as BertTokenizer")
    for content, kept in (({"tokenizer_class": "BertTokenizer"}, False), ({}, True)):
        (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
        if not kept:
            (folder / "special_tokens_map.json").unlink()
        tokenizer = load_tokenizer(str(folder))
        assert (tokenizer.pad_token, tokenizer.mask_token, tokenizer.cls_token) == ("[PAD]", "[MASK]", "[CLS]")


def test_a_special_token_that_the_file_does_not_know_gets_no_new_id(tmp_path):
    folder = made.write_checkpoint(tmp_path / "model", "WordPiece as BertTokenizer")
    rows = made.reference(folder).get_vocab_size()
    made.write_tokenizer(folder, made.word_piece(), "BertTokenizer", made.BRACKETS | {"bos": "<begin>"})
    tokenizer = load_tokenizer(str(folder))
    assert len(tokenizer) == rows
    assert tokenizer.bos_token is None


def test_export_compares_its_tokenizer_with_the_checkpoints_file(tmp_path):
    folder = made.write_checkpoint(tmp_path / "model", "Unigram with Precompiled as DebertaV2Tokenizer")
    tokenizer = load_tokenizer(str(folder))
    assert reference_tokenizer(tokenizer).encode("ﬁne ½").ids == made.reference(folder).encode("ﬁne ½").ids
    loaded = AutoTokenizer.from_pretrained(folder)  # which transformers 5 builds anew
    assert loaded("ﬁne ½")["input_ids"] != made.reference(folder).encode("ﬁne ½").ids


def test_a_whole_export_of_a_wordpiece_roberta_is_served_by_the_files_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(
        tokenizer_parity, "NASTY", tuple(text for text in tokenizer_parity.NASTY if len(str(text)) < 5000)
    )
    monkeypatch.setattr(tokenizer_parity, "TEXTS", 200)
    folder = made.write_checkpoint(tmp_path / "model", "WordPiece as RobertaTokenizer")
    config = ExportConfig(precisions=["fp32"], calibration_texts=8, judged_texts=16, allow_unfused=True)
    manifest = export_bundle(str(folder), tmp_path / "bundle", config=config)
    assert manifest.tokenizer_parity.equal
    assert manifest.models["fp32"].invariance.invariant
    ours = BundleTokenizer(tmp_path / "bundle", manifest)
    equal(of_rows(ours.rows(ALL)), made.columns(made.reference(folder).encode_batch(list(ALL))))
    check_tokenizer_parity(ours, made.reference(folder), list(ALL), max_length=made.LONGEST)


def test_a_tokenizer_that_needs_code_of_its_own_is_refused(tmp_path):
    folder = made.write_tokenizer(
        tmp_path / "model", made.word_piece(), "MyTokenizer", made.BRACKETS, auto_map={"AutoTokenizer": ["a.B", None]}
    )
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json asks for code of its own \(auto_map\)"):
        load_tokenizer(str(folder))


def test_words_are_not_glued_together_by_a_byte_level_tokenizer(tmp_path):
    folder = made.write_checkpoint(tmp_path / "model", "byte-level BPE as RobertaTokenizer")
    words = Examples(name="", split="", texts=[["good", "film"]], labels=None, label_names=(), sha256="")
    with pytest.raises(CheckpointError, match="marks a word by the space before it"):
        tokenize(words, load_tokenizer(str(folder)), max_length=made.LONGEST)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(content))
    rows = tokenize(words, load_tokenizer(str(folder)), max_length=made.LONGEST)
    assert rows["input_ids"][0] == made.reference(folder).encode("good film").ids


def test_a_student_of_ones_own_is_published_with_the_tokenizer_that_it_learned_by(tmp_path):
    tokenizer = made.word_piece()
    for name, lowercase in (("teacher", True), ("student", False)):
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        made.write_tokenizer(tmp_path / name, tokenizer, "BertTokenizer", made.BRACKETS)
        names = {"id2label": {"0": "mountain", "1": "sea"}, "label2id": {"mountain": 0, "sea": 1}}
        made.write_model(tmp_path / name, "Bert", vocab_size=tokenizer.get_vocab_size(), config=names)
    given = {
        "teacher.model": str(tmp_path / "teacher"),
        "student.model": str(tmp_path / "student"),
        "data.name": str(write_data(tmp_path / "data", train=16, validation=8)),
        "max_length": made.LONGEST,
        "distill.max_steps": 1,
        "distill.allow_weak_teacher": True,
    }
    distill(build_recipe({}, overrides=list(given.items()), origin="test"), tmp_path / "out")
    published, teachers = (tmp_path / name / "tokenizer.json" for name in ("out", "teacher"))
    assert published.read_bytes() == teachers.read_bytes()
