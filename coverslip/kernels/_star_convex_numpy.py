"""The definitions of the star-convex kernels: every pair compared, every pixel looked at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely

from coverslip.kernels.clipping import shared_area
from coverslip.kernels.clipping_edges import new_state

Points = npt.NDArray[np.float64]


def survivors(
    vertices: npt.NDArray[np.int64],
    centre: npt.NDArray[np.float32],
    reach: npt.NDArray[np.float32],
    threshold: float,
) -> npt.NDArray[np.bool_]:
    """Of polygons sorted by falling probability; see `coverslip.kernels.star_convex`."""
    kept = np.ones(len(vertices), np.bool_)
    if not len(vertices):
        return kept
    state = new_state(vertices.shape[1])
    x, y = vertices[:, :, 0], vertices[:, :, 1]
    swept = x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)
    area = np.abs(swept.sum(axis=1)) / 2
    for i in range(len(vertices)):
        if kept[i]:
            apart = ((centre - centre[i]) ** 2).sum(axis=1)
            for j in np.flatnonzero(kept & (apart < (reach.max() + reach[i]) ** 2)):
                if j > i:
                    shared = shared_area(vertices[i], vertices[j], state)
                    overlap = np.float32(shared / (min(area[i], area[j]) + 1e-10))
                    kept[j] = overlap <= np.float32(threshold)
    return kept


def drawn(
    vertices: Points, centre: Points, labels: npt.NDArray[np.int32], shape: tuple[int, int]
) -> npt.NDArray[np.int32]:
    """Polygons in the order in which they are drawn over each other."""
    v, u = np.mgrid[: shape[0], : shape[1]]
    out = np.zeros(shape, np.int32)
    for polygon, label in zip(shapely.polygons(vertices), labels, strict=True):
        out[shapely.intersects_xy(polygon, u, v)] = label
    return out


def ray_distances(labels: npt.NDArray[np.int32], rays: int, step: int) -> npt.NDArray[np.float32]:
    """See `coverslip.kernels.star_convex`."""
    h, w = labels.shape
    out = np.zeros((-(-h // step), -(-w // step), rays), np.float32)
    for row, column in np.argwhere(labels[::step, ::step] > 0):
        r, c = row * step, column * step
        for k in range(rays):
            down, right = np.sin(2 * np.pi * k / rays), np.cos(2 * np.pi * k / rays)
            n = 1
            while True:
                rr, cc = round(r + n * down), round(c + n * right)
                if not (0 <= rr < h and 0 <= cc < w) or labels[rr, cc] != labels[r, c]:
                    break
                n += 1
            out[row, column, k] = n - 1 + 0.5 / max(abs(down), abs(right))
    return out
