"""Training Cerberus on sources that are labelled for some tasks each, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coverslip.engine.nucleus_training import TrainedHead, finished_head, split
from coverslip.errors import InvalidConfig
from coverslip.heads.cerberus import OBJECTS
from coverslip.heads.multitask_training import (
    MultitaskBatches,
    MultitaskImage,
    MultitaskSource,
    multitask_figures,
)
from coverslip.heads.network_nuclei import NetworkNuclei
from coverslip.heads.nucleus_training import NucleusImage
from coverslip.heads.recipe import HeadRecipe
from coverslip.heads.training import Training, TrainingConfig

MOST_CLASSES = 64
MOST_HELD_OUT = 100
"""Images of a tissue class in a source; more would tell little, and take long at every look."""


def multitask_recipe(
    name: str,
    sources: Sequence[MultitaskSource],
    arguments: Mapping[str, Any],
    mpp: float,
    licence: str = "",
) -> HeadRecipe:
    """A head for all that the sources are labelled for.

    arguments   of the network, apart from its tasks and tissue classes

    Raises InvalidConfig: no source of nuclei, a single tissue class or too many, arguments that
    say otherwise than the sources.
    """
    images = [image for source in sources for image in source.images]
    tasks = [task for task in OBJECTS if any(task in image.labels for image in images)]
    tissues = sorted({image.tissue for image in images if image.tissue is not None})
    if "nuclei" not in tasks:
        raise InvalidConfig(
            "no source is labelled for nuclei, which every Cerberus finds\\n"
            "  add one, such as images=FOLDER,mpp=0.25"
        )
    if len(tissues) == 1 or len(tissues) > MOST_CLASSES:
        raise InvalidConfig(f"tissue classes: 2 to {MOST_CLASSES} are wanted, got {len(tissues)}")
    if decided := sorted({"tasks", "tissue_classes"} & arguments.keys()):
        raise InvalidConfig(f"network: {decided[0]} are those that the sources are labelled for")
    return HeadRecipe(
        name, "nuclei", "cerberus", {"tasks": tasks, "tissue_classes": tissues, **arguments}, mpp,
        normalisation="imagenet", licence=licence, data=", ".join(s.name for s in sources),
    )  # fmt: skip


def train_multitask(
    sources: Sequence[MultitaskSource],
    recipe: HeadRecipe,
    config: TrainingConfig,
    folder: Path,
    *,
    device: str = "auto",
    start: Path | None = None,
    observer: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> TrainedHead:
    """Train the head that `recipe` describes; run again to go on where it stopped.

    sources   at the recipe's resolution; `config.validation` of each one's images are held out
    folder, start   see `heads.training.Training`

    The weights kept are those that did best on what was held out, so that the figures told are a
    little flattering. Raises InvalidConfig.
    """
    parts = [_split(source, config) for source in sources]
    taught = [source for source, _ in parts]
    held_out = [image for _, images in parts for image in images]
    training = Training(recipe, config, folder, device, start)
    source = MultitaskBatches(taught, recipe, training.network, config)

    def validate(network: Any) -> Mapping[str, float]:
        return multitask_figures(NetworkNuclei(recipe, network, ""), held_out)

    path = training.run(source, validate if held_out else None, observer)
    counts = sum(len(source.images) for source in taught), len(held_out)
    trained = finished_head(path, [_nuclei(i) for i in held_out if "nuclei" in i.labels], counts)
    if not held_out:
        return trained
    return replace(trained, figures=multitask_figures(NetworkNuclei.load(path, "cpu"), held_out))


def _split(
    source: MultitaskSource, config: TrainingConfig
) -> tuple[MultitaskSource, list[MultitaskImage]]:
    """(what is taught, what is held out), of each tissue class alike."""
    taught: list[MultitaskImage] = []
    held_out: list[MultitaskImage] = []
    for kind in sorted({image.tissue for image in source.images}, key=str):
        images = [image for image in source.images if image.tissue == kind]
        share = config.validation
        if kind is not None:
            share = min(share, MOST_HELD_OUT / len(images))
        try:
            some, others = split(images, share, config.seed)
        except InvalidConfig as error:
            which = source.name if kind is None else f"{source.name}, {kind}"
            raise InvalidConfig(f"{which}: {error}") from None
        taught += some
        held_out += others
    return replace(source, images=taught), held_out


def _nuclei(image: MultitaskImage) -> NucleusImage:
    labels = image.labels["nuclei"]
    count = int(labels.max(initial=0))
    return NucleusImage(image.rgb, labels, np.zeros(count, np.uint8), image.name)
