"""`coverslip pretrain`: an encoder of your own from unlabelled slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coverslip.cli import options
from coverslip.cli.execution import print_json


def pretrain(
    slides: options.Slides,
    output: options.Output,
    config: Annotated[
        Path, typer.Option("--config", help="TOML with the settings of the training.")
    ],
    recursive: options.Recursive = False,
    probe: Annotated[
        Path | None,
        typer.Option("--probe", help="Labelled tiles on which the encoder is tried as it learns."),
    ] = None,
    probe_pattern: Annotated[
        str, typer.Option("--probe-pattern", help="Where a file's name holds its class: a regex.")
    ] = "",
    tile_weights: Annotated[
        Path | None,
        typer.Option("--tile-weights", help="Table slide,x,y,w,h,weight: draw these tiles."),
    ] = None,
    assume_mpp: options.AssumeMpp = None,
    mpp_table: options.MppTable = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Pretrain a PLUTO on slides; run it again to go on where it stopped."""
    from coverslip.cli.progress import TrainingProgress
    from coverslip.encoders.pretrain import PretrainConfig
    from coverslip.engine.config import RunConfig
    from coverslip.engine.pretraining import pretrain_on_slides
    from coverslip.settings import settings_from_toml
    from coverslip.wsi.opening import slide_paths

    settings = settings_from_toml(PretrainConfig, config)
    with TrainingProgress(total=settings.steps, shown=not json) as progress:
        trained = pretrain_on_slides(
            slide_paths(slides, recursive=recursive),
            output,
            settings,
            RunConfig(encoder=(), assume_mpp=assume_mpp, mpp_table=mpp_table or ""),
            probe=(probe, probe_pattern) if probe else None,
            tile_weights=tile_weights,
            device=device or "auto",
            observer=progress.observe,
        )
    for problem in trained.failed:
        print(f"left out: {problem}")
    if json:
        print_json({"weights": str(trained.weights), "recipe": str(trained.recipe),
                    "curve": str(trained.curve), "failed": trained.failed})  # fmt: skip
    else:
        print(f"trained: coverslip run SLIDES --encoder {trained.recipe}")
        print(f"curve: {trained.curve}")
    if trained.failed:
        raise typer.Exit(1)
