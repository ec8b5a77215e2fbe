"""`coverslip demo`: the whole job on the slide in the package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder.")] = Path(
        "coverslip-demo"
    ),
) -> None:
    """The whole job on the real slide in the package."""
    from coverslip.cli.progress import RunProgress
    from coverslip.engine.demo import run_demo

    with RunProgress(total=1) as progress:
        result = run_demo(output, progress.observe)
    if result.status == "failed":
        print(result.reason, file=sys.stderr)
        raise typer.Exit(1)
    print(f"{result.tiles} tiles, {result.nuclei} nuclei in {result.total_seconds:.0f} s")
    for file in result.files:
        if file.endswith(".geojson.gz"):
            print(f"GeoJSON  {output / file}")
    print(f"store    {output / (result.slide + '.zarr')}")
    print(f"report   {output / 'report.html'}")
