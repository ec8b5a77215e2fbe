"""COBRA: a state-space model reads the tiles row by row and weighs them.

Lenz et al. 2025, "Unsupervised Foundation Model-Agnostic Slide-Level Representation Learning"
(arXiv:2411.13623). The slide's embedding is the weighted mean of the tile embeddings themselves.
Its layers are Mamba-2 (Dao & Gu 2024, arXiv:2405.21060), here in plain PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coverslip.encoders.networks.attention_pooling import GatedAttention
from coverslip.encoders.networks.bag import Bag, Pooled, by_blocks

CHUNK = 256
"""Tokens whose influence on each other is computed as one matrix."""


def scan(x: Tensor, decay: Tensor, inward: Tensor, outward: Tensor, state: Tensor) -> Tensor:
    """(q, heads, p): y_t = C_t s_t with s_t = exp(decay_t) s_(t-1) + x_t B_t, for a chunk at once.

    x         (q, heads, p), scaled by the step
    decay     (q, heads), negative
    inward    (q, s): B;  outward (q, s): C
    state     (heads, p, s) before the chunk; after it on return
    """
    sums = decay.cumsum(dim=0).T  # (heads, q)
    apart = sums[:, :, None] - sums[:, None, :]  # (heads, q, q): decay from the second to the first
    later = torch.ones(apart.shape[1:], dtype=torch.bool, device=x.device).triu(1)
    kernel = (outward @ inward.T) * apart.masked_fill(later, -torch.inf).exp()  # (heads, q, q)
    within = kernel @ x.transpose(0, 1)  # (heads, q, p)
    before = sums.exp()[..., None] * (outward @ state.transpose(1, 2))  # (heads, q, p)
    fade = (sums[:, -1:] - sums).exp()  # (heads, q)
    state *= sums[:, -1, None, None].exp()
    state += torch.einsum("hq,qhp,qs->hps", fade, x, inward)
    return (within + before).transpose(0, 1)


class StateSpace(nn.Module):
    """One Mamba-2 layer: a short convolution, the scan, a gated norm.

    width, expand   the scan runs over width · expand numbers, in heads of `head_dim`
    state           numbers that a head remembers for each of its own
    """

    def __init__(
        self, width: int, state: int, expand: int = 2, head_dim: int = 64, kernel: int = 4
    ) -> None:
        super().__init__()
        inner = width * expand
        self.sizes = [inner, inner + 2 * state, inner // head_dim]
        self.head_dim, self.state = head_dim, state
        self.inward = nn.Linear(width, sum(self.sizes), bias=False)
        self.convolve = nn.Conv1d(self.sizes[1], self.sizes[1], kernel, groups=self.sizes[1])
        self.step_bias = nn.Parameter(torch.zeros(self.sizes[2]))
        self.log_decay = nn.Parameter(torch.zeros(self.sizes[2]))
        self.skip = nn.Parameter(torch.ones(self.sizes[2]))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.outward = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (n, d)
        inner, mixed, heads = self.sizes
        tail = x.new_zeros(self.convolve.kernel_size[0] - 1, mixed)
        state = x.new_zeros(heads, self.head_dim, self.state)
        out = []
        for tokens in torch.split(x, CHUNK):
            gate, z, step = torch.split(self.inward(tokens), self.sizes, dim=1)  # (q, ...)
            z = torch.cat([tail, z])  # (k - 1 + q, mixed)
            tail = z[len(z) - len(tail) :]
            z = F.silu(self.convolve(z.T[None])[0].T)  # (q, mixed)
            values, inward, outward = torch.split(z, [inner, self.state, self.state], dim=1)
            values = values.reshape(len(tokens), heads, -1)  # (q, heads, p)
            step = F.softplus(step + self.step_bias)  # (q, heads)
            decay = -self.log_decay.exp() * step
            y = scan(step[..., None] * values, decay, inward, outward, state)
            y = (y + self.skip[:, None] * values).flatten(1)  # (q, inner)
            out.append(self.outward(self.norm(y * F.silu(gate))))
        return torch.cat(out)


class Reader(nn.Module):
    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.norm, self.space = nn.LayerNorm(width), StateSpace(width, state)

    def forward(self, x: Tensor) -> Tensor:  # (n, d)
        out: Tensor = x + self.space(self.norm(x))
        return out


class Cobra(nn.Module):
    """Tile embeddings of any of the widths it knows to their weighted mean.

    input_dims   widths of tile embeddings; each has its own way in
    """

    def __init__(
        self,
        input_dims: tuple[int, ...] = (512, 1024, 1280, 1536),
        width: int = 768,
        layers: int = 1,
        heads: int = 4,
        attention_dim: int = 256,
        state: int = 128,
    ) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.embed = nn.ModuleDict(
            {
                str(dim): nn.Sequential(
                    nn.LayerNorm(dim), nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width)
                )
                for dim in input_dims
            }
        )
        self.inward = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.layers = nn.ModuleList(Reader(width, state) for _ in range(layers))
        self.outward = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.attend = nn.ModuleList(
            GatedAttention(width // heads, attention_dim) for _ in range(heads)
        )

    def forward(self, bag: Bag) -> Pooled:
        """In float32 on every device: the scan's sums span too many orders of magnitude."""
        with torch.autocast(bag.device.type, enabled=False):
            order, dim = bag.row_major(), bag.features.shape[1]
            widest = max(dim, self.width)
            embed = self.embed[str(dim)]
            x = torch.cat([self.inward(embed(tiles)) for tiles in bag.blocks(widest, order)])
            for layer in self.layers:
                x = layer(x)  # (n, width)
            scores = torch.empty(len(bag), device=bag.device)
            scores[order.to(bag.device)] = by_blocks(self._scores, x, self.width, bag.budget)
            attention = scores.softmax(dim=0)  # (n)
            embedding = torch.zeros(dim, device=bag.device)
            start = 0
            for tiles in bag.blocks(widest):
                embedding += attention[start : start + len(tiles)] @ tiles
                start += len(tiles)
        return Pooled(embedding, attention[None])

    def _scores(self, x: Tensor) -> Tensor:  # (b, width) -> (b): the mean over the heads
        h = self.norm(self.outward(x)).unflatten(1, (-1, self.heads)).unbind(dim=2)
        of_heads = [attend(part) for attend, part in zip(self.attend, h, strict=True)]
        return torch.stack(of_heads).mean(dim=0)
