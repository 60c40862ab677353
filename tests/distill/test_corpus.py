"""The corpus: every token of every text once, in rows that fit, the same whoever made them."""

import json
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from potstill.distill import corpus as corpus_module
from potstill.distill.corpus import load_corpus
from potstill.distill.teacher import train_tokenizer
from potstill.errors import DataError

WORDS = [f"{one}{two}" for one in "abcdefghij" for two in "klmnopqrst"]
CLS, SEP = 2, 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)], vocab_size=500, max_length=64)


@pytest.fixture(scope="module")
def texts():
    """Texts of 5 to 60 words, each word one token."""
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS, size=size)) for size in generator.integers(5, 61, size=120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def load(name, tokenizer, **settings):
    return load_corpus(str(name), split="train", tokenizer=tokenizer, **{"max_length": 32, "num_proc": 1} | settings)


def ordinary(corpus):
    return [token for row in corpus["input_ids"] for token in row if token not in {CLS, SEP}]


def ids_of(texts, tokenizer):
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def tokens_of(texts, tokenizer):
    return [token for ids in ids_of(texts, tokenizer) for token in ids]


def test_each_text_is_cut_into_rows_that_hold_all_of_it(folder, tokenizer, texts):
    corpus = load(folder, tokenizer)
    assert ordinary(corpus) == tokens_of(texts, tokenizer)
    assert all(row[0] == CLS and row[-1] == SEP for row in corpus["input_ids"])
    assert 7 <= min(corpus["length"]) <= max(corpus["length"]) == 32
    assert [len(row) for row in corpus["input_ids"]] == list(corpus["length"])
    assert corpus["attention_mask"] == [[1] * length for length in corpus["length"]]
    assert corpus["token_type_ids"] == [[0] * length for length in corpus["length"]]


def test_a_rest_that_is_too_short_takes_from_the_piece_before(tmp_path, tokenizer):
    (tmp_path / "train.txt").write_text(" ".join(WORDS[:62]) + "\n")
    assert list(load(tmp_path, tokenizer)["length"]) == [32, 29, 7]  # 30 + 27 + 5 tokens and two around each


def test_blocks_are_running_text_with_a_separator_between_documents(folder, tokenizer, texts):
    corpus = load(folder, tokenizer, packing="blocks")
    assert set(corpus["length"]) == {32}
    running = [token for ids in ids_of(texts, tokenizer) for token in [*ids, SEP]]
    got = [token for row in corpus["input_ids"] for token in row[1:-1]]
    assert got == running[: len(got)]
    assert len(running) - len(got) < 30


def test_less_than_one_block_is_one_row(tmp_path, tokenizer):
    (tmp_path / "train.txt").write_text(" ".join(WORDS[:6]) + "\n")
    corpus = load(tmp_path, tokenizer, packing="blocks")
    assert list(corpus["length"]) == [9]


def test_packed_rows_tell_their_texts_apart(folder, tokenizer):
    alone, packed = load(folder, tokenizer), load(folder, tokenizer, packing="texts")
    found = []
    for row in packed:
        for number in range(1, max(row["segments"]) + 1):
            places = [place for place, segment in enumerate(row["segments"]) if segment == number]
            assert [row["position_ids"][place] for place in places] == list(range(len(places)))
            found.append([row["input_ids"][place] for place in places])
    assert sorted(found) == sorted(alone["input_ids"])
    assert len(packed) < 0.9 * len(alone)
    assert max(packed["length"]) <= 32


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_rows_do_not_depend_on_the_number_of_processes(folder, tokenizer):
    for packing in ("blocks", "texts"):
        one, two = (load(folder, tokenizer, packing=packing, num_proc=count) for count in (1, 2))
        assert one.to_dict() == two.to_dict()


def test_all_formats_and_shards_hold_the_same(tmp_path, folder, tokenizer, texts):
    expected = load(folder, tokenizer).to_dict()
    files = {
        "a/train.txt": "\n\n".join(texts) + "\n   \n",
        "b/train.json": json.dumps([{"id": 1, "sentence": text} for text in texts]),
        "c/train.csv": "\ufeffid,text\r\n" + "".join(f'1,"{text}"\r\n' for text in texts),
        "d/train.tsv": "id\ttext\n" + "".join(f"1\t{text}\n" for text in texts),
        "e/train-00001-of-00002.txt": "\n".join(texts[50:]),
        "e/train-00000-of-00002.txt": "\n".join(texts[:50]),
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "f").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"content": texts}), tmp_path / "f/train.parquet")
    for name in "abcdef":
        assert load(tmp_path / name, tokenizer).to_dict() == expected
    assert load(tmp_path / "a/train.txt", tokenizer).to_dict() == expected


def test_what_was_made_is_found_again_until_something_changes(tmp_path, folder, tokenizer, monkeypatch):
    first = load(folder, tokenizer, cache_dir=tmp_path, packing="texts")
    tokenizer("any text", truncation=True, max_length=4)  # leaves its settings behind in the tokenizer
    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "read_texts", None)  # nothing is read a second time
        again = load(folder, tokenizer, cache_dir=tmp_path, packing="texts")
    assert again.to_dict() == first.to_dict()
    load(folder, tokenizer, cache_dir=tmp_path, packing="texts", limit=20)
    folders = list(tmp_path.iterdir())
    assert len(folders) == 2
    assert [[file.name for file in found.iterdir()] for found in folders] == [["corpus.arrow"]] * 2


