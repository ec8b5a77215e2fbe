"""Label kernels on the CPU. Loops over pixels; compiled once, cached, without the GIL."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.kernels.compiled import compiled

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]


def connected_components(mask: npt.NDArray[np.bool_]) -> Labels:
    """See `coverslip.kernels.labels.connected_components`."""
    return _components(np.ascontiguousarray(mask, np.bool_))


def distance_transform(mask: npt.NDArray[np.bool_], limit: float) -> Floats:
    """See `coverslip.kernels.labels.distance_transform`."""
    return _distances(np.ascontiguousarray(mask, np.bool_), limit)


def separable_filter(
    image: Floats, down: npt.NDArray[np.float64], across: npt.NDArray[np.float64]
) -> Floats:
    """See `coverslip.kernels.labels.separable_filter`."""
    image = np.ascontiguousarray(image, np.float32)
    return _convolved(image, down.astype(np.float32), across.astype(np.float32))


def local_threshold(
    image: Floats, radius: int, level: Floats, means: tuple[float, float], prior: float
) -> Floats:
    """See `coverslip.kernels.labels.local_threshold`."""
    image = np.ascontiguousarray(image, np.float32)
    level = np.ascontiguousarray(level, np.float32)
    return _midpoints(image, radius, level, means[0], means[1], prior)


def local_maxima(height: Floats, mask: npt.NDArray[np.bool_], radius: float) -> Labels:
    """See `coverslip.kernels.labels.local_maxima`."""
    reach = int(radius)
    v, u = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    near = (u * u + v * v <= radius * radius) & ((u != 0) | (v != 0))
    order = np.argsort((u * u + v * v)[near], kind="stable")  # most are ruled out by a neighbour
    steps = np.stack([v[near], u[near]], axis=1)[order]
    height = np.ascontiguousarray(height, np.float32)
    return _peaks(height, np.ascontiguousarray(mask, np.bool_), steps)


def seeded_watershed(height: Floats, seeds: Labels, mask: npt.NDArray[np.bool_]) -> Labels:
    """See `coverslip.kernels.labels.seeded_watershed`."""
    return _flood(
        np.ascontiguousarray(height, np.float32),
        np.ascontiguousarray(seeds, np.int32),
        np.ascontiguousarray(mask, np.bool_),
    )


def label_outlines(
    labels: Labels,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """See `coverslip.kernels.labels.label_outlines`."""
    labels = np.ascontiguousarray(labels, np.int32)
    return _outlines(labels, int(labels.max(initial=0)))


def label_sums(labels: Labels, image: Floats) -> npt.NDArray[np.float64]:
    """[largest label + 1, 11]: count, sums of x, y, xx, yy, xy and image, box x0, y0, x1, y1."""
    return _sums(
        np.ascontiguousarray(labels, np.int32),
        np.ascontiguousarray(image, np.float32),
        int(labels.max(initial=0)),
    )


def label_channel_sums(labels: Labels, image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[largest label + 1, C + 1]: sums of every channel, and the number of pixels."""
    labels, image = np.ascontiguousarray(labels, np.int32), np.ascontiguousarray(image)
    return _channel_sums(labels, image, int(labels.max(initial=0)))


