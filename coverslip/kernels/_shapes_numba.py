"""Outline simplification on the CPU, with a stack of its own instead of recursion."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from coverslip.kernels.compiled import compiled

Points = npt.NDArray[np.float64]


def kept_vertices(
    offset: npt.NDArray[np.int64], vertex: Points, tolerance: float
) -> npt.NDArray[np.bool_]:
    """See `coverslip.kernels._shapes_numpy.kept_vertices`."""
    kept = np.zeros(len(vertex), np.bool_)
    _keep(offset, np.ascontiguousarray(vertex), tolerance, kept)
    return kept


@compiled
def _keep(
    offset: npt.NDArray[np.int64], vertex: Points, tolerance: float, kept: npt.NDArray[np.bool_]
) -> None:
    longest = 0
    for i in range(len(offset) - 1):
        longest = max(longest, offset[i + 1] - offset[i])
    stack = np.empty((longest + 2, 2), np.int64)
    for i in range(len(offset) - 1):
        start, count = offset[i], offset[i + 1] - offset[i]
        if count == 0:
            continue
        ring = vertex[start : start + count]
        far, farthest = 0, -1.0
        for k in range(count):
            square = (ring[k, 0] - ring[0, 0]) ** 2 + (ring[k, 1] - ring[0, 1]) ** 2
            if square > farthest:
                far, farthest = k, square
        kept[start] = kept[start + far] = True
        stack[0, 0], stack[0, 1] = 0, far
        stack[1, 0], stack[1, 1] = far, count
        held = 2
        while held:
            held -= 1
            a, b = stack[held, 0], stack[held, 1]
            middle, away = _farthest(ring, a, b)
            if away > tolerance * tolerance:
                kept[start + middle] = True
                stack[held, 0], stack[held, 1] = a, middle
                stack[held + 1, 0], stack[held + 1, 1] = middle, b
                held += 2


@compiled
def _farthest(ring: Points, a: int, b: int) -> tuple[int, float]:
    """Of the vertices between `a` and `b`, the farthest from their line; its distance squared."""
    count = ring.shape[0]
    ax, ay = ring[a, 0], ring[a, 1]
    dx, dy = ring[b % count, 0] - ax, ring[b % count, 1] - ay
    length = dx * dx + dy * dy
    middle, most = a, -1.0
    for k in range(a + 1, b):
        tx, ty = ring[k, 0] - ax, ring[k, 1] - ay
        share = min(max((tx * dx + ty * dy) / length, 0.0), 1.0) if length > 0.0 else 0.0
        away = (tx - share * dx) ** 2 + (ty - share * dy) ** 2
        if away > most:
            middle, most = k, away
    return middle, most
