"""The definitions of the label kernels: short and slow."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]


def connected_components(mask: npt.NDArray[np.bool_]) -> Labels:
    """See `coverslip.kernels.labels.connected_components`."""
    labels, _ = ndimage.label(mask)
    return np.asarray(labels, np.int32)


def distance_transform(mask: npt.NDArray[np.bool_], limit: float) -> Floats:
    """See `coverslip.kernels.labels.distance_transform`."""
    if mask.all():
        return np.full(mask.shape, limit, np.float32)
    return np.asarray(np.minimum(ndimage.distance_transform_edt(mask), limit), np.float32)


def separable_filter(
    image: Floats, down: npt.NDArray[np.float64], across: npt.NDArray[np.float64]
) -> Floats:
    """See `coverslip.kernels.labels.separable_filter`."""
    exact = image.astype(np.float64)
    for axis, weights in enumerate((down, across)):
        exact = ndimage.correlate1d(exact, weights, axis, mode="nearest")
    return np.asarray(exact, np.float32)


def local_threshold(
    image: Floats, radius: int, level: Floats, means: tuple[float, float], prior: float
) -> Floats:
    """See `coverslip.kernels.labels.local_threshold`; 1/4096 is the grain of its sums."""
    low, high = means
    value, above = np.rint(image.astype(np.float64) * 4096) / 4096, image > level
    out = np.empty(image.shape, np.float32)
    for v, u in np.ndindex(image.shape):
        near = (
            slice(max(v - radius, 0), v + radius + 1), slice(max(u - radius, 0), u + radius + 1)
        )  # fmt: skip
        share = above[near].mean()
        bright = ((value * above)[near].mean() + prior * high) / (share + prior)
        dark = ((value * ~above)[near].mean() + prior * low) / (1 - share + prior)
        out[v, u] = (bright + dark) / 2
    return out


def local_maxima(height: Floats, mask: npt.NDArray[np.bool_], radius: float) -> Labels:
    """See `coverslip.kernels.labels.local_maxima`."""
    reach = int(radius)
    rows, columns = height.shape
    out, number = np.zeros(height.shape, np.int32), 0
    for v, u in np.argwhere(mask).tolist():
        rivals = (
            (height[y, x] > height[v, u]) or (height[y, x] == height[v, u] and (y, x) < (v, u))
            for y in range(max(v - reach, 0), min(v + reach + 1, rows))
            for x in range(max(u - reach, 0), min(u + reach + 1, columns))
            if (y - v) ** 2 + (x - u) ** 2 <= radius**2
        )  # fmt: skip
        if not any(rivals):
            number += 1
            out[v, u] = number
    return out


def seeded_watershed(
    height: npt.NDArray[np.float32], seeds: Labels, mask: npt.NDArray[np.bool_]
) -> Labels:
    """See `coverslip.kernels.labels.seeded_watershed`."""
    rows, columns = height.shape
    out = np.where(mask, seeds, 0).astype(np.int32)
    heap = [(float(height[v, u]), age, v, u) for age, (v, u) in enumerate(np.argwhere(out))]
    heapq.heapify(heap)
    age = len(heap)
    while heap:
        level, _, v, u = heapq.heappop(heap)
        for y, x in ((v - 1, u), (v, u - 1), (v, u + 1), (v + 1, u)):
            if 0 <= y < rows and 0 <= x < columns and mask[y, x] and not out[y, x]:
                out[y, x] = out[v, u]
                heapq.heappush(heap, (max(float(height[y, x]), level), age, y, x))
                age += 1
    return out


def label_outlines(
    labels: Labels,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """See `coverslip.kernels.labels.label_outlines`; edges are collected, then chained."""
    names, rings = [], []
    for label in np.unique(labels[labels > 0]).tolist():
        inside = np.pad(labels == label, 1)
        v, u = (int(i) - 1 for i in np.argwhere(inside)[0])
        ring, side, start = [], 0, (v, u)
        steps = ((0, 1), (1, 0), (0, -1), (-1, 0))
        middles = ((0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5))
        while True:
            ring.append((u + middles[side][0], v + middles[side][1]))
            ahead = (v + steps[side][0], u + steps[side][1])
            left = (ahead[0] + steps[side - 1][0], ahead[1] + steps[side - 1][1])
            if not inside[ahead[0] + 1, ahead[1] + 1]:
                side = (side + 1) % 4
            elif inside[left[0] + 1, left[1] + 1]:
                (v, u), side = left, (side + 3) % 4
            else:
                v, u = ahead
            if (v, u) == start and side == 0:
                break
        names.append(label)
        rings.append(ring)
    lengths = np.cumsum([0, *map(len, rings)])
    vertex = np.array([point for ring in rings for point in ring], np.float64).reshape(-1, 2)
    return np.array(names, np.int32), lengths.astype(np.int64), vertex


def label_channel_sums(labels: Labels, image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[largest label + 1, C + 1]: sums of every channel, and the number of pixels."""
    count = int(labels.max(initial=0)) + 1
    flat = labels.ravel()
    channels = [np.bincount(flat, image[..., c].ravel(), count) for c in range(image.shape[2])]
    return np.stack([*channels, np.bincount(flat, minlength=count)], axis=1).astype(np.float64)


def label_sums(labels: Labels, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """[largest label + 1, 11]: count, sums of x, y, xx, yy, xy and image, box x0, y0, x1, y1."""
    sums = np.zeros((int(labels.max(initial=0)) + 1, 11))
    for label in np.unique(labels[labels > 0]).tolist():
        v, u = np.nonzero(labels == label)
        values = image[v, u].astype(np.float64)
        sums[label] = (
            len(u), u.sum(), v.sum(), (u * u).sum(), (v * v).sum(), (u * v).sum(), values.sum(),
            u.min(), v.min(), u.max(), v.max(),
        )  # fmt: skip
    return sums
