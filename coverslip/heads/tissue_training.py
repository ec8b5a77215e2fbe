"""Partly labelled areas of slides: how batches are drawn from them, and how well a map does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from coverslip.heads.augmentation import crop_of, recoloured
from coverslip.heads.normalisation import Normalisation
from coverslip.heads.recipe import HeadRecipe
from coverslip.heads.segmentation import UNKNOWN_CLASS
from coverslip.heads.tissue_map import TissueHead, TissueMap
from coverslip.heads.training import Batch, TrainingConfig

RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class TissueImage:
    """A part of a slide at the head's resolution, some of its pixels labelled.

    rgb             uint8 [H, W, 3]
    class_id        uint8 [H, W]; 255 where nobody told
    slide, region   images of one region are held out together
    normalisation   of the slide
    """

    rgb: RGB
    class_id: npt.NDArray[np.uint8]
    slide: str
    region: int
    normalisation: Normalisation

    def counts(self, classes: int) -> npt.NDArray[np.int64]:
        """[classes] labelled px."""
        return np.bincount(self.class_id.ravel(), minlength=256)[:classes]


class TissueBatches:
    """Augmented crops around labelled pixels: each class as often as the others, whatever its area.

    A crop is drawn by a pixel: of a class at random, any pixel of it in any image.
    """

    def __init__(
        self,
        images: Sequence[TissueImage],
        recipe: HeadRecipe,
        network: TissueMap,
        config: TrainingConfig,
    ) -> None:
        if config.crop % network.multiple:
            raise ValueError(f"crop must be a multiple of {network.multiple}, got {config.crop}")
        self._images, self._config, self._mpp = images, config, recipe.mpp
        counts = np.stack([image.counts(len(recipe.classes)) for image in images])  # (n, classes)
        self._present = np.flatnonzero(counts.sum(axis=0))
        self._odds = counts / np.maximum(counts.sum(axis=0), 1)

    def batch(self, step: int) -> Batch:
        """Of a step: the same whenever it is asked for."""
        config = self._config
        random = np.random.default_rng([config.seed, step])
        crops, kinds, spans = [], [], []
        for _ in range(config.batch):
            kind = int(random.choice(self._present))
            image = self._images[random.choice(len(self._images), p=self._odds[:, kind])]
            crop, (class_id,) = crop_of(
                image.rgb, [image.class_id], config.crop, config.augmentation, random,
                centre=_any_pixel(image.class_id == kind, random),
            )  # fmt: skip
            crops.append(crop)
            kinds.append(class_id)
            spans.append(image.normalisation)
        seen = recoloured(np.stack(crops), config.augmentation, random)
        pixels = [span(crop, self._mpp) for span, crop in zip(spans, seen, strict=True)]
        return Batch(np.stack(pixels), {"class": np.stack(kinds).astype(np.float32)})


def _any_pixel(mask: npt.NDArray[np.bool_], random: np.random.Generator) -> tuple[int, int]:
    """(row, column) of a pixel of the mask, each as likely."""
    rows = np.count_nonzero(mask, axis=1)
    row = int(random.choice(len(rows), p=rows / rows.sum()))
    return row, int(random.choice(np.flatnonzero(mask[row])))


def tissue_figures(head: TissueHead, images: Sequence[TissueImage]) -> dict[str, float]:
    """Over all labelled pixels of the images together.

    "dice", "iou"         means over the classes that are there
    "balanced_accuracy"   mean share of a class's pixels that are found
    "dice <class>", "iou <class>"   nan where the class is not there
    """
    classes = len(head.classes)
    table = np.zeros((classes, classes), np.int64)  # (true, found)
    for image in images:
        fitted = replace(head, normalisation=image.normalisation)
        found = fitted.probabilities(image.rgb).argmax(axis=0)
        known = image.class_id != UNKNOWN_CLASS
        pairs = image.class_id[known].astype(np.int64) * classes + found[known]
        table += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return confusion_figures(table, head.classes)


def confusion_figures(table: npt.NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    """As `tissue_figures`, of counted pixels [true class, found class]."""
    both, true, found = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    there = true > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        dice = np.where(there, 2 * both / (true + found), np.nan)
        iou = np.where(there, both / (true + found - both), np.nan)
        recall = np.where(there, both / true, np.nan)
    mean = {
        name: float(values[there].mean()) if there.any() else float("nan")
        for name, values in (("dice", dice), ("iou", iou), ("balanced_accuracy", recall))
    }
    each = {
        f"{what} {name}": float(values[i])
        for what, values in (("dice", dice), ("iou", iou))
        for i, name in enumerate(classes)
    }
    return {"score": mean["dice"], **mean, **each}
