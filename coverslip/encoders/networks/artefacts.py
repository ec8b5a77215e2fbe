"""Networks that say of every pixel which artefact it shows, as GrandQC's do.

Weng et al. 2024, "GrandQC: A comprehensive solution to quality control problem in digital
pathology" (Nature Communications 15, 10685). A U-Net (artefacts) and a U-Net++ (tissue) on the
features of an EfficientNet-B0. Layers are named as in `segmentation_models_pytorch`, by which they
were trained, so that its state dicts load as they are.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = (32, 24, 40, 112, 320)
"""Channels of the encoder at 1/2, 1/4 ... 1/32 of the tile's side."""
WIDTHS = (256, 128, 64, 32, 16)
"""Channels of the decoder, from the coarsest step to the tile's own side."""


class ConvNormAct(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )


class Step(nn.Module):
    """Twice as large, with what the encoder saw at that size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = ConvNormAct(inputs, outputs), ConvNormAct(outputs, outputs)

    def forward(self, x: Tensor, *skips: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        out: Tensor = self.conv2(self.conv1(torch.cat([x, *skips], dim=1)))
        return out


class UnetDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        skips = (*FEATURES[-2::-1], 0)
        inputs = (FEATURES[-1], *WIDTHS[:-1])
        self.blocks = nn.ModuleList(
            Step(into + skip, out) for into, skip, out in zip(inputs, skips, WIDTHS, strict=True)
        )

    def forward(self, features: list[Tensor]) -> Tensor:  # finest first -> (b, 16, H, W)
        x, *skips = features[::-1]
        for block, skip in zip(self.blocks, [*([s] for s in skips), []], strict=True):
            x = block(x, *skip)
        return x


class UnetPlusPlusDecoder(nn.Module):
    """Zhou et al. 2018: every size of the encoder has a path of its own to every finer one.

    The map x_d_l is made at size l (0 is 1/16 of the side) on the path that began at d.
    """

    def __init__(self) -> None:
        super().__init__()
        sizes = FEATURES[-2::-1]  # of the encoder's maps at size 0, 1, 2, 3
        last = len(sizes)
        blocks = {}
        for size in range(last):
            for path in range(size + 1):
                into = (FEATURES[-1], *WIDTHS)[size] if path == 0 else sizes[size - 1]
                out = WIDTHS[size] if path == 0 else sizes[size]
                beside = sizes[size] * (size + 1 - path)
                blocks[f"x_{path}_{size}"] = Step(into + beside, out)
        blocks[f"x_0_{last}"] = Step(WIDTHS[-2], WIDTHS[-1])
        self.blocks = nn.ModuleDict(blocks)

    def forward(self, features: list[Tensor]) -> Tensor:  # finest first -> (b, 16, H, W)
        coarse, *seen = features[::-1]
        maps: dict[tuple[int, int], Tensor] = {}
        for size, skip in enumerate(seen):
            for path in range(size, -1, -1):
                if path == size:
                    before = coarse if size == 0 else seen[size - 1]
                else:
                    before = maps[path, size - 1]
                beside = [maps[other, size] for other in range(path + 1, size + 1)]
                maps[path, size] = self.blocks[f"x_{path}_{size}"](before, *beside, skip)
        last = len(seen)
        out: Tensor = self.blocks[f"x_0_{last}"](maps[0, last - 1])
        return out


class PixelClassifier(nn.Module):
    """(b, 3, H, W), sides multiples of 32 -> (b, classes, H, W), before any softmax."""

    def __init__(self, classes: int, decoder: nn.Module) -> None:
        import timm

        super().__init__()
        self.encoder: Any = timm.create_model("efficientnet_b0", num_classes=0)
        self.decoder = decoder
        self.segmentation_head = nn.Sequential(nn.Conv2d(WIDTHS[-1], classes, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder.bn1(self.encoder.conv_stem(x))
        features = [x]
        for first, end in pairwise((0, 2, 3, 5, 7)):  # blocks that end in another size
            x = self.encoder.blocks[first:end](x)
            features.append(x)
        classes: Tensor = self.segmentation_head(self.decoder(features))
        return classes


def unet(classes: int) -> PixelClassifier:
    """GrandQC's of artefacts."""
    return PixelClassifier(classes, UnetDecoder())


def unet_plus_plus(classes: int) -> PixelClassifier:
    """GrandQC's of tissue."""
    return PixelClassifier(classes, UnetPlusPlusDecoder())
