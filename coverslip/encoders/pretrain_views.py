"""What pretraining shows a network of a tile: crops, turned, rescaled, recoloured, blurred.

Everything happens on whole batches, on the device of the batch, from one random generator: the
same seed gives the same views. A crop that is enlarged or shrunk is the same tissue at another
microns per pixel, and stains are changed in optical density, where they add up (Tellez et al. 2019,
arXiv:1902.06543).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from coverslip.kernels.stain import EOSIN, HEMATOXYLIN, stain_matrix

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Views(NamedTuple):
    """Of one batch of tiles: every crop's copies one after the other, normalised."""

    whole: Tensor  # (2 · b, 3, G, G): two large crops
    parts: Tensor  # (n · b, 3, L, L): n small ones


def views_of(
    tiles: Tensor,
    large: tuple[int, tuple[float, float]],
    small: tuple[int, tuple[float, float]],
    parts: int,
    stain_jitter: float,
    blur: float,
    generator: torch.Generator,
) -> Views:
    """The views of a batch.

    tiles          (b, 3, T, T) uint8
    large, small   side in px, and least and largest share of the tile's area, of the two kinds
    parts          how many small crops of each tile
    stain_jitter   how far stains may change; 0 leaves them alone, 0.3 is strong
    blur           share of crops that are blurred, up to a standard deviation of 1.5 px
    """

    def kind(side: int, area: tuple[float, float], copies: int) -> Tensor:
        crops = [turned_crops(tiles, side, area, generator) for _ in range(copies)]
        x = torch.cat(crops)  # (copies · b, 3, side, side), 0..255
        x = jittered(x, stain_jitter, generator) if stain_jitter else x
        return normalised(blurred(x, blur, generator) if blur else x)

    return Views(kind(*large, copies=2), kind(*small, copies=parts))


def turned_crops(
    tiles: Tensor, side: int, area: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """A crop of each tile, square, turned by a multiple of 90 degrees, half of them mirrored.

    tiles (b, 3, T, T) -> (b, 3, side, side) float32 in 0..255
    """
    count = len(tiles)
    share = _uniform(count, area, generator).sqrt()  # of the tile's side
    shrink = int(max(area) ** 0.5 * tiles.shape[3] / side)
    tiles = F.avg_pool2d(tiles.float(), shrink) if shrink > 1 else tiles.float()  # no aliasing
    angle = torch.randint(0, 4, (count,), generator=generator, device=generator.device)
    angle = angle * torch.pi / 2
    mirror = 1 - 2 * torch.randint(0, 2, (count,), generator=generator, device=generator.device)
    centre = (1 - share)[:, None] * (2 * _uniform((count, 2), (0, 1), generator) - 1)
    cos, sin = angle.cos() * share, angle.sin() * share
    turn = torch.stack([cos * mirror, -sin, sin * mirror, cos], dim=1).reshape(count, 2, 2)
    affine = torch.cat([turn, centre[..., None]], dim=2).to(tiles.device)  # (b, 2, 3)
    places = F.affine_grid(affine, [count, 3, side, side], align_corners=False)
    return F.grid_sample(tiles, places, padding_mode="reflection", align_corners=False)


def jittered(x: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Hematoxylin, eosin and what is left, each scaled and shifted at random in optical density,
    their colours a little turned; (b, 3, H, W) in 0..255 -> the same."""
    count = len(x)
    basis = torch.tensor(stain_matrix(HEMATOXYLIN, EOSIN), dtype=torch.float32, device=x.device)
    scale = _uniform((count, 3), (-1, 1), generator).to(x.device)
    scale = torch.exp(scale * torch.tensor([1.5, 1.5, 0.5], device=x.device) * amount)
    shift = _uniform((count, 3), (-0.15, 0.15), generator).to(x.device) * amount
    turned = basis + _uniform((count, 3, 3), (-0.3, 0.3), generator).to(x.device) * amount
    turned = F.normalize(turned, dim=2)
    change = torch.linalg.inv(basis) @ (scale[:, :, None] * turned)  # (b, 3, 3)
    density = -torch.log((x + 1) / 256)
    density = torch.einsum("bchw,bck->bkhw", density, change) + shift[:, :, None, None]
    return (256 * torch.exp(-density) - 1).clamp(0, 255)


def blurred(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the images out of focus: a Gaussian of one random width for all of them."""
    chosen = _uniform(len(x), (0, 1), generator) < share
    sigma = float(_uniform(1, (0.3, 1.5), generator))
    if not chosen.any():
        return x
    steps = torch.arange(-4, 5, device=x.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    some = F.pad(x[chosen.to(x.device)], (4, 4, 4, 4), mode="reflect")
    some = F.conv2d(F.conv2d(some, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    out = x.clone()
    out[chosen.to(x.device)] = some
    return out


def normalised(x: Tensor) -> Tensor:
    """0..255 -> what the network sees."""
    mean = 255 * torch.tensor(MEAN, device=x.device).view(1, 3, 1, 1)
    std = 255 * torch.tensor(STD, device=x.device).view(1, 3, 1, 1)
    return (x - mean) / std


def hidden_patches(
    count: int,
    grid: int,
    cell: int,
    share: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """(count, grid, grid) bool: which patches are withheld; every second image has none.

    cell    side of what is withheld at once, in patches: the same tissue whatever the patch side
    share   least and largest share of an image's cells
    """
    cells = max(grid // cell, 1)
    total = cells * cells
    where = torch.zeros(count, total, dtype=torch.bool)
    for i in range(0, count, 2):
        wanted = float(_uniform(1, share, generator)) * total
        order = torch.randperm(total, generator=generator, device=generator.device)
        where[i, order[: max(1, round(wanted))].cpu()] = True
    where = where.reshape(count, cells, cells)
    return F.interpolate(where[:, None].float(), (grid, grid), mode="nearest")[:, 0] > 0.5


def _uniform(
    shape: int | Sequence[int], limits: tuple[float, float], generator: torch.Generator
) -> Tensor:
    size = (shape,) if isinstance(shape, int) else tuple(shape)
    low, high = limits
    drawn = torch.rand(size, generator=generator, device=generator.device)
    return low + (high - low) * drawn
