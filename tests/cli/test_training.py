"""How a training ends: with what to do next, or with the news that the model has learnt nothing."""

import shlex

import pytest

from potstill.cli.distill import data_options, print_next, print_student
from potstill.config import build_recipe, with_splits


def report(against):
    student = {"parameters": 1, "layers": 1, "layers_kept": [0], "scores": {"accuracy": 0.7}}
    return {
        "teacher": {"parameters": 2, "layers": 2, "scores": {"accuracy": 0.9}},
        "student": student | {"against_trivial": against},
        "metric": "accuracy",
        "data": {"examples": 100},
        "steps": 3,
        "best_step": 3,
        "seconds": 1.0,
        "task": "text-classification",
    }


@pytest.mark.parametrize("against", [None, {"better": True, "sentence": None}])
def test_a_student_that_has_learnt_something_is_exported_next(against, tmp_path, capsys):
    print_student(tmp_path, report(against))
    assert f"next  potstill export {tmp_path} " in capsys.readouterr().out


def test_one_that_has_not_is_told_so_in_place_of_that(tmp_path, capsys):
    sentence = "no better than an answer that ignores the text: its accuracy is 0.7000"
    print_student(tmp_path, report({"better": False, "sentence": sentence}))
    out = " ".join(capsys.readouterr().out.split())
    assert f"warning: {sentence}" in out
    assert "potstill export" not in out
    print_next(["potstill", "distill"], {"against_trivial": {"sentence": sentence}})
    assert capsys.readouterr().out.startswith("warning: ")


def test_the_export_that_comes_next_reads_the_same_data(tmp_path, capsys):
    data = [("data.name", "my reviews.csv"), ("data.text_columns", ["body"]), ("data.label_column", "mark")]
    recipe = build_recipe({}, overrides=[("teacher.model", "teacher"), *data], origin="")
    print_student(tmp_path, report(None), data=data_options(with_splits(recipe)))
    printed = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next  "))
    assert printed == [
        "potstill",
        "export",
        str(tmp_path),
        "--task",
        "text-classification",
        "--data",
        "my reviews.csv",
        "--text-column",
        "body",
        "--label-column",
        "mark",
        "--out",
        f"{tmp_path}-onnx",
    ]
