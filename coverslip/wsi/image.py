"""Plain images (PNG, JPEG, BMP, JPEG 2000, small TIFFs) as slides of one level."""

from __future__ import annotations

import warnings
from os import PathLike, fspath
from typing import Any

import numpy as np

from coverslip.errors import BrokenSlide, UnsupportedSlide
from coverslip.wsi.naming import slide_name
from coverslip.wsi.slide import RGB, Box, Level, Slide

TILE = 512
MAX_PIXELS = 2**29
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "DIB", "JPEG2000", "GIF", "WEBP", "PPM", "TIFF")
"""Of Pillow's; among the others are some that start a program, as PostScript does."""
CONVERTED = {"RGB", "RGBA", "L", "LA", "P", "1"}
"""Pillow modes that become RGB without guessing; transparent pixels lie over white."""


def can_read(path: str | PathLike[str]) -> bool:
    """Whether Pillow recognises the file's content."""
    from PIL import Image

    if "://" in fspath(path) or fspath(path).lower().endswith(".mrxs"):
        return False  # the picture in an .mrxs is a preview; its pixels lie in the folder beside
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return image.format != "TIFF"  # the TIFF readers know better what they refuse
    except Image.DecompressionBombError:
        return True
    except Exception:  # Pillow's plug-ins raise many kinds over random bytes
        return False


def open(path: str | PathLike[str]) -> ImageSlide:
    """Open a plain image. Raises BrokenSlide (truncated, too large), UnsupportedSlide (not RGB)."""
    return ImageSlide(fspath(path))


class ImageSlide(Slide):
    """See `Slide`; the image is decoded once, when opened."""

    reader = "image"
    vendor = "image"

    def __init__(self, path: str) -> None:
        from PIL import Image

        self.path, self.name = path, slide_name(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(path, formats=FORMATS) as image:
                    self._pixels = _rgb(path, image)
                    self.icc_profile = image.info.get("icc_profile")
                    self.properties = _properties(image)
        except (UnsupportedSlide, BrokenSlide):
            raise
        except Image.DecompressionBombError as error:
            raise _too_large(path, str(error)) from None
        except Exception as error:
            raise BrokenSlide(
                path, f"the image cannot be decoded ({error})", "the file is damaged; copy it again"
            ) from None
        height, width = self._pixels.shape[:2]
        self.levels = (Level((width, height), (1.0, 1.0), (TILE, TILE)),)
        self.bounds = Box(0, 0, width, height)
        self.pixel_size = None

    def decode_tile(self, level: int, column: int, row: int, reduction: int = 0) -> RGB | None:
        part = self._pixels[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        if part.shape[:2] == (TILE, TILE):
            return part
        tile = np.full((TILE, TILE, 3), 255, np.uint8)
        tile[: part.shape[0], : part.shape[1]] = part
        return tile


def _rgb(path: str, image: Any) -> RGB:
    from PIL import Image

    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(path, f"{width:,} x {height:,} px")
    if image.mode not in CONVERTED:
        raise UnsupportedSlide(
            path, f"its pixels are {image.mode} ({image.format}), not 8-bit RGB", "convert it first"
        )
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        over = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(over, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _too_large(path: str, claimed: str) -> BrokenSlide:
    return BrokenSlide(
        path,
        f"is too large for a plain image that is held in memory ({claimed})",
        "convert it to a tiled TIFF, for example with vips tiffsave --tile --pyramid",
    )


def _properties(image: Any) -> dict[str, str]:
    found = {"image.format": str(image.format)}
    if image.format == "TIFF":
        unit = {2: "inch", 3: "centimeter"}.get(image.tag_v2.get(296, 2), "none")
        found["tiff.ResolutionUnit"] = unit
        for tag, name in ((282, "tiff.XResolution"), (283, "tiff.YResolution")):
            if tag in image.tag_v2:
                found[name] = str(float(image.tag_v2[tag]))
        if isinstance(image.tag_v2.get(270), str):
            found["tiff.ImageDescription"] = image.tag_v2[270]
    return found
