"""Cerberus: one encoder; a decoder for each kind of object; a head that says what tissue it is.

Graham et al. 2023, "One model is all you need: multi-task learning enables simultaneous histology
image segmentation and classification", Medical Image Analysis 83 (arXiv:2203.00077). An image need
not be labelled for all tasks: it teaches those it is labelled for. The plan is the paper's, its
layers are not one by one those of the published weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coverslip.errors import InvalidConfig, UnknownName
from coverslip.heads.losses import pixel_classes
from coverslip.heads.segmentation import Labels, Maps, Segmentation
from coverslip.heads.unet import convolutions
from coverslip.kernels.labels import (
    connected_components,
    distance_transform,
    filled_holes,
    seeded_watershed,
)


@dataclass(frozen=True, slots=True)
class ObjectTask:
    """Lengths in px, areas in px², at 0.5 µm/px.

    boundary   how deep it is; taken away so that objects part, and given back
    least      area of an object
    hole       area of the largest hole that is filled
    """

    boundary: int
    least: int
    hole: int


OBJECTS = {
    "nuclei": ObjectTask(boundary=1, least=8, hole=32),
    "glands": ObjectTask(boundary=3, least=256, hole=4096),
    "lumina": ObjectTask(boundary=3, least=64, hole=1024),
}
TASKS = (*OBJECTS, "tissue")
"""In the order of what is known of an image."""
TISSUE_CELLS = 5
"""Side of what is judged as one tissue, in cells of 32 px; the paper's patch has 144 px."""


class CerberusMaps(NamedTuple):
    """Objects: (b, 3, H, W) logits of background, inside, boundary; no channel without the task."""

    nuclei: Tensor
    glands: Tensor
    lumina: Tensor
    tissue: Tensor  # (b, classes, H / 32, W / 32) logits; their mean is the image's


class Cerberus(nn.Module):
    """A ResNet34 with U-Net decoders.

    tasks               of "nuclei", "glands", "lumina"
    tissue_classes      their names; or only how many, 0 for no such head
    width               channels of a decoder at half resolution; 2, 4, 4 times that below
    encoder_arguments   of timm's resnet34: others make it smaller
    """

    multiple = 32
    reach = 152  # the paper's 448 px in, 144 out

    def __init__(
        self,
        tasks: Sequence[str] = tuple(OBJECTS),
        tissue_classes: int | Sequence[str] = 9,
        width: int = 64,
        encoder_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        import timm

        for task in tasks:
            if task not in OBJECTS:
                raise UnknownName("task", task, OBJECTS)
        if "nuclei" not in tasks:
            raise InvalidConfig(f"tasks: nuclei must be among them, got {list(tasks)}")
        arguments = {"pretrained": False, **(encoder_arguments or {})}
        encoder: Any = timm.create_model("resnet34", features_only=True, **arguments)
        levels = encoder.feature_info.channels()  # of sides H / 2, H / 4, ... H / 32
        self.encoder = encoder
        self.decoders = nn.ModuleDict({task: Decoder(levels, width) for task in tasks})
        names = () if isinstance(tissue_classes, int) else tuple(tissue_classes)
        count = tissue_classes if isinstance(tissue_classes, int) else len(names)
        self.tissue_classes = names
        # a linear head on pooled features and the mean of one on each of them are the same
        self.tissue = nn.Conv2d(levels[-1], count, 1) if count else None

    def forward(self, x: Tensor) -> CerberusMaps:  # (b, 3, H, W); sides are multiples of 32
        levels = self.encoder(x)  # (b, c, H / 2, W / 2), ... (b, c', H / 32, W / 32)
        none = x[:, :0]
        found = {task: decoder(levels) for task, decoder in self.decoders.items()}
        tissue = levels[-1][:, :0] if self.tissue is None else self.tissue(levels[-1])
        return CerberusMaps(**{task: found.get(task, none) for task in OBJECTS}, tissue=tissue)

    def targets(
        self, labels: Labels, class_id: npt.NDArray[np.uint8]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Of an image where nothing but its nuclei is known; `class_id` is not used."""
        return self.partial_targets({"nuclei": labels})

    def partial_targets(
        self,
        labels: Mapping[str, Labels],
        tissue: int | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Of an image labelled for some tasks; with zeros for the others, so that they stack.

        labels   by task, [H, W]
        tissue   class of the whole image
        shape    (H, W), wanted where there are no labels
        """
        shape = shape or next(iter(labels.values())).shape
        found = {
            task: inside_and_boundary(labels[task], OBJECTS[task].boundary)
            if task in labels
            else np.zeros(shape, np.float32)
            for task in self.decoders
        }
        found["tissue"] = np.array(tissue or 0, np.float32)
        known = [task in labels or (task == "tissue" and tissue is not None) for task in TASKS]
        return {**found, "known": np.array(known, np.float32)}

    def losses(self, maps: CerberusMaps, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy and Dice of every task over the images for which `known` (b, tasks) says 1.

        A task that none of them is labelled for has a loss of 0, and its decoder a gradient of 0.
        """
        known = dict(zip(TASKS, targets["known"].unbind(1), strict=True))  # (b) each
        found = {
            task: pixel_classes(getattr(maps, task), targets[task], known[task][:, None, None])
            for task in self.decoders
        }
        if self.tissue is not None:
            logits, there = maps.tissue.mean((2, 3)), known["tissue"]  # (b, classes), (b)
            entropy = F.cross_entropy(logits, targets["tissue"].long(), reduction="none")
            found["tissue"] = (entropy * there).sum() / there.sum().clamp_min(1)
        return found

    @property
    def others(self) -> tuple[str, ...]:
        """What it finds besides nuclei."""
        return tuple(task for task in OBJECTS if task in self.decoders and task != "nuclei")

    def segmentation(
        self, maps: Maps, shape: tuple[int, int], settings: Mapping[str, Any], task: str = "nuclei"
    ) -> Segmentation:
        """The objects of a task. settings   see `object_labels`"""
        labels = object_labels(maps, shape, task, settings)
        logits = maps[TASKS.index(task)]
        chance = 1 - _softmax(logits)[0, : shape[0], : shape[1]]  # inside or boundary
        count = int(labels.max(initial=0)) + 1
        area = np.maximum(np.bincount(labels.ravel(), minlength=count), 1)
        total = np.bincount(labels.ravel(), chance.ravel(), count)
        return Segmentation.of(labels, (total / area)[1:].astype(np.float32))

    def tissue_probabilities(
        self, logits: npt.NDArray[np.float32], known: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32]:
        """Of each tissue class, at every cell of 32 px, float32 [h, w, classes].

        logits   [h, w, classes], as the last of the maps has them
        known    bool [h, w]: cells that count; the others become nan

        A cell is judged as an image `TISSUE_CELLS` cells wide and high whose middle it is.
        """
        from scipy.ndimage import uniform_filter

        side = (TISSUE_CELLS, TISSUE_CELLS)
        count = uniform_filter(known.astype(np.float64), side, mode="constant")[..., None]
        total = np.where(known[..., None], logits, 0).astype(np.float64)
        total = uniform_filter(total, (*side, 1), mode="constant")
        mean = np.divide(total, count, out=np.full_like(total, np.nan), where=known[..., None])
        return np.moveaxis(_softmax(np.moveaxis(mean, -1, 0)), 0, -1)


class Decoder(nn.Module):
    """A U-Net's way up."""

    def __init__(self, levels: Sequence[int], width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 4 * width]  # of sides H / 2, ... H / 16
        inputs = [*widths[1:], levels[-1]]
        self.up = nn.ModuleList(
            convolutions(a + skip, b)
            for a, skip, b in zip(inputs, levels[:-1], widths, strict=True)
        )
        self.out = nn.Sequential(convolutions(width, width), nn.Conv2d(width, 3, 1))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:  # -> (b, 3, H, W)
        *skips, x = levels
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2), skip], dim=1))
        found: Tensor = self.out(F.interpolate(x, scale_factor=2))
        return found


