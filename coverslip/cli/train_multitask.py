"""`coverslip train multitask`: one model for nuclei, glands, lumina and tissue classes."""

from __future__ import annotations

from typing import Annotated

import typer

from coverslip.cli import options
from coverslip.cli.execution import print_trained


def multitask(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="images=FOLDER,mpp=0.25 with <name>_nuclei.png, <name>_glands.png, "
            "<name>_lumina.png beside <name>.png. tissue=FOLDER,mpp=0.5 with a folder a class. "
            "slides=SLIDES,annotations=QUPATH and the classes in QuPath, as ,nuclei=Tumor+Stroma "
            ",glands=Gland ,lumina=Lumen. Any of them with ,share=2 to be seen twice as often."
        ),
    ],
    output: options.Output,
    name: Annotated[str, typer.Option("--name", help="Of the model.")] = "cerberus",
    mpp: Annotated[
        float, typer.Option("--mpp", min=0.05, max=10, help="µm per pixel it is to work at.")
    ] = 0.5,
    config: options.TrainingSettings = None,
    start: options.Start = None,
    licence: options.Licence = "",
    assume_mpp: options.AssumeMpp = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Train one model for nuclei, glands, lumina, tissue classes (Cerberus); run again to go on.

    Each source is labelled for some of these; of the others nothing is assumed.
    """
    from coverslip.cli.progress import TrainingProgress
    from coverslip.engine.multitask_images import multitask_source
    from coverslip.engine.multitask_training import multitask_recipe, train_multitask
    from coverslip.heads.training import training_settings

    settings, arguments = training_settings(config)
    read = [multitask_source(source, mpp, assume_mpp=assume_mpp) for source in sources]
    recipe = multitask_recipe(name, read, arguments, mpp, licence)
    with TrainingProgress(total=settings.steps, shown=not json) as progress:
        trained = train_multitask(
            read,
            recipe,
            settings,
            output,
            device=device or "auto",
            start=start,
            observer=progress.observe,
        )
    print_trained(trained, "coverslip run SLIDES --nuclei {}", json)
