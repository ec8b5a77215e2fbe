"""Outlines as polygons, and what is measured on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from coverslip.kernels.backend import Backend, implementation
from coverslip.kernels.labels import Outlines
from coverslip.kernels.ragged import chosen_rows

Polygons = npt.NDArray[np.object_]


def simplified_outlines(
    outlines: Outlines, tolerance: float, *, backend: Backend | None = None
) -> Outlines:
    """The outlines with fewer vertices, all of them valid polygons.

    tolerance   px; no vertex of the traced outline is further away from the simplified one. For a
                tolerance in µm divide it by the image's µm per px

    Douglas & Peucker (1973). A ring that would cross itself or collapse is simplified by half the
    tolerance, and so on; after three halvings it stays as it is.
    """
    kernel = implementation("shapes", outlines.vertex, backend)
    kept = np.ones(len(outlines.vertex), np.bool_)
    rings = np.arange(len(outlines.label))
    for halving in range(4):
        offset, numbers = chosen_rows(outlines.offset, rings)
        parts = Outlines(outlines.label[rings], offset, outlines.vertex[numbers])
        mine = kernel.kept_vertices(parts.offset, parts.vertex, tolerance / 2**halving)
        lengths = np.add.reduceat(mine, parts.offset[:-1]) if len(rings) else np.empty(0, np.int64)
        valid = lengths >= 3
        polygons = outline_polygons(_rings(_thinned(parts, mine), np.flatnonzero(valid)))
        valid[valid] = shapely.is_valid(polygons)
        vertices = np.repeat(valid, np.diff(parts.offset))
        kept[numbers[vertices]] = mine[vertices]
        rings = rings[~valid]
        if not len(rings):
            break
    return _thinned(outlines, kept)


def _rings(outlines: Outlines, rings: npt.NDArray[np.int64]) -> Outlines:
    offset, vertices = chosen_rows(outlines.offset, rings)
    return Outlines(outlines.label[rings], offset, outlines.vertex[vertices])


def _thinned(outlines: Outlines, kept: npt.NDArray[np.bool_]) -> Outlines:
    before = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    return Outlines(outlines.label, before[outlines.offset], outlines.vertex[kept])


def outline_polygons(outlines: Outlines) -> Polygons:
    """The outlines as shapely polygons, object [M]."""
    ring = np.repeat(np.arange(len(outlines.label)), np.diff(outlines.offset))
    return np.asarray(shapely.polygons(shapely.linearrings(outlines.vertex, indices=ring)))


@dataclass(frozen=True, slots=True)
class ShapeMeasures:
    """Per object, float64 [M], lengths in px.

    perimeter      length of the outline
    circularity    4 pi area / perimeter², at most 1
    solidity       outlined area over that of its convex hull
    eccentricity   of the ellipse with the same second moments: 0 for a disc, towards 1 for a line
    """

    perimeter: npt.NDArray[np.float64]
    circularity: npt.NDArray[np.float64]
    solidity: npt.NDArray[np.float64]
    eccentricity: npt.NDArray[np.float64]


def shape_measures(polygons: Polygons, axes: npt.NDArray[np.float64]) -> ShapeMeasures:
    """Shapes of M objects.

    polygons   their outlines, not simplified; axes [M, 2] as `label_measures` gives them
    """
    perimeter, area = shapely.length(polygons), shapely.area(polygons)
    hull = shapely.area(shapely.convex_hull(polygons))
    major, minor = axes.T
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(major > 0, minor / major, 1.0)
    return ShapeMeasures(
        perimeter=perimeter,
        circularity=np.minimum(4 * np.pi * area / perimeter**2, 1),
        solidity=area / hull,
        eccentricity=np.sqrt(np.maximum(1 - ratio**2, 0)),
    )
