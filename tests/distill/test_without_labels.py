"""Distilling where texts have no labels, and where no model teaches but a column, or several models at once.

Losses are held against torch's own, answers against transformers', and what a folder must hold against its files.
"""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from potstill.checkpoint import load_checkpoint
from potstill.config import build_recipe
from potstill.data import Examples, load_examples
from potstill.distill import distill, evaluate, run, trainer
from potstill.distill.batches import TEACHER_ANSWERS, make_collator, to_logits, tokenize
from potstill.distill.methods.task import TaskDistillation
from potstill.distill.teacher_answers import ask_teachers
from potstill.distill.trainer import held_out_loss
from potstill.errors import CheckpointError, RecipeError
from potstill.progress import silent
from potstill.serve import Encoder
from potstill.serve.predict_file import PredictSettings, predict_file
from potstill.tasks import TEXT_CLASSIFICATION
from tests.distill.families import build
from tests.distill.test_methods import rows
from tests.tiny import LABELS, sentences

SAME = 2e-5
PARTS = {"temperature": 2.0, "alpha_kl": 1.0, "alpha_ce": 1.0, "alpha_cos": 0.0}
HEADS = {
    "single_label_classification": ("ForSequenceClassification", {"num_labels": 3}),
    "multi_label_classification": ("ForSequenceClassification", {"num_labels": 3}),
    "regression": ("ForSequenceClassification", {"num_labels": 1}),
    "token-classification": ("ForTokenClassification", {"num_labels": 3}),
}


def labels_of(problem, batch):
    """Return labels of which row 2 has none, and NaN or -1 there."""
    generator = torch.Generator().manual_seed(3)
    if problem == "single_label_classification":
        return torch.tensor([0, 2, -1, 1])
    if problem == "multi_label_classification":
        return torch.tensor([[0.0, 1, 1], [1, 0, 0], [float("nan")] * 3, [0, 0, 0]])
    if problem == "regression":
        return torch.tensor([0.5, -1.0, float("nan"), 2.0])
    tags = torch.randint(0, 3, batch["input_ids"].shape, generator=generator).where(batch["tags"] != -100, -100)
    tags[2] = tags[2].where(tags[2] == -100, -1)
    return tags


def right(problem, ours, theirs, labels):
    """Return the sums of both losses by torch's functions, over what has a label and over all."""
    if problem == "regression":
        has = ~labels.isnan()
        return F.mse_loss(ours[has, 0], labels[has], reduction="sum"), ((ours - theirs) ** 2).sum()
    if problem == "multi_label_classification":
        has = ~labels.isnan().any(-1)
        ce = F.binary_cross_entropy_with_logits(ours[has], labels[has], reduction="sum") / 3
        p, q = torch.sigmoid(theirs / 2), torch.sigmoid(ours / 2)
        kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        return ce, 4 * kl.sum() / 3
    has, asked = labels >= 0, labels != -100
    p = (theirs / 2).softmax(-1)
    kl = (p * (p.log() - (ours / 2).log_softmax(-1))).sum(-1)
    return F.cross_entropy(ours[has], labels[has], reduction="sum"), 4 * kl[asked].sum()


@pytest.mark.parametrize("stored", [False, True], ids=["live", "stored"])
@pytest.mark.parametrize("problem", HEADS)
def test_labels_count_where_there_are_some_and_the_teacher_everywhere(problem, stored):
    head, changes = HEADS[problem]
    student, teacher = build("Bert", head, num_hidden_layers=2, **changes).eval(), build("Bert", head, **changes).eval()
    batch = rows()
    labels = labels_of(problem, batch)
    batch["labels"] = labels
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        ours, theirs = student(**inputs).logits, teacher(**inputs).logits
    ce, kl = right(problem, ours, theirs, labels)
    asked = 4 if problem != "token-classification" else int((labels != -100).sum())
    if stored:
        batch[TEACHER_ANSWERS] = theirs
    objective = TaskDistillation(problem, **PARTS)
    _, sums = objective(student, None if stored else teacher, batch, {"ce": 1.0, "kl": 1.0})
    assert sums["ce"].item() == pytest.approx(ce.item(), rel=SAME)
    assert sums["kl"].item() == pytest.approx(kl.item(), rel=SAME, abs=SAME)
    counts = objective.count(batch)
    has = 3 if problem != "token-classification" else int((labels >= 0).sum())
    assert (counts["ce"], counts["kl"]) == (has, asked)


