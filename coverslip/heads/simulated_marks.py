"""Marks as users make them on an object: a click, or a line along its inside."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from coverslip.kernels.labels import distance_transform

Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]

DEPTH = (0.1, 0.9)
"""How deep a click lies, as a share of the object's greatest depth: at least so much, drawn."""


def inside_point(mask: Mask, random: np.random.Generator) -> Points:
    """(x, y) px of a point inside `mask` [H, W], rarely at its border, often off its middle."""
    seen = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    top, left = (max(int(n[0]) - 1, 0) for n in seen)
    part = mask[top : seen[0][-1] + 2, left : seen[1][-1] + 2]
    depth = distance_transform(part, float(max(part.shape)))
    rows, columns = np.nonzero(part & (depth >= random.uniform(*DEPTH) * depth.max()))
    i = random.integers(len(rows))
    within = random.uniform(0.05, 0.95, 2)  # of the pixel
    return np.array([left + columns[i], top + rows[i]]) + within


def squiggle(mask: Mask, start: Points, random: np.random.Generator) -> Points:
    """A line along the inside of a 4-connected `mask` from `start` on: vertices [n, 2] (x, y) px.

    It leads to the farthest of three points inside, on the way that stays farthest from the border.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    depth = distance_transform(mask, float(max(mask.shape)))
    ends = [inside_point(mask, random) for _ in range(3)]
    end = max(ends, key=lambda point: float(np.hypot(*(point - start))))
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(np.count_nonzero(mask))
    height = depth[mask].astype(np.float64)
    steps = [(number[:, :-1], number[:, 1:]), (number[:-1], number[1:])]
    open_ways = [(a[(a >= 0) & (b >= 0)], b[(a >= 0) & (b >= 0)]) for a, b in steps]
    one = np.concatenate([a for a, _ in open_ways])
    other = np.concatenate([b for _, b in open_ways])
    cost = 1 / np.minimum(height[one], height[other]) ** 2
    graph = coo_array((cost, (one, other)), shape=(len(height),) * 2).tocsr()
    first, last = (int(number[int(y), int(x)]) for x, y in (start, end))
    _, before = dijkstra(graph, directed=False, indices=first, return_predecessors=True)
    way = [last]
    while way[-1] != first and before[way[-1]] >= 0:
        way.append(int(before[way[-1]]))
    return np.asarray(np.argwhere(mask)[way[::-1], ::-1] + 0.5, np.float64)
