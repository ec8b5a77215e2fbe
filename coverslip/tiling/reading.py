"""Reading regions and overviews of a slide at any exact pixel size."""

from __future__ import annotations

from typing import Literal

import numpy as np

from coverslip.errors import UnreadableTile
from coverslip.tiling.assembly import TilePlane
from coverslip.tiling.assembly import source_for as source_for
from coverslip.tiling.windows import Windows
from coverslip.wsi.slide import RGB, Box, Slide

OnBadTile = Literal["raise", "blank"]


def read_window(
    slide: Slide,
    origin: tuple[float, float],
    size: tuple[int, int],
    scale: tuple[float, float],
    *,
    on_bad_tile: OnBadTile = "raise",
) -> RGB:
    """`size` (w, h) output px from `origin` (x, y level-0 px, may lie between pixels) on.

    scale         (x, y) level-0 px per output px
    on_bad_tile   "blank" takes a native tile that cannot be decoded as white

    White where the window leaves the slide or the file leaves tiles out. Raises UnreadableTile,
    ReaderTimeout.
    """
    plane = TilePlane(slide, source_for(slide, scale))
    window = Windows(np.array([origin], np.float64), size, scale)
    spans = plane.spans(window)
    out = np.empty((size[1], size[0], 3), np.uint8)
    tiles: dict[int, RGB | None] = {}
    for key in plane.keys(spans).tolist():
        try:
            tiles[key] = plane.decode(key)
        except UnreadableTile:
            if on_bad_tile == "raise":
                raise
            tiles[key] = None
    plane.assemble(tiles, spans[0].tolist(), origin, scale, out)
    return out


def read_region(slide: Slide, box: Box, mpp: float, *, on_bad_tile: OnBadTile = "raise") -> RGB:
    """The box (level-0 px) at exactly `mpp` microns per pixel.

    Returns (h, w, 3) with w = box.w · slide mpp / `mpp`, rounded, at least 1. Raises MissingMpp,
    UnreadableTile.
    """
    scale = (mpp / slide.mpp[0], mpp / slide.mpp[1])
    size = (max(1, round(box.w / scale[0])), max(1, round(box.h / scale[1])))
    return read_window(slide, (box.x, box.y), size, scale, on_bad_tile=on_bad_tile)


def read_at(slide: Slide, mpp: float, *, on_bad_tile: OnBadTile = "raise") -> RGB:
    """The whole slide at exactly `mpp`, in bands, so that only the result is held in memory.

    Returns (h, w, 3); the last row and column may reach beyond the slide (white).
    """
    scale = (mpp / slide.mpp[0], mpp / slide.mpp[1])
    size = (_cover(slide.size[0], scale[0]), _cover(slide.size[1], scale[1]))
    return _read_whole(slide, size, scale, on_bad_tile)


def thumbnail(slide: Slide, max_side: int = 1024, *, on_bad_tile: OnBadTile = "blank") -> RGB:
    """The whole slide, its longer side `max_side` px (or level 0's own, if that is smaller)."""
    factor = max(1.0, max(slide.size) / max_side)
    size = (max(1, round(slide.size[0] / factor)), max(1, round(slide.size[1] / factor)))
    scale = (slide.size[0] / size[0], slide.size[1] / size[1])
    return _read_whole(slide, size, scale, on_bad_tile)


def _read_whole(
    slide: Slide, size: tuple[int, int], scale: tuple[float, float], on_bad_tile: OnBadTile
) -> RGB:
    from coverslip.tiling.stream import stream_windows

    band = 128
    rows = -(-size[1] // band)
    origins = np.stack([np.zeros(rows), np.arange(rows) * band * scale[1]], axis=1)
    out = np.empty((rows * band, size[0], 3), np.uint8)
    windows = Windows(origins, (size[0], band), scale)
    for batch in stream_windows(slide, [windows], batch=1, threads=2, on_bad_tile=on_bad_tile):
        first = int(batch.index[0]) * band
        out[first : first + band] = batch.pixels[0]
    return out[: size[1]]


def _cover(length: int, step: float) -> int:
    """Pixels of `step` that cover `length`."""
    return max(1, int(np.ceil(length / step - 1e-9)))
