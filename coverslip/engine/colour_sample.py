"""Pixels that tell a slide's colours and strength of stain, at the resolution of a head."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from coverslip.heads.instances import own_windows
from coverslip.tiling.reading import read_window
from coverslip.tiling.tissue import Tissue
from coverslip.wsi.slide import Slide

SAMPLE_WINDOWS, SAMPLE_PX = 16, 256
"""How many squares of which side, px."""


def colour_sample(
    slide: Slide, tissue: Tissue, scale: tuple[float, float]
) -> npt.NDArray[np.uint8]:
    """[S, 256, 256, 3] pixels, evenly spread over where tissue fills half of such a square, or
    as much of it as anywhere.

    scale   (x, y) level-0 px per px
    """
    corners, own = own_windows(slide.size, scale, SAMPLE_PX, 0)
    share = tissue.fraction(outward(own))
    full = np.flatnonzero((share >= min(0.5, share.max(initial=0))) & (share > 0))
    count = min(SAMPLE_WINDOWS, len(full))
    chosen = full[np.unique(np.linspace(0, len(full) - 1, count).astype(np.int64))]
    size = (SAMPLE_PX, SAMPLE_PX)
    patches = [
        read_window(slide, (x, y), size, scale, on_bad_tile="blank")
        for x, y in corners[chosen].tolist()
    ]
    return np.stack(patches) if patches else np.empty((0, *size, 3), np.uint8)


def outward(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """[N, 4] x, y, w, h grown to whole level-0 pixels."""
    corner = np.floor(boxes[:, :2])
    far = np.ceil(boxes[:, :2] + boxes[:, 2:])
    return np.concatenate([corner, far - corner], axis=1).astype(np.int64)
