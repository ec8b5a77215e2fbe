"""Colour deconvolution on the CPU: one table of 256 entries per channel and stain, then sums."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit


def _tables(matrix: npt.NDArray[np.float64], background: float) -> npt.NDArray[np.float32]:
    """(3 stains, 3 channels, 256): what grey level adds to which stain."""
    density = -np.log((np.arange(256) + 1) / (background + 1))
    inverse = np.linalg.inv(matrix)  # (channel, stain)
    return np.asarray(inverse.T[:, :, None] * density, np.float32)


def separate_stains(
    rgb: npt.NDArray[np.uint8], matrix: npt.NDArray[np.float64], background: float
) -> npt.NDArray[np.float32]:
    """See `coverslip.kernels.stain.separate_stains`."""
    out = np.empty(rgb.shape, np.float32)
    flat = np.ascontiguousarray(rgb).reshape(-1, 3)
    _separate(flat, _tables(matrix, background), out.reshape(-1, 3))
    return out


def stain_concentration(
    rgb: npt.NDArray[np.uint8], matrix: npt.NDArray[np.float64], stain: int, background: float
) -> npt.NDArray[np.float32]:
    """See `coverslip.kernels.stain.stain_concentration`."""
    out = np.empty(rgb.shape[:-1], np.float32)
    flat = np.ascontiguousarray(rgb).reshape(-1, 3)
    _concentration(flat, _tables(matrix, background)[stain], out.reshape(-1))
    return out


@njit(nogil=True, cache=True)
def _separate(
    rgb: npt.NDArray[np.uint8], tables: npt.NDArray[np.float32], out: npt.NDArray[np.float32]
) -> None:
    for i in range(rgb.shape[0]):
        r, g, b = rgb[i, 0], rgb[i, 1], rgb[i, 2]
        for s in range(3):
            out[i, s] = tables[s, 0, r] + tables[s, 1, g] + tables[s, 2, b]


@njit(nogil=True, cache=True)
def _concentration(
    rgb: npt.NDArray[np.uint8], table: npt.NDArray[np.float32], out: npt.NDArray[np.float32]
) -> None:
    for i in range(rgb.shape[0]):
        out[i] = table[0, rgb[i, 0]] + table[1, rgb[i, 1]] + table[2, rgb[i, 2]]
