"""PathoDuet: a ViT-B/16 with one token more, that stands for a second image in its training.

Hua et al. 2024, "PathoDuet: Foundation models for pathological slide analysis of H&E and IHC
stains" (Medical Image Analysis 97, 103289).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PathoDuet(nn.Module):
    """(b, 3, 224, 224) -> (b, 768): the mean of the patches, normalised. Arguments are timm's."""

    def __init__(self, **arguments: Any) -> None:
        import timm

        super().__init__()
        vit: Any = timm.create_model(
            "vit_base_patch16_224", num_classes=0, global_pool="avg", **arguments
        )
        self.patch_embed, self.blocks, self.fc_norm = vit.patch_embed, vit.blocks, vit.fc_norm
        self.pretext_token = nn.Parameter(torch.zeros(1, 1, vit.embed_dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, vit.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + vit.pos_embed.shape[1], vit.embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        places = self.patch_embed(x)  # (b, n, d)
        lead = torch.cat([self.pretext_token, self.cls_token], dim=1).expand(len(x), -1, -1)
        tokens = self.blocks(torch.cat([lead, places], dim=1) + self.pos_embed)  # (b, 2 + n, d)
        mean: Tensor = self.fc_norm(tokens[:, 2:].mean(dim=1))
        return mean


def own_keys(state: dict[str, Any]) -> dict[str, Any]:
    """Of a released checkpoint, taken as its authors' example takes it.

    Their network pools by the mean and normalises what it pooled; where the checkpoint has no such
    norm (it was trained with the norm before the pooling), theirs stays as it was made: ones and
    zeros.
    """
    found = {k: v for k, v in state.items() if not k.startswith(("head.", "norm."))}
    width = state["cls_token"].shape[-1]
    found.setdefault("fc_norm.weight", torch.ones(width))
    found.setdefault("fc_norm.bias", torch.zeros(width))
    return found
