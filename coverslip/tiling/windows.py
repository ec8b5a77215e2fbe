"""Windows: equal rectangles of output pixels anywhere on a slide, at one exact scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Windows:
    """What to read from a slide.

    origins   float64 [N, 2] (x, y) of each window's top-left corner in level-0 px; may lie
              between pixels and outside the slide; sorted by y
    size      (width, height) in output px
    scale     (x, y) level-0 px per output px

    Output pixel (u, v) covers level-0 [x + u·sx, x + (u + 1)·sx) by [y + v·sy, y + (v + 1)·sy).
    """

    origins: npt.NDArray[np.float64]
    size: tuple[int, int]
    scale: tuple[float, float]

    def __post_init__(self) -> None:
        if self.origins.ndim != 2 or self.origins.shape[1] != 2:
            raise ValueError(f"origins must be [N, 2], got {self.origins.shape}")
        if np.any(np.diff(self.origins[:, 1]) < 0):
            raise ValueError("origins must be sorted by y")
        if min(self.size) < 1 or not min(self.scale) > 0:
            raise ValueError(f"size and scale must be above 0, got {self.size}, {self.scale}")

    def __len__(self) -> int:
        return len(self.origins)

    def at(self, rows: npt.NDArray[np.int64] | slice) -> Windows:
        """The windows at `rows` only."""
        return Windows(self.origins[rows], self.size, self.scale)
