from importlib import resources

import pytest
import yaml

from potstill.config import (
    BenchConfig,
    ExportConfig,
    Recipe,
    build_recipe,
    load_recipe,
    parse_section,
    parse_setting,
    recipe_names,
    recipe_text,
    to_yaml,
)
from potstill.errors import RecipeError

SMALLEST = {"teacher": {"model": "bert"}, "data": {"name": "texts"}}
SHIPPED = sorted(file.name for file in resources.files("potstill").joinpath("recipes").iterdir())


def build(*overrides):
    return build_recipe(SMALLEST, overrides=overrides)


def faults(values, *overrides):
    """Return the lines that say what is wrong, without the headline."""
    with pytest.raises(RecipeError) as caught:
        build_recipe(values, overrides=overrides)
    headline, *lines = str(caught.value).splitlines()
    assert headline == "the recipe is not valid:"
    return [line.strip() for line in lines]


def test_two_recipes_are_shipped_and_each_is_listed():
    assert len(SHIPPED) == 9
    assert sorted(f"{name}.yaml" for name in recipe_names()) == SHIPPED


@pytest.mark.parametrize("file", SHIPPED)
def test_each_shipped_recipe_loads_and_says_what_it_is(file):
    name = file.removesuffix(".yaml")
    load_recipe(name)
    assert recipe_text(name).startswith(f"# {name}: ")


def test_the_quickstart_asks_for_nothing_from_the_hub():
    recipe = load_recipe("quickstart")
    assert recipe.data.name == "python-functions"
    assert recipe.teacher.model is recipe.student.model is recipe.tokenizer is None
    assert recipe.teacher.scratch.num_layers == 3 * recipe.student.layers == 3


def test_the_sst2_recipe_is_the_defaults_with_names():
    recipe = load_recipe("sst2")
    assert recipe.distill == build().distill
    assert recipe.max_length == build().max_length
    assert (recipe.student.family, recipe.student.layers) == ("distilbert", 6)
    assert recipe.data.name == "nyu-mll/glue:sst2"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 2.0),
        ("alpha_kl", 0.45),
        ("alpha_ce", 1.0),
        ("alpha_cos", 0.1),
        ("optimizer", "adamw"),
        ("weight_decay", 0.01),
        ("warmup_ratio", 0.06),
        ("learning_rate", 5e-5),
        ("batch_size", 32),
        ("gradient_accumulation", 1),
        ("epochs", 3),
        ("max_steps", None),
        ("max_grad_norm", 1.0),
        ("dtype", "auto"),
        ("method", "task"),
    ],
)
def test_the_agreed_defaults_of_distillation(name, value):
    assert getattr(build().distill, name) == value


def test_the_agreed_defaults_of_a_run():
    recipe = build()
    assert (recipe.max_length, recipe.seed, recipe.task) == (128, 42, "text-classification")
    assert recipe.export.precisions == ["fp32", "int8"]
    assert (recipe.data.train_split, recipe.data.eval_split, recipe.data.label_column) == ("train", "validation", None)
    assert recipe.student.layers is recipe.student.model is recipe.output_dir is None
    assert not recipe.resume


