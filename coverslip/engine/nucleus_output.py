"""Nuclei from the same pass: overlapping windows, each owning what lies in its own box.

Windows stand on the lattice anchored at the slide's corner, whatever the tile grid, so the nuclei
of a slide do not depend on how it was tiled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.engine.clock import Clock
from coverslip.engine.colour_sample import SAMPLE_PX, SAMPLE_WINDOWS, colour_sample, outward
from coverslip.engine.config import RunConfig
from coverslip.engine.outputs import Output
from coverslip.heads.instances import Nuclei, concatenate, own_windows, owned_nuclei
from coverslip.heads.large_objects import (
    STRIP_PX,
    Pieces,
    concatenated,
    pieces_in_window,
    whole_objects,
)
from coverslip.heads.network_nuclei import NetworkNuclei
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
CLASS_NAMES = {"glands": "Gland", "lumina": "Lumen"}
"""Of a head's other objects, by stage."""


def nucleus_parameters(head: NucleusHead, config: RunConfig) -> dict[str, Any]:
    """What decides the nuclei, for the stage's hash."""
    return {
        "model": head.name,
        "settings": head.parameters,
        "windows": {"own_px": OWN_PX, "sample": [SAMPLE_WINDOWS, SAMPLE_PX]},
        "on_bad_tile": config.on_bad_tile,
    }


class NucleusOutput(Output):
    """Every nucleus of the tissue, found once and whole; segmentation overlaps with decoding.

    Glands and lumina, where the head finds them as well, come from the same look at each window:
    in pieces, which are put together at the end.

    writers   of "nuclei" and of the head's other objects, those that are not complete yet
    """

    def __init__(
        self,
        slide: Slide,
        tissue: Tissue,
        writers: Mapping[str, StageWriter],
        head: NucleusHead,
        threads: int,
        clock: Clock,
    ) -> None:
        self._writers, self._clock, self._tissue = writers, clock, tissue
        self._scale = (head.mpp / slide.mpp[0], head.mpp / slide.mpp[1])
        self._size = slide.size
        reach = head.context_um / head.mpp + (STRIP_PX if other_objects(head) else 0)
        self._halo = int(np.ceil(reach / head.multiple)) * head.multiple
        origins, own = own_windows(slide.size, self._scale, OWN_PX, self._halo)
        touched = tissue.fraction(outward(own)) > 0
        self._own = own[touched]
        side = OWN_PX + 2 * self._halo
        self.windows = Windows(origins[touched], (side, side), self._scale)
        with clock("stain levels"):
            self._head = head.fitted(colour_sample(slide, tissue, self._scale))
        # writers advance together; a crash may fall between two of them
        self._number = min(writer.done_blocks for writer in writers.values())
        self.start = min(self._number * BLOCK, len(self._own))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="nuclei")
        self._pending: deque[Future[_Found]] = deque()
        self._limit = 2 * threads
        self._found: list[_Found] = []

    def take(self, batch: WindowBatch) -> None:
        for i, window in zip(batch.index.tolist(), batch.pixels, strict=True):
            self._pending.append(self._pool.submit(self._segment, i, window))
            while len(self._pending) >= self._limit:
                self._collect()

    def _segment(self, i: int, pixels: npt.NDArray[np.uint8]) -> _Found:
        head, (x, y) = self._head, self.windows.origins[i].tolist()
        segmentation, others = (
            head.segment_all(pixels) if isinstance(head, NetworkNuclei)
            else (head.segment(pixels), {})
        )  # fmt: skip
        intensity = head.intensity(pixels)
        nuclei = owned_nuclei(
            segmentation, intensity, (x, y), self._scale, self._own[i], self._size, head.mpp
        )
        corner = round(x / self._scale[0]), round(y / self._scale[1])
        own = (corner[0] + self._halo, corner[1] + self._halo, OWN_PX, OWN_PX)
        return _Found(
            nuclei.where(self._tissue.contains(nuclei.centroid)) if len(nuclei) else nuclei,
            {
                name: pieces_in_window(found, intensity, corner, own)
                for name, found in others.items()
                if name in self._writers
            },
        )

    def _collect(self) -> None:
        with self._clock("waiting for nuclei"):
            self._found.append(self._pending.popleft().result())
        if len(self._found) == BLOCK:
            self._write_block()

    def _write_block(self) -> None:
        for name, writer in self._writers.items():
            if writer.done_blocks > self._number:
                continue
            columns = (
                concatenate([found.nuclei for found in self._found])
                if name == "nuclei"
                else concatenated([found.pieces[name] for found in self._found])
            ).columns()
            writer.append_block(self._number, columns)
        self._number += 1
        self._found = []

    def finish(self) -> None:
        while self._pending:
            self._collect()
        if self._found or not self._number:
            self._write_block()
        name = self._head.name
        for kind, writer in self._writers.items():
            if kind == "nuclei":
                writer.finish({"model": name, "classes": list(self._head.classes)})
                continue
            pieces = concatenated([Pieces(**block) for block in writer.spilled()])
            found = whole_objects(pieces, self._scale, self._head.mpp, self._size)
            found = found.where(self._tissue.contains(found.centroid)) if len(found) else found
            writer.finish({"model": name, "classes": [CLASS_NAMES[kind]]}, found.columns())
        self._pool.shutdown()

    def abandon(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Found:
    """In one window: nuclei, and pieces of other objects by name."""

    nuclei: Nuclei
    pieces: Mapping[str, Pieces]


def other_objects(head: NucleusHead) -> tuple[str, ...]:
    """What a head finds besides nuclei: "glands", "lumina"."""
    return head.others if isinstance(head, NetworkNuclei) else ()
