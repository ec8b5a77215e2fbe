"""The image tower of CONCH v1.5, whose tiles TITAN reads (Ding et al. 2025).

Ding et al. 2025, "A multimodal whole-slide foundation model for pathology" (Nature Medicine): a
ViT-L/16 at 448 px whose tokens one learned query pools by attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AttentionPool(nn.Module):
    """Tokens to one vector, by the attention of a learned query.

    width, tokens_width   of the result and of the tokens
    """

    def __init__(self, width: int, tokens_width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, width))
        self.ln_q, self.ln_k = nn.LayerNorm(width), nn.LayerNorm(tokens_width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(tokens_width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:  # (b, n, tokens_width) -> (b, width)
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), 1, -1)  # (b, 1, width)
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)  # (b, n, width) each
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v)  # (b, heads, 1, width / heads)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))[:, 0]
        return out


class ConchV15(nn.Module):
    """(b, 3, 448, 448) -> (b, 768). Arguments are timm's, for the transformer."""

    def __init__(self, width: int = 768, **arguments: Any) -> None:
        import timm

        super().__init__()
        chosen = {"img_size": 448, "init_values": 1.0, **arguments}
        trunk: Any = timm.create_model("vit_large_patch16_224", num_classes=0, **chosen)
        self.trunk = trunk
        self.attn_pool_contrast = AttentionPool(width, trunk.embed_dim)
        self.ln_contrast = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.trunk.forward_features(x)  # (b, 1 + n, d), normalised
        out: Tensor = self.ln_contrast(self.attn_pool_contrast(tokens))
        return out


def own_keys(state: dict[str, Any], side: int = 28) -> dict[str, Any]:
    """The published checkpoint's, whose positions are those of 224 px, as its authors enlarge them.

    side   of the grid of patches: 448 px / 16

    They interpolate by a factor a tenth of a patch too large (as DINO did, against rounding), so
    the grid is sampled a little differently than by size. Raises KeyError with a foreign name.
    """
    found = dict(state)
    for name in state:
        if not name.startswith(("trunk.", "attn_pool_contrast.", "ln_contrast.")):
            raise KeyError(name)
    positions = state["trunk.pos_embed"]  # (1, 1 + n, d)
    old = int((positions.shape[1] - 1) ** 0.5)
    if old != side:
        places = positions[:, 1:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
        factor = (side + 0.1) / old
        larger = F.interpolate(places, scale_factor=(factor, factor), mode="bicubic")
        found["trunk.pos_embed"] = torch.cat(
            [positions[:, :1], larger.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1
        )
    return found
