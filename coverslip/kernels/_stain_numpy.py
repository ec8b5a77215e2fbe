"""The definitions of the stain kernels, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RGB = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]

RGB_TO_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
"""Linear sRGB to CIE XYZ, ITU-R BT.709 primaries."""
WHITE = np.array([0.95047, 1.0, 1.08883])
"""D65, 2 degree observer."""
KNEE = 6 / 29
"""Where CIELAB's cube root goes over into a straight line."""


def density(rgb: RGB, background: float | Sequence[float] | Matrix) -> Matrix:
    """Optical density -ln((I + 1) / (background + 1)), float64 of the shape of `rgb`."""
    return -np.log((rgb.astype(np.float64) + 1) / (np.asarray(background, np.float64) + 1))


def separate_stains(
    rgb: RGB, matrix: Matrix, background: float | Sequence[float]
) -> npt.NDArray[np.float32]:
    """See `coverslip.kernels.stain.separate_stains`."""
    return np.asarray(density(rgb, background) @ np.linalg.inv(matrix), np.float32)


def stain_concentration(
    rgb: RGB, matrix: Matrix, stain: int, background: float | Sequence[float]
) -> npt.NDArray[np.float32]:
    """See `coverslip.kernels.stain.stain_concentration`."""
    return np.asarray(separate_stains(rgb, matrix, background)[..., stain], np.float32)


def transform_density(
    rgb: RGB,
    matrix: Matrix,
    offset: Matrix,
    background: Matrix,
    target_background: Matrix,
    threads: int,
) -> RGB:
    """See `coverslip.kernels.stain.transform_density`."""
    found = np.maximum(density(rgb, background), 0) @ matrix + offset
    return _as_bytes((target_background + 1) * np.exp(-found) - 1)


def transform_lab(rgb: RGB, scale: Matrix, shift: Matrix, threads: int) -> RGB:
    """See `coverslip.kernels.stain.transform_lab`."""
    return lab_to_rgb(rgb_to_lab(rgb) * scale + shift)


def rgb_to_lab(rgb: RGB) -> Matrix:
    """sRGB uint8 (..., 3) -> CIELAB float64 (..., 3)."""
    f = cube_root(linear_light(rgb) @ RGB_TO_XYZ.T / WHITE)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def lab_to_rgb(lab: Matrix) -> RGB:
    """CIELAB (..., 3) -> sRGB uint8, what lies outside cut off channel by channel."""
    lightness, a, b = np.moveaxis(lab, -1, 0)
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    return _as_bytes(255 * gamma((cube(f) * WHITE) @ np.linalg.inv(RGB_TO_XYZ).T))


def linear_light(level: npt.NDArray[Any]) -> Matrix:
    """Light, 0 to 1, of sRGB grey levels 0 to 255: the inverse of `gamma`."""
    share = level / 255
    return np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)


def cube_root(t: Matrix) -> Matrix:
    """CIELAB's f: a cube root, straight near 0."""
    return np.where(t > KNEE**3, np.cbrt(t), t / (3 * KNEE**2) + 4 / 29)


def cube(f: Matrix) -> Matrix:
    """The inverse of `cube_root`."""
    return np.where(f > KNEE, f**3, 3 * KNEE**2 * (f - 4 / 29))


def gamma(linear: Matrix) -> Matrix:
    """sRGB's transfer function over linear light, which is cut off at 0 and 1."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def lab_step(
    scale: Matrix, shift: Matrix
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(3, 3) and (3,): Lab * scale + shift as a map of Lab's cube roots, in which Lab is linear."""
    to_lab = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]], np.float64)
    back, base = np.linalg.inv(to_lab), np.array([-16.0, 0, 0])
    step = back @ np.diag(scale) @ to_lab
    return step.astype(np.float32), (back @ (scale * base + shift - base)).astype(np.float32)


def _as_bytes(levels: Matrix) -> RGB:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)
