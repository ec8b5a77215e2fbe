"""What a slide is: a pyramid of RGB pixels with a physical size, and nothing else.

Positions are (x, y) in level-0 pixels, origin top-left of the whole slide as the file
numbers it (OpenSlide's frame, bounds not subtracted). Sizes are (width, height) in the pixels
of the thing measured. Arrays are (height, width, 3) uint8 RGB.

A reader (one subclass of `Slide` per file family) supplies facts and one verb: decode a native
tile. Reading regions, streaming and thumbnails are built on that verb alone, so every format
walks the same path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from coverslip.errors import MissingMpp

RGB = npt.NDArray[np.uint8]
"""(height, width, 3) uint8."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of level-0 pixels: x, y of its top-left corner, width, height."""

    x: int
    y: int
    w: int
    h: int

    def __post_init__(self) -> None:
        if self.w < 0 or self.h < 0:
            raise ValueError(f"a box has no negative size, got {self.w} x {self.h}")

    @property
    def right(self) -> int:
        """First column beyond the box."""
        return self.x + self.w

    @property
    def bottom(self) -> int:
        """First row beyond the box."""
        return self.y + self.h

    def intersection(self, other: Box) -> Box:
        """What both cover; of zero size where they do not meet."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        w, h = min(self.right, other.right) - x, min(self.bottom, other.bottom) - y
        return Box(x, y, max(w, 0), max(h, 0))


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of the pyramid, and how its pixels are cut into native tiles.

    size         (width, height) in this level's own pixels
    downsample   (x, y) level-0 pixels per pixel of this level; (1.0, 1.0) for level 0
    tile         (width, height) of a native tile; the unit that is decoded
    reductions   how often the decoder can halve a tile's sides for less than the full price:
                 3 for JPEG (DCT domain), the wavelet levels for JPEG 2000, 0 for the rest;
                 both tile sides are divisible by 2 ** reductions
    """

    size: tuple[int, int]
    downsample: tuple[float, float]
    tile: tuple[int, int]
    reductions: int = 0

    @property
    def grid(self) -> tuple[int, int]:
        """(columns, rows) of native tiles."""
        return -(-self.size[0] // self.tile[0]), -(-self.size[1] // self.tile[1])


@dataclass(frozen=True, slots=True)
class PixelSize:
    """Microns per level-0 pixel along x and y, and where the figure came from."""

    x: float
    y: float
    source: str


class Slide(ABC):
    """An opened slide.

    path         the file or URL as it was given
    name         file name without its extension (`.ome.tif` counts as one)
    reader       which reader opened it: "tiff", "openslide", "tiffslide", "ome-zarr", "image"
    vendor       "aperio", "philips", "generic-tiff", ...
    levels       finest first; never empty
    pixel_size   or None where the file does not say and nobody told
    bounds       the part that holds pixels, in level-0 px; the whole slide where unknown
    properties   the file's own metadata, as strings
    associated   names of label, macro, thumbnail; read by `associated_image` only when asked,
                 because label and macro carry patient data
    icc_profile  embedded ICC profile, or None

    Readers are safe to share between threads; never across a fork.
    """

    path: str
    name: str
    reader: str
    vendor: str
    levels: tuple[Level, ...]
    pixel_size: PixelSize | None
    bounds: Box
    properties: Mapping[str, str]
    associated: tuple[str, ...] = ()
    icc_profile: bytes | None = None

    @abstractmethod
    def decode_tile(self, level: int, column: int, row: int, reduction: int = 0) -> RGB | None:
        """One native tile at 1 / 2**reduction of its level's resolution.

        Returns (tile height >> reduction, tile width >> reduction, 3) uint8, always the whole
        tile, also at the right and bottom edge (what lies beyond the level is undefined); None
        for a tile the file leaves out (background). The array may be read-only.

        Raises UnreadableTile, which never spoils later reads; ReaderTimeout.
        """

    def decode_tile_into(
        self, out: RGB, level: int, column: int, row: int, reduction: int = 0
    ) -> bool:
        """`decode_tile` into `out`, contiguous and of the tile's size; False for background.

        Readers whose decoder can write there save a copy.
        """
        tile = self.decode_tile(level, column, row, reduction)
        if tile is not None:
            out[...] = tile
        return tile is not None

    def associated_image(self, name: str) -> RGB:
        """The associated image of that name. Label and macro may show patient data."""
        raise KeyError(name)

    def close(self) -> None:  # noqa: B027  (most readers hold nothing worth closing)
        """Release files; reading afterwards is an error."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of level 0."""
        return self.levels[0].size

    @property
    def mpp(self) -> tuple[float, float]:
        """(x, y) microns per level-0 pixel. Raises MissingMpp where unknown."""
        if self.pixel_size is None:
            raise MissingMpp(self.path)
        return self.pixel_size.x, self.pixel_size.y

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
