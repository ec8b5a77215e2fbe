"""MUSK: one transformer with an expert for images and one for text, each run on its own here.

Xiang et al. 2025, "A vision-language foundation model for precision oncology" (Nature 638); the
network is BEiT-3 (Wang et al. 2022, arXiv:2208.10442) at its large size, with normalisation inside
attention and feed-forward, too (Magneto, arXiv:2210.06423).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIRST_POSITION = 2
"""Position embeddings are counted from here, as in Fairseq."""


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.inner_attn_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:  # (b, n, d), (b, n)
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # (b, heads, n, d / heads)
        mask = None if real is None else real[:, None, None]  # of the keys alone
        mixed = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        out: Tensor = self.out_proj(self.inner_attn_ln(mixed))
        return out


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.ffn_layernorm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.ffn_layernorm(F.gelu(self.fc1(x))))
        return out


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = Attention(width, heads)
        self.ffn = FeedForward(width, hidden)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), real)
        x = x + self.ffn(self.final_layer_norm(x))
        return x


class Patches(nn.Module):
    """Pixels to tokens, a class token before them."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:  # (b, 3, H, W) -> (b, 1 + n, d)
        places = self.proj(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), places], dim=1)


class Expert(nn.Module):
    """Tokens of one kind to an embedding: the first token's, projected.

    embed       what makes tokens of the input
    positions   as many as the input may have tokens, and `FIRST_POSITION` more
    """

    def __init__(
        self, embed: nn.Module, positions: int, width: int, depth: int, heads: int, hidden: int
    ) -> None:
        super().__init__()
        self.embed = embed
        self.embed_positions = nn.Embedding(positions, width)
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(depth))
        self.layer_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Pixels (b, 3, H, W), or ids (b, n) with `real` (b, n), False where they pad -> (b, d)."""
        tokens: Tensor = self.embed(x)  # (b, n, d)
        places = self.embed_positions.weight[FIRST_POSITION : FIRST_POSITION + tokens.shape[1]]
        tokens = tokens + places
        for layer in self.layers:
            tokens = layer(tokens, real)
        out: Tensor = self.head(self.layer_norm(tokens[:, 0]))
        return out


class TextExpert(Expert):
    """The expert for text, and the learned scale of its cosines with images."""

    def __init__(self, padding: int, *arguments: nn.Module | int) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.padding = padding
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Ids (b, n), the shorter texts padded -> (b, d)."""
        return super().forward(x, x != self.padding)


def musk_image(
    width: int = 1024,
    depth: int = 24,
    heads: int = 16,
    hidden: int = 4096,
    patch: int = 16,
    side: int = 384,
) -> Expert:
    """The image expert: tiles of `side` px to embeddings."""
    positions = FIRST_POSITION + 1 + (side // patch) ** 2
    return Expert(Patches(width, patch), positions, width, depth, heads, hidden)


def musk_text(
    width: int = 1024,
    depth: int = 24,
    heads: int = 16,
    hidden: int = 4096,
    vocabulary: int = 64010,
    positions: int = 1024,
) -> TextExpert:
    """The text expert: ids of `text_tokens.sentencepiece_tokeniser` to embeddings."""
    embed = nn.Embedding(vocabulary, width)
    return TextExpert(1, embed, positions, width, depth, heads, hidden)
