"""`coverslip classify`: the class of every tile, as a map, from embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coverslip.cli import debugging, options
from coverslip.cli.execution import names_in, print_json, settings_from
from coverslip.cli.terminal import print_error

if TYPE_CHECKING:
    from coverslip.engine.result import SlideResult


def classify(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Stores, folders of stores, or slides, whose features are made first.",
            metavar="STORES_OR_SLIDES...",
        ),
    ],
    classifier: Annotated[
        Path, typer.Option("--classifier", help="A file that coverslip train tiles wrote.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the stores of slides.")
    ] = None,
    export: Annotated[
        str, typer.Option("--export", help="By comma: geojson, png.")
    ] = "geojson,png",
    recursive: options.Recursive = False,
    config: options.Config = None,
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", help="The classifier's, where it goes by another name here."),
    ] = None,
    weights: options.Weights = None,
    overlap: options.Overlap = None,
    stain: options.Stain = None,
    stain_target: options.StainTarget = None,
    trust_remote_code: options.TrustRemoteCode = None,
    assume_mpp: options.AssumeMpp = None,
    mpp_table: options.MppTable = None,
    device: options.Device = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Say which class each tile is, with calibrated probabilities: maps and QuPath objects."""
    from coverslip.cli.progress import RunProgress
    from coverslip.engine.tile_classes import Classification
    from coverslip.engine.tile_classes import classify as classify_all
    from coverslip.errors import CoverslipError
    from coverslip.heads.tile_classifier import TileClassifier

    head = TileClassifier.load(classifier)
    given = {**context.params, "encoder": encoder or head.source.encoder, "export": ""}
    asked = Classification(head, names_in(export), output, settings_from(given, config))
    with RunProgress(total=len(inputs), shown=not json) as progress:

        def finished(result: SlideResult) -> None:
            if result.status != "failed":  # those that failed are told below
                progress.finished(result)

        found = list(
            classify_all(
                inputs, asked, recursive=recursive, observer=progress.observe,
                on_result=finished, debug=debugging(context),
            )
        )  # fmt: skip
    for slide_id, result in found:
        if isinstance(result, CoverslipError):
            print_error(result)
        elif json:
            print_json({"slide": slide_id, "tiles": result.tiles, "shares": dict(result.shares),
                        "files": [str(f) for f in result.files]})  # fmt: skip
        else:
            shares = ", ".join(f"{share:.0%} {name}" for name, share in result.shares.items())
            state = "" if result.changed else " (unchanged)"
            print(f"{slide_id}: {result.tiles:,} tiles: {shares}{state}")
            for file in result.files:
                print(f"  {file}")
    if any(isinstance(result, CoverslipError) for _, result in found):
        raise typer.Exit(1)
