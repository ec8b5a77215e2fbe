"""TransMIL: tiles that attend to each other, approximately, and to their places in a square.

Shao et al. 2021, "TransMIL: Transformer based Correlated Multiple Instance Learning for Whole Slide
Image Classification" (arXiv:2106.00908).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coverslip.mil import blocks
from coverslip.mil.blocks import Parts, by_blocks, recomputed
from coverslip.mil.nystrom import NystromLayer
from coverslip.mil.slide_model import SlideModel, SlideOutput


class TransMIL(SlideModel):
    """logits = W LayerNorm(class token) + b after two layers of attention.

        h = ReLU(V x + c), laid out row by row in the smallest square that holds them, its end
            filled with the first tiles again, behind a class token
        h = h + Nystrom attention(LayerNorm(h))
        h = h + convolutions of 7, 5 and 3 px over the square
        h = h + Nystrom attention(LayerNorm(h))

    hidden      width of h
    heads       of the attention
    landmarks   means of as many tokens each, through which tokens attend to each other
    dropout     share of the attention's output left out while training

    The order of the tiles matters: it decides their places in the square, and the landmarks. Their
    attention is the class token's in the second layer, the mean over heads; what the approximation
    makes negative counts as 0, and attention is uniform where that leaves nothing.
    """

    def __init__(
        self,
        dim: int,
        outputs: int,
        hidden: int = 512,
        heads: int = 8,
        landmarks: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.project = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, hidden))
        self.first = NystromLayer(hidden, heads, landmarks, dropout)
        self.place = PositionEncoding(hidden)
        self.second = NystromLayer(hidden, heads, landmarks, dropout)
        self.norm = nn.LayerNorm(hidden)
        self.classify = nn.Linear(hidden, outputs)

    def forward(self, tiles: Tensor) -> SlideOutput:  # (n, dim)
        long = len(tiles) > blocks.BLOCK
        (h,) = recomputed(long, self._first, self._square(tiles))  # (1 + side², hidden)
        token, attention = recomputed(long, self._second, h)  # (hidden), (1 + side²)
        embedding = self.norm(token)  # (hidden)
        logits = self.classify(embedding)
        row = _of_tiles(attention[1:], len(tiles))  # (n)
        none = logits.new_empty(0, self.outputs)
        return SlideOutput(logits, row[None], embedding, none, logits[None])

    def _square(self, tiles: Tensor) -> Tensor:
        """(1 + side², hidden)"""
        (parts,) = by_blocks(lambda rows: (self.project(rows),), tiles)
        side = math.isqrt(len(tiles) - 1) + 1
        again = self.project(tiles[: side * side - len(tiles)])
        return torch.cat([self.class_token, *parts, again])

    def _first(self, tokens: Tensor) -> Parts:
        return (self.first(tokens),)

    def _second(self, tokens: Tensor) -> Parts:
        return self.second.of_first(self.place(tokens))


class PositionEncoding(nn.Module):
    """PPEG: depthwise convolutions of 7, 5 and 3 px over the square, beside what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolve_7 = nn.Conv2d(width, width, 7, groups=width)
        self.convolve_5 = nn.Conv2d(width, width, 5, groups=width)
        self.convolve_3 = nn.Conv2d(width, width, 3, groups=width)

    def forward(self, tokens: Tensor) -> Tensor:  # (1 + side², width) -> the same
        token, rest = torch.split(tokens, [1, len(tokens) - 1])
        side = math.isqrt(len(rest))
        square = rest.T.reshape(1, -1, side, side)  # (1, width, side, side)
        square = F.conv2d(square, *self._kernel(), padding=3, groups=square.shape[1])
        return torch.cat([token, square[0].flatten(1).T])

    def _kernel(self) -> tuple[Tensor, Tensor]:
        """(width, 1, 7, 7), (width): all three and the identity are one convolution."""
        seven, five, three = self.convolve_7, self.convolve_5, self.convolve_3
        weight = seven.weight + F.pad(five.weight, [1] * 4) + F.pad(three.weight, [2] * 4)
        identity = F.pad(weight.new_ones(1, 1, 1, 1), [3] * 4)
        biases = [c.bias for c in (seven, five, three) if c.bias is not None]
        return weight + identity, torch.stack(biases).sum(dim=0)


def _of_tiles(attention: Tensor, count: int) -> Tensor:
    """(count), summing to 1, of that of a square's tokens; a tile has what its repetition has."""
    row, again = torch.split(attention, [count, len(attention) - count])
    row = (row + F.pad(again, (0, count - len(again)))).clamp_min(0)
    total = row.sum()
    return torch.where(total > 0, row / total.clamp_min(torch.finfo(row.dtype).tiny), 1 / count)
