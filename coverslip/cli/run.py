"""`coverslip run`: everything."""

from __future__ import annotations

import typer

from coverslip.cli import debugging, options
from coverslip.cli.execution import execute, print_plan, scheduling_from, settings_from


def run(
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
    stain: options.Stain = None,
    stain_target: options.StainTarget = None,
    encoder: options.EncoderName = None,
    weights: options.Weights = None,
    slide_encoder: options.SlideEncoderName = None,
    slide_weights: options.SlideWeights = None,
    trust_remote_code: options.TrustRemoteCode = None,
    replace_features: options.ReplaceFeatures = None,
    nuclei: options.Nuclei = None,
    nucleus_views: options.NucleusViews = None,
    tissue_map: options.TissueMap = None,
    pixels: options.Pixels = None,
    image: options.Image = None,
    export: options.Export = None,
    icc: options.Icc = None,
    keep_identifiers: options.KeepIdentifiers = None,
    on_bad_tile: options.OnBadTile = None,
    assume_mpp: options.AssumeMpp = None,
    mpp_table: options.MppTable = None,
    trust_objective: options.TrustObjective = None,
    device: options.Device = None,
    batch: options.Batch = None,
    precision: options.Precision = None,
    compile: options.Compile = None,
    threads: options.Threads = None,
    read_timeout: options.ReadTimeout = None,
    cross_check: options.CrossCheck = None,
    shard: options.Shard = "",
    scheduler: options.Scheduler = "",
    slurm: options.Slurm = "",
    workers: options.Workers = 0,
    stage: options.Stage = None,
    stage_limit: options.StageLimit = 0.0,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Everything for a folder of slides: tissue, tiles, embeddings, nuclei, exports, report.

    Any number of runs may share an output folder, from any number of machines.
    """
    settings, scheduling = settings_from(context.params, config), scheduling_from(context.params)
    if dry_run:
        print_plan(slides, recursive, settings)
    else:
        execute(slides, output, recursive, settings, json, debugging(context), scheduling)
