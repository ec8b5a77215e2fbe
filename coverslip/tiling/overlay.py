"""A slide's picture with the tissue's outline and the tile grid drawn on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from shapely.geometry import Polygon

from coverslip.wsi.slide import RGB

OUTLINE = (0, 150, 60)
GRID = (60, 60, 200)


def overview(
    image: RGB,
    slide_size: tuple[int, int],
    polygons: Sequence[Polygon],
    boxes: npt.NDArray[np.int32],
) -> RGB:
    """`image` (the whole slide) with polygons and boxes, both in level-0 px, drawn on it."""
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(image).convert("RGB")
    draw = ImageDraw.Draw(canvas, "RGBA")
    sx, sy = image.shape[1] / slide_size[0], image.shape[0] / slide_size[1]
    for x, y, w, h in boxes.tolist():
        place = (x * sx, y * sy, (x + w) * sx, (y + h) * sy)
        draw.rectangle(place, outline=(*GRID, 90), width=1)
    for polygon in polygons:
        for ring in (polygon.exterior, *polygon.interiors):
            draw.line([(x * sx, y * sy) for x, y in ring.coords], fill=(*OUTLINE, 255), width=2)
    return np.asarray(canvas)