def test_what_a_stored_teacher_does_not_answer_is_left_out():
    student = build("Bert", "ForSequenceClassification", num_labels=3).eval()
    batch = rows() | {"labels": torch.tensor([0, 1, -1, 2]), TEACHER_ANSWERS: torch.randn(4, 3)}
    objective = TaskDistillation("single_label_classification", **PARTS)
    whole = objective(student, None, {**batch, "labels": batch["labels"]}, {"kl": 1.0})[1]["kl"].item()
    only = batch | {TEACHER_ANSWERS: batch[TEACHER_ANSWERS].index_fill(0, torch.tensor([1, 3]), float("nan"))}
    part = objective(student, None, only, {"kl": 1.0})[1]["kl"].item()
    assert objective.count(only)["kl"] == 2
    assert 0 < part < whole


def test_no_label_in_a_batch_is_no_loss_and_no_gradient():
    for problem, (head, changes) in HEADS.items():
        student, batch = build("Bert", head, **changes), rows()
        labels = labels_of(problem, batch)
        none = torch.full_like(labels, float("nan")) if labels.is_floating_point() else labels.where(labels == -100, -1)
        loss, _ = TaskDistillation(problem, **PARTS)(student, None, batch | {"labels": none}, {"ce": 1.0})
        loss.backward()
        assert loss.item() == 0, problem
        assert not any(p.grad is not None and p.grad.any() for p in student.parameters()), problem


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_probabilities_give_what_the_logits_they_came_from_give_at_every_temperature(temperature):
    logits = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 1.0, 1.0]], dtype=torch.float64)
    single = torch.from_numpy(to_logits(logits.softmax(-1).numpy(), "single_label_classification"))
    torch.testing.assert_close(
        (single / temperature).softmax(-1), (logits / temperature).softmax(-1).float(), atol=1e-6, rtol=1e-5
    )
    several = to_logits(torch.sigmoid(logits).numpy(), "multi_label_classification")
    np.testing.assert_allclose(several, logits, atol=1e-6)
    assert np.isfinite(to_logits(np.array([[0.0, 1.0]]), "multi_label_classification")).all()


# From end to end


@pytest.fixture
def recipe(tiny_teacher, tiny_data):
    def make(**settings):
        base = {"teacher.model": str(tiny_teacher), "data.name": str(tiny_data), "max_length": 32, "student.layers": 2}
        base |= {"distill.learning_rate": 1e-3, "distill.epochs": 2, "distill.log_every": 1}
        chosen = {key: value for key, value in (base | settings).items() if value is not None}
        return build_recipe({}, overrides=list(chosen.items()))

    return make


