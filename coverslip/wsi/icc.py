"""Colours through the slide's embedded ICC profile, to sRGB."""

from __future__ import annotations

import io
import threading

import numpy as np

from coverslip.errors import BrokenSlide
from coverslip.wsi.slide import RGB, Slide


class IccSlide(Slide):
    """Another slide, its pixels transformed from its ICC profile to sRGB (relative colorimetric).

    Recorded in `properties["coverslip.colour"]`, and so in every store made from it.
    """

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        self.path, self.name, self.reader = slide.path, slide.name, slide.reader
        self.vendor, self.levels, self.bounds = slide.vendor, slide.levels, slide.bounds
        self.pixel_size, self.associated = slide.pixel_size, slide.associated
        self.icc_profile = slide.icc_profile
        self.properties = {**slide.properties, "coverslip.colour": "sRGB by ICC profile"}
        self._threads = threading.local()  # littlecms transforms are not shared between threads
        self._apply(np.zeros((1, 1, 3), np.uint8))

    def _apply(self, pixels: RGB) -> RGB:
        from PIL import Image, ImageCms

        transform = getattr(self._threads, "transform", None)
        if transform is None:
            try:
                profile = ImageCms.ImageCmsProfile(io.BytesIO(self.icc_profile or b""))
                transform = ImageCms.buildTransform(
                    profile,
                    ImageCms.createProfile("sRGB"),
                    "RGB",
                    "RGB",
                    ImageCms.Intent.RELATIVE_COLORIMETRIC,
                )
            except (OSError, ImageCms.PyCMSError) as error:
                raise BrokenSlide(
                    self.path, f"its ICC profile cannot be used ({error})", "run without --icc"
                ) from None
            self._threads.transform = transform
        image = ImageCms.applyTransform(Image.fromarray(pixels), transform)
        return np.asarray(image)

    def decode_tile(self, level: int, column: int, row: int, reduction: int = 0) -> RGB | None:
        tile = self._slide.decode_tile(level, column, row, reduction)
        return None if tile is None else self._apply(tile)

    def associated_image(self, name: str) -> RGB:
        return self._slide.associated_image(name)

    def close(self) -> None:
        self._slide.close()
