"""Batches of augmented crops, whatever their images are labelled for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from coverslip.errors import InvalidConfig
from coverslip.heads.augmentation import recoloured
from coverslip.heads.network_head import RGB, NetworkHead
from coverslip.heads.recipe import HeadRecipe
from coverslip.heads.training import Batch, TrainingConfig

Image = TypeVar("Image")
Targets = dict[str, npt.NDArray[np.float32]]


class CropBatches(ABC, Generic[Image]):
    """Crops of images, recoloured and normalised, with what a network should make of each.

    network   torch, with `multiple`

    Raises InvalidConfig for a crop whose side is no multiple of that.
    """

    def __init__(self, recipe: HeadRecipe, network: Any, config: TrainingConfig) -> None:
        if config.crop % network.multiple:
            raise InvalidConfig(f"crop must be a multiple of {network.multiple}, got {config.crop}")
        self._head, self._config = NetworkHead(recipe, network, ""), config

    @abstractmethod
    def drawn(self, random: np.random.Generator) -> Iterable[Image]:
        """The images of one batch, one for each crop."""

    @abstractmethod
    def example(self, image: Image, random: np.random.Generator) -> tuple[RGB, Targets]:
        """A crop of an image, uint8 [crop, crop, 3], and its targets."""

    def batch(self, step: int) -> Batch:
        """Of a step: the same whenever it is asked for."""
        config = self._config
        random = np.random.default_rng([config.seed, step])
        examples = [self.example(image, random) for image in self.drawn(random)]
        crops, targets = zip(*examples, strict=True)
        changed = recoloured(np.stack(crops), config.augmentation, random)
        images = np.stack([self._head.normalised(crop) for crop in changed])
        return Batch(images, {k: np.stack([t[k] for t in targets]) for k in targets[0]})
