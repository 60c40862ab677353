"""`potstill predict` as a user meets it."""

import json
from importlib.util import find_spec

import pytest

from tests import sealed


def test_predict(potstill, tiny_bundle, tiny_data, tmp_path):
    file, out = tiny_data / "validation.jsonl", tmp_path / "out.jsonl"
    code, stdout, err = potstill("predict", tiny_bundle, file, "--out", out, "--parameters", '{"top_k": 1}')
    assert (code, err) == (0, "predict ...\npredict: done\n")
    assert stdout.startswith("80 rows, in ")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    right = [row["answer"][0]["label"] == ("mountain", "sea")[row["label"]] for row in rows]
    assert sum(right) >= 76
    assert {len(row["answer"]) for row in rows} == {1}
    code, stdout, _ = potstill("predict", tiny_bundle, file, "--out", out, "--overwrite", "--json")
    assert {"output": str(out), "rows": 80, "failed": 0, "resumed_rows": 0}.items() <= json.loads(stdout).items()
    code, stdout, err = potstill("predict", tiny_bundle, file, "--out", out)
    assert (code, stdout) == (2, "")
    assert err.startswith(f"error: {out} is there already; pass --overwrite")


def test_bad_rows_are_told(potstill, tiny_bundle, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text('{"text": "the sea"}\n{"text": 7}\n')
    code, out, err = potstill("predict", tiny_bundle, file, "--out", tmp_path / "out.csv")
    assert (code, out) == (2, "")
    assert f"error: {file} line 2 column 'text' holds a number, not a text" in err
    code, out, err = potstill("predict", tiny_bundle, file, "--out", tmp_path / "out.csv", "--on-error", "skip")
    assert (code, "2 rows, 1 of them without an answer" in out) == (0, True)
    assert "warning: line 2 column 'text'" in err


def test_parameters_must_be_json(potstill, tmp_path):
    folder = sealed.write_folder(tmp_path / "bundle")
    for given, said in (("{", "--parameters is not JSON"), ("[]", "must be a JSON object")):
        code, _, err = potstill("predict", folder, "x.jsonl", "--out", "-", "--parameters", given)
        assert (code, said in err) == (2, True)


@pytest.mark.skipif(find_spec("openvino") is None, reason="pip install 'potstill[openvino]'")
def test_another_engine_gives_the_same_answers(potstill, tiny_bundle, tiny_data, tmp_path):
    answers = []
    for engine in ("onnxruntime", "openvino"):
        out = tmp_path / f"{engine}.jsonl"
        code, *_ = potstill("predict", tiny_bundle, tiny_data / "validation.jsonl", "--out", out, "--engine", engine)
        assert code == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        answers.append([(row["answer"][0]["label"], row["answer"][0]["score"]) for row in rows])
    for (label, score), (other_label, other_score) in zip(*answers, strict=True):
        assert (other_label, other_score) == (label, pytest.approx(score, abs=1e-5))
    asked = ("evaluate", tiny_bundle, "--data", tiny_data, "--precision", "fp32", "--json")
    scores = [json.loads(potstill(*asked, "--engine", engine)[1])["fp32"] for engine in ("onnxruntime", "openvino")]
    assert [score["engine"] for score in scores] == ["onnxruntime", "openvino"]
    assert scores[0]["scores"] == pytest.approx(scores[1]["scores"], abs=1e-5)


@pytest.mark.parametrize("command", ["predict", "serve", "evaluate"])
def test_an_engine_that_there_is_not_is_refused_with_those_that_there_are(potstill, tiny_bundle, command):
    code, _, err = potstill(command, tiny_bundle, "--engine", "tensorrt")
    assert code == 2
    assert "tensorrt" in err
    assert "onnxruntime" in err
    assert "openvino" in err
