"""How nuclei lie in a tissue: point-pattern statistics, in µm, corrected at the tissue's border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from coverslip.tiling.tissue import Tissue

Points = npt.NDArray[np.float64]
Distances = npt.NDArray[np.float64]
CENTRES = 50_000
"""Discs of Ripley's K are counted around so many nuclei at most, drawn with `SEED`; what lies in
them is counted among all."""
SEED = 0
FEWEST = 10
"""Nuclei that an edge-corrected statistic must rest on; of fewer it is nan."""


@dataclass(frozen=True, eq=False)
class PointPattern:
    """n nuclei in a tissue.

    points       float64 [n, 2] (x, y) µm
    border_um    float64 [n]: no place nearer than this lies outside the tissue, or the slide
    area_um2     of the tissue
    """

    points: Points
    border_um: Distances
    area_um2: float

    @classmethod
    def of(
        cls, centroid: Points, tissue: Tissue, size: tuple[int, int], mpp: tuple[float, float]
    ) -> PointPattern:
        """Nuclei at `centroid` [n, 2] level-0 px, on a slide of `size` and (x, y) µm per px."""
        return cls(
            centroid * np.asarray(mpp),
            border_distances(centroid, tissue, size, mpp),
            tissue.area_um2(mpp),
        )

    def __len__(self) -> int:
        return len(self.points)

    @property
    def per_um2(self) -> float:
        """Points per µm² of tissue; nan where there is none."""
        return len(self) / self.area_um2 if self.area_um2 > 0 else float("nan")

    def where(self, kept: npt.NDArray[np.bool_]) -> PointPattern:
        """Only the points for which `kept` [n] holds, in the same tissue."""
        return PointPattern(self.points[kept], self.border_um[kept], self.area_um2)

    @property
    def tree(self) -> cKDTree:
        """For questions about neighbours; built anew at each call."""
        return cKDTree(self.points)


def border_distances(
    centroid: Points, tissue: Tissue, size: tuple[int, int], mpp: tuple[float, float]
) -> Distances:
    """float64 [n] µm from each centroid (level-0 px) to what is not tissue: a lower bound.

    The mask's pixels are 8 µm and more. From the distance between pixels' centres what the point
    and the border may lie off them is subtracted, so that a disc said to lie within the tissue
    does; the bound is at most about a pixel's diagonal too small. 0 outside the tissue.
    """
    if not len(centroid):
        return np.empty(0)
    scale = np.asarray(tissue.scale)
    pixel = scale * np.asarray(mpp)
    inside = np.pad(tissue.mask, 1)  # beyond the mask nothing is known
    apart = distance_transform_edt(inside, sampling=(pixel[1], pixel[0])).astype(np.float32)
    cell = np.floor(centroid / scale).astype(np.int64)
    height, width = tissue.mask.shape
    column, row = np.clip(cell, -1, (width, height)).T + 1
    off = np.linalg.norm((centroid / scale - cell - 0.5) * pixel, axis=1)
    bound = apart[row, column] - off - np.linalg.norm(pixel) / 2
    # the mask's last pixels may hang over the slide's edge
    edge = ((np.asarray(size) - centroid) * np.asarray(mpp)).min(axis=1)
    return np.asarray(np.clip(bound, 0.0, np.maximum(edge, 0.0)), np.float64)


def nearest_distances(points: Points, others: cKDTree, *, same: bool = False) -> Distances:
    """float64 [n] µm from each point to the nearest of the others; inf where there is none.

    same   the others are the points themselves: the nearest but oneself

    Not corrected at the border: it is the neighbour that a nucleus has in the tissue.
    """
    if not len(points):
        return np.empty(0)
    distance: Distances = others.query(points, k=[2] if same else [1])[0][:, 0]
    return distance


def clark_evans(pattern: PointPattern) -> float:
    """The mean distance to the nearest neighbour over that of a Poisson pattern of the same density
    (Clark & Evans 1954): 1 for points at random, less where they cluster, more where they space.

    The mean is over points further from the border than four times the expected distance, whose
    neighbours are all seen. nan where fewer than 10 are.
    """
    if len(pattern) < 2:
        return float("nan")
    expected = 0.5 / np.sqrt(pattern.per_um2)
    inner = pattern.points[pattern.border_um >= 4 * expected]
    if len(inner) < FEWEST:
        return float("nan")
    return float(nearest_distances(inner, pattern.tree, same=True).mean() / expected)


def ripley_k(
    pattern: PointPattern, radii_um: Sequence[float], *, centres: int = CENTRES
) -> Distances:
    """float64 [radii] µm²: Ripley's K, the mean number of further points within r of a point, over
    their density (Ripley 1976). pi r² for a Poisson pattern; L = sqrt(K / pi) is r then.

    Border method (reduced sample; Ripley 1988): only discs that lie within the tissue's mask are
    counted, so any shape of tissue will do. nan for radii of which fewer than 10 discs do, as in
    thin or perforated tissue. Of more points than `centres`, so many discs drawn at random stand
    for all.
    """
    found = np.full(len(radii_um), np.nan)
    if len(pattern) < 2 or pattern.area_um2 <= 0:
        return found
    # n - 1, for the others' number about a point that is one of n: unbiased where n is fixed
    density = (len(pattern) - 1) / pattern.area_um2
    at = np.arange(len(pattern))
    if len(at) > centres:
        at = np.sort(np.random.default_rng(SEED).choice(len(at), centres, replace=False))
    tree = pattern.tree
    for i, radius in enumerate(radii_um):
        inner = pattern.points[at[pattern.border_um[at] >= radius]]
        if len(inner) >= FEWEST:
            pairs = int(cKDTree(inner).count_neighbors(tree, radius)) - len(inner)
            found[i] = pairs / len(inner) / density
    return found


@dataclass(frozen=True, slots=True)
class Infiltration:
    """Inflammatory nuclei in and about a tumour.

    tumour_um2        area of the tumour: of the squares that hold a neoplastic nucleus
    in_tumour         inflammatory nuclei in those squares
    fraction          share of the tumour's squares that hold an inflammatory nucleus
    share_in_tumour   `in_tumour` over all inflammatory nuclei
    share_near        of the inflammatory nuclei, those within a distance of a neoplastic one

    Shares of nothing are nan.
    """

    tumour_um2: float
    in_tumour: int
    fraction: float
    share_in_tumour: float
    share_near: float


def infiltration(
    neoplastic: Points, inflammatory: Points, *, square_um: float, near_um: float
) -> Infiltration:
    """How far inflammatory nuclei [m, 2] have entered a tumour of neoplastic nuclei [n, 2], µm.

    square_um   side of the squares of a lattice anchored at the slide's corner. Saltz et al. (2018,
                Cell Reports 23:181) map tumour-infiltrating lymphocytes by squares of 50 µm, as
                the share that is positive; here a square is judged by its nuclei
    near_um     how near is near a neoplastic nucleus
    """
    tumour = np.unique(_squares(neoplastic, square_um))
    lymphocytes = _squares(inflammatory, square_um)
    inside = np.isin(lymphocytes, tumour)
    positive = len(np.unique(lymphocytes[inside]))
    near = (
        nearest_distances(inflammatory, cKDTree(neoplastic)) <= near_um
        if len(neoplastic)
        else np.zeros(len(inflammatory), bool)
    )
    return Infiltration(
        tumour_um2=len(tumour) * square_um**2,
        in_tumour=int(inside.sum()),
        fraction=_share(positive, len(tumour)),
        share_in_tumour=_share(int(inside.sum()), len(inflammatory)),
        share_near=_share(int(near.sum()), len(inflammatory)),
    )


def _squares(points: Points, side: float) -> npt.NDArray[np.int64]:
    """[n] one number for the row and column of the square that holds each point."""
    column, row = np.floor(points.reshape(-1, 2) / side).astype(np.int64).T
    return np.asarray((row << 32) + column)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
