"""Geometry as QuPath will hold it: valid on a grid of 0.01 px.

QuPath from 0.6 on snaps what it reads to that grid and gives up on the whole file at the first
polygon that crosses itself. So every polygon leaves here with two decimals, valid, and large
enough not to vanish.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

GRID = 0.01
SMALL = 1.0
"""Below this area in px² a polygon might vanish on the grid, and is tried."""

Geometries = npt.NDArray[np.object_]
"""Shapely geometries; None where nothing is left."""


def rounded(geometries: Geometries) -> Geometries:
    """Coordinates rounded to the grid; polygons may have become invalid."""
    flat = shapely.force_2d(geometries)
    placed = shapely.transform(flat, lambda xy: np.round(xy, 2))
    return np.asarray(placed, dtype=np.object_)


def made_valid(geometries: Geometries) -> tuple[Geometries, npt.NDArray[np.bool_]]:
    """Repair what QuPath would refuse, split or lose.

    geometries   [N] with coordinates on the grid

    Returns [N] geometries, each valid, on the grid and of at most its own dimension, or None where
    nothing is left; and [N] bool, True where something had to be changed. Polygons become
    MultiPolygons where they touch or cross themselves.
    """
    geometries = np.asarray(geometries, dtype=np.object_)
    flat = shapely.get_dimensions(geometries) == 2
    suspect = shapely.is_empty(geometries) | shapely.is_missing(geometries)
    suspect |= flat & (~shapely.is_valid(geometries) | (shapely.area(geometries) < SMALL))
    # a line of one repeated point has no length, which JTS refuses
    suspect |= (shapely.get_dimensions(geometries) == 1) & (shapely.length(geometries) == 0)
    if not suspect.any():
        return geometries, suspect
    result = geometries.copy()
    changed = np.zeros(len(geometries), dtype=np.bool_)
    for i in np.flatnonzero(suspect):
        result[i] = _repaired(geometries[i])
        changed[i] = result[i] is not geometries[i]
    return result, changed


def clipped(geometries: Geometries, size: tuple[float, float]) -> Geometries:
    """What of each lies in [0, width] x [0, height]; None where nothing does."""
    x0, y0, x1, y1 = np.moveaxis(shapely.bounds(geometries), -1, 0)
    inside = (x0 >= 0) & (y0 >= 0) & (x1 <= size[0]) & (y1 <= size[1])
    if inside.all():
        return geometries
    result = geometries.copy()
    frame = shapely.box(0, 0, *size)
    for i in np.flatnonzero(~inside):
        result[i] = _cut(geometries[i], frame)
    return result


def highest_dimension(geometry: Any) -> Any:
    """`geometry` without the parts of lower dimension; None if empty.

    A collection becomes the simplest of Polygon, MultiPolygon, LineString and so on that holds
    its areas, else its lines, else its points.
    """
    if geometry is None or geometry.is_empty:
        return None
    if geometry.geom_type != "GeometryCollection":
        return geometry
    parts = _simple_parts(geometry)
    most = max(shapely.get_dimensions(parts))
    kept = [part for part in parts if shapely.get_dimensions(part) == most and not part.is_empty]
    if len(kept) == 1:
        return kept[0]
    if most == 2:
        return shapely.union_all([shapely.make_valid(p, method="structure") for p in kept])
    return shapely.multilinestrings(kept) if most == 1 else shapely.multipoints(kept)


def polygons_of(geometry: Any) -> list[Any]:
    """The polygons a geometry consists of; none for points and lines."""
    parts = [] if geometry is None else _simple_parts(geometry)
    return [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]


def _simple_parts(geometry: Any) -> list[Any]:
    if not hasattr(geometry, "geoms"):
        return [geometry]
    return [simple for part in geometry.geoms for simple in _simple_parts(part)]


def _cut(geometry: Any, frame: Any) -> Any:
    if geometry is None:
        return None
    if shapely.get_dimensions(geometry) == 2 and not geometry.is_valid:
        geometry = shapely.make_valid(geometry, method="structure", keep_collapsed=False)
    dimension = shapely.get_dimensions(geometry)
    part = highest_dimension(shapely.intersection(geometry, frame))
    # what only touches the frame from outside is not in it
    return part if part is not None and shapely.get_dimensions(part) == dimension else None


def _repaired(geometry: Any) -> Any:
    """A valid polygon or several on the grid, or None; the same object where it was fine."""
    if geometry is None or geometry.is_empty or shapely.get_dimensions(geometry) != 2:
        return None
    snapped = geometry
    for _ in range(3):  # rounding after snapping moves a vertex by one bit, which may cross anew
        whole = shapely.make_valid(snapped, method="structure", keep_collapsed=False)
        snapped = _polygonal(shapely.set_precision(whole, GRID))
        if snapped is None:
            return None
        snapped = shapely.transform(snapped, lambda xy: np.round(xy, 2))
        if snapped.is_valid and not shapely.set_precision(snapped, GRID).is_empty:
            return (
                geometry
                if shapely.equals_exact(snapped.normalize(), geometry.normalize())
                else snapped
            )
    return None


def _polygonal(geometry: Any) -> Any:
    polygons = [part for part in polygons_of(geometry) if part.area > 0]
    if not polygons:
        return None
    return polygons[0] if len(polygons) == 1 else shapely.multipolygons(polygons)
