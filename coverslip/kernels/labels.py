"""Arithmetic on label images: watershed, outlines, measures. Labels are int32, 0 is background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.kernels.backend import Backend, implementation

Labels = npt.NDArray[np.int32]


def seeded_watershed(height: Any, seeds: Any, mask: Any, *, backend: Backend | None = None) -> Any:
    """Flood `height` from `seeds` within `mask`, lowest first (Meyer 1991; 4-connected).

    height    (H, W) float32
    seeds     (H, W) int32, 0 where there is none
    mask      (H, W) bool; nothing is labelled outside
    backend   overrides the choice; for tests and benchmarks

    Returns (H, W) int32 with the seeds' labels. Of equally high pixels the one reached first is
    flooded first, seeds in raster order: the result is the same wherever the image is cut, as
    long as the cut is far enough away. Parts of the mask that no seed reaches stay 0.
    """
    return implementation("labels", height, backend).seeded_watershed(height, seeds, mask)


@dataclass(frozen=True, slots=True)
class Outlines:
    """Polygons of M labels, one after the other.

    label    int32 [M], ascending
    offset   int64 [M + 1]: vertices of polygon i are vertex[offset[i] : offset[i + 1]]
    vertex   float64 [V, 2] (x, y); pixel (column u, row v) covers [u, u + 1) x [v, v + 1). Rings
             are not closed (the first vertex is not repeated)
    """

    label: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    vertex: npt.NDArray[np.float64]


def label_outlines(labels: Labels, *, backend: Backend | None = None) -> Outlines:
    """The outer outline of every label, through the middles of its pixels' outer edges.

    Every label must be 4-connected. Going through edge middles cuts pixel corners, so rings never
    touch themselves or their neighbours' and are always valid polygons, also where pixels
    meet only diagonally. Holes are covered.
    """
    label, offset, vertex = implementation("labels", labels, backend).label_outlines(labels)
    return Outlines(label, offset, vertex)


@dataclass(frozen=True, slots=True)
class LabelMeasures:
    """Per label, ascending, in pixels.

    label [M] int32; area [M]; centroid [M, 2] (x, y), pixel centres at .5; box [M, 4] x0, y0, x1,
    y1 (one past); mean [M] of the image; axes [M, 2] lengths of the major and minor axis of the
    ellipse with the same second moments, pixels taken as points (as scikit-image does).
    """

    label: npt.NDArray[np.int32]
    area: npt.NDArray[np.float64]
    centroid: npt.NDArray[np.float64]
    box: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]


def label_measures(labels: Labels, image: Any, *, backend: Backend | None = None) -> LabelMeasures:
    """Area, centroid, box, mean intensity and axes of every label, in one pass.

    image   (H, W) float32
    """
    sums = implementation("labels", labels, backend).label_sums(labels, image)
    present = np.flatnonzero(sums[:, 0] > 0)
    area, x, y, xx, yy, xy, total, x0, y0, x1, y1 = sums[present].T
    u, v = x / area, y / area
    mxx, myy, mxy = xx / area - u * u, yy / area - v * v, xy / area - u * v
    spread = np.sqrt((mxx - myy) ** 2 + 4 * mxy**2)
    major = np.sqrt(8 * np.maximum(mxx + myy + spread, 0))
    minor = np.sqrt(8 * np.maximum(mxx + myy - spread, 0))
    return LabelMeasures(
        label=present.astype(np.int32),
        area=area,
        centroid=np.stack([u + 0.5, v + 0.5], axis=1),
        box=np.stack([x0, y0, x1 + 1, y1 + 1], axis=1).astype(np.int64),
        mean=total / area,
        axes=np.stack([major, minor], axis=1),
    )
