"""GenBio-PathFM: one colour at a time through a ViT, the three class tokens side by side.

Kapse et al. 2026, "GenBio-PathFM" (bioRxiv 2026.03.17.712534): DINOv3's transformer (rotary
positions, SwiGLU, four registers) for images of one channel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class BrainFloatRotary(nn.Module):
    """DINOv3's rotary positions with angles in bfloat16, as this network was trained with them.

    head   width of an attention head
    """

    def __init__(self, head: int, base: float = 100.0) -> None:
        super().__init__()
        self.head, self.base = head, base
        self.here: Tensor  # moves with the network
        self.register_buffer("here", torch.empty(0), persistent=False)

    def get_embed(self, shape: tuple[int, int]) -> Tensor:
        """(rows · columns, 2 · head): sines, then cosines, of each place on a grid."""
        half = {"dtype": torch.bfloat16, "device": "cpu"}
        exponent = 2 * torch.arange(self.head // 4, **half) / (self.head // 2)  # type: ignore[call-overload]
        periods = self.base**exponent  # (head / 4)
        rows, columns = (torch.arange(0.5, n, **half) / n for n in shape)  # type: ignore[call-overload]
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
        angles = 2 * math.pi * (2 * places - 1)[:, :, None] / periods  # (n, 2, head / 4)
        angles = angles.flatten(1).tile(2)  # (n, head)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).float().to(self.here.device)


class PathFM(nn.Module):
    """(b, 3, 224, 224) -> (b, 3 · 1536): the class token of red, of green, of blue.

    Arguments are timm's, for the transformer.
    """

    def __init__(self, **arguments: Any) -> None:
        import timm

        super().__init__()
        chosen = {
            "in_chans": 1, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 8 / 3,
            **arguments,
        }  # fmt: skip
        self.encoder: Any = timm.create_model(
            "vit_7b_patch16_dinov3", num_classes=0, norm_layer=_norm, **chosen
        )
        self.encoder.rope = BrainFloatRotary(chosen["embed_dim"] // chosen["num_heads"])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.encoder.forward_features(x.flatten(0, 1)[:, None])  # (3 b, 5 + n, d)
        colours: Tensor = tokens[:, 0].unflatten(0, (-1, 3)).flatten(1)
        return colours


def _norm(width: int, **_: Any) -> nn.Module:
    return nn.LayerNorm(width, eps=1e-6)


_PARTS = {
    "storage_tokens": "reg_token",
    ".mlp.w1.": ".mlp.fc1_g.",
    ".mlp.w2.": ".mlp.fc1_x.",
    ".mlp.w3.": ".mlp.fc2.",
    ".ls1.gamma": ".gamma_1",
    ".ls2.gamma": ".gamma_2",
}


def own_keys(state: dict[str, Any]) -> dict[str, Any]:
    """Of the published checkpoint, whose rotary periods are computed here."""
    found = {}
    for name, tensor in state.items():
        plain = name.removeprefix("model.")
        if plain == "rope_embed.periods" or plain == "mask_token":
            continue
        for theirs, ours in _PARTS.items():
            plain = plain.replace(theirs, ours)
        found[f"encoder.{plain}"] = tensor
    return found
