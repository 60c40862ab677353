"""The same two options name columns everywhere, the task is found out, and what is printed as next runs."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from potstill.cli import distill
from potstill.cli.app import app
from potstill.tasks import TASKS
from tests.tiny import sentences

ROOT = Path(__file__).parents[2]
QUICK = ("--judged-texts", "40", "--calibration-texts", "16", "--rounds", "0", "--max-loss", "0.5")


@pytest.fixture(scope="module")
def encoder(tiny_teacher, tmp_path_factory):
    """The tiny teacher without its head."""
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path_factory.mktemp("columns") / "encoder"
    AutoModel.from_pretrained(tiny_teacher).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder)
    return folder


@pytest.fixture
def odd(tmp_path):
    """One csv whose columns nobody would look for, labels by name, the model's in another order."""
    rows = [f"{text};{('mountain', 'sea')[label]}" for text, label in sentences(100, seed=4)]
    file = tmp_path / "reviews.csv"
    file.write_text("\n".join(["Freitext;Urteil", *rows]) + "\n")
    return file


COLUMNS = ("--text-column", "Freitext", "--label-column", "Urteil")


@pytest.mark.parametrize("command", ["distill", "finetune", "evaluate", "export", "bench", "run"])
def test_every_command_that_reads_labelled_data_has_both_options(command):
    shown = CliRunner().invoke(app, [command, "--help"], terminal_width=200).stdout
    assert "--text-column" in shown
    assert "--label-column" in shown


def test_predict_has_the_same_option_and_still_takes_its_older_name(potstill, tiny_bundle, odd, tmp_path):
    for option in ("--text-column", "--column"):
        out = tmp_path / f"{option}.jsonl"
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"Freitext": "a wave"}\n')
        assert potstill("predict", tiny_bundle, rows, "--out", out, option, "Freitext")[0] == 0
        assert json.loads(out.read_text())["answer"]
    code, _, err = potstill("predict", tiny_bundle, rows, "--out", tmp_path / "no.jsonl")
    assert (code, "name it with --text-column" in err) == (2, True)


def test_messages_name_the_options_that_the_command_has(potstill, tiny_teacher, odd, tmp_path):
    for command in (("distill", tiny_teacher), ("evaluate", tiny_teacher), ("finetune", tiny_teacher)):
        out = ("--max-length", "32")
        if command[0] != "evaluate":
            out = ("--set", "max_length=32", "--out", tmp_path / "out")
        code, _, err = potstill(*command, "--data", odd, *out)
        assert (code, "name it with --text-column" in err) == (2, True), err
        code, _, err = potstill(*command, "--data", odd, "--text-column", "Freitext", *out)
        assert (code, "name it with --label-column" in err) == (2, True), err


@pytest.fixture
def distilled(potstill, tiny_teacher, odd, tmp_path):
    code, out, err = potstill(
        "distill",
        tiny_teacher,
        "--data",
        odd,
        *COLUMNS,
        "--layers",
        "2",
        "--set",
        "distill.max_steps=2",
        "--set",
        "max_length=32",
        "--out",
        tmp_path / "student",
    )
    assert code == 0, err
    return out, err


def test_one_file_is_parted_and_the_plan_says_everything(distilled, potstill, tiny_teacher, odd, tmp_path):
    plan = distilled[1]
    assert "task        text-classification, one label for each text\n" in plan
    assert "columns     text: Freitext; label: Urteil\n" in plan
    assert "labels      2: mountain, sea\n" in plan
    assert f"learn from  90 of {odd} (train/rest)\n" in plan
    assert f"score on    10 of {odd} (train/held-out)\n" in plan
    report = json.loads((tmp_path / "student" / "distill.json").read_text())
    assert (report["data"]["examples"], report["data"]["train_examples"]) == (10, 90)
    # What was held out is what is scored afterwards; a model that has not learned from the file is scored on all of it.
    code, out, err = potstill("evaluate", tmp_path / "student", "--data", odd, *COLUMNS, "--json")
    assert code == 0, err
    assert json.loads(out)["torch"]["num_examples"] == 10
    assert json.loads(out)["torch"]["data_sha256"] == report["data"]["sha256"]
    assert "held out is scored" in err
    code, out, err = potstill("evaluate", tiny_teacher, "--data", odd, *COLUMNS, "--json")
    assert json.loads(out)["torch"]["num_examples"] == 100


