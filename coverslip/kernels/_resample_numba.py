"""Area-weighted resampling on the CPU: vertical pass into a row, then horizontal, no allocation
per pixel. Single-threaded and without the GIL: the stream runs many windows at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit


def area_resample(
    image: npt.NDArray[np.uint8],
    origin: tuple[float, float],
    scale: tuple[float, float],
    out: npt.NDArray[np.uint8],
) -> None:
    """See `coverslip.kernels.resample.area_resample`; within one grey level of the definition."""
    _area_resample(
        np.ascontiguousarray(image).reshape(image.shape[0], -1),
        float(origin[0]),
        float(origin[1]),
        float(scale[0]),
        float(scale[1]),
        out,
    )


@njit(nogil=True, cache=True)
def _taps(
    length: int, start: float, step: float, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For each output pixel: first image pixel, how many, and their weights in rows."""
    widest = int(np.ceil(step)) + 2
    first = np.zeros(count, np.int64)
    taps = np.zeros(count, np.int64)
    weights = np.zeros((count, widest), np.float32)
    for i in range(count):
        low = start + i * step
        high = start + (i + 1) * step
        j0 = max(int(np.floor(low)), 0)
        j1 = min(int(np.ceil(high)), length)
        first[i] = j0
        for j in range(j0, j1):
            shared = min(high, j + 1.0) - max(low, float(j))
            if shared > 0.0:
                weights[i, j - j0] = np.float32(shared / step)
                taps[i] = j - j0 + 1
    return first, taps, weights


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def _area_resample(
    image: npt.NDArray[np.uint8],
    x: float,
    y: float,
    sx: float,
    sy: float,
    out: npt.NDArray[np.uint8],
) -> None:
    rows, across = image.shape
    first_x, taps_x, weights_x = _taps(across // 3, x, sx, out.shape[1])
    first_y, taps_y, weights_y = _taps(rows, y, sy, out.shape[0])
    row = np.empty(across, np.float32)
    half = np.float32(0.5001)  # float32 sums of halves land a little to either side
    white = np.float32(255.0)
    for v in range(out.shape[0]):
        row[:] = np.float32(0.0)
        for k in range(taps_y[v]):
            weight = weights_y[v, k]
            source = image[first_y[v] + k]
            for i in range(across):
                row[i] += weight * (white - np.float32(source[i]))
        for u in range(out.shape[1]):
            red = np.float32(0.0)
            green = np.float32(0.0)
            blue = np.float32(0.0)
            base = 3 * first_x[u]
            for k in range(taps_x[u]):
                weight = weights_x[u, k]
                red += weight * row[base]
                green += weight * row[base + 1]
                blue += weight * row[base + 2]
                base += 3
            out[v, u, 0] = np.uint8(white - red + half)
            out[v, u, 1] = np.uint8(white - green + half)
            out[v, u, 2] = np.uint8(white - blue + half)
