"""TITAN: a vision transformer over the grid of a slide's tiles.

Ding et al. 2024, "Multimodal Whole Slide Foundation Model for Pathology" (arXiv:2411.19666). A
query and a key attend the less the farther their tiles lie apart: ALiBi (Press et al. 2022,
arXiv:2108.12409) with the distance on the grid. Only what makes the slide's embedding is here, not
the text tower or the captioner's pooling.
"""

from __future__ import annotations

from math import floor, log2

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coverslip.encoders.networks.bag import Bag, Pooled, by_blocks


def alibi_slopes(heads: int) -> list[float]:
    """By how much a score falls with each tile of distance, for every head.

    A geometric series from 2^(-8 / heads); where heads are no power of two, that of the power below
    and then every other one of the power above.
    """

    def series(n: int) -> list[float]:
        return [2 ** (-8 * (i + 1) / n) for i in range(n)]

    power = 2 ** floor(log2(heads))
    return series(power) + series(2 * power)[::2][: heads - power]


def distance_bias(cells: Tensor, rows: slice, slopes: Tensor) -> Tensor:
    """(heads, rows, n): what the queries in `rows` lose on each key; nothing from or to token 0.

    cells    (n, 2) float: column and row of each token; those of token 0, the class token, unread
    slopes   (heads)
    """
    apart = (cells[rows, None] - cells[None]).square().sum(dim=-1).sqrt()  # (rows, n)
    apart[:, 0] = 0
    if rows.start == 0:
        apart[0] = 0
    return -slopes[:, None, None] * apart


class DistanceAttention(nn.Module):
    """Self-attention with a distance bias, a block of queries at a time: no n x n matrix stands."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, cells: Tensor, budget: int) -> Tensor:  # (n, d)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)[:, None]
        slopes = torch.tensor(alibi_slopes(self.heads), device=x.device)  # q: (1, heads, n, d / h)
        step = max(1, budget // (self.heads * len(x)))
        mixed = []
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            bias = distance_bias(cells, rows, slopes).to(q.dtype)[None]  # (1, heads, rows, n)
            mixed.append(F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=bias))
        out: Tensor = self.project(torch.cat(mixed, dim=2)[0].transpose(0, 1).flatten(1))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = DistanceAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.hidden = hidden

    def forward(self, x: Tensor, cells: Tensor, budget: int) -> Tensor:  # (n, d)
        x = x + self.attention(self.norm1(x), cells, budget)
        return x + by_blocks(lambda rows: self.mlp(self.norm2(rows)), x, self.hidden, budget)


class QueryPooling(nn.Module):
    """One learned query attends to all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, width))
        self.norm_query, self.norm_tokens = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # (n, d) -> (d)
        tokens = self.norm_tokens(x)[None]  # (1, n, d)
        query = self.norm_query(self.query)[None]  # (1, 1, d)
        out: Tensor = self.attention(query, tokens, tokens, need_weights=False)[0]
        return out[0, 0]


class Titan(nn.Module):
    """Tiles to a slide's embedding, before the projection that meets the text.

    input_dim     of the tile embeddings
    pool_heads    of the pooling; the others of the transformer
    """

    def __init__(
        self,
        input_dim: int = 768,
        width: int = 768,
        depth: int = 6,
        heads: int = 12,
        hidden: int = 3072,
        pool_heads: int = 8,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(input_dim, width)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pool = QueryPooling(width, pool_heads)

    def forward(self, bag: Bag) -> Pooled:
        """Tiles that share a cell of the grid are added up; cells of zeros count as background."""
        cells, grid = self._grid(bag)
        x = torch.cat([self.class_token[0], F.gelu(self.embed(grid))])  # (1 + m, width)
        cells = torch.cat([cells[:1], cells]).float()  # (1 + m, 2)
        for block in self.blocks:
            x = block(x, cells, bag.budget)
        embedding = self.pool(self.norm(x)).float()
        return Pooled(embedding, torch.empty(0, len(bag), device=bag.device))

    def _grid(self, bag: Bag) -> tuple[Tensor, Tensor]:
        """(m, 2) int64 occupied cells and (m, input_dim) what they hold."""
        cells = bag.cells(bag.corners.amin(dim=0))
        cells, place = torch.unique(cells, dim=0, return_inverse=True)  # (m, 2), (n)
        cells, place = cells.to(bag.device), place.to(bag.device)
        grid = torch.zeros(len(cells), self.embed.in_features, device=bag.device)
        start = 0
        for x in bag.blocks(self.embed.in_features):
            grid.index_add_(0, place[start : start + len(x)], x)
            start += len(x)
        occupied = grid.any(dim=1)
        if not occupied.any():
            raise ValueError("all tile embeddings are zero: nothing to encode")
        return cells[occupied], grid[occupied]
