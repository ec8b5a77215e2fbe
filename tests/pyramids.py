"""Generated TIFF pyramids for tests that need odd ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from coverslip.wsi.slide import RGB


def address_pixels(width: int, height: int) -> RGB:
    """(height, width, 3) uint8 in which every pixel spells its own (x, y)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x & 255, y & 255, ((x >> 8) << 4 | y >> 8) & 255], axis=-1).astype(np.uint8)


def write_pyramid(
    path: Path,
    image: RGB,
    *,
    levels: int = 1,
    compression: str | None = "adobe_deflate",
    predictor: bool = False,
    bigtiff: bool = False,
    mpp: float | None = 0.25,
) -> None:
    """A TIFF of 256 px tiles whose lower levels are every second pixel of the one above."""
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        for number in range(levels):
            step = 2**number
            height, width = image.shape[0] // step, image.shape[1] // step
            writer.write(
                np.ascontiguousarray(image[: height * step : step, : width * step : step]),
                tile=(256, 256),
                compression=compression,
                predictor=predictor,
                photometric="rgb",
                resolution=None if mpp is None else (1e4 / mpp / step,) * 2,
                resolutionunit=None if mpp is None else "CENTIMETER",
                subfiletype=1 if number else 0,
                metadata=None,
            )
