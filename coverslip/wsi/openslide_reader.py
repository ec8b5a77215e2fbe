"""Everything OpenSlide knows that the native readers do not: MRXS, NDPI, SCN, VMS, BIF, DICOM...

Slides are cut into square virtual tiles. Opening and reading happen in a child process (`guarded`),
because some damaged files make the library hang or crash; any error there reopens the handle, so
that one bad tile never poisons the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import numpy as np

from coverslip.errors import BrokenSlide, ReaderTimeout, UnreadableTile, UnsupportedSlide
from coverslip.wsi.guarded import GuardedReader, ReadFailed, ReadTimedOut
from coverslip.wsi.naming import slide_name
from coverslip.wsi.slide import RGB, Box, Level, Slide

TILE = 1024
CACHE_BYTES = 64 * 2**20


def can_read(path: str | PathLike[str]) -> bool:
    """Whether OpenSlide recognises a vendor's format."""
    import openslide

    try:
        return openslide.OpenSlide.detect_format(fspath(path)) is not None
    except openslide.OpenSlideError:
        return False


def open(path: str | PathLike[str], timeout_s: float = 60.0) -> OpenSlideSlide:
    """Open through OpenSlide. Raises BrokenSlide, UnsupportedSlide."""
    return OpenSlideSlide(fspath(path), timeout_s)


class RegionReader:
    """OpenSlide regions as RGB over the slide's background colour; reopens after an error."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        import openslide

        self._handle = openslide.OpenSlide(self._path)
        self._handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
        colour = self._handle.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "ffffff")
        self._background = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)], np.float32)

    def describe(self) -> dict[str, Any]:
        """properties, associated images' names, levels (width, height, downsample), ICC profile."""
        handle = self._handle
        profile = handle.color_profile
        sizes = zip(handle.level_dimensions, handle.level_downsamples, strict=True)
        return {
            "properties": dict(handle.properties),
            "associated": list(handle.associated_images),
            "levels": [(width, height, ratio) for (width, height), ratio in sizes],
            "profile": b"" if profile is None else profile.tobytes(),
        }

    def read(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        """x, y in level-0 px; width, height in the level's. Raises OpenSlideError."""
        try:
            rgba = np.asarray(self._handle.read_region((x, y), level, (width, height)))
        except Exception:
            self._handle.close()
            self._open()
            raise
        alpha = rgba[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(rgba[..., :3])
        share = alpha.astype(np.float32) / 255
        mixed = rgba[..., :3] * share + self._background * (1 - share)
        result: RGB = (mixed + 0.5).astype(np.uint8)
        return result

    def close(self) -> None:
        self._handle.close()


class OpenSlideSlide(Slide):
    """See `Slide`. `bounds` is OpenSlide's non-empty region."""

    reader = "openslide"

    def __init__(self, path: str, timeout_s: float) -> None:
        self.path, self.name = path, slide_name(path)
        self._reader = GuardedReader(path, timeout_s)
        try:
            facts = self._reader.describe()
            self.properties = facts["properties"]
            self.associated = tuple(facts["associated"])
            self.levels = tuple(
                Level((width, height), (ratio, ratio), (TILE, TILE))
                for width, height, ratio in facts["levels"]
            )
        except ReadFailed as error:
            self.close()
            raise _refusal(path, str(error)) from None
        except ReadTimedOut:
            raise ReaderTimeout(
                path,
                f"OpenSlide did not open it within {timeout_s:g} s; its process was killed",
                "the file is damaged; copy it again, or allow more with --read-timeout",
            ) from None
        self.vendor = self.properties.get("openslide.vendor", "unknown")
        self.icc_profile = facts["profile"]
        self.bounds = _bounds(self.properties, self.size)
        self.pixel_size = None

    def decode_tile(self, level: int, column: int, row: int, reduction: int = 0) -> RGB | None:
        ratio = self.levels[level].downsample[0]
        x, y = round(column * TILE * ratio), round(row * TILE * ratio)
        try:
            return self._reader.read(level, x, y, TILE, TILE)
        except ReadFailed as error:
            raise UnreadableTile(self.path, level, column, row, str(error)) from None
        except ReadTimedOut:
            raise ReaderTimeout(
                self.path,
                f"OpenSlide did not answer within {self._reader.timeout_s:g} s at level {level}, "
                f"column {column}, row {row}; its process was killed",
                "--read-timeout allows more",
            ) from None

    def associated_image(self, name: str) -> RGB:
        import openslide

        with openslide.OpenSlide(self.path) as handle:
            return np.asarray(handle.associated_images[name].convert("RGB"))

    def close(self) -> None:
        self._reader.close()


def _refusal(path: str, problem: str) -> UnsupportedSlide | BrokenSlide:
    """What an answer of the form "kind of exception: its text" means for the slide."""
    kind, _, told = problem.partition(": ")
    if kind == "OpenSlideUnsupportedFormatError":
        return UnsupportedSlide(path, f"OpenSlide does not read it ({told})")
    return BrokenSlide(
        path,
        f"OpenSlide cannot open it ({told or problem})",
        "the file is damaged; copy it again",
    )


def _bounds(properties: Mapping[str, str], size: tuple[int, int]) -> Box:
    """`openslide.bounds-*`, or the whole slide where they are absent or mean nothing."""
    try:
        x, y, w, h = (
            int(properties[f"openslide.bounds-{k}"]) for k in ("x", "y", "width", "height")
        )
        box = Box(x, y, w, h).intersection(Box(0, 0, *size))
    except (KeyError, ValueError):
        return Box(0, 0, *size)
    return box if box.w and box.h else Box(0, 0, *size)
