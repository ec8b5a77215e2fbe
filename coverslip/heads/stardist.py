"""StarDist: every pixel says whether it is in a nucleus, and how far that reaches along 32 rays.

Schmidt et al. 2018, "Cell Detection with Star-convex Polygons" (arXiv:1806.03535); Weigert et al.
2020 (arXiv:1908.03636). The network is that of the package stardist's `2D_versatile_he`, layer by
layer, so that its weights can be loaded (`coverslip.heads.keras_weights`).
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
from coverslip.kernels.labels import label_depth, largest_parts
from coverslip.kernels.star_convex import ray_distances, star_labels, surviving_stars

LEAST_DISTANCE = 1e-3
"""What the package clips distances at, px."""


class Stars(NamedTuple):
    """At every second pixel of the input, from the first."""

    logit: Tensor  # (b, 1, h, w): of being in a nucleus
    distance: Tensor  # (b, rays, h, w), px of the input
    classes: Tensor  # (b, classes, h, w) logits; no channel with a single class


class StarDist(nn.Module):
    """A U-Net over the image at half size.

    rays      of a polygon
    filters   of the first level; each of the three below has twice those of the one above
    features  of the layer before the outputs
    classes   of nuclei; one needs no output
    """

    multiple = 16

    def __init__(
        self, rays: int = 32, filters: int = 32, features: int = 128, classes: int = 1
    ) -> None:
        super().__init__()
        widths = [filters, 2 * filters, 4 * filters]
        self.reach = 64
        self.enter = _convolutions(3, filters, filters)
        inputs = [filters, *widths[:-1]]
        self.down = nn.ModuleList(
            _convolutions(a, b, b) for a, b in zip(inputs, widths, strict=True)
        )
        self.middle = _convolutions(widths[-1], 2 * widths[-1], widths[-1])
        outputs = [max(w // 2, filters) for w in widths]  # 32, 32, 64
        self.up = nn.ModuleList(
            _convolutions(2 * w, w, out) for w, out in zip(widths, outputs, strict=True)
        )
        self.features = nn.Conv2d(filters, features, 3, padding=1)
        self.probability = nn.Conv2d(features, 1, 1)
        self.distance = nn.Conv2d(features, rays, 1)
        self.classes = nn.Conv2d(features, classes, 1) if classes > 1 else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as Keras begins: Glorot's uniform
                nn.init.xavier_uniform_(module.weight)
                module.bias.data.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Stars:  # (b, 3, H, W); sides are multiples of 16
        x = F.max_pool2d(self.enter(x), 2)  # (b, f, H / 2, W / 2)
        levels = []
        for block in self.down:
            levels.append(block(x))
            x = F.max_pool2d(levels[-1], 2)
        x = self.middle(x)  # (b, 4 f, H / 16, W / 16)
        for block, level in zip(reversed(self.up), reversed(levels), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2), level], dim=1))
        x = F.relu(self.features(x))  # (b, features, H / 2, W / 2)
        classes = x[:, :0] if self.classes is None else self.classes(x)
        return Stars(self.probability(x), self.distance(x), classes)

    def targets(
        self, labels: Labels, class_id: npt.NDArray[np.uint8]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The distance to the nucleus' border as a share of its largest; distances along rays."""
        depth = label_depth(labels)
        kind = np.full(labels.shape, UNKNOWN_CLASS, np.float32)
        inside = labels > 0
        kind[inside] = np.append(0, class_id)[labels[inside]]
        rays = self.distance.out_channels
        return {
            "depth": depth[None, ::2, ::2],
            "distance": ray_distances(labels, rays, 2).transpose(2, 0, 1),
            "class": kind[None, ::2, ::2],
        }

    def losses(self, maps: Stars, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy; absolute error of distances, weighted by depth (a star seen from
        its middle matters most), with the package's weights; cross-entropy of classes."""
        depth = targets["depth"]
        probability = F.binary_cross_entropy_with_logits(maps.logit, depth)
        error = (maps.distance - targets["distance"]).abs().mean(dim=1, keepdim=True)
        distance = (depth * error).sum() / depth.sum().clamp_min(1)
        outside = 1e-4 * ((1 - depth) * maps.distance.abs()).mean()
        found = {"probability": probability, "distance": 0.2 * (distance + outside)}
        if self.classes is not None:
            kind = targets["class"][:, 0].long()
            known = max(int((kind != UNKNOWN_CLASS).sum()), 1)
            loss = F.cross_entropy(maps.classes, kind, ignore_index=UNKNOWN_CLASS, reduction="sum")
            found["class"] = loss / known
        return found

    def segmentation(
        self, maps: Maps, shape: tuple[int, int], settings: Mapping[str, Any]
    ) -> Segmentation:
        """The stars that survive suppression, drawn, the most probable on top.

        settings   "probability": least of a star; "overlap": of two that share more than this much
                   of the smaller, only the more probable stays
        """
        logit, distance, classes = (np.asarray(m, np.float32) for m in maps)
        probability = 1 / (1 + np.exp(-logit[0]))
        row, column = np.nonzero(probability > settings["probability"])
        inside = (2 * row < shape[0]) & (2 * column < shape[1])
        row, column = row[inside], column[inside]
        centre = np.stack([2 * column, 2 * row], axis=1).astype(np.float64)
        rays = np.maximum(distance[:, row, column].T, LEAST_DISTANCE)
        chance = probability[row, column]
        kept = surviving_stars(centre, rays, chance, settings["overlap"])
        row, column, chance = row[kept], column[kept], chance[kept]
        # of a star that others cover the largest part is left
        labels = largest_parts(star_labels(centre[kept], rays[kept], chance, shape))
        kind = np.zeros(len(row), np.uint8)
        if len(classes):
            kind = _class_of_each(classes, labels, len(row))
        found = Segmentation(labels, chance.astype(np.float32), kind, np.full_like(chance, np.nan))
        return found.where(np.isin(np.arange(1, len(row) + 1), labels))  # not what is covered whole


def _convolutions(inner: int, middle: int, outer: int) -> nn.Sequential:
    """Two of 3 x 3, each with a ReLU."""
    return nn.Sequential(
        nn.Conv2d(inner, middle, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(middle, outer, 3, padding=1),
        nn.ReLU(),
    )


def _class_of_each(
    classes: npt.NDArray[np.float32], labels: Labels, count: int
) -> npt.NDArray[np.uint8]:
    """The class with the largest sum of probabilities over each nucleus' pixels."""
    chance = np.exp(classes - classes.max(axis=0))
    chance /= chance.sum(axis=0)
    seen = labels[::2, ::2][: chance.shape[1], : chance.shape[2]]
    chance = chance[:, : seen.shape[0], : seen.shape[1]]
    votes = [np.bincount(seen.ravel(), c.ravel(), minlength=count + 1)[1:] for c in chance]
    return np.asarray(np.argmax(votes, axis=0), np.uint8)
