"""The pre-flight: does each slide open, say how large its pixels are, and decode where sampled?"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coverslip.engine.config import RunConfig
from coverslip.engine.opening import open_for_run
from coverslip.errors import CoverslipError, UnreadableTile
from coverslip.wsi.slide import Slide


@dataclass(slots=True)
class SlideCheck:
    """What the pre-flight found for one slide.

    problems   empty for a sound slide; each names what is wrong and what to do
    sampled    native tiles decoded; unreadable those of them that could not be
    rate       megapixels per second over the sample, one thread
    """

    file: str
    size: tuple[int, int] = (0, 0)
    levels: int = 0
    mpp: tuple[float, float] = (0.0, 0.0)
    mpp_source: str = ""
    reader: str = ""
    sampled: int = 0
    unreadable: int = 0
    rate: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.problems


def check_slide(path: str | Path, config: RunConfig, samples: int = 16) -> SlideCheck:
    """Open one slide and decode `samples` native tiles of each level, evenly spread.

    Never raises for what is wrong with the slide: that is what the result says.
    """
    result = SlideCheck(file=str(path))
    try:
        with open_for_run(path, config) as slide:
            result.size, result.levels, result.reader = slide.size, len(slide.levels), slide.reader
            if slide.pixel_size is not None:
                result.mpp, result.mpp_source = slide.mpp, slide.pixel_size.source
            _decode_sample(slide, samples, result)
    except CoverslipError as error:
        result.problems.append(str(error))
    return result


def _decode_sample(slide: Slide, samples: int, result: SlideCheck) -> None:
    pixels, started = 0, time.perf_counter()
    for number, level in enumerate(slide.levels):
        columns, rows = level.grid
        count = columns * rows
        for place in np.unique(np.linspace(0, count - 1, min(samples, count)).astype(np.int64)):
            row, column = divmod(int(place), columns)
            result.sampled += 1
            try:
                tile = slide.decode_tile(number, column, row)
            except UnreadableTile as error:
                result.unreadable += 1
                result.problems.append(str(error))
            else:
                pixels += 0 if tile is None else tile.shape[0] * tile.shape[1]
    result.rate = pixels / 1e6 / max(time.perf_counter() - started, 1e-9)
