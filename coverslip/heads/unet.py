"""What several heads are built of: pairs of convolutions, and a U-Net of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UNet(nn.Module):
    """Ronneberger et al. 2015 (arXiv:1505.04597), with batch normalisation and padded convolutions.

    channels   of the input
    filters    of the first level; each below has twice those of the one above, up to four times
    levels     each of half the side of the one above
    """

    def __init__(self, channels: int, filters: int, levels: int) -> None:
        super().__init__()
        widths = [filters * min(2**i, 4) for i in range(levels)]
        self.down = nn.ModuleList(
            convolutions(a, b) for a, b in zip([channels, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            convolutions(below + here, here)
            for below, here in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )

    def features(self, x: Tensor) -> Tensor:  # (b, c, H, W), sides multiples of 2^(levels - 1)
        """(b, filters, H, W)"""
        levels = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            levels.append(x)  # (b, f, H / 2^i, W / 2^i)
        for block, level in zip(self.up, levels[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2), level], dim=1))
        return x


def unet_reach(levels: int) -> int:
    """How far from an output pixel input pixels may influence it, px.

    Each level adds its two convolutions on the way down and, but the lowest, two on the way up, of
    1 px of that level each, and what halving and doubling the sides may shift.
    """
    steps = [1 << i for i in range(levels)]
    return 2 * steps[-1] + 5 * sum(steps[:-1])


def convolutions(inner: int, outer: int) -> nn.Sequential:
    """Two of 3 x 3, each normalised, with a ReLU."""
    layers: list[nn.Module] = []
    for a in (inner, outer):
        layers += [nn.Conv2d(a, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer)]
        layers += [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