def test_later_places_win_over_earlier_ones(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("teacher: {model: a}\ndata: {name: b}\ndistill: {epochs: 5, batch_size: 8}\n")
    recipe = load_recipe(str(file))
    assert (recipe.distill.epochs, recipe.distill.batch_size, recipe.distill.temperature) == (5, 8, 2.0)
    recipe = load_recipe(str(file), overrides=[("distill.epochs", 6), ("distill.epochs", 7)])
    assert (recipe.distill.epochs, recipe.distill.batch_size) == (7, 8)


def test_overrides_change_nothing_of_what_was_given():
    values = {"teacher": {"model": "bert"}, "data": {"name": "texts"}}
    build_recipe(values, overrides=[("teacher.model", "other"), ("data.name", "x"), ("distill.epochs", 9)])
    assert values == SMALLEST


def test_an_override_opens_the_section_it_needs():
    recipe = build(("teacher.model", None), ("teacher.scratch.num_layers", 3))
    assert recipe.teacher.scratch.num_layers == 3
    assert recipe.teacher.scratch.hidden_size == 128


def test_all_faults_are_told_at_once():
    found = faults(
        {"teacher": {"model": "a", "layers": 3}, "distill": {"temperature": 0, "optimzer": "sgd", "epochs": "many"}},
        ("student.layers", 0),
        ("sed", 1),
    )
    assert sorted(found) == [
        "data: is missing",
        "distill.epochs: input should be a valid number, unable to parse string as a number (it is 'many')",
        "distill.optimzer: unknown key; did you mean 'optimizer'?",
        "distill.temperature: input should be greater than 0 (it is 0)",
        "sed: unknown key; did you mean 'seed'?",
        "student.layers: a student needs at least 1 layer (it is 0)",
        "teacher.layers: unknown key; known are model, scratch, column, ensemble, stored",
    ]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("distil", "distill"),
        ("distill.batchsize", "batch_size"),
        ("distill.temprature", "temperature"),
        ("data.text_column", "text_columns"),
        ("bench.thread", "threads"),
        ("export.precision", "precisions"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(key, nearest):
    assert faults(SMALLEST, (key, 1)) == [f"{key}: unknown key; did you mean {nearest!r}?"]


def test_an_unknown_key_inside_scratch_is_answered_with_the_nearest_of_scratch():
    values = {**SMALLEST, "teacher": {"scratch": {"num_layer": 2}}}
    assert faults(values) == ["teacher.scratch.num_layer: unknown key; did you mean 'num_layers'?"]


def test_an_unknown_key_like_nothing_is_answered_with_all():
    assert faults(SMALLEST, ("teacher.xyz", 1)) == [
        "teacher.xyz: unknown key; known are model, scratch, column, ensemble, stored"
    ]


@pytest.mark.parametrize("teacher", [{}, {"model": "a", "scratch": {}}], ids=["neither", "both"])
def test_a_teacher_is_a_model_or_from_scratch_and_never_both(teacher):
    assert faults({**SMALLEST, "teacher": teacher}) == [
        "teacher: give one of model (a hub id or a checkpoint folder), scratch or column"
    ]


def test_an_empty_recipe_says_what_is_missing():
    assert faults({}) == ["teacher: is missing", "data: is missing"]


@pytest.mark.parametrize("layers", [1, 6, [0], [0, 2, 4], None])
def test_layers_are_a_count_or_a_rising_list(layers):
    assert build(("student.layers", layers)).student.layers == layers


@pytest.mark.parametrize(
    ("layers", "fault"),
    [
        (0, "a student needs at least 1 layer"),
        (-2, "a student needs at least 1 layer"),
        ([], "must name teacher layers from 0 upwards, each once, in rising order"),
        ([2, 1], "must name teacher layers from 0 upwards, each once, in rising order"),
        ([1, 1], "must name teacher layers from 0 upwards, each once, in rising order"),
        ([-1, 2], "must name teacher layers from 0 upwards, each once, in rising order"),
        ("3", "must be a count such as 3 or a list of teacher layers such as [0, 2, 4]"),
        (1.5, "must be a count such as 3 or a list of teacher layers such as [0, 2, 4]"),
        (True, "must be a count such as 3 or a list of teacher layers such as [0, 2, 4]"),
        ([0, "2"], "must be a count such as 3 or a list of teacher layers such as [0, 2, 4]"),
    ],
)
def test_other_layers_are_refused_with_the_value_shown(layers, fault):
    assert faults(SMALLEST, ("student.layers", layers)) == [f"student.layers: {fault} (it is {layers!r})"]


def test_the_best_of_random_layers_is_refused():
    found = faults(SMALLEST, ("student.layers", 3), ("student.best_of", True), ("student.start", "random"))
    assert found == ["student: best_of scores what layers know before training, and random ones know nothing"]


def test_a_distillation_without_any_loss_is_refused():
    nothing = [(f"distill.alpha_{name}", 0) for name in ("kl", "ce", "cos")]
    assert faults(SMALLEST, *nothing) == [
        "distill: alpha_kl, alpha_ce, alpha_cos are all 0: there is nothing to learn from"
    ]
    assert build(*nothing[:2]).distill.alpha_cos == 0.1


def test_heads_must_divide_the_width():
    values = {**SMALLEST, "teacher": {"scratch": {"hidden_size": 100, "num_heads": 3}}}
    assert faults(values) == ["teacher.scratch: hidden_size 100 is not a multiple of num_heads 3"]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"precisions": ["int4"]}, "int4"),
        ({"attention": "onnx", "opset": 20}, "opset is 20"),
        ({"precisions": ["int8-static"], "calibration_texts": 0}, "needs texts to fix its scales"),
        ({"tune": True, "rounds": 1}, "rounds must be at least 2"),
        ({"embedding_bits": 5}, "embedding_bits: input should be 4 or 8"),
        ({"embedding_bits": 4, "precisions": ["fp32", "fp16"]}, "precisions are fp32, fp16; add int8 or int8-static"),
        ({"max_loss": 0}, "max_loss"),
    ],
)
def test_an_export_that_cannot_be_is_refused(settings, fault):
    with pytest.raises(RecipeError, match=fault):
        parse_section(ExportConfig, settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("distill.temperature", 0),
        ("distill.temperature", float("inf")),
        ("distill.temperature", float("nan")),
        ("distill.epochs", float("inf")),
        ("distill.alpha_kl", -0.1),
        ("distill.alpha_ce", float("inf")),
        ("distill.batch_size", 0),
        ("distill.batch_size", 1.5),
        ("distill.warmup_ratio", 1),
        ("distill.optimizer", "adam"),
        ("distill.method", "minilmv3"),
        ("distill.trackers", ["mlflow"]),
        ("export.opset", 17),
        ("export.precisions", []),
        ("export.precisions", ["int4"]),
        ("bench.rounds", 4),
        ("bench.batch_sizes", [0]),
        ("bench.block_s", float("inf")),
        ("data.text_columns", ["a", "b", "c"]),
        ("data.max_train_examples", 0),
        ("max_length", 7),
        ("seed", -1),
        ("task", "translation"),
        ("teacher", "bert"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_key(key, value):
    (fault,) = faults(SMALLEST, (key, value))
    assert fault.startswith(key)
    assert "(it is " in fault


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("distill.epochs=1", "distill.epochs", 1),
        ("distill.epochs=0.5", "distill.epochs", 0.5),
        ("student.layers=[0, 2, 4]", "student.layers", [0, 2, 4]),
        ("export.precisions=[fp32]", "export.precisions", ["fp32"]),
        ("student.layers=null", "student.layers", None),
        ("student.layers=", "student.layers", None),
        ("resume=true", "resume", True),
        ("teacher.model=a=b", "teacher.model", "a=b"),
        (" seed = 7 ", "seed", 7),
        ("data.name='12'", "data.name", "12"),
        ("teacher.scratch={num_layers: 2}", "teacher.scratch", {"num_layers": 2}),
    ],
)
def test_a_setting_is_a_dotted_key_and_a_yaml_value(text, key, value):
    assert parse_setting(text) == (key, value)


