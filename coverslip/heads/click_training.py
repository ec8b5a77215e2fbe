"""Clicks that nobody made: on labelled nuclei, as a user would click, to train NuClick with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from coverslip.heads.augmentation import crop_of, recoloured
from coverslip.heads.nucleus_training import NucleusImage
from coverslip.heads.nuclick import NuClick, click_input, line_points, marked_part, probabilities
from coverslip.heads.training import Batch, TrainingConfig
from coverslip.kernels.labels import connected_components, distance_transform

RGB = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]

LEAST_PX = 30
"""Smaller objects, remnants at an image's border, are not clicked."""
DEPTH = (0.1, 0.9)
"""How deep a click lies, as a share of the object's greatest depth: at least so much, drawn."""
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
            raise ValueError(
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
        rgb, labels = _around(image, (row, column), cut + 2 * self.habits.jitter)
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


def inside_point(mask: Mask, random: np.random.Generator) -> Points:
    """(x, y) px of a point inside `mask` [H, W], rarely at its border, often off its middle."""
    seen = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    top, left = (max(int(n[0]) - 1, 0) for n in seen)
    part = mask[top : seen[0][-1] + 2, left : seen[1][-1] + 2]
    depth = distance_transform(part, float(max(part.shape)))
    rows, columns = np.nonzero(part & (depth >= random.uniform(*DEPTH) * depth.max()))
    i = random.integers(len(rows))
    within = random.uniform(0.05, 0.95, 2)  # of the pixel
    return np.array([left + columns[i], top + rows[i]]) + within


def squiggle(mask: Mask, start: Points, random: np.random.Generator) -> Points:
    """A line along the inside of a 4-connected `mask` from `start` on: vertices [n, 2] (x, y) px.

    It leads to the farthest of three points inside, on the way that stays farthest from the border.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    depth = distance_transform(mask, float(max(mask.shape)))
    ends = [inside_point(mask, random) for _ in range(3)]
    end = max(ends, key=lambda point: float(np.hypot(*(point - start))))
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(np.count_nonzero(mask))
    height = depth[mask].astype(np.float64)
    steps = [(number[:, :-1], number[:, 1:]), (number[:-1], number[1:])]
    open_ways = [(a[(a >= 0) & (b >= 0)], b[(a >= 0) & (b >= 0)]) for a, b in steps]
    one = np.concatenate([a for a, _ in open_ways])
    other = np.concatenate([b for _, b in open_ways])
    cost = 1 / np.minimum(height[one], height[other]) ** 2
    graph = coo_array((cost, (one, other)), shape=(len(height),) * 2).tocsr()
    first, last = (int(number[int(y), int(x)]) for x, y in (start, end))
    _, before = dijkstra(graph, directed=False, indices=first, return_predecessors=True)
    way = [last]
    while way[-1] != first and before[way[-1]] >= 0:
        way.append(int(before[way[-1]]))
    return np.asarray(np.argwhere(mask)[way[::-1], ::-1] + 0.5, np.float64)


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
    seed: int = 0,
) -> dict[str, float]:
    """How well objects are found by one click on each: means of "iou" and "dice", share "found".

    side      of the patches, px; what of an object lies beyond counts as missed
    most      objects, drawn at random; all by default
    exclude   every other object in the patch is marked as not meant
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
    rows = []
    for image, number in objects:
        shared, found, true = _one_click(network, image, number, side, threshold, exclude, random)
        rows.append([shared / (found + true - shared), 2 * shared / (found + true), found > 0])
    iou, dice, answered = np.mean(rows, axis=0).tolist()
    return {"score": iou, "iou": iou, "dice": dice, "found": answered}


def _one_click(
    network: NuClick,
    image: NucleusImage,
    number: int,
    side: int,
    threshold: float,
    exclude: bool,
    random: np.random.Generator,
) -> tuple[int, int, int]:
    """Pixels (shared, found, true) of one object of an image."""
    mask = image.labels == number
    click = inside_point(mask, random)
    middle = (int(click[1]), int(click[0]))
    rgb, labels = _around(image, middle, side)
    inside_image = (
        np.abs(np.arange(side) + at - side // 2 - (length - 1) / 2) <= (length - 1) / 2
        for at, length in zip(middle, mask.shape, strict=True)
    )
    real = np.logical_and.outer(*inside_image)
    own = click - np.array(middle[::-1]) + side // 2
    others = np.empty((0, 2))
    if exclude:
        numbers, counts = np.unique(np.where(real, labels, 0), return_counts=True)
        numbers = numbers[(counts >= LEAST_PX) & (numbers > 0) & (numbers != number)]
        others = np.array([inside_point((labels == n) & real, random) for n in numbers])
        others = others.reshape(-1, 2)
    chance = probabilities(network, click_input(rgb, own[None], others)[None])[0]
    found = marked_part(chance, own[None], threshold) & real
    shared = np.count_nonzero(found & (labels == number))
    return int(shared), int(np.count_nonzero(found)), int(np.count_nonzero(mask))
