"""Area-weighted resampling on a GPU."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from coverslip.kernels._gpu import launch_square


def area_resample(
    image: Any, origin: tuple[float, float], scale: tuple[float, float], out: Any
) -> None:
    """See `coverslip.kernels.resample.area_resample`; within one grey level of the definition."""
    flat = out if out.flags.c_contiguous else cupy.empty(out.shape, cupy.uint8)
    size = (np.int32(image.shape[0]), np.int32(image.shape[1]))
    lattice = tuple(np.float64(v) for v in (*origin, *scale))
    rows, columns = out.shape[:2]
    ends = (flat, np.int32(rows), np.int32(columns))
    arguments = (cupy.ascontiguousarray(image), *size, *lattice, *ends)
    launch_square("resample", "area_resample", (rows, columns), arguments)
    if flat is not out:
        out[...] = flat
