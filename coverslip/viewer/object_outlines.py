"""The outlines of a slide's objects, small enough to hold a million of them in memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.kernels.ragged import chosen_rows
from coverslip.tiling.store import SlideStore
from coverslip.viewer.object_index import ObjectIndex, Rows

FINEST_UNIT = 0.25
"""Level-0 px; what outlines are rounded to, where they are small enough for 16 bits."""
ROWS_READ = 65_536


@dataclass(frozen=True, eq=False)
class ObjectOutlines:
    """Of the objects of an index, in the store's order.

    offset   int64 [M + 1]: outline i is outline[offset[i] : offset[i + 1]], not closed
    outline  int16 [V, 2], from the object's centroid on, in steps of `unit` level-0 px
    extent   int16 [M, 4]: x0, y0, x1, y1 of the outline, in the same steps
    """

    index: ObjectIndex
    offset: npt.NDArray[np.int64]
    outline: npt.NDArray[np.int16]
    extent: npt.NDArray[np.int16]
    unit: float

    @property
    def nbytes(self) -> int:
        return self.offset.nbytes + self.outline.nbytes + self.extent.nbytes

    @cached_property
    def reach(self) -> float:
        """How far any object goes from its centroid, along x or y, level-0 px."""
        return float(np.abs(self.extent.astype(np.int32)).max(initial=0)) * self.unit

    def at(self, x: float, y: float) -> int | None:
        """The object whose outline holds a point (level-0 px), the smallest of several; None."""
        if not (0 <= x < self.index.zoom.size[0] and 0 <= y < self.index.zoom.size[1]):
            return None
        rows = self.index.near(x, y, self.reach)
        away = (np.array([x, y]) - self.index.centroid[rows]) / self.unit
        box = self.extent[rows]
        inside = (
            (away[:, 0] >= box[:, 0]) & (away[:, 0] <= box[:, 2])
            & (away[:, 1] >= box[:, 1]) & (away[:, 1] <= box[:, 3])
        )  # fmt: skip
        found: list[tuple[float, int]] = []
        for number, point in zip(rows[inside].tolist(), away[inside], strict=True):
            ring = self.outline[self.offset[number] : self.offset[number + 1]].astype(np.float64)
            if len(ring) > 2 and _holds(ring, point):
                found.append((_area(ring), number))
        return min(found)[1] if found else None

    def polygon(self, row: int) -> npt.NDArray[np.float64]:
        """[n, 2] (x, y) level-0 px, not closed."""
        ring = self.outline[self.offset[row] : self.offset[row + 1]]
        return np.asarray(self.index.centroid[row] + ring * self.unit)

    def of(self, rows: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int16]]:
        """Offsets and outlines of `rows` alone."""
        offset, vertices = chosen_rows(self.offset, rows)
        return offset, self.outline[vertices]


def object_outlines(store: SlideStore, stage: str, index: ObjectIndex) -> ObjectOutlines:
    """Of a complete stage. Raises IncompleteStage."""
    group = store.group(stage)
    return outlined(index, np.asarray(group["polygon_offset"][:]), group["polygon"])


def outlined(index: ObjectIndex, offset: npt.NDArray[np.int64], polygon: Any) -> ObjectOutlines:
    """Outlines rounded to a quarter px, or to more where one is very large.

    polygon   float32 [V, 2] level-0 px, in memory or on disk; read in parts
    """
    outline = np.empty((int(offset[-1]), 2), np.int16)
    unit, first = FINEST_UNIT, 0
    while first < len(index):
        past = min(first + ROWS_READ, len(index))
        span = slice(int(offset[first]), int(offset[past]))
        centroid = index.centroid[first:past].astype(np.float32)
        middles = np.repeat(centroid, np.diff(offset[first : past + 1]), axis=0)
        away = np.subtract(polygon[span], middles, out=middles)
        largest = float(np.abs(away).max(initial=0))
        if largest > unit * 32767:
            unit, first = largest / 32767 * 1.0001, 0
            continue
        outline[span] = np.rint(away / np.float32(unit))
        first = past
    return ObjectOutlines(index, offset, outline, _extents(offset, outline), unit)


def _extents(
    offset: npt.NDArray[np.int64], outline: npt.NDArray[np.int16]
) -> npt.NDArray[np.int16]:
    extent = np.zeros((len(offset) - 1, 4), np.int16)
    some = np.diff(offset) > 0
    if some.any():
        starts = offset[:-1][some]
        extent[some, :2] = np.minimum.reduceat(outline, starts)
        extent[some, 2:] = np.maximum.reduceat(outline, starts)
    return extent


def _holds(ring: npt.NDArray[np.float64], point: npt.NDArray[np.float64]) -> bool:
    """Whether a ray from the point crosses the ring an odd number of times."""
    x, y = ring.T
    px, py = np.roll(x, 1), np.roll(y, 1)
    crossed = (y > point[1]) != (py > point[1])
    at = x[crossed] + (point[1] - y[crossed]) * (px - x)[crossed] / (py - y)[crossed]
    return bool(np.count_nonzero(point[0] < at) % 2)


def _area(ring: npt.NDArray[np.float64]) -> float:
    x, y = ring.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
