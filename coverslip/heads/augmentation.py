"""Crops for training: moved, turned, rescaled, restained, blurred; all from one generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.errors import InvalidConfig
from coverslip.kernels.labels import gaussian, label_depth
from coverslip.kernels.stain_profile import jittered_stains

RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far crops may be changed.

    scale          side of what is cut out, least and largest multiple of the crop's
    stain          stains' concentrations change by up to this share
    brightness     grey levels are scaled by up to this share, each channel by a third of it more
    blur           share of crops blurred, by a Gaussian of 0.3 to 1.2 px
    noise          share of crops with Gaussian noise of up to 8 grey levels
    vesicular      share of nuclei whose inside is paled, as that of cells at work is: their
                   chromatin lies at the rim
    """

    scale: tuple[float, ...] = (0.7, 1.4)
    stain: float = 0.25
    brightness: float = 0.1
    blur: float = 0.3
    noise: float = 0.2
    vesicular: float = 0.0

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise InvalidConfig(f"scale must be two numbers above 0, rising, got {self.scale}")


def crop_of(
    image: RGB,
    maps: Sequence[npt.NDArray[np.integer]],
    side: int,
    changes: Augmentation,
    random: np.random.Generator,
    centre: tuple[int, int] | None = None,
) -> tuple[RGB, list[npt.NDArray[np.integer]]]:
    """A crop of `side` px and the same of every map (labels: nearest px).

    centre   (row, column) that the crop holds somewhere; anywhere by default

    An image that is too small is mirrored at its borders.
    """
    cut = round(side * float(np.exp(random.uniform(*np.log(changes.scale)))))
    window = [_span(n, cut, random, None if centre is None else centre[i])
              for i, n in enumerate(image.shape[:2])]  # fmt: skip
    turn, mirror = int(random.integers(4)), bool(random.integers(2))

    def placed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        part = array[np.ix_(*window)]
        part = part[:, ::-1] if mirror else part
        return np.rot90(part, turn)

    picture = _resized(placed(image), side)
    near = np.minimum(((np.arange(side) + 0.5) * cut / side).astype(np.int64), cut - 1)
    return picture, [np.ascontiguousarray(placed(m)[np.ix_(near, near)]) for m in maps]


def recoloured(crops: RGB, changes: Augmentation, random: np.random.Generator) -> RGB:
    """Crops uint8 [B, H, W, 3] with other stains, light, focus and noise."""
    crops = jittered_stains(crops, random, strength=changes.stain) if changes.stain else crops
    out = np.empty_like(crops)
    for i, crop in enumerate(crops):
        light = 1 + changes.brightness * random.uniform(-1, 1, 4)
        light = light[0] + (light[1:] - 1) / 3
        x = crop.astype(np.float32) * light.astype(np.float32)
        if random.random() < changes.blur:
            sigma = float(random.uniform(0.3, 1.2))
            x = np.stack([gaussian(np.ascontiguousarray(x[..., c]), sigma) for c in range(3)], -1)
        if random.random() < changes.noise:
            x += random.normal(0, random.uniform(0, 8), x.shape).astype(np.float32)
        out[i] = np.clip(np.rint(x), 0, 255)
    return out


def paled_nuclei(
    crop: RGB, labels: npt.NDArray[np.int32], share: float, random: np.random.Generator
) -> RGB:
    """A share of the nuclei with an inside nearly as pale as what surrounds them, and grainy."""
    count = int(labels.max(initial=0))
    strength = random.uniform(0.4, 0.95, count + 1) * (random.random(count + 1) < share)
    strength[0] = 0
    if not strength.any() or (labels > 0).all():
        return crop
    rim = random.uniform(0.2, 0.45)
    weight = np.clip((label_depth(labels) - rim) / 0.25, 0, 1) * strength[labels]
    around = crop[labels == 0].astype(np.float32)
    around = np.median(around, axis=0) + random.uniform(-12, 12, 3)
    grain = gaussian(random.normal(0, 1, labels.shape).astype(np.float32), random.uniform(0.5, 1.2))
    grain = 25 * grain / max(float(grain.std()), 1e-6)
    pale = around - 15 + np.minimum(grain, 10)[..., None]
    mixed = crop + weight[..., None] * (pale - crop)
    return np.asarray(np.clip(np.rint(mixed), 0, 255), np.uint8)


def _span(
    length: int, cut: int, random: np.random.Generator, holds: int | None
) -> npt.NDArray[np.int64]:
    """Indices of `cut` px along an axis, mirrored where they leave it."""
    if holds is None:
        first = int(random.integers(min(0, length - cut), max(0, length - cut) + 1))
    else:
        first = holds - int(random.integers(cut))
        first = int(np.clip(first, min(0, length - cut), max(0, length - cut)))
    place = np.abs(np.arange(first, first + cut)) % max(2 * length - 2, 1)
    return np.where(place < length, place, 2 * length - 2 - place)


def _resized(image: RGB, side: int) -> RGB:
    from PIL import Image

    if image.shape[0] == side:
        return np.ascontiguousarray(image)
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
