"""Star-convex polygons on the CPU.

The area two polygons share is summed along the shared boundary (Green's theorem): of either
polygon's edges, the pieces inside the other. Whether a point is inside a star takes one angle, so a
pair of 32-gons costs some microseconds; most pairs are decided before, by the discs that the stars
hold and that hold them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from coverslip.kernels.compiled import compiled

Points = npt.NDArray[np.float64]

ASIDE = 1.3e-7
"""One polygon is moved by this much, px, so that edges never lie on one another."""


def survivors(vertices: Points, centre: Points, threshold: float) -> npt.NDArray[np.bool_]:
    """Of polygons sorted by falling probability; see `coverslip.kernels.star_convex`."""
    if not len(vertices):
        return np.zeros(0, np.bool_)
    reach = np.sqrt(((vertices - centre[:, None]) ** 2).sum(axis=2)).max(axis=1)
    cell = max(float(np.percentile(reach, 95)), 1.0)
    place = np.floor((centre - centre.min(axis=0)) / cell).astype(np.int64)  # (n, 2)
    columns = int(place[:, 0].max()) + 1
    number = place[:, 1] * columns + place[:, 0]
    inside = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[inside], np.arange(columns * (int(place[:, 1].max()) + 1) + 1))
    return np.asarray(
        _survivors(vertices, centre, reach, threshold, place, columns, cell, inside, starts)
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
def _area(polygon: Points) -> float:
    total, last = 0.0, polygon[-1]
    for k in range(polygon.shape[0]):
        here = polygon[k]
        total += last[0] * here[1] - here[0] * last[1]
        last = here
    return total / 2


@compiled
def _inner_radius(polygon: Points, cx: float, cy: float) -> float:
    """Of the largest disc around the centre that the polygon holds."""
    least = np.inf
    last = polygon[-1]
    for k in range(polygon.shape[0]):
        here = polygon[k]
        ex, ey = here[0] - last[0], here[1] - last[1]
        length = np.sqrt(ex * ex + ey * ey)
        if length > 0.0:
            away = abs(ex * (cy - last[1]) - ey * (cx - last[0])) / length
            least = min(least, away)
        last = here
    return least


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
def _crossings(a: Points, b: Points, on_a: Points, on_b: Points, counts: Points) -> None:
    """Where the edges cross: parameters on every edge of `a` and of `b`; counts (2, R)."""
    rays = a.shape[0]
    counts[:] = 0
    for i in range(rays):
        p, q = a[i], a[(i + 1) % rays]
        px, py, dx, dy = p[0], p[1], q[0] - p[0], q[1] - p[1]
        low_x, high_x = min(p[0], q[0]), max(p[0], q[0])
        low_y, high_y = min(p[1], q[1]), max(p[1], q[1])
        for j in range(rays):
            r, s = b[j], b[(j + 1) % rays]
            if (
                (r[0] < low_x and s[0] < low_x) or (r[0] > high_x and s[0] > high_x)
                or (r[1] < low_y and s[1] < low_y) or (r[1] > high_y and s[1] > high_y)
            ):  # fmt: skip
                continue
            ex, ey = s[0] - r[0], s[1] - r[1]
            cross = dx * ey - dy * ex
            if cross == 0.0:
                continue
            t = ((r[0] - px) * ey - (r[1] - py) * ex) / cross
            w = ((r[0] - px) * dy - (r[1] - py) * dx) / cross
            if 0.0 < t < 1.0 and 0.0 <= w <= 1.0:
                on_a[i, int(counts[0, i])] = t
                counts[0, i] += 1
            if 0.0 < w < 1.0 and 0.0 <= t <= 1.0:
                on_b[j, int(counts[1, j])] = w
                counts[1, j] += 1


@compiled
def _along(a: Points, cuts: Points, counts: Points, b: Points, bx: float, by: float) -> float:
    """Twice the area swept by the pieces of the edges of `a` that lie in the star `b`."""
    rays, total = a.shape[0], 0.0
    for i in range(rays):
        p, q = a[i], a[(i + 1) % rays]
        count = int(counts[i])
        if count > 1:
            cuts[i, :count].sort()
        before = 0.0
        for k in range(count + 1):
            after = cuts[i, k] if k < count else 1.0
            middle = (before + after) / 2
            x, y = p[0] + middle * (q[0] - p[0]), p[1] + middle * (q[1] - p[1])
            if after > before and _inside(x, y, b, bx, by):
                # of a piece of the line through p and q: (after - before) · (p x q)
                total += (after - before) * (p[0] * q[1] - q[0] * p[1])
            before = after
    return total


@compiled
def _survivors(
    vertices: Points,
    centre: Points,
    reach: Points,
    threshold: float,
    place: npt.NDArray[np.int64],
    columns: int,
    cell: float,
    inside: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    count, rays = vertices.shape[0], vertices.shape[1]
    rows = (len(starts) - 1) // columns
    kept = np.ones(count, np.bool_)
    area, within, farthest = np.empty(count), np.empty(count), 0.0
    for i in range(count):
        area[i] = _area(vertices[i])
        within[i] = _inner_radius(vertices[i], centre[i, 0], centre[i, 1])
        farthest = max(farthest, reach[i])
    a, b = np.empty((rays, 2)), np.empty((rays, 2))
    on_a, on_b = np.empty((rays, rays + 1)), np.empty((rays, rays + 1))
    counts = np.empty((2, rays))
    for i in range(count):
        if not kept[i]:
            continue
        cx, cy = centre[i]
        for k in range(rays):  # around the own centre, for precision
            a[k, 0], a[k, 1] = vertices[i, k, 0] - cx, vertices[i, k, 1] - cy
        steps = int(np.ceil((reach[i] + farthest) / cell))
        for row in range(max(place[i, 1] - steps, 0), min(place[i, 1] + steps + 1, rows)):
            low = starts[row * columns + max(place[i, 0] - steps, 0)]
            high = starts[row * columns + min(place[i, 0] + steps, columns - 1) + 1]
            for at in range(low, high):
                j = inside[at]
                if j <= i or not kept[j]:
                    continue
                dx, dy = centre[j, 0] - cx, centre[j, 1] - cy
                if dx * dx + dy * dy >= (reach[i] + reach[j]) ** 2:
                    continue
                least = threshold * min(area[i], area[j])
                apart = np.sqrt(dx * dx + dy * dy)
                if _lens(apart, within[i], within[j]) > least:
                    kept[j] = False
                    continue
                if _lens(apart, reach[i], reach[j]) < least:
                    continue
                bx, by = dx + ASIDE, dy + 0.7 * ASIDE
                for k in range(rays):
                    b[k, 0] = vertices[j, k, 0] - centre[j, 0] + bx
                    b[k, 1] = vertices[j, k, 1] - centre[j, 1] + by
                _crossings(a, b, on_a, on_b, counts)
                shared = _along(a, on_a, counts[0], b, bx, by)
                shared += _along(b, on_b, counts[1], a, 0.0, 0.0)
                if shared / 2 > least:
                    kept[j] = False
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
