"""Where bags come from, as models and trainings see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.integer[Any]]


class Bags(Protocol):
    """Tile embeddings by slide; nothing is read until it is asked for. Threads may share it."""

    @property
    def names(self) -> Sequence[str]:
        """Of the slides, in order."""
        ...

    @property
    def dim(self) -> int:
        """Numbers in a tile's embedding."""
        ...

    def count(self, index: int) -> int:
        """Tiles of a slide."""
        ...

    def read(self, index: int, rows: Rows | None = None) -> Floats:
        """float16 or float32 [n, dim] of a slide, or of some of its tiles in the order given."""
        ...
