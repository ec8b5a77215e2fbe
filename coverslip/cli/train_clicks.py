"""`coverslip train clicks`: a model of your own that outlines what is clicked on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from coverslip.cli import options
from coverslip.cli.execution import names_in, print_trained


def clicks(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders of <name>.png with <name>_instances.png; or, with --annotations, slides."
        ),
    ],
    output: options.Output,
    objects: Annotated[
        Literal["nuclei", "glands"],
        typer.Option("--objects", help="What is labelled; glands are marked by squiggles as well."),
    ] = "nuclei",
    annotations: options.Annotations = None,
    classes: Annotated[
        str, typer.Option("--classes", help="By comma: only annotations of these.")
    ] = "",
    name: Annotated[
        str | None, typer.Option("--name", help="Of the model; else as --objects.")
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            "--mpp", min=0.05, max=10, help="µm per pixel it is to work at; else 0.25, glands 0.5."
        ),
    ] = None,
    patch: Annotated[
        int | None,
        typer.Option("--patch", help="Pixels seen around a click; else 128, for glands 512."),
    ] = None,
    image_mpp: options.ImageMpp = None,
    nucleus_area: options.NucleusArea = None,
    config: options.TrainingSettings = None,
    start: options.Start = None,
    licence: options.Licence = "",
    assume_mpp: options.AssumeMpp = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Train a model that outlines what is clicked on (NuClick); run again to go on.

    Clicks and squiggles are simulated on labelled nuclei or glands.
    """
    from coverslip.cli.progress import TrainingProgress
    from coverslip.engine.click_training import click_recipe, train_clicks
    from coverslip.engine.nucleus_images import images_of_sources
    from coverslip.heads.click_training import KINDS
    from coverslip.heads.training import training_settings

    kind = KINDS[objects]
    settings, arguments = training_settings(config, crop=kind.patch_px)
    settings = replace(settings, crop=settings.crop if patch is None else patch)
    recipe = click_recipe(
        name or objects, kind, arguments, settings, mpp=mpp, licence=licence,
        data=", ".join(Path(source).name for source in sources),
    )  # fmt: skip
    images = images_of_sources(
        sources, annotations, recipe.mpp, recipe.classes, image_mpp=image_mpp,
        nucleus_um2=nucleus_area, only=names_in(classes), assume_mpp=assume_mpp,
    )  # fmt: skip
    with TrainingProgress(total=settings.steps, shown=not json) as progress:
        trained = train_clicks(
            images,
            recipe,
            kind,
            settings,
            output,
            device=device or "auto",
            start=start,
            observer=progress.observe,
        )
    print_trained(trained, 'coverslip.segment_click(slide, [(x, y)], model="{}")', json)