@compiled
def _root(parent: Labels, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@compiled
def _components(mask: npt.NDArray[np.bool_]) -> Labels:
    rows, columns = mask.shape
    out = np.zeros((rows, columns), np.int32)
    parent = np.zeros(rows * columns // 2 + 2, np.int32)  # no more starts than on a chessboard
    used = 0
    for v in range(rows):
        for u in range(columns):
            if not mask[v, u]:
                continue
            above = out[v - 1, u] if v > 0 else 0
            left = out[v, u - 1] if u > 0 else 0
            if above == 0 and left == 0:
                used += 1
                parent[used] = used
                out[v, u] = used
            elif above == 0 or left == 0 or above == left:
                out[v, u] = max(above, left)
            else:
                a, b = _root(parent, above), _root(parent, left)
                parent[max(a, b)] = min(a, b)
                out[v, u] = min(a, b)
    number = 0
    final = np.zeros(used + 1, np.int32)
    for i in range(1, used + 1):
        root = _root(parent, i)
        if root == i:
            number += 1
            final[i] = number
        else:
            final[i] = final[root]  # roots are the smallest of their set: already numbered
    for v in range(rows):
        for u in range(columns):
            out[v, u] = final[out[v, u]]
    return out


@compiled
def _distances(mask: npt.NDArray[np.bool_], limit: float) -> Floats:
    """Distances along columns, then along each row the least of all within the limit.

    For limits of some ten px that is faster than the lower envelope of parabolas (Meijster et
    al. 2000), which takes the same time for any limit: the inner loop has no branches.
    """
    rows, columns = mask.shape
    far = int(np.ceil(limit)) + 1  # what is further away than the limit need not be known
    along = np.empty((rows, columns), np.int32)
    for v in range(rows):
        for u in range(columns):
            before = along[v - 1, u] if v > 0 else far
            along[v, u] = min(before + 1, far) if mask[v, u] else 0
    for v in range(rows - 2, -1, -1):
        for u in range(columns):
            along[v, u] = min(along[v, u], along[v + 1, u] + 1)
    out = np.empty((rows, columns), np.float32)
    reach = min(far, columns)
    line = np.full(columns + 2 * reach, far * far, np.int32)
    least = np.empty(columns, np.int32)
    for v in range(rows):
        for u in range(columns):
            line[reach + u] = along[v, u] * along[v, u]
            least[u] = line[reach + u]
        for step in range(1, reach):
            square = np.int32(step * step)
            before, after = line[reach - step :], line[reach + step :]
            for u in range(columns):
                least[u] = min(least[u], min(before[u], after[u]) + square)
        for u in range(columns):
            out[v, u] = min(np.sqrt(np.float32(least[u])), np.float32(limit))
    return out


@compiled
def _convolved(image: Floats, down: Floats, across: Floats) -> Floats:
    """Rows are padded by their end values; sums run in one fixed order for every pixel."""
    rows, columns = image.shape
    reach = len(down) // 2
    out = np.empty((rows, columns), np.float32)
    line = np.empty(columns + 2 * reach, np.float32)
    for v in range(rows):
        middle = line[reach : reach + columns]
        middle[:] = 0
        for k in range(len(down)):
            source = image[min(max(v + k - reach, 0), rows - 1)]
            weight = down[k]
            for u in range(columns):
                middle[u] += weight * source[u]
        line[:reach] = line[reach]
        line[reach + columns :] = line[reach + columns - 1]
        target = out[v]
        target[:] = 0
        for k in range(len(across)):
            weight = across[k]
            shifted = line[k : k + columns]
            for u in range(columns):
                target[u] += weight * shifted[u]
    return out


@compiled
def _midpoints(
    image: Floats, radius: int, level: Floats, low: float, high: float, prior: float
) -> Floats:
    """Sums are of whole numbers (1/4096), so running sums are exact wherever the image begins."""
    rows, columns = image.shape
    out = np.empty((rows, columns), np.float32)
    count = np.zeros(columns, np.int64)
    above = np.zeros(columns, np.int64)
    total = np.zeros(columns, np.int64)
    for v in range(-radius, rows):
        for sign in (1, -1):
            row = v + radius if sign == 1 else v - radius - 1
            if 0 <= row < rows:
                for u in range(columns):
                    value = int(np.rint(image[row, u] * 4096)) * sign
                    total[u] += value
                    if image[row, u] > level[row, u]:
                        count[u] += sign
                        above[u] += value
        if v < 0:
            continue
        tall = min(v + radius, rows - 1) - max(v - radius, 0) + 1
        n, a, t = 0, 0, 0
        for u in range(-radius, columns):
            enter, leave = u + radius, u - radius - 1
            if enter < columns:
                n += count[enter]
                a += above[enter]
                t += total[enter]
            if leave >= 0:
                n -= count[leave]
                a -= above[leave]
                t -= total[leave]
            if u >= 0:
                size = tall * (min(u + radius, columns - 1) - max(u - radius, 0) + 1)
                share = n / size
                bright = (a / 4096 / size + prior * high) / (share + prior)
                dark = ((t - a) / 4096 / size + prior * low) / (1 - share + prior)
                out[v, u] = (bright + dark) / 2
    return out


@compiled
def _peaks(height: Floats, mask: npt.NDArray[np.bool_], steps: npt.NDArray[np.int64]) -> Labels:
    rows, columns = height.shape
    out = np.zeros((rows, columns), np.int32)
    number = 0
    for v in range(rows):
        for u in range(columns):
            if not mask[v, u]:
                continue
            highest = True
            for k in range(len(steps)):
                dv, du = steps[k]
                y, x = v + dv, u + du
                if 0 <= y < rows and 0 <= x < columns:
                    other = height[y, x]
                    earlier = dv < 0 or (dv == 0 and du < 0)
                    if other > height[v, u] or (earlier and other == height[v, u]):
                        highest = False
                        break
            if highest:
                number += 1
                out[v, u] = number
    return out


@compiled
def _push(
    keys: Floats, ages: npt.NDArray[np.int64], places: npt.NDArray[np.int64], size: int,
    key: float, age: int, place: int,
) -> None:  # fmt: skip
    """Add to a binary heap ordered by (key, age)."""
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if keys[parent] < key or (keys[parent] == key and ages[parent] < age):
            break
        keys[i], ages[i], places[i] = keys[parent], ages[parent], places[parent]
        i = parent
    keys[i], ages[i], places[i] = key, age, place


@compiled
def _pop(
    keys: Floats, ages: npt.NDArray[np.int64], places: npt.NDArray[np.int64], size: int
) -> None:
    """Remove the heap's first entry; `size` counts it still."""
    last = size - 1
    key, age, place = keys[last], ages[last], places[last]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= last:
            break
        other = child + 1
        if other < last and (
            keys[other] < keys[child] or (keys[other] == keys[child] and ages[other] < ages[child])
        ):
            child = other
        if key < keys[child] or (key == keys[child] and age < ages[child]):
            break
        keys[i], ages[i], places[i] = keys[child], ages[child], places[child]
        i = child
    keys[i], ages[i], places[i] = key, age, place


@compiled
def _flood(height: Floats, seeds: Labels, mask: npt.NDArray[np.bool_]) -> Labels:
    rows, columns = height.shape
    out = np.zeros((rows, columns), np.int32)
    most = np.count_nonzero(mask) + 1
    keys = np.empty(most, np.float32)
    ages = np.empty(most, np.int64)
    places = np.empty(most, np.int64)
    size, age = 0, 0
    for v in range(rows):
        for u in range(columns):
            if seeds[v, u] > 0 and mask[v, u]:
                out[v, u] = seeds[v, u]
                _push(keys, ages, places, size, height[v, u], age, v * columns + u)
                size += 1
                age += 1
    while size > 0:
        place = places[0]
        level = keys[0]
        _pop(keys, ages, places, size)
        size -= 1
        v, u = place // columns, place % columns
        for k in range(4):
            y = v + (1 if k == 3 else (-1 if k == 0 else 0))
            x = u + (1 if k == 2 else (-1 if k == 1 else 0))
            if 0 <= y < rows and 0 <= x < columns and mask[y, x] and out[y, x] == 0:
                out[y, x] = out[v, u]
                _push(keys, ages, places, size, max(height[y, x], level), age, y * columns + x)
                size += 1
                age += 1
    return out


@compiled
def _is(labels: Labels, v: int, u: int, label: int) -> bool:
    return bool(0 <= v < labels.shape[0] and 0 <= u < labels.shape[1] and labels[v, u] == label)


@compiled
def _outlines(
    labels: Labels, largest: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    rows, columns = labels.shape
    first = np.full(largest + 1, -1, np.int64)
    edges = 0
    for v in range(rows):
        for u in range(columns):
            label = labels[v, u]
            if label > 0:
                if first[label] < 0:
                    first[label] = v * columns + u
                edges += (
                    (not _is(labels, v - 1, u, label)) + (not _is(labels, v + 1, u, label))
                    + (not _is(labels, v, u - 1, label)) + (not _is(labels, v, u + 1, label))
                )  # fmt: skip
    count = np.count_nonzero(first >= 0)
    names = np.empty(count, np.int32)
    offset = np.zeros(count + 1, np.int64)
    vertex = np.empty((edges, 2), np.float64)
    filled, number = 0, 0
    for label in range(1, largest + 1):
        if first[label] < 0:
            continue
        filled = _trace(
            labels, label, first[label] // columns, first[label] % columns, vertex, filled
        )
        names[number] = label
        number += 1
        offset[number] = filled
    return names, offset, vertex[:filled].copy()


@compiled
def _trace(
    labels: Labels, label: int, v0: int, u0: int, vertex: npt.NDArray[np.float64], filled: int
) -> int:
    """Walk the outer edges clockwise, the label on the right, from the top edge of (v0, u0).

    side 0: top edge, walking right; 1: right edge, down; 2: bottom, left; 3: left edge, up.
    """
    v, u, side = v0, u0, 0
    while True:
        vertex[filled, 0] = u + (0.5 if side == 0 or side == 2 else (1.0 if side == 1 else 0.0))
        vertex[filled, 1] = v + (0.5 if side == 1 or side == 3 else (1.0 if side == 2 else 0.0))
        filled += 1
        ahead_v = v + (1 if side == 1 else (-1 if side == 3 else 0))
        ahead_u = u + (1 if side == 0 else (-1 if side == 2 else 0))
        left_v = ahead_v + (1 if side == 2 else (-1 if side == 0 else 0))
        left_u = ahead_u + (1 if side == 1 else (-1 if side == 3 else 0))
        if not _is(labels, ahead_v, ahead_u, label):
            side = (side + 1) % 4  # the corner is convex: turn right around this pixel
        elif _is(labels, left_v, left_u, label):
            v, u, side = left_v, left_u, (side + 3) % 4  # concave: turn left
        else:
            v, u = ahead_v, ahead_u
        if v == v0 and u == u0 and side == 0:
            return filled


@compiled
def _sums(labels: Labels, image: Floats, largest: int) -> npt.NDArray[np.float64]:
    sums = np.zeros((largest + 1, 11), np.float64)
    for v in range(labels.shape[0]):
        for u in range(labels.shape[1]):
            label = labels[v, u]
            if label <= 0:
                continue
            row = sums[label]
            if row[0] == 0:
                row[7], row[8] = u, v
            row[0] += 1
            row[1] += u
            row[2] += v
            row[3] += u * u
            row[4] += v * v
            row[5] += u * v
            row[6] += image[v, u]
            row[7] = min(row[7], u)
            row[9] = max(row[9], u)
            row[10] = v
    return sums


@compiled
def _channel_sums(labels: Labels, image: npt.NDArray[Any], largest: int) -> npt.NDArray[np.float64]:
    channels = image.shape[2]
    sums = np.zeros((largest + 1, channels + 1), np.float64)
    for v in range(labels.shape[0]):
        for u in range(labels.shape[1]):
            row = sums[labels[v, u]]
            for c in range(channels):
                row[c] += image[v, u, c]
            row[channels] += 1
    return sums
