"""From decoded native tiles to windows of output pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.kernels.backend import backend_of
from coverslip.kernels.resample import area_resample
from coverslip.tiling.windows import Windows
from coverslip.wsi.slide import RGB, Slide

SLACK = 1e-6
"""Source pixels; a window that reaches less than this into a native tile does not need it."""


NEAR = 0.01
"""Source pixels; a lattice that stays so close to the pixels' own is taken to lie on them."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which native tiles are decoded, and how small.

    level, reduction   tiles of `level`, each at 1 / 2**reduction of its sides
    downsample         (x, y) level-0 px per decoded px
    """

    level: int
    reduction: int
    downsample: tuple[float, float]


def source_for(
    slide: Slide,
    scale: tuple[float, float],
    tolerance: float = 0.02,
    most_reduction: int | None = None,
) -> Source:
    """The cheapest (level, reduction) that is not coarser than `scale` asks.

    scale       (x, y) level-0 px per output px
    tolerance   scanners write 0.2527 for "0.25": a source 2 % too coarse counts as fine enough,
                else a 20x request on such a slide would decode four times the pixels
    most_reduction   for decoders that cannot reduce as far as the level's codec, or at all

    Where the request is finer than level 0, level 0 it is, and the window is enlarged.
    """
    best, lowest = Source(0, 0, slide.levels[0].downsample), math.inf
    for number, level in enumerate(slide.levels):
        reductions = level.reductions if most_reduction is None else most_reduction
        for reduction in range(min(reductions, level.reductions) + 1):
            x, y = (d * 2**reduction for d in level.downsample)
            if x > scale[0] * (1 + tolerance) or y > scale[1] * (1 + tolerance):
                break
            # entropy decoding is paid for every stored pixel, the transform for those kept
            cost = (0.6 + 0.4 / 4**reduction) / (level.downsample[0] * level.downsample[1])
            if cost < lowest:
                best, lowest = Source(number, reduction, (x, y)), cost
    return best


class TilePlane:
    """The native tiles of one source as a plane of decoded pixels, from which windows are cut."""

    def __init__(self, slide: Slide, source: Source) -> None:
        level = slide.levels[source.level]
        self.slide, self.source = slide, source
        self.columns, self.rows = level.grid
        self.tile = (level.tile[0] >> source.reduction, level.tile[1] >> source.reduction)
        # decoded pixels that lie partly beyond the level's edge are not to be trusted
        self.size = (level.size[0] >> source.reduction, level.size[1] >> source.reduction)

    def decode(self, key: int) -> RGB | None:
        """The decoded native tile number `key` (row · columns + column); None for background."""
        row, column = divmod(key, self.columns)
        return self.slide.decode_tile(self.source.level, column, row, self.source.reduction)

    def decode_into(self, out: RGB, key: int) -> bool:
        """`decode` into `out`, which has the tile's size; False for background."""
        row, column = divmod(key, self.columns)
        source = self.source
        return self.slide.decode_tile_into(out, source.level, column, row, source.reduction)

    def is_tile(
        self, key: int, origin: Sequence[float], scale: tuple[float, float], size: tuple[int, int]
    ) -> bool:
        """Whether a window is, pixel for pixel, the whole of native tile `key`."""
        if size != self.tile:
            return False
        row, column = divmod(key, self.columns)
        for axis, place in enumerate((column, row)):
            step, start = self.source.downsample[axis], place * self.tile[axis]
            if start + size[axis] > self.size[axis]:
                return False
            if abs(origin[axis] / step - start) >= NEAR:
                return False
            if not _is_copy(0.0, scale[axis] / step, size[axis]):
                return False
        return True

    def spans(self, windows: Windows) -> npt.NDArray[np.int64]:
        """[N, 4] native tiles each window touches: first column, first row, and one past the last.

        Empty (first == past) for a window that lies wholly outside.
        """
        spans = np.empty((len(windows), 4), np.int64)
        for axis, count in enumerate((self.columns, self.rows)):
            low = windows.origins[:, axis] / self.source.downsample[axis]
            high = low + windows.size[axis] * windows.scale[axis] / self.source.downsample[axis]
            high = np.minimum(high, self.size[axis])
            first = np.floor((low + SLACK) / self.tile[axis]).astype(np.int64)
            past = np.ceil((high - SLACK) / self.tile[axis]).astype(np.int64)
            spans[:, axis] = np.clip(first, 0, count)
            spans[:, axis + 2] = np.clip(past, spans[:, axis], count)
        return spans

    def keys(self, spans: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The numbers of the tiles under some windows (spans [N, 4]), window by window, row by
        row; a tile under several windows is there several times."""
        x0, y0, x1, y1 = spans.T
        across = x1 - x0
        counts = across * (y1 - y0)
        window = np.repeat(np.arange(len(spans)), counts)
        place = np.arange(len(window)) - np.repeat(np.cumsum(counts) - counts, counts)
        row, column = np.divmod(place, across[window])
        keys: npt.NDArray[np.int64] = (y0[window] + row) * self.columns + x0[window] + column
        return keys

    def assemble(
        self,
        tiles: Mapping[int, RGB | None],
        span: Sequence[int],
        origin: Sequence[float],
        scale: tuple[float, float],
        out: npt.NDArray[np.uint8],
    ) -> None:
        """Fill `out` (h, w, 3) with the window at `origin` (level-0 px); white where nothing is.

        tiles   decoded tiles by number; all those in the window's `span`
        """
        height, width = out.shape[:2]
        dx, dy = self.source.downsample
        x, y = origin[0] / dx, origin[1] / dy
        sx, sy = scale[0] / dx, scale[1] / dy
        if _is_copy(x, sx, width) and _is_copy(y, sy, height):
            self._gather(tiles, span, round(x), round(y), out)
            return
        left, top = math.floor(x + SLACK), math.floor(y + SLACK)
        right = math.ceil(x + width * sx - SLACK)
        bottom = math.ceil(y + height * sy - SLACK)
        patch = _empty_beside(out, (bottom - top, right - left, 3))
        self._gather(tiles, span, left, top, patch)
        area_resample(patch, (x - left, y - top), (sx, sy), out)

    def _gather(
        self,
        tiles: Mapping[int, RGB | None],
        span: Sequence[int],
        left: int,
        top: int,
        out: npt.NDArray[np.uint8],
    ) -> None:
        """Copy the plane's pixels from (left, top) on into `out`."""
        width, height = self.tile
        right, bottom = left + out.shape[1], top + out.shape[0]
        if left < 0 or top < 0 or right > self.size[0] or bottom > self.size[1]:
            out[...] = 255
            right, bottom = min(right, self.size[0]), min(bottom, self.size[1])
        x0, y0, x1, y1 = span
        for row in range(y0, y1):
            y = row * height
            ya, yb = max(y, top), min(y + height, bottom)
            for column in range(x0, x1):
                x = column * width
                xa, xb = max(x, left), min(x + width, right)
                if xa >= xb or ya >= yb:
                    continue
                tile = tiles[row * self.columns + column]
                target = out[ya - top : yb - top, xa - left : xb - left]
                if tile is None:
                    target[...] = 255
                else:
                    target[...] = tile[ya - y : yb - y, xa - x : xb - x]


def _empty_beside(array: Any, shape: tuple[int, ...]) -> Any:
    """uint8, where `array` lives."""
    if backend_of(array) != "cupy":
        return np.empty(shape, np.uint8)
    import cupy

    return cupy.empty(shape, np.uint8)


def _is_copy(start: float, step: float, count: int) -> bool:
    """Whether the lattice falls on the pixels themselves, to within a hundredth over its length."""
    return abs(step - 1) * count < NEAR and abs(start - round(start)) < NEAR
