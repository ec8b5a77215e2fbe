"""Nuclei from the same pass: overlapping windows, each owning what lies in its own box.

Windows stand on the lattice anchored at the slide's corner, whatever the tile grid, so the nuclei
of a slide do not depend on how it was tiled.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.engine.clock import Clock
from coverslip.engine.colour_sample import SAMPLE_PX, SAMPLE_WINDOWS, colour_sample, outward
from coverslip.engine.config import RunConfig
from coverslip.engine.outputs import Output
from coverslip.heads.instances import Nuclei, concatenate, nuclei_in_window, own_windows
from coverslip.heads.registry import NucleusHead
from coverslip.tiling.store import StageWriter
from coverslip.tiling.stream import WindowBatch
from coverslip.tiling.tissue import Tissue
from coverslip.tiling.windows import Windows
from coverslip.wsi.slide import Slide

OWN_PX = 1024
"""Side of the part of a window that owns its nuclei, in px at the head's resolution."""
BLOCK = 16
"""Windows per durable block."""


def nucleus_parameters(head: NucleusHead, config: RunConfig) -> dict[str, Any]:
    """What decides the nuclei, for the stage's hash."""
    return {
        "model": head.name,
        "settings": head.parameters,
        "windows": {"own_px": OWN_PX, "sample": [SAMPLE_WINDOWS, SAMPLE_PX]},
        "on_bad_tile": config.on_bad_tile,
    }


class NucleusOutput(Output):
    """Every nucleus of the tissue, found once and whole; segmentation overlaps with decoding."""

    def __init__(
        self,
        slide: Slide,
        tissue: Tissue,
        writer: StageWriter,
        head: NucleusHead,
        threads: int,
        clock: Clock,
    ) -> None:
        self._writer, self._clock, self._tissue = writer, clock, tissue
        self._scale = (head.mpp / slide.mpp[0], head.mpp / slide.mpp[1])
        self._size = slide.size
        halo = int(np.ceil(head.context_um / head.mpp / head.multiple)) * head.multiple
        origins, own = own_windows(slide.size, self._scale, OWN_PX, halo)
        touched = tissue.fraction(outward(own)) > 0
        self._own = own[touched]
        side = OWN_PX + 2 * halo
        self.windows = Windows(origins[touched], (side, side), self._scale)
        with clock("stain levels"):
            self._head = head.fitted(colour_sample(slide, tissue, self._scale))
        self.start = min(writer.done_blocks * BLOCK, len(self._own))
        self._number = writer.done_blocks
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="nuclei")
        self._pending: deque[Future[Nuclei]] = deque()
        self._limit = 2 * threads
        self._found: list[Nuclei] = []

    def take(self, batch: WindowBatch) -> None:
        for i, window in zip(batch.index.tolist(), batch.pixels, strict=True):
            self._pending.append(self._pool.submit(self._segment, i, window))
            while len(self._pending) >= self._limit:
                self._collect()

    def _segment(self, i: int, pixels: npt.NDArray[np.uint8]) -> Nuclei:
        x, y = self.windows.origins[i]
        nuclei = nuclei_in_window(
            self._head, pixels, (float(x), float(y)), self._scale, self._own[i], self._size
        )
        return nuclei.where(self._tissue.contains(nuclei.centroid)) if len(nuclei) else nuclei

    def _collect(self) -> None:
        with self._clock("waiting for nuclei"):
            self._found.append(self._pending.popleft().result())
        if len(self._found) == BLOCK:
            self._write_block()

    def _write_block(self) -> None:
        self._writer.append_block(self._number, concatenate(self._found).columns())
        self._number += 1
        self._found = []

    def finish(self) -> None:
        while self._pending:
            self._collect()
        if self._found or not self._number:
            self._write_block()
        self._writer.finish({"model": self._head.name, "classes": list(self._head.classes)})
        self._pool.shutdown()

    def abandon(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
