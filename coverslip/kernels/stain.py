"""Optical density, colour deconvolution, and colour transforms in density and in CIELAB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.kernels.backend import Backend, implementation

HEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.072, 0.990, 0.105)
DAB = (0.268, 0.570, 0.776)
"""Stain vectors of Ruifrok & Johnston (2001), Anal Quant Cytol Histol 23: 291-299."""


def stain_matrix(
    first: tuple[float, ...], second: tuple[float, ...], third: tuple[float, ...] | None = None
) -> npt.NDArray[np.float64]:
    """(3, 3) rows of unit length; without a `third` stain, the direction square to the others."""
    rows = np.array([first, second, np.cross(first, second) if third is None else third])
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def rgb_to_od(
    rgb: Any, background: float | Sequence[float] = 255.0, *, backend: Backend | None = None
) -> Any:
    """Optical density -ln((I + 1) / (background + 1)): (..., 3) uint8 -> (..., 3) float32.

    Glass has 0, black is finite, and what is brighter than the background is negative.
    """
    return implementation("stain", rgb, backend).separate_stains(rgb, np.eye(3), background)


def separate_stains(
    rgb: Any,
    matrix: npt.NDArray[np.float64],
    background: float | Sequence[float] = 255.0,
    *,
    backend: Backend | None = None,
) -> Any:
    """How much of each stain every pixel holds.

    rgb          (..., 3) uint8
    matrix       (3, 3) stain vectors in rows, as from `stain_matrix`
    background   grey level of clear glass, 1 to 255, one for all channels or one each
    backend      overrides the choice; for tests and benchmarks

    Returns (..., 3) float32 with -ln((I + 1) / (background + 1)) = concentrations @ matrix. Glass
    has 0 of everything; black is finite; noise may make concentrations slightly negative.
    scikit-image's `rgb2hed` takes the same rows without making them of unit length and divides
    densities by ln(1e6): its numbers are these / (13.8155 · norm of the stain's row), unclipped.
    """
    return implementation("stain", rgb, backend).separate_stains(rgb, matrix, background)


def stain_concentration(
    rgb: Any,
    matrix: npt.NDArray[np.float64],
    stain: int,
    background: float | Sequence[float] = 255.0,
    *,
    backend: Backend | None = None,
) -> Any:
    """One stain's concentration alone: (..., 3) uint8 -> (...) float32; see `separate_stains`."""
    return implementation("stain", rgb, backend).stain_concentration(rgb, matrix, stain, background)


def transform_density(
    rgb: Any,
    matrix: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64] | Sequence[float] = (0, 0, 0),
    background: float | Sequence[float] = 255.0,
    target_background: float | Sequence[float] = 255.0,
    *,
    threads: int = 1,
    backend: Backend | None = None,
) -> Any:
    """Colours changed by an affine map of their optical densities, in one pass.

    rgb                 (..., 3) uint8
    matrix, offset      (3, 3) and (3,): densities, as a row, become densities @ matrix + offset
    background          grey level of clear glass before, 1 to 255, one for all channels or one each
    target_background   grey level of clear glass after
    threads             for arrays on the CPU

    Returns (..., 3) uint8, rounded, cut off at 0 and 255: a new array where `rgb` lives. What is
    brighter than glass counts as glass (density 0), so that glass never takes a tint. Stain
    normalisation, stain jitter and the removal of a stain are all such maps. All backends agree
    within one grey level.
    """
    three = [
        np.broadcast_to(np.asarray(value, np.float64), (3,))
        for value in (offset, background, target_background)
    ]
    kernel = implementation("stain", rgb, backend)
    return kernel.transform_density(rgb, np.asarray(matrix, np.float64), *three, threads)


def transform_lab(
    rgb: Any,
    scale: npt.NDArray[np.float64] | Sequence[float],
    shift: npt.NDArray[np.float64] | Sequence[float],
    *,
    threads: int = 1,
    backend: Backend | None = None,
) -> Any:
    """Colours changed by an affine map of each CIELAB coordinate (sRGB, D65), in one pass.

    rgb            (..., 3) uint8
    scale, shift   (3,): L, a, b become value * scale + shift

    Returns (..., 3) uint8, cut off channel by channel at 0 and 255. All backends agree within
    one grey level where nothing is cut off.
    """
    kernel = implementation("stain", rgb, backend)
    return kernel.transform_lab(
        rgb, np.asarray(scale, np.float64), np.asarray(shift, np.float64), threads
    )
