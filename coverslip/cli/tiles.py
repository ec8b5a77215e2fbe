"""`coverslip tiles`: the grid and its quality."""

from __future__ import annotations

import typer

from coverslip.cli import debugging, options
from coverslip.cli.execution import execute, settings_from


def tiles(
    context: typer.Context,
    slides: options.Slides,
    output: options.Output,
    recursive: options.Recursive = False,
    config: options.Config = None,
    mpp: options.Mpp = None,
    tile: options.Tile = None,
    overlap: options.Overlap = None,
    min_tissue: options.MinTissue = None,
    tissue: options.Tissue = None,
    quality: options.Quality = None,
    region: options.Region = None,
    region_class: options.RegionClass = None,
    pixels: options.Pixels = None,
    export: options.Export = None,
    on_bad_tile: options.OnBadTile = None,
    assume_mpp: options.AssumeMpp = None,
    mpp_table: options.MppTable = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Lay the tile grid, measure each tile's quality, keep pixels if asked."""
    settings = settings_from({**context.params, "encoder": "none"}, config)
    execute(slides, output, recursive, settings, json, debugging(context))
