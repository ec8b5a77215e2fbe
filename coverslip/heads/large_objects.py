"""Objects larger than a window's context: found in pieces, and put together.

Every window reports what of its objects lies in its own box or in a strip around it. Pieces of two
windows overlap in the strips of both, where the same pixels were judged twice: an object in one
window and one in the other are the same if most of what either shows there is in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from coverslip.heads.instances import SIMPLIFY_PX, Nuclei
from coverslip.heads.segmentation import Segmentation
from coverslip.kernels.labels import label_means, label_measures, label_outlines
from coverslip.kernels.raster import polygon_mask
from coverslip.kernels.shapes import shape_measures

STRIP_PX = 32
"""Around a window's own box, in which its pieces still count."""
SAME = 0.5
"""Least share, of what the smaller of two pieces has in both windows, that they have in common."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """P parts of objects as columns; positions in px of the lattice anchored at the slide's corner.

    box              int32 [P, 4] x, y, w, h: what of the window the piece was cut to
    polygon_offset   int64 [P + 1]; polygon float32 [V, 2]: outlines, as of `Nuclei`
    probability, hematoxylin_mean   float32 [P]
    """

    box: npt.NDArray[np.int32]
    polygon_offset: npt.NDArray[np.int64]
    polygon: npt.NDArray[np.float32]
    probability: npt.NDArray[np.float32]
    hematoxylin_mean: npt.NDArray[np.float32]

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def polygons(self) -> npt.NDArray[np.object_]:
        """The outlines as shapely polygons."""
        ring = np.repeat(np.arange(len(self.box)), np.diff(self.polygon_offset))
        rings = shapely.linearrings(self.polygon.astype(np.float64), indices=ring)
        return np.asarray(shapely.polygons(rings), object)


def concatenated(parts: Sequence[Pieces]) -> Pieces:
    """All pieces of `parts`, in order."""
    if not parts:
        empty = np.empty(0, np.float32)
        return Pieces(
            np.empty((0, 4), np.int32), np.zeros(1, np.int64), np.empty((0, 2), np.float32),
            empty, empty,
        )  # fmt: skip
    columns: dict[str, Any] = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Pieces)
        if field.name != "polygon_offset"
    }
    lengths = np.concatenate([np.diff(part.polygon_offset) for part in parts])
    offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Pieces(polygon_offset=offset, **columns)


def pieces_in_window(
    found: Segmentation,
    intensity: npt.NDArray[np.float32],
    corner: tuple[int, int],
    own: tuple[int, int, int, int],
) -> Pieces:
    """What one window shows of its objects.

    found      of the whole window; intensity float32 [H, W] of its pixels
    corner     (x, y) of the window; own x, y, w, h of its own box, px of the slide's lattice

    A part of an object that the strip's border separates is a piece of its own.
    """
    x0, y0 = own[0] - STRIP_PX, own[1] - STRIP_PX
    w, h = own[2] + 2 * STRIP_PX, own[3] + 2 * STRIP_PX
    v, u = y0 - corner[1], x0 - corner[0]
    labels = found.labels[v : v + h, u : u + w]
    parts, owner = _separate(labels)
    outlines = label_outlines(parts)
    stain = label_means(parts, np.ascontiguousarray(intensity[v : v + h, u : u + w, None]))
    return Pieces(
        box=np.tile(np.array([x0, y0, w, h], np.int32), (len(owner), 1)),
        polygon_offset=outlines.offset,
        polygon=(outlines.vertex + np.array([x0, y0])).astype(np.float32),
        probability=found.probability[owner - 1],
        hematoxylin_mean=np.asarray(stain, np.float32).reshape(len(owner)),
    )


def _separate(
    labels: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """(labels whose every number is 4-connected, number before of each)."""
    from scipy.ndimage import find_objects, label

    parts = np.zeros(labels.shape, np.int32)
    owner: list[int] = []
    for number, place in enumerate(find_objects(labels), 1):
        if place is not None:
            own, count = label(labels[place] == number)
            parts[place] += np.where(own > 0, own + len(owner), 0).astype(np.int32)
            owner += [number] * count
    return parts, np.array(owner, np.int64)


def whole_objects(
    pieces: Pieces, scale: tuple[float, float], mpp: float, slide_size: tuple[int, int]
) -> Nuclei:
    """The objects that the pieces are of, in the order of their centroids' y, then x.

    scale   level-0 px per px; mpp µm per px

    What an outline encloses counts as the object. All outlines are held in memory.
    """
    if not len(pieces.box):
        return Nuclei.none()
    polygons = pieces.polygons()
    group = _groups(polygons, pieces.box)
    rows = [np.flatnonzero(group == number) for number in np.unique(group)]
    found = [_described(polygons, pieces, mine) for mine in rows]
    whole = np.array([polygon for polygon, _ in found], object)
    numbers = np.array([values for _, values in found])  # area, x, y, major, minor, p, stain
    order = np.lexsort((numbers[:, 1], numbers[:, 2]))
    whole, numbers = whole[order], numbers[order]
    shapes = shape_measures(whole, numbers[:, 3:5])
    simple = shapely.simplify(whole, SIMPLIFY_PX)
    rings = [shapely.get_coordinates(polygon)[:-1] for polygon in simple]
    count = len(whole)
    size = np.asarray(slide_size, np.float64)

    def column(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        return np.asarray(values, np.float32)

    return Nuclei(
        centroid=numbers[:, 1:3] * scale,
        polygon_offset=np.cumsum([0, *map(len, rings)]).astype(np.int64),
        polygon=column(np.clip(np.concatenate(rings) * scale, 0, size)),
        class_id=np.zeros(count, np.uint8),
        probability=column(numbers[:, 5]),
        agreement=np.full(count, np.nan, np.float32),
        area_um2=column(numbers[:, 0] * mpp**2),
        perimeter_um=column(shapes.perimeter * mpp),
        major_axis_um=column(numbers[:, 3] * mpp),
        minor_axis_um=column(numbers[:, 4] * mpp),
        circularity=column(shapes.circularity),
        solidity=column(shapes.solidity),
        hematoxylin_mean=column(numbers[:, 6]),
    )


def _groups(polygons: npt.NDArray[np.object_], box: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """[P] number of the object that each piece is of."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(polygons)
    first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    other = (first < second) & (box[first] != box[second]).any(axis=1)
    first, second = first[other], second[other]
    frames = shapely.box(box[:, 0], box[:, 1], box[:, 0] + box[:, 2], box[:, 1] + box[:, 3])
    both = shapely.intersection(frames[first], frames[second])
    common = shapely.area(shapely.intersection(polygons[first], polygons[second]))
    seen = [shapely.area(shapely.intersection(polygons[i], both)) for i in (first, second)]
    same = (common > 0) & (common >= SAME * np.minimum(*seen))
    links = coo_array((same[same], (first[same], second[same])), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


def _described(
    polygons: npt.NDArray[np.object_], pieces: Pieces, rows: npt.NDArray[np.int64]
) -> tuple[shapely.Polygon, tuple[float, ...]]:
    """(outline, (area, centroid x, y, major, minor axis, probability, stain)) of one object."""
    whole = shapely.union_all(polygons[rows])
    parts = shapely.get_parts(whole)
    outline = shapely.Polygon(parts[np.argmax(shapely.area(parts))].exterior)
    x0, y0, x1, y1 = outline.bounds
    corner = float(np.floor(x0)), float(np.floor(y0))
    shape = int(np.ceil(y1 - corner[1])), int(np.ceil(x1 - corner[0]))
    mask = polygon_mask(outline, shape, corner)
    measured = label_measures(mask.astype(np.int32), np.zeros(shape, np.float32))
    area, (u, v), axes = measured.area[0], measured.centroid[0], measured.axes[0]
    weight = shapely.area(polygons[rows])
    mean = [
        float(np.average(values[rows], weights=weight))
        for values in (pieces.probability, pieces.hematoxylin_mean)
    ]
    return outline, (area, u + corner[0], v + corner[1], axes[0], axes[1], *mean)
