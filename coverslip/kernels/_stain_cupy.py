"""Stain kernels on a GPU: optical density by fast logarithms, four pixels a thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np
import numpy.typing as npt

from coverslip.kernels._gpu import launch_line
from coverslip.kernels._stain_numpy import lab_step
from coverslip.kernels.cuda_values import density_values, lab_values

Matrix = npt.NDArray[np.float64]


def separate_stains(rgb: Any, matrix: Matrix, background: float | Sequence[float]) -> Any:
    """See `coverslip.kernels.stain.separate_stains`."""
    out = cupy.empty(rgb.shape, cupy.float32)
    _densities(rgb, matrix, background, 0, 3, out)
    return out


def stain_concentration(
    rgb: Any, matrix: Matrix, stain: int, background: float | Sequence[float]
) -> Any:
    """See `coverslip.kernels.stain.stain_concentration`."""
    out = cupy.empty(rgb.shape[:-1], cupy.float32)
    _densities(rgb, matrix, background, stain, 1, out)
    return out


def transform_density(
    rgb: Any,
    matrix: Matrix,
    offset: Matrix,
    background: Matrix,
    target_background: Matrix,
    threads: int,
) -> Any:
    """See `coverslip.kernels.stain.transform_density`."""
    values = density_values(matrix, offset, background, target_background)
    return _recoloured(rgb, "transform_density", values)


def transform_lab(rgb: Any, scale: Matrix, shift: Matrix, threads: int) -> Any:
    """See `coverslip.kernels.stain.transform_lab`."""
    return _recoloured(rgb, "transform_lab", lab_values(*lab_step(scale, shift)))


def _recoloured(rgb: Any, kernel: str, values: npt.NDArray[np.void]) -> Any:
    rgb = cupy.ascontiguousarray(rgb)
    out = cupy.empty_like(rgb)
    pixels = rgb.size // 3
    launch_line("stain", kernel, -(-pixels // 4), (rgb, values, out, np.int64(pixels)))
    return out


def _densities(
    rgb: Any,
    matrix: Matrix,
    background: float | Sequence[float],
    first: int,
    stains: int,
    out: Any,
) -> None:
    rgb = cupy.ascontiguousarray(rgb)
    glass = np.broadcast_to(np.asarray(background, np.float64), (3,))
    inverse = np.asarray(np.linalg.inv(matrix), np.float64)
    values = density_values(inverse, np.zeros(3), glass, glass, base=np.e)
    pixels = rgb.size // 3
    sizes = (np.int64(pixels), np.int32(first), np.int32(stains))
    launch_line("stain", "stain_densities", pixels, (rgb, values, out, *sizes))