def write(folder, train, validation):
    folder.mkdir(parents=True, exist_ok=True)
    for name, listed in (("train", train), ("validation", validation)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    return str(folder)


def labelled(count, seed):
    return [{"sentence": text, "label": label} for text, label in sentences(count, seed=seed)]


def test_a_student_learns_from_further_texts_and_its_control_from_those_with_a_label(recipe, tmp_path, monkeypatch):
    few = write(tmp_path / "few", labelled(16, 4), labelled(40, 5))
    (tmp_path / "more.txt").write_text("\n".join(text for text, _ in sentences(120, seed=6)))
    keys = {"data.name": few, "data.unlabelled": str(tmp_path / "more.txt"), "distill.controls": True}
    learned = []

    def spy(*args, **given):
        learned.append((given["teacher"] is not None, list(given["train_set"]["labels"])))
        return trainer.train(*args, **given)

    monkeypatch.setattr(run, "train", spy)
    report = distill(recipe(**keys), tmp_path / "student")
    data = report["data"]
    assert (data["labelled_examples"], data["unlabelled"]) == (16, str(tmp_path / "more.txt"))
    assert 100 < data["train_examples"] <= 136
    assert data["taught_by"].endswith("asked at every step")
    assert report["student"]["scores"]["accuracy"] >= 0.9
    assert report["controls"]["no_teacher"]["steps"] == report["steps"]
    assert learned[0] == (True, learned[1][1] + [-1] * (data["train_examples"] - 16))
    assert learned[1] == (False, [row["label"] for row in labelled(16, 4)])


def test_without_any_label_the_score_is_the_distance_from_the_teacher(recipe, tmp_path):
    bare = write(
        tmp_path / "bare",
        [{"sentence": text} for text, _ in sentences(64, seed=4)],
        [{"sentence": text} for text, _ in sentences(32, seed=5)],
    )
    for name, stored in (("live", None), ("stored", True)):
        keys = {"data.name": bare, "teacher.stored": stored, "distill.controls": True, "distill.alpha_cos": 0.0}
        report = distill(recipe(**keys), tmp_path / name)
        assert (report["metric"], report["data"]["scored_by"]) == ("loss", "loss")
        assert report["data"]["labelled_examples"] == 0
        assert "no_teacher" not in report["controls"]
        assert report["student"]["scores"]["loss"] < report["controls"]["untrained"]["scores"]["loss"]


def test_a_teacher_that_is_asked_once_teaches_what_it_teaches_at_every_step(recipe, tmp_path):
    keys = {"distill.alpha_cos": 0.0, "distill.max_steps": 6, "distill.dtype": "float32"}
    live = distill(recipe(**keys), tmp_path / "live")
    stored = distill(recipe(**keys, **{"teacher.stored": True}), tmp_path / "stored")
    # bit for bit they cannot be: the teacher's batches are others
    losses = [[entry["loss"] for entry in one["history"] if "loss" in entry] for one in (live, stored)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert stored["teacher"]["scores"]["accuracy"] == live["teacher"]["scores"]["accuracy"]


@pytest.fixture(scope="module")
def second(tiny_teacher, tmp_path_factory):
    """Another teacher of the task: its labels stand in the other order, and its tokenizer numbers other words."""
    folder = tmp_path_factory.mktemp("second") / "teacher"
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0) * 0.5)
        model.classifier.bias.copy_(model.classifier.bias.flip(0) * 0.5)
    model.config.id2label = {0: LABELS[1], 1: LABELS[0]}
    model.config.label2id = {LABELS[1]: 0, LABELS[0]: 1}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    one, other = "wave", next(word for word in vocabulary if word.isalpha() and len(word) == 1)
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_several_teachers_are_averaged_by_the_names_of_their_labels(tiny_teacher, tiny_data, second, tmp_path):
    examples = load_examples(str(tiny_data), split="validation", task=TEXT_CLASSIFICATION, label_names=LABELS, limit=6)
    teachers = [load_checkpoint(str(folder), TEXT_CLASSIFICATION) for folder in (tiny_teacher, second)]
    how = {
        "task": TEXT_CLASSIFICATION,
        "label_names": LABELS,
        "max_length": 32,
        "cache_dir": tmp_path,
        "progress": silent,
    }
    found = ask_teachers(teachers, examples, **how).answers
    expected = np.zeros((6, 2))
    for number, text in enumerate(examples.texts):
        for teacher in teachers:
            with torch.inference_mode():
                given = teacher.model(**teacher.tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
            names = teacher.model.config.id2label
            for place in (0, 1):
                expected[number, LABELS.index(names[place])] += given[place].item() / 2
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(ask_teachers(teachers, examples, **how).answers, found)


def test_a_student_of_two_teachers_with_two_tokenizers(recipe, second, tmp_path):
    report = distill(recipe(**{"teacher.ensemble": [str(second)]}), tmp_path / "student")
    assert report["student"]["scores"]["accuracy"] >= 0.9
    assert [one["name"] for one in report["teacher"]["ensemble"]] == [str(second)]
    assert report["data"]["taught_by"].endswith("averaged, each asked once")
    with pytest.raises(CheckpointError, match=r"vocabularies differ.*teacher\.stored=true"):
        distill(recipe(**{"teacher.model": str(second), "student.model": recipe().teacher.model}), tmp_path / "other")


def test_a_student_with_fewer_words_learns_from_a_teacher_that_has_them_all(recipe, tmp_path):
    """The pieces are counted on the further texts, too; the stored teacher reads with its own vocabulary."""
    few = write(tmp_path / "few", labelled(8, 4), labelled(40, 5))
    (tmp_path / "more.txt").write_text("\n".join(text for text, _ in sentences(120, seed=6)))
    keys = {"data.name": few, "data.unlabelled": str(tmp_path / "more.txt"), "teacher.stored": True}
    keys |= {"student.vocabulary": "min-count=8", "student.other_data": few}
    report = distill(recipe(**keys), tmp_path / "student")
    rows = report["vocabulary"]["rows"]
    assert rows < report["vocabulary"]["rows_before"]
    assert report["vocabulary"]["counted_on"] == f"{few} (train) and {tmp_path / 'more.txt'}"
    kept = AutoTokenizer.from_pretrained(tmp_path / "student").get_vocab()
    assert len(kept) == rows
    assert "wave" in kept  # which 8 texts do not have 8 times
    assert report["teacher"]["scores"]["accuracy"] >= 0.95
    assert report["student"]["scores"]["accuracy"] >= 0.9


def test_a_teacher_with_other_labels_is_refused_with_both_lists(recipe, second, tmp_path):
    AutoTokenizer.from_pretrained(second).save_pretrained(tmp_path / "third")
    model = AutoModelForSequenceClassification.from_pretrained(second)
    model.config.id2label = {0: "sea", 1: "desert"}
    model.config.label2id = {"sea": 0, "desert": 1}
    model.save_pretrained(tmp_path / "third")
    with pytest.raises(CheckpointError, match="has the labels sea, desert, and the student mountain, sea"):
        distill(recipe(**{"teacher.ensemble": [str(tmp_path / "third")]}), tmp_path / "student")


def test_one_of_several_teachers_with_its_labels_in_another_order_is_refused(recipe, tiny_teacher, second, tmp_path):
    """LABEL_0 and LABEL_1 go by their position, and in the mean with two good teachers nobody would see it."""
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(tmp_path / "third")
    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    with torch.no_grad():
        for parameter in (model.classifier.weight, model.classifier.bias):
            parameter.copy_(parameter.flip(0))
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    model.config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    model.save_pretrained(tmp_path / "third")
    with pytest.raises(CheckpointError, match=r"teacher \S*third's accuracy is 0\.\d+, .*in another order"):
        distill(recipe(**{"teacher.ensemble": [str(second), str(tmp_path / "third")]}), tmp_path / "student")


def test_what_predict_writes_teaches_a_student_without_its_model(recipe, tiny_bundle, tiny_teacher, tmp_path):
    """The answers come with names, best first; the labels of the data are numbers, so their names are given."""
    for split, count, seed in (("train", 128, 4), ("validation", 40, 5)):
        rows_asked = labelled(count, seed)
        bare = [{"sentence": row["sentence"]} for row in rows_asked]
        write(tmp_path / "asked" / split, bare if split == "train" else rows_asked, [])
        source = tmp_path / "asked" / split / "train.jsonl"
        (tmp_path / "data").mkdir(exist_ok=True)
        predict_file(Encoder(tiny_bundle), source, tmp_path / "data" / f"{split}.jsonl", settings=PredictSettings())
    keys = {"teacher.model": None, "teacher.column": "answer", "student.model": str(raw(tiny_teacher, tmp_path))}
    keys |= {"data.name": str(tmp_path / "data"), "data.labels": list(LABELS), "distill.epochs": 4}
    report = distill(recipe(**keys), tmp_path / "student")
    assert report["data"]["labelled_examples"] == 0
    assert report["data"]["labels"] == list(LABELS)
    assert report["teacher"]["column"] == "answer"
    assert report["teacher"]["scores"]["accuracy"] >= 0.95
    assert report["student"]["scores"]["accuracy"] >= 0.9
    assert evaluate(tmp_path / "student", data=str(tmp_path / "data"))["scores"]["accuracy"] >= 0.9


def raw(tiny_teacher, folder):
    """Write the tiny teacher's encoder without its head."""
    from transformers import AutoModel

    AutoModel.from_pretrained(tiny_teacher).save_pretrained(folder / "raw")
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder / "raw")
    config = json.loads((folder / "raw" / "config.json").read_text())
    for key in ("id2label", "label2id", "problem_type"):
        config.pop(key, None)
    (folder / "raw" / "config.json").write_text(json.dumps(config))
    return folder / "raw"


