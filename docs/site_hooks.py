"""What mkdocs does while it builds the site: lists that are made from the code, and links into the repository.

A page says `<!-- settings -->` or `<!-- commands -->` where such a list goes.
"""

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from typer import Context
from typer.core import TyperGroup
from typer.main import get_command

from potstill.cli.app import app
from potstill.config import (
    METHODS,
    BenchConfig,
    DataConfig,
    DistillConfig,
    ExportConfig,
    Recipe,
    ScratchConfig,
    Section,
    StudentConfig,
    TeacherConfig,
)

ROOT = Path(__file__).parents[1]
SECTIONS: dict[str, type[Section]] = {
    "": Recipe,
    "teacher": TeacherConfig,
    "teacher.scratch": ScratchConfig,
    "student": StudentConfig,
    "data": DataConfig,
    "distill": DistillConfig,
    "export": ExportConfig,
    "bench": BenchConfig,
}


def on_page_markdown(markdown: str, *, page: Any, config: Mapping[str, Any], **_: object) -> str:
    """Fill a page's lists in, and let what links out of docs/ lead to the repository, as it does on GitHub."""
    for name, make in (("settings", settings), ("commands", commands)):
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", "\n".join(make()))

    def leave(link: re.Match[str]) -> str:
        target = (ROOT / "docs" / page.file.src_uri).parent / link[1]
        if target.resolve().is_relative_to(ROOT / "docs"):
            return link[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri} links to {link[1]}, which is not there")
        kind = "tree" if target.is_dir() else "blob"
        return f"]({config['extra']['repository']}/{kind}/main/{target.resolve().relative_to(ROOT)}{link[2] or ''})"

    return re.sub(r"\]\(((?:\.\./)+[^)#]*)(#[^)]*)?\)", leave, markdown)


def settings() -> Iterator[str]:
    """Yield a heading, a sentence and a list for each section of a recipe."""
    for name, section in SECTIONS.items():
        yield f"\n## {f'`{name}`' if name else 'The recipe itself'} {{#{name.replace('.', '-') or 'recipe'}}}\n"
        yield f"{(section.__doc__ or '').splitlines()[0]}\n"
        yield '<div class="list" markdown>\n\n| setting | meaning |\n|---|---|'
        for key, field in section.model_json_schema()["properties"].items():
            whole = f"{name}.{key}" if name else key
            if whole in SECTIONS:
                continue
            # Words end at dots and underscores too, so that a long key can break on a phone.
            shown = re.sub(r"([._])", r"\1<wbr>", whole)
            # In a recipe, which is YAML, Python's None is null.
            meaning = re.sub(r"\bNone\b", "`null`", " ".join(field.get("description", "").split()))
            about = f"Takes {takes(field)}. Default: {default(section, key, field)}."
            yield f"| <code>{shown}</code> | {meaning}<br><small>{about}</small> |".replace("\n", " ")
        yield "\n</div>"


def takes(field: Mapping[str, Any]) -> str:
    """Return in words what a field of a JSON schema may hold; null is told by the default and the meaning."""
    if "anyOf" in field:
        return " or ".join(takes(part) for part in field["anyOf"] if part.get("type") != "null")
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {takes(field.get('items', {}))}"
    words = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text"}
    limits = (
        ("minimum", "from"),
        ("exclusiveMinimum", "above"),
        ("maximum", "to"),
        ("exclusiveMaximum", "below"),
    )
    said = [f"{word} {field[key]:g}" for key, word in limits if key in field]
    return " ".join([words.get(field.get("type", ""), "any value"), *said])


def default(section: type[Section], key: str, field: Mapping[str, Any]) -> str:
    """Return a setting's default; where methods of distillation differ, each method's."""
    if key in section.model_json_schema().get("required", ()):
        return "none, it must be given"
    usual = field.get("default")
    by_method = {
        method.name: value
        for method in METHODS.values()
        for value in [{**method.training, **method.settings}.get(key)]
        if section is DistillConfig and value is not None
    }
    if not by_method:
        return f"`{written(usual)}`"
    # One value for all methods that have the setting needs no names.
    if len({str(value) for value in by_method.values()}) == 1 and usual is None:
        return f"`{written(next(iter(by_method.values())))}`"
    said = [f"{name} `{written(value)}`" for name, value in by_method.items()]
    return ", ".join([*([f"`{written(usual)}`"] if usual is not None else []), *said])


def written(value: object) -> str:
    """Return a value as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def commands() -> Iterator[str]:
    """Yield a heading, the help's own words and a table of options for each command."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    root = Context(group, info_name="potstill")
    for name in group.list_commands(root):
        command = group.get_command(root, name)
        assert command is not None
        context = Context(command, info_name=name, parent=root)
        about, _, example = (command.help or "").partition("Example:")
        yield f"\n## potstill {name} {{#{name}}}\n\n{about.strip()}\n"
        yield f"```\n{' '.join(command.get_usage(context).removeprefix('Usage: ').split())}\n```\n"
        if example:
            yield f"For example:\n\n```\n{chr(10).join(line.strip() for line in example.strip().splitlines())}\n```\n"
        yield '<div class="list" markdown>\n\n| option | meaning |\n|---|---|'
        for parameter in command.get_params(context):
            if record := parameter.get_help_record(context):
                option, meaning = (html.escape(" ".join(part.split())).replace("|", "&#124;") for part in record)
                yield f"| <code>{option}</code> | {meaning} |"
        yield "\n</div>"
