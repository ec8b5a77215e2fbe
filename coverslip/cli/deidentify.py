"""`coverslip deidentify`: copies of slides that identify nobody."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from coverslip.cli.terminal import print_error
from coverslip.errors import InvalidConfig, SlideError


def deidentify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A slide, or a folder of them.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The copy, or their folder.")],
    names: Annotated[
        Path | None,
        typer.Option("--names", metavar="CSV", help="Columns slide,name: what copies are called."),
    ] = None,
    drop_thumbnail: Annotated[
        bool,
        typer.Option("--drop-thumbnail", help="Also without Aperio's picture of the scanned area."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON array, for machines.")] = False,
) -> None:
    """Copy SVS and TIFF slides without label, macro and identifying tags; pixels byte for byte.

    Each copy is read back and compared with its original before it gets its name. The original
    stays as it is.
    """
    from coverslip.wsi.deidentification import deidentified
    from coverslip.wsi.deidentified_names import copies_of

    rows: list[dict[str, object]] = []
    for path, copy in copies_of(source, target, names):
        try:
            made = deidentified(path, copy, keep_thumbnail=not drop_thumbnail)
        except SlideError as error:
            rows.append({"file": str(path), "error": str(error)})
            if not json:
                print_error(error)
            continue
        rows.append({"file": str(path), **asdict(made), "path": str(made.path)})
        if not json:
            print(
                f"{made.path}: {made.tiles:,} tiles of {made.levels} levels, the same bytes; "
                f"{made.found} identifiers gone"
            )
    if json:
        print(json_module.dumps(rows, indent=1))
    if not rows:
        raise InvalidConfig(f"{source}: no slides in this folder")
    if any("error" in row for row in rows):
        raise typer.Exit(1)
