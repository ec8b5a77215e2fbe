"""The house's docstrings as Markdown: a sentence, then a legend of names, which becomes a table."""

from __future__ import annotations

import ast
import re
from typing import Any

from griffe import Extension, Object

ENTRY = re.compile(r"(\S(?:.*?\S)?)\s{2,}(\S.*)")
"""A legend's line: what is named, and what it is."""
CODE = re.compile(r"(`+[^`]*`+)")


class Legends(Extension):
    """Rewrites every docstring that griffe finds."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """A docstring with its legends as tables and its drawings as code."""
    paragraphs = re.split(r"\n\s*\n", docstring.strip("\n"))
    return "\n\n".join(_paragraph(paragraph) for paragraph in paragraphs)


def _paragraph(text: str) -> str:
    lines = text.splitlines()
    if all(line.startswith("    ") for line in lines):
        return _fenced([line[4:] for line in lines], "python")
    if _is_code(text):
        return _fenced(lines, "python")
    if re.search(r"[├└│]", text):
        return _fenced(lines, "text")
    if entries := _entries(lines):
        return _table(entries)
    if len(lines) > 1 and lines[1].startswith("    "):  # a heading, and its legend below
        below = [line[4:] if line.startswith("    ") else line for line in lines[1:]]
        if entries := _entries(below):
            return f"**{_escaped(lines[0])}**\n\n{_table(entries)}"
    for start in range(1, len(lines)):  # a sentence, and a legend in the same breath
        plain = not any(line.startswith(" ") or ENTRY.fullmatch(line) for line in lines[:start])
        if plain and ENTRY.fullmatch(lines[start]) and (entries := _entries(lines[start:])):
            return f"{_escaped(chr(10).join(lines[:start]))}\n\n{_table(entries)}"
    if any(line.startswith(" ") or re.search(r"\S\s{3,}\S", line) for line in lines):
        return _fenced(lines, "text")
    return _escaped(text)


def _is_code(text: str) -> bool:
    """Whether a paragraph is Python that calls something; sentences do not parse."""
    try:
        return any(isinstance(node, ast.Call) for node in ast.walk(ast.parse(text)))
    except SyntaxError:
        return False


def _entries(lines: list[str]) -> list[tuple[str, str]]:
    """(name, meaning) of each line; none where the lines are no legend."""
    found: list[tuple[str, str]] = []
    for line in lines:
        match = ENTRY.fullmatch(line)
        if not line.startswith(" ") and match:
            found.append((match[1], match[2]))
        elif not line.startswith(" "):
            if not found:
                return []
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        elif found and len(line) - len(line.lstrip()) >= 4:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        else:
            return []
    return found


def _table(entries: list[tuple[str, str]]) -> str:
    rows = [
        f"| `{name}` | {_escaped(meaning).replace('|', chr(92) + '|')} |"
        for name, meaning in entries
    ]
    return "\n".join(["| | |", "|---|---|", *rows])


def _fenced(lines: list[str], language: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _escaped(text: str) -> str:
    """Text whose < and * mean themselves, outside of code."""
    parts = CODE.split(text)
    return "".join(
        part
        if part.startswith("`")
        else part.replace("<", "&lt;").replace("*", r"\*").replace("_", r"\_").replace("][", r"]\[")
        for part in parts
    )
