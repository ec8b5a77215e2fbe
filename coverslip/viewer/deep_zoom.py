"""Microsoft's Deep Zoom pyramid over a slide: every level half the one above, in squares of 256 px.

Level 0 is one pixel, the last level is the slide's level 0. Squares do not overlap, and all begin
at the slide's corner, so four squares of a level lie in one of the level before.
"""

from __future__ import annotations

from dataclasses import dataclass

TILE = 256
"""Side of a tile, px of its Deep Zoom level."""


@dataclass(frozen=True, slots=True)
class DeepZoom:
    """The pyramid over a slide of `size` (width, height) level-0 px."""

    size: tuple[int, int]

    @property
    def last(self) -> int:
        """The level of full resolution."""
        return (max(self.size) - 1).bit_length()

    @property
    def levels(self) -> int:
        """How many there are."""
        return self.last + 1

    def scale(self, level: int) -> int:
        """Level-0 px per px of a level."""
        return 1 << (self.last - level)

    def level_size(self, level: int) -> tuple[int, int]:
        """(width, height) px; what is left over at the right and bottom counts as a whole px."""
        scale = self.scale(level)
        return -(-self.size[0] // scale), -(-self.size[1] // scale)

    def grid(self, level: int) -> tuple[int, int]:
        """(columns, rows) of tiles."""
        width, height = self.level_size(level)
        return -(-width // TILE), -(-height // TILE)

    def holds(self, level: int, column: int, row: int) -> bool:
        """Whether there is such a tile."""
        if not 0 <= level <= self.last:
            return False
        columns, rows = self.grid(level)
        return 0 <= column < columns and 0 <= row < rows

    def tile_size(self, level: int, column: int, row: int) -> tuple[int, int]:
        """(width, height) px: 256 x 256 but at the right and bottom edge."""
        width, height = self.level_size(level)
        return min(TILE, width - column * TILE), min(TILE, height - row * TILE)

    def corner(self, level: int, column: int, row: int) -> tuple[int, int]:
        """(x, y) of a tile's top-left corner, level-0 px."""
        side = TILE * self.scale(level)
        return column * side, row * side
