"""`potstill evaluate` as a user meets it: tables, one JSON document, files beside them, and refusals."""

import json

import pytest

from potstill.distill import glue
from potstill.errors import TrainingError
from tests.tiny import sentences


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
        precision, recall, f1 = (f"{row[key]:.4f}" for key in ("precision", "recall", "f1"))
        low, high = (f"{end:.4f}" for end in row["recall_interval"])
        rest = [f1, str(row["support"]), str(row["predicted"])]
        assert classes[row["label"]] == [precision, recall, low, "to", high, *rest]
    worst = found["worst_label"]
    assert worst["recall"] == min(row["recall"] for row in found["per_class"])
    low, high = (f"{end:.4f}" for end in worst["interval"])
    shown = table(out, "The label with the lowest recall")["torch"]
    assert shown == [worst["label"], f"{worst['recall']:.4f}", low, "to", high, str(worst["support"])]
    matrix = table(out, "Confusion matrix")
    assert matrix["label"] == ["\\", "prediction", "mountain", "sea"]
    assert [[int(cell) for cell in matrix[name]] for name in ("mountain", "sea")] == found["confusion_matrix"]
    assert sum(map(sum, found["confusion_matrix"])) == found["num_examples"] == 80
    assert max(map(len, out.splitlines())) <= 100


def test_long_names_are_numbered_above_the_columns(capsys):
    from potstill.cli.evaluate import print_classes

    names = [f"an intent with a long name {number}" for number in range(4)]
    print_classes(
        {
            "per_class": [],
            "labels": names,
            "confusion_matrix": [[row == column for column in range(4)] for row in range(4)],
        }
    )
    out = capsys.readouterr().out
    assert "0  an intent with a long name 0" in out
    assert max(map(len, out.splitlines())) <= 100
    print_classes({"per_class": [], "labels": ["x"] * 13, "confusion_matrix": [[0] * 13] * 13})
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
            "teacher": {"scores": {recipe.metric: score}},
            "data": {"examples": 80},
            "floor": {recipe.metric: 0.5},
            "steps": 3,
            "best_step": 2,
            "seconds": 1.0,
        }

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


@pytest.fixture(scope="module")
def bundled(tiny_teacher, tmp_path_factory):
    """Save the tiny encoder with another head, whose weights are random but fixed, and its fp32 bundle."""
    import torch
    import transformers
    from transformers import AutoTokenizer

    from potstill.export import export_bundle
    from tests import tiny

    made = {}

    def make(head, task, **config):
        if (head, task, len(config)) in made:
            return made[head, task, len(config)]
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(task)
        model = getattr(transformers, head).from_pretrained(tiny_teacher, ignore_mismatched_sizes=True, **config)
        model.save_pretrained(folder / "model")
        AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder / "model")
        settings = tiny.export_config().model_copy(update={"precisions": ["fp32"]})
        export_bundle(str(folder / "model"), folder / "bundle", task=task, config=settings)
        made[head, task, len(config)] = folder
        return folder

    return make


def pairs(count):
    """Return rows of two texts with a score."""
    rows = sentences(2 * count, seed=5)
    return [
        {"sentence1": one, "sentence2": two, "score": float(number % 6)}
        for number, ((one, _), (two, _)) in enumerate(zip(rows[::2], rows[1::2], strict=True))
    ]


def questions(count):
    """Return questions whose answer is a word of a context that needs several windows."""
    rows = []
    for number in range(count):
        context = " ".join(text for text, _ in sentences(12, seed=number))
        word = context.split()[number]
        answers = (
            {"text": [word], "answer_start": [context.index(word)]} if number % 4 else {"text": [], "answer_start": []}
        )
        rows.append({"question": "where is it", "context": context, "answers": answers})
    return rows


