"""The definition of area-weighted resampling, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

HALF = 0.5001
"""Rounds up what is a half to within 1e-4: sums in float32 land a little to either side."""


def area_resample(
    image: npt.NDArray[np.uint8],
    origin: tuple[float, float],
    scale: tuple[float, float],
    out: npt.NDArray[np.uint8],
) -> None:
    """See `coverslip.kernels.resample.area_resample`."""
    across = _weights(image.shape[1], origin[0], scale[0], out.shape[1])  # (w, W)
    down = _weights(image.shape[0], origin[1], scale[1], out.shape[0])  # (h, H)
    # white outside the image: work on the darkness 255 - image, which is 0 there
    darkness = np.einsum("hy,yxc,wx->hwc", down, 255.0 - image, across, optimize=True)
    out[...] = np.floor(255.0 - darkness + HALF).astype(np.uint8)


def _weights(length: int, start: float, step: float, count: int) -> npt.NDArray[np.float64]:
    """(count, length): the share of output pixel i that image pixel j covers."""
    low = start + np.arange(count)[:, None] * step
    pixel = np.arange(length)[None, :]
    shared = np.minimum(low + step, pixel + 1) - np.maximum(low, pixel)
    weights: npt.NDArray[np.float64] = np.clip(shared, 0, None) / step
    return weights
