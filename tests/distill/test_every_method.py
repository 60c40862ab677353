"""Every method from end to end on tiny models: it learns, resumes to the bit, and says what cannot work."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

from potstill.config import build_recipe
from potstill.distill import distill, finetune, init_student
from potstill.errors import CheckpointError, PotstillError, RecipeError

METHODS = {
    "task": {},
    "distilbert": {"task": "fill-mask", "student.family": "distilbert", "distill.extra_share": 0.2},
    "minilmv2": {"task": "fill-mask", "distill.relation_heads": 4, "student.hidden_size": 16, "student.num_heads": 2},
    "tinybert": {"distill.intermediate_share": 0.6, "student.hidden_size": 16, "student.num_heads": 4},
    "mobilebert": {"task": "fill-mask", "distill.progressive_share": 0.5},
    "embedding": {"task": "feature-extraction", "student.hidden_size": 16},
}
TRAINING = {
    "max_length": 32,
    "distill.learning_rate": 1e-3,
    "distill.batch_size": 16,
    "distill.gradient_accumulation": 2,
    "distill.max_steps": 8,
    "distill.log_every": 1,
    "distill.eval_every": 4,
    "distill.warmup_steps": 0,
    "distill.allow_weak_teacher": True,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_teacher):
    """A folder with the tiny teacher as a classifier, as a masked-LM (its head is random), and as a bare encoder."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    torch.manual_seed(0)
    for name, kind in (("masked", AutoModelForMaskedLM), ("bare", AutoModel)):
        kind.from_pretrained(tiny_teacher).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {
        "text-classification": tiny_teacher,
        "fill-mask": folder / "masked",
        "feature-extraction": folder / "bare",
    }


@pytest.fixture
def recipe(models, tiny_data):
    """Build a method's recipe with settings laid over it."""

    def build(method, **settings):
        values = {"teacher": {}, "data": {"name": str(tiny_data)}, "distill": {"method": method}}
        given = TRAINING | {"student.layers": 2} | METHODS[method] | settings
        values["teacher"]["model"] = str(models[given.get("task", "text-classification")])
        return build_recipe(values, overrides=list(given.items()))

    return build


def weights(folder):
    return load_file(folder / "model.safetensors")


def logged(report, key):
    return [entry[key] for entry in report["history"] if key in entry]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_cut_off_ends_with_the_very_weights_of_the_straight_one(recipe, tmp_path, pulled_plug, method):
    """Cut between two checkpoints, in the second pass: masks, order, dropout and projections must agree."""
    settings = recipe(method, **{"distill.checkpoint_every": 3, "distill.eval_every": 8})
    straight = distill(settings, tmp_path / "straight")
    with pulled_plug(after_steps=7):
        distill(settings, tmp_path / "cut")
    cut = distill(settings, tmp_path / "cut", resume=True)
    assert cut["resumed_from"] == 6
    ours, theirs = weights(tmp_path / "straight"), weights(tmp_path / "cut")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert logged(straight, "loss")[-1] == logged(cut, "loss")[-1]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gets_better_at_what_it_teaches(recipe, tmp_path, method):
    """One kind of loss from the first logged step to the last; the staged methods change theirs in between."""
    one_stage = {"tinybert": {"distill.intermediate_share": 1.0}, "mobilebert": {"distill.progressive_share": 0.0}}
    settings = {"distill.max_steps": 30, "distill.learning_rate": 3e-3} | one_stage.get(method, {})
    report = distill(recipe(method, **settings), tmp_path / "student")
    losses = logged(report, "loss")
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    parts = {key for entry in report["history"] for key in entry if key.startswith("loss_")}
    assert len(parts) >= {"embedding": 1, "mobilebert": 2}.get(method, 3)


