"""Distilling for real, on a task that a tiny model learns in seconds."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from potstill.checkpoint import load_checkpoint
from potstill.config import build_recipe
from potstill.distill import checkpoints, distill, evaluate_model, finetune, init_student
from potstill.distill import trainer as training
from potstill.distill.evaluation import Evaluation
from potstill.distill.methods import task as task_method
from potstill.errors import CheckpointError, DataError, MissingExtraError, OutputError, TrainingError
from potstill.tasks import TEXT_CLASSIFICATION


@pytest.fixture
def recipe(tiny_teacher, tiny_data):
    """Build a recipe for the tiny teacher, with settings laid over it."""

    def build(**settings):
        values = {"teacher": {"model": str(tiny_teacher)}, "data": {"name": str(tiny_data)}, "max_length": 32}
        base = {"distill.learning_rate": 1e-3, "distill.epochs": 2, "distill.log_every": 1, "student.layers": 2}
        return build_recipe(values, overrides=list((base | settings).items()))

    return build


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_student_learns_and_its_report_tells_how(recipe, tmp_path):
    report = distill(recipe(), tmp_path / "student")
    assert report["teacher"]["scores"]["accuracy"] >= 0.95
    assert report["student"]["scores"]["accuracy"] >= 0.95
    assert report["student"]["layers_kept"] == [0, 2]
    assert report["steps"] == 12
    assert json.loads((tmp_path / "student" / "distill.json").read_text()) == report
    logged = [entry for entry in report["history"] if "loss" in entry]
    for entry in logged:
        total = entry["loss_ce"] + 0.45 * entry["loss_kl"] + 0.1 * entry["loss_cos"]
        assert entry["loss"] == pytest.approx(total, rel=1e-3, abs=1e-4)
    reloaded = load_checkpoint(str(tmp_path / "student"), TEXT_CLASSIFICATION)
    assert reloaded.model.config.num_hidden_layers == 2


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(recipe, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        distill(recipe(seed=seed, **{"distill.max_steps": 4}), tmp_path / name)
    one, two, three = (weights(tmp_path / name) for name in ("one", "two", "three"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], three[key]) for key in one)


@pytest.mark.parametrize(("checkpoint_every", "resumed_from"), [(3, 6), (4, 8), (7, 7)])
def test_resuming_gives_the_weights_of_the_straight_run(recipe, tmp_path, pulled_plug, checkpoint_every, resumed_from):
    """An epoch has 6 steps, so this resumes at its bound and in its middle."""
    settings = recipe(**{"distill.checkpoint_every": checkpoint_every, "distill.keep_best_k": 9})
    distill(settings, tmp_path / "straight")
    with pulled_plug(after_steps=9):
        distill(settings, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    report = distill(settings, tmp_path / "cut", resume=True)
    assert report["resumed_from"] == resumed_from
    straight, cut = weights(tmp_path / "straight"), weights(tmp_path / "cut")
    assert all(torch.equal(straight[key], cut[key]) for key in straight)


def test_a_teacher_from_random_weights_is_gone_on_with(tiny_data, tmp_path, pulled_plug):
    """Its tokenizer is trained again, and must number the pieces as those of the checkpoint are."""
    values = {
        "teacher": {"scratch": {"vocab_size": 200, "hidden_size": 32, "num_layers": 1, "epochs": 1}},
        "data": {"name": str(tiny_data)},
        "distill": {"max_steps": 6, "checkpoint_every": 2},
        "max_length": 32,
    }
    finetune(build_recipe(values), tmp_path / "straight")
    with pulled_plug(after_steps=5):
        finetune(build_recipe(values), tmp_path / "cut")
    report = finetune(build_recipe(values), tmp_path / "cut", resume=True)
    assert report["resumed_from"] == 4
    straight, cut = weights(tmp_path / "straight"), weights(tmp_path / "cut")
    assert all(torch.equal(straight[key], cut[key]) for key in straight)
    read = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("straight", "cut")]
    assert read[0] == read[1]


def test_without_resume_old_checkpoints_are_not_gone_on_from(recipe, tmp_path):
    settings = recipe(**{"distill.max_steps": 4, "distill.checkpoint_every": 2})
    distill(settings, tmp_path / "student")
    report = distill(settings, tmp_path / "student", overwrite=True)
    assert report["resumed_from"] == 0


def test_a_half_written_checkpoint_is_thrown_away(tmp_path):
    for step, complete in ((2, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / "COMPLETE").touch()
    checkpoints.discard_incomplete(tmp_path)
    assert checkpoints.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-12").exists()


def test_the_best_checkpoint_becomes_the_student_and_k_are_kept(recipe, tmp_path, monkeypatch):
    scores = iter([0.9, 0.7, 0.8, 0.6])

    def score(self, model, *, progress, who):
        return {"accuracy": 1.0 if who == "teacher" else next(scores), "macro_f1": 0.0}

    monkeypatch.setattr(Evaluation, "score", score)
    settings = recipe(**{"distill.eval_every": 3, "distill.keep_best_k": 2})
    report = distill(settings, tmp_path / "student")
    assert report["best_step"] == 3
    kept = sorted(path.name for path in (tmp_path / "student.training").glob("checkpoint-*"))
    assert kept == ["checkpoint-12", "checkpoint-3", "checkpoint-9"]
    best = weights(tmp_path / "student.training" / "checkpoint-3")
    assert all(torch.equal(value, best[f"student.{key}"]) for key, value in weights(tmp_path / "student").items())


def test_the_teacher_neither_learns_nor_drops_out_and_sees_its_token_types(recipe, tmp_path, monkeypatch):
    seen = []
    original = task_method.capture_hidden_states

    def spy(model, batch, **states):
        is_teacher = model.config.model_type == "bert"
        if is_teacher:
            seen.append((model.training, torch.is_grad_enabled(), "token_type_ids" in batch))
            assert not any(parameter.requires_grad for parameter in model.parameters())
        else:
            assert model.training
            assert torch.is_grad_enabled()
        return original(model, batch, **states)

    monkeypatch.setattr(task_method, "capture_hidden_states", spy)
    distill(recipe(**{"student.family": "distilbert", "distill.max_steps": 2}), tmp_path / "student")
    assert seen == [(False, False, True)] * 2


def test_a_loss_that_is_no_number_stops_and_publishes_nothing(recipe, tmp_path):
    settings = recipe(**{"distill.learning_rate": 1e30, "distill.max_grad_norm": 1e30, "distill.checkpoint_every": 1})
    with pytest.raises(TrainingError, match="learning_rate"):
        distill(settings, tmp_path / "student")
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_when_the_loss_goes_bad_the_last_good_checkpoint_stays(recipe, tmp_path, monkeypatch, bad):
    original, calls = training.Distiller.forward, []

    def forward(self, batch, scales):
        loss, sums = original(self, batch, scales)
        calls.append(loss.item())
        return (loss * bad if len(calls) == 5 else loss), sums

    monkeypatch.setattr(training.Distiller, "forward", forward)
    settings = recipe(**{"distill.checkpoint_every": 2, "distill.log_every": 100, "distill.keep_best_k": 9})
    with pytest.raises(TrainingError, match="no longer numbers at step 6"):
        distill(settings, tmp_path / "student")
    last = checkpoints.newest_checkpoint(tmp_path / "student.training")
    assert last.name == "checkpoint-4"
    assert all(bool(value.isfinite().all()) for value in weights(last).values())
    assert not (tmp_path / "student").exists()


def test_gradient_accumulation_gives_the_same_step_as_the_large_batch(recipe, tmp_path):
    """Without dropout and with equal lengths the mean over micro-batches is the mean over the batch."""
    for name, batch, accumulation in (("large", 32, 1), ("small", 8, 4)):
        settings = {
            "distill.batch_size": batch,
            "distill.gradient_accumulation": accumulation,
            "distill.max_steps": 1,
            "distill.alpha_cos": 0.0,
            "distill.warmup_ratio": 0.0,
            "distill.optimizer": "sgd",
            "distill.learning_rate": 1e-1,
            "student.layers": None,
            "student.model": str(_without_dropout(recipe, tmp_path / f"init-{name}")),
        }
        distill(recipe(**settings), tmp_path / name)
    large, small = weights(tmp_path / "large"), weights(tmp_path / "small")
    start = weights(tmp_path / "init-large")
    moved = max((large[key] - start[key]).abs().max().item() for key in large)
    apart = max((large[key] - small[key]).abs().max().item() for key in large)
    assert moved > 1e-4
    assert apart < 0.01 * moved


def _without_dropout(recipe, folder):
    init_student(recipe(), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_evaluating_does_not_depend_on_batch_mates(recipe, tiny_data, tiny_teacher):
    from potstill.data import load_examples

    teacher = load_checkpoint(str(tiny_teacher), TEXT_CLASSIFICATION)
    examples = load_examples(str(tiny_data), split="validation", task=TEXT_CLASSIFICATION)
    scores = evaluate_model(teacher.model, teacher.tokenizer, examples, max_length=32)
    hits = 0
    for text, label in zip(examples.texts, examples.labels, strict=True):
        with torch.inference_mode():
            logits = teacher.model(**teacher.tokenizer(text, return_tensors="pt")).logits
        hits += int(logits.argmax()) == label
    assert scores["accuracy"] == hits / len(examples)


def test_a_teacher_from_scratch_gets_its_own_tokenizer(tiny_data, tmp_path):
    shape = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "vocab_size": 300}
    scratch = shape | {"epochs": 12, "learning_rate": 5e-3}
    recipe = build_recipe({"teacher": {"scratch": scratch}, "data": {"name": str(tiny_data)}, "max_length": 32})
    report = finetune(recipe, tmp_path / "teacher")
    assert report["teacher"]["scores"]["accuracy"] >= 0.9
    teacher = load_checkpoint(str(tmp_path / "teacher"), TEXT_CLASSIFICATION)
    assert teacher.tokenizer("wave peak")["input_ids"][0] == teacher.tokenizer.cls_token_id
    assert len(teacher.tokenizer) == teacher.model.config.vocab_size


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"teacher.model": "./nowhere"}, CheckpointError, "no checkpoint folder"),
        ({"data.name": "./nowhere"}, DataError, "no file or folder"),
        ({"data.label_column": "labl"}, DataError, "'labl'"),
        ({"student.layers": 5}, CheckpointError, "1 to 4"),
        ({"student.layers": [0, 4]}, CheckpointError, "layers 0 to 3"),
        ({"max_length": 65}, CheckpointError, "64 positions"),
    ],
)
def test_what_cannot_work_is_refused_before_training(recipe, tmp_path, settings, error, said):
    with pytest.raises(error, match=said):
        distill(recipe(**settings), tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_tracker_that_is_not_installed_is_refused_before_training(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"potstill\[trackers\]"):
        distill(recipe(**{"distill.trackers": ["tensorboard"]}), tmp_path / "student")


def test_a_full_folder_is_refused_before_anything_is_loaded(recipe, tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        distill(recipe(), tmp_path / "student")


def test_a_teacher_without_a_trained_head_is_refused(tiny_teacher, tmp_path, recipe):
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(tiny_teacher).save_pretrained(tmp_path / "bare")
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match="not fine-tuned"):
        distill(recipe(**{"teacher.model": str(tmp_path / "bare")}), tmp_path / "student")


def test_a_teacher_whose_labels_stand_in_another_order_is_refused_unless_allowed(recipe, tiny_data, tmp_path):
    for split in ("train", "validation"):
        rows = [json.loads(line) for line in (tiny_data / f"{split}.jsonl").read_text().splitlines()]
        swapped = [json.dumps(row | {"label": 1 - row["label"]}) for row in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(swapped))
    settings = {"data.name": str(tmp_path), "distill.max_steps": 1}
    with pytest.raises(CheckpointError, match="another order"):
        distill(recipe(**settings), tmp_path / "student")
    distill(recipe(**settings, **{"distill.allow_weak_teacher": True}), tmp_path / "student")
