"""The plan before the run: tiles, bytes, time and memory for each slide, from its own pixels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coverslip.engine.config import RunConfig
from coverslip.engine.opening import open_for_run
from coverslip.engine.sharing import devices_of
from coverslip.engine.survey import survey
from coverslip.errors import CoverslipError
from coverslip.tiling.assembly import source_for
from coverslip.tiling.stream import TileStream
from coverslip.wsi.slide import Slide

SAMPLE_TILES = 48


@dataclass(frozen=True, slots=True)
class SlidePlan:
    """What processing one slide will take.

    tiles          tiles in the grid
    level, reduction   which native tiles are decoded, and how small
    source_bytes   compressed bytes that will be read (estimated from the file's size)
    output_bytes   what the store will hold
    seconds        from a timed sample of this slide's own tiles
    memory_bytes   peak above the interpreter and the model
    problem        why the slide cannot be processed; empty if it can
    """

    file: str
    tiles: int = 0
    level: int = 0
    reduction: int = 0
    source_bytes: int = 0
    output_bytes: int = 0
    seconds: float = 0.0
    memory_bytes: int = 0
    problem: str = ""


def plan_slide(
    path: str | Path, config: RunConfig, threads: int, tiles_per_second: float
) -> SlidePlan:
    """Find tissue, lay the grid, time a sample, and reckon the rest.

    tiles_per_second   how fast the encoders together are; infinite for none
    """
    try:
        with open_for_run(path, config) as slide:
            return _plan(slide, path, config, threads, tiles_per_second)
    except CoverslipError as error:
        return SlidePlan(file=Path(str(path)).name, problem=str(error))


def _plan(
    slide: Slide, path: str | Path, config: RunConfig, threads: int, tiles_per_second: float
) -> SlidePlan:
    grid = survey(slide, config).grid
    source = source_for(slide, grid.scale)
    level = slide.levels[source.level]
    tiles = len(grid.boxes)
    share = tiles * (grid.tile * grid.scale[0]) ** 2 / (slide.size[0] * slide.size[1])
    started = time.perf_counter()
    sample = np.unique(np.linspace(0, tiles - 1, min(SAMPLE_TILES, tiles)).astype(np.int64))
    for _ in TileStream(slide, grid, indices=sample, threads=threads, on_bad_tile="blank"):
        pass
    reading = (time.perf_counter() - started) / max(len(sample), 1) * tiles
    encoding = tiles / tiles_per_second if config.encoder else 0.0
    # a band of decoded native tiles as wide as the slide, two rows of them beyond the tile's own
    # height, plus the batches in flight
    column = 3 * (grid.tile * 1.1 + 2 * (level.tile[1] >> source.reduction))
    band = column * (level.size[0] >> source.reduction)
    batches = 4 * 64 * grid.tile**2 * 3
    file = Path(str(path))
    return SlidePlan(
        file=file.name,
        tiles=tiles,
        level=source.level,
        reduction=source.reduction,
        source_bytes=int(min(share, 1.0) * file.stat().st_size) if file.is_file() else 0,
        output_bytes=tiles * (1024 * 4 * len(config.encoder) + 64)
        + (tiles * grid.tile**2 // 4 if config.pixels != "none" else 0),
        seconds=max(reading, encoding),
        memory_bytes=int(band + batches),
    )


def encoder_rate(config: RunConfig) -> float:
    """Tiles per second of the configured encoders together, timed on one batch; inf for none."""
    if not config.encoder:
        return float("inf")
    from coverslip.encoders.loading import load_encoder

    tiles = np.full((min(config.batch or 32, 32), config.tile, config.tile, 3), 200, np.uint8)
    seconds, device = 0.0, devices_of(config.device)[0]
    for name in config.encoder:
        encoder = load_encoder(name, weights=config.weights or None, device=device)
        encoder.encode(tiles)
        started = time.perf_counter()
        encoder.encode(tiles)
        seconds += time.perf_counter() - started
    return len(tiles) / seconds
