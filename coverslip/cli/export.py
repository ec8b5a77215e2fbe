"""`coverslip export`: outward formats from finished stores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from coverslip.cli.execution import names_in


def export(
    output: Annotated[Path, typer.Argument(help="Folder of stores that a run wrote.")],
    format: Annotated[str, typer.Option("--format", "-f", help="By comma.")] = "geojson",
) -> None:
    """Write outward formats from finished stores, without the slides."""
    from coverslip.engine.export_stores import export_stores
    from coverslip.errors import CoverslipError

    failed = 0
    for slide_id, files in export_stores(output, names_in(format)):
        if isinstance(files, CoverslipError):
            failed += 1
            print(f"{slide_id}: {files}", file=sys.stderr)
        else:
            for file in files:
                print(file)
    if failed:
        raise typer.Exit(1)
