"""A path that begins with ~ is one in the user's folder, also where no shell has expanded it: in Python and in YAML."""

import shutil
from pathlib import Path

import pytest

from potstill.bench.models import name_models, read_models
from potstill.bundle import read_bundle
from potstill.checkpoint.model import hash_checkpoint
from potstill.config import load_recipe
from potstill.export.onnx_source import find_onnx_source
from potstill.serve import Encoder


@pytest.fixture
def home(tiny_bundle, tiny_teacher, tmp_path, monkeypatch):
    for name, folder in (("bundle", tiny_bundle), ("teacher", tiny_teacher)):
        shutil.copytree(folder, tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_bundles_checkpoints_onnx_files_and_recipes_are_found(home):
    assert read_bundle(Path("~/bundle")).folder == home / "bundle"
    assert Encoder("~/bundle").predict("good")
    assert read_models(name_models(["~/bundle"]))["bundle"].bundle is not None
    assert hash_checkpoint("~/teacher") == hash_checkpoint(str(home / "teacher")) is not None
    assert find_onnx_source("~/bundle/onnx/model.onnx").file == home / "bundle/onnx/model.onnx"
    (home / "mine.yaml").write_text("task: text-classification\nteacher: {model: somebody/bert}\ndata: {name: rows}\n")
    assert load_recipe("~/mine.yaml").teacher.model == "somebody/bert"


def test_a_file_to_predict_is_found(home, potstill):
    (home / "rows.jsonl").write_text('{"text": "good"}\n')
    code, _, err = potstill("predict", "~/bundle", "~/rows.jsonl", "--out", str(home / "out.jsonl"))
    assert code == 0, err


def test_a_bundle_is_scored(home, potstill, tiny_data):
    code, _, err = potstill("evaluate", "~/bundle", "--data", str(tiny_data), "--json")
    assert code == 0, err
