"""Compiling kernels before they are needed, beside other work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np

KernelFamily = Literal["resample", "stain", "labels"]


def warm_up(families: Iterable[KernelFamily]) -> threading.Thread:
    """Begin to compile these kernels, or to load them from the cache, in a thread of its own.

    A machine compiles each kernel once (some seconds a family) and then finds it on disk. Who needs
    a kernel that is being compiled waits for that one only; who joins the thread waits for all.
    """
    chosen = [_FAMILIES[family] for family in families]
    thread = threading.Thread(target=lambda: [run() for run in chosen], name="kernel-warm-up")
    thread.start()
    return thread


def _resample() -> None:
    from coverslip.kernels.resample import area_resample

    image, out = np.zeros((24, 24, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    for scale in (1.0, 2.0):
        area_resample(image, (0.0, 0.0), (scale, scale), out)


def _stain() -> None:
    from coverslip.kernels.stain import (
        separate_stains,
        stain_concentration,
        transform_density,
        transform_lab,
    )

    image = np.zeros((2, 2, 3), np.uint8)
    transform_density(image, np.eye(3))
    transform_lab(image, (1, 1, 1), (0, 0, 0))
    separate_stains(image, np.eye(3))
    stain_concentration(image, np.eye(3), 0)


def _labels() -> None:
    from coverslip.kernels.labels import (
        connected_components,
        distance_transform,
        gaussian,
        label_measures,
        label_outlines,
        local_maxima,
        local_threshold,
        seeded_watershed,
    )
    from coverslip.kernels.shapes import simplified_outlines

    image = np.zeros((8, 8), np.float32)
    mask = np.zeros((8, 8), np.bool_)
    mask[2:5, 2:5] = True
    labels = connected_components(mask)
    distance_transform(mask, 2)
    gaussian(image, 1)
    local_threshold(image, 1, 0.5, (0, 1), 0.1)
    local_maxima(image, mask, 1)
    seeded_watershed(image, labels, mask)
    simplified_outlines(label_outlines(labels), 0.5)
    label_measures(labels, image)


_FAMILIES: Mapping[KernelFamily, Callable[[], None]] = {
    "resample": _resample,
    "stain": _stain,
    "labels": _labels,
}
