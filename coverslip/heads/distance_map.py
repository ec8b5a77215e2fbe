"""A U-Net that says which pixels are nucleus and how deep in it they lie; a watershed parts them.

Naylor et al. 2018, "Segmentation of Nuclei in Histopathology Images by Deep Regression of the
Distance Map" (IEEE TMI 38). Depth is the distance to the nucleus' border as a share of its largest,
so that small nuclei stand out as clearly as large ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coverslip.heads.segmentation import UNKNOWN_CLASS, Labels, Maps, Segmentation
from coverslip.heads.unet import UNet
from coverslip.kernels.labels import (
    distance_transform,
    filled_holes,
    gaussian,
    label_depth,
    largest_parts,
    local_maxima,
    opened_by_disc,
    seeded_watershed,
)

HOLE_PX, FAR_PX = 64.0, 16.0
"""Largest hole that belongs to a nucleus, px²; no nucleus' middle is farther from its border."""


class Depths(NamedTuple):
    """At every pixel of the input."""

    logit: Tensor  # (b, 1, H, W): of being nucleus
    depth: Tensor  # (b, 1, H, W), 0 at the border to 1
    classes: Tensor  # (b, classes, H, W) logits; no channel with a single class


class DistanceMap(UNet):
    """A U-Net of four levels with batch normalisation.

    channels   of the input
    filters    of the first level; each below has twice those of the one above, up to four times
    classes    of nuclei; one needs no output
    """

    multiple = 8
    reach = 48
    partial = True

    def __init__(self, channels: int = 3, filters: int = 32, classes: int = 1) -> None:
        super().__init__(channels, filters, levels=4)
        self.maps = nn.Conv2d(filters, 2, 1)
        self.classes = nn.Conv2d(filters, classes, 1) if classes > 1 else None

    def forward(self, x: Tensor) -> Depths:  # (b, c, H, W); sides are multiples of 8
        x = self.features(x)
        logit, depth = self.maps(x).split(1, dim=1)
        classes = x[:, :0] if self.classes is None else self.classes(x)
        return Depths(logit, depth.sigmoid(), classes)

    def targets(
        self, labels: Labels, class_id: npt.NDArray[np.uint8]
    ) -> dict[str, npt.NDArray[np.float32]]:
        kind = np.append(0, class_id)[labels].astype(np.float32)
        kind[labels == 0] = UNKNOWN_CLASS
        return {"depth": label_depth(labels)[None], "class": kind[None]}

    def losses(self, maps: Depths, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy and soft Dice of the foreground; squared error of the depth; cross-entropy
        of classes. Pixels that are not known teach nothing."""
        depth = targets["depth"]
        known = targets.get("known", torch.ones_like(depth))
        nucleus = (depth > 0).float() * known
        share = maps.logit.sigmoid() * known
        both = (share * nucleus).sum(dim=(1, 2, 3))
        dice = 1 - (2 * both + 1) / (share.sum(dim=(1, 2, 3)) + nucleus.sum(dim=(1, 2, 3)) + 1)
        entropy = F.binary_cross_entropy_with_logits(maps.logit, nucleus, reduction="none")
        count = known.sum().clamp_min(1)
        found = {
            "nucleus": (entropy * known).sum() / count,
            "dice": dice.mean(),
            "depth": 4 * ((maps.depth - depth).square() * known).sum() / count,
        }
        if self.classes is not None:
            kind = targets["class"][:, 0].long()
            told = max(int((kind != UNKNOWN_CLASS).sum()), 1)
            loss = F.cross_entropy(maps.classes, kind, ignore_index=UNKNOWN_CLASS, reduction="sum")
            found["class"] = loss / told
        return found

    def segmentation(
        self, maps: Maps, shape: tuple[int, int], settings: Mapping[str, Any]
    ) -> Segmentation:
        """Peaks of the depth flood what is nucleus.

        settings   "probability": least of a nucleus' pixels; "open_px": radius of the disc that
                   fits into all parts of a nucleus; "smooth_px": standard deviation of the Gaussian
                   on the depth; "distance_share": of the distance to the border, in px, that is
                   added to it, so that the shape has a say, too; "apart_px": least distance of two
                   peaks; "least_px": smallest nucleus
        """
        logit, depth, classes = (np.asarray(m, np.float32)[:, : shape[0], : shape[1]] for m in maps)
        probability = 1 / (1 + np.exp(-logit[0]))
        mask = probability > settings["probability"]
        mask = filled_holes(opened_by_disc(mask, settings["open_px"]), HOLE_PX)
        height = gaussian(np.ascontiguousarray(depth[0]), settings["smooth_px"])
        distance = gaussian(distance_transform(mask, FAR_PX), 1.0)
        height = (height + settings["distance_share"] * distance).astype(np.float32)
        seeds = local_maxima(height, mask, settings["apart_px"])
        labels = largest_parts(seeded_watershed(-height, seeds, mask))
        return _described(labels, probability, classes, settings["least_px"])


def _described(
    labels: Labels,
    probability: npt.NDArray[np.float32],
    classes: npt.NDArray[np.float32],
    least_px: float,
) -> Segmentation:
    """Without what is too small; each with its mean probability and its most probable class."""
    count = int(labels.max(initial=0))
    area = np.bincount(labels.ravel(), minlength=count + 1)[1:]

    def mean(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        total = np.bincount(labels.ravel(), values.ravel(), minlength=count + 1)[1:]
        return np.asarray(total / np.maximum(area, 1), np.float32)

    kind = np.zeros(count, np.uint8)
    if len(classes) and count:
        chance = np.exp(classes - classes.max(axis=0))
        chance /= chance.sum(axis=0)
        kind = np.argmax([mean(c) for c in chance], axis=0).astype(np.uint8)
    found = Segmentation.of(labels, mean(probability), kind)
    return found.where(area >= max(least_px, 1))
