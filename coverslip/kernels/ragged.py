"""Rows of unequal length that lie one behind the other: outlines of many objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def chosen_rows(
    offset: npt.NDArray[np.int64], rows: npt.NDArray[np.integer[Any]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Offsets int64 [len(rows) + 1] of `rows` alone, in that order, and where their items lie.

    offset   int64 [M + 1]: row i is items[offset[i] : offset[i + 1]]
    """
    lengths = np.diff(offset)[rows]
    chosen = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    within = np.arange(chosen[-1]) - np.repeat(chosen[:-1], lengths)
    return chosen, np.repeat(offset[:-1][rows], lengths) + within
