"""Clicks that nobody made: on labelled objects, as a user would click, to train NuClick with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.errors import InvalidConfig
from coverslip.heads.augmentation import crop_of, recoloured
from coverslip.heads.nucleus_training import NucleusImage
from coverslip.heads.nuclick import NuClick, click_input, line_points, marked_part, probabilities
from coverslip.heads.simulated_marks import inside_point, squiggle
from coverslip.heads.training import Batch, TrainingConfig
from coverslip.kernels.labels import connected_components, distance_transform

RGB = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]

LEAST_PX = 30
"""Smaller objects, remnants at an image's border, are not clicked."""
FREE_PX = 4.0
"""How far from every object a click on background lies."""


@dataclass(frozen=True, slots=True)
class ClickHabits:
    """How users are thought to click.

    squiggles    share of objects marked by a line along their inside rather than by a click
    alone        share of objects marked with no mark on any other; else each other object that
                 is seen has one with a chance drawn anew
    background   share of clicks where there is no object, to be answered by nothing
    jitter       how far the marked place may lie from the middle of the patch, px
    """

    squiggles: float = 0.15
    alone: float = 0.5
    background: float = 0.15
    jitter: int = 12


@dataclass(frozen=True, slots=True)
class ClickedKind:
    """What is clicked, and how a head for it is made unless somebody wants it otherwise.

    mpp        µm per px; patch_px what is seen around a click
    settings   of the head
    """

    name: str
    mpp: float
    patch_px: int
    settings: dict[str, Any]
    habits: ClickHabits


KINDS = {
    "nuclei": ClickedKind("Nucleus", 0.25, 128, {"least_um2": 2.0}, ClickHabits()),
    "glands": ClickedKind(
        "Gland", 0.5, 512, {"least_um2": 100.0}, ClickHabits(squiggles=0.7, jitter=48)
    ),
}
"""The paper's patches; glands are marked by squiggles as well as by clicks."""


@dataclass(frozen=True, slots=True)
class _Marked:
    """A patch with its marks: object and others bool [H, W], marks [n, 2] (x, y) px."""

    rgb: RGB
    object: Mask
    others: Mask
    meant: Points
    not_meant: Points


