"""Nuclei without training: haematoxylin, a local threshold, distance seeds, watershed.

Every step looks no further than a stated distance, and what depends on the whole slide (the glass,
how strong its haematoxylin is) is estimated once and handed in. So a nucleus comes out the same
in whatever window it is seen whole with its context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from coverslip.heads.segmentation import Segmentation
from coverslip.kernels.labels import (
    distance_transform,
    filled_holes,
    gaussian,
    label_measures,
    laplacian_of_gaussian,
    local_maxima,
    local_threshold,
    opened_by_disc,
    seeded_watershed,
)
from coverslip.kernels.stain import DAB, EOSIN, HEMATOXYLIN, stain_concentration, stain_matrix

RGB = npt.NDArray[np.uint8]

MATRIX = stain_matrix(HEMATOXYLIN, EOSIN, DAB)
"""With brown as the third stain, haematoxylin is red less a third of blue. That is also the
direction in which annotated nuclei differ most from their surroundings; with a residue square to
both stains instead, eosin leaks into the haematoxylin of most slides."""
PRIOR = 0.05
"""Weight of the slide's class means in the local threshold, as a share of the neighbourhood."""


@dataclass(frozen=True, slots=True)
class StainLevels:
    """What a slide's haematoxylin looks like.

    glass        grey level of clear glass
    threshold    concentration between background and nuclei
    background   mean concentration of tissue below the threshold
    nuclei       mean concentration above it
    """

    glass: float = 240.0
    threshold: float = 0.45
    background: float = 0.2
    nuclei: float = 0.8


def estimate_levels(sample: npt.NDArray[np.uint8]) -> StainLevels:
    """Levels from sampled pixels, uint8 [..., 3]; the defaults for an empty or uniform sample.

    The threshold is Otsu's (1979) over the haematoxylin of all that is not glass.
    """
    pixels = sample.reshape(-1, 3)
    least = pixels.min(axis=1) if len(pixels) else np.empty(0, np.uint8)
    bright = pixels[least > 225]
    glass = float(np.median(bright)) if len(bright) > 100 else StainLevels().glass
    found = stain_concentration(pixels[least < 220], MATRIX, 0, glass)
    if len(found) < 1000:
        return replace(StainLevels(), glass=glass)
    low, high = np.percentile(found, [0.5, 99.5])
    counts, edges = np.histogram(found, bins=256, range=(low, max(high, low + 0.1)))
    threshold = _otsu(counts.astype(np.float64), (edges[:-1] + edges[1:]) / 2)
    nucleus = found > threshold
    if nucleus.all() or not nucleus.any():
        return replace(StainLevels(), glass=glass)
    return StainLevels(
        glass, threshold, float(found[~nucleus].mean()), float(found[nucleus].mean())
    )


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

    The settings were chosen on the histology images of DSB 2018 (BBBC038, CC0).

    mpp              resolution it works at, 0.2 to 0.6
    smooth_um        Gaussian on the haematoxylin channel (standard deviation)
    local_um         half the side of the square in which the threshold is found
    leniency         lowers the threshold, by this share of the contrast of nuclei on the slide
    open_um          radius of the disc that fits into every part of a nucleus
    hole_um2         holes up to this area belong to the nucleus
    seeds            where nuclei begin: at peaks of the "distance" to the background, or of the
                     Laplacian of Gaussian ("log") of the haematoxylin
    seed_um          standard deviation of the Gaussian on the distances, or of the Laplacian's
    apart_um         least distance between two nuclei's seeds
    least_um2, most_um2   area of a nucleus
    least_fill       area as a share of the ellipse of the same spread: 1 for a disc, less for
                     what is ragged or bent
    most_elongation  major over minor axis: folds and keratin are longer
    levels           the slide's; set by `fitted`
    """

    mpp: float = 0.5
    smooth_um: float = 0.4
    local_um: float = 5.0
    leniency: float = 0.03
    open_um: float = 0.5
    hole_um2: float = 20.0
    seeds: Literal["distance", "log"] = "distance"
    seed_um: float = 0.5
    apart_um: float = 2.0
    least_um2: float = 9.0
    most_um2: float = 300.0
    least_fill: float = 0.8
    most_elongation: float = 5.0
    levels: StainLevels = StainLevels()

    name = "watershed"
    classes = ("Nucleus",)
    multiple = 1
    expected: ClassVar[Mapping[str, float]] = {}

    def __post_init__(self) -> None:
        if self.seeds not in ("distance", "log"):
            raise ValueError(f"seeds must be 'distance' or 'log', got {self.seeds!r}")
        if not 0.2 <= self.mpp <= 0.6:
            raise ValueError(f"mpp must be in 0.2..0.6 µm (nuclei blur beyond), got {self.mpp}")

    @property
    def context_um(self) -> float:
        """How far beyond a nucleus' centroid pixels may influence it.

        The threshold looks twice as far as its neighbourhood, for it is found in two rounds; the
        rest is the reach of a nucleus and of the clump it may have to be cut from.
        """
        return 2 * self.local_um + 3 * self.smooth_um + 20.0

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

    def segment(self, rgb: RGB) -> Segmentation:
        """uint8 [H, W, 3] at `mpp`; labels are 4-connected."""
        stain = gaussian(self.intensity(rgb), self.smooth_um / self.mpp)
        mask = self._foreground(stain)
        ridge = self._ridge(stain, mask)
        seeds = local_maxima(ridge, mask, self.apart_um / self.mpp)
        labels = seeded_watershed(-ridge, seeds, mask)
        return Segmentation.of(self.plausible_nuclei(labels, stain))

    def plausible_nuclei(
        self, labels: npt.NDArray[np.int32], stain: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.int32]:
        """Only labels of a nucleus' size and shape, numbered anew without gaps.

        labels   int32 [H, W] at `mpp`, whoever drew them
        stain    float32 [H, W], as of `intensity`
        """
        found = label_measures(labels, stain)
        major, minor = found.axes.T
        area = found.area * self.mpp**2
        kept = (
            (area >= self.least_um2) & (area <= self.most_um2)
            & (found.area >= self.least_fill * np.pi / 4 * major * minor)
            & (major <= self.most_elongation * minor)
        )  # fmt: skip
        number = np.zeros(int(labels.max(initial=0)) + 1, np.int32)
        number[found.label[kept]] = np.arange(1, np.count_nonzero(kept) + 1)
        return np.asarray(number[labels])

    def _ridge(
        self, stain: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32]:
        """float32 [H, W], highest in the middle of nuclei."""
        if self.seeds == "log":
            return np.asarray(laplacian_of_gaussian(stain, self.seed_um / self.mpp))
        # no nucleus is 8 µm from its background, and farther distances would leave the context
        distance = distance_transform(mask, 8.0 / self.mpp)
        return np.asarray(gaussian(distance, self.seed_um / self.mpp))

    def _foreground(self, stain: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        levels, radius = self.levels, round(self.local_um / self.mpp)
        means = (levels.background, levels.nuclei)
        lower = self.leniency * (levels.nuclei - levels.background)
        limit = local_threshold(stain, radius, levels.threshold, means, PRIOR) - lower
        limit = local_threshold(stain, radius, limit, means, PRIOR) - lower
        mask = opened_by_disc(stain > limit, self.open_um / self.mpp)
        return np.asarray(filled_holes(mask, self.hole_um2 / self.mpp**2))
