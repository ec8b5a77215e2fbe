"""What pages take from the code: the commands, the public names, the measured tables.

mkdocs calls `on_page_markdown` for every page; a line `<!-- from code: NAME -->` is replaced.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import coverslip
from coverslip import cli

REPOSITORY = Path(__file__).parents[2]
PLACE = re.compile(r"^<!-- from code: ([a-z ]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with what it takes from the code in its place."""
    return PLACE.sub(lambda match: SOURCES[match[1]](), markdown)


def every_command() -> Iterator[tuple[str, Any]]:
    """("mil train", its command), in order of names."""
    yield from _commands(typer.main.get_command(cli._program([])), "")


def _commands(group: Any, above: str) -> Iterator[tuple[str, Any]]:
    for name in sorted(group.commands):
        command = group.commands[name]
        if hasattr(command, "commands"):
            yield from _commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


def commands() -> str:
    """Every command with its help and its options."""
    parts = []
    for name, command in every_command():
        rows = [
            f"| {_invocation(each)} | {_cell(each.help or '')}{_default(each)} |"
            for each in command.params
            if each.name != "help" and not getattr(each, "hidden", False)
        ]
        table = ["| | |", "|---|---|", *rows] if rows else []
        usage = f"## coverslip {name}"
        help = inspect.cleandoc(command.help or "").replace("<", "&lt;")
        parts += [usage, help, "\n".join(table)]
    return "\n\n".join(parts)


def _invocation(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{(parameter.metavar or parameter.name).strip('{}[]').upper()}`"
    return ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])


def _default(parameter: Any) -> str:
    if parameter.required:
        return " *required*"
    told = parameter.default not in (None, False, "", ()) and not callable(parameter.default)
    return f" [{_cell(str(parameter.default))}]" if told else ""


def _cell(text: str) -> str:
    kept = text.replace("<", "&lt;").replace("|", r"\|").replace("*", r"\*").replace("_", r"\_")
    return " ".join(kept.split())


def public_names() -> str:
    """What `import coverslip` offers: each name, its room and its first sentence."""
    rows = []
    for name, module in sorted(coverslip._home.items(), key=lambda item: (item[1], item[0])):
        home, sentence = definition(f"coverslip.{module}", name)
        rows.append(f"| [`{name}`][{home}.{name}] | `{home}` | {_cell(sentence)} |")
    return "\n".join(["| name | lives in | |", "|---|---|---|", *rows])


def definition(module: str, name: str) -> tuple[str, str]:
    """(module that defines a name, first sentence of its docstring), without importing it."""
    path = REPOSITORY / f"{module.replace('.', '/')}.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return definition(str(node.module), name)
    raise LookupError(f"{path}: defines no {name}")


def scripts() -> str:
    """The benchmarks, each with the first line of its docstring."""
    rows = []
    for path in sorted((REPOSITORY / "benchmarks").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in text:
            told = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
            rows.append(f"| `{path.name}` | {_cell(told)} |")
    return "\n".join(["| | |", "|---|---|", *rows])


def measured() -> str:
    """The tables of benchmarks/RESULTS.md, as part of a page."""
    text = (REPOSITORY / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    body = text.partition("\n")[2]
    return body.replace("](../docs/", "](")


SOURCES = {
    "commands": commands,
    "measured": measured,
    "public names": public_names,
    "scripts": scripts,
}
