"""Stain kernels on the CPU: logarithms, matrices and exponentials all become tables.

A density transform is a sum over three channels, so what a grey level adds to all three results is
one table entry: three 21-bit numbers packed into 64 bits. Three additions of such words make a
pixel's three results, which then index tables of finished bytes. Nothing is rounded but
the entries: results differ from the definition's by at most one grey level, where that is within a
tenth of a level of being rounded the other way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from coverslip.kernels._stain_numpy import (
    RGB_TO_XYZ,
    WHITE,
    cube_root,
    density,
    gamma,
    lab_step,
    linear_light,
)
from coverslip.kernels.compiled import compiled

RGB = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]

LANE = 21
"""Bits of each of the three numbers in a word."""
FINE = 11
"""Table entries per unit of density: 2 ** FINE."""
STEPS = 1 << 14
"""Table entries over 0 to 1 of linear light."""


def _tables(matrix: Matrix, background: float | Sequence[float]) -> npt.NDArray[np.float32]:
    """(3 stains, 3 channels, 256): what a grey level adds to which stain."""
    inverse = np.linalg.inv(matrix)  # (channel, stain)
    return np.asarray(inverse.T[:, :, None] * _densities(background), np.float32)


def _densities(background: float | Sequence[float] | Matrix) -> Matrix:
    """(3 channels, 256): the density of every grey level."""
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    return density(grey, background).T


def separate_stains(
    rgb: RGB, matrix: Matrix, background: float | Sequence[float]
) -> npt.NDArray[np.float32]:
    """See `coverslip.kernels.stain.separate_stains`."""
    out = np.empty(rgb.shape, np.float32)
    flat = np.ascontiguousarray(rgb).reshape(-1, 3)
    _separate(flat, _tables(matrix, background), out.reshape(-1, 3))
    return out


def stain_concentration(
    rgb: RGB, matrix: Matrix, stain: int, background: float | Sequence[float]
) -> npt.NDArray[np.float32]:
    """See `coverslip.kernels.stain.stain_concentration`."""
    out = np.empty(rgb.shape[:-1], np.float32)
    flat = np.ascontiguousarray(rgb).reshape(-1, 3)
    _concentration(flat, _tables(matrix, background)[stain], out.reshape(-1))
    return out


def transform_density(
    rgb: RGB,
    matrix: Matrix,
    offset: Matrix,
    background: Matrix,
    target_background: Matrix,
    threads: int,
) -> RGB:
    """See `coverslip.kernels.stain.transform_density`."""
    values = (matrix, offset, background, target_background)
    words, shifts, levels, starts = _density_tables(*(tuple(v.ravel().tolist()) for v in values))
    return _in_pieces(rgb, threads, lambda a, b: _by_tables(a, words, shifts, levels, starts, b))


def transform_lab(rgb: RGB, scale: Matrix, shift: Matrix, threads: int) -> RGB:
    """See `coverslip.kernels.stain.transform_lab`."""
    words, roots, levels = _light_tables()
    step, added = lab_step(scale, shift)
    light = np.asarray(np.linalg.inv(RGB_TO_XYZ) * WHITE, np.float32)
    return _in_pieces(
        rgb, threads, lambda a, b: _by_light(a, words, roots, step, added, light, levels, b)
    )


def _in_pieces(rgb: RGB, threads: int, work: Callable[[RGB, RGB], None]) -> RGB:
    """`work` over pieces of the flattened pixels, in threads; a new array of `rgb`'s shape."""
    source = np.ascontiguousarray(rgb).reshape(-1, 3)
    out = np.empty_like(source)
    if threads <= 1 or len(source) < 1 << 16:
        work(source, out)
        return out.reshape(rgb.shape)
    pieces = zip(np.array_split(source, threads), np.array_split(out, threads), strict=True)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda piece: work(*piece), pieces))
    return out.reshape(rgb.shape)


