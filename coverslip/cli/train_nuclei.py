"""`coverslip train nuclei`: a nucleus model of your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coverslip.cli import options
from coverslip.cli.execution import names_in, print_trained

if TYPE_CHECKING:
    from coverslip.heads.nucleus_training import NucleusImage
    from coverslip.heads.recipe import HeadRecipe


def nuclei(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders of <name>.png with <name>_instances.png; or, with --annotations, slides."
        ),
    ],
    output: options.Output,
    annotations: Annotated[
        Path | None,
        typer.Option(
            "--annotations",
            help="QuPath GeoJSON of the slide, or a folder of <slide>.geojson: Region* objects are "
            "areas in which every nucleus is outlined.",
        ),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Of the model.")] = "nuclei",
    architecture: Annotated[
        str, typer.Option("--architecture", help="stardist, hovernet, token-decoder.")
    ] = "stardist",
    classes: Annotated[
        str, typer.Option("--classes", help="By comma; pannuke for the five of PanNuke.")
    ] = "Nucleus",
    mpp: Annotated[float, typer.Option("--mpp", help="µm per pixel it is to work at.")] = 0.5,
    image_mpp: Annotated[
        float | None, typer.Option("--image-mpp", help="µm per pixel of the images.")
    ] = None,
    nucleus_area: Annotated[
        float | None,
        typer.Option("--nucleus-area", help="Where nobody knows it: µm² of their median nucleus."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML with the settings of the training.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--start", help="A head of that architecture to begin with.")
    ] = None,
    licence: Annotated[str, typer.Option("--licence", help="Of the weights.")] = "",
    assume_mpp: options.AssumeMpp = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Train a nucleus model on images with labels or on annotated slides; run again to go on."""
    from coverslip.cli.progress import TrainingProgress
    from coverslip.engine.nucleus_training import train_nuclei
    from coverslip.heads.training import training_settings

    settings, arguments = training_settings(config)
    recipe = _recipe(name, architecture, arguments, mpp, names_in(classes), licence, sources)
    images = (
        _from_slides(sources, annotations, recipe, assume_mpp)
        if annotations
        else _from_folders(sources, recipe, image_mpp, nucleus_area)
    )
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
    print_trained(trained, "--nuclei", json)


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
    data = ", ".join(Path(source).name for source in sources)
    return HeadRecipe(
        name, "nuclei", architecture, arguments, mpp, classes,
        settings=SETTINGS.get(architecture, {}), licence=licence, data=data,
    )  # fmt: skip


def _from_folders(
    folders: list[str], recipe: HeadRecipe, image_mpp: float | None, area: float | None
) -> list[NucleusImage]:
    from coverslip.engine.nucleus_images import nucleus_images

    return [
        image
        for folder in folders
        for image in nucleus_images(
            Path(folder), recipe.mpp, recipe.classes, image_mpp=image_mpp, nucleus_um2=area
        )
    ]


def _from_slides(
    slides: list[str], annotations: Path, recipe: HeadRecipe, assume_mpp: float | None
) -> list[NucleusImage]:
    from coverslip.engine.nucleus_images import annotated_regions, of_annotated_slides

    return of_annotated_slides(
        slides,
        annotations,
        lambda slide, file: annotated_regions(slide, file, recipe.mpp, recipe.classes),
        assume_mpp=assume_mpp,
    )
