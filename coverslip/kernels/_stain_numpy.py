"""The definition of colour deconvolution, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def separate_stains(
    rgb: npt.NDArray[np.uint8], matrix: npt.NDArray[np.float64], background: float
) -> npt.NDArray[np.float32]:
    """See `coverslip.kernels.stain.separate_stains`."""
    density = -np.log((rgb.astype(np.float64) + 1) / (background + 1))
    return np.asarray(density @ np.linalg.inv(matrix), np.float32)


def stain_concentration(
    rgb: npt.NDArray[np.uint8], matrix: npt.NDArray[np.float64], stain: int, background: float
) -> npt.NDArray[np.float32]:
    """See `coverslip.kernels.stain.stain_concentration`."""
    return separate_stains(rgb, matrix, background)[..., stain]
