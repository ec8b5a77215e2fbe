"""`coverslip train nuclei`: a nucleus model of your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coverslip.cli import options
from coverslip.cli.execution import names_in, print_trained

if TYPE_CHECKING:
    from coverslip.heads.recipe import HeadRecipe


def nuclei(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders of <name>.png with <name>_instances.png; or, with --annotations, slides."
        ),
    ],
    output: options.Output,
    annotations: options.Annotations = None,
    name: Annotated[str, typer.Option("--name", help="Of the model.")] = "nuclei",
    architecture: Annotated[
        str, typer.Option("--architecture", help="stardist, hovernet, token-decoder.")
    ] = "stardist",
    classes: Annotated[
        str, typer.Option("--classes", help="By comma; pannuke for the five of PanNuke.")
    ] = "Nucleus",
    mpp: Annotated[float, typer.Option("--mpp", help="µm per pixel it is to work at.")] = 0.5,
    image_mpp: options.ImageMpp = None,
    nucleus_area: options.NucleusArea = None,
    config: options.TrainingSettings = None,
    start: options.Start = None,
    licence: options.Licence = "",
    assume_mpp: options.AssumeMpp = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Train a nucleus model on images with labels or on annotated slides; run again to go on."""
    from coverslip.cli.progress import TrainingProgress
    from coverslip.engine.nucleus_images import images_of_sources
    from coverslip.engine.nucleus_training import train_nuclei
    from coverslip.heads.training import training_settings

    settings, arguments = training_settings(config)
    recipe = _recipe(name, architecture, arguments, mpp, names_in(classes), licence, sources)
    images = images_of_sources(
        sources, annotations, recipe.mpp, recipe.classes,
        image_mpp=image_mpp, nucleus_um2=nucleus_area, assume_mpp=assume_mpp,
    )  # fmt: skip
    with TrainingProgress(total=settings.steps, shown=not json) as progress:
        trained = train_nuclei(
            images,
            recipe,
            settings,
            output,
            device=device or "auto",
            start=start,
            observer=progress.observe,
        )
    print_trained(trained, "coverslip run SLIDES --nuclei {}", json)


def _recipe(
    name: str,
    architecture: str,
    arguments: dict[str, Any],
    mpp: float,
    classes: tuple[str, ...],
    licence: str,
    sources: list[str],
) -> HeadRecipe:
    from coverslip.heads.recipe import PANNUKE, SETTINGS, HeadRecipe

    classes = PANNUKE if classes == ("pannuke",) else classes
    if len(classes) > 1:
        arguments = {**arguments, "classes": len(classes)}
    if architecture == "cerberus":  # what it is not taught it is not to find
        arguments = {"tasks": ["nuclei"], "tissue_classes": 0, **arguments}
    data = ", ".join(Path(source).name for source in sources)
    return HeadRecipe(
        name, "nuclei", architecture, arguments, mpp, classes,
        settings=SETTINGS.get(architecture, {}), licence=licence, data=data,
    )  # fmt: skip
