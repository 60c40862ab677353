from pathlib import Path

import pytest

from potstill.config import build_recipe, load_recipe, recipe_names, recipe_text
from potstill.errors import OutputError, RecipeError

pytest.importorskip("typer")

from potstill.cli.options import output_folder, parse_layers, resolve
from potstill.cli.recipes import recipes

NEEDED = {"teacher.model": "bert", "data.name": "texts"}


def test_without_a_recipe_the_flags_alone_make_one():
    recipe = resolve(None, flags=NEEDED, settings=None)
    assert (recipe.teacher.model, recipe.data.name, recipe.distill.epochs) == ("bert", "texts", 3)


def test_defaults_give_way_to_the_recipe_to_flags_and_to_set_in_this_order(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("teacher: {model: a}\ndata: {name: b}\ndistill: {epochs: 10, batch_size: 10, temperature: 10}\n")
    flags = {"distill.epochs": 20, "distill.batch_size": 20}
    distill = resolve(str(file), flags=flags, settings=["distill.epochs=30"]).distill
    assert (distill.epochs, distill.batch_size, distill.temperature, distill.alpha_kl) == (30, 20, 10, 0.45)


def test_flags_that_were_not_given_change_nothing():
    recipe = resolve("quickstart", flags={"distill.epochs": None, "student.layers": None}, settings=None)
    assert recipe == load_recipe("quickstart")


def test_zero_and_false_are_given_flags():
    flags = {**NEEDED, "seed": 0, "distill.weight_decay": 0.0, "resume": False}
    recipe = resolve(None, flags=flags, settings=["resume=true", "resume=false"])
    assert (recipe.seed, recipe.distill.weight_decay, recipe.resume) == (0, 0.0, False)


def test_set_may_be_repeated_and_the_last_one_wins():
    settings = ["seed=1", "student.layers=[0, 2]", "distill.learning_rate=5e-5", "seed=2"]
    recipe = resolve(None, flags=NEEDED, settings=settings)
    assert (recipe.seed, recipe.student.layers, recipe.distill.learning_rate) == (2, [0, 2], 5e-5)


def test_faults_of_recipe_flags_and_set_are_told_at_once(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("teacher: {model: a}\ndata: {name: b}\nsed: 1\n")
    with pytest.raises(RecipeError) as caught:
        resolve(str(file), flags={"max_length": 1}, settings=["distill.epochs=0"])
    told = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert sorted(told) == [
        "--set distill.epochs=0: input should be greater than 0",
        "max_length: input should be greater than or equal to 8 (it is 1)",
        "sed: unknown key; did you mean 'seed'?",
    ]


def test_missing_flags_are_told_in_the_words_of_the_command():
    with pytest.raises(RecipeError, match=r"^TEACHER is missing; --data is missing$"):
        resolve(None, flags={}, settings=[])


def test_a_setting_that_is_not_one_is_refused():
    with pytest.raises(RecipeError, match="--set 'epochs' is not of the form"):
        resolve(None, flags=NEEDED, settings=["epochs"])


@pytest.mark.parametrize(
    ("text", "layers"), [(None, None), ("3", 3), ("0,2,4", [0, 2, 4]), ("0, 2", [0, 2]), ("-1", -1), ("0", 0)]
)
def test_layers_are_read_as_a_count_or_a_list(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "three", "0,", ",", "0;2", "1.5", "[0,2]"])
def test_other_layers_are_refused(text):
    with pytest.raises(RecipeError, match="is neither a count such as 3 nor a list such as 0,2,4"):
        parse_layers(text)


@pytest.mark.parametrize("text", ["0", "-1", "2,1", "1,1"])
def test_layers_that_can_be_read_but_not_cut_are_refused_by_the_recipe(text):
    with pytest.raises(RecipeError, match=rf"^--layers {text}: "):
        resolve(None, flags={**NEEDED, "student.layers": parse_layers(text)}, settings=None)


def test_the_output_folder_is_the_flag_else_the_recipes():
    values = {"teacher": {"model": "a"}, "data": {"name": "b"}}
    recipe = build_recipe(values, overrides=[("output_dir", "from/recipe")])
    assert output_folder(Path("from/flag"), recipe) == Path("from/flag")
    assert output_folder(None, recipe) == Path("from/recipe")
    with pytest.raises(RecipeError, match=r"no output folder; pass --out FOLDER or set output_dir"):
        output_folder(None, build_recipe(values))


def test_recipes_are_listed_by_their_first_lines(capsys):
    recipes(None)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == recipe_names()


def test_a_recipe_is_printed_as_it_is_shipped(capsys):
    recipes("sst2")
    assert capsys.readouterr().out == recipe_text("sst2")


def test_a_copied_recipe_is_the_shipped_one_and_loads(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    recipes("sst2", copy=file)
    assert file.read_text(encoding="utf-8") == recipe_text("sst2")
    assert capsys.readouterr().out == f"wrote {file}; run it with: potstill run {file} --out out/mine\n"
    assert resolve(str(file), flags={}, settings=None) == resolve("sst2", flags={}, settings=None)


def test_a_copy_over_a_file_needs_overwrite(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    with pytest.raises(OutputError, match="exists; pass --overwrite"):
        recipes("sst2", copy=file)
    assert file.read_text() == "mine"
    recipes("sst2", copy=file, overwrite=True)
    assert file.read_text(encoding="utf-8") == recipe_text("sst2")
