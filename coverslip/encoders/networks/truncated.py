"""A ResNet-50 without its last stage, as CLAM embeds tiles (Lu et al. 2021): 1024 numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class TruncatedResNet(nn.Module):
    """(b, 3, H, W) -> (b, 1024): the mean over the third stage's map. Arguments are timm's."""

    def __init__(self, **arguments: Any) -> None:
        import timm

        super().__init__()
        whole: Any = timm.create_model("resnet50", num_classes=0, **arguments)
        self.conv1, self.bn1, self.act1, self.maxpool = (
            whole.conv1, whole.bn1, whole.act1, whole.maxpool,
        )  # fmt: skip
        self.layer1, self.layer2, self.layer3 = whole.layer1, whole.layer2, whole.layer3

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        map_ = self.layer3(self.layer2(self.layer1(x)))  # (b, 1024, H / 16, W / 16)
        mean: Tensor = map_.mean(dim=(2, 3))
        return mean


def own_keys(state: dict[str, Any]) -> dict[str, Any]:
    """Of a whole ResNet-50, torchvision's or timm's."""
    return {k: v for k, v in state.items() if not k.startswith(("layer4.", "fc."))}
