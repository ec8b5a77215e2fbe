"""A slide's tile embeddings as slide encoders read them, in blocks of a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Pooled(NamedTuple):
    """What a network makes of a bag.

    embedding   (dim) float32
    attention   (heads, n) float32, each row summing to 1; no rows where a network has none to show
    """

    embedding: Tensor
    attention: Tensor


@dataclass(frozen=True)
class Bag:
    """The tiles of one slide.

    features   (n, d) float, wherever they are
    corners    (n, 2) int64: level-0 px (x, y) of the tiles' top-left corners
    tile_px0   side of a tile in level-0 px
    device     where to compute
    budget     numbers that the largest intermediate may hold; changes results in the last bits only
    """

    features: Tensor
    corners: Tensor
    tile_px0: float
    device: torch.device
    budget: int

    def __len__(self) -> int:
        return len(self.features)

    def blocks(self, widest: int, order: Tensor | None = None) -> Iterator[Tensor]:
        """(some, d) float32 on the device, as many tiles as keep to the budget.

        widest   numbers that a tile takes where it takes most
        order    (n) the tiles' indices in the order wanted; as they come by default
        """
        size = max(1, self.budget // widest)
        for start in range(0, len(self), size):
            chosen = slice(start, start + size) if order is None else order[start : start + size]
            yield self.features[chosen].to(self.device, torch.float32)

    def cells(self, origin: Tensor | None = None) -> Tensor:
        """(n, 2) int64: column and row of each tile, in tiles from `origin` (x, y).

        A corner may have been rounded up to a pixel short of its place, and is taken to be on it.
        """
        from_origin = self.corners if origin is None else self.corners - origin
        return ((from_origin + 1).double() / self.tile_px0).floor().long()

    def row_major(self) -> Tensor:
        """(n) indices of the tiles row by row: what a sequence model reads does not depend on the
        order in which tiles were stored."""
        x, y = (self.corners - self.corners.amin(dim=0)).unbind(dim=1)
        return torch.argsort(y * (x.max() + 1) + x, stable=True)


def by_blocks(function: Callable[[Tensor], Tensor], x: Tensor, widest: int, budget: int) -> Tensor:
    """function(x) of rows that do not depend on each other, `widest` numbers a row at most."""
    return torch.cat([function(rows) for rows in torch.split(x, max(1, budget // widest))])