def test_an_export_is_fitted_and_judged_on_different_parts_of_one_file(distilled, potstill, odd, tmp_path):
    bundle = tmp_path / "bundle"
    code, _, err = potstill("export", tmp_path / "student", "--data", odd, *COLUMNS, "--out", bundle, *QUICK)
    assert code == 0, err
    assert "is held out: int8 is judged on it, fitted to the rest" in err
    quality = json.loads((bundle / "potstill.json").read_text())["models"]["int8"]["quality"]
    assert quality["on"] == f"{odd} (train/held-out)"
    code, out, err = potstill("evaluate", bundle, "--data", odd, *COLUMNS, "--json", "--precision", "fp32")
    assert json.loads(out)["fp32"]["num_examples"] == 10


def test_the_older_spelling_of_columns_is_the_same(distilled, potstill, tiny_teacher, odd, tmp_path):
    code, _, err = potstill(
        "distill",
        tiny_teacher,
        "--data",
        odd,
        "--set",
        "data.text_columns=[Freitext]",
        "--set",
        "data.label_column=Urteil",
        "--layers",
        "2",
        "--set",
        "distill.max_steps=2",
        "--set",
        "max_length=32",
        "--out",
        tmp_path / "older",
    )
    assert code == 0, err
    both = [json.loads((tmp_path / name / "distill.json").read_text()) for name in ("student", "older")]
    assert both[0]["recipe"] == both[1]["recipe"]


def test_an_exports_gate_refuses_labels_of_other_names(potstill, tiny_teacher, odd, tmp_path):
    odd.write_text(odd.read_text().replace(";sea", ";ocean"))
    code, _, err = potstill("export", tiny_teacher, "--data", odd, *COLUMNS, "--out", tmp_path / "bundle", *QUICK)
    assert code == 2
    assert "none of the model's 2 labels (mountain, sea); the data has mountain, ocean" in err


def test_class_labels_in_another_order_than_the_models_do_not_turn_the_score_over(potstill, tiny_teacher, tmp_path):
    datasets = pytest.importorskip("datasets")
    metrics = pytest.importorskip("sklearn.metrics")
    names = ["sea", "mountain"]  # the model has them the other way round
    rows = [{"sentence": text, "label": 1 - label} for text, label in sentences(60, seed=6)]
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "swapped.parquet")
    arguments = ("--data", tmp_path / "swapped.parquet", "--max-length", "32", "--predictions", tmp_path / "said.jsonl")
    code, out, err = potstill("evaluate", tiny_teacher, *arguments, "--json")
    assert code == 0, err
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    wanted = [names[row["label"]] for row in rows]
    assert [row["label"] for row in said] == wanted
    accuracy = json.loads(out)["torch"]["scores"]["accuracy"]
    assert accuracy == metrics.accuracy_score(wanted, [row["prediction"] for row in said])
    assert accuracy > 0.8


