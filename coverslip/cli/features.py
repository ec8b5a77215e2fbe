"""`coverslip features`: embeddings."""

from __future__ import annotations

import typer

from coverslip.cli import debugging, options
from coverslip.cli.execution import execute, settings_from


def features(
    context: typer.Context,
    slides: options.Slides,
    output: options.Output,
    recursive: options.Recursive = False,
    config: options.Config = None,
    mpp: options.Mpp = None,
    tile: options.Tile = None,
    overlap: options.Overlap = None,
    stain: options.Stain = None,
    stain_target: options.StainTarget = None,
    encoder: options.EncoderName = None,
    weights: options.Weights = None,
    slide_encoder: options.SlideEncoderName = None,
    slide_weights: options.SlideWeights = None,
    trust_remote_code: options.TrustRemoteCode = None,
    replace_features: options.ReplaceFeatures = None,
    export: options.Export = None,
    on_bad_tile: options.OnBadTile = None,
    assume_mpp: options.AssumeMpp = None,
    mpp_table: options.MppTable = None,
    device: options.Device = None,
    batch: options.Batch = None,
    precision: options.Precision = None,
    compile: options.Compile = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Embed every tile with one or more encoders."""
    execute(
        slides, output, recursive, settings_from(context.params, config), json, debugging(context)
    )
