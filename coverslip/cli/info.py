"""`coverslip info`: what slides are, without reading their pixels."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer

from coverslip.cli.terminal import print_error, print_table
from coverslip.errors import SlideError, printable

MOST_SHOWN = 120
"""Characters of an identifier's value in the table; JSON has all of them."""


def info(
    slides: Annotated[
        list[str], typer.Argument(help="Files, folders, globs and URLs.", show_default=False)
    ],
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Look into folders within folders.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for machines.")] = False,
    assume_mpp: Annotated[
        float | None,
        typer.Option(help="µm per pixel of slides that record none.", min=0.02, max=50),
    ] = None,
    mpp_table: Annotated[
        str | None,
        typer.Option(metavar="CSV", help="Columns slide,mpp; overrides what the files say."),
    ] = None,
    trust_objective: Annotated[
        bool, typer.Option(help="Take 10/power µm where only the objective is recorded.")
    ] = False,
    phi: Annotated[
        bool, typer.Option("--phi", help="List instead what in each file identifies a patient.")
    ] = False,
) -> None:
    """Show size, pixel size, levels and reader of each slide.

    Nothing that identifies a patient is shown: no label, no macro, no metadata text, no dates;
    unless `--phi` asks what of that the file holds, and where.
    """
    if phi:
        _list_identifiers(slides, recursive, as_json)
        return
    from coverslip.wsi.facts import slide_facts
    from coverslip.wsi.opening import open_slide, read_mpp_table, slide_paths

    table = read_mpp_table(mpp_table) if mpp_table else None
    found: list[dict[str, Any]] = []
    for path in slide_paths(slides, recursive=recursive):
        try:
            with open_slide(
                path,
                assume_mpp=assume_mpp,
                mpp_table=table,
                trust_objective=trust_objective,
                require_mpp=False,
            ) as slide:
                found.append({"file": path, "bytes": _bytes(path), **slide_facts(slide)})
        except SlideError as error:
            found.append({"file": path, "error": str(error)})
            if not as_json:
                print_error(error)
    if as_json:
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        _show([facts for facts in found if "error" not in facts])
    if any("error" in facts for facts in found):
        raise typer.Exit(1)


def _list_identifiers(slides: list[str], recursive: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from coverslip.wsi.identifiers import identifiers_of
    from coverslip.wsi.opening import slide_paths

    found: list[dict[str, Any]] = []
    for path in slide_paths(slides, recursive=recursive):
        try:
            held = identifiers_of(path)
        except SlideError as error:
            found.append({"file": path, "error": str(error)})
            if not as_json:
                print_error(error)
            continue
        found.append({"file": path, "identifiers": [asdict(each) for each in held]})
        if not as_json and held:
            rows = [(each.kind, each.where, _shortened(each.value)) for each in held]
            print_table(("kind", "where", "value"), rows, title=printable(path))
        elif not as_json:
            print(f"{printable(path)}: nothing found; pixels were not looked into")
    if as_json:
        print(json.dumps(found, indent=1, allow_nan=False))
    if any("error" in each for each in found):
        raise typer.Exit(1)


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."


def _bytes(path: str) -> int | None:
    """Size of a file; None for folders and URLs."""
    return os.path.getsize(path) if os.path.isfile(path) else None


def _show(slides: list[dict[str, Any]]) -> None:
    if slides:
        columns = ("slide", "size, px", "size, mm", "µm/px", "from", "levels", "vendor", "reader")
        print_table(columns, [_row(facts) for facts in slides])
    if len(slides) == 1:
        print_table(("level", "size, px", "downsample", "native tile"), _levels(slides[0]))
        _show_rest(slides[0])
    unknown = [facts["name"] for facts in slides if facts["mpp"] is None]
    if unknown:
        print("µm/px unknown: pass it with --assume-mpp 0.25, or list it in a --mpp-table FILE")


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    (w, h), mpp = facts["size"], facts["mpp"]
    millimetres = "" if mpp is None else f"{w * mpp[0] / 1000:.1f} × {h * mpp[1] / 1000:.1f}"
    return (
        facts["name"],
        f"{w} × {h}",
        millimetres,
        "unknown" if mpp is None else _pixel_size(*mpp),
        facts["mpp_source"] or "",
        " ".join(f"{level['downsample'][0]:.4g}" for level in facts["levels"]),
        facts["vendor"],
        facts["reader"],
    )


def _pixel_size(x: float, y: float) -> str:
    return f"{x:.4g}" if f"{x:.4g}" == f"{y:.4g}" else f"{x:.4g} × {y:.4g}"


def _levels(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            str(number),
            "{} × {}".format(*level["size"]),
            _pixel_size(*level["downsample"]),
            "{} × {}".format(*level["tile"]),
        )
        for number, level in enumerate(facts["levels"])
    ]


def _show_rest(facts: dict[str, Any]) -> None:
    if facts["bounds"] != [0, 0, *facts["size"]]:
        print("bounds: {2} × {3} px at ({0}, {1})".format(*facts["bounds"]))
    if facts["associated"]:
        print(f"also holds: {', '.join(facts['associated'])} (label and macro may show a patient)")
    if facts["icc_profile"]:
        print("ICC profile: embedded")
    if facts["cross_check"]:
        print(f"cross-check: {facts['cross_check']}")
