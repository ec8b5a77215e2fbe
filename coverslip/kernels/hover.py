"""Touching nuclei told apart by where their pixels say the nucleus lies (HoVer-Net)."""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.kernels.labels import (
    connected_components,
    filled_holes,
    gaussian,
    opened_by_disc,
    seeded_watershed,
    separable_filter,
)

SOBEL = 21
"""Side of the gradient's kernel, px, as published for 40x."""
LEAST_PX = 10


def hover_instances(
    probability: npt.NDArray[np.float32],
    horizontal: npt.NDArray[np.float32],
    vertical: npt.NDArray[np.float32],
    *,
    span: tuple[float, float] | None = None,
) -> npt.NDArray[np.int32]:
    """Labels int32 (H, W) of nuclei, from 1 without gaps.

    probability            (H, W) of being nucleus; 0.5 and more is one
    horizontal, vertical   (H, W) within a nucleus from -1 at its left (top) to 1 at its right
                           (bottom) end
    span                   gradients per px that count as a border (low) and as the inside of a
                           nucleus (high). None takes the least and the largest of this image, as
                           published: then a nucleus depends on what else is in the image. For
                           slides hand in one span, for example (-0.35, 0.12)

    Graham et al. 2019, "HoVer-Net", Medical Image Analysis 58: where one nucleus' right end meets
    the next one's left end the maps fall steeply, so steep falls are cut out of the nuclei to leave
    the markers of a watershed.
    """
    nucleus = _without_specks(np.asarray(probability) >= 0.5)
    falls = [
        _fall(np.asarray(a, np.float32), across, span)
        for a, across in ((horizontal, True), (vertical, False))
    ]
    border = np.maximum(*falls) * nucleus
    inner = gaussian(((1 - border) * nucleus).astype(np.float32), 0.8)
    markers = filled_holes(nucleus & (border < 0.4), np.inf)
    markers = _without_specks(opened_by_disc(markers, 2))
    return _numbered(seeded_watershed(-inner, connected_components(markers), nucleus))


def _fall(map: Any, across: bool, span: tuple[float, float] | None) -> npt.NDArray[np.float32]:
    """How steeply a map falls along its direction: 0 inside a nucleus, 1 at a border."""
    slope, smooth = _sobel()
    down, along = (smooth, slope) if across else (slope, smooth)
    gradient = separable_filter(map, down, along)
    low, high = span or (float(gradient.min(initial=0)), float(gradient.max(initial=0)))
    return np.asarray(1 - np.clip((gradient - low) / max(high - low, 1e-6), 0, 1), np.float32)


def _sobel() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sobel's derivative and smoothing of that side, of gain 1 per px."""
    smooth = np.array([comb(SOBEL - 1, k) for k in range(SOBEL)], np.float64)
    slope = np.convolve([comb(SOBEL - 2, k) for k in range(SOBEL - 1)], [-1, 1])
    gain = slope @ (np.arange(SOBEL) - SOBEL // 2)
    return slope / gain, smooth / smooth.sum()


def _without_specks(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    labels = connected_components(mask)
    large = np.bincount(labels.ravel(), minlength=1) >= LEAST_PX
    large[0] = False
    return np.asarray(large[labels])


def _numbered(labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    present = np.bincount(labels.ravel(), minlength=1) > 0
    present[0] = False
    return (np.cumsum(present) * present).astype(np.int32)[labels]
