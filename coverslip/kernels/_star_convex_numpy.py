"""The definitions of the star-convex kernels: geometry left to GEOS, every pair compared."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely

Points = npt.NDArray[np.float64]


def survivors(vertices: Points, centre: Points, threshold: float) -> npt.NDArray[np.bool_]:
    """Of polygons sorted by falling probability; see `coverslip.kernels.star_convex`."""
    polygons = shapely.polygons(vertices)
    area = shapely.area(polygons)
    kept = np.ones(len(polygons), np.bool_)
    for i in range(len(polygons)):
        if kept[i]:
            shared = shapely.area(shapely.intersection(polygons[i], polygons[i + 1 :]))
            kept[i + 1 :] &= shared <= threshold * np.minimum(area[i], area[i + 1 :])
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
