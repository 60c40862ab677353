"""The commands as a user meets them: what they print, and one clear line with the right exit code when they can't."""

import json
import shutil
import sys
from unittest.mock import ANY

import pytest

from potstill import machine
from potstill.bundle import Manifest, read_bundle
from potstill.cli.options import resolve
from potstill.cli.run import text_to_ask, typed_program
from potstill.cli.show import summarize
from potstill.config import recipe_names


def test_version_and_help(potstill):
    assert potstill("--version")[:2] == (0, "potstill 0.1.0\n")
    code, out, _ = potstill("--help")
    assert code == 0
    assert all(word in out for word in ("distill", "export", "bench", "serve", "Example:"))


def test_a_misspelt_command_is_told_which_was_meant(potstill):
    code, _, err = potstill("sevre")
    assert (code, "Did you mean 'serve'?" in err) == (2, True)


def test_a_folder_that_was_removed_under_the_process_is_named(potstill, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, _, err = potstill("export", "student", "--out", "bundle")
    assert (code, err) == (2, "error: the folder you are in no longer exists; change to another one, as cd ~\n")


def test_recipes_are_listed_printed_and_copied(potstill, tmp_path):
    code, out, _ = potstill("recipes")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == recipe_names()
    assert "textattack/bert-base-uncased-SST-2" in potstill("recipes", "sst2")[1]
    assert potstill("recipes", "sst2", "--copy", tmp_path / "mine.yaml")[0] == 0
    assert "nyu-mll/glue:sst2" in (tmp_path / "mine.yaml").read_text()
    code, _, err = potstill("recipes", "sst2", "--copy", tmp_path / "mine.yaml")
    assert (code, "--overwrite" in err) == (2, True)


def test_claims_name_the_papers_numbers(potstill):
    code, out, _ = potstill("claims")
    assert code == 0
    assert all(number in out for number in ("39.4", "1.63", "96.9", "96.2"))


def test_doctor_tells_what_the_machine_has(potstill):
    code, out, _ = potstill("doctor")
    assert code == 0
    assert all(word in out for word in ("cores", "GPU", "export", "ready"))
    content = json.loads(potstill("doctor", "--json")[1])
    assert content["cores"] >= 1
    assert content["missing"]["serve"] == []


@pytest.mark.parametrize(("version", "warned"), [("1.21.1", True), ("1.22.0", False), ("2.0.0.dev1", False)])
def test_doctor_warns_of_a_runtime_that_cannot_read_words_of_four_bits(potstill, monkeypatch, version, warned):
    monkeypatch.setattr(machine, "versions", lambda: {"onnxruntime": version})
    warnings = json.loads(potstill("doctor", "--json")[1])["warnings"]
    assert any("does not read words in 4 bits (--embedding-bits 4)" in line for line in warnings) == warned


def test_evaluate_gives_the_same_score_for_checkpoint_and_bundle(potstill, tiny_teacher, tiny_bundle, tiny_data):
    checkpoint = json.loads(potstill("evaluate", tiny_teacher, "--data", tiny_data, "--json")[1])
    bundle = json.loads(potstill("evaluate", tiny_bundle, "--data", tiny_data, "--json")[1])
    assert checkpoint["torch"]["scores"]["accuracy"] == bundle["fp32"]["scores"]["accuracy"]
    assert set(bundle) == {"fp32", "int8"}
    assert bundle["int8"]["num_examples"] == 80


def test_evaluate_prints_a_table(potstill, tiny_bundle, tiny_data):
    code, out, _ = potstill("evaluate", tiny_bundle, "--data", tiny_data, "--precision", "int8")
    assert code == 0
    assert "accuracy" in out
    assert "int8" in out
    assert "fp32" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_show_explains_a_bundle_and_a_checkpoint(potstill, tiny_bundle, tiny_teacher):
    code, out, _ = potstill("show", tiny_bundle)
    assert code == 0
    assert all(word in out for word in ("mountain, sea", "bert, 4 layers of 32", "up to 64 tokens", "4 of 4", "int8"))
    assert max(map(len, out.splitlines())) <= 100
    shown = potstill("show", tiny_teacher)[1]
    assert all(word in shown for word in ("BertForSequenceClassification", "layers", "mountain, sea"))
    assert json.loads(potstill("show", tiny_bundle, "--json")[1])["task"] == "text-classification"


def test_init_cuts_a_student(potstill, tiny_teacher, tmp_path):
    code, out, _ = potstill("init", tiny_teacher, "--layers", "0,3", "--out", tmp_path / "student")
    assert code == 0
    assert "2 layers of 4" in out
    assert json.loads((tmp_path / "student" / "config.json").read_text())["num_hidden_layers"] == 2
    _, out, _ = potstill("init", tiny_teacher, "--layers", "1", "--out", tmp_path / "student", "--overwrite", "--json")
    assert json.loads(out)["student"]["layers_kept"] == [0]


# Few texts and short turns: what is checked is that the options arrive.
QUICK = ("--judged-texts", "40", "--calibration-texts", "16", "--rounds", "2", "--max-loss", "0.2")


def test_distill_and_export_from_the_command_line(potstill, tiny_teacher, tiny_data, tmp_path):
    student, bundle = tmp_path / "student", tmp_path / "student-onnx"
    code, out, err = potstill(
        "distill",
        tiny_teacher,
        "--data",
        tiny_data,
        "--layers",
        "1",
        "--family",
        "distilbert",
        "--epochs",
        "2",
        "--set",
        "distill.learning_rate=1e-3",
        "--set",
        "max_length=32",
        "--out",
        student,
    )
    assert (code, "kept [0]" in out) == (0, True)
    assert "distil the student: done" in err
    code, out, _ = potstill("export", student, "--out", bundle, "--max-length", "32", *QUICK)
    assert (code, "distilbert, 1 layers of 32" in out) == (0, True)
    assert out.splitlines()[-1].startswith("int8: ")
    assert json.loads((bundle / "potstill.json").read_text())["inputs"] == ["input_ids", "attention_mask"]


def test_a_bundle_is_shown_so_that_a_person_understands_it(potstill, tiny_teacher, tiny_data, tmp_path):
    bundle, again = tmp_path / "bundle", tmp_path / "again"
    code, out, err = potstill(
        "export",
        tiny_teacher,
        "--data",
        tiny_data,
        "--precision",
        "fp32",
        "--precision",
        "int8-static",
        "--tune",
        "--out",
        bundle,
        *QUICK,
    )
    assert code == 0, err
    assert potstill("show", bundle)[1] == out
    for words in (
        "text-classification: mountain, sea",
        "bert, 4 layers of 32",
        "the ids of the checkpoint's on 2000 texts",
        "4 of 4",
        "static, ",
        "fitted to texts of the task",
        "of accuracy",
        "the same answer alone and in batches",
        "without VNNI",
        "Tuned on",
        "integer attention",
        "kept",
    ):
        assert words in " ".join(out.split()), words
    # Where others took the cores of this machine there is no speed to tell.
    assert "than fp32: " in " ".join(out.split()) or "not measured" in out
    code, out, err = potstill(
        "export", bundle / "onnx" / "model.onnx", "--json", "--precision", "fp32", "--out", again, *QUICK
    )
    assert (code, json.loads(out)["source"]["kind"]) == (0, "onnx")


def test_data_without_the_judged_split_is_said_so(potstill, tiny_teacher, tiny_data, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "other"):
        shutil.copy(tiny_data / "train.jsonl", data / f"{name}.jsonl")
    code, out, err = potstill("export", tiny_teacher, "--data", data, "--out", tmp_path / "bundle", *QUICK)
    assert (code, "judged without labels" in err) == (0, True), err
    assert "other texts of the task" in " ".join(out.split())


BAD = [
    (("distill", "./nowhere", "--data", "DATA", "--out", "OUT"), 2, "no checkpoint folder"),
    (("distill", "TEACHER", "--data", "./nowhere", "--set", "max_length=32", "--out", "OUT"), 2, "no file or folder"),
    (("distill", "TEACHER", "--data", "EMPTY", "--set", "max_length=32", "--out", "OUT"), 2, "empty"),
    (
        (
            "distill",
            "TEACHER",
            "--data",
            "DATA",
            "--set",
            "data.label_column=labl",
            "--set",
            "max_length=32",
            "--out",
            "OUT",
        ),
        2,
        "'labl'",
    ),
    (("distill", "TEACHER", "--data", "DATA", "--layers", "0", "--out", "OUT"), 2, "at least 1 layer"),
    (("distill", "TEACHER", "--data", "DATA", "--layers", "9", "--set", "max_length=32", "--out", "OUT"), 2, "1 to 4"),
    (("distill", "TEACHER", "--data", "DATA", "--layers", "two", "--out", "OUT"), 2, "neither a count"),
    (("distill", "TEACHER", "--data", "DATA", "--out", "FULL"), 2, "--overwrite"),
    (("distill", "TEACHER", "--data", "DATA"), 2, "--out"),
    (("distill", "--data", "DATA", "--out", "OUT"), 2, "TEACHER is missing"),
    (("run", "sst2", "--out", "OUT", "--set", "distill.temprature=3"), 2, "did you mean 'temperature'"),
    (("run", "sst3", "--out", "OUT"), 2, "did you mean 'sst2'"),
    (("run", "quickstart", "--out", "FULL"), 2, "--overwrite"),
    (("run", "sst2"), 2, "--out"),
    (("export", "./nowhere", "--out", "OUT"), 2, "no checkpoint folder"),
    (("export", "TEACHER", "--out", "FULL"), 2, "--overwrite"),
    (("export", "TEACHER", "--precision", "int4", "--out", "OUT"), 2, "--precision int4: "),
    (("export", "TEACHER", "--attention", "onnx", "--opset", "20", "--out", "OUT"), 2, "opset"),
    (("export", "TEACHER", "--pooling", "mean", "--out", "OUT"), 2, "pooling makes one vector"),
    (("export", "TEACHER", "--max-length", "65", "--out", "OUT"), 2, "64 positions; pass --max-length 64 or less"),
    (("export", "./nowhere.onnx", "--out", "OUT"), 2, "there is no file"),
    (("evaluate", "BUNDLE", "--data", "DATA", "--precision", "fp16"), 2, "has no fp16 model"),
    (("evaluate", "TAMPERED", "--data", "DATA"), 1, "SHA-256 differs"),
    (("show", "TAMPERED"), 1, "SHA-256 differs"),
    (("serve", "TAMPERED", "--port", "0"), 1, "SHA-256 differs"),
    (("serve", "./nowhere", "--port", "0"), 2, "not a folder"),
    (("bench", "BUNDLE", "TAMPERED", "--out", "OUT"), 1, "SHA-256 differs"),
    (("bench", "BUNDLE", "BUNDLE", "--num-tokens", "128", "--out", "OUT"), 2, "64"),
    (("show", "DATA"), 2, "neither a bundle"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), BAD, ids=[" ".join(arguments) for arguments, _, _ in BAD])
def test_bad_input_gets_one_clear_line(potstill, tiny_teacher, tiny_bundle, tiny_data, tmp_path, arguments, code, said):
    tampered, full, empty = (tmp_path / name for name in ("tampered", "full", "empty"))
    shutil.copytree(tiny_bundle, tampered)
    with (tampered / "onnx" / "model.onnx").open("r+b") as stream:
        stream.seek(2000)
        stream.write(b"\x00\x01\x02\x03")
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    empty.mkdir()
    (empty / "train.jsonl").touch()
    places = {
        "TEACHER": tiny_teacher,
        "BUNDLE": tiny_bundle,
        "DATA": tiny_data,
        "TAMPERED": tampered,
        "FULL": full,
        "EMPTY": empty,
        "OUT": tmp_path / "out",
    }
    found, out, err = potstill(*(places.get(word, word) for word in arguments))
    lines = [line for line in err.splitlines() if not line.endswith(("...", ": done"))]
    assert found == code, err
    assert said in err
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "out").exists()
    assert [path.name for path in full.iterdir()] == ["mine.txt"]


