"""Polygons as pixels, and pixels as polygons with their holes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

Mask = npt.NDArray[np.bool_]


def polygon_mask(
    geometry: shapely.Geometry,
    shape: tuple[int, int],
    origin: tuple[float, float] = (0.0, 0.0),
    scale: tuple[float, float] = (1.0, 1.0),
) -> Mask:
    """bool (H, W): the pixels whose centre lies in a Polygon or MultiPolygon, by even and odd.

    origin   (x, y) of the first pixel's corner; scale lengths per px

    A centre on an edge counts as inside to the edge's right and not to its left, so that polygons
    that share an edge share no pixel.
    """
    h, w = shape
    crossed = np.zeros((h, w + 1), np.uint8)
    for ring in shapely.get_rings(shapely.get_parts(geometry)):
        corner = (shapely.get_coordinates(ring) - origin) / scale - 0.5  # centres at whole numbers
        (x0, y0), (x1, y1) = corner[:-1].T, corner[1:].T
        ends = np.ceil([np.minimum(y0, y1), np.maximum(y0, y1)])
        low, high = np.clip(ends, 0, h).astype(np.int64)
        edge = np.repeat(np.arange(len(low)), high - low)
        first = np.repeat(np.cumsum(high - low) - (high - low), high - low)
        row = low[edge] + np.arange(len(edge)) - first
        at = x0[edge] + (row - y0[edge]) / (y1 - y0)[edge] * (x1 - x0)[edge]
        np.add.at(crossed, (row, np.clip(np.ceil(at), 0, w).astype(np.int64)), 1)
    return np.asarray(np.cumsum(crossed[:, :w], axis=1, dtype=np.uint8) % 2 == 1)


def mask_areas(mask: Mask, corner: tuple[float, float] = (0.0, 0.0)) -> list[shapely.Polygon]:
    """The 4-connected parts of a mask (H, W) as valid polygons with holes, px.

    corner   (x, y) of the mask's first pixel's corner

    As `label_outlines`, rings go through the middles of pixels' edges and cut pixel corners, so
    that those of masks without a common pixel share no area, and parts that meet diagonally do not
    touch.
    """
    from contourpy import FillType, contour_generator

    h, w = mask.shape
    padded = np.pad(mask, 1).astype(np.float64)
    x, y = np.arange(-0.5, w + 1) + corner[0], np.arange(-0.5, h + 1) + corner[1]
    contours: Any = contour_generator(x, y, padded, fill_type=FillType.OuterOffset)
    found = []
    for vertex, offset in zip(*contours.filled(0.5, 2.0), strict=True):
        shell, *holes = (vertex[a : b - 1] for a, b in pairwise(offset.tolist()))
        found.append(shapely.Polygon(shell, holes))
    return found
