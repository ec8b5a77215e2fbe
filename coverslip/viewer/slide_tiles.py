"""Deep Zoom tiles of a slide: its own JPEG tiles where they fit, else read and encoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from simplejpeg import decode_jpeg_header, encode_jpeg

from coverslip.errors import UnreadableTile
from coverslip.kernels.resample import area_resample
from coverslip.tiling.assembly import TilePlane, source_for
from coverslip.tiling.pyramid import HoldsJpeg
from coverslip.tiling.reading import read_window, thumbnail
from coverslip.tiling.windows import Windows
from coverslip.viewer.deep_zoom import TILE, DeepZoom
from coverslip.viewer.shelf import OpenedSlide
from coverslip.wsi.slide import RGB, Slide

QUALITY = 85
"""Of tiles that are encoded here."""
THUMBNAIL_PX = 512
OVERVIEW_PX = 2048
"""Longest side of the picture of a whole slide that coarse tiles are cut from, where they have to
be: a slide without coarse levels would be decoded whole for every one of them."""
MOST_NATIVE = 512
"""Native tiles that one tile may be made of."""

Recolour = Callable[[RGB], RGB]


@dataclass(frozen=True, slots=True)
class SlideTile:
    """A tile.

    jpeg        the stream
    untouched   it is the slide's own
    damage      why a part of it is white; empty where nothing is wrong
    """

    jpeg: bytes
    untouched: bool = False
    damage: str = ""


@dataclass(frozen=True, eq=False)
class Overview:
    """The whole slide as one picture, (h, w, 3); scale is (x, y) level-0 px per px."""

    image: RGB
    scale: tuple[float, float]

    @property
    def nbytes(self) -> int:
        return self.image.nbytes


def slide_tile(
    opened: OpenedSlide,
    level: int,
    column: int,
    row: int,
    *,
    recolour: Recolour | None = None,
    overview: Overview | None = None,
) -> SlideTile:
    """A tile that the pyramid holds.

    recolour   is applied to its pixels, (h, w, 3) uint8
    overview   where `wants_overview`

    A native tile that cannot be decoded is white, and named in `damage`. Raises ReaderTimeout.
    """
    slide, zoom = opened.slide, opened.zoom
    size, corner = zoom.tile_size(level, column, row), zoom.corner(level, column, row)
    scale = float(zoom.scale(level))
    damage = ""
    if overview is not None:
        pixels = _cut(overview, corner, size, scale)
    else:
        plane = TilePlane(slide, source_for(slide, (scale, scale)))
        if recolour is None and (stream := _own_jpeg(plane, column, row, corner, size, scale)):
            return SlideTile(stream, untouched=True)
        try:
            pixels = read_window(slide, corner, size, (scale, scale))
        except UnreadableTile as error:
            damage = error.problem
            pixels = read_window(slide, corner, size, (scale, scale), on_bad_tile="blank")
    return SlideTile(jpeg_of(recolour(pixels) if recolour else pixels), damage=damage)


def jpeg_of(pixels: RGB) -> bytes:
    """(h, w, 3) as the viewer encodes it: 4:2:0, as scanners do."""
    image = np.ascontiguousarray(pixels)
    return bytes(encode_jpeg(image, quality=QUALITY, colorsubsampling="420"))


def thumbnail_jpeg(opened: OpenedSlide) -> bytes:
    """The whole slide, its longer side 512 px."""
    return jpeg_of(thumbnail(opened.slide, THUMBNAIL_PX))


def overview_level(zoom: DeepZoom) -> int:
    """The level that an overview is as fine as."""
    return max(0, zoom.last - max(0, (-(-max(zoom.size) // OVERVIEW_PX) - 1).bit_length()))


def wants_overview(slide: Slide, zoom: DeepZoom, level: int) -> bool:
    """Whether tiles of a level are cut from an overview, for want of coarse levels in the file."""
    if level > overview_level(zoom):
        return False
    scale = float(zoom.scale(level))
    plane = TilePlane(slide, source_for(slide, (scale, scale)))
    window = Windows(np.zeros((1, 2)), (TILE, TILE), (scale, scale))
    first_column, first_row, past_column, past_row = plane.spans(window)[0].tolist()
    return (past_column - first_column) * (past_row - first_row) > MOST_NATIVE  # type: ignore[no-any-return]


def slide_overview(opened: OpenedSlide) -> Overview:
    """The whole slide, read in bands; what cannot be decoded is white."""
    slide, zoom = opened.slide, opened.zoom
    image = thumbnail(slide, max(zoom.level_size(overview_level(zoom))))
    height, width = image.shape[:2]
    return Overview(image, (slide.size[0] / width, slide.size[1] / height))


def _own_jpeg(
    plane: TilePlane,
    column: int,
    row: int,
    corner: tuple[int, int],
    size: tuple[int, int],
    scale: float,
) -> bytes | None:
    """The native tile that is this tile pixel for pixel, if it is a JPEG; white ones have none."""
    slide: Any = plane.slide
    level, key = plane.source.level, row * plane.columns + column
    if plane.source.reduction or not isinstance(slide, HoldsJpeg) or slide.codec(level) != "jpeg":
        return None
    if not plane.is_tile(key, corner, (scale, scale), size):
        return None
    try:
        stream: bytes | None = slide.compressed_tile(level, column, row)
        if stream is None or decode_jpeg_header(stream)[:2] != (size[1], size[0]):
            return None
    except (UnreadableTile, ValueError):
        return None  # reading it the other way tells what is wrong
    return stream


def _cut(overview: Overview, corner: tuple[int, int], size: tuple[int, int], scale: float) -> RGB:
    """A tile's pixels from an overview at least as fine; white beyond it."""
    x, y = corner[0] / overview.scale[0], corner[1] / overview.scale[1]
    step = (scale / overview.scale[0], scale / overview.scale[1])
    left, top = int(x), int(y)
    right, bottom = int(np.ceil(x + size[0] * step[0])), int(np.ceil(y + size[1] * step[1]))
    patch = np.full((bottom - top, right - left, 3), 255, np.uint8)
    part = overview.image[top:bottom, left:right]
    patch[: part.shape[0], : part.shape[1]] = part
    out = np.empty((size[1], size[0], 3), np.uint8)
    area_resample(patch, (x - left, y - top), step, out)
    return out