def inside_and_boundary(labels: Labels, boundary: int) -> npt.NDArray[np.float32]:
    """[H, W]: 0 background, 1 inside of an object, 2 within `boundary` px of its border, inside it.

    The image's edge is no border.
    """
    border = np.zeros(labels.shape, np.bool_)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    near = distance_transform(~border, boundary + 1) < boundary
    return ((labels > 0) * np.where(near, 2, 1)).astype(np.float32)


def object_labels(
    maps: Maps, shape: tuple[int, int], task: str, settings: Mapping[str, Any] | None = None
) -> Labels:
    """Objects of an image of (H, W) px, int32, 1 to N: nuclei, glands or lumina.

    settings   "probability": least of an object's inside, 0.5 if not given

    What is inside, with the boundary between touching objects left out, is labelled; then the
    boundary's depth is given back, every pixel to the object that is nearest.
    """
    kind = OBJECTS[task]
    chance = _softmax(maps[TASKS.index(task)])[1, : shape[0], : shape[1]]
    inside = chance >= (settings or {}).get("probability", 0.5)
    parts = connected_components(filled_holes(inside, kind.hole))
    area = np.bincount(parts.ravel(), minlength=1)
    large = area >= kind.least
    large[0] = False
    seeds = (np.cumsum(large) * large).astype(np.int32)[parts]
    away = distance_transform(seeds == 0, kind.boundary + 1)
    return np.asarray(seeded_watershed(away, seeds, away <= kind.boundary), np.int32)


def tissue_probability(maps: Maps) -> npt.NDArray[np.float32]:
    """Of each tissue class, for the image, float32 [classes]."""
    return _softmax(np.asarray(maps[-1]).mean(axis=(1, 2)))


def _softmax(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Over the first axis."""
    chance = np.exp(logits - logits.max(axis=0))
    return np.asarray(chance / chance.sum(axis=0), np.float32)
