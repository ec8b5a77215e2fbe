"""Objects of a Deep Zoom cell for the page: compact binary when near, a density when far.

The binary, little-endian, of n objects with v vertices altogether:

    "CSN1"                      magic
    uint32      n               objects
    uint32      v               vertices; 0: points only
    float32     x, y            the cell's corner, level-0 px
    float32     unit            level-0 px of a step of the outlines
    uint32      [n]             number in the store's columns
    float32     [n, 2]          centroid from the cell's corner on, level-0 px
    uint8       [n]             class
    uint8       [n]             255 times the probability; 255 where it is unknown
                                zeros up to a multiple of 4
    uint32      [n + 1]         only where v: vertices of object i are offset[i] : offset[i + 1]
    int16       [v, 2]          only where v: from the centroid on, in steps of the unit
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from coverslip.viewer.coloured_tiles import coloured_png, ramp
from coverslip.viewer.deep_zoom import TILE, DeepZoom
from coverslip.viewer.object_index import FINE, ObjectIndex, z_codes
from coverslip.viewer.object_outlines import ObjectOutlines

MAGIC = b"CSN1"
HEADER = struct.Struct("<4sII3f")
MOST_OBJECTS = 20_000
"""In one answer; beyond it the density says more."""
BINS = 64
"""Along a density tile's side, so that each is 4 px wide."""
MARGIN = 2
"""Bins around a tile that are counted too: smoothing sees no border."""
FAINT, STRONG = 0, 230
"""Opacity of the lowest and of the highest density, of 255."""


class TooMany(Exception):
    """More objects in a cell than one answer holds; `count` says how many."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count:,} objects are here, more than {MOST_OBJECTS:,}")
        self.count = count


def object_bytes(
    index: ObjectIndex,
    level: int,
    column: int,
    row: int,
    outlines: ObjectOutlines | None = None,
) -> bytes:
    """The objects whose centroid lies in a cell, as the head of this file says.

    outlines   to be sent along; None for points only

    Raises TooMany.
    """
    run = index.run(level, column, row)
    count = run.stop - run.start
    if count > MOST_OBJECTS:
        raise TooMany(count)
    rows = index.rows[run]
    corner = np.array(index.zoom.corner(level, column, row), np.float64)
    offset, outline = outlines.of(rows) if outlines else (np.zeros(1), np.empty((0, 2)))
    unit = outlines.unit if outlines else 1.0
    parts = [
        HEADER.pack(MAGIC, count, len(outline), *corner.tolist(), unit),
        rows.astype("<u4").tobytes(),
        (index.centroid[rows] - corner).astype("<f4").tobytes(),
        index.class_id[rows].tobytes(),
        index.probability[rows].tobytes(),
        bytes(-2 * count % 4),
    ]
    if len(outline):
        parts += [offset.astype("<u4").tobytes(), outline.astype("<i2").tobytes()]
    return b"".join(parts)


@dataclass(frozen=True, eq=False)
class Density:
    """How crowded the objects of a class, or of all, are.

    codes   uint64, ascending: the squares of those that count, as `ObjectIndex` has them
    """

    zoom: DeepZoom
    codes: npt.NDArray[np.uint64]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes

    @cached_property
    def limit(self) -> float:
        """Objects per level-0 px² that the strongest colour stands for: the 99th percentile of
        tiles at full resolution that hold any."""
        _, counts = np.unique(self.codes >> np.uint64(2 * FINE), return_counts=True)
        return float(np.percentile(counts, 99)) / TILE**2 if len(counts) else 1.0

    def png(self, level: int, column: int, row: int) -> bytes:
        """256 x 256 px, clear where there is nothing."""
        deep = self.zoom.last - level
        bins = min(BINS, 1 << (deep + FINE))
        width = TILE // bins
        counts = self._counts(level, column, row, bins)
        side = TILE * self.zoom.scale(level) / bins
        smooth = counts / side**2
        for axis in (0, 1):
            smooth = _binomial(smooth, axis)
        if not smooth.any():
            return coloured_png(np.zeros((TILE, TILE), np.uint8), ramp(FAINT, STRONG))
        return coloured_png(self._indices(smooth, width), ramp(FAINT, STRONG))

    def _counts(self, level: int, column: int, row: int, bins: int) -> npt.NDArray[np.float64]:
        """[bins + 2 MARGIN] squared: objects in each square of the tile and around it."""
        places = np.arange(-MARGIN, bins + MARGIN)
        x, y = column * bins + places, row * bins + places
        across, down = (grid.ravel() for grid in np.meshgrid(np.maximum(x, 0), np.maximum(y, 0)))
        # a bin is a square of a level below this one, so its objects are one run as well
        halvings = bins.bit_length() - 1
        bits = np.uint64(2 * (self.zoom.last - level + FINE - halvings))
        codes = z_codes(across, down)
        first = np.searchsorted(self.codes, codes << bits)
        past = np.searchsorted(self.codes, (codes + np.uint64(1)) << bits)
        counts = (past - first).reshape(len(places), len(places)).astype(np.float64)
        counts[:, x < 0] = 0
        counts[y < 0] = 0
        return counts

    def _indices(self, smooth: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.uint8]:
        """[256, 256] numbers of the palette: 0 where nothing is, 1 to 255 by the density."""
        from PIL import Image

        enlarged = len(smooth) * width
        image = Image.fromarray((smooth / self.limit).astype(np.float32))
        image = image.resize((enlarged, enlarged), Image.Resampling.BILINEAR)
        inner = slice((enlarged - TILE) // 2, (enlarged + TILE) // 2)
        share = np.asarray(image)[inner, inner]
        indices: npt.NDArray[np.uint8] = np.clip(
            np.ceil(np.sqrt(np.clip(share, 0, 1)) * 255), 0, 255
        ).astype(np.uint8)
        return indices


def _binomial(values: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    """Each the mean of itself, twice, and its neighbours; one shorter at either end."""
    inner = [slice(None)] * values.ndim
    low, high = inner.copy(), inner.copy()
    inner[axis], low[axis], high[axis] = slice(1, -1), slice(None, -2), slice(2, None)
    return (values[tuple(low)] + 2 * values[tuple(inner)] + values[tuple(high)]) / 4