def test_recipes_and_claims_as_json(potstill):
    listed = json.loads(potstill("recipes", "--json")[1])
    assert [recipe["name"] for recipe in listed] == recipe_names()
    assert json.loads(potstill("recipes", "sst2", "--json")[1])["student"]["layers"] == 6
    content = json.loads(potstill("claims", "--json")[1])
    assert [(claim["id"], claim["at_least"]) for claim in content["claims"]] == [
        ("size", 0.4),
        ("file", 0.4),
        ("speed", 1.6),
        ("quality", 0.97),
    ]
    assert "points_lost" in [metric["name"] for metric in content["metrics"]]


def test_show_ends_with_one_line_that_says_what_int8_gained_and_lost(potstill, tiny_bundle):
    last = potstill("show", tiny_bundle)[1].splitlines()[-1]
    record = json.loads((tiny_bundle / "potstill.json").read_text())["models"]["int8"]
    times = (tiny_bundle / "onnx" / "model.onnx").stat().st_size / (tiny_bundle / record["file"]).stat().st_size
    said = [f"int8: {times:.1f} times smaller" if times >= 1 else f"int8: {1 / times:.1f} times larger"]
    flips, decisions = (record["quality"]["agreement"][key] for key in ("flips", "decisions"))
    assert last == ", ".join([*said, f"{100 - 100 * flips / decisions:.1f}% of the answers the same"])


