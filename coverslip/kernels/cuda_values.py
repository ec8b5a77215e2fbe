"""The structs that the CUDA kernels take by value."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

DENSITY = np.dtype(
    [("m", "f4", 9), ("offset", "f4", 3), ("glass", "f4", 3), ("target", "f4", 3)], align=True
)
LAB = np.dtype([("step", "f4", 9), ("added", "f4", 3)], align=True)


def density_values(
    matrix: Matrix, offset: Matrix, background: Matrix, target: Matrix, base: float = 2
) -> npt.NDArray[np.void]:
    """`struct Density` of `stain.cu`: offset and glass in logarithms to `base`."""
    values = np.zeros((), DENSITY)
    values["m"], values["offset"] = matrix.ravel(), offset / np.log(base)
    values["glass"], values["target"] = np.log(background + 1) / np.log(base), target + 1
    return values


def lab_values(
    step: npt.NDArray[np.float32], added: npt.NDArray[np.float32]
) -> npt.NDArray[np.void]:
    """`struct Lab` of `stain.cu`."""
    values = np.zeros((), LAB)
    values["step"], values["added"] = step.ravel(), added
    return values
