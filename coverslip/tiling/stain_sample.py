"""Pixels that stand for a slide's stained tissue."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from coverslip.tiling.grid import TileGrid
from coverslip.tiling.reading import read_window
from coverslip.tiling.tissue import Tissue
from coverslip.wsi.slide import Slide

SAMPLE_MPP = 0.5
SAMPLE_SIDE = 128
SAMPLE_WINDOWS = 64


def stain_sample(slide: Slide, tissue: Tissue) -> npt.NDArray[np.uint8]:
    """uint8 [S, 128, 128, 3]: up to 64 windows spread evenly over the tissue, at 0.5 µm/px.

    On a slide with coarser pixels the windows are read at its own. The same slide and tissue give
    the same sample, however the slide is tiled. Undecodable parts are white.
    """
    mpp = max(SAMPLE_MPP, *slide.mpp)
    for least in (0.75, 0.25, 0.01):
        grid = TileGrid.over(slide, tile=SAMPLE_SIDE, mpp=mpp, tissue=tissue, min_tissue=least)
        if len(grid) >= SAMPLE_WINDOWS:
            break
    windows = grid.windows()
    count = len(windows.origins)
    chosen = np.unique(np.linspace(0, count - 1, min(SAMPLE_WINDOWS, count)).astype(np.int64))
    found = [
        read_window(slide, (x, y), windows.size, windows.scale, on_bad_tile="blank")
        for x, y in windows.origins[chosen].tolist()
    ]
    return np.stack(found) if found else np.empty((0, SAMPLE_SIDE, SAMPLE_SIDE, 3), np.uint8)
