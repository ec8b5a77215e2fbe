"""Nuclei from a vision transformer's tokens: UNETR's skips into HoVer-Net's three branches.

Hörst et al. 2023, "CellViT" (arXiv:2306.15350); Hatamizadeh et al. 2022, "UNETR"
(arXiv:2103.10504). Any transformer that gives the grid of its patch tokens at several depths will
do; `nucleus_tokens` makes an embedding of every nucleus from the deepest one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from math import log2
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coverslip.errors import InvalidConfig
from coverslip.heads.hover_maps import FromHoverMaps, HoverMaps
from coverslip.heads.recipe import network_class
from coverslip.heads.segmentation import Labels
from coverslip.heads.unet import convolutions

ENCODERS = {"pluto": "coverslip.encoders.pluto:pluto_small"}
"""Transformers by name, "package.module:function"; all other names are timm's.

The function gives a module with a `patch` (side, px) and
`dense_features(x, depths)`: the patch tokens after these blocks, each (b, d, h, w).
"""
WIDEST = 512
"""Channels that no level exceeds."""


class TokenDecoder(FromHoverMaps, nn.Module):
    """A transformer, and what its tokens are decoded by.

    encoder             a name in `ENCODERS`, "package.module:function", or a timm model
    encoder_arguments   of that function
    depths              blocks whose tokens are used, counted from 1; as many as the image is to be
                        doubled to go from a grid of tokens to pixels: 4 for patches of 11 to 22 px
    classes             of nuclei; one needs no branch
    width               channels at full resolution; each level below has twice as many
    freeze              train the decoder only

    The image is resized so that patches cover a power of two of its pixels. Every token sees the
    whole window: unlike with convolutions, a nucleus depends a little on the window it is seen in,
    however far its border.
    """

    reach = 64  # what CellViT's windows overlap by

    def __init__(
        self,
        encoder: str = "pluto",
        encoder_arguments: Mapping[str, Any] | None = None,
        depths: Sequence[int] = (3, 6, 9, 12),
        classes: int = 1,
        width: int = 64,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder_of(encoder, encoder_arguments or {})
        self.depths, self.freeze = tuple(depths), freeze
        self.patch = int(self.encoder.patch)
        steps = round(log2(self.patch))
        if len(self.depths) != steps:
            raise InvalidConfig(
                f"depths: {steps} are needed for patches of {self.patch} px, got {list(depths)}"
            )
        self.multiple = 2**steps
        with torch.no_grad():
            seen = torch.zeros(1, 3, 2 * self.patch, 2 * self.patch)
            tokens = self.encoder.dense_features(seen, self.depths)[-1].shape[1]
        widths = [min(width << level, WIDEST) for level in range(steps)]  # of sides H, H / 2, ...
        # the shallower the tokens, the finer the level they skip to
        self.skips = nn.ModuleList(
            _upsampling(tokens, widths[level + 1], steps - 1 - level) for level in range(steps - 1)
        )
        self.image = convolutions(3, widths[0])
        outputs = [2, 2] + ([1 + classes] if classes > 1 else [])
        self.branches = nn.ModuleList(Branch(tokens, widths, n) for n in outputs)
        self.encoder.requires_grad_(not freeze)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze:
            self.encoder.eval()
        return self

    def forward(self, x: Tensor) -> HoverMaps:  # (b, 3, H, W), normalised; sides of `multiple`
        return self.with_tokens(x)[0]

    def with_tokens(self, x: Tensor) -> tuple[HoverMaps, Tensor]:
        """The maps, and the deepest tokens (b, d, H / multiple, W / multiple)."""
        seen = x
        if self.patch != self.multiple:
            sides = [n // self.multiple * self.patch for n in x.shape[2:]]
            seen = F.interpolate(x, sides, mode="bilinear", antialias=True)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            *grids, last = self.encoder.dense_features(seen, self.depths)  # each (b, d, h, w)
        skips = [self.image(x)]
        skips += [skip(grid) for skip, grid in zip(self.skips, grids, strict=True)]
        nucleus, offset, *classes = (branch(last, skips) for branch in self.branches)
        return HoverMaps(nucleus, offset, classes[0] if classes else nucleus[:, :0]), last


class Branch(nn.Module):
    """From the deepest tokens up to pixels, past a skip at every level."""

    def __init__(self, tokens: int, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        inputs = [*widths[1:], tokens]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 2, 2) for a, b in zip(inputs, widths, strict=True)
        )
        self.fuse = nn.ModuleList(convolutions(2 * w, w) for w in widths)
        self.out = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:  # -> (b, outputs, H, W)
        levels = list(zip(self.up, self.fuse, skips, strict=True))
        for up, fuse, skip in reversed(levels):
            x = fuse(torch.cat([up(x), skip], dim=1))  # (b, w, 2 h, 2 w)
        found: Tensor = self.out(x)
        return found


class TimmTokens(nn.Module):
    """A vision transformer of timm, asked for its tokens."""

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__()
        import timm

        model: Any = timm.create_model(name, num_classes=0, dynamic_img_size=True, **arguments)
        self.model: Any = model
        self.patch = int(model.patch_embed.patch_size[0])

    def dense_features(self, x: Tensor, depths: Sequence[int]) -> list[Tensor]:
        """The patch tokens after these blocks (counted from 1), normalised: each (b, d, h, w)."""
        found: list[Tensor] = self.model.forward_intermediates(
            x, indices=[d - 1 for d in depths], norm=True, intermediates_only=True
        )
        return found


def encoder_of(name: str, arguments: Mapping[str, Any]) -> Any:
    """A new encoder; see `ENCODERS`. Raises InvalidConfig."""
    place = ENCODERS.get(name, name)
    try:
        if ":" not in place:
            return TimmTokens(name, **arguments)
        if place not in ENCODERS.values():  # a file named it: called only if it is a network
            return network_class(place)(**arguments)
        module, _, function = place.partition(":")
        return getattr(import_module(module), function)(**arguments)
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        raise InvalidConfig(f"encoder {name!r} cannot be built: {error}") from error


def nucleus_tokens(
    tokens: npt.NDArray[np.float32], labels: Labels, side: int
) -> npt.NDArray[np.float32]:
    """The mean of the tokens at each nucleus' pixels, float32 [N, d]; CellViT classifies by it.

    tokens   [d, h, w], of one image
    labels   [H, W], 1 to N
    side     of a token, px of `labels`; its `multiple`
    """
    from scipy.sparse import csr_array

    row, column = np.nonzero(labels)
    place = row // side * tokens.shape[2] + column // side
    shape = (int(labels.max(initial=0)) + 1, tokens[0].size)
    share = csr_array((np.ones(len(row)), (labels[row, column], place)), shape)  # counts add up
    total = share @ tokens.reshape(len(tokens), -1).T.astype(np.float64)  # [1 + N, d]
    area = np.maximum(share.sum(axis=1), 1)
    return np.asarray((total / area[:, None])[1:], np.float32)


def _upsampling(inner: int, outer: int, doublings: int) -> nn.Sequential:
    """Transposed convolutions, each followed by a convolution."""
    layers: list[nn.Module] = []
    for i in range(doublings):
        layers += [nn.ConvTranspose2d(outer if i else inner, outer, 2, 2)]
        layers += _convolution(outer, outer)
    return nn.Sequential(*layers)


def _convolution(inner: int, outer: int) -> list[nn.Module]:
    conv = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]
