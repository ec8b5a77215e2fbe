"""NuClick: the object that a click or a squiggle means.

Koohbanani et al. 2020, "NuClick: A deep learning framework for interactive segmentation of
microscopic images", Medical Image Analysis 65, 101771 (arXiv:2005.14511). As there: an
encoder-decoder of residual and multi-scale convolution blocks sees the image with two guiding maps,
of what is meant and of what is not. Differently: 2 x 2 px are folded into channels at the entrance
and unfolded at the exit, which makes a click four times as cheap; marks are soft discs rather than
single pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coverslip.heads.normalisation import IMAGENET
from coverslip.kernels.labels import connected_components, filled_holes

RGB = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]

MARK_SIGMA = 2.0
"""Standard deviation of a mark, px."""
OBJECT, OTHERS = 2.0, 2.0
"""What pixels of the meant object and of the others beside it weigh; all the rest weigh 1."""


class NuClick(nn.Module):
    """One map: the logit of belonging to what is marked.

    width      channels at the finest resolution; twice and four times as many at the coarser ones
    multiple   sides of its input must be multiples of this, px
    """

    multiple = 16

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        fine, middle, coarse = width, 2 * width, 4 * width
        self.enter = _convolution(5 * 4, fine)
        self.down_1 = _Residual(fine, fine)
        self.down_2 = _Residual(fine, middle)
        self.down_3 = nn.Sequential(_Residual(middle, coarse), _MultiScale(coarse, (1, 2, 3, 5)))
        self.bottom = nn.Sequential(_Residual(coarse, coarse), _MultiScale(coarse, (1, 2, 3, 4)))
        self.up_3 = _Residual(2 * coarse, middle)
        self.up_2 = nn.Sequential(_Residual(2 * middle, fine), _MultiScale(fine, (1, 2, 3, 6)))
        self.up_1 = _Residual(2 * fine, fine)
        self.exit = nn.Conv2d(fine, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (b, 5, H, W): normalised RGB, meant, not meant
        x = self.enter(F.pixel_unshuffle(x, 2))  # (b, w, H / 2, W / 2)
        one = self.down_1(x)
        two = self.down_2(F.max_pool2d(one, 2))  # (b, 2 w, H / 4, W / 4)
        three = self.down_3(F.max_pool2d(two, 2))  # (b, 4 w, H / 8, W / 8)
        x = self.bottom(F.max_pool2d(three, 2))  # (b, 4 w, H / 16, W / 16)
        x = self.up_3(_joined(x, three))  # (b, 2 w, H / 8, W / 8)
        x = self.up_2(_joined(x, two))  # (b, w, H / 4, W / 4)
        x = self.up_1(_joined(x, one))  # (b, w, H / 2, W / 2)
        return F.pixel_shuffle(self.exit(x), 2)  # (b, 1, H, W)

    def losses(self, logit: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Soft Dice of each patch, and binary cross-entropy in which the objects weigh more.

        targets   "object", "others": (b, 1, H, W), 1 where the meant object and where others are
        """
        wanted, others = targets["object"], targets["others"]
        chance = logit.float().sigmoid()
        shared = (chance * wanted).sum(dim=(1, 2, 3))  # (b,)
        either = chance.sum(dim=(1, 2, 3)) + wanted.sum(dim=(1, 2, 3))
        dice = 1 - (2 * shared + 1) / (either + 1)
        weight = 1 + (OBJECT - 1) * wanted + (OTHERS - 1) * others
        entropy = F.binary_cross_entropy_with_logits(logit.float(), wanted, weight)
        return {"dice": dice.mean(), "entropy": entropy}


def click_input(rgb: RGB, meant: Points, others: Points) -> npt.NDArray[np.float32]:
    """What the network sees of an image uint8 [H, W, 3]: float32 [H, W, 5].

    meant, others   [n, 2] (x, y) px, pixel centres at .5: marks on the object, and on other ones
    """
    low, spread = (np.array(values, np.float32) for values in IMAGENET)
    shape = (rgb.shape[0], rgb.shape[1])
    maps = [mark_map(meant, shape), mark_map(others, shape)]
    return np.concatenate([(rgb.astype(np.float32) - low) / spread, np.stack(maps, -1)], axis=-1)


