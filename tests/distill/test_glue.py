"""GLUE of an encoder: what the grid chooses and reports, and that a killed run does only what is missing."""

import json
import shutil

import pytest
from transformers import AutoModel, AutoTokenizer

from potstill.distill import glue
from potstill.distill import trainer as training
from potstill.distill.glue import Grid, find_sources, read_reference, run_glue
from potstill.errors import CheckpointError, DataError, OutputError, RecipeError, TrainingError, UsageError
from tests import tiny

ONE_CELL = {"learning_rates": [1e-3], "epochs": [1], "seeds": [1], "max_length": 32}


@pytest.fixture(scope="module")
def encoder(tiny_teacher, tmp_path_factory):
    """The tiny teacher without its head."""
    folder = tmp_path_factory.mktemp("glue") / "encoder"
    AutoModel.from_pretrained(tiny_teacher).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder)
    return folder


def write(folder, **splits):
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """SST-2 (one text), MNLI (pairs of 3 labels in two validation splits) and STS-B (amounts), all about seas."""
    folder = tmp_path_factory.mktemp("glue") / "data"
    texts = tiny.sentences(40, seed=5)
    single = [{"sentence": text, "label": label} for text, label in texts]
    pairs = [
        {"premise": text, "hypothesis": other, "label": number % 3}
        for number, ((text, _), (other, _)) in enumerate(zip(texts, texts[::-1], strict=True))
    ]
    amounts = [{"sentence1": text, "sentence2": text, "label": 0.5 + 4 * label} for text, label in texts]
    write(folder / "sst2", train=single[:32], validation=single[32:])
    write(folder / "mnli", train=pairs[:32], validation_matched=pairs[32:36], validation_mismatched=pairs[34:])
    write(folder / "stsb", train=amounts[:32], validation=amounts[32:])
    return folder


@pytest.fixture
def fake(monkeypatch):
    """Replace fine-tuning by a table of scores; return the cells that were run, by learning rate, epochs and seed."""
    ran = []

    def install(scores, *, stop_at=None):
        def finetune(recipe, out_dir, *, resume, overwrite, progress):
            key = (recipe.distill.learning_rate, recipe.distill.epochs, recipe.seed)
            if len(ran) + 1 == stop_at:
                raise KeyboardInterrupt
            ran.append(key)
            out_dir.mkdir(parents=True, exist_ok=True)
            (out_dir / "model.safetensors").touch()
            out_dir.with_name(f"{out_dir.name}.training").mkdir(exist_ok=True)
            score = scores[key]
            if score is None:
                raise TrainingError("the loss is nan")
            return {
                "teacher": {"scores": {recipe.metric: score}},
                "data": {"examples": 8},
                "floor": {recipe.metric: 0.5},
                "steps": 3,
                "best_step": 2,
                "seconds": 1.0,
            }

        monkeypatch.setattr(glue, "finetune", finetune)
        return ran

    return install


SCORES = {
    (1e-3, 1, 1): 0.9,
    (1e-3, 1, 2): 0.5,
    (1e-3, 1, 3): 0.7,
    (2e-3, 1, 1): 0.8,
    (2e-3, 1, 2): 0.75,
    (2e-3, 1, 3): 0.1,
}
GRID = Grid(tasks=["sst2"], learning_rates=[1e-3, 2e-3], epochs=[1], max_length=32)


def test_the_setting_with_the_best_median_counts(encoder, data, fake, tmp_path):
    """Medians are 0.7 and 0.75: neither the best seed nor the best mean (0.7 against 0.55) decides."""
    fake(SCORES)
    found = run_glue(encoder, tmp_path / "out", data=data, grid=GRID)
    task = found["tasks"]["SST-2"]
    assert (task["learning_rate"], task["epochs"]) == (2e-3, 1)
    assert (task["median"], task["min"], task["max"], task["values"]) == (0.75, 0.1, 0.8, [0.8, 0.75, 0.1])
    assert [setting["median"] for setting in task["settings"]] == [0.7, 0.75]
    assert (task["metric"], task["floor"], task["num_examples"]) == ("accuracy", 0.5, 8)
    assert found["scores"] == {"SST-2": 0.75}
    assert (found["average"], found["average_with_wnli"]) == (0.75, None)
    assert found["grid"]["seeds"] == [1, 2, 3]
    assert json.loads((tmp_path / "out" / "glue.json").read_text()) == found
    cells = sorted(path.name for path in (tmp_path / "out" / "cells").iterdir())
    assert cells == [f"sst2-lr{rate}-ep1-seed{seed}.json" for rate in ("0.001", "0.002") for seed in (1, 2, 3)]


