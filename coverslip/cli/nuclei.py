"""`coverslip nuclei`: every nucleus."""

from __future__ import annotations

import typer

from coverslip.cli import debugging, options
from coverslip.cli.execution import execute, settings_from


def nuclei(
    context: typer.Context,
    slides: options.Slides,
    output: options.Output,
    recursive: options.Recursive = False,
    config: options.Config = None,
    nuclei: options.Nuclei = "watershed",
    nucleus_views: options.NucleusViews = None,
    region: options.Region = None,
    region_class: options.RegionClass = None,
    export: options.Export = "geojson",
    on_bad_tile: options.OnBadTile = None,
    assume_mpp: options.AssumeMpp = None,
    mpp_table: options.MppTable = None,
    device: options.Device = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Find every nucleus of each slide; outlines to QuPath GeoJSON."""
    settings = settings_from({**context.params, "encoder": "none", "quality": False}, config)
    execute(slides, output, recursive, settings, json, debugging(context))
