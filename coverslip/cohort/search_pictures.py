"""Pictures for what a search found: from pixels that stores keep, or from the slides themselves."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from coverslip.cohort.search_index import CohortIndex
from coverslip.engine.slide_files import SlideFiles
from coverslip.errors import InvalidConfig
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.reading import read_window, thumbnail
from coverslip.tiling.stream import stream_windows
from coverslip.tiling.windows import Windows
from coverslip.wsi.slide import RGB, Box, Slide

COLOUR_SIDE = 4
"""Px that a tile is read at when only its mean colour is wanted."""


class SlidePictures:
    """Reads tiles and overviews; to be closed.

    inputs   slides, and folders that are looked through, for what stores do not keep
    """

    def __init__(self, cohort: CohortIndex, inputs: Sequence[str]) -> None:
        self._cohort = cohort
        self._files = SlideFiles(inputs)

    def region(self, slide: str, box: Box, most: int) -> RGB | None:
        """A box of level-0 px at the grid's pixel size, its sides at most `most` px; None, with a
        note, where nothing here has its pixels."""
        kept = self._kept_tile(slide, box)
        if kept is not None:
            return shrunk(kept, most)
        opened = self._slide(slide)
        if opened is None:
            return None
        x_scale, y_scale = self._cohort.tiles(slide).scale
        width, height = box.w / x_scale, box.h / y_scale
        smaller = max(1.0, max(width, height) / most)
        size = (max(1, round(width / smaller)), max(1, round(height / smaller)))
        scale = (box.w / size[0], box.h / size[1])
        return read_window(opened, (box.x, box.y), size, scale, on_bad_tile="blank")

    def overview(self, slide: str, most: int) -> RGB | None:
        """The whole slide, its longer side `most` px; None, with a note, where it is not here."""
        opened = self._slide(slide)
        return None if opened is None else thumbnail(opened, most)

    def mean_colours(self, slide: str, grid: TileGrid) -> npt.NDArray[np.float32]:
        """float32 [N, 3] mean RGB of a slide's tiles. Raises InvalidConfig where nothing here has
        their pixels."""
        store, name = self._cohort.store(slide), f"pixels/{self._cohort.grid}"
        colours = np.empty((len(grid), 3), np.float32)
        if name in store.stages("pixels/"):
            pixels = store.group(name)["pixels"]
            for i in range(0, len(grid), 64):
                colours[i : i + 64] = pixels[i : i + 64].mean(axis=(1, 2))
            return colours
        opened = self._slide(slide)
        if opened is None:
            raise InvalidConfig(
                f"{self.notes[-1]}\n  mosaics by colour need the pixels: name the slides with "
                "--slides, or choose by embeddings: --mosaic embedding"
            )
        factor = grid.tile / COLOUR_SIDE
        scale = (grid.scale[0] * factor, grid.scale[1] * factor)
        windows = Windows(grid.windows().origins, (COLOUR_SIDE, COLOUR_SIDE), scale)
        for batch in stream_windows(opened, [windows], batch=256, on_bad_tile="blank"):
            colours[batch.index] = batch.pixels.mean(axis=(1, 2))
        return colours

    def _kept_tile(self, slide: str, box: Box) -> RGB | None:
        store, name = self._cohort.store(slide), f"pixels/{self._cohort.grid}"
        if name not in store.stages("pixels/"):
            return None
        boxes = self._cohort.tiles(slide).boxes
        found = np.flatnonzero((boxes == (box.x, box.y, box.w, box.h)).all(axis=1))
        return np.asarray(store.group(name)["pixels"][int(found[0])]) if len(found) else None

    def _slide(self, slide: str) -> Slide | None:
        """The slide's file, open; None, with a note, where it is not here."""
        return self._files.slide(slide, self._cohort.store(slide))

    @property
    def notes(self) -> list[str]:
        """Why pictures are missing; grows as they are asked for."""
        return self._files.notes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.__exit__(kind, error, trace)


def shrunk(picture: RGB, most: int) -> RGB:
    """The picture, its sides at most `most` px."""
    from PIL import Image

    if max(picture.shape[:2]) <= most:
        return picture
    image = Image.fromarray(picture)
    image.thumbnail((most, most))
    return np.asarray(image)
