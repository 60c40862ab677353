"""What the documents say is true: commands exist, numbers of the package agree, links lead somewhere."""

import ast
import importlib
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import potstill
from potstill.cli.app import COMMANDS, app
from potstill.config import Recipe, ScratchConfig, Section, load_recipe, recipe_names, recipe_text
from potstill.tasks import TASKS

ROOT = Path(__file__).parents[2]


def test_there_are_the_agreed_commands():
    agreed = {"run", "distill", "finetune", "export", "bench", "serve", "evaluate", "show", "init"}
    agreed |= {"recipes", "claims", "doctor", "predict", "trim"}
    assert set(COMMANDS) == agreed


def test_every_potstill_line_in_the_readme_names_real_commands_and_options():
    pages = "\n".join(
        (ROOT / page).read_text()
        for page in ("README.md", "docs/distill.md", "docs/bench.md", "docs/serve.md", "docs/deploy.md")
    )
    lines = re.findall(r"^potstill .*(?:\\\n.*)*", pages, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        words = re.sub(r"\\\n|\s#.*", " ", line).split()
        assert words[1] in COMMANDS or words[1].startswith("--"), line
        shown = CliRunner().invoke(app, [words[1], "--help"], terminal_width=200).stdout
        for option in (word.partition("=")[0] for word in words[2:] if word.startswith("--")):
            assert re.search(rf"{option}\b", shown), f"{option} in: {line}"


def test_the_python_of_the_docs_runs(tiny_teacher, tiny_data, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "distill.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "teacher").symlink_to(tiny_teacher)
    (tmp_path / "data").symlink_to(tiny_data)
    monkeypatch.chdir(tmp_path)
    exec(
        compile(block.replace('"distill.epochs": 1', '"distill.epochs": 1, "max_length": 32'), "distill.md", "exec"), {}
    )
    assert "accuracy" in capsys.readouterr().out
    assert (tmp_path / "student" / "distill.json").is_file()


def test_every_make_target_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text())) <= targets


def test_every_setting_says_what_it_means():
    # The site's list of settings is made of these.
    sections = [Recipe, *(field.annotation for field in Recipe.model_fields.values() if is_section(field.annotation))]
    sections += [ScratchConfig]
    silent = [
        f"{section.__name__}.{key}"
        for section in sections
        for key, field in section.model_fields.items()
        if not field.description and not is_section(field.annotation)
    ]
    assert len(sections) == 8
    assert not silent


def is_section(annotation):
    return isinstance(annotation, type) and issubclass(annotation, Section)


@pytest.mark.parametrize("package", ["potstill.distill", "potstill.export", "potstill.bench", "potstill.serve"])
def test_every_public_name_is_on_the_page_of_python(package):
    page = (ROOT / "docs" / "api.md").read_text()
    public = set(importlib.import_module(package).__all__)
    assert public - {"SENTENCE_EMBEDDING", "Row", "Text"} <= set(
        re.findall(rf"^::: {package}\.(\w+)$", page, re.MULTILINE)
    )


def test_every_page_is_in_the_sites_navigation():
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages == set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page):
    # Within docs/ the build of the site checks the places in pages, too; here is what GitHub shows.
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = {link.partition("#")[0] for link in re.findall(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)", text)}
    assert not {link for link in links if not (page.parent / link).exists()}


def test_the_changelog_knows_the_version():
    assert re.search(rf"^## {re.escape(potstill.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_recipes_load_and_their_headers_tell_how_to_run_them():
    files = sorted((ROOT / "potstill" / "recipes").glob("**/*.yaml"))
    assert (
        sorted(file.stem for file in files)
        == recipe_names()
        == [
            "distilbert",
            "embedding",
            "few-labels",
            "minilmv2",
            "mobilebert",
            "quickstart",
            "sst2",
            "sst2-small",
            "tinybert",
        ]
    )
    for name in recipe_names():
        load_recipe(name)
        ways = (f"potstill run {name} --out", f"potstill distill --recipe {name} --out")
        assert any(way in recipe_text(name) for way in ways)


def test_every_pinned_version_satisfies_what_the_package_asks_for():
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    for name, extra in project["project"]["optional-dependencies"].items():
        wanted += extra if name not in {"serve-gpu", "trackers", "ray"} else []
    by_name = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for requirement in map(Requirement, wanted):
        if requirement.name != "potstill":
            version = by_name[requirement.name.lower().replace("_", "-")]
            assert requirement.specifier.contains(version), requirement
    assert by_name["torch"] == "2.13.0"


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_the_page_of_data_lists_every_column_name_that_is_found(task):
    texts = ", ".join(" + ".join(names) for names in task.text_columns)
    row = " ".join(f"| {task.name} | {texts} | {', '.join(task.label_columns)} |".split())
    assert row in (ROOT / "docs" / "data.md").read_text()


def templates():
    """Yield every string of the package, with … for what is put into it."""
    for file in (ROOT / "potstill").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_errors_that_troubleshooting_quotes_are_those_that_are_printed():
    page = " ".join((ROOT / "docs" / "troubleshooting.md").read_text().split())
    quoted = re.findall(r"\*\*`([^`]+)`\*\*", page)
    printed = list(templates())
    assert len(quoted) >= 20
    for quote in quoted:
        pieces = [piece.strip() for piece in quote.split("…") if len(piece.strip()) > 3]
        assert any(all(piece in text for piece in pieces) for text in printed), quote


@pytest.mark.parametrize("name", ["classify", "embeddings"])
def test_a_notebook_has_the_cells_of_its_script_and_their_outputs(name):
    notebook = json.loads((ROOT / "examples" / f"{name}.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    script = (ROOT / "examples" / f"{name}.py").read_text()
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    for cell, kept in zip(notebook["cells"], cells, strict=True):
        source = (
            kept if cell["cell_type"] == "code" else re.sub(r"^(?=.)", "# ", kept, flags=re.M).replace("\n\n", "\n#\n")
        )
        assert source in script
    assert len(cells) == script.count("# %%") >= 8
    assert all(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert "/tmp" not in json.dumps(notebook)


def test_every_tutorial_shows_a_script_that_make_runs():
    shown = {
        found
        for page in (ROOT / "docs").rglob("*.md")
        for found in re.findall(r'--8<-- "examples/([\w-]+\.sh)', page.read_text())
    }
    assert shown == {script.name for script in (ROOT / "examples").glob("*.sh")}
    assert len(shown) == 8


def test_package_workflow_and_readme_name_the_same_pythons():
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(classifiers))
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert jobs["ci"]["strategy"]["matrix"]["python"] == pythons
    assert jobs["newest"]["strategy"]["matrix"]["python"] == jobs["macos"]["strategy"]["matrix"]["python"]
    assert jobs["macos"]["strategy"]["matrix"]["python"] == [pythons[0], pythons[-1]]
    assert f"Python {pythons[0]} to {pythons[-1]}" in (ROOT / "README.md").read_text()


def test_the_workflow_runs_targets_that_there_are_and_actions_of_a_commit():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    run = {name for names in re.findall(r"run: g?make (.*)", workflow) for name in names.split()}
    assert {"ci", "newest", "examples", "commands", "interop", "clients", "ray"} <= run <= targets
    assert all(re.fullmatch(r"[0-9a-f]{40}", pin) for pin in re.findall(r"uses: [\w/-]+@(\S+)", workflow))


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda page: page.name)
def test_every_make_target_that_a_page_names_exists(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(), re.MULTILINE)) <= targets
