"""PRISM's slide encoder: latents that read a slide's tiles.

Shaikovski et al. 2024, "PRISM: A Multi-Modal Generative Foundation Model for Slide-Level
Histopathology" (arXiv:2405.10254): a Perceiver (Jaegle et al. 2021, arXiv:2103.03206) whose first
latent becomes the slide's embedding. The other latents feed its report writer, which is not here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coverslip.encoders.networks.attention_pooling import SoftmaxSum
from coverslip.encoders.networks.bag import Bag, Pooled


class FeedForward(nn.Module):
    """A gated perceptron (GEGLU; Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inward, self.outward = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (m, d)
        value, gate = self.inward(self.norm(x)).chunk(2, dim=-1)
        out: Tensor = self.outward(value * F.gelu(gate))
        return out


class Reading(nn.Module):
    """Latents attend to the tiles.

    (x Q)(t K)^T = (x Q K^T) t^T and softmax(...)(t V) = (softmax(...) t) V, so keys and values are
    never made: what stands is a block of tiles and, for every latent and head, one mean tile.
    """

    def __init__(self, width: int, input_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(input_dim, 2 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.feed = FeedForward(width)

    def forward(self, x: Tensor, bag: Bag) -> Tensor:  # (m, d)
        both = self.key_value.weight.view(2, self.heads, -1, self.key_value.in_features)
        key, value = both.unbind()  # (h, d / h, c)
        q = self.query(self.norm(x)).unflatten(1, (self.heads, -1))  # (m, h, d / h)
        q = torch.einsum("mhd,hdc->hmc", q, key) * q.shape[-1] ** -0.5  # (h, m, c)
        read = SoftmaxSum()
        for tiles in bag.blocks(max(self.key_value.in_features, self.heads * len(x))):
            read.add(q @ tiles.T, tiles)  # (h, m, b), (b, c)
        mixed = torch.einsum("hmc,hdc->mhd", read.result(), value).flatten(1)  # (m, d)
        x = x + self.project(mixed)
        out: Tensor = x + self.feed(x)
        return out


class Thinking(nn.Module):
    """Latents attend to each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)
        self.feed = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:  # (m, d)
        h = self.norm(x)[None]
        x = x + self.attention(h, h, h, need_weights=False)[0][0]
        out: Tensor = x + self.feed(x)
        return out


class Prism(nn.Module):
    """Tiles to a slide's embedding.

    latents           besides the one that becomes the embedding
    reads             times the latents read the tiles, each followed by `thoughts` self-attentions
    reading_heads     of reading; thinking_heads of thinking
    own_readings      the first so many readings have their own weights, those after share the last
                      of them; all thinking shares one set
    """

    def __init__(
        self,
        input_dim: int = 2560,
        width: int = 1280,
        latents: int = 512,
        reads: int = 8,
        thoughts: int = 6,
        reading_heads: int = 1,
        thinking_heads: int = 8,
        own_readings: int = 2,
    ) -> None:
        super().__init__()
        self.reads = reads
        self.latents = nn.Parameter(torch.randn(1 + latents, width))
        self.reading = nn.ModuleList(
            Reading(width, input_dim, reading_heads) for _ in range(own_readings)
        )
        self.thinking = nn.ModuleList(Thinking(width, thinking_heads) for _ in range(thoughts))
        self.norm = nn.LayerNorm(width)

    def forward(self, bag: Bag) -> Pooled:
        x: Tensor = self.latents  # (1 + latents, width)
        for turn in range(self.reads):
            x = self.reading[min(turn, len(self.reading) - 1)](x, bag)
            for think in self.thinking:
                x = think(x)
        return Pooled(self.norm(x[0]).float(), torch.empty(0, len(bag), device=bag.device))
