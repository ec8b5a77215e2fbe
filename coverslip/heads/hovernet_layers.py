"""What HoVer-Net is built of, its parts called as in the published checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SamePadding(nn.Module):
    """Zeros, so that a convolution after it leaves ceil(side / stride), as TensorFlow pads."""

    def __init__(self, side: int, stride: int = 1) -> None:
        super().__init__()
        self.side, self.stride = side, stride

    def forward(self, x: Tensor) -> Tensor:
        more = max(self.side - (x.shape[2] % self.stride or self.stride), 0)
        first, last = more // 2, more - more // 2
        return F.pad(x, (first, last, first, last))


class Doubled(nn.Module):
    """Every pixel becomes 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unpool_mat", torch.ones(2, 2))  # the published code multiplies by it

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2)


class Residual(nn.Module):
    """Bottleneck units, each with normalisation and ReLU before its convolutions."""

    def __init__(self, inner: int, width: int, count: int, stride: int) -> None:
        super().__init__()
        outer = 4 * width
        self.units = nn.ModuleList()
        for i in range(count):
            step = 1 if i else stride
            # the block before ends with them, so that the first unit needs none
            before = {"preact/bn": norm(outer), "preact/relu": relu()} if i else {}
            self.units.append(
                named(
                    {
                        **before,
                        "conv1": conv(outer if i else inner, width, 1),
                        "conv1/bn": norm(width),
                        "conv1/relu": relu(),
                        "conv2/pad": SamePadding(3, step),
                        "conv2": conv(width, width, 3, stride=step),
                        "conv2/bn": norm(width),
                        "conv2/relu": relu(),
                        "conv3": conv(width, outer, 1),
                    }
                )
            )
        self.shortcut = conv(inner, outer, 1, stride=stride)
        self.blk_bna = named({"bn": norm(outer), "relu": relu()})

    def forward(self, x: Tensor) -> Tensor:  # (b, inner, H, W) -> (b, 4 width, H / s, W / s)
        shortcut = self.shortcut(x)
        for unit in self.units:
            x = shortcut = unit(x) + shortcut
        out: Tensor = self.blk_bna(x)
        return out


class Dense(nn.Module):
    """Units whose outputs are put beside their inputs; convolutions are valid."""

    def __init__(self, inner: int, width: int, growth: int, count: int, side: int) -> None:
        super().__init__()
        self.units = nn.ModuleList()
        for i in range(count):
            before = inner + i * growth
            self.units.append(
                named(
                    {
                        "preact_bna/bn": norm(before),
                        "preact_bna/relu": relu(),
                        "conv1": conv(before, width, 1),
                        "conv1/bn": norm(width),
                        "conv1/relu": relu(),
                        "conv2": conv(width, growth, side, groups=4),
                    }
                )
            )
        self.blk_bna = named({"bn": norm(inner + count * growth), "relu": relu()})

    def forward(self, x: Tensor) -> Tensor:  # (b, inner, H, W) -> (b, inner + count · growth, ...)
        for unit in self.units:
            new = unit(x)
            x = torch.cat([without(x, x.shape[2] - new.shape[2]), new], dim=1)
        out: Tensor = self.blk_bna(x)
        return out


def named(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, layer in layers.items():
        sequence.add_module(name, layer)
    return sequence


def conv(inner: int, outer: int, side: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, side, stride, groups=groups, bias=False)


def norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width)


def relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)


def without(x: Tensor, less: int) -> Tensor:
    """`less` px smaller on both axes, about the middle."""
    first = less // 2
    return x[..., first : x.shape[2] - (less - first), first : x.shape[3] - (less - first)]
