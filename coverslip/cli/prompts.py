"""`coverslip prompts`: zero-shot classes of tiles, from features that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coverslip.cli import options
from coverslip.cli.execution import names_in
from coverslip.cli.terminal import print_error


def prompts(
    output: Annotated[Path, typer.Argument(help="Folder of stores that a run wrote.")],
    encoder: Annotated[
        str, typer.Option("--encoder", help="The image-text encoder of the features.")
    ],
    classes: Annotated[
        str,
        typer.Option("--classes", help="By comma, or a TOML file with each class's names."),
    ],
    templates: Annotated[
        Path | None,
        typer.Option("--templates", help="Text file, a template a line, {} for the name."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What this set of classes is called; else as the file."),
    ] = None,
    weights: options.Weights = None,
    device: Annotated[
        str, typer.Option("--device", help="Of the text tower: auto, cpu, cuda, cuda:1.")
    ] = "auto",
    export: Annotated[
        str, typer.Option("--export", help="By comma: geojson, png.")
    ] = "geojson,png",
) -> None:
    """Say which class each tile shows, by text alone; heat maps and QuPath tiles."""
    from coverslip.encoders.text import TEMPLATES
    from coverslip.engine.prompts import Prompts, classes_from, prompt_stores, templates_from
    from coverslip.errors import CoverslipError

    asked = Prompts(
        output,
        encoder,
        classes_from(classes),
        templates=templates_from(templates) if templates else TEMPLATES,
        name=name or (Path(classes).stem if classes.endswith(".toml") else "classes"),
        weights=weights,
        device=device,
        formats=names_in(export),
    )
    failed = 0
    for slide_id, result in prompt_stores(asked):
        if isinstance(result, CoverslipError):
            failed += 1
            print_error(result)
            continue
        shares = ", ".join(f"{share:.0%} {name}" for name, share in result.shares.items())
        state = "" if result.changed else " (unchanged)"
        print(f"{slide_id}: {result.tiles:,} tiles: {shares}{state}")
        for file in result.files:
            print(f"  {file}")
    if failed:
        raise typer.Exit(1)
