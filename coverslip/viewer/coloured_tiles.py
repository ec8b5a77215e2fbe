"""Numbers as colours that everyone can tell apart, and PNGs of 256 colours, which are quick."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from coverslip.engine.heat_map import COLOURS

Palette = npt.NDArray[np.uint8]
"""[256, 4] red, green, blue, opacity; entry 0 is clear."""
CLEAR = 0


@lru_cache(maxsize=8)
def ramp(faint: int = 255, strong: int = 255) -> Palette:
    """From the lowest value (entry 1) to the highest (255), dark to light as `heat_map` has it.

    faint, strong   opacity at the two ends
    """
    from matplotlib import colormaps

    palette = np.zeros((256, 4), np.uint8)
    steps = np.linspace(0, 1, 255)
    palette[1:, :3] = np.rint(colormaps[COLOURS](steps)[:, :3] * 255)
    palette[1:, 3] = np.rint(faint + (strong - faint) * steps)
    return palette


def class_palette(colours: Sequence[Sequence[int]]) -> Palette:
    """Class i's colour is entry i + 1; at most 255 classes."""
    palette = np.zeros((256, 4), np.uint8)
    for number, colour in enumerate(colours[:255], start=1):
        palette[number] = (*colour, 255)
    return palette


def coloured_png(indices: npt.NDArray[np.uint8], palette: Palette) -> bytes:
    """uint8 [h, w] entries of the palette as a PNG."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(indices))
    image.putpalette(palette[:, :3].tobytes())
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1, transparency=palette[:, 3].tobytes())
    return out.getvalue()