def test_the_stages_of_tinybert_and_mobilebert_follow_each_other(recipe, tmp_path):
    report = distill(recipe("tinybert"), tmp_path / "tiny")
    stages = [{key for key in entry if key.startswith("loss_")} for entry in report["history"] if "loss" in entry]
    assert stages == [{"loss_emb", "loss_hid", "loss_att"}] * 5 + [{"loss_pred"}] * 3
    report = distill(recipe("mobilebert"), tmp_path / "mobile")
    stages = [{key for key in entry if key.startswith("loss_")} for entry in report["history"] if "loss" in entry]
    assert stages == [{"loss_feat", "loss_att"}] * 4 + [{"loss_kl", "loss_mlm"}] * 4


@pytest.mark.parametrize(
    ("method", "off", "parts"),
    [
        ("tinybert", ["prediction"], {"loss_emb", "loss_hid", "loss_att"}),
        ("tinybert", ["embedding", "hidden", "attention"], {"loss_pred"}),
        ("mobilebert", ["kl", "mlm"], {"loss_feat", "loss_att"}),
        ("mobilebert", ["feature", "attention"], {"loss_kl", "loss_mlm"}),
    ],
)
def test_a_stage_without_weights_is_left_out(recipe, tmp_path, method, off, parts):
    settings = {f"distill.alpha_{name}": 0.0 for name in off} | {"distill.max_steps": 4}
    report = distill(recipe(method, **settings), tmp_path / "student")
    assert {key for entry in report["history"] for key in entry if key.startswith("loss_")} == parts


@pytest.mark.parametrize(
    ("method", "score"),
    [("task", "accuracy"), ("distilbert", "perplexity"), ("minilmv2", "loss"), ("embedding", "loss")],
)
def test_the_best_checkpoint_is_the_highest_score_or_the_lowest_loss(recipe, tmp_path, method, score):
    report = distill(recipe(method, **{"distill.eval_every": 2, "distill.learning_rate": 3e-2}), tmp_path / "student")
    scores = logged(report, f"eval_{score}")
    assert report["metric"] == score
    assert report["student"]["scores"][score] == (max(scores) if score == "accuracy" else min(scores))


def test_packed_texts_and_full_blocks_train_too(recipe, tmp_path):
    for packing in ("texts", "blocks"):
        settings = {"data.packing": packing, "distill.max_steps": 2}
        report = distill(recipe("distilbert", **settings), tmp_path / packing)
        assert report["data"]["train_examples"] < 150  # of 192 texts


def test_controls_are_the_same_student_without_its_teacher_and_untrained(recipe, tmp_path):
    report = distill(recipe("task", **{"distill.controls": True}), tmp_path / "student")
    alone = distill(recipe("task", **{"distill.alpha_kl": 0.0, "distill.alpha_cos": 0.0}), tmp_path / "alone")
    assert report["controls"]["no_teacher"]["scores"] == alone["student"]["scores"]
    init_student(recipe("task"), tmp_path / "untrained")
    assert set(report["controls"]) == {"untrained", "no_teacher", "floor"}
    assert report["controls"]["floor"]["scores"]["accuracy"] == 0.5


def test_a_masked_lm_can_be_fine_tuned_of_a_bare_encoder(recipe, models, tmp_path):
    settings = {"teacher.model": str(models["feature-extraction"]), "distill.max_steps": 30}
    report = finetune(recipe("distilbert", **settings), tmp_path / "teacher")
    first, last = (logged(report, "eval_perplexity")[at] for at in (0, -1))
    assert last < first
    assert json.loads((tmp_path / "teacher" / "distill.json").read_text())["method"] == "finetune"


def test_the_plan_is_told_before_the_first_step_and_the_pace_soon_after(recipe, tmp_path):
    told = []
    distill(recipe("task", **{"distill.max_steps": 20}), tmp_path / "student", announce=lambda *what: told.append(what))
    (first, plan), (second, pace) = told
    assert (first, second) == ("plan", "pace")
    assert plan["steps"] == 20
    assert plan["rows"] == 192
    assert plan["steps_per_epoch"] == 6
    assert plan["teacher_parameters"] > plan["student_parameters"] > 0
    assert plan["memory_bytes"] > 16 * plan["student_parameters"]
    assert pace["steps_left"] < 20
    assert pace["seconds_left"] == pytest.approx(pace["seconds_per_step"] * pace["steps_left"])


