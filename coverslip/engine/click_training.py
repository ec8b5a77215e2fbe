"""Training a click head on images with their objects or annotated slides, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coverslip.engine.nucleus_training import TrainedHead, split
from coverslip.heads.click_training import ClickBatches, ClickedKind, click_figures
from coverslip.heads.nucleus_training import NucleusImage
from coverslip.heads.nuclick import NuClick
from coverslip.heads.recipe import SETTINGS, HeadRecipe, load_head
from coverslip.heads.training import Training, TrainingConfig

LOOKED_AT = 300
"""Objects on which a look at what is held out clicks, at most."""


def click_recipe(
    name: str,
    kind: ClickedKind,
    arguments: Mapping[str, Any],
    config: TrainingConfig,
    *,
    mpp: float | None = None,
    licence: str = "",
    data: str = "",
) -> HeadRecipe:
    """A head that sees patches of `config.crop` px.

    arguments   of the network
    mpp         µm per px; the kind's by default
    """
    settings = {**SETTINGS["nuclick"], **kind.settings, "patch_px": config.crop}
    return HeadRecipe(
        name, "clicks", "nuclick", dict(arguments), kind.mpp if mpp is None else mpp, (kind.name,),
        normalisation="imagenet", settings=settings, licence=licence, data=data,
    )  # fmt: skip


def train_clicks(
    images: Sequence[NucleusImage],
    recipe: HeadRecipe,
    kind: ClickedKind,
    config: TrainingConfig,
    folder: Path,
    *,
    device: str = "auto",
    start: Path | None = None,
    observer: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> TrainedHead:
    """Train the head that `recipe` describes; run again to go on where it stopped.

    images   with all their objects of the kind, at the recipe's resolution; `config.validation` of
             them are held out
    folder, start   see `heads.training.Training`

    The weights kept are those that did best on the objects held out, each marked by one click;
    where the kind is drawn in squiggles as well, the figures "squiggle ..." say how those do.
    Raises InvalidConfig.
    """
    taught, held_out = split(images, config.validation, config.seed)
    training = Training(recipe, config, folder, device, start)

    def validate(network: NuClick) -> Mapping[str, float]:
        return _figures(network, held_out, recipe, kind)

    source = ClickBatches(taught, config, kind.habits)
    path = training.run(source, validate if held_out else None, observer)
    _, network, _ = load_head(path, "cpu")
    figures = _figures(network, held_out, recipe, kind) if held_out else {}
    return TrainedHead(path, figures, (len(taught), len(held_out)))


def _figures(
    network: NuClick, images: Sequence[NucleusImage], recipe: HeadRecipe, kind: ClickedKind
) -> dict[str, float]:
    side, threshold = recipe.settings["patch_px"], recipe.settings["threshold"]
    found = click_figures(network, images, side, threshold, most=LOOKED_AT)
    if kind.habits.squiggles < 0.5:
        return found
    drawn = click_figures(network, images, side, threshold, most=LOOKED_AT, squiggles=True)
    both = (found["score"] + drawn["score"]) / 2
    return {**found, "score": both, **{f"squiggle {k}": drawn[k] for k in ("iou", "dice", "found")}}