@pytest.mark.parametrize(
    ("reference", "candidate", "said"),
    [(0.8911, 0.8891, "0.2 points of accuracy lost"), (0.89, 0.9, "1.0 points of accuracy gained")],
)
def test_what_int8_loses_on_labels_is_said_in_points(tiny_bundle, reference, candidate, said):
    content = json.loads((tiny_bundle / "potstill.json").read_text())
    loss = {"metric": "accuracy", "reference": reference, "candidate": candidate}
    content["models"]["int8"]["quality"]["labelled"] = loss
    assert summarize(Manifest.model_validate(content)) == [ANY]
    assert summarize(Manifest.model_validate(content))[0].endswith(f", {said}")


def test_a_text_to_ask_is_short_plain_and_has_its_label(tiny_bundle, tmp_path):
    manifest = read_bundle(tiny_bundle).manifest
    rows = [
        "it's a wave, he said",
        'a "ridge" between us two',
        "short",
        "peak " * 60,
        "we climb the old ridge",
        "a gull at the shore",
    ]
    lines = [json.dumps({"sentence": text, "label": 0}) for text in rows]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    recipe = resolve("quickstart", flags={}, settings=[f"data.name={tmp_path}"])
    assert text_to_ask(recipe, manifest) == ("we climb the old ridge", "mountain")
    lines = [json.dumps({"sentence": text, "label": 1}) for text in rows[:4]]
    (tmp_path / "validation.jsonl").write_text("\n".join(lines))
    assert text_to_ask(recipe, manifest) is None


def test_a_printed_command_calls_the_program_as_it_was_called(monkeypatch, tmp_path):
    for argv, printed in (
        ("/opt/potstill/__main__.py", [sys.executable, "-m", "potstill"]),
        (".venv/bin/potstill", [".venv/bin/potstill"]),
        ("my_script.py", ["potstill"]),
    ):
        monkeypatch.setattr(sys, "argv", [argv])
        assert typed_program() == printed
    (tmp_path / "potstill").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "potstill")])
    assert typed_program() == ["potstill"]