@lru_cache(maxsize=64)
def _density_tables(
    matrix: tuple[float, ...],
    offset: tuple[float, ...],
    background: tuple[float, ...],
    target_background: tuple[float, ...],
) -> tuple[Words, npt.NDArray[np.int64], RGB, npt.NDArray[np.int64]]:
    """words uint64 (3, 256), shifts int64 (3,), levels uint8 (all three tables), starts (3,)."""
    # (input channel, grey level, output channel)
    parts = np.maximum(_densities(background), 0)[:, :, None] * np.reshape(matrix, (3, 1, 3))
    words = np.zeros((3, 256), np.uint64)
    shifts, levels = [], []
    for j in range(3):
        least = parts[:, :, j].min(axis=1, keepdims=True)
        raised = parts[:, :, j] - least  # (3, 256), from 0 up: lanes must not borrow
        bits = min(18, int(np.log2(((1 << LANE) - 8) / max(float(raised.max(axis=1).sum()), 1e-6))))
        whole = np.rint(raised * 2.0**bits).astype(np.uint64)
        words |= whole << np.uint64(LANE * j)
        shift = max(0, bits - FINE)
        entries = (int(whole.max(axis=1).sum()) >> shift) + 1
        middle = (np.arange(entries) * 2.0**shift + (2.0**shift - 1) / 2) / 2.0**bits
        found = middle + least.sum() + offset[j]
        level = (target_background[j] + 1) * np.exp(-found) - 1
        levels.append(np.clip(np.rint(level), 0, 255).astype(np.uint8))
        shifts.append(shift)
    starts = np.cumsum([0, *map(len, levels[:2])])
    return words, np.array(shifts), np.concatenate(levels), starts


@lru_cache(maxsize=1)
def _light_tables() -> tuple[Words, npt.NDArray[np.float32], RGB]:
    """Words that add up to XYZ over white, cube roots of that, and sRGB bytes of linear light."""
    linear = linear_light(np.arange(256))
    share = RGB_TO_XYZ / WHITE[:, None]  # (xyz, rgb)
    words = np.zeros((3, 256), np.uint64)
    fine = 1 << (LANE - 2)
    for j in range(3):
        whole = np.rint(share[j][:, None] * linear * fine).astype(np.uint64)
        words |= whole << np.uint64(LANE * j)
    at = np.arange(2 * fine >> 4) * 16 / fine + 7.5 / fine
    roots = np.asarray(cube_root(at), np.float32)
    return words, roots, np.rint(255 * gamma(np.arange(STEPS + 1) / STEPS)).astype(np.uint8)


@compiled
def _separate(rgb: RGB, tables: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
    for i in range(rgb.shape[0]):
        r, g, b = rgb[i, 0], rgb[i, 1], rgb[i, 2]
        for s in range(3):
            out[i, s] = tables[s, 0, r] + tables[s, 1, g] + tables[s, 2, b]


@compiled
def _concentration(rgb: RGB, table: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
    for i in range(rgb.shape[0]):
        out[i] = table[0, rgb[i, 0]] + table[1, rgb[i, 1]] + table[2, rgb[i, 2]]


@compiled
def _by_tables(
    rgb: RGB,
    words: Words,
    shifts: npt.NDArray[np.int64],
    levels: RGB,
    starts: npt.NDArray[np.int64],
    out: RGB,
) -> None:
    lane = np.uint64((1 << 21) - 1)
    red, green, blue = words[0], words[1], words[2]
    s0, s1, s2 = np.uint64(shifts[0]), np.uint64(shifts[1] + 21), np.uint64(shifts[2] + 42)
    m0, m1 = lane >> np.uint64(shifts[0]), lane >> np.uint64(shifts[1])
    first, second, third = levels[: starts[1]], levels[starts[1] : starts[2]], levels[starts[2] :]
    for i in range(rgb.shape[0]):
        word = red[rgb[i, 0]] + green[rgb[i, 1]] + blue[rgb[i, 2]]
        out[i, 0] = first[(word >> s0) & m0]
        out[i, 1] = second[(word >> s1) & m1]
        out[i, 2] = third[word >> s2]


@compiled
def _by_light(
    rgb: RGB,
    words: Words,
    roots: npt.NDArray[np.float32],
    step: npt.NDArray[np.float32],
    added: npt.NDArray[np.float32],
    light: npt.NDArray[np.float32],
    levels: RGB,
    out: RGB,
) -> None:
    lane = np.uint64((1 << 17) - 1)
    knee, slope = np.float32(6 / 29), np.float32(3 * (6 / 29) ** 2)
    bend, steps = np.float32(4 / 29), np.float32(len(levels) - 1)
    zero, half = np.float32(0), np.float32(0.5)
    xyz = np.empty(3, np.float32)
    for i in range(rgb.shape[0]):
        word = words[0, rgb[i, 0]] + words[1, rgb[i, 1]] + words[2, rgb[i, 2]]
        x = roots[(word >> np.uint64(4)) & lane]
        y = roots[(word >> np.uint64(25)) & lane]
        z = roots[(word >> np.uint64(46)) & lane]
        for j in range(3):
            f = step[j, 0] * x + step[j, 1] * y + step[j, 2] * z + added[j]
            xyz[j] = f * f * f if f > knee else slope * (f - bend)
        for j in range(3):
            level = light[j, 0] * xyz[0] + light[j, 1] * xyz[1] + light[j, 2] * xyz[2]
            out[i, j] = levels[int(min(max(level * steps, zero), steps) + half)]
