"""HoVer-Net: one encoder; a decoder each for nuclei, for where pixels lie in them, for classes.

Graham et al. 2019, "HoVer-Net: Simultaneous segmentation and classification of nuclei in
multi-tissue histology images", Medical Image Analysis 58 (arXiv:1812.06499). Layer by layer, and
name by name, the network of github.com/vqdang/hover_net and of TIAToolbox: their weights load.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coverslip.errors import InvalidConfig
from coverslip.heads.hover_maps import FromHoverMaps, HoverMaps
from coverslip.heads.hovernet_layers import (
    Dense,
    Doubled,
    Residual,
    SamePadding,
    conv,
    named,
    norm,
    relu,
    without,
)

MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, which a recipe's "imagenet" takes off and divides by."""


class HoverNet(FromHoverMaps, nn.Module):
    """A pre-activated ResNet50 with a dense decoder for each map.

    classes     of nuclei; one needs no decoder
    mode        "fast" (256 px in, 164 out) or "original" (270 px in, 80 out)
    published   the weights were trained on grey levels / 255, as the published ones were: the
                recipe's normalisation is "imagenet", and is undone here
    width       channels of the first convolution; all others are multiples of it
    units       residual units of the encoder's four blocks
    """

    multiple = 8

    def __init__(
        self,
        classes: int = 1,
        mode: Literal["fast", "original"] = "fast",
        published: bool = False,
        width: int = 64,
        units: Sequence[int] = (3, 4, 6, 3),
    ) -> None:
        super().__init__()
        if mode not in ("fast", "original"):
            raise InvalidConfig(f"mode: fast or original, got {mode!r}")
        fast, w = mode == "fast", width
        # the receptive field (about 105 and 150 px), and what instances are told apart by
        self.reach = 128 if fast else 176
        self.published = published
        # the decoders' valid convolutions take off 46 (95) px on a side; with so many more, the
        # lattice of 8 px stays, and the edge, where the last convolution pads with zeros, goes
        self.margin, self.surplus = (48, 2) if fast else (99, 4)
        self.cut = (92, 36) if fast else (184, 72)
        side = 3 if fast else 5
        same = {"pad": SamePadding(7)} if fast else {}
        self.conv0 = named({**same, "/": conv(3, w, 7), "bn": norm(w), "relu": relu()})
        inputs = (w, 4 * w, 8 * w, 16 * w)
        for i, (inner, count) in enumerate(zip(inputs, units, strict=True)):
            self.add_module(f"d{i}", Residual(inner, w << i, count, 2 if i else 1))
        self.conv_bot = conv(32 * w, 16 * w, 1)
        outputs = {"tp": 1 + classes} if classes > 1 else {}
        outputs |= {"np": 2, "hv": 2}
        self.decoder = nn.ModuleDict({name: _decoder(w, n, side) for name, n in outputs.items()})
        self.upsample2x = Doubled()

    def forward(self, x: Tensor) -> HoverMaps:  # (b, 3, H, W), sides multiples of 8, normalised
        """Maps of the whole input, which is continued beyond its edges by its outermost pixels."""
        if self.published:
            x = x * _channels(SPREAD, x) + _channels(MEAN, x)
        inner = slice(self.surplus, -self.surplus)
        maps = self.valid(F.pad(x, (self.margin,) * 4, mode="replicate"))
        return HoverMaps(*(m[..., inner, inner] for m in maps))

    def valid(self, x: Tensor) -> HoverMaps:
        """Maps of the middle alone, as published: 256 -> 164 px, original 270 -> 80 px.

        x   (b, 3, H, W); for published weights 0 to 1
        """
        x = self.conv0(x)
        levels = []
        for i in range(4):
            x = self.get_submodule(f"d{i}")(x)
            levels.append(x)  # (b, 4 w 2^i, H / 2^i, W / 2^i)
        levels[0], levels[1] = (without(m, n) for m, n in zip(levels[:2], self.cut, strict=True))
        levels[3] = self.conv_bot(x)  # (b, 16 w, H / 8, W / 8)
        found = {name: self._decoded(decoder, levels) for name, decoder in self.decoder.items()}
        return HoverMaps(found["np"], found["hv"], found.get("tp", found["np"][:, :0]))

    def _decoded(self, decoder: Any, levels: Sequence[Tensor]) -> Tensor:
        x = levels[3]
        for block, level in zip((decoder.u3, decoder.u2, decoder.u1), levels[2::-1], strict=True):
            x = block(self.upsample2x(x) + level)
        found: Tensor = decoder.u0(x)
        return found


def published_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of hover_net or TIAToolbox, for `load_state_dict`.

    Their types of nuclei, counted without the background, are this network's `classes`. Raises
    InvalidConfig.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise InvalidConfig(f"{path}: not a checkpoint of weights alone ({error})") from None
    content = content.get("desc", content)  # hover_net wraps them
    if "conv_bot.weight" not in (
        weights := {k.removeprefix("module."): content[k] for k in content}
    ):
        raise InvalidConfig(f"{path}: no conv_bot.weight in it, so it is not a HoVer-Net's")
    return weights


def _decoder(w: int, outputs: int, side: int) -> nn.Sequential:
    def dense(inner: int, count: int) -> dict[str, nn.Module]:
        outer = inner + count * w // 2
        block = Dense(inner, 2 * w, w // 2, count, side)
        return {"dense": block, "convf": conv(outer, outer, 1)}

    u3 = {"conva": conv(16 * w, 4 * w, side), **dense(4 * w, 8)}
    u2 = {"conva": conv(8 * w, 2 * w, side), **dense(2 * w, 4)}
    u1 = {"conva/pad": SamePadding(side), "conva": conv(4 * w, w, side)}
    u0 = {"bn": norm(w), "relu": relu(), "conv": nn.Conv2d(w, outputs, 1)}
    return named({"u3": named(u3), "u2": named(u2), "u1": named(u1), "u0": named(u0)})


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(-1, 1, 1)
