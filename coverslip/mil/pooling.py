"""What every other model has to beat: a bag's mean or maximum, and a linear layer on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from coverslip.mil.blocks import Parts, by_blocks, without_gradient
from coverslip.mil.slide_model import SlideModel, SlideOutput

SAME = 1e-6
"""Share of the largest mean embedding below which a spread is float32's rounding."""


class LinearModel(SlideModel):
    """logits = W mean_k(z_k) + b with z = (x - centre) / spread: logistic regression on the mean
    embedding, standardised.

    centre, spread   (dim): mean and deviation over the mean embeddings of the bags it is trained
                     on; 0 and 1 until then. The means of many tiles differ by a hundredth of their
                     size, which gradient steps on x itself hardly see

    No layer but the last learns. Tile k contributes (W z_k + b) / n.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))
        self.classify = nn.Linear(dim, outputs)

    def prepare(self, means: Callable[[], Tensor]) -> None:
        """Takes centre and spread from them; the spread of a number that is the same in all bags,
        but for rounding, is 1."""
        found = means()  # (bags, dim) float64
        spread = found.std(dim=0, correction=0)
        self.centre.copy_(found.mean(dim=0))
        self.spread.copy_(spread.where(spread > SAME * found.abs().max(), 1))

    def forward(self, tiles: Tensor) -> SlideOutput:  # (n, dim)
        return _mean_output(self._part, self.classify, tiles)

    def _part(self, rows: Tensor) -> Parts:
        z = (rows - self.centre) / self.spread  # (b, dim)
        return z.sum(dim=0), without_gradient(self.classify, z)  # (dim), (b, outputs)


class MeanPooling(SlideModel):
    """logits = W mean_k(h_k) + b with h = ReLU(V x + c).

    hidden    width of h
    dropout   share of h's numbers left out while training

    Tile k contributes (W h_k + b) / n.
    """

    def __init__(self, dim: int, outputs: int, hidden: int = 512, dropout: float = 0.25) -> None:
        super().__init__()
        self.outputs = outputs
        self.project = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.classify = nn.Linear(hidden, outputs)

    def forward(self, tiles: Tensor) -> SlideOutput:  # (n, dim)
        return _mean_output(self._part, self.classify, tiles)

    def _part(self, rows: Tensor) -> Parts:
        h = self.project(rows)  # (b, hidden)
        return h.sum(dim=0), without_gradient(self.classify, h)  # (hidden), (b, outputs)


class MaxPooling(SlideModel):
    """logits = W z + b with z_d = max_k(h_kd) and h = ReLU(V x + c).

    hidden    width of h
    dropout   share of h's numbers left out while training

    Each number of z comes from one tile, which contributes W_d z_d. The attention of a tile is its
    share of the numbers above 0, uniform where there is none, and b is contributed by attention.
    """

    def __init__(self, dim: int, outputs: int, hidden: int = 512, dropout: float = 0.25) -> None:
        super().__init__()
        self.outputs = outputs
        self.project = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.classify = nn.Linear(hidden, outputs)

    def forward(self, tiles: Tensor) -> SlideOutput:  # (n, dim)
        numbers = torch.arange(len(tiles), device=tiles.device)
        peaks, places = by_blocks(self._part, tiles, numbers)
        embedding, block = torch.stack(peaks).max(dim=0)  # (hidden) each
        place = torch.stack(places).gather(0, block[None])[0]  # (hidden): the tile it comes from
        attention = _shares(place, embedding > 0, len(tiles))  # (n)
        contributions = attention[:, None] * self.classify.bias.detach()  # (n, outputs)
        each = (self.classify.weight * embedding).detach().T  # (hidden, outputs)
        contributions = contributions.index_add(0, place, each)
        logits = self.classify(embedding)
        return SlideOutput(logits, attention[None], embedding, contributions, logits[None])

    def _part(self, rows: Tensor, numbers: Tensor) -> Parts:
        peak, place = self.project(rows).max(dim=0)  # (hidden) each
        return peak, numbers[place]


def _shares(place: Tensor, counted: Tensor, tiles: int) -> Tensor:
    """(tiles): the share of the counted places that each tile has, or all alike without any."""
    votes = torch.zeros(tiles, device=place.device).index_add(0, place, counted.float())
    return torch.where(counted.any(), votes / counted.sum().clamp_min(1), 1 / tiles)


def _mean_output(
    part: Callable[[Tensor], Parts], classify: nn.Linear, tiles: Tensor
) -> SlideOutput:
    sums, votes = by_blocks(part, tiles)
    embedding = torch.stack(sums).sum(dim=0) / len(tiles)  # (width)
    logits = classify(embedding)
    attention = tiles.new_full((1, len(tiles)), 1 / len(tiles))
    contributions = torch.cat(votes) / len(tiles)  # (n, outputs)
    return SlideOutput(logits, attention, embedding, contributions, logits[None])
