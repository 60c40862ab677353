"""`potstill evaluate` as a user meets it: tables, one JSON document, files beside them, and refusals."""

import json

import pytest

from potstill.distill import glue
from potstill.errors import TrainingError


@pytest.fixture(scope="module")
def encoder(tiny_teacher, tmp_path_factory):
    """The tiny teacher without its head."""
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path_factory.mktemp("cli") / "encoder"
    AutoModel.from_pretrained(tiny_teacher).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def glue_data(tiny_data, tmp_path_factory):
    """A folder with two of GLUE's tasks."""
    folder = tmp_path_factory.mktemp("cli") / "glue"
    folder.mkdir()
    for task in ("sst2", "wnli"):
        (folder / task).symlink_to(tiny_data)
    return folder


def table(out, title):
    """Return the cells of a printed table by the first word of each row."""
    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(title)) + 1
    rows = {}
    for line in lines[start:]:
        if not line.strip():
            break
        rows[line.split()[0]] = line.split()[1:]
    return rows


def test_the_tables_say_what_the_json_says(potstill, tiny_teacher, tiny_data):
    arguments = ("evaluate", tiny_teacher, "--data", tiny_data, "--max-length", "32", "--metric", "macro_f1")
    code, out, _ = potstill(*arguments)
    found = json.loads(potstill(*arguments, "--json")[1])["torch"]
    assert code == 0
    shown = [f"{value:.4f}" for value in found["scores"].values()]
    assert ["torch", "80", *shown] in [line.split() for line in out.splitlines()]
    assert next(iter(found["scores"])) == found["metric"] == "macro_f1"
    classes = table(out, "Per class")
    for row in found["per_class"]:
        shares = [f"{row[key]:.4f}" for key in ("precision", "recall", "f1")]
        assert classes[row["label"]] == [*shares, str(row["support"]), str(row["predicted"])]
    matrix = table(out, "Confusion matrix")
    assert matrix["label"] == ["\\", "prediction", "mountain", "sea"]
    assert [[int(cell) for cell in matrix[name]] for name in ("mountain", "sea")] == found["confusion_matrix"]
    assert sum(map(sum, found["confusion_matrix"])) == found["num_examples"] == 80
    assert max(map(len, out.splitlines())) <= 100


def test_long_names_are_numbered_above_the_columns(capsys):
    from potstill.cli.evaluate import _print_classes

    names = [f"an intent with a long name {number}" for number in range(4)]
    _print_classes(
        {
            "per_class": [],
            "labels": names,
            "confusion_matrix": [[row == column for column in range(4)] for row in range(4)],
        }
    )
    out = capsys.readouterr().out
    assert "0  an intent with a long name 0" in out
    assert max(map(len, out.splitlines())) <= 100
    _print_classes({"per_class": [], "labels": ["x"] * 13, "confusion_matrix": [[0] * 13] * 13})
    assert "Confusion" not in capsys.readouterr().out


def test_picture_and_predictions_are_written(potstill, tiny_teacher, tiny_data, tmp_path):
    picture, answers = tmp_path / "matrix.png", tmp_path / "answers.jsonl"
    arguments = ("--max-length", "32", "--limit", "7", "--confusion", picture, "--predictions", answers)
    code, out, _ = potstill("evaluate", tiny_teacher, "--data", tiny_data, *arguments, "--json")
    assert code == 0
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(rows) == 7
    assert set(rows[0]) == {"text", "label", "prediction", "probability"}
    right = sum(row["label"] == row["prediction"] for row in rows) / 7
    assert json.loads(out)["torch"]["scores"]["accuracy"] == pytest.approx(right)
    assert "predictions" not in json.loads(out)["torch"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "matrix.png"]


@pytest.fixture
def fake_training(monkeypatch):
    """Score every fine-tuning by its learning rate alone; one that is too high fails."""

    def finetune(recipe, out_dir, *, resume, overwrite, progress):
        rate = recipe.distill.learning_rate
        if rate > 1:
            raise TrainingError("the loss is nan")
        score = {1e-3: 0.8, 2e-3: 0.6}[rate]
        return {
            "teacher": {"scores": {recipe.metric: score}}, "data": {"examples": 80}, "floor": {recipe.metric: 0.5},
            "steps": 3, "best_step": 2, "seconds": 1.0,
        }  # fmt: skip

    monkeypatch.setattr(glue, "finetune", finetune)


