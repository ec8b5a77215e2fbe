"""What one pass over the pixels produces: each output takes the windows it wants, in order.

Outputs over the tile grid (quality, features, pixels, sample pictures) share one set of windows;
nuclei read their own, larger windows from the same pass. Every output writes through a
`StageWriter` in blocks of fixed size, so that a resume starts at a block's first row and meets
the same batches as an undisturbed run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from coverslip.durable import replace_file
from coverslip.engine.clock import Clock
from coverslip.tiling.quality import tile_quality
from coverslip.tiling.store import StageWriter
from coverslip.tiling.stream import WindowBatch
from coverslip.tiling.windows import Windows

if TYPE_CHECKING:
    from coverslip.encoders.encoder import Encoder
    from coverslip.kernels.stain_profile import StainNormalizer

BLOCK = 512
"""Tiles per durable block: what a crash can cost."""
LEAST_BATCH = 64
"""Tiles handed to an encoder at once where its memory decides."""
CHECKED = 16
"""Tiles on which half precision is compared with float32, once per slide."""
LEAST_COSINE = 0.999
"""What half precision must keep of every embedding's direction."""


class Output(ABC):
    """One product of the pass.

    windows   all windows it needs, in the order it wants them
    start     the first of them that is not on disk yet
    uses_all_processors   while it takes a batch: nothing should be read beside it
    """

    windows: Windows
    start: int
    uses_all_processors: bool = False

    @abstractmethod
    def take(self, batch: WindowBatch) -> None:
        """The next windows, ascending and gapless from `start` on."""

    @abstractmethod
    def finish(self) -> None:
        """All windows were taken: complete the stage."""

    def abandon(self) -> None:  # noqa: B027  (most outputs have nothing in flight)
        """The pass failed: drop what is in flight; blocks on disk stay."""