def test_rows_live_on_disk_and_go_with_the_data_set(folder, tokenizer):
    corpus = load(folder, tokenizer)
    file = Path(corpus.cache_files[0]["filename"])
    assert file.is_file()
    del corpus
    assert not file.parent.exists()


def test_the_limit_counts_texts(folder, tokenizer, texts):
    assert ordinary(load(folder, tokenizer, limit=3)) == tokens_of(texts[:3], tokenizer)


def test_a_stream_of_the_hub_is_read_no_further_than_the_limit(tokenizer, texts, monkeypatch):
    read = []

    def rows():
        for text in texts:
            read.append(text)
            yield {"text": text}

    asked = {}

    def load_dataset(name, configuration, **settings):
        asked.update(settings, name=name, configuration=configuration)
        return datasets.IterableDataset.from_generator(
            rows, features=datasets.Features({"text": datasets.Value("string")})
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(corpus_module, "check_name", lambda *_: None)  # the hub has it
    corpus = load("owner/huge:en", tokenizer, streaming=True, limit=7)
    assert asked == {"name": "owner/huge", "configuration": "en", "split": "train", "streaming": True}
    assert ordinary(corpus) == tokens_of(texts[:7], tokenizer)
    assert len(read) <= 8


def test_a_data_set_of_the_hub_need_not_be_copied(tokenizer, texts, monkeypatch):
    loaded = datasets.Dataset.from_dict({"title": texts, "document": texts})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded)
    monkeypatch.setattr(corpus_module, "check_name", lambda *_: None)
    assert ordinary(load("owner/small", tokenizer, limit=5)) == tokens_of(texts[:5], tokenizer)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.jsonl", '{"text": "a"}\n{"text": 3}\n', "row 2: the text column holds 3"),
        ("train.jsonl", '{"text": "a"}\n\n{"text"\n', "line 3 is not JSON"),
        ("train.jsonl", '{"words": "a"}\n', "row 1 has no text column that potstill knows; it has words"),
        ("train.jsonl", '{"text": "a"}\n{"words": "a"}\n', "row 2 has no column 'text'"),
        ("train.csv", "text,id\na\n", "line 2 has 1 columns, the head has 2"),
        ("train.parquet", "no parquet", "is not a parquet file"),
        ("train.txt", "\n  \n", "has no text"),
        ("train.txt", "ak al\n", "no text of 5 tokens or more"),
        ("test.txt", "ak al\n", "has no train.*; it has test.txt"),
    ],
)
def test_broken_data_is_named_and_nothing_is_left_behind(tmp_path, tokenizer, monkeypatch, file, content, message):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / file).write_text(content)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DataError, match=message):
        load(tmp_path / "data", tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_bytes_that_are_no_text_are_named(tmp_path, tokenizer):
    (tmp_path / "train.txt").write_bytes(b"good\n\xff\xfe\n")
    with pytest.raises(DataError, match="line 2 is not UTF-8"):
        load(tmp_path, tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"streaming": True}, "streaming needs a limit"),
        ({"streaming": True, "limit": 3}, "streaming is for data sets of the hub"),
        ({"max_length": 6}, "max_length is 6"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder, tokenizer, settings, message):
    with pytest.raises(DataError, match=message):
        load(folder, tokenizer, **settings)


def test_a_missing_folder_is_no_hub_id(tokenizer):
    with pytest.raises(DataError, match="there is no file or folder"):
        load("./nowhere", tokenizer)


def test_a_tenth_of_one_file_of_running_text_is_held_out(tmp_path, tokenizer, texts):
    """What is learned from and what is scored have no text in common, and all texts are in one of them."""
    lines = [" ".join([f"{number:03d}", *WORDS[number % 50 :][:8]]) for number in range(300)]
    (tmp_path / "all.txt").write_text("\n".join(lines) + "\n")
    file = tmp_path / "all.txt"
    parts = [
        list(corpus_module.read_texts(split=split, files=[file], column=None))
        for split in ("train/rest", "train/held-out")
    ]
    assert sorted(parts[0] + parts[1]) == sorted(lines)
    assert 15 <= len(parts[1]) <= 50
    rows = [
        load_corpus(str(tmp_path / "all.txt"), split=split, tokenizer=tokenizer, max_length=32, num_proc=1)
        for split in ("train/rest", "train/held-out")
    ]
    assert [len(each) for each in rows] == [len(part) for part in parts]


def test_rows_that_are_in_both_are_counted(tmp_path, tokenizer):
    from potstill.distill.batches import count_shared, hash_rows

    (tmp_path / "train.txt").write_text("".join(" ".join(WORDS[start:][:9]) + "\n" for start in range(6)))
    (tmp_path / "other.txt").write_text("".join(" ".join(WORDS[start:][:9]) + "\n" for start in range(4, 9)))
    one, other = (
        load_corpus(str(tmp_path / f"{name}.txt"), split="train", tokenizer=tokenizer, max_length=32, num_proc=1)
        for name in ("train", "other")
    )
    assert count_shared(other, one) == 2
    assert hash_rows(one) == hash_rows(one)
    assert hash_rows(one) != hash_rows(one.select(range(5)))