def mark_map(points: Points, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """float32 [H, W]: 1 at each of `points` [n, 2] (x, y) px, falling off as a Gaussian."""
    found = np.zeros(shape, np.float32)
    reach = int(np.ceil(4 * MARK_SIGMA))
    for x, y in points.tolist():
        u, v = int(np.floor(x)), int(np.floor(y))
        rows = np.arange(max(v - reach, 0), min(v + reach + 1, shape[0]))
        columns = np.arange(max(u - reach, 0), min(u + reach + 1, shape[1]))
        if not len(rows) or not len(columns):
            continue
        down = np.exp(-0.5 * ((rows + 0.5 - y) / MARK_SIGMA) ** 2)
        across = np.exp(-0.5 * ((columns + 0.5 - x) / MARK_SIGMA) ** 2)
        place = np.ix_(rows, columns)
        found[place] = np.maximum(found[place], np.outer(down, across))
    return found


def line_points(vertices: Points) -> Points:
    """Points at most 1 px apart along the line through `vertices` [n, 2], its ends among them."""
    if len(vertices) < 2:
        return vertices
    step = np.diff(vertices, axis=0)
    pieces = np.maximum(np.ceil(np.hypot(*step.T)), 1).astype(np.int64)
    along = [
        start + np.arange(n)[:, None] / n * move
        for start, move, n in zip(vertices[:-1], step, pieces.tolist(), strict=True)
    ]
    return np.concatenate([*along, vertices[-1:]])


def probabilities(network: NuClick, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32 [B, H, W] of belonging to what is marked; images [B, H, W, 5] from `click_input`."""
    place = next(network.parameters()).device
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(place)
    with torch.inference_mode():
        logit = network(x.to(memory_format=torch.channels_last))
        return np.asarray(logit[:, 0].float().sigmoid().cpu().numpy())


def marked_part(
    probability: npt.NDArray[np.float32], points: Points, threshold: float
) -> npt.NDArray[np.bool_]:
    """The object: of what is above `threshold` the part with the marks in it, its holes filled.

    probability   [H, W]
    points        [n, 2] (x, y) px; where parts compete, the one with most of them in it

    Returns bool [H, W], 4-connected; empty where no point lies in any part.
    """
    mask = filled_holes(probability > threshold, probability.size)
    parts = connected_components(mask)
    u, v = np.floor(points).astype(np.int64).T
    seen = (u >= 0) & (v >= 0) & (u < mask.shape[1]) & (v < mask.shape[0])
    votes = np.bincount(parts[v[seen], u[seen]], minlength=1)
    votes[0] = 0  # the background
    return np.asarray((parts == votes.argmax()) & (votes.max() > 0))


class _Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.first = _convolution(inner, outer)
        self.second = _convolution(outer, outer, active=False)
        self.shortcut = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:  # (b, inner, h, w) -> (b, outer, h, w)
        return F.relu(self.shortcut(x) + self.second(self.first(x)))


class _MultiScale(nn.Module):
    """Convolutions of several dilations side by side, a share of the channels from each."""

    def __init__(self, channels: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        share = channels // len(dilations)
        self.views = nn.ModuleList(_convolution(channels, share, dilation=d) for d in dilations)
        self.join = _convolution(share * len(dilations), channels, kernel=1, active=False)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, h, w) -> the same
        return F.relu(x + self.join(torch.cat([view(x) for view in self.views], dim=1)))


def _convolution(
    inner: int, outer: int, kernel: int = 3, dilation: int = 1, active: bool = True
) -> nn.Sequential:
    parts: list[nn.Module] = [
        nn.Conv2d(inner, outer, kernel, padding="same", dilation=dilation, bias=False),
        nn.BatchNorm2d(outer),
    ]
    return nn.Sequential(*parts, *([nn.ReLU()] if active else []))


def _joined(x: Tensor, level: Tensor) -> Tensor:
    """`x` at twice its size beside what the encoder saw there."""
    return torch.cat([F.interpolate(x, scale_factor=2), level], dim=1)
