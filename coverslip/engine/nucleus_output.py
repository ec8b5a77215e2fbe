"""Nuclei from the same pass: overlapping windows, each owning what lies in its own box.

Windows stand on the lattice anchored at the slide's corner, whatever the tile grid, so the nuclei
of a slide do not depend on how it was tiled. What else the head says of a window is kept as well:
glands and lumina, and of what tissue each of the network's cells is.
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
from coverslip.engine.tissue_map_output import NO_CLASS, is_tissue, map_attributes
from coverslip.heads.instances import Nuclei, concatenate, own_windows, owned_nuclei
from coverslip.heads.large_objects import (
    STRIP_PX,
    Pieces,
    concatenated,
    pieces_in_window,
    whole_objects,
)
from coverslip.heads.network_nuclei import Findings, NetworkNuclei
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
MAPS = "maps"
"""The stage of a head's tissue classes, as that of any tissue map."""
Columns = dict[str, npt.NDArray[Any]]


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
    in pieces, which are put together at the end. So do tissue classes, in cells.

    writers   of `stages_of` the head, those that are not complete yet
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
        found = (
            head.segment_all(pixels) if isinstance(head, NetworkNuclei)
            else Findings(head.segment(pixels), {}, None)
        )  # fmt: skip
        intensity = head.intensity(pixels)
        nuclei = owned_nuclei(
            found.nuclei, intensity, (x, y), self._scale, self._own[i], self._size, head.mpp
        )
        corner = round(x / self._scale[0]), round(y / self._scale[1])
        own = (corner[0] + self._halo, corner[1] + self._halo, OWN_PX, OWN_PX)
        return _Found(
            nuclei.where(self._tissue.contains(nuclei.centroid)) if len(nuclei) else nuclei,
            {
                name: pieces_in_window(objects, intensity, corner, own)
                for name, objects in found.others.items()
                if name in self._writers
            },
            None if found.tissue is None else self._cells(found.tissue, own),
        )

    def _cells(
        self, logits: npt.NDArray[np.float32], own: tuple[int, int, int, int]
    ) -> npt.NDArray[np.float32]:
        """float32 [n, 2 + classes]: column, row in the slide's map, and logits."""
        side = self._head.multiple
        first, count = self._halo // side, OWN_PX // side
        mine = logits[:, first : first + count, first : first + count]
        row, column = np.indices(mine.shape[1:], np.float32)
        place = [column + own[0] // side, row + own[1] // side]
        return np.concatenate([place, mine]).reshape(2 + len(logits), -1).T

    def _collect(self) -> None:
        with self._clock("waiting for nuclei"):
            self._found.append(self._pending.popleft().result())
        if len(self._found) == BLOCK:
            self._write_block()

    def _write_block(self) -> None:
        for name, writer in self._writers.items():
            if writer.done_blocks > self._number:
                continue
            writer.append_block(self._number, self._block(name))
        self._number += 1
        self._found = []

    def _block(self, name: str) -> Columns:
        """Of the stage `name`, from the windows that wait."""
        if name == "nuclei":
            return concatenate([found.nuclei for found in self._found]).columns()
        if name == MAPS:
            width = 2 + len(tissue_classes(self._head))
            cells = [found.cells for found in self._found if found.cells is not None]
            return {"cells": np.concatenate([np.empty((0, width), np.float32), *cells])}
        return concatenated([found.pieces[name] for found in self._found]).columns()

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
            if kind == MAPS and isinstance(self._head, NetworkNuclei):
                self._finish_map(self._head, writer)
                continue
            pieces = concatenated([Pieces(**block) for block in writer.spilled()])
            found = whole_objects(pieces, self._scale, self._head.mpp, self._size)
            found = found.where(self._tissue.contains(found.centroid)) if len(found) else found
            writer.finish({"model": name, "classes": [CLASS_NAMES[kind]]}, found.columns())
        self._pool.shutdown()

    def _finish_map(self, head: NetworkNuclei, writer: StageWriter) -> None:
        """Put the cells in their places; where there is no tissue, there is no class."""
        scale = self._scale[0] * head.multiple, self._scale[1] * head.multiple
        width, height = (int(np.ceil(self._size[i] / scale[i])) for i in (0, 1))
        logits = np.zeros((height, width, len(head.tissue_classes)), np.float32)
        for block in writer.spilled():
            column, row = block["cells"][:, :2].astype(np.int64).T
            there = (column < width) & (row < height)
            logits[row[there], column[there]] = block["cells"][there, 2:]
        known = is_tissue(self._tissue, np.arange(height), np.arange(width), scale)
        chance = head.tissue_probabilities(logits, known)
        found = np.where(known, chance.argmax(axis=2), NO_CLASS).astype(np.uint8)
        writer.finish(
            map_attributes(head.name, head.tissue_classes, scale, head.mpp * head.multiple),
            {"classes": found, "probabilities": chance},
        )

    def abandon(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Found:
    """In one window: nuclei, pieces of other objects by name, and cells of tissue classes."""

    nuclei: Nuclei
    pieces: Mapping[str, Pieces]
    cells: npt.NDArray[np.float32] | None


def other_objects(head: NucleusHead) -> tuple[str, ...]:
    """What a head finds besides nuclei: "glands", "lumina"."""
    return head.others if isinstance(head, NetworkNuclei) else ()


def tissue_classes(head: NucleusHead) -> tuple[str, ...]:
    """What tissues a head tells apart."""
    return head.tissue_classes if isinstance(head, NetworkNuclei) else ()


def stages_of(head: NucleusHead) -> tuple[str, ...]:
    """What a head fills: `<stage>/<head's name>` for each of these."""
    return ("nuclei", *other_objects(head), *((MAPS,) if tissue_classes(head) else ()))
