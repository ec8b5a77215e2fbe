"""What the copies of slides are called that identify nobody."""

from __future__ import annotations

import csv
from pathlib import Path

from coverslip.errors import InvalidConfig, printable
from coverslip.wsi.naming import slide_name
from coverslip.wsi.opening import slide_paths


def copies_of(source: Path, target: Path, names: Path | None) -> list[tuple[Path, Path]]:
    """(slide, its copy) for a slide or the slides of a folder.

    target   the copy's path, or the folder of copies
    names    CSV with columns slide (file name or stem) and name (the copy's, without folder)

    Raises InvalidConfig for a table that means nothing, and where two copies would have one name.
    """
    renamed = {} if names is None else read_names(names)
    several = source.is_dir()
    slides = [Path(p) for p in slide_paths([str(source)])]
    copies: dict[Path, Path] = {}
    for slide in slides:
        new = renamed.get(slide.name) or renamed.get(slide_name(slide))
        if names is not None and new is None:
            raise InvalidConfig(f"{names}: has no line for {printable(slide.name)}")
        if several or target.is_dir():
            copy = target / ((new or slide_name(slide)) + slide.suffix)
        elif new is not None:
            raise InvalidConfig(f"--names goes with a folder; {printable(str(target))} is none")
        else:
            copy = target
        if copy in copies:
            raise InvalidConfig(
                f"{printable(slide.name)} and {printable(copies[copy].name)} would both become "
                f"{printable(str(copy))}"
            )
        copies[copy] = slide
    return [(slide, copy) for copy, slide in copies.items()]


def read_names(path: Path) -> dict[str, str]:
    """Slide -> new name, without folder or suffix. Raises InvalidConfig naming the line."""
    found: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            for row in rows:
                slide, name = (row.get("slide") or "").strip(), (row.get("name") or "").strip()
                plain = name.isprintable() and not set(name) & set('/\\:*?"<>|')
                if not slide or not name or not plain or name.startswith("."):
                    raise InvalidConfig(
                        f"{path}, line {rows.line_num}: wants columns slide,name (a file name)"
                    )
                found[slide] = name
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidConfig(f"{path}: cannot be read: {error}") from None
    return found
