"""What a student starts from: its teacher, another checkpoint, an encoder without a head, or random weights.

What is right is read from the checkpoints' own files, name by name.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from potstill.checkpoint import read_folder
from potstill.cli.checks import check_student
from potstill.config import build_recipe
from potstill.distill import distill, init_student
from potstill.errors import CheckpointError, RecipeError
from tests.tiny import LABELS

LAYER = "bert.encoder.layer."


@pytest.fixture
def recipe(tiny_teacher, tiny_data):
    def build(**settings):
        base = {"teacher.model": str(tiny_teacher), "data.name": str(tiny_data), "max_length": 32, "student.layers": 2}
        base |= {"distill.max_steps": 2, "distill.learning_rate": 1e-3}
        return build_recipe({}, overrides=list((base | settings).items()))

    return build


@pytest.fixture(scope="module")
def raw(tiny_teacher, tmp_path_factory):
    """An encoder of the teacher's shape and tokenizer with weights of its own and no head, like a hub's raw encoder."""
    folder = tmp_path_factory.mktemp("raw") / "encoder"
    torch.manual_seed(5)
    BertModel(BertConfig.from_pretrained(tiny_teacher), add_pooling_layer=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    for key in ("id2label", "label2id", "problem_type"):
        content.pop(key, None)
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_student_is_cut_from_another_checkpoint_and_its_head_is_that_checkpoints(recipe, tiny_teacher, tmp_path):
    torch.manual_seed(7)
    config = BertConfig.from_pretrained(tiny_teacher)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(tmp_path / "other")
    settings = {"student.model": str(tmp_path / "other"), "student.layers": [1, 3]}
    report = init_student(recipe(**settings), tmp_path / "student")
    assert report["student"]["layers_kept"] == [1, 3]
    assert report["student"]["name"] == str(tmp_path / "other")
    made, other = weights(tmp_path / "student"), weights(tmp_path / "other")
    assert {key.split(".")[3] for key in made if key.startswith(LAYER)} == {"0", "1"}
    for key, value in made.items():
        theirs = key.replace(f"{LAYER}1.", f"{LAYER}3.").replace(f"{LAYER}0.", f"{LAYER}1.")
        assert torch.equal(value, other[theirs]), key


def test_an_encoder_without_a_head_gets_a_new_one_for_the_teachers_labels(recipe, raw, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        init_student(recipe(**{"student.model": str(raw), "seed": seed}), tmp_path / name)
    one, two, three = (weights(tmp_path / name) for name in ("one", "two", "three"))
    theirs = weights(raw)
    for key, value in one.items():
        if key.startswith(("bert.embeddings.", LAYER)):
            # Of two layers of four, evenly from the first, the second is the encoder's third.
            assert torch.equal(value, theirs[key.removeprefix("bert.").replace("layer.1.", "layer.2.")]), key
    assert one["classifier.weight"].shape == (2, 32)
    assert torch.equal(one["classifier.weight"], two["classifier.weight"])
    assert not torch.equal(one["classifier.weight"], three["classifier.weight"])
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["id2label"] == {"0": LABELS[0], "1": LABELS[1]}
    assert config["problem_type"] == "single_label_classification"


def test_without_layers_a_checkpoint_is_taken_whole_and_learns(recipe, raw, tmp_path):
    report = distill(recipe(**{"student.model": str(raw), "student.layers": None}), tmp_path / "student")
    assert (report["student"]["layers"], report["student"]["layers_kept"], report["steps"]) == (4, None, 2)


@pytest.mark.parametrize("model", [None, "raw"])
def test_a_random_start_has_the_shape_of_what_it_is_cut_from_and_none_of_its_weights(recipe, raw, tmp_path, model):
    cut = {"student.model": str(raw) if model else None}
    init_student(recipe(**cut), tmp_path / "copied")
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        init_student(recipe(**cut, **{"student.start": "random", "seed": seed}), tmp_path / name)
    copied, one, two, three = (weights(tmp_path / name) for name in ("copied", "one", "two", "three"))
    assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in copied.items()}
    matrices = [key for key, value in one.items() if value.dim() == 2]
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not any(torch.equal(one[key], copied[key]) or torch.equal(one[key], three[key]) for key in matrices)
    # transformers draws matrices from a normal distribution of this width.
    spread = json.loads((tmp_path / "one" / "config.json").read_text())["initializer_range"]
    assert one[f"{LAYER}0.intermediate.dense.weight"].std().item() == pytest.approx(spread, rel=0.1)


def test_a_narrower_student_is_cut_from_another_checkpoint(recipe, raw, tmp_path):
    settings = {"student.model": str(raw), "student.layers": None, "student.hidden_size": 16}
    report = init_student(recipe(**settings), tmp_path / "student")
    assert (report["student"]["layers"], report["student"]["hidden_size"]) == (4, 16)


def test_the_best_layers_of_an_encoder_without_a_head_are_refused(recipe, raw, tmp_path):
    with pytest.raises(RecipeError, match="has no head for text-classification yet"):
        distill(recipe(**{"student.model": str(raw), "student.best_of": True}), tmp_path / "student")


def test_the_best_layers_of_another_checkpoint_are_found(recipe, tiny_teacher, tmp_path):
    settings = {"student.model": str(tiny_teacher), "student.best_of": True}
    chosen = distill(recipe(**settings), tmp_path / "other")["student"]["layers_kept"]
    assert chosen == distill(recipe(**{"student.best_of": True}), tmp_path / "own")["student"]["layers_kept"]


def test_layers_that_the_students_checkpoint_lacks_are_refused_before_torch_is_loaded(recipe, raw, tiny_teacher):
    folder = read_folder(tiny_teacher)
    for layers, said in ((5, r"layers=5: .*cannot be cut from .*encoder with 4"), ([0, 4], "encoder has the layers 0")):
        with pytest.raises(CheckpointError, match=said):
            check_student(recipe(**{"student.model": str(raw), "student.layers": layers}), folder, flags={})


def test_an_encoder_with_another_vocabulary_is_still_refused(recipe, tiny_teacher, tmp_path):
    AutoModel.from_pretrained(tiny_teacher).save_pretrained(tmp_path / "raw")
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(tmp_path / "raw")
    tokenizer = json.loads((tmp_path / "raw" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "raw" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="the vocabularies differ"):
        init_student(recipe(**{"student.model": str(tmp_path / "raw")}), tmp_path / "student")


@pytest.fixture
def headed(tiny_teacher, tmp_path):
    """Return a maker of checkpoints of the teacher's shape with a head of their own, whose labels have these names."""

    def make(*names):
        config = BertConfig.from_pretrained(tiny_teacher)
        config.id2label, config.label2id = dict(enumerate(names)), {name: at for at, name in enumerate(names)}
        folder = tmp_path / "-".join(names)
        BertForSequenceClassification(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder)
        return str(folder)

    return make


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("names", [LABELS[::-1], ("ham", "spam")])
def test_a_student_that_calls_its_outputs_otherwise_than_its_teacher_is_refused(
    recipe, headed, tmp_path, names, stored
):
    """It would learn the teacher's first output as its own first, and be published with the answers exchanged."""
    settings = {"student.model": headed(*names), "teacher.stored": stored}
    with pytest.raises(CheckpointError, match=f"are called {', '.join(names)}, and those of the teacher {LABELS[0]}"):
        distill(recipe(**settings), tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_student_whose_outputs_have_no_names_gets_its_teachers(recipe, headed, tmp_path):
    distill(recipe(**{"student.model": headed("LABEL_0", "LABEL_1")}), tmp_path / "student")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config["id2label"] == {"0": LABELS[0], "1": LABELS[1]}