class TileRows:
    """Gathers per-tile rows of several columns and writes them block by block."""

    def __init__(self, writer: StageWriter, total: int, block: int = BLOCK) -> None:
        self._writer, self._total, self._block = writer, total, block
        self._number = writer.done_blocks
        self._waiting: list[Mapping[str, npt.NDArray[Any]]] = []
        self._rows = 0

    @property
    def start(self) -> int:
        """The first row that is not on disk yet."""
        return min(self._number * self._block, self._total)

    def add(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Append rows; a full block, or the last one, goes to disk at once."""
        self._waiting.append(columns)
        self._rows += len(next(iter(columns.values())))
        while self._rows and self._rows >= min(self._block, self._total - self.start):
            self._write_block()

    def _write_block(self) -> None:
        size = min(self._block, self._total - self.start)
        merged = {
            name: np.concatenate([part[name] for part in self._waiting])
            for name in self._waiting[0]
        }
        self._writer.write_block(self._number, {k: v[:size] for k, v in merged.items()})
        self._number += 1
        self._rows -= size
        self._waiting = [{k: v[size:] for k, v in merged.items()}] if self._rows else []


class QualityOutput(Output):
    """Focus, pen and brightness of every tile, and which tiles hold an undecodable part."""

    def __init__(self, windows: Windows, writer: StageWriter, mpp: float, clock: Clock) -> None:
        self.windows, self._mpp, self._clock, self._writer = windows, mpp, clock, writer
        total = len(windows.origins)
        for name in ("focus", "pen", "brightness"):
            writer.create_array(name, (total,), "float32", rows_per_block=BLOCK)
        writer.create_array("damaged", (total,), "bool", rows_per_block=BLOCK)
        self._rows = TileRows(writer, total)
        self.start = self._rows.start

    def take(self, batch: WindowBatch) -> None:
        with self._clock("quality"):
            quality = tile_quality(batch.pixels, self._mpp)
            columns = {
                "focus": quality.focus,
                "pen": quality.pen,
                "brightness": quality.brightness,
                "damaged": batch.damaged,
            }
            self._rows.add(columns)

    def finish(self) -> None:
        self._writer.finish({})


class PixelOutput(Output):
    """The tiles themselves."""

    def __init__(
        self,
        windows: Windows,
        writer: StageWriter,
        codec: Literal["jpeg", "lossless"],
        normalizer: StainNormalizer | None,
        clock: Clock,
    ) -> None:
        self.windows, self._clock, self._writer = windows, clock, writer
        self._normalizer = normalizer
        w, h = windows.size
        total = len(windows.origins)
        writer.create_array(
            "pixels", (total, h, w, 3), "uint8", rows_per_block=BLOCK, chunk_rows=1, codec=codec
        )
        self._rows = TileRows(writer, total)
        self.start = self._rows.start

    def take(self, batch: WindowBatch) -> None:
        with self._clock("storing pixels"):
            tiles = self._normalizer(batch.pixels) if self._normalizer else batch.pixels
            # encoded here, so that a block of them waits as JPEG or zstd, not as pixels
            self._rows.add({"pixels": self._writer.encode("pixels", tiles)})

    def finish(self) -> None:
        self._writer.finish({})


class FeatureOutput(Output):
    """One encoder's embedding of every tile.

    Batches never cross a block, so an embedding never depends on where a run was interrupted.
    """

    def __init__(
        self,
        windows: Windows,
        writer: StageWriter,
        encoder: Encoder,
        batch: int,
        normalizer: StainNormalizer | None,
        clock: Clock,
    ) -> None:
        self.windows, self._clock, self._writer = windows, clock, writer
        self._encoder, self._normalizer = encoder, normalizer
        self._batch = batch or max(encoder.at_once, LEAST_BATCH)
        self._cosine = 1.0
        self.uses_all_processors = encoder.device.type == "cpu"
        total = len(windows.origins)
        writer.create_array(
            "features", (total, encoder.dim), "float32", rows_per_block=BLOCK, codec="raw"
        )
        self._rows = TileRows(writer, total)
        self._total = total
        self.start = self._next = self._first = self._rows.start
        self._waiting: list[npt.NDArray[np.uint8]] = []
        self._held = 0

    def take(self, batch: WindowBatch) -> None:
        self._waiting.append(batch.pixels)
        self._held += len(batch.pixels)
        while self._held and self._held >= self._wanted():
            self._encode(self._wanted())

    def _wanted(self) -> int:
        """Tiles of the next batch: up to the block's end, or the grid's."""
        block_end = (self._next // BLOCK + 1) * BLOCK
        return min(self._batch, min(block_end, self._total) - self._next)

    def _encode(self, count: int) -> None:
        tiles = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        with self._clock(f"encoding {self._encoder.name}"):
            features = self._encoder.encode(tiles[:count], self._normalizer)
            if count and self._next == self._first:  # half precision is checked on real tissue
                checked = self._recoloured(tiles[: min(count, CHECKED)])
                self._cosine = self._encoder.half_precision_cosine(checked)
        self._rows.add({"features": features})
        self._next += count
        self._held -= count
        self._waiting = [tiles[count:]] if self._held else []

    def _recoloured(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return self._normalizer(tiles) if self._normalizer else tiles

    def remarks(self) -> list[str]:
        """What a person should know of how the embeddings were made."""
        if self._cosine >= LEAST_COSINE:
            return []
        return [
            f"{self._encoder.name} in {self._encoder.precision} strays from float32: cosine "
            f"{self._cosine:.4f} where {LEAST_COSINE} is wanted; --precision float32 is exact"
        ]

    def finish(self) -> None:
        columns = self._encoder.spec.columns
        self._writer.finish(
            {"dim": self._encoder.dim, **({"columns": list(columns)} if columns else {})}
        )


class SampleOutput(Output):
    """A few tiles as JPEG pictures for the report; each is written as it comes by."""

    def __init__(self, windows: Windows, folder: Path, count: int = 24) -> None:
        self.windows, self._folder = windows, folder  # folder holds one slide's pictures
        total = len(windows.origins)
        chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
        self.paths = [self._path(int(i)) for i in chosen]
        self._missing = {int(i) for i in chosen if not self._path(int(i)).exists()}
        self.start = min(self._missing, default=total)

    def _path(self, index: int) -> Path:
        return self._folder / f"tile-{index:07d}.jpg"

    def take(self, batch: WindowBatch) -> None:
        from simplejpeg import encode_jpeg

        for i, tile in zip(batch.index.tolist(), batch.pixels, strict=True):
            if i in self._missing:
                replace_file(self._path(i), encode_jpeg(np.ascontiguousarray(tile), quality=85))

    def finish(self) -> None:
        pass