def test_a_column_in_the_wrong_order_of_labels_is_refused(recipe, tiny_teacher, tmp_path):
    turned = [row | {"llm": [row["label"], 1 - row["label"]]} for row in labelled(64, 4)]
    data = write(tmp_path / "data", turned, labelled(40, 5))
    keys = {"teacher.model": None, "teacher.column": "llm", "student.model": str(tiny_teacher), "data.name": data}
    with pytest.raises(CheckpointError, match=r"the teacher's accuracy is 0\.000"):
        distill(recipe(**keys), tmp_path / "student")


def test_vectors_of_another_width_are_learned_by_a_layer_that_is_published(tiny_teacher, tmp_path):
    generator = np.random.default_rng(0)
    directions = {0: generator.normal(size=24), 1: generator.normal(size=24)}

    def made(count, seed):
        listed = []
        for text, label in sentences(count, seed=seed):
            vector = directions[label] + 0.1 * generator.normal(size=24)
            listed.append({"text": text, "vector": (vector / np.linalg.norm(vector)).tolist()})
        return listed

    data = write(tmp_path / "data", made(96, 4), made(24, 5))
    keys = {"teacher.column": "vector", "student.model": str(raw(tiny_teacher, tmp_path)), "student.layers": 2}
    keys |= {"data.name": data, "distill.method": "embedding", "task": "feature-extraction", "max_length": 32}
    keys |= {"distill.learning_rate": 1e-3, "distill.epochs": 6}
    report = distill(build_recipe({}, overrides=list(keys.items())), tmp_path / "student")
    assert report["student"]["scores"]["loss"] < 0.6
    modules = json.loads((tmp_path / "student" / "modules.json").read_text())
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    assert kinds == ["Transformer", "Pooling", "Dense", "Normalize"]
    dense = json.loads((tmp_path / "student" / modules[2]["path"] / "config.json").read_text())
    assert (dense["in_features"], dense["out_features"]) == (32, 24)


