"""Bags read ahead of their use, so that an epoch holds a few of them only."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.errors import InvalidConfig
from coverslip.mil.bags import Bags, Floats, Rows

THREADS = 2
AHEAD = 4
"""Bags read or being read beside the one in use."""


def stream(
    bags: Bags,
    wanted: Iterable[tuple[int, Rows | None]],
    *,
    threads: int = THREADS,
    ahead: int = AHEAD,
) -> Generator[Floats]:
    """Embeddings [n, dim] of each (bag, rows or None for all), in order.

    Raises what reading does where its turn comes; InvalidConfig for a bag that is not [n, dim].
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="bags") as pool:
        coming: deque[Future[Floats]] = deque()
        try:
            for index, rows in wanted:
                coming.append(pool.submit(_read, bags, index, rows))
                if len(coming) > ahead:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


def drawn_rows(count: int, most: int, seed: Sequence[int]) -> Rows | None:
    """Rising rows of at most `most` tiles of a bag of `count`, drawn by `seed`; None for all, which
    `most` 0 means."""
    if not 0 < most < count:
        return None
    drawn = np.random.default_rng(list(seed)).choice(count, most, replace=False, shuffle=False)
    return np.sort(drawn)


def require_tiles(bags: Bags, indices: npt.NDArray[np.int64]) -> None:
    """Raises InvalidConfig, naming the first, where bags have no tile: no model has an answer."""
    if empty := [bags.names[int(i)] for i in indices if bags.count(int(i)) < 1]:
        raise InvalidConfig(
            f"{len(empty)} bags have no tiles, {empty[0]!r} the first of them\n"
            "  leave them out, or look for their tissue"
        )


def mean_embeddings(
    bags: Bags, indices: npt.NDArray[np.int64], *, max_tiles: int = 0, seed: int = 0
) -> npt.NDArray[np.float64]:
    """float64 [b, dim]: the mean over each bag's tiles.

    max_tiles   of a bag; which ones is drawn by `seed` and the bag's index. 0 for all
    """
    require_tiles(bags, indices)
    wanted = ((int(i), drawn_rows(bags.count(int(i)), max_tiles, (seed, int(i)))) for i in indices)
    found = np.empty((len(indices), bags.dim))
    for row, tiles in enumerate(stream(bags, wanted)):
        found[row] = tiles.mean(axis=0, dtype=np.float64)
    return found


def _read(bags: Bags, index: int, rows: Rows | None) -> npt.NDArray[np.floating[Any]]:
    tiles = bags.read(index, rows)
    if tiles.ndim != 2 or tiles.shape[1] != bags.dim or not len(tiles):
        raise InvalidConfig(
            f"bag {bags.names[index]!r}: embeddings [n, {bags.dim}] are wanted, got "
            f"{list(tiles.shape)}"
        )
    return tiles