@pytest.mark.parametrize("text", ["5e-5", "5.0e-5", "0.00005", "5E-5"])
def test_a_learning_rate_may_be_written_as_people_write_it(text):
    # YAML 1.1 reads 5e-5 as a string; the recipe makes it a number all the same.
    assert build(parse_setting(f"distill.learning_rate={text}")).distill.learning_rate == 5e-5


@pytest.mark.parametrize("text", ["", "epochs", "=1", "distill.=1", ".epochs=1", "distill..epochs=1", " =1"])
def test_a_setting_without_key_or_value_is_refused(text):
    with pytest.raises(RecipeError, match=r"is not of the form section\.key=value, such as distill\.epochs=1"):
        parse_setting(text)


@pytest.mark.parametrize("value", ["[1, 2", "{a: ", "'x", "!!python/object/apply:os.getcwd []"])
def test_a_setting_that_is_no_yaml_is_refused(value):
    with pytest.raises(RecipeError, match="is not a YAML value"):
        parse_setting(f"student.layers={value}")


@pytest.mark.parametrize("name", [file.removesuffix(".yaml") for file in SHIPPED])
def test_a_recipe_written_out_is_the_same_recipe(tmp_path, name):
    recipe = load_recipe(name, overrides=[("output_dir", "où"), ("distill.trackers", ["tensorboard"])])
    file = tmp_path / "whole.yaml"
    file.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(str(file)) == recipe


def test_a_recipe_written_out_spells_out_every_value_in_order():
    written = yaml.safe_load(to_yaml(build()))
    assert list(written) == list(Recipe.model_fields)
    assert written["distill"]["alpha_kl"] == 0.45
    assert written["distill"]["relation_heads"] is None  # of another method
    assert list(written["student"])[:4] == ["model", "layers", "best_of", "family"]


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        build().seed = 1


@pytest.mark.parametrize(
    ("name", "answer"), [("quickstrat", "; did you mean 'quickstart'?"), ("x", "; shipped are distilbert, ")]
)
def test_a_recipe_that_is_not_there_is_answered_with_the_nearest(name, answer):
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert str(caught.value).startswith(f"there is no recipe {name!r}{answer}")
    assert f"shipped are {', '.join(recipe_names())}, or name a YAML file" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"teacher: [a", "is not YAML: while parsing a flow sequence"),
        (b"!!python/object/apply:os.getcwd []", "is not YAML: could not determine a constructor"),
        (b"\x00", "is not YAML: unacceptable character"),
        (b"# caf\xe9\nseed: 1\n", "is not UTF-8 at byte 5, so it is no recipe"),
        (b"", "holds no settings; `potstill recipes sst2`"),
        (b"- a\n", "holds no settings"),
        (b"just words", "holds no settings"),
        (b"1: 2", "1: keys should be strings (it is 1)"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, told):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert f"{tmp_path / 'mine.yaml'} " in str(caught.value)
    assert told in str(caught.value)


