"""Nuclei as maps of where their pixels lie in them: HoVer-Net's arithmetic, whatever the network.

Graham et al. 2019, "HoVer-Net", Medical Image Analysis 58 (arXiv:1812.06499).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from coverslip.heads.losses import pixel_classes
from coverslip.heads.segmentation import UNKNOWN_CLASS, Labels, Maps, Segmentation
from coverslip.kernels.hover import hover_instances

SPAN = (-0.35, 0.12)
"""Gradients of a border and of a nucleus' inside; see `kernels.hover`."""
GRADIENT_WEIGHT = 2.0
"""Of the gradients' error among the losses, as in the paper; all others weigh 1."""


class HoverMaps(NamedTuple):
    """At every pixel; `classes` are those of nuclei, after one for the background."""

    nucleus: Tensor  # (b, 2, H, W) logits: background, nucleus
    offset: Tensor  # (b, 2, H, W): horizontal, vertical; -1 to 1 within a nucleus
    classes: Tensor  # (b, 1 + classes, H, W) logits; no channel with a single class


def offsets(labels: Labels) -> npt.NDArray[np.float32]:
    """Horizontal and vertical place within the nucleus, float32 [2, H, W], 0 on the background.

    0 at the pixel of the centroid, from there to -1 at the left (upper) end and to 1 at the right
    (lower) end: each side is scaled by itself, so that a gradient is steep where nuclei meet. (The
    published code counts columns from 1 and centroids from 0, so its 0 lies a pixel to the left.)
    """
    count = int(labels.max(initial=0)) + 1
    pixel = np.nonzero(labels)  # (rows, columns)
    number = labels[pixel]
    area = np.maximum(np.bincount(number, minlength=count), 1)
    maps = np.zeros((2, *labels.shape), np.float32)
    for channel, place in enumerate(reversed(pixel)):
        middle = np.floor(np.bincount(number, place, count) / area + 0.5)
        away = place - middle[number]
        ends = np.zeros((2, count))
        np.maximum.at(ends[0], number, -away)
        np.maximum.at(ends[1], number, away)
        maps[channel][pixel] = away / np.maximum(ends[(away > 0).astype(int), number], 1)
    return maps


def hover_targets(
    labels: Labels, class_id: npt.NDArray[np.uint8]
) -> dict[str, npt.NDArray[np.float32]]:
    """What a network's maps should be; see `NucleusNetwork.targets`."""
    kind = np.where(class_id == UNKNOWN_CLASS, UNKNOWN_CLASS, class_id.astype(np.float32) + 1)
    return {
        "nucleus": (labels > 0).astype(np.float32),
        "offset": offsets(labels),
        "class": np.append(0, kind).astype(np.float32)[labels],
    }


def hover_losses(maps: HoverMaps, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The paper's: pixels and classes by cross-entropy and Dice; squared errors of offsets
    everywhere, and of their gradients inside nuclei."""
    inside, offset = targets["nucleus"], targets["offset"]
    error = _gradients(maps.offset) - _gradients(offset)
    steep = (error.square() * inside[:, None]).sum() / (2 * inside.sum()).clamp_min(1)
    found = {
        "nucleus": pixel_classes(maps.nucleus, inside),
        "offset": F.mse_loss(maps.offset, offset),
        "gradient": GRADIENT_WEIGHT * steep,
    }
    if maps.classes.shape[1]:
        kind = targets["class"]
        found["class"] = pixel_classes(maps.classes, kind, kind != UNKNOWN_CLASS)
    return found


def hover_segmentation(
    maps: Maps, shape: tuple[int, int], settings: Mapping[str, Any]
) -> Segmentation:
    """The nuclei of an image of (H, W) px.

    settings   "probability": least of a nucleus' pixels, 0.5 if not given; "span": see `SPAN`
    """
    h, w = shape
    nucleus, offset, classes = (np.asarray(m, np.float32)[:, :h, :w] for m in maps)
    probability = 1 / (1 + np.exp(nucleus[0] - nucleus[1]))  # [H, W]
    foreground = (probability >= settings.get("probability", 0.5)).astype(np.float32)
    low, high = settings.get("span", SPAN)
    labels = hover_instances(foreground, offset[0], offset[1], span=(low, high))
    flat, count = labels.ravel(), int(labels.max(initial=0)) + 1
    area = np.maximum(np.bincount(flat, minlength=count), 1)
    mean = (np.bincount(flat, probability.ravel(), count) / area)[1:].astype(np.float32)
    if not len(classes):
        return Segmentation.of(labels, mean)
    kind = classes.argmax(axis=0).ravel()
    votes = np.bincount(flat * len(classes) + kind, minlength=count * len(classes))
    of_nuclei = votes.reshape(count, -1)[1:, 1:]  # [N, classes]: the background has no vote
    return Segmentation.of(labels, mean, of_nuclei.argmax(axis=1).astype(np.uint8))


class FromHoverMaps:
    """What is around a network whose maps are `HoverMaps`; see `NucleusNetwork`."""

    def targets(
        self, labels: Labels, class_id: npt.NDArray[np.uint8]
    ) -> dict[str, npt.NDArray[np.float32]]:
        return hover_targets(labels, class_id)

    def losses(self, maps: HoverMaps, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return hover_losses(maps, targets)

    def segmentation(
        self, maps: Maps, shape: tuple[int, int], settings: Mapping[str, Any]
    ) -> Segmentation:
        return hover_segmentation(maps, shape, settings)


def _gradients(offset: Tensor) -> Tensor:
    """(b, 2, H, W) -> the same: the horizontal map's along x, the vertical map's along y.

    By the published kernel of 5 x 5: a step counts the less the farther it is.
    """
    reach = torch.arange(-2, 3, device=offset.device, dtype=offset.dtype)
    down, across = torch.meshgrid(reach, reach, indexing="ij")
    kernel = across / (across.square() + down.square() + 1e-15)
    return F.conv2d(offset, torch.stack([kernel, kernel.T])[:, None], padding=2, groups=2)
