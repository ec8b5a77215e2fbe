"""Bags of any length in bounded memory: tiles in blocks, whose intermediates are not kept.

What is forgotten going forward is computed again going backward (Chen et al. 2016, "Training Deep
Nets with Sublinear Memory Cost", arXiv:1604.06174). Results depend on the size of the blocks in
their last bits only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK = 2048
"""Tiles whose intermediates are in memory at once."""

Parts = tuple[Tensor, ...]


def by_blocks(function: Callable[..., Parts], tiles: Tensor, *further: Tensor) -> tuple[Parts, ...]:
    """Each of the function's results, as a tuple of what it gave for one block after the other.

    function   of (b, dim), some of the tiles, and of as many rows of `further`
    tiles      (n, dim)
    further    (n, ...) each

    Raises ValueError for a bag that has no tiles, or is not (n, dim).
    """
    if tiles.ndim != 2 or not len(tiles):
        raise ValueError(f"a bag must be (n, dim) with n at least 1, got {tuple(tiles.shape)}")
    if len(tiles) <= BLOCK:
        return tuple((result,) for result in function(tiles, *further))
    # torch.split, not slices: going backward, each slice would fill a tensor as large as the bag
    blocks = zip(*(torch.split(rows, BLOCK) for rows in (tiles, *further)), strict=True)
    parts = [recomputed(True, function, *rows) for rows in blocks]
    return tuple(zip(*parts, strict=True))


def recomputed(long: bool, function: Callable[..., Parts], *inputs: Tensor) -> Parts:
    """function(*inputs), keeping its inputs and its results and nothing in between.

    long   whether the bag is: of a short one all is kept, which is faster
    """
    if not long or not torch.is_grad_enabled():
        return function(*inputs)
    found: Parts = checkpoint(function, *inputs, use_reentrant=False)
    return found


def softmax_pooled(read: Callable[[Tensor], Parts], tiles: Tensor) -> Parts:
    """softmax(scores) @ values over the tiles, in one pass.

    read    of (b, dim), some of the tiles: their scores (b, branches), values (b, d), and any more
            that is wanted of each, (b, ...)
    tiles   (n, dim)

    Returns (branches, d), the softmax (branches, n), and (n, ...) whatever more was read. Every
    block has a softmax of its own, and the blocks are weighed by their shares of the whole,
    exp(logsumexp), as in Milakov & Gimelshein 2018 (arXiv:1805.02867).
    """

    def part(rows: Tensor) -> Parts:
        scores, values, *further = read(rows)
        mean = scores.softmax(dim=0).T @ values  # (branches, d)
        return scores, scores.logsumexp(dim=0), mean, *further

    scores, masses, means, *further = by_blocks(part, tiles)
    share = torch.stack(masses).softmax(dim=0)  # (blocks, branches)
    pooled = torch.einsum("bk,bkd->kd", share, torch.stack(means))  # (branches, d)
    attention = torch.cat(scores).softmax(dim=0).T  # (branches, n)
    return pooled, attention, *(torch.cat(parts) for parts in further)


def without_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), for what no loss is made of: computed again going backward, and then not asked
    for a gradient, its intermediates would stay in memory for every block."""
    with torch.no_grad():
        return function(x)
