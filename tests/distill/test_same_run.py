"""A run that is gone on with is the same run: other settings, data or checkpoints are refused, with what differs."""

import json
import shutil

import pytest

from potstill.config import build_recipe
from potstill.distill import distill, finetune
from potstill.errors import OutputError


def build(teacher, data, **settings):
    values = {
        "teacher": {"model": str(teacher)},
        "data": {"name": str(data)},
        "student": {"layers": 2},
        "distill": {"max_steps": 6, "checkpoint_every": 2, "learning_rate": 1e-3},
        "max_length": 32,
    }
    return build_recipe(values, overrides=list(settings.items()))


@pytest.fixture(scope="module")
def cut(tmp_path_factory, tiny_teacher, tiny_data, pulled_plug):
    """A folder with a teacher, data, and what a distillation and a fine-tuning that were killed have left."""
    folder = tmp_path_factory.mktemp("cut")
    shutil.copytree(tiny_teacher, folder / "teacher")
    shutil.copytree(tiny_data, folder / "data")
    recipe = build(folder / "teacher", folder / "data")
    for train, name in ((distill, "student"), (finetune, "finetuned")):
        with pulled_plug(after_steps=5):
            train(recipe, folder / name)
    return folder


@pytest.fixture
def again(cut, tmp_path):
    """The same, to be changed: at the same place, for a recipe names places."""
    kept = tmp_path / "kept"
    shutil.copytree(cut, kept)
    yield cut
    shutil.rmtree(cut)
    shutil.copytree(kept, cut)


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("distill.learning_rate", 2e-3, "distill.learning_rate was 0.001 and is 0.002"),
        ("seed", 7, "seed was 42 and is 7"),
        ("student.layers", [0, 3], "student.layers was 2 and is [0, 3]"),
        ("distill.max_steps", 8, "distill.max_steps was 6 and is 8"),
        ("max_length", 24, "max_length was 32 and is 24"),
        ("data.max_train_examples", 100, "data.max_train_examples was null and is 100"),
        ("data.text_columns", ["sentence"], 'data.text_columns was null and is ["sentence"]'),
        ("distill.temperature", 3.0, "distill.temperature was 2.0 and is 3.0"),
    ],
)
def test_another_setting_is_refused_with_what_it_was_and_is(cut, setting, value, told):
    recipe = build(cut / "teacher", cut / "data", **{setting: value})
    with pytest.raises(OutputError) as caught:
        distill(recipe, cut / "student", resume=True)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (cut / "student").exists()


def test_a_resumed_fine_tuning_is_held_to_the_same(cut):
    with pytest.raises(OutputError, match=r"seed was 42 and is 7"):
        finetune(build(cut / "teacher", cut / "data", seed=7), cut / "finetuned", resume=True)


def test_other_rows_in_the_same_files_are_refused(again):
    for split, told in (("train", "training data was"), ("validation", "evaluation data was")):
        file = again / "data" / f"{split}.jsonl"
        before = file.read_text()
        rows = before.splitlines()
        file.write_text("\n".join([*rows[1:], rows[0]]) + "\n")
        with pytest.raises(OutputError, match=told):
            distill(build(again / "teacher", again / "data"), again / "student", resume=True)
        file.write_text(before)


def test_other_weights_in_the_teachers_folder_are_refused(again):
    from safetensors.torch import load_file, save_file

    file = again / "teacher" / "model.safetensors"
    weights = load_file(file)
    weights["classifier.bias"] += 0.5
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(OutputError, match="checkpoints was"):
        distill(build(again / "teacher", again / "data"), again / "student", resume=True)


def test_checkpoints_of_which_nothing_is_known_are_refused(again):
    (again / "student.training" / "run.json").unlink()
    with pytest.raises(OutputError, match="nobody knows of which"):
        distill(build(again / "teacher", again / "data"), again / "student", resume=True)


def test_the_same_run_goes_on_and_its_report_has_its_settings(again):
    recipe = build(again / "teacher", again / "data", **{"data.num_proc": 1, "bench.rounds": 7})
    report = distill(recipe, again / "student", resume=True)
    assert (report["resumed_from"], report["steps"]) == (4, 6)
    told = json.loads((again / "student" / "distill.json").read_text())["recipe"]
    assert told == json.loads(recipe.model_dump_json())


def test_without_a_checkpoint_there_is_nothing_to_go_on_with_and_any_settings_do(cut, tmp_path):
    (tmp_path / "student.training").mkdir()
    (tmp_path / "student.training" / "run.json").write_text('{"seed": 1}\n')
    recipe = build(cut / "teacher", cut / "data", **{"distill.max_steps": 1})
    assert distill(recipe, tmp_path / "student", resume=True)["resumed_from"] == 0