def test_a_killed_run_does_only_what_is_missing_and_a_wider_grid_only_what_is_new(encoder, data, fake, tmp_path):
    ran = fake(SCORES, stop_at=4)
    with pytest.raises(KeyboardInterrupt):
        run_glue(encoder, tmp_path / "out", data=data, grid=GRID)
    assert len(ran) == 3
    assert not (tmp_path / "out" / "glue.json").exists()
    ran.clear()
    fake(SCORES)
    found = run_glue(encoder, tmp_path / "out", data=data, grid=GRID, resume=True)
    assert ran == [(2e-3, 1, 1), (2e-3, 1, 2), (2e-3, 1, 3)]
    straight = run_glue(encoder, tmp_path / "straight", data=data, grid=GRID)
    assert found | {"seconds": 0} == straight | {"seconds": 0}
    ran.clear()
    fake({(3e-3, 1, seed): 0.95 for seed in (1, 2, 3)})
    wider = Grid(tasks=["SST-2"], learning_rates=[1e-3, 2e-3, 3e-3], epochs=[1], max_length=32)
    assert run_glue(encoder, tmp_path / "out", data=data, grid=wider, resume=True)["average"] == 0.95
    assert len(ran) == 3


def test_a_rate_that_fails_does_not_count_and_does_not_stop_the_others(encoder, data, fake, tmp_path):
    fake(SCORES | {(2e-3, 1, 2): None})
    task = run_glue(encoder, tmp_path / "out", data=data, grid=GRID)["tasks"]["SST-2"]
    assert task["learning_rate"] == 1e-3
    assert task["settings"][1] == {
        "learning_rate": 2e-3,
        "epochs": 1,
        "median": None,
        "min": None,
        "max": None,
        "values": [0.8, None, 0.1],
    }
    fake(dict.fromkeys(SCORES))
    with pytest.raises(TrainingError, match="SST-2 failed with every setting: the loss is nan"):
        run_glue(encoder, tmp_path / "other", data=data, grid=GRID)


def test_the_teacher_goes_through_the_same_grid(encoder, data, fake, tmp_path):
    ran = fake({(1e-3, 1, 1): 0.6})
    grid = Grid(tasks=["sst2"], **ONE_CELL)
    found = run_glue(encoder, tmp_path / "out", data=data, grid=grid, teacher=encoder)
    assert len(ran) == 2
    assert found["retention"] == {"SST-2": 1.0}
    assert found["retention_by_definition"]["macro"] == 1.0
    assert found["worst_task"] == "SST-2"
    assert json.loads((tmp_path / "out" / "teacher" / "glue.json").read_text())["scores"] == {"SST-2": 0.6}
    kept = run_glue(
        encoder, tmp_path / "next", data=data, grid=grid, reference=tmp_path / "out" / "teacher" / "glue.json"
    )
    assert kept["reference"]["scores"] == {"SST-2": 0.6}


def test_retention_is_a_share_of_a_reference_above_nothing(encoder, data, fake, tmp_path):
    fake({(1e-3, 1, 1): 0.6})
    reference = tmp_path / "paper.json"
    reference.write_text(json.dumps({"sst2": 0.8, "stsb": 0.0, "cola": 0.5}))
    grid = Grid(tasks=["sst2", "stsb"], **ONE_CELL)
    found = run_glue(encoder, tmp_path / "out", data=data, grid=grid, reference=reference)
    assert found["retention"] == {"SST-2": pytest.approx(0.75)}
    assert found["reference"]["average"] == pytest.approx(0.4)


def test_tasks_of_every_kind_are_fine_tuned_for_real(encoder, data, tmp_path):
    found = run_glue(encoder, tmp_path / "out", data=data, grid=Grid(eval_limit=6, **ONE_CELL))
    assert list(found["scores"]) == ["MNLI", "SST-2", "STS-B"]
    assert {task: row["num_examples"] for task, row in found["tasks"].items()} == {"MNLI": 4, "SST-2": 6, "STS-B": 6}
    assert found["tasks"]["MNLI"]["metric"] == "accuracy"
    assert 0 <= found["tasks"]["MNLI"]["mismatched"]["median"] <= 1
    cell = json.loads((tmp_path / "out" / "cells" / "stsb-lr0.001-ep1-seed1.json").read_text())
    assert cell["scores"]["pearson_and_spearman"] == found["scores"]["STS-B"]
    assert (cell["steps"], cell["recipe"]["data"]["problem_type"]) == (1, "regression")
    mnli = json.loads((tmp_path / "out" / "cells" / "mnli-lr0.001-ep1-seed1.json").read_text())
    assert mnli["recipe"]["data"]["eval_split"] == "validation_matched"
    assert all(path.suffix == ".json" for path in (tmp_path / "out" / "cells").iterdir())