def test_texts_that_stand_in_both_splits_are_counted_in_the_plan(potstill, tiny_teacher, tmp_path):
    rows = [{"sentence": text, "label": label} for text, label in sentences(40, seed=5)]
    for split, part in (("train", rows[:32]), ("validation", [*rows[:2], *rows[32:]])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    code, _, err = potstill(
        "distill",
        tiny_teacher,
        "--data",
        tmp_path,
        "--layers",
        "1",
        "--set",
        "distill.max_steps=1",
        "--set",
        "max_length=32",
        "--out",
        tmp_path / "student",
    )
    assert code == 0, err
    assert "warning: 2 of the texts to score on are among those to learn from\n" in err


# What is printed as next


def tagged(folder):
    for split, count in (("train", 24), ("validation", 8)):
        rows = [
            {"tokens": text.split(), "ner_tags": ["B-THING"] + ["O"] * (len(text.split()) - 1)}
            for text, _ in sentences(count, seed=len(split))
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def answered(folder):
    for split, count in (("train", 24), ("validation", 8)):
        rows = [
            {"question": "which", "context": text, "answers": {"text": [text.split()[0]], "answer_start": [0]}}
            for text, _ in sentences(count, seed=len(split))
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def flagged(folder):
    for split, count in (("train", 24), ("validation", 8)):
        rows = [f"{text},{label},{1 - label}" for text, label in sentences(count, seed=len(split))]
        (folder / f"{split}.csv").write_text("\n".join(["Freitext,sea,mountain", *rows]) + "\n")


def next_command(out):
    (line,) = re.findall(r"^next  (.*)$", out, re.MULTILINE)
    words = shlex.split(line)
    assert words[0] == "potstill"
    return words[1:]


@pytest.mark.parametrize(
    ("write", "options", "task", "problem"),
    [
        (tagged, (), "token-classification", None),
        (answered, (), "question-answering", None),
        (flagged, ("--text-column", "Freitext"), "text-classification", "multi_label_classification"),
    ],
)
def test_the_next_command_of_a_fine_tuning_and_of_its_distillation_run_as_printed(
    potstill, encoder, tmp_path, write, options, task, problem, monkeypatch
):
    # Two steps teach nothing, which is said in place of what comes next.
    print_next = distill.print_next
    monkeypatch.setattr(distill, "print_next", lambda words, _: print_next(words, {}))
    data = tmp_path / "my data"
    data.mkdir()
    write(data)
    code, out, err = potstill(
        "finetune",
        encoder,
        "--data",
        data,
        *options,
        "--set",
        "distill.max_steps=2",
        "--set",
        "max_length=48",
        "--set",
        "distill.dtype=float32",
        "--out",
        tmp_path / "teacher",
    )
    assert code == 0, err
    assert f"task        {task}" in err
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    assert problem in (None, config["problem_type"])
    # A teacher that was trained for two steps has nothing to teach: that is another refusal.
    code, out, err = potstill(*next_command(out), "--set", "distill.allow_weak_teacher=true")
    assert code == 0, err
    report = json.loads((tmp_path / "teacher-student" / "distill.json").read_text())
    assert report["task"] == task
    exported = next_command(out)
    assert exported[:4] == ["export", str(tmp_path / "teacher-student"), "--task", task]
    if write is tagged:
        code, _, err = potstill(*exported, "--precision", "fp32", "--rounds", "0", "--judged-texts", "8")
        assert code == 0, err


def test_evaluate_finds_the_task_in_the_checkpoint(potstill, encoder, tmp_path):
    (tmp_path / "data").mkdir()
    tagged(tmp_path / "data")
    finetuned = (
        "finetune",
        encoder,
        "--data",
        tmp_path / "data",
        "--set",
        "distill.max_steps=1",
        "--set",
        "max_length=48",
    )
    assert potstill(*finetuned, "--out", tmp_path / "tagger")[0] == 0
    code, out, err = potstill(
        "evaluate", tmp_path / "tagger", "--data", tmp_path / "data", "--max-length", "48", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["torch"]["task"] == "token-classification"


# The documents


def test_the_table_of_column_names_in_the_docs_is_that_of_the_code():
    page = (ROOT / "docs" / "data.md").read_text()
    rows = {cells[1].strip(): cells for line in page.splitlines() if (cells := line.split("|"))[1:] and len(cells) == 5}
    for name, task in TASKS.items():
        _, _, texts, label, _ = rows[name]
        assert texts.strip() == ", ".join(" + ".join(columns) for columns in task.text_columns), name
        assert label.strip() == ", ".join(task.label_columns), name


def test_the_commands_of_the_page_have_the_options_that_it_shows():
    page = (ROOT / "docs" / "data.md").read_text()
    lines = re.findall(r"^potstill .*", page, re.MULTILINE)
    assert lines
    for line in lines:
        words = line.partition("#")[0].split()
        shown = CliRunner().invoke(app, [words[1], "--help"], terminal_width=200).stdout
        assert all(word in shown for word in words if word.startswith("--")), line
