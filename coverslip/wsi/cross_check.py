"""One tile at open, compared with a second reader: wrong colours must not pass in silence."""

from __future__ import annotations

import numpy as np

from coverslip.errors import BrokenSlide, UnreadableTile
from coverslip.wsi.slide import RGB, Slide

TOLERANCE = 6.0
"""Mean absolute difference in grey levels that two decoders of one JPEG may show."""


def compare_with_second_reader(slide: Slide) -> None:
    """Decode the middle tile of the coarsest level and compare it with OpenSlide's.

    The outcome is kept in `slide.properties["coverslip.cross-check"]`: "openslide" or why nothing
    could be compared. A tile that cannot be decoded is left for the pass to report. Raises
    BrokenSlide where the two disagree.
    """
    number = len(slide.levels) - 1
    level = slide.levels[number]
    column, row = level.grid[0] // 2, level.grid[1] // 2
    try:
        ours = slide.decode_tile(number, column, row)
    except UnreadableTile:
        outcome = "the sampled tile cannot be decoded"
    else:
        theirs = None if ours is None else _openslide_tile(slide, number, column, row)
        if ours is None or theirs is None:
            outcome = "no second reader"
        else:
            height, width = theirs.shape[:2]
            difference = np.abs(ours[:height, :width].astype(np.int16) - theirs).mean()
            if difference > TOLERANCE:
                raise BrokenSlide(
                    slide.path,
                    f"our reader and OpenSlide differ by {difference:.0f} grey levels on one tile",
                    "open it with --no-cross-check only after looking at the picture it gives",
                )
            outcome = "openslide"
    slide.properties = {**slide.properties, "coverslip.cross-check": outcome}


def _openslide_tile(slide: Slide, number: int, column: int, row: int) -> RGB | None:
    """The same pixels by OpenSlide; None where it cannot open or read the file alike."""
    import openslide

    level = slide.levels[number]
    try:
        with openslide.OpenSlide(slide.path) as other:
            if number >= other.level_count or other.level_dimensions[number] != level.size:
                return None
            x, y = column * level.tile[0], row * level.tile[1]
            size = (min(level.tile[0], level.size[0] - x), min(level.tile[1], level.size[1] - y))
            # OpenSlide places a level by its own ratio; ask for the same pixel of that level
            place = (
                round(x * other.level_downsamples[number]),
                round(y * other.level_downsamples[number]),
            )
            region = np.asarray(other.read_region(place, number, size))
    except openslide.OpenSlideError:
        return None
    return region[..., :3] if region[..., 3].min() == 255 else None