def test_a_cell_that_was_cut_off_goes_on_in_its_middle(encoder, data, tmp_path, monkeypatch):
    """Three epochs of one step each: the second is cut off before its checkpoint, so the last two are done again."""
    grid = Grid(tasks=["sst2"], **ONE_CELL | {"epochs": [3]})
    straight = run_glue(encoder, tmp_path / "straight", data=data, grid=grid)
    steps = []

    def count(self, args, state, control, **kwargs):
        steps.append(state.global_step)
        if len(steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.ProgressCallback, "on_step_end", count)
    with pytest.raises(KeyboardInterrupt):
        run_glue(encoder, tmp_path / "cut", data=data, grid=grid)
    found = run_glue(encoder, tmp_path / "cut", data=data, grid=grid, resume=True)
    assert steps == [1, 2, 2, 3]
    assert found | {"seconds": 0} == straight | {"seconds": 0}
    assert [path.name for path in (tmp_path / "cut" / "cells").iterdir()] == ["sst2-lr0.001-ep3-seed1.json"]


def test_the_hubs_tasks_have_the_hubs_names():
    found = find_sources("nyu-mll/glue", None)
    assert len(found) == 9
    assert (found["STS-B"].name, found["STS-B"].eval_split) == ("nyu-mll/glue:stsb", "validation")
    assert (found["MNLI"].eval_split, found["MNLI"].second_split) == ("validation_matched", "validation_mismatched")
    assert list(find_sources("nyu-mll/glue", ["SST2", "cola"])) == ["CoLA", "SST-2"]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"tasks": ["sst3"]}, UsageError, "'sst3' is no task of GLUE"),
        ({"tasks": []}, UsageError, "no task is named"),
        ({"tasks": ["cola"]}, DataError, "has no folder cola; it has mnli, sst2, stsb"),
        ({"learning_rates": []}, UsageError, "no learning rates"),
        ({"learning_rates": [-1.0]}, RecipeError, "distill.learning_rate"),
        ({"max_length": 128}, CheckpointError, "64 positions"),
    ],
)
def test_a_grid_that_cannot_run_is_refused_before_it_starts(encoder, data, tmp_path, changes, error, said):
    with pytest.raises(error, match=said):
        run_glue(encoder, tmp_path / "out", data=data, grid=Grid(**ONE_CELL | {"tasks": ["sst2"]} | changes))
    assert not (tmp_path / "out" / "cells").exists()


@pytest.mark.parametrize(
    ("name", "said"), [("nowhere/", "no folder"), ("a/b/c", "no folder"), ("nyu-mll/glue:sst2", "of one task")]
)
def test_data_that_is_no_glue_is_refused(name, said):
    with pytest.raises(DataError, match=said):
        find_sources(name if ":" in name or name.count("/") > 1 else f"./{name}", None)


def test_a_fine_tuned_model_and_a_full_folder_are_refused(encoder, tiny_teacher, data, fake, tmp_path):
    grid = Grid(tasks=["sst2"], **ONE_CELL)
    with pytest.raises(CheckpointError, match="BertForSequenceClassification, fine-tuned"):
        run_glue(tiny_teacher, tmp_path / "out", data=data, grid=grid)
    with pytest.raises(UsageError, match="one of them"):
        run_glue(encoder, tmp_path / "out", data=data, grid=grid, teacher=encoder, reference="glue.json")
    fake({(1e-3, 1, 1): 0.6})
    run_glue(encoder, tmp_path / "out", data=data, grid=grid)
    with pytest.raises(OutputError, match="--resume"):
        run_glue(encoder, tmp_path / "out", data=data, grid=grid)
    with pytest.raises(OutputError, match=r"distill\.batch_size is 32, not 8"):
        run_glue(encoder, tmp_path / "out", data=data, grid=Grid(tasks=["sst2"], batch_size=8, **ONE_CELL), resume=True)
    other = tmp_path / "encoder"
    shutil.copytree(encoder, other)
    (other / "notes.txt").write_text("changed")
    with pytest.raises(OutputError, match="another run: its sha256"):
        run_glue(other, tmp_path / "out", data=data, grid=grid, resume=True)


def test_data_that_cannot_be_read_is_refused_before_the_first_task_is_trained(encoder, data, fake, tmp_path):
    ran = fake({(1e-3, 1, 1): 0.6})
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    (broken / "stsb" / "train.jsonl").unlink()
    with pytest.raises(DataError, match="stsb has no train"):
        run_glue(encoder, tmp_path / "out", data=broken, grid=Grid(**ONE_CELL))
    assert ran == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"sst2": 92.7}', "shares of 1: 0.927"),
        ('{"cola": 0.5}', "no score of SST-2"),
        ("[1]", "cannot read"),
        ('{"scores": {"sst3": 1}}', "'sst3' is no task"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(tmp_path, content, said):
    file = tmp_path / "reference.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=said):
        read_reference(file, ["SST-2"])