def test_glue_prints_its_row_and_what_is_kept(potstill, fake_training, encoder, glue_data, tmp_path):
    reference = tmp_path / "teacher.json"
    reference.write_text('{"scores": {"SST-2": 1.0, "WNLI": 0.5}}')
    arguments = (
        "evaluate",
        encoder,
        "--glue",
        "--data",
        glue_data,
        "--out",
        tmp_path / "out",
        "--reference",
        reference,
    )
    grid = ("--learning-rates", "2e-3,1e-3,9", "--epochs", "1", "--seeds", "2", "--max-length", "32")
    code, out, err = potstill(*arguments, *grid)
    assert code == 0, err
    assert "SST-2: done (accuracy 0.8000)" in err
    assert "warning: SST-2 failed with a learning rate of 9 " in err
    rows = [line.split() for line in out.splitlines()]
    assert ["SST-2", "accuracy", "0.8000", "0.8000", "0.8000", "2", "0.001", "1", "1.0000", "80.0%"] in rows
    assert ["WNLI", "accuracy", "0.8000", "0.8000", "0.8000", "2", "0.001", "1", "0.5000", "160.0%"] in rows
    assert ["average", "0.8000", "1.0000"] in rows
    assert ["with", "WNLI", "0.8000", "0.7500"] in rows
    assert "ratio of the averages  80.0%" in out
    assert "worst task             80.0% (SST-2)" in out
    assert max(map(len, out.splitlines()[:-1])) <= 100
    again = potstill(*arguments, *grid, "--resume", "--json")
    assert json.loads(again[1]) == json.loads((tmp_path / "out" / "glue.json").read_text())
    assert json.loads(again[1])["tasks"]["SST-2"]["settings"][2]["values"] == [None, None]


REFUSED = [
    (("--out", "OUT"), "--out only fine-tunes with --glue"),
    (("--seeds", "2"), "--seeds only fine-tunes with --glue"),
    (("--resume",), "--resume only fine-tunes with --glue"),
    (("--glue",), "--out FOLDER"),
    (("--glue", "--out", "OUT", "--task", "fill-mask"), "--task has no effect with --glue"),
    (("--glue", "--out", "OUT", "--text-column", "text"), "--text-column has no effect with --glue"),
    (("--glue", "--out", "OUT", "--learning-rates", "fast"), "'fast' is not a list of numbers"),
    (("--glue", "--out", "OUT", "--tasks", "sst3"), "'sst3' is no task of GLUE"),
    (("--glue", "--out", "OUT", "--tasks", "sst2"), "no folder of a task of GLUE"),
    (("--precision", "int8"), "this is a checkpoint"),
    (("--metric", "f2"), "'f2' does not judge"),
    (("--task", "fil-mask"), "'fil-mask' is not known"),
    (("--pooling", "cls"), "--pooling makes one vector of a text"),
    (("--confusion", "matrix.jpg"), ".png or .svg"),
    (("--confusion", "matrix.png", "--task", "token-classification"), "--confusion draws the classes of texts"),
    (("--predictions", "./nowhere/answers.jsonl"), "no folder nowhere"),
    (("--predictions", "answers.jsonl", "--task", "fill-mask"), "no answer per example"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_options_without_effect_or_sense_are_refused(
    potstill, encoder, tiny_teacher, tiny_data, tmp_path, monkeypatch, arguments, said
):
    monkeypatch.chdir(tmp_path)
    model = encoder if "--glue" in arguments else tiny_teacher
    places = {"OUT": tmp_path / "out"}
    code, out, err = potstill("evaluate", model, "--data", tiny_data, *(places.get(word, word) for word in arguments))
    assert code == 2, err
    assert said in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_has_no_use_for_a_checkpoints_options(potstill, tiny_bundle, tiny_data):
    code, _, err = potstill("evaluate", tiny_bundle, "--data", tiny_data, "--max-length", "64")
    assert (code, err.startswith("error: --max-length is for checkpoints")) == (2, True)


def test_a_model_that_gives_amounts_has_no_confusion(potstill, tiny_teacher, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_teacher, num_labels=1, problem_type="regression", ignore_mismatched_sizes=True
    )
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(tmp_path / "model")
    (tmp_path / "validation.jsonl").write_text('{"text": "wave", "score": 1.5}\n{"text": "peak", "score": 3}\n')
    arguments = ("evaluate", tmp_path / "model", "--data", tmp_path)
    code, _, err = potstill(*arguments, "--confusion", tmp_path / "matrix.png")
    assert (code, "single labels" in err) == (2, True)
    code, out, _ = potstill(*arguments, "--metric", "mse")
    assert code == 0
    assert "Per class" not in out
    assert out.splitlines()[-2].split()[:3] == ["model", "texts", "mse"]
