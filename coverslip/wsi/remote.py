"""Slides behind a URL (s3://, gs://, https://, memory://...), through tiffslide and fsspec."""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any

import numpy as np

from coverslip.errors import BrokenSlide, MissingPackage, UnreadableTile, UnsupportedSlide
from coverslip.wsi.naming import slide_name
from coverslip.wsi.slide import RGB, Box, Level, Slide

TILE = 1024


def can_read(path: str | PathLike[str]) -> bool:
    """Whether it is a URL."""
    return "://" in fspath(path)


def open(path: str | PathLike[str]) -> RemoteSlide:
    """Open a remote TIFF-family slide. Raises MissingPackage, UnsupportedSlide, BrokenSlide."""
    return RemoteSlide(fspath(path))


class RemoteSlide(Slide):
    """See `Slide`; native tiles are virtual, 1024 px square."""

    reader = "tiffslide"

    def __init__(self, url: str) -> None:
        import fsspec
        from tiffslide import TiffSlide

        self.path, self.name = url, slide_name(url.partition("?")[0])
        try:
            self._file: Any = fsspec.open(url, "rb").open()
        except ImportError as error:
            package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(
                url.split("://")[0], str(error)
            )
            raise MissingPackage(url, package, "cloud") from error
        except Exception as error:  # each file system has exceptions of its own
            raise UnsupportedSlide(
                url, f"cannot be opened: {error}", "check the address"
            ) from error
        try:
            self._slide: Any = TiffSlide(self._file)
            self.properties = {
                k: str(v) for k, v in self._slide.properties.items() if v is not None
            }
            downsamples = self._slide.level_downsamples
            self.levels = tuple(
                Level((int(w), int(h)), (float(d), float(d)), (TILE, TILE))
                for (w, h), d in zip(self._slide.level_dimensions, downsamples, strict=True)
            )
        except Exception as error:
            self._file.close()
            raise BrokenSlide(url, f"tiffslide cannot read it ({error})") from error
        mpp = {f"openslide.mpp-{a}": self.properties[f"tiffslide.mpp-{a}"]
               for a in "xy" if f"tiffslide.mpp-{a}" in self.properties}  # fmt: skip
        self.properties = {**self.properties, **mpp}
        self.vendor = self.properties.get("tiffslide.vendor", "unknown")
        self.bounds = Box(0, 0, *self.levels[0].size)
        self.pixel_size = None

    def decode_tile(self, level: int, column: int, row: int, reduction: int = 0) -> RGB | None:
        width, height = self.levels[level].size
        ratio = self.levels[level].downsample[0]
        x, y = column * TILE, row * TILE
        size = (min(TILE, width - x), min(TILE, height - y))
        try:
            region = self._slide.read_region(
                (round(x * ratio), round(y * ratio)), level, size, as_array=True
            )
        except Exception as error:
            raise UnreadableTile(self.path, level, column, row, str(error)) from error
        if size == (TILE, TILE):
            return np.asarray(region)
        tile = np.full((TILE, TILE, 3), 255, np.uint8)
        tile[: size[1], : size[0]] = region
        return tile

    def close(self) -> None:
        self._slide.close()
        self._file.close()
