"""Label kernels on a GPU: those that look a stated number of pixels far.

Watershed, outlines and measures follow chains of pixels and stay on the CPU: they are not here, and
asking for them with a CuPy array says so.
"""

from __future__ import annotations

from typing import Any, NoReturn

import cupy
import numpy as np
import numpy.typing as npt

from coverslip.kernels._gpu import launch_square

ON_CPU = (
    "local_threshold",
    "seeded_watershed",
    "label_outlines",
    "label_sums",
    "label_channel_sums",
)


def separable_filter(
    image: Any, down: npt.NDArray[np.float64], across: npt.NDArray[np.float64]
) -> Any:
    """See `coverslip.kernels.labels.separable_filter`."""
    image = cupy.ascontiguousarray(image, cupy.float32)
    between, out = cupy.empty_like(image), cupy.empty_like(image)
    size = (np.int32(image.shape[0]), np.int32(image.shape[1]))
    for name, weights, source, target in (
        ("filter_down", down, image, between),
        ("filter_across", across, between, out),
    ):
        line = cupy.asarray(weights, cupy.float32)
        arguments = (source, line, np.int32(len(weights) // 2), target, *size)
        launch_square("labels", name, image.shape, arguments)
    return out


def distance_transform(mask: Any, limit: float) -> Any:
    """See `coverslip.kernels.labels.distance_transform`."""
    mask = cupy.ascontiguousarray(mask, cupy.bool_)
    out = cupy.empty(mask.shape, cupy.float32)
    size = (np.int32(mask.shape[0]), np.int32(mask.shape[1]))
    launch_square("labels", "distances", mask.shape, (mask, np.float32(limit), out, *size))
    return out


def local_maxima(height: Any, mask: Any, radius: float) -> Any:
    """See `coverslip.kernels.labels.local_maxima`."""
    height = cupy.ascontiguousarray(height, cupy.float32)
    mask = cupy.ascontiguousarray(mask, cupy.bool_)
    found = cupy.empty(mask.shape, cupy.bool_)
    size = (np.int32(mask.shape[0]), np.int32(mask.shape[1]))
    launch_square("labels", "peaks", mask.shape, (height, mask, np.float32(radius), found, *size))
    return (cupy.cumsum(found.ravel()).reshape(found.shape) * found).astype(cupy.int32)


def connected_components(mask: Any) -> Any:
    """See `coverslip.kernels.labels.connected_components`; numbered in raster order as there."""
    from cupyx.scipy import ndimage

    labels, count = ndimage.label(mask)
    if not count:
        return labels.astype(cupy.int32)
    _, first = cupy.unique(labels.ravel(), return_index=True)
    order = cupy.argsort(first[1:] if int(labels.min()) == 0 else first)
    number = cupy.zeros(count + 1, cupy.int32)
    number[order + 1] = cupy.arange(1, count + 1, dtype=cupy.int32)
    return number[labels]


def __getattr__(name: str) -> NoReturn:
    if name in ON_CPU:
        raise NotImplementedError(f"{name} runs on the CPU only: pass it array.get()")
    raise AttributeError(name)
