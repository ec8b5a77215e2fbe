"""Nuclei without training: haematoxylin, a local threshold, distance seeds, watershed.

Every step looks no further than a stated distance, and what depends on the whole slide (the glass,
how strong its haematoxylin is) is estimated once and handed in. So a nucleus comes out the same
in whatever window it is seen whole with its context.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from coverslip.kernels.labels import seeded_watershed
from coverslip.kernels.stain import EOSIN, HEMATOXYLIN, stain_concentration, stain_matrix

RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class StainLevels:
    """What a slide's haematoxylin looks like.

    glass      grey level of clear glass
    threshold  concentration between background and nuclei
    strong     concentration of well-stained nuclei
    """

    glass: float = 245.0
    threshold: float = 0.35
    strong: float = 1.0


def estimate_levels(sample: npt.NDArray[np.uint8]) -> StainLevels:
    """Levels from sampled tissue, uint8 [..., 3]; the defaults for an empty or blank sample.

    The threshold is Otsu's (1979) over the haematoxylin of all that is not glass.
    """
    pixels = sample.reshape(-1, 3)
    bright = pixels[pixels.min(axis=1) > 200] if len(pixels) else pixels
    glass = float(np.median(bright)) if len(bright) > 100 else 245.0
    found = stain_concentration(pixels, MATRIX, 0, glass)
    stained = found[pixels.max(axis=1) < glass - 8] if len(pixels) else found
    if len(stained) < 1000 or np.ptp(stained) < 0.05:
        return StainLevels()  # too little, or all of one colour: nothing to tell apart
    strong = float(np.percentile(stained, 99.5))
    counts, edges = np.histogram(stained, bins=256, range=(0.0, max(strong, 0.1) + 1e-6))
    threshold = _otsu(counts.astype(np.float64), (edges[:-1] + edges[1:]) / 2)
    return StainLevels(glass, float(np.clip(threshold, 0.05, 1.5)), strong)


MATRIX = stain_matrix(HEMATOXYLIN, EOSIN)


def _otsu(counts: npt.NDArray[np.float64], centres: npt.NDArray[np.float64]) -> float:
    below = np.cumsum(counts)
    above = below[-1] - below
    mass = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(centres[int(np.argmax(np.nan_to_num(between)))])


@dataclass(frozen=True, slots=True)
class WatershedNuclei:
    """The training-free nucleus head. Lengths in µm, areas in µm².

    mpp            resolution it works at
    smooth_um      Gaussian on the haematoxylin channel (standard deviation)
    local_um       half the side of the square whose mean the local threshold compares with
    local_share    how far the threshold leans to the local mean: 0 slide-wide, 1 local
    seed_um        Gaussian on the distance map, and least distance between two seeds
    least, most    area of a nucleus
    levels         the slide's; set by `fitted`
    """

    mpp: float = 0.5
    smooth_um: float = 0.4
    local_um: float = 10.0
    local_share: float = 0.5
    seed_um: float = 0.8
    least_um2: float = 12.0
    most_um2: float = 400.0
    levels: StainLevels = StainLevels()

    name = "watershed"
    classes = ("Nucleus",)

    @property
    def context_um(self) -> float:
        """How far beyond a nucleus' centroid pixels may influence it."""
        return self.local_um + 25.0

    @property
    def parameters(self) -> dict[str, Any]:
        """JSON-able settings, without what is estimated from the slide."""
        return {k: v for k, v in asdict(self).items() if k != "levels"}

    def fitted(self, sample: npt.NDArray[np.uint8]) -> WatershedNuclei:
        """The head with levels estimated from sampled pixels of the slide, uint8 [..., 3]."""
        return replace(self, levels=estimate_levels(sample))

    def intensity(self, rgb: RGB) -> npt.NDArray[np.float32]:
        """Haematoxylin concentration, float32 [H, W]."""
        found = stain_concentration(rgb, MATRIX, 0, self.levels.glass)
        return np.asarray(found, np.float32)

    def segment(self, rgb: RGB) -> npt.NDArray[np.int32]:
        """uint8 [H, W, 3] at `mpp` -> int32 [H, W] labels, 4-connected, from 1 without gaps."""
        stain = ndimage.gaussian_filter(self.intensity(rgb), self.smooth_um / self.mpp, truncate=3)
        stain = np.minimum(stain, self.levels.strong)
        mask = self._foreground(stain)
        distance = ndimage.distance_transform_edt(mask).astype(np.float32)
        ridge = ndimage.gaussian_filter(distance, self.seed_um / self.mpp, truncate=3)
        seeds = self._seeds(ridge, stain, mask)
        labels = seeded_watershed(-ridge, seeds, mask)
        return self._sized(labels)

    def _foreground(self, stain: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        side = 2 * round(self.local_um / self.mpp) + 1
        local = ndimage.uniform_filter(stain, side)
        levels = self.levels
        lean = self.local_share * (local - levels.threshold)
        # never so low that background passes, nor so high that dense areas lose their nuclei
        limit = np.clip(levels.threshold + lean, 0.7 * levels.threshold, 1.6 * levels.threshold)
        mask = stain > limit
        mask = ndimage.binary_opening(mask, _disc(0.8 / self.mpp))
        return _filled(mask, 20.0 / self.mpp**2)

    def _seeds(
        self,
        ridge: npt.NDArray[np.float32],
        stain: npt.NDArray[np.float32],
        mask: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.int32]:
        reach = max(1, round(2 * self.seed_um / self.mpp))
        score = ridge * (1 + 0.25 * stain / max(self.levels.strong, 1e-6))
        peaks = (score == ndimage.maximum_filter(score, footprint=_disc(reach))) & mask
        seeds, _ = ndimage.label(peaks)
        return np.asarray(seeds, np.int32)

    def _sized(self, labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        area = np.bincount(labels.ravel()) * self.mpp**2
        kept = (area >= self.least_um2) & (area <= self.most_um2)
        kept[0] = False
        number = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
        return np.asarray(number[labels])


def _disc(radius: float) -> npt.NDArray[np.bool_]:
    reach = max(1, int(radius))
    v, u = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc: npt.NDArray[np.bool_] = u * u + v * v <= max(radius, 1) ** 2
    return disc


def _filled(mask: npt.NDArray[np.bool_], largest: float) -> npt.NDArray[np.bool_]:
    """Holes of up to `largest` px filled."""
    holes, _ = ndimage.label(~mask)
    small = np.bincount(holes.ravel()) <= largest
    small[0] = False
    return np.asarray(mask | small[holes])