def test_tags_are_learned_from_a_column_and_words_without_labels(tiny_teacher, tmp_path):
    from tests.tiny import TELLING

    def tagged(count, seed, *, bare):
        listed = []
        for text, _ in sentences(count, seed=seed):
            words = text.split()
            tags = ["B-sea" if word in TELLING["sea"] else "O" for word in words]
            chances = [{"O": 0.05, "B-sea": 0.95} if tag == "B-sea" else {"O": 1.0, "B-sea": 0.0} for tag in tags]
            listed.append({"tokens": words, "ner_tags": None if bare else tags, "llm": chances})
        return listed

    data = write(tmp_path / "data", tagged(8, 3, bare=False) + tagged(120, 4, bare=True), tagged(40, 5, bare=False))
    keys = {"teacher.column": "llm", "student.model": str(raw(tiny_teacher, tmp_path)), "data.name": data}
    keys |= {"task": "token-classification", "max_length": 32, "distill.max_steps": 2}
    report = distill(build_recipe({}, overrides=list(keys.items())), tmp_path / "student")
    assert report["data"]["labelled_examples"] == 8
    assert report["teacher"]["scores"]["f1"] == 1.0
    assert report["data"]["train_examples"] == 128


def test_a_words_answer_stands_at_its_first_token(tiny_teacher):
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    texts, chances = [["wave", "snowclimbing", "we"], ["peak"]], [[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]
    examples = Examples(
        name="",
        split="",
        texts=texts,
        labels=[np.array([0, 1, 0]), np.array([-1])],
        label_names=("O", "B"),
        sha256="",
        answers=[np.array(chances), np.full((1, 2), np.nan)],
    )
    made = tokenize(examples, tokenizer, max_length=32)
    batch = make_collator(tokenizer)([made[0], made[1]])
    words = tokenizer(texts[0], is_split_into_words=True).word_ids()
    firsts = [words.index(word) for word in (0, 1, 2)]
    assert len(words) > 5  # the second word has several tokens
    torch.testing.assert_close(batch[TEACHER_ANSWERS][0, firsts].softmax(-1), torch.tensor(chances))
    assert batch["labels"][0, firsts].tolist() == [0, 1, 0]
    assert batch["labels"][1, 1] == -1
    assert TaskDistillation("token-classification", **PARTS).count(batch)["kl"] == 3


def test_the_held_out_loss_needs_no_model_where_answers_are_stored(tiny_teacher, tiny_data):
    examples = load_examples(str(tiny_data), split="validation", task=TEXT_CLASSIFICATION, label_names=LABELS, limit=8)
    student = load_checkpoint(str(tiny_teacher), TEXT_CLASSIFICATION)
    answers = np.tile([0.5, 0.5], (8, 1))
    from dataclasses import replace

    held = tokenize(replace(examples, answers=answers), student.tokenizer, max_length=32)
    objective = TaskDistillation("single_label_classification", **PARTS | {"alpha_ce": 0.0, "temperature": 1.0})
    found = held_out_loss(student.model, None, objective, rows=held, collate=make_collator(student.tokenizer))
    expected = []
    for text in examples.texts:
        with torch.inference_mode():
            logits = student.model(**student.tokenizer(text, return_tensors="pt")).logits[0]
        expected.append(float(0.5 * (0.5 / logits.softmax(-1)).log().sum()))
    assert found == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"teacher.column": "llm"}, "give one of model"),
        ({"teacher.model": None, "teacher.column": "llm", "student.model": None}, "set student.model to an encoder"),
        ({"teacher.ensemble": ["b"], "teacher.stored": False}, "are always stored"),
        ({"teacher.stored": True, "distill.alpha_cos": 0.1}, "stored answers have none; leave it out"),
        ({"teacher.ensemble": ["b"], "distill.method": "tinybert"}, "method tinybert learns from inside its teacher"),
        ({"teacher.ensemble": ["b"], "task": "question-answering"}, "a teacher of questions is asked live"),
        ({"data.unlabelled": "more", "task": "question-answering"}, "questions need their answers"),
        ({"distill.augment": 1, "task": "token-classification"}, "augment alters plain texts and pairs"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(recipe, settings, said):
    with pytest.raises(RecipeError) as caught:
        recipe(**settings)
    assert said in str(caught.value)


def test_a_stored_teacher_has_no_cosine_unless_one_asks_for_it(recipe):
    assert recipe(**{"teacher.ensemble": ["b"]}).distill.alpha_cos == 0
    assert recipe().distill.alpha_cos == 0.1
