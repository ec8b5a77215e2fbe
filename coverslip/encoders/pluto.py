"""PLUTO: one small vision transformer for many patch sizes and magnifications.

Juyal et al. 2024, "PLUTO: Pathology-Universal Transformer" (arXiv:2405.07905): a FlexiViT-S (Beyer
et al. 2023, arXiv:2212.08013) whose patch size may be chosen at every call, with register tokens
(Darcet et al. 2023). PLUTO-4 (2025, arXiv:2511.02826) replaces the learned position embedding by a
two-dimensional rotary one (`rotary=True`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCHES = (8, 32)
"""Smallest and largest patch side, px."""


@lru_cache(maxsize=64)
def patch_resize(old: int, new: int) -> Tensor:
    """(new², old²): turns a patch-embedding kernel of side `old` into one of side `new`.

    With B the matrix of bilinear resizing, w' = pinv(B^T) w: the w' for which <B x, w'> is nearest
    to <x, w> over all patches x, and equal to it where `new` is larger (FlexiViT, section 3.4).
    """
    basis = torch.eye(old * old, dtype=torch.float64).reshape(-1, 1, old, old)
    resized = F.interpolate(basis, (new, new), mode="bilinear", antialias=new < old)
    matrix = resized.reshape(old * old, new * new).T  # (new², old²)
    inverse: Tensor = torch.linalg.pinv(matrix.T)
    return inverse


class FlexiblePatches(nn.Module):
    """Patches of any side to tokens, by one base kernel."""

    def __init__(self, width: int, base: int) -> None:
        super().__init__()
        self.base = base
        self.weight = nn.Parameter(torch.empty(width, 3, base, base))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.trunc_normal_(self.weight, std=(3 * base * base) ** -0.5)

    def forward(self, x: Tensor, patch: int) -> Tensor:  # (b, 3, H, W) -> (b, d, h, w)
        kernel: Tensor = self.weight
        if patch != self.base:
            change = patch_resize(self.base, patch).to(kernel)  # (p², base²)
            kernel = (kernel.flatten(2) @ change.T).reshape(*kernel.shape[:2], patch, patch)
        return F.conv2d(x, kernel, self.bias, stride=patch)


def rotary_angles(grid: tuple[int, int], dim: int, device: torch.device) -> Tensor:
    """(h · w, dim / 2): half of the frequencies turn with the row, half with the column.

    Positions run from -1 to 1 over the tile, so that the angles do not depend on the patch side.
    """
    frequency = torch.pi * 100 ** torch.linspace(0, 1, dim // 4, device=device)  # (dim / 4)
    rows, columns = ((torch.arange(n, device=device) + 0.5) / n * 2 - 1 for n in grid)
    angle = torch.cat(
        [
            (rows[:, None] * frequency)[:, None].expand(-1, grid[1], -1),
            (columns[:, None] * frequency)[None].expand(grid[0], -1, -1),
        ],
        dim=-1,
    )  # (h, w, dim / 2)
    return angle.flatten(0, 1)


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """x (b, heads, n, dim), the pairs (x[2i], x[2i + 1]) turned by angle (n, dim / 2)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, angle: Tensor | None) -> Tensor:  # (b, n, d)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if angle is not None:  # of the patches alone: they are the last tokens
            lead = q.shape[2] - len(angle)
            q = torch.cat([q[:, :, :lead], rotated(q[:, :, lead:], angle)], dim=2)
            k = torch.cat([k[:, :, :lead], rotated(k[:, :, lead:], angle)], dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (b, heads, n, d / heads)
        out: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(width)) for _ in range(2))  # LayerScale

    def forward(self, x: Tensor, angle: Tensor | None) -> Tensor:  # (b, n, d)
        x = x + self.scale1 * self.attention(self.norm1(x), angle)
        x = x + self.scale2 * self.mlp(self.norm2(x))
        return x


class Hidden(NamedTuple):
    """Patches whose content is withheld."""

    where: Tensor  # (b, h, w) bool
    token: Tensor  # (d,): stands in their place


