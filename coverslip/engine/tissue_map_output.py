"""A tissue map from the pass: overlapping windows, of which each writes the core that it owns.

Windows stand on the lattice of the head's pixels that is anchored at the slide's corner, their
cores and their context multiples of the network's stride, and the context is as wide as pixels have
any influence: how the slide is cut into windows does not change the map.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coverslip.engine.class_colours import class_colours
from coverslip.engine.clock import Clock
from coverslip.engine.colour_sample import SAMPLE_PX, SAMPLE_WINDOWS, colour_sample, outward
from coverslip.engine.config import RunConfig
from coverslip.engine.outputs import Output
from coverslip.heads.instances import own_windows
from coverslip.tiling.store import StageWriter
from coverslip.tiling.stream import WindowBatch
from coverslip.tiling.tissue import Tissue
from coverslip.tiling.windows import Windows
from coverslip.wsi.slide import Slide

if TYPE_CHECKING:
    from coverslip.heads.tissue_map import TissueHead

OWN_PX = 512
"""Side of a window's core, px at the head's resolution."""
NO_CLASS = 255
"""Where there is no tissue."""
AHEAD = 2
"""Windows that wait for the network while others are read."""


def tissue_map_parameters(head: TissueHead, config: RunConfig) -> dict[str, Any]:
    """What decides the map, for the stage's hash."""
    return {
        "model": head.name,
        "settings": head.parameters,
        "windows": {"own_px": OWN_PX, "sample": [SAMPLE_WINDOWS, SAMPLE_PX]},
        "on_bad_tile": config.on_bad_tile,
    }


class TissueMapOutput(Output):
    """The class of every pixel of the tissue; a row of windows is a durable block."""

    def __init__(
        self, slide: Slide, tissue: Tissue, writer: StageWriter, head: TissueHead, clock: Clock
    ) -> None:
        self._writer, self._tissue, self._clock = writer, tissue, clock
        self._scale = (head.mpp / slide.mpp[0], head.mpp / slide.mpp[1])
        self._width, height = (int(np.ceil(slide.size[i] / self._scale[i])) for i in (0, 1))
        self._core = -(-OWN_PX // head.multiple) * head.multiple
        self._halo = int(np.ceil(head.context_um / head.mpp / head.multiple)) * head.multiple
        origins, own = own_windows(slide.size, self._scale, self._core, self._halo)
        kept = np.flatnonzero(tissue.fraction(outward(own)) > 0)
        side = self._core + 2 * self._halo
        self.windows = Windows(origins[kept], (side, side), self._scale)
        self._row, self._column = np.divmod(kept, -(-self._width // self._core))
        writer.create_array(
            "classes", (height, self._width), "uint8",
            rows_per_block=self._core, chunk_rows=max(1, self._core // 8),
        )  # fmt: skip
        self._height, self._number = height, writer.done_blocks
        self.start = int(np.searchsorted(self._row, self._number))
        self._band = self._empty()
        with clock("slide's colours"):
            self._head = head.fitted(colour_sample(slide, tissue, self._scale))
        # the network takes one window at a time
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tissue-map")
        self._pending: deque[tuple[int, Future[npt.NDArray[np.uint8]]]] = deque()

    def _empty(self) -> npt.NDArray[np.uint8]:
        rows = min(self._core, self._height - self._number * self._core)
        return np.full((max(rows, 0), self._width), NO_CLASS, np.uint8)

    def take(self, batch: WindowBatch) -> None:
        for i, window in zip(batch.index.tolist(), batch.pixels, strict=True):
            self._pending.append((i, self._pool.submit(self._classes, i, window)))
            while len(self._pending) > AHEAD:
                self._collect()

    def _classes(self, i: int, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Of window i's core, as far as the map goes."""
        core = slice(self._halo, self._halo + self._core)
        chance = self._head.probabilities(pixels)[:, core, core]
        found: npt.NDArray[np.uint8] = chance.argmax(axis=0).astype(np.uint8)
        rows, columns = (
            np.arange(number * self._core, min((number + 1) * self._core, end))
            for number, end in ((self._row[i], self._height), (self._column[i], self._width))
        )
        found = np.asarray(found[: len(rows), : len(columns)])
        found[~is_tissue(self._tissue, rows, columns, self._scale)] = NO_CLASS
        return found

    def _collect(self) -> None:
        i, coming = self._pending.popleft()
        with self._clock("waiting for the tissue map"):
            found = coming.result()
        while self._number < self._row[i]:
            self._write_band()
        first = self._column[i] * self._core
        self._band[: len(found), first : first + found.shape[1]] = found

    def _write_band(self) -> None:
        self._writer.write_block(self._number, {"classes": self._band})
        self._number += 1
        self._band = self._empty()

    def finish(self) -> None:
        while self._pending:
            self._collect()
        while len(self._band):
            self._write_band()
        head = self._head
        self._writer.finish(map_attributes(head.name, head.classes, self._scale, head.mpp))
        self._pool.shutdown()

    def abandon(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def is_tissue(
    tissue: Tissue,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    scale: tuple[float, float],
) -> npt.NDArray[np.bool_]:
    """bool [rows, columns]: whether the centres of these pixels lie in the tissue's mask.

    scale   level-0 px per pixel
    """
    mask = np.pad(tissue.mask, ((0, 1), (0, 1)))  # what lies beyond is none
    v = np.floor((rows + 0.5) * scale[1] / tissue.scale[1]).astype(np.int64)
    u = np.floor((columns + 0.5) * scale[0] / tissue.scale[0]).astype(np.int64)
    last = mask.shape[0] - 1, mask.shape[1] - 1
    return np.asarray(mask[np.ix_(np.minimum(v, last[0]), np.minimum(u, last[1]))])


def map_attributes(
    model: str, classes: Sequence[str], scale: tuple[float, float], mpp: float
) -> dict[str, Any]:
    """Of the stage that holds a map, as its readers want them."""
    return {
        "model": model,
        "mpp": mpp,
        "scale": list(scale),
        "origin": [0.0, 0.0],
        "classes": list(classes),
        "colours": [list(colour) for colour in class_colours(classes).values()],
        "missing": NO_CLASS,
    }
