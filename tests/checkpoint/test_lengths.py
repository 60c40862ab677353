"""Usable positions are counted once: every command names the same longest text, and reads a text of that length."""

import json
import subprocess
import sys

import pytest

from potstill.bench.runners import torch_runner
from potstill.checkpoint import fit_length
from potstill.config import build_recipe
from potstill.distill import distill
from potstill.distill.evaluation import evaluate
from potstill.distill.run import finetune
from potstill.errors import CheckpointError
from potstill.export.source import load_source
from tests.checkpoint import made
from tests.tiny import write_data


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A RoBERTa with 66 positions and padding id 1: it reads 64 tokens. Its tokenizer says nothing."""
    folder = tmp_path_factory.mktemp("roberta") / "model"
    tokenizer = made.byte_pairs()
    made.write_tokenizer(folder, tokenizer, "RobertaTokenizer", made.ANGLES, model_max_length=None)
    names = {"id2label": {"0": "mountain", "1": "sea"}, "label2id": {"mountain": 0, "sea": 1}}
    size = tokenizer.get_vocab_size()
    made.write_model(folder, "Roberta", vocab_size=size, max_position_embeddings=66, config=names)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Texts that are longer than 64 tokens."""
    folder = write_data(tmp_path_factory.mktemp("data") / "texts", train=16, validation=8)
    for file in folder.iterdir():
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps(row | {"sentence": " ".join([row["sentence"]] * 20)}) for row in rows]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def recipe(model, data, **settings):
    given = {"teacher.model": str(model), "data.name": str(data), **settings}
    return build_recipe({}, overrides=list(given.items()), origin="test")


@pytest.mark.parametrize("asked", [65, 66, 128])
def test_every_command_names_the_longest_that_it_reads(asked, roberta, data, tmp_path):
    named = rf"max_length is {asked} and .*66 positions, of which 64 can be used.*set max_length to 64 or less"
    with pytest.raises(CheckpointError, match=named):
        distill(recipe(roberta, data, max_length=asked), tmp_path / "out")
    with pytest.raises(CheckpointError, match=named):
        finetune(recipe(roberta, data, max_length=asked), tmp_path / "out")
    with pytest.raises(CheckpointError, match=named):
        evaluate(roberta, data=data, max_length=asked)
    with pytest.raises(CheckpointError, match=f"max_length is {asked}; .* 64 tokens"):
        load_source(str(roberta), max_length=asked)


def test_without_a_length_every_command_takes_what_the_model_reads(roberta, data):
    assert fit_length([str(roberta)], 128, was_set=False) == 64
    assert load_source(str(roberta)).max_length == 64
    command = {"precision": "fp32", "runner": "torch-cpu", "threads": 1, "max_length": None}
    command |= {"task": "text-classification", "folder": str(roberta)}
    assert torch_runner.open_runner(command).tokenizer.max_length == 64
    assert evaluate(roberta, data=data)["num_examples"] == 8


def test_texts_of_the_longest_length_are_scored(roberta, data):
    assert evaluate(roberta, data=data, max_length=64)["num_examples"] == 8


def test_evaluate_refuses_a_length_before_torch_is_loaded(roberta, data):
    code = (
        "import sys; from potstill.cli import main; sys.argv[0] = 'potstill'\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    arguments = ["evaluate", str(roberta), "--data", str(data), "--max-length", "1024"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "False\n"
    assert done.stderr.count("\n") == 1
    assert "--max-length is 1024" in done.stderr
    assert "pass --max-length 64 or less" in done.stderr


def test_relative_positions_are_only_held_against_the_tokenizers_limit(tmp_path):
    tokenizer = made.unigram(precompiled=True)
    for limit, longest in ((48, 48), (10**30, None)):
        folder = tmp_path / str(longest)
        made.write_tokenizer(folder, tokenizer, "DebertaV2Tokenizer", made.BRACKETS, model_max_length=limit)
        made.write_model(folder, "DebertaV2", vocab_size=tokenizer.get_vocab_size())
        assert load_source(str(folder)).max_length == (longest or made.LONGEST)
        if longest is None:
            assert load_source(str(folder), max_length=4 * made.LONGEST).max_length == 4 * made.LONGEST
        else:
            with pytest.raises(CheckpointError, match=r"reads 1 to 48 tokens"):
                load_source(str(folder), max_length=49)


def test_a_run_without_a_length_trains_and_exports_at_what_the_teacher_reads(roberta, data, tmp_path):
    from potstill.pipeline import export_config

    given = recipe(roberta, data, **{"distill.max_steps": 1, "distill.allow_weak_teacher": True})
    report = distill(given, tmp_path / "student")
    assert report["recipe"]["max_length"] == 64
    assert export_config(given, [str(roberta), str(tmp_path / "student")]).max_length == 64
