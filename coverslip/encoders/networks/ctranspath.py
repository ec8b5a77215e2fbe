"""CTransPath: a Swin-T whose patches come from convolutions (Wang et al. 2022).

Wang et al. 2022, "Transformer-based unsupervised contrastive learning for histopathological image
classification" (Medical Image Analysis 81, 102559). The rest of the network is timm's Swin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class ConvStem(nn.Module):
    """Pixels to patches of 4 px: two halvings by convolution, then a projection, then a norm.

    Named and called as timm's own embedding of patches, whose place it takes.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        **_: Any,
    ) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = (height // patch_size, width // patch_size)
        eighth, quarter = embed_dim // 8, embed_dim // 4
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, eighth, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(eighth),
            nn.ReLU(),
            nn.Conv2d(eighth, quarter, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(quarter),
            nn.ReLU(),
            nn.Conv2d(quarter, embed_dim, 1),
        )
        self.norm = norm_layer(embed_dim)

    def forward(self, x: Tensor) -> Tensor:  # (b, 3, H, W) -> (b, H / 4, W / 4, d)
        patches: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return patches


def ctranspath(**arguments: Any) -> nn.Module:
    """The network without a classifier: (b, 3, 224, 224) -> (b, 768)."""
    import timm

    network: nn.Module = timm.create_model(
        "swin_tiny_patch4_window7_224", embed_layer=ConvStem, num_classes=0, **arguments
    )
    return network
