"""Tissue maps: the class of every pixel at a coarse resolution, by a U-Net."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from coverslip.errors import InvalidConfig
from coverslip.heads.losses import pixel_classes
from coverslip.heads.network_head import RGB, NetworkHead
from coverslip.heads.recipe import load_head
from coverslip.heads.segmentation import UNKNOWN_CLASS
from coverslip.heads.unet import UNet, unet_reach

FINEST_MPP, COARSEST_MPP = 1.0, 8.0
"""Of a tissue map, µm per px: finer it would tell cells, coarser no architecture."""


class TissueMaps(NamedTuple):
    """At every pixel of the input."""

    classes: Tensor  # (b, classes, H, W) logits


class TissueMap(UNet):
    """A U-Net with a logit for each class.

    channels   of the input
    filters    of the first level; each below has twice those of the one above, up to four times
    levels     each of half the side of the one above: what decides how much context counts
    classes    of tissue
    """

    def __init__(
        self, channels: int = 3, filters: int = 24, levels: int = 5, classes: int = 2
    ) -> None:
        super().__init__(channels, filters, levels)
        self.classes = nn.Conv2d(filters, classes, 1)
        self.multiple = 1 << (levels - 1)
        self.reach = unet_reach(levels)

    def forward(self, x: Tensor) -> TissueMaps:  # (b, c, H, W); sides are multiples of `multiple`
        return TissueMaps(self.classes(self.features(x)))

    def losses(self, maps: TissueMaps, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy and Dice over the pixels of "class" (b, H, W) that are not 255."""
        kind = targets["class"]
        known = (kind != UNKNOWN_CLASS).float()
        return {"class": pixel_classes(maps.classes, kind, known)}


@dataclass(frozen=True, slots=True)
class TissueHead(NetworkHead):
    """A tissue map's network, loaded; many threads may use one."""

    network: TissueMap

    @classmethod
    def load(cls, path: Path, device: str = "auto") -> TissueHead:
        """From a head's file. Raises InvalidConfig."""
        if not path.exists():
            raise InvalidConfig(
                f"{path}: no such file; tissue maps are trained by `coverslip train tissue`"
            )
        recipe, network, sha256 = load_head(path, device)
        if recipe.task != "tissue":
            raise InvalidConfig(f"{path}: is a head for {recipe.task}, not for tissue maps")
        return cls(recipe, network, sha256)

    def probabilities(self, rgb: RGB) -> npt.NDArray[np.float32]:
        """uint8 [H, W, 3] at `mpp` -> float32 [classes, H, W], summing to 1 at every px."""
        (logits,) = self.maps(rgb)
        logits = logits[:, : rgb.shape[0], : rgb.shape[1]]
        chance = np.exp(logits - logits.max(axis=0))
        return np.asarray(chance / chance.sum(axis=0), np.float32)


def require_mpp(mpp: float) -> None:
    """Raises InvalidConfig for a resolution at which no tissue map works."""
    if not FINEST_MPP <= mpp <= COARSEST_MPP:
        raise InvalidConfig(
            f"mpp of a tissue map must be {FINEST_MPP:g} to {COARSEST_MPP:g} µm, got {mpp:g}"
        )