@dataclass(frozen=True, eq=False)
class ClickBatches:
    """Augmented patches around simulated clicks, more of the larger images.

    images   with all their objects, at the head's resolution
    """

    images: Sequence[NucleusImage]
    config: TrainingConfig
    habits: ClickHabits = field(default_factory=ClickHabits)

    def __post_init__(self) -> None:
        if self.config.crop % NuClick.multiple:
            raise InvalidConfig(
                f"crop must be a multiple of {NuClick.multiple}, got {self.config.crop}"
            )

    def batch(self, step: int) -> Batch:
        """Of a step: the same whenever it is asked for."""
        random = np.random.default_rng([self.config.seed, step])
        size = np.sqrt([image.labels.size for image in self.images])
        chosen = random.choice(len(self.images), self.config.batch, p=size / size.sum())
        patches = [self._patch(self.images[i], random) for i in chosen]
        seen = recoloured(np.stack([p.rgb for p in patches]), self.config.augmentation, random)
        inputs = [
            click_input(rgb, p.meant, p.not_meant) for rgb, p in zip(seen, patches, strict=True)
        ]
        return Batch(
            np.stack(inputs),
            {
                "object": np.stack([p.object[None] for p in patches]).astype(np.float32),
                "others": np.stack([p.others[None] for p in patches]).astype(np.float32),
            },
        )

    def _patch(self, image: NucleusImage, random: np.random.Generator) -> _Marked:
        large = np.flatnonzero(np.bincount(image.labels.ravel()) >= LEAST_PX)
        large = large[large > 0]
        free: Mask = np.zeros(0, np.bool_)
        if not len(large) or random.random() < self.habits.background:
            free = distance_transform(image.labels == 0, FREE_PX + 1) > FREE_PX
        background = bool(free.any())
        if not background and not len(large):
            raise ValueError(f"{image.name}: neither an object of {LEAST_PX} px nor background")
        place = free if background else image.labels == random.choice(large)
        row, column = (int(n) for n in random.choice(np.argwhere(place)))
        number = int(image.labels[row, column])
        cut = self._cut(random)
        jitter = min(self.habits.jitter, cut // 4)  # what is marked stays in the patch
        rgb, labels = _around(image, (row, column), cut + 2 * jitter)
        changes = replace(self.config.augmentation, scale=(cut / self.config.crop,) * 2)
        rgb, (labels,) = crop_of(rgb, [labels], self.config.crop, changes, random)
        if background:
            place = distance_transform(labels == 0, FREE_PX) >= FREE_PX / 2
            meant = inside_point(place, random)[None] if place.any() else np.empty((0, 2))
            target = np.zeros(labels.shape, np.bool_)
        else:
            meant, target = _marked(labels == number, self.habits, random)
        return _Marked(
            rgb, target, (labels > 0) & ~target, meant, self._not_meant(labels, target, random)
        )

    def _cut(self, random: np.random.Generator) -> int:
        """Side of what is cut out of the image, px."""
        least, largest = np.log(self.config.augmentation.scale)
        return round(self.config.crop * float(np.exp(random.uniform(least, largest))))

    def _not_meant(self, labels: Labels, target: Mask, random: np.random.Generator) -> Points:
        from scipy.ndimage import find_objects

        if random.random() < self.habits.alone:
            return np.empty((0, 2))
        chance = random.random()
        others = np.where(target, 0, labels)
        marks = []
        for number, place in enumerate(find_objects(others), 1):
            if place is None or random.random() > chance:
                continue
            mask = others[place] == number
            if np.count_nonzero(mask) >= LEAST_PX:
                corner = [place[1].start, place[0].start]
                marks.append(inside_point(mask, random) + corner)
        return np.array(marks).reshape(-1, 2)


def _marked(mask: Mask, habits: ClickHabits, random: np.random.Generator) -> tuple[Points, Mask]:
    """Marks on one part of `mask`, and that part."""
    click = inside_point(mask, random)
    parts = connected_components(mask)
    target = parts == parts[int(click[1]), int(click[0])]
    if random.random() < habits.squiggles:
        return line_points(squiggle(target, click, random)), target
    return click[None], target


def _around(image: NucleusImage, middle: tuple[int, int], side: int) -> tuple[RGB, Labels]:
    """A square of `side` px about (row, column), mirrored where it leaves the image."""
    rows, columns = (
        _mirrored(np.arange(side) + at - side // 2, length)
        for at, length in zip(middle, image.labels.shape, strict=True)
    )
    place = np.ix_(rows, columns)
    return image.rgb[place], image.labels[place]


def _mirrored(index: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Indices beyond an axis of `length` px led back into it as by mirrors at its ends."""
    place = index % (2 * length)
    return np.where(place < length, place, 2 * length - 1 - place)


def click_figures(
    network: NuClick,
    images: Sequence[NucleusImage],
    side: int,
    threshold: float = 0.5,
    *,
    most: int | None = None,
    exclude: bool = False,
    squiggles: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """How well objects are found by one click on each: means of "iou" and "dice", share "found".

    side        of the patches, px; what of an object lies beyond counts as missed
    most        objects, drawn at random; all by default
    exclude     every other object in the patch is marked as not meant
    squiggles   a line along its inside marks each, instead of a click
    """
    random = np.random.default_rng(seed)
    objects = [
        (image, number)
        for image in images
        for number in np.flatnonzero(np.bincount(image.labels.ravel()) >= LEAST_PX).tolist()
        if number > 0
    ]
    if most is not None and most < len(objects):
        chosen = np.sort(random.choice(len(objects), most, replace=False))
        objects = [objects[i] for i in chosen]
    if not objects:
        return {"score": 0.0, "iou": np.nan, "dice": np.nan, "found": np.nan}
    rows = []
    for image, number in objects:
        marks = _marks(image.labels == number, squiggles, random)
        shared, found, true = _answer(
            network, image, number, marks, side, threshold, exclude, random
        )
        rows.append([shared / (found + true - shared), 2 * shared / (found + true), found > 0])
    iou, dice, answered = np.mean(rows, axis=0).tolist()
    return {"score": iou, "iou": iou, "dice": dice, "found": answered}


def _marks(mask: Mask, squiggles: bool, random: np.random.Generator) -> Points:
    """(x, y) px [n, 2]: a click on the object, or points along a line in the part it falls on."""
    click = inside_point(mask, random)
    if not squiggles:
        return click[None]
    parts = connected_components(mask)
    return line_points(squiggle(parts == parts[int(click[1]), int(click[0])], click, random))


def _answer(
    network: NuClick,
    image: NucleusImage,
    number: int,
    marks: Points,
    side: int,
    threshold: float,
    exclude: bool,
    random: np.random.Generator,
) -> tuple[int, int, int]:
    """Pixels (shared, found, true) of one object of an image."""
    mask = image.labels == number
    centre = (marks.min(axis=0) + marks.max(axis=0)) / 2
    middle = (int(centre[1]), int(centre[0]))
    rgb, labels = _around(image, middle, side)
    inside_image = (
        np.abs(np.arange(side) + at - side // 2 - (length - 1) / 2) <= (length - 1) / 2
        for at, length in zip(middle, mask.shape, strict=True)
    )
    real = np.logical_and.outer(*inside_image)
    own = marks - np.array(middle[::-1]) + side // 2
    others = np.empty((0, 2))
    if exclude:
        numbers, counts = np.unique(np.where(real, labels, 0), return_counts=True)
        numbers = numbers[(counts >= LEAST_PX) & (numbers > 0) & (numbers != number)]
        others = np.array([inside_point((labels == n) & real, random) for n in numbers])
        others = others.reshape(-1, 2)
    chance = probabilities(network, click_input(rgb, own, others)[None])[0]
    found = marked_part(chance, own, threshold) & real
    shared = np.count_nonzero(found & (labels == number))
    return int(shared), int(np.count_nonzero(found)), int(np.count_nonzero(mask))
