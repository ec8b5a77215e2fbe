"""Outlines as polygons, and what is measured on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from coverslip.kernels.labels import Outlines

Polygons = npt.NDArray[np.object_]


def outline_polygons(outlines: Outlines, tolerance: float = 0) -> Polygons:
    """The outlines as shapely polygons, object [M], all valid.

    tolerance   px that a simplified outline may stray from the traced one (Douglas & Peucker 1973,
                kept from crossing itself); 0 keeps every vertex. For a tolerance in µm divide by
                the image's µm per px
    """
    ring = np.repeat(np.arange(len(outlines.label)), np.diff(outlines.offset))
    polygons = shapely.polygons(shapely.linearrings(outlines.vertex, indices=ring))
    if tolerance:
        polygons = shapely.simplify(polygons, tolerance, preserve_topology=True)
    return np.asarray(polygons)


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
