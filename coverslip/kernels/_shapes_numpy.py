"""The definition of outline simplification: recursive, ring by ring."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]


def kept_vertices(
    offset: npt.NDArray[np.int64], vertex: Points, tolerance: float
) -> npt.NDArray[np.bool_]:
    """bool [V]: which vertices of the rings Douglas & Peucker (1973) keep.

    A ring is cut into two lines at its first vertex and the one farthest from it.
    """
    kept = np.zeros(len(vertex), np.bool_)
    for start, end in zip(offset[:-1].tolist(), offset[1:].tolist(), strict=True):
        ring = np.append(vertex[start:end], vertex[start : start + 1], axis=0)
        far = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
        mine = np.zeros(len(ring), np.bool_)
        mine[[0, far]] = True
        _keep(ring, 0, far, tolerance, mine)
        _keep(ring, far, len(ring) - 1, tolerance, mine)
        kept[start:end] = mine[:-1]
    return kept


def _keep(line: Points, a: int, b: int, tolerance: float, kept: npt.NDArray[np.bool_]) -> None:
    if b - a < 2:
        return
    along, to = line[b] - line[a], line[a + 1 : b] - line[a]
    length = along @ along
    share = np.clip(to @ along / length, 0, 1) if length else np.zeros(len(to))
    away = ((to - share[:, None] * along) ** 2).sum(axis=1)
    middle = a + 1 + int(away.argmax())
    if away.max() > tolerance**2:
        kept[middle] = True
        _keep(line, a, middle, tolerance, kept)
        _keep(line, middle, b, tolerance, kept)