class TestRefusals:
    """What cannot work is refused before training, with the reason."""

    def refused(self, recipe, tmp_path, match, error=PotstillError):
        with pytest.raises(error, match=match):
            distill(recipe, tmp_path / "student")
        assert not (tmp_path / "student").exists()

    def test_a_student_with_other_words(self, recipe, models, tmp_path, tiny_teacher):
        tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
        BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "other")
        words = tokenizer.get_vocab()
        renumbered = json.loads(tokenizer.backend_tokenizer.to_str())
        vocabulary = renumbered["model"]["vocab"]
        one, other = sorted(words, key=words.get)[-2:]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
        tokenizer.save_pretrained(tmp_path / "other")
        (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(renumbered))
        settings = {"student.model": str(tmp_path / "other"), "student.layers": None, "student.family": "same"}
        self.refused(recipe("distilbert", **settings), tmp_path, "vocabularies differ", CheckpointError)

    def test_heads_that_do_not_divide_the_width(self, recipe, tmp_path):
        self.refused(
            recipe("minilmv2", **{"distill.relation_heads": 48}), tmp_path, "48 relation heads", CheckpointError
        )

    def test_attention_of_other_head_counts(self, recipe, tmp_path):
        self.refused(recipe("tinybert", **{"student.num_heads": 2}), tmp_path, "head by head", CheckpointError)

    @pytest.mark.parametrize("method", ["task", "distilbert"])
    def test_a_narrower_student_whose_states_are_compared_one_by_one(self, recipe, tmp_path, method):
        narrow = {"student.hidden_size": 16, "student.family": "same"}
        self.refused(recipe(method, **narrow), tmp_path, "16 hidden units and the teacher 32", CheckpointError)
        distill(recipe(method, **narrow, **{"distill.alpha_cos": 0.0, "distill.max_steps": 1}), tmp_path / "allowed")

    def test_a_layer_map_that_does_not_fit(self, recipe, tmp_path):
        self.refused(recipe("tinybert", **{"distill.layer_map": [1, 2, 3]}), tmp_path, "layer_map", CheckpointError)

    def test_a_general_stage_with_nothing_to_learn_from(self, recipe, tmp_path):
        off = {f"distill.alpha_{name}": 0.0 for name in ("embedding", "hidden", "attention")}
        self.refused(recipe("tinybert", task="fill-mask", **off), tmp_path, "general stage", CheckpointError)

    def test_packing_of_labelled_texts(self, recipe, tmp_path):
        self.refused(recipe("task", **{"data.packing": "blocks"}), tmp_path, "no effect on labelled", RecipeError)

    def test_packed_texts_where_a_model_cannot_keep_them_apart(self, recipe, tmp_path):
        self.refused(recipe("mobilebert", **{"data.packing": "texts"}), tmp_path, "packing")

    def test_a_masked_lm_no_better_than_chance(self, recipe, models, tmp_path):
        settings = recipe("distilbert", **{"distill.allow_weak_teacher": False})
        model = AutoModelForMaskedLM.from_pretrained(models["fill-mask"])
        with torch.no_grad():
            model.cls.predictions.bias.normal_(std=9.0)
        model.save_pretrained(tmp_path / "bad")
        AutoTokenizer.from_pretrained(models["fill-mask"]).save_pretrained(tmp_path / "bad")
        bad = settings.model_copy(
            update={"teacher": settings.teacher.model_copy(update={"model": str(tmp_path / "bad")})}
        )
        self.refused(bad, tmp_path, "teacher's perplexity", CheckpointError)

    def test_a_recipe_and_settings_at_once(self, recipe, tmp_path):
        with pytest.raises(RecipeError, match="change it instead"):
            distill(recipe("task"), tmp_path / "student", settings={"seed": 2})
        with pytest.raises(RecipeError, match="name the data"):
            distill("teacher/", tmp_path / "student")