KINDS = {
    "regression": (
        "AutoModelForSequenceClassification",
        "text-classification",
        {"num_labels": 1, "problem_type": "regression"},
        lambda: pairs(30),
    ),
    "several labels": (
        "AutoModelForSequenceClassification",
        "text-classification",
        {"num_labels": 3, "problem_type": "multi_label_classification", "id2label": dict(enumerate("abc"))},
        lambda: [
            {"text": text, "label": list("abc"[: number % 4])} for number, (text, _) in enumerate(sentences(30, seed=4))
        ],
    ),
    "tags": (
        "AutoModelForTokenClassification",
        "token-classification",
        {"num_labels": 3, "id2label": {0: "O", 1: "B-X", 2: "I-X"}},
        lambda: [
            {"tokens": text.split(), "tags": ["O", "B-X", "I-X"][number % 3 :][:1] * len(text.split())}
            for number, (text, _) in enumerate(sentences(30, seed=4))
        ],
    ),
    "questions": ("AutoModelForQuestionAnswering", "question-answering", {}, lambda: questions(12)),
    "pairs": ("AutoModel", "feature-extraction", {}, lambda: pairs(30)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_scores_as_its_checkpoint(potstill, bundled, tmp_path, kind):
    head, task, config, rows = KINDS[kind]
    folder = bundled(head, task, **config)
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    arguments = ("--data", tmp_path, "--json")
    code, out, err = potstill("evaluate", folder / "bundle", *arguments)
    assert code == 0, err
    ours = json.loads(out)["fp32"]
    code, out, err = potstill("evaluate", folder / "model", *arguments, "--task", task, "--max-length", "64")
    assert code == 0, err
    theirs = json.loads(out)["torch"]
    assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-4)
    assert set(ours["scores"]) == set(theirs["scores"])
    assert (ours["metric"], ours["num_examples"], ours["lost_finite"]) == (theirs["metric"], len(rows()), 0)
    assert ours["data_sha256"] == theirs["data_sha256"]
    assert ours["trivial"] is not None


def test_a_language_model_is_asked_for_hidden_words(potstill, bundled, tmp_path):
    folder = bundled("AutoModelForMaskedLM", "fill-mask")
    texts = [text for text, _ in sentences(20, seed=4)]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    code, out, err = potstill("evaluate", folder / "bundle", "--data", tmp_path, "--json")
    assert code == 0, err
    found = json.loads(out)["fp32"]
    assert list(found["scores"]) == ["perplexity", "loss", "accuracy"]
    # A head of random weights knows no more than the size of the vocabulary.
    assert found["trivial"] / 4 < found["value"] < found["trivial"] * 4


def test_a_bundle_that_cannot_be_judged_says_what_is_missing(potstill, bundled, tmp_path):
    folder = bundled("AutoModel", "feature-extraction")
    (tmp_path / "validation.jsonl").write_text('{"text": "wave"}\n')
    code, _, err = potstill("evaluate", folder / "bundle", "--data", tmp_path)
    assert code == 2
    assert "no pairs of texts with a score, and a feature-extraction model is judged by them" in err


def test_a_bundles_metric_comes_first_and_lost_answers_are_told(potstill, tiny_bundle, tiny_data, monkeypatch):
    from potstill.serve import OnnxSession

    code, out, _ = potstill("evaluate", tiny_bundle, "--data", tiny_data, "--precision", "fp32", "--metric", "macro_f1")
    assert code == 0
    assert ["model", "texts", "macro_f1"] in [line.split()[:3] for line in out.splitlines()]
    assert "NaN" not in out
    sound, runs = OnnxSession.run, []

    def broken(self, feeds):
        found = sound(self, feeds)
        runs.append(len(found["logits"]))
        if len(runs) <= 3:
            found["logits"][0] = float("nan")
        return found

    monkeypatch.setattr(OnnxSession, "run", broken)
    code, _, err = potstill("evaluate", tiny_bundle, "--data", tiny_data, "--precision", "fp32")
    assert (code, "fp32 answered 3 texts with NaN or infinity, which count as wrong" in err) == (0, True), err
    assert runs == [1] * 80  # one by one, as a lone request is answered


def test_a_bundles_tables_and_answers_are_those_of_its_checkpoint(
    potstill, tiny_teacher, tiny_bundle, tiny_data, tmp_path
):
    tables, answers = [], []
    for model, more in ((tiny_teacher, ("--max-length", "64")), (tiny_bundle, ("--precision", "fp32"))):
        file = tmp_path / "answers.jsonl"
        code, out, err = potstill("evaluate", model, "--data", tiny_data, "--predictions", file, *more)
        assert code == 0, err
        tables.append(out[out.index("Per class") :])
        answers.append([json.loads(line) for line in file.read_text().splitlines()])
    assert tables[0] == tables[1]
    for torch, served in zip(*answers, strict=True):
        assert served == torch | {"probability": pytest.approx(torch["probability"], abs=1e-5)}


def test_a_model_at_the_majority_share_is_told_so(potstill, tiny_teacher, tmp_path):
    """The teacher's labels, drawn by chance: accuracy is about a half, and so is the more frequent one's share."""
    texts = [text for text, _ in sentences(60, seed=5)]
    rows = [{"sentence": text, "label": number * 7 % 3 % 2} for number, text in enumerate(texts)]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("evaluate", tiny_teacher, "--data", tmp_path, "--max-length", "64")
    code, out, err = potstill(*arguments, "--json")
    found = json.loads(out)["torch"]
    assert code == 0
    assert found["better_than_trivial"] is False
    assert f"warning: the model is {found['warning']}" in err
    assert "an answer that ignores the text" in found["warning"]
    assert found["trivial_answer"] == "always mountain"
    assert "an answer that ignores the text" in potstill(*arguments)[2]


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
    code, out, err = potstill(*arguments, "--metric", "mse")
    assert (code, "an answer that ignores the text" in err) == (0, True)
    assert "Per class" not in out
    assert out.splitlines()[-2].split()[:3] == ["model", "texts", "mse"]


def test_rows_that_are_left_out_are_told_once(potstill, tiny_teacher, tiny_bundle, tmp_path):
    rows = [{"sentence": text, "label": label} for text, label in sentences(20, seed=2)]
    rows[3]["label"] = -1
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for model in (tiny_teacher, tiny_bundle):
        _, out, err = potstill("evaluate", model, "--data", tmp_path, "--json")
        assert err.count("have no label (-1) and are left out") == 1
        for result in json.loads(out).values():
            assert result["num_examples"] == 19
            assert "1 of 20 rows of" in result["notes"][0]
