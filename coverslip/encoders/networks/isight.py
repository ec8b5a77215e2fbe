"""iSight: CLIP's large tower, trained further on immunohistochemistry (Huang et al. 2026).

Huang et al. 2026 (arXiv:2602.04063). A tile is the mean of all its tokens, projected; CLIP's own
last norm and projection take no part.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ISight(nn.Module):
    """(b, 3, 336, 336) -> (b, 1024). Arguments are timm's, for the transformer."""

    def __init__(self, **arguments: Any) -> None:
        import timm

        super().__init__()
        vision: Any = timm.create_model(
            "vit_large_patch14_clip_quickgelu_336", num_classes=0, final_norm=False, **arguments
        )
        self.vision = vision
        self.projection = nn.Linear(vision.embed_dim, vision.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.projection(self.vision.forward_features(x))  # (b, 1 + n, d)
        mean: Tensor = tokens.mean(dim=1)
        return mean


def own_keys(state: dict[str, Any]) -> dict[str, Any]:
    """Of the released training checkpoint: its CLIP's image tower and the projection after it.

    Raises KeyError with the first name of the tower that CLIP does not have.
    """
    from coverslip.encoders.checkpoints.vision_keys import clip_vision

    tower, found = "patch_encoder.vision_model.", {}
    inside = {k.removeprefix(tower): v for k, v in state.items() if k.startswith(tower)}
    for name, tensor in clip_vision(inside).items():
        if not name.startswith("norm."):
            found[f"vision.{name}"] = tensor
    for kind in ("weight", "bias"):
        found[f"projection.{kind}"] = state[f"visual_token_projection.{kind}"]
    return found
