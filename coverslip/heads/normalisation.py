"""Pixels as networks want them: by the slide's own range of colours and strength of stain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from coverslip.heads.watershed import MATRIX, PRIOR, StainLevels, estimate_levels
from coverslip.kernels.labels import gaussian, local_threshold
from coverslip.kernels.stain import stain_concentration

RGB = npt.NDArray[np.uint8]
Kind = Literal["percentile", "stain", "imagenet"]
Range = tuple[tuple[float, float, float], tuple[float, float, float]]

LOW, HIGH = 1.0, 99.8
"""Percentiles of each channel that become 0 and 1, as StarDist's models were trained."""
IMAGENET: Range = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""Mean and spread, grey levels."""
SMOOTH_UM, LOCAL_UM = 0.4, 5.0
"""Of the haematoxylin channel, and of the surroundings it is compared with: as the watershed."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How the pixels of one slide become a network's input.

    kind     see `HeadRecipe`
    span     (subtract, divide by) for each channel, grey levels
    levels   what the slide's haematoxylin looks like
    """

    kind: Kind
    span: Range
    levels: StainLevels

    @classmethod
    def of(cls, kind: Kind, sample: npt.NDArray[np.uint8]) -> Normalisation:
        """By sampled pixels of the slide's tissue, uint8 [..., 3]."""
        span = IMAGENET if kind == "imagenet" else percentile_span(sample)
        return cls(kind, span, estimate_levels(sample) if kind == "stain" else StainLevels())

    def __call__(self, rgb: RGB, mpp: float) -> npt.NDArray[np.float32]:
        """uint8 [H, W, 3] at `mpp` -> float32 [H, W, C]: 3 channels, or 5 for "stain"."""
        low, width = (np.array(values, np.float32) for values in self.span)
        colours = np.asarray((rgb.astype(np.float32) - low) / width, np.float32)
        if self.kind != "stain":
            return colours
        levels = self.levels
        stain = stain_concentration(rgb, MATRIX, 0, levels.glass).astype(np.float32)
        stain = gaussian(stain, SMOOTH_UM / mpp)
        means = (levels.background, levels.nuclei)
        limit = local_threshold(stain, round(LOCAL_UM / mpp), levels.threshold, means, PRIOR)
        contrast = max(levels.nuclei - levels.background, 0.05)
        strength = (stain - levels.background) / contrast
        return np.concatenate(
            [colours, strength[..., None], ((stain - limit) / contrast)[..., None]], axis=2
        ).astype(np.float32)


def percentile_span(sample: npt.NDArray[np.uint8]) -> Range:
    """(1st percentile, 99.8th less 1st) of each channel; what is of one colour is not stretched."""
    pixels = sample.reshape(-1, 3)
    if not len(pixels):
        return (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
    low, high = np.percentile(pixels, [LOW, HIGH], axis=0)
    width = np.maximum(high - low, 16.0)
    return tuple(low.tolist()), tuple(width.tolist())
