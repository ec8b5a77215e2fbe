"""`coverslip train tissue`: a tissue map of your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coverslip.cli import options
from coverslip.cli.execution import names_in, print_trained

if TYPE_CHECKING:
    from coverslip.heads.recipe import HeadRecipe
    from coverslip.heads.tissue_training import TissueImage


def tissue(
    slides: options.Slides,
    output: options.Output,
    annotations: Annotated[
        Path,
        typer.Option(
            "--annotations",
            help="QuPath GeoJSON of the slide, or a folder of <slide>.geojson: areas, classified; "
            "in Region* objects everything is.",
        ),
    ],
    classes: Annotated[
        str,
        typer.Option("--classes", help="By comma; Other is what else is in Region* objects."),
    ],
    name: Annotated[str, typer.Option("--name", help="Of the model.")] = "tissue",
    mpp: Annotated[
        float, typer.Option("--mpp", help="µm per pixel it is to work at, 1 to 8.")
    ] = 2.0,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML with the settings of the training.")
    ] = None,
    licence: Annotated[str, typer.Option("--licence", help="Of the weights.")] = "",
    assume_mpp: options.AssumeMpp = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Train a map of tissue classes on annotated slides; run again to go on."""
    from coverslip.cli.progress import TrainingProgress
    from coverslip.engine.tissue_training import train_tissue
    from coverslip.heads.training import training_settings

    settings, arguments = training_settings(config)
    recipe = _recipe(name, arguments, mpp, names_in(classes), licence, slides)
    images = _areas(slides, annotations, recipe, assume_mpp)
    with TrainingProgress(total=settings.steps, shown=not json) as progress:
        trained = train_tissue(
            images, recipe, settings, output, device=device or "auto", observer=progress.observe
        )
    print_trained(trained, "coverslip run SLIDES --tissue-map {}", json)


def _recipe(
    name: str,
    arguments: dict[str, Any],
    mpp: float,
    classes: tuple[str, ...],
    licence: str,
    slides: list[str],
) -> HeadRecipe:
    from coverslip.errors import InvalidConfig
    from coverslip.heads.recipe import HeadRecipe
    from coverslip.heads.tissue_map import require_mpp

    require_mpp(mpp)
    if not 2 <= len(classes) <= 64:
        raise InvalidConfig(f"classes: 2 to 64 are wanted, got {len(classes)}")
    return HeadRecipe(
        name, "tissue", "tissue-map", {**arguments, "classes": len(classes)}, mpp, classes,
        licence=licence, data=", ".join(Path(slide).name for slide in slides),
    )  # fmt: skip


def _areas(
    slides: list[str], annotations: Path, recipe: HeadRecipe, assume_mpp: float | None
) -> list[TissueImage]:
    from coverslip.engine.annotated_slides import of_annotated_slides
    from coverslip.engine.tissue_areas import annotated_areas

    return of_annotated_slides(
        slides,
        annotations,
        lambda slide, files: annotated_areas(slide, files, recipe),
        assume_mpp=assume_mpp,
    )
