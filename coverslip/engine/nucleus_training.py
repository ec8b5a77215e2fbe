"""Training a nucleus head on images or annotated slides, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from coverslip.errors import InvalidConfig
from coverslip.heads.depth import expectations
from coverslip.heads.network_nuclei import NetworkNuclei
from coverslip.heads.nucleus_training import (
    NucleusBatches,
    NucleusImage,
    nucleus_figures,
    tuned,
)
from coverslip.heads.recipe import HeadRecipe, load_head, save_head
from coverslip.heads.training import Training, TrainingConfig

Labelled = TypeVar("Labelled")
"""An image, whatever it is labelled for."""

VIEWS = 3
"""Turned views in which the agreement expected of good images is measured."""


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """What a training left.

    path        of the head's file
    figures     on the images held out; empty where none were
    images      how many were trained on, and how many were held out
    """

    path: Path
    figures: dict[str, float]
    images: tuple[int, int]


def train_nuclei(
    images: Sequence[NucleusImage],
    recipe: HeadRecipe,
    config: TrainingConfig,
    folder: Path,
    *,
    device: str = "auto",
    start: Path | None = None,
    observer: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> TrainedHead:
    """Train the head that `recipe` describes; run again to go on where it stopped.

    images   at the recipe's resolution; `config.validation` of them are held out
    folder, start   see `heads.training.Training`

    The weights kept are those that did best on the images held out, on which the thresholds are
    chosen as well, so that the figures told are a little flattering: try the head on images of
    another source before you trust them. Raises InvalidConfig.
    """
    taught, held_out = split(images, config.validation, config.seed)
    training = Training(recipe, config, folder, device, start)
    source = NucleusBatches(taught, recipe, training.network, config)

    def validate(network: Any) -> Mapping[str, float]:
        return nucleus_figures(NetworkNuclei(recipe, network, ""), held_out)

    path = training.run(source, validate if held_out else None, observer)
    return finished_head(path, held_out, (len(taught), len(held_out)))


def split(
    images: Sequence[Labelled], share: float, seed: int
) -> tuple[list[Labelled], list[Labelled]]:
    """(taught, held out): at least one of either where any are to be held out."""
    order = np.random.default_rng(seed).permutation(len(images))
    count = min(max(round(share * len(images)), 1), len(images) - 1) if share > 0 else 0
    if not len(images) or (share > 0 and count < 1):
        raise InvalidConfig(
            f"{len(images)} images are too few to hold some out\n"
            "  annotate more regions, or set validation = 0 to train on all of them"
        )
    return [images[i] for i in order[count:]], [images[i] for i in order[:count]]


def finished_head(
    path: Path, held_out: Sequence[NucleusImage], images: tuple[int, int]
) -> TrainedHead:
    """Thresholds chosen, what is normal measured, both written into the file."""
    if not held_out:
        return TrainedHead(path, {}, images)
    recipe, network, sha256 = load_head(path, "cpu")
    head = tuned(NetworkNuclei(recipe, network, sha256), held_out)
    looking = replace(head, views=VIEWS)
    found = [looking.fitted(image.rgb).segment(image.rgb) for image in held_out]
    save_head(path, replace(head.recipe, expected=expectations(found)), network)
    return TrainedHead(path, nucleus_figures(head, held_out), images)
