"""What a stream decodes, when, and how long it keeps it; planned before the first byte is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coverslip.tiling.assembly import TilePlane
from coverslip.tiling.windows import Windows

FEW = 16
"""Native tiles; a window of more is not left to one thread."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Batches in the order they are made, and the native tiles each needs.

    batches   of which request, and its window numbers
    spans     per request [N, 4]: the tiles under each window (see `TilePlane.spans`)
    first     [tiles] the batch that meets a tile first; the number of batches for none
    alone     [tiles] the tile serves one window only: it is decoded when that window is
              assembled, while the processor still has it at hand, and never kept
    decode    per batch: the other tiles it meets first
    drop      per batch: the other tiles it is the last to use
    """

    batches: list[tuple[int, npt.NDArray[np.int64]]]
    spans: list[npt.NDArray[np.int64]]
    first: npt.NDArray[np.int64]
    alone: npt.NDArray[np.bool_]
    decode: list[npt.NDArray[np.int64]]
    drop: list[npt.NDArray[np.int64]]

    @classmethod
    def of(
        cls, plane: TilePlane, requests: Sequence[Windows], sizes: Sequence[int], workers: int
    ) -> Schedule:
        """The schedule of all requests, `sizes` windows a batch, for so many workers."""
        spans = [plane.spans(request) for request in requests]
        batches = _batches(spans, sizes)
        count = plane.columns * plane.rows
        first = np.full(count, len(batches), np.int64)
        last = np.full(count, -1, np.int64)
        uses = np.zeros(count, np.int64)
        for number, (request, index) in enumerate(batches):
            window_spans = spans[request][index]
            keys = plane.keys(window_spans)
            first[keys] = np.minimum(first[keys], number)
            last[keys] = number
            np.add.at(uses, keys, 1)
            if sizes[request] < workers or _largest(window_spans) > FEW:
                uses[keys] += 1  # too few windows to keep all workers busy: decode ahead
        alone = uses == 1
        decode = _by_batch(np.where(alone, len(batches), first), len(batches))
        drop = _by_batch(np.where(alone, -1, last), len(batches))
        return cls(batches, spans, first, alone, decode, drop)


def _batches(
    spans: Sequence[npt.NDArray[np.int64]], sizes: Sequence[int]
) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Every request's windows in runs of its size, ordered by the last tile row a run needs."""
    runs = [
        (int(span[index[-1], 3]), request, index)
        for request, (span, size) in enumerate(zip(spans, sizes, strict=True))
        for index in np.split(np.arange(len(span)), range(size, len(span), size))
        if len(index)
    ]
    runs.sort(key=lambda run: run[0])  # stable: a request's own order is kept
    return [(request, index) for _, request, index in runs]


def _largest(spans: npt.NDArray[np.int64]) -> int:
    """Tiles under the window that has most."""
    return int(((spans[:, 2] - spans[:, 0]) * (spans[:, 3] - spans[:, 1])).max(initial=0))


def _by_batch(number: npt.NDArray[np.int64], batches: int) -> list[npt.NDArray[np.int64]]:
    """For each batch, the tiles whose `number` it is."""
    order = np.argsort(number, kind="stable")
    edges = np.searchsorted(number[order], np.arange(batches + 1))
    return [order[edges[i] : edges[i + 1]] for i in range(batches)]
