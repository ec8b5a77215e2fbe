"""Area-weighted resampling on the CPU: each output row is first one row of weighted image rows,
then weighted along itself. Without the GIL and single-threaded: the stream runs many at once.

No fast-math: every sum has one order, so the result is the same on every processor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from coverslip.kernels import _resample_numpy
from coverslip.kernels.compiled import compiled

HALF = np.float32(_resample_numpy.HALF)


def area_resample(
    image: npt.NDArray[np.uint8],
    origin: tuple[float, float],
    scale: tuple[float, float],
    out: npt.NDArray[np.uint8],
) -> None:
    """See `coverslip.kernels.resample.area_resample`; within one grey level of the definition."""
    if not out.size:
        return
    flat = out if out.flags.c_contiguous else np.empty(out.shape, np.uint8)
    _area_resample(
        np.ascontiguousarray(image).reshape(image.shape[0], 3 * image.shape[1]),
        float(origin[0]),
        float(origin[1]),
        float(scale[0]),
        float(scale[1]),
        flat.reshape(out.shape[0], 3 * out.shape[1]),
    )
    if flat is not out:
        out[...] = flat


@compiled
def _area_resample(
    image: npt.NDArray[np.uint8],  # (H, W * 3)
    x: float,
    y: float,
    sx: float,
    sy: float,
    out: npt.NDArray[np.uint8],  # (h, w * 3)
) -> None:
    length = image.shape[1] // 3
    if (
        sx == 2.0 and sy == 2.0 and x >= 0.0 and y >= 0.0 and x == np.floor(x) and y == np.floor(y)
        and x + 2 * (out.shape[1] // 3) <= length and y + 2 * out.shape[0] <= image.shape[0]
    ):  # fmt: skip
        _halved(image[int(y) :, 3 * int(x) :], out)
        return
    across = _taps(length, x, sx, out.shape[1] // 3)
    down = _taps(image.shape[0], y, sy, out.shape[0])
    if 0.9 < sx < 1.1 and across[1].shape[0] <= 3:
        _nearly_alike(image, across, down, out)
    else:
        _any_scale(image, across, down, out)


@compiled
def _halved(image: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
    """Means of two by two pixels, in whole numbers: what pyramids are made of."""
    columns = out.shape[1] // 3
    pair = np.empty(2 * out.shape[1], np.uint16)
    for v in range(out.shape[0]):
        upper, lower, line = image[2 * v], image[2 * v + 1], out[v]
        for i in range(2 * out.shape[1]):
            pair[i] = np.uint16(upper[i]) + np.uint16(lower[i])
        for u in range(columns):
            for c in range(3):
                line[3 * u + c] = (pair[6 * u + c] + pair[6 * u + 3 + c] + np.uint16(2)) >> 2


@compiled
def _taps(
    length: int, start: float, step: float, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """first [count] image pixel under each output pixel; weights [most, count] of it and of those
    behind it; white [count] what the part outside the image adds."""
    first = np.empty(count, np.int64)
    most = 1
    for i in range(count):
        first[i] = min(max(int(np.floor(start + i * step)), 0), length)
        past = min(max(int(np.ceil(start + (i + 1) * step)), first[i]), length)
        most = max(most, past - first[i])
    weights = np.zeros((most, count), np.float32)
    white = np.zeros(count, np.float32)
    for i in range(count):
        low, high = start + i * step, start + (i + 1) * step
        inside = 0.0
        for k in range(min(most, length - first[i])):
            pixel = float(first[i] + k)
            share = (min(high, pixel + 1.0) - max(low, pixel)) / step
            if share > 0.0:
                weights[k, i] = share
                inside += share
        if inside < 1.0 - 1e-9:
            white[i] = 255.0 * (1.0 - inside)
    return first, weights, white


@compiled
def _weighted_rows(
    image: npt.NDArray[np.uint8],
    v: int,
    down: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]],
    row: npt.NDArray[np.float32],
) -> None:
    """Sum the image rows under output row `v` into the front of `row`."""
    first, weights, white = down
    top, rest, base = first[v], 0, white[v]
    if weights.shape[0] >= 2 and top + 1 < image.shape[0]:
        w0, w1, row0, row1 = weights[0, v], weights[1, v], image[top], image[top + 1]
        for i in range(image.shape[1]):
            row[i] = base + w0 * np.float32(row0[i]) + w1 * np.float32(row1[i])
        rest = 2
    else:
        for i in range(image.shape[1]):
            row[i] = base
    for k in range(rest, weights.shape[0]):
        w = weights[k, v]
        if w > 0.0:
            source = image[top + k]
            for i in range(image.shape[1]):
                row[i] += w * np.float32(source[i])


@compiled
def _any_scale(
    image: npt.NDArray[np.uint8],
    across: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]],
    down: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]],
    out: npt.NDArray[np.uint8],
) -> None:
    first, by_tap, white = across
    most = by_tap.shape[0]
    weights = by_tap.T.copy()
    row = np.zeros(image.shape[1] + 3 * most, np.float32)
    one, two, three = np.uintp(1), np.uintp(2), np.uintp(3)  # unsigned: no index wraps around
    for v in range(out.shape[0]):
        _weighted_rows(image, v, down, row)
        line = out[v]
        for u in range(len(first)):
            red = green = blue = white[u] + HALF
            source, target = np.uintp(3 * first[u]), np.uintp(3 * u)
            for k in range(most):
                w = weights[u, k]
                red += w * row[source]
                green += w * row[source + one]
                blue += w * row[source + two]
                source += three
            line[target] = np.uint8(np.int32(red))
            line[target + one] = np.uint8(np.int32(green))
            line[target + two] = np.uint8(np.int32(blue))


@compiled
def _nearly_alike(
    image: npt.NDArray[np.uint8],
    across: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]],
    down: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]],
    out: npt.NDArray[np.uint8],
) -> None:
    """For scales near 1, which most scanners' pixel sizes leave (0.2527 for "0.25").

    Over runs of output pixels the first image pixel moves in step, so that whole runs are sums of
    shifted rows, which vectorise: three times as fast as pixel by pixel.
    """
    first, by_tap, white = across
    count = len(first)
    weights = np.zeros((3, 3 * count), np.float32)  # one for each colour of each pixel
    base = np.empty(3 * count, np.float32)
    for i in range(3 * count):
        base[i] = white[i // 3] + HALF
        for k in range(by_tap.shape[0]):
            weights[k, i] = by_tap[k, i // 3]
    starts = np.empty(count + 1, np.int64)
    runs = 0
    for u in range(count):
        if u == 0 or first[u] != first[u - 1] + 1:
            starts[runs] = u
            runs += 1
    starts[runs] = count
    row = np.zeros(image.shape[1] + 9, np.float32)
    for v in range(out.shape[0]):
        _weighted_rows(image, v, down, row)
        for r in range(runs):
            a, b, s = 3 * starts[r], 3 * starts[r + 1], 3 * first[starts[r]]
            line, source, add = out[v, a:b], row[s : s + b - a + 6], base[a:b]
            w0, w1, w2 = weights[0, a:b], weights[1, a:b], weights[2, a:b]
            for i in range(b - a):
                total = add[i] + w0[i] * source[i] + w1[i] * source[i + 3] + w2[i] * source[i + 6]
                line[i] = np.uint8(np.int32(total))
