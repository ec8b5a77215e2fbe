"""Optical density and fixed-matrix colour deconvolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.kernels.backend import Backend, implementation

HEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.072, 0.990, 0.105)
DAB = (0.268, 0.570, 0.776)
"""Stain vectors of Ruifrok & Johnston (2001), Anal Quant Cytol Histol 23: 291-299."""


def stain_matrix(first: tuple[float, ...], second: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """(3, 3) rows of unit length: two stains and the direction square to both (the residue)."""
    rows = np.array([first, second, np.cross(first, second)], np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def separate_stains(
    rgb: Any,
    matrix: npt.NDArray[np.float64],
    background: float = 255.0,
    *,
    backend: Backend | None = None,
) -> Any:
    """How much of each stain every pixel holds.

    rgb          (..., 3) uint8
    matrix       (3, 3) stain vectors in rows, as from `stain_matrix`
    background   grey level of clear glass, 1 to 255
    backend      overrides the choice; for tests and benchmarks

    Returns (..., 3) float32 with -ln((I + 1) / (background + 1)) = concentrations @ matrix. Glass
    has 0 of everything; black is finite; noise may make concentrations slightly negative.
    """
    return implementation("stain", rgb, backend).separate_stains(rgb, matrix, background)


def stain_concentration(
    rgb: Any,
    matrix: npt.NDArray[np.float64],
    stain: int,
    background: float = 255.0,
    *,
    backend: Backend | None = None,
) -> Any:
    """One stain's concentration alone: (..., 3) uint8 -> (...) float32; see `separate_stains`."""
    return implementation("stain", rgb, backend).stain_concentration(rgb, matrix, stain, background)
