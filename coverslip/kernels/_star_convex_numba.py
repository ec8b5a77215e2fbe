"""Star-convex polygons on the CPU.

Most pairs are decided by the discs that the stars hold and that hold them; for the others a line
sweeps over both (`coverslip.kernels.clipping`), some microseconds a pair. Only neighbours in a grid
are looked at: time grows with the number of polygons, not with its square.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from coverslip.kernels.clipping import shared_area
from coverslip.kernels.clipping_edges import State, new_state
from coverslip.kernels.compiled import compiled

Points = npt.NDArray[np.float64]

SLACK = 1.5
"""Rounding crossings to whole px moves no border farther, px."""


def survivors(
    vertices: npt.NDArray[np.int64],
    centre: npt.NDArray[np.float32],
    reach: npt.NDArray[np.float32],
    threshold: float,
) -> npt.NDArray[np.bool_]:
    """Of polygons sorted by falling probability; see `coverslip.kernels.star_convex`."""
    if not len(vertices):
        return np.zeros(0, np.bool_)
    cell = max(float(np.percentile(reach, 95)), 1.0)
    place = np.floor((centre - centre.min(axis=0)) / cell).astype(np.int64)  # (n, 2)
    columns = int(place[:, 0].max()) + 1
    number = place[:, 1] * columns + place[:, 0]
    inside = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[inside], np.arange(columns * (int(place[:, 1].max()) + 1) + 1))
    state = new_state(vertices.shape[1])
    limit = np.float32(threshold)
    return np.asarray(
        _survivors(vertices, centre, reach, limit, place, columns, cell, inside, starts, state)
    )


def drawn(
    vertices: Points, centre: Points, labels: npt.NDArray[np.int32], shape: tuple[int, int]
) -> npt.NDArray[np.int32]:
    """Polygons in the order in which they are drawn over each other."""
    out = np.zeros(shape, np.int32)
    _draw(vertices, centre, labels, out)
    return out


@compiled
def _inside(x: float, y: float, polygon: Points, cx: float, cy: float) -> bool:
    """Whether (x, y) lies in the star around (cx, cy): one sector, one side."""
    rays = polygon.shape[0]
    dx, dy = x - cx, y - cy
    turn = np.arctan2(dy, dx) / (2 * np.pi) * rays
    k = int(np.floor(turn)) % rays
    a, b = polygon[k], polygon[(k + 1) % rays]
    return bool((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) >= 0)


@compiled
def _area(polygon: npt.NDArray[np.int64]) -> float:
    total, last = 0, polygon.shape[0] - 1
    for k in range(polygon.shape[0]):
        total += polygon[last, 0] * polygon[k, 1] - polygon[k, 0] * polygon[last, 1]
        last = k
    return abs(total) / 2


@compiled
def _radii(polygon: npt.NDArray[np.int64], cx: float, cy: float) -> tuple[float, float]:
    """Of the discs around a centre that the polygon holds (0 if there is none) and that hold it."""
    least, most, last = np.inf, 0.0, polygon.shape[0] - 1
    for k in range(polygon.shape[0]):
        ax, ay = polygon[last, 0] - cx, polygon[last, 1] - cy
        ex, ey = polygon[k, 0] - polygon[last, 0], polygon[k, 1] - polygon[last, 1]
        most = max(most, ax * ax + ay * ay)
        if ex != 0 or ey != 0:
            least = min(least, (ax * ey - ay * ex) / np.sqrt(ex * ex + ey * ey))
        last = k
    return max(least, 0.0) if np.isfinite(least) else 0.0, np.sqrt(most)


@compiled
def _lens(apart: float, r: float, s: float) -> float:
    """The area that two discs share."""
    if apart >= r + s:
        return 0.0
    if apart <= abs(r - s):
        return np.pi * min(r, s) ** 2
    a = (apart * apart + r * r - s * s) / (2 * apart)
    b = apart - a
    height = np.sqrt(max(r * r - a * a, 0.0))
    return float(r * r * np.arctan2(height, a) + s * s * np.arctan2(height, b) - apart * height)


@compiled
def _survivors(
    vertices: npt.NDArray[np.int64],
    centre: npt.NDArray[np.float32],
    reach: npt.NDArray[np.float32],
    threshold: np.float32,
    place: npt.NDArray[np.int64],
    columns: int,
    cell: float,
    inside: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    state: State,
) -> npt.NDArray[np.bool_]:
    count, rows = vertices.shape[0], (len(starts) - 1) // columns
    kept = np.ones(count, np.bool_)
    area, within, around = np.empty(count), np.empty(count), np.empty(count)
    farthest = reach.max()
    for i in range(count):
        area[i] = _area(vertices[i])
        within[i], around[i] = _radii(vertices[i], centre[i, 0], centre[i, 1])
        within[i], around[i] = max(within[i] - SLACK, 0.0), around[i] + SLACK
    for i in range(count):
        if not kept[i]:
            continue
        far = reach[i] + farthest
        steps = int(np.ceil(far / cell))
        for row in range(max(place[i, 1] - steps, 0), min(place[i, 1] + steps + 1, rows)):
            low = starts[row * columns + max(place[i, 0] - steps, 0)]
            high = starts[row * columns + min(place[i, 0] + steps, columns - 1) + 1]
            for at in range(low, high):
                j = inside[at]
                if j <= i or not kept[j]:
                    continue
                dx, dy = centre[j, 0] - centre[i, 0], centre[j, 1] - centre[i, 1]
                if dx * dx + dy * dy >= far * far:
                    continue
                apart, smaller = np.sqrt(dx * dx + dy * dy), min(area[i], area[j])
                if _lens(apart, around[i], around[j]) < threshold * smaller:
                    continue
                if _lens(apart, within[i], within[j]) > threshold * smaller:
                    kept[j] = False
                    continue
                shared = shared_area(vertices[i], vertices[j], state)
                kept[j] = np.float32(shared / (smaller + 1e-10)) <= threshold
    return kept


@compiled
def _draw(
    vertices: Points, centre: Points, labels: npt.NDArray[np.int32], out: npt.NDArray[np.int32]
) -> None:
    rows, columns = out.shape
    for i in range(vertices.shape[0]):
        polygon = vertices[i]
        u0, u1 = (
            max(int(np.ceil(polygon[:, 0].min())), 0),
            min(int(polygon[:, 0].max()), columns - 1),
        )
        v0, v1 = max(int(np.ceil(polygon[:, 1].min())), 0), min(int(polygon[:, 1].max()), rows - 1)
        for v in range(v0, v1 + 1):
            for u in range(u0, u1 + 1):
                if _inside(u, v, polygon, centre[i, 0], centre[i, 1]):
                    out[v, u] = labels[i]


def ray_distances(labels: npt.NDArray[np.int32], rays: int, step: int) -> npt.NDArray[np.float32]:
    """See `coverslip.kernels.star_convex`."""
    h, w = labels.shape
    out = np.zeros((-(-h // step), -(-w // step), rays), np.float32)
    _walk(np.ascontiguousarray(labels, np.int32), step, out)
    return out


@compiled
def _walk(labels: npt.NDArray[np.int32], step: int, out: npt.NDArray[np.float32]) -> None:
    h, w = labels.shape
    rays = out.shape[2]
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            r, c = row * step, column * step
            here = labels[r, c]
            if here == 0:
                continue
            for k in range(rays):
                down, right = np.sin(2 * np.pi * k / rays), np.cos(2 * np.pi * k / rays)
                n = 1
                while True:
                    rr, cc = int(np.rint(r + n * down)), int(np.rint(c + n * right))
                    if rr < 0 or rr >= h or cc < 0 or cc >= w or labels[rr, cc] != here:
                        break
                    n += 1
                out[row, column, k] = n - 1 + 0.5 / max(abs(down), abs(right))
