"""GigaPath's slide encoder: LongNet over a slide's tiles, row by row.

Xu et al. 2024, "A whole-slide foundation model for digital pathology from real-world data"
(doi:10.1038/s41586-024-07441-w). Dilated attention (Ding et al. 2023, "LongNet",
arXiv:2307.02486): tokens attend within segments, the longer the segment the fewer of its tokens;
every head takes others of them, and what a token finds in all segments is mixed by their softmax
sums. Plain PyTorch; the sums are what flash-attn would return beside its output.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log

import torch
from torch import Tensor, nn

from coverslip.encoders.networks.bag import Bag, Pooled, by_blocks

SEGMENTS = (1024, 5792, 32768, 185363, 1048576)
DILATIONS = (1, 2, 4, 8, 16)
"""Tokens in a segment, and of how many neighbours one is taken: GigaPath's, for 1024² tiles."""


def dilated(
    heads: int, tokens: int, segment: int, dilation: int
) -> Iterator[tuple[slice, slice, int]]:
    """What attends to itself alone: (heads, tokens, places left empty).

    The heads fall into `dilation` groups; group g takes tokens g, g + dilation, ... of a segment.
    Places that a short last segment leaves empty count as keys that score 0 and hold 0: so it is in
    the network that was trained.
    """
    segment = min(segment, tokens)
    share = heads // dilation
    for start in range(0, tokens, segment):
        stop = min(start + segment, tokens)
        for group in range(dilation):
            taken = slice(start + group, stop, dilation)
            present = len(range(taken.start, taken.stop, taken.step))
            if present:
                empty = -(-segment // dilation) - present
                yield slice(group * share, (group + 1) * share), taken, empty


def attend(q: Tensor, k: Tensor, v: Tensor, empty: int, budget: int) -> tuple[Tensor, Tensor]:
    """(heads, n, d) attended and (heads, n, 1) log of the softmax's sum, float32, by blocks of q.

    q, k, v   (heads, n, d)
    empty     further keys that score 0 and hold 0
    """
    scale = q.shape[-1] ** -0.5
    found, sums = [], []
    for part in torch.split(q, max(1, budget // (k.shape[0] * k.shape[1])), dim=1):
        scores = ((part * scale) @ k.transpose(1, 2)).float()  # (heads, rows, n)
        peak = scores.amax(dim=-1, keepdim=True)  # (heads, rows, 1)
        share = scores.sub_(peak).exp_()
        total = peak + share.sum(dim=-1, keepdim=True).log()
        if empty:
            total = torch.logaddexp(total, torch.full_like(total, log(empty)))
        found.append((share.mul_((peak - total).exp()) @ v).float())
        sums.append(total)
    return torch.cat(found, dim=1), torch.cat(sums, dim=1)


class DilatedAttention(nn.Module):
    def __init__(
        self, width: int, heads: int, segments: tuple[int, ...], dilations: tuple[int, ...]
    ) -> None:
        super().__init__()
        if any(heads % dilation for dilation in dilations):
            raise ValueError(f"{heads} heads do not fall into groups of {dilations}")
        self.heads, self.ways = heads, tuple(zip(segments, dilations, strict=True))
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.project = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, budget: int) -> Tensor:  # (n, d)
        q, k, v = (
            layer(x).unflatten(1, (self.heads, -1)).transpose(0, 1)
            for layer in (self.query, self.key, self.value)
        )  # (heads, n, d / heads)
        mixed = torch.zeros(q.shape, device=x.device)
        sums = torch.full((*q.shape[:2], 1), -torch.inf, device=x.device)  # (heads, n, 1)
        for segment, dilation in self.ways:
            for h, t, empty in dilated(self.heads, len(x), segment, dilation):
                found, total = attend(q[h, t], k[h, t], v[h, t], empty, budget)
                both = torch.logaddexp(sums[h, t], total)
                mixed[h, t] *= (sums[h, t] - both).exp()
                mixed[h, t] += (total - both).exp() * found
                sums[h, t] = both
        out: Tensor = self.project(self.norm(mixed.transpose(0, 1).flatten(1)))
        return out


class Layer(nn.Module):
    def __init__(
        self, width: int, heads: int, segments: tuple[int, ...], dilations: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.hidden = 4 * width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = DilatedAttention(width, heads, segments, dilations)
        self.mlp = nn.Sequential(
            nn.Linear(width, self.hidden),
            nn.GELU(),
            nn.LayerNorm(self.hidden),
            nn.Linear(self.hidden, width),
        )

    def forward(self, x: Tensor, budget: int) -> Tensor:  # (n, d)
        x = x + self.attention(self.norm1(x), budget)
        return x + by_blocks(lambda rows: self.mlp(self.norm2(rows)), x, self.hidden, budget)


def place_codes(cells: Tensor, dim: int) -> Tensor:
    """(n, dim): sines and cosines of the row, then those of the column.

    cells   (n, 2) int64: column and row
    """
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    parts = []
    for place in cells.flip(1).cpu().double().unbind(dim=1):
        angle = place[:, None] * frequency  # (n, dim / 4)
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1).float()


class LongNet(nn.Module):
    """Tiles to a slide's embedding: the mean of the tiles' tokens after the last layer here.

    layers   that are run. GigaPath's authors fine-tune, and others embed, with 11 of the 12 it was
             trained with; its class token was not trained and only takes part in attention
    """

    def __init__(
        self,
        input_dim: int = 1536,
        width: int = 768,
        layers: int = 11,
        heads: int = 16,
        segments: tuple[int, ...] = SEGMENTS,
        dilations: tuple[int, ...] = DILATIONS,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(input_dim, width)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.layers = nn.ModuleList(
            Layer(width, heads, tuple(segments), tuple(dilations)) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, bag: Bag) -> Pooled:
        order = bag.row_major()
        width = self.embed.out_features
        tokens, places = [self.class_token[0]], bag.cells()[order]
        start = 0
        for tiles in bag.blocks(max(self.embed.in_features, width), order):
            code = place_codes(places[start : start + len(tiles)], width).to(bag.device)
            tokens.append(self.embed(tiles) + code)  # (b, width)
            start += len(tiles)
        x = torch.cat(tokens)  # (1 + n, width)
        for layer in self.layers:
            x = layer(x, bag.budget)
        embedding = self.norm(x[1:].mean(dim=0)).float()
        return Pooled(embedding, torch.empty(0, len(bag), device=bag.device))