def test_a_fault_in_a_file_names_the_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("teacher: {model: a}\ndata: {name: b}\nseed: -1\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert str(caught.value) == (
        f"recipe {tmp_path / 'mine.yaml'} is not valid:\n  seed: input should be greater than or equal to 0 (it is -1)"
    )


def test_one_section_is_checked_like_a_whole_recipe():
    assert parse_section(ExportConfig, {"precisions": ["fp32"]}).precisions == ["fp32"]
    with pytest.raises(RecipeError) as caught:
        parse_section(BenchConfig, {"rounds": 1, "thread": 2})
    assert str(caught.value) == (
        "bench.rounds: input should be greater than or equal to 5 (it is 1); "
        "bench.thread: unknown key; did you mean 'threads'?"
    )


class TestMethods:
    """Each method has its own settings and defaults, and listens to no others."""

    def test_defaults_are_the_methods_own(self):
        masked = build(("task", "fill-mask"), ("distill.method", "distilbert")).distill
        assert (masked.temperature, masked.alpha_kl, masked.alpha_mlm, masked.alpha_cos) == (2.0, 5.0, 2.0, 1.0)
        assert (masked.learning_rate, masked.adam_beta2, masked.max_grad_norm) == (5e-4, 0.98, 5.0)
        relations = build(("task", "fill-mask"), ("distill.method", "minilmv2")).distill
        assert (relations.relation_heads, relations.warmup_steps, relations.batch_size) == (48, 4000, 256)
        assert relations.temperature is relations.alpha_kl is None
        assert list(relations.settings()) == ["teacher_layer", "relation_heads", "relation_weights"]

    def test_what_is_given_wins_over_the_method_and_its_preset(self):
        keys = [("task", "fill-mask"), ("distill.method", "distilbert"), ("distill.preset", "paper")]
        paper = build(*keys)
        assert (paper.distill.temperature, paper.distill.alpha_kl, paper.student_layers) == (
            3.0,
            0.5,
            [0, 2, 4, 6, 8, 10],
        )
        assert paper.distill.batch_size * paper.distill.gradient_accumulation == 4000
        mine = build(*keys, ("distill.temperature", 7), ("student.layers", 3))
        assert (mine.distill.temperature, mine.student_layers) == (7.0, 3)
        assert build(*keys[:2], ("distill.preset", "released")).student_layers == [0, 2, 4, 7, 9, 11]

    @pytest.mark.parametrize(
        ("method", "task", "key", "value"),
        [
            ("minilmv2", "fill-mask", "temperature", 2.0),
            ("task", "text-classification", "relation_heads", 12),
            ("distilbert", "fill-mask", "alpha_ce", 1.0),
            ("embedding", "feature-extraction", "mask_share", 0.2),
            ("task", "text-classification", "preset", "paper"),
        ],
    )
    def test_a_setting_without_effect_is_refused(self, method, task, key, value):
        (fault,) = faults(SMALLEST, ("task", task), ("distill.method", method), (f"distill.{key}", value))
        assert fault.startswith(f"distill: {key} has no effect with method {method}, which listens to ")

    def test_a_method_that_cannot_do_the_task_names_those_that_can(self):
        (fault,) = faults(SMALLEST, ("task", "fill-mask"))
        assert fault == (
            "recipe: method task distils text-classification, token-classification, question-answering and not "
            "fill-mask; for fill-mask there are distilbert, minilmv2, tinybert, mobilebert"
        )

    def test_mobilebert_makes_no_other_family(self):
        keys = [("task", "fill-mask"), ("distill.method", "mobilebert"), ("student.family", "distilbert")]
        assert faults(SMALLEST, *keys) == [
            "recipe: method mobilebert makes a MobileBERT student; leave student.family out"
        ]

    def test_compile_is_refused_where_states_come_from_inside_the_model(self):
        (fault,) = faults(SMALLEST, ("distill.compile", True))
        assert fault.endswith("unless alpha_cos is 0")
        assert build(("distill.compile", True), ("distill.alpha_cos", 0)).distill.compile

    def test_a_recipe_survives_being_written_out(self):
        for method, task in (("tinybert", "text-classification"), ("mobilebert", "fill-mask")):
            recipe = build(("task", task), ("distill.method", method))
            assert build_recipe(yaml.safe_load(to_yaml(recipe))) == recipe

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"student.best_of": True}, "best_of needs a count"),
            ({"student.num_heads": 2}, "set hidden_size as well"),
            ({"student.model": "m", "student.num_heads": 8}, "num_heads and intermediate_size shape"),
        ],
    )
    def test_a_student_that_is_told_two_things_is_refused(self, settings, told):
        (fault,) = faults(SMALLEST, *settings.items())
        assert told in fault
