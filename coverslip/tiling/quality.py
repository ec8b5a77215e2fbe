"""How good each tile's picture is: sharpness, ink, brightness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RGBBatch = npt.NDArray[np.uint8]
GLASS = 245.0


@dataclass(frozen=True, slots=True)
class TileQuality:
    """float32 [B] each.

    focus        fine detail over coarse detail, 0 for a flat tile; a blur of 0.35 µm cuts it to a
                 third, whatever the stain's strength
    pen          share of pixels in colours of ink
    brightness   mean grey level, 0 to 255
    """

    focus: npt.NDArray[np.float32]
    pen: npt.NDArray[np.float32]
    brightness: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class QualityLimits:
    """Beyond these a tile is flagged.

    blurry   focus below this
    pen      share of ink above this
    """

    blurry: float = 0.012
    pen: float = 0.10


def tile_quality(pixels: RGBBatch, mpp: float) -> TileQuality:
    """pixels uint8 [B, H, W, 3] of `mpp` µm -> measures per tile.

    Focus is the energy of differences over about half a micron divided by that over about four:
    a ratio, so a pale but sharp tile is not called blurry.
    """
    # density of green, on every second row: enough for a mean, at half the price
    levels = np.maximum(np.arange(256), 1.0)
    density = np.log(GLASS / levels).clip(0).astype(np.float32)[pixels[:, ::2, :, 1]]
    fine = max(1, round(0.5 / mpp))
    coarse = max(2 * fine, round(4.0 / mpp))
    near = _difference_energy(density, fine)
    far = _difference_energy(density, coarse)
    focus = np.divide(near, far, out=np.zeros_like(near), where=far > 1e-4)
    return TileQuality(focus, _ink(pixels), pixels.mean(axis=(1, 2, 3), dtype=np.float32))


def _difference_energy(density: npt.NDArray[np.float32], step: int) -> npt.NDArray[np.float32]:
    """[B] mean squared second difference at a distance of `step` px along rows."""
    if density.shape[2] <= 2 * step:
        return np.zeros(len(density), np.float32)
    middle = density[:, :, step:-step]
    second = density[:, :, 2 * step :] + density[:, :, : -2 * step] - 2 * middle
    energy = np.einsum("byx,byx->b", second, second) / max(second[0].size, 1)
    return np.asarray(energy, np.float32)


def _ink(pixels: RGBBatch) -> npt.NDArray[np.float32]:
    """[B] share of pixels bluer, greener or redder than any stain, on a grid of every fourth."""
    sparse = pixels[:, ::4, ::4].astype(np.int16)
    red, green, blue = sparse[..., 0], sparse[..., 1], sparse[..., 2]
    green_ink = (green > red + 12) & (red < 150)
    blue_ink = (blue > red + 60) & (green > red + 10)
    red_ink = (red > 140) & (green < 70) & (blue < 80) & (abs(green - blue) < 40)
    share = (green_ink | blue_ink | red_ink).mean(axis=(1, 2))
    return np.asarray(share, np.float32)
