"""Training a tissue map on annotated slides, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coverslip.engine.nucleus_training import TrainedHead
from coverslip.engine.tissue_areas import split_areas
from coverslip.heads.recipe import HeadRecipe
from coverslip.heads.tissue_map import TissueHead
from coverslip.heads.tissue_training import TissueBatches, TissueImage, tissue_figures
from coverslip.heads.training import Training, TrainingConfig


def train_tissue(
    images: Sequence[TissueImage],
    recipe: HeadRecipe,
    config: TrainingConfig,
    folder: Path,
    *,
    device: str = "auto",
    observer: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> TrainedHead:
    """Train the tissue map that `recipe` describes; run again to go on where it stopped.

    images   at the recipe's resolution; `config.validation` of their slides, or of the regions of
             the only slide, are held out
    folder   see `heads.training.Training`

    The weights kept are those that did best on what was held out, so that the figures told are a
    little flattering. Raises InvalidConfig.
    """
    taught, held_out = split_areas(images, recipe.classes, config.validation, config.seed)
    training = Training(recipe, config, folder, device)
    source = TissueBatches(taught, recipe, training.network, config)

    def validate(network: Any) -> Mapping[str, float]:
        return tissue_figures(TissueHead(recipe, network, ""), held_out)

    path = training.run(source, validate if held_out else None, observer)
    figures = tissue_figures(TissueHead.load(path, "cpu"), held_out) if held_out else {}
    return TrainedHead(path, figures, (len(taught), len(held_out)))