class Pluto(nn.Module):
    """Tiles to tokens.

    width, depth, heads, hidden   of the transformer
    registers                     tokens that belong to no place
    patch                         side of the base kernel, and of a call that names none, px
    grid                          side of the base position embedding, in patches
    rotary                        rotate queries and keys by place instead of adding an embedding
    """

    def __init__(
        self,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        hidden: int = 1536,
        registers: int = 4,
        patch: int = 16,
        grid: int = 14,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        self.patch, self.rotary, self.head_dim = patch, rotary, width // heads
        self.num_prefix_tokens = 1 + registers
        self.patches = FlexiblePatches(width, patch)
        self.prefix = nn.Parameter(torch.zeros(1, 1 + registers, width))
        self.position = None if rotary else nn.Parameter(torch.zeros(1, width, grid, grid))
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.prefix, std=0.02)
        if self.position is not None:
            nn.init.trunc_normal_(self.position, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)  # narrow networks hardly move from 0.02
                nn.init.zeros_(module.bias)

    def forward_features(
        self, x: Tensor, patch: int | None = None, hidden: Hidden | None = None
    ) -> Tensor:
        """x (b, 3, H, W), sides multiples of `patch` -> (b, 1 + registers + h · w, d), normalised.

        patch    8 to 32 px; the base one by default
        hidden   patches the network must not see: pretraining asks for them
        """
        for tokens in self._layers(x, patch or self.patch, hidden):
            last = tokens
        out: Tensor = self.norm(last)
        return out

    def forward(self, x: Tensor, patch: int | None = None) -> Tensor:
        """(b, 3, H, W) -> (b, d): the class token."""
        return self.forward_features(x, patch)[:, 0]

    def dense_features(
        self, x: Tensor, depths: Sequence[int] = (3, 6, 9, 12), patch: int | None = None
    ) -> list[Tensor]:
        """The patch tokens after these blocks (counted from 1), normalised: each (b, d, h, w)."""
        patch = patch or self.patch
        grid = (x.shape[2] // patch, x.shape[3] // patch)
        found = []
        for number, tokens in enumerate(self._layers(x, patch), 1):
            if number in depths:
                places = self.norm(tokens)[:, self.num_prefix_tokens :]  # (b, h · w, d)
                found.append(places.transpose(1, 2).unflatten(2, grid))
        return found

    def _layers(self, x: Tensor, patch: int, hidden: Hidden | None = None) -> Iterator[Tensor]:
        """The tokens after every block."""
        if not PATCHES[0] <= patch <= PATCHES[1]:
            raise ValueError(f"patch must be {PATCHES[0]} to {PATCHES[1]} px, got {patch}")
        if x.shape[2] % patch or x.shape[3] % patch:
            sides = f"{x.shape[3]} x {x.shape[2]}"
            raise ValueError(f"tiles of {sides} px do not divide into patches of {patch}")
        places = self.patches(x, patch)  # (b, d, h, w)
        if hidden is not None:
            places = torch.where(hidden.where[:, None], hidden.token[:, None, None], places)
        grid, angle = (places.shape[2], places.shape[3]), None
        if self.position is None:
            angle = rotary_angles(grid, self.head_dim, x.device)
        elif grid == self.position.shape[2:]:
            places = places + self.position
        else:
            places = places + F.interpolate(
                self.position, grid, mode="bicubic", antialias=grid[0] < self.position.shape[2]
            )
        tokens = torch.cat(
            [self.prefix.expand(len(x), -1, -1), places.flatten(2).transpose(1, 2)], dim=1
        )  # (b, 1 + r + h · w, d)
        for block in self.blocks:
            tokens = block(tokens, angle)
            yield tokens


def pluto_small(**arguments: int | bool) -> Pluto:
    """22 M parameters: the published size. Other sizes by keyword."""
    return Pluto(**arguments)  # type: ignore[arg-type]
