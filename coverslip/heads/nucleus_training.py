"""Images with their nuclei: how batches are drawn from them, and how well a head does on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.heads.augmentation import crop_of, paled_nuclei
from coverslip.heads.crop_batches import CropBatches, Targets
from coverslip.heads.metrics import aggregated_jaccard, f1_at, panoptic_quality
from coverslip.heads.network_nuclei import NetworkNuclei
from coverslip.heads.recipe import TUNED, HeadRecipe
from coverslip.heads.registry import NucleusHead
from coverslip.heads.segmentation import NucleusNetwork
from coverslip.heads.training import TrainingConfig
from coverslip.kernels.labels import consecutive_labels

RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class NucleusImage:
    """An image at the head's resolution with all its nuclei.

    rgb        uint8 [H, W, 3]
    labels     int32 [H, W], 0 background
    class_id   uint8 [N]: of labels 1 to N; 255 where nobody told
    name       for messages
    known      bool [H, W]: where the labels can be relied on; None everywhere. Only networks that
               say so (`partial`) can be taught by images that are known in part
    """

    rgb: RGB
    labels: npt.NDArray[np.int32]
    class_id: npt.NDArray[np.uint8]
    name: str
    known: npt.NDArray[np.bool_] | None = None


class NucleusBatches(CropBatches[NucleusImage]):
    """Augmented crops of images, more of the larger ones."""

    def __init__(
        self,
        images: Sequence[NucleusImage],
        recipe: HeadRecipe,
        network: NucleusNetwork,
        config: TrainingConfig,
    ) -> None:
        super().__init__(recipe, network, config)
        self._partial = any(image.known is not None for image in images)
        if self._partial and not getattr(network, "partial", False):
            raise ValueError(f"{recipe.architecture} needs images whose labels are all known")
        self._images, self._network = images, network
        area = np.sqrt([image.labels.size for image in images])
        self._odds = area / area.sum()

    def drawn(self, random: np.random.Generator) -> Iterable[NucleusImage]:
        chosen = random.choice(len(self._images), self._config.batch, p=self._odds)
        return (self._images[i] for i in chosen)

    def example(self, image: NucleusImage, random: np.random.Generator) -> tuple[RGB, Targets]:
        side, changes = self._config.crop, self._config.augmentation
        known = np.ones(image.labels.shape) if image.known is None else image.known
        crop, (labels, seen) = crop_of(
            image.rgb, [image.labels, known.astype(np.uint8)], side, changes, random
        )
        labels, left = consecutive_labels(labels)
        crop = paled_nuclei(crop, labels, changes.vesicular, random)
        targets = self._network.targets(labels, image.class_id[left - 1])
        if self._partial:
            targets["known"] = seen[None].astype(np.float32)
        return crop, targets


def nucleus_figures(head: NucleusHead, images: Sequence[NucleusImage]) -> dict[str, float]:
    """Mean over images: "pq", "aji", "f1" at IoU 0.5; each image normalised by itself."""
    rows = []
    for image in images:
        found = head.fitted(image.rgb).segment(image.rgb).labels
        rows.append(
            [
                panoptic_quality(image.labels, found).pq,
                aggregated_jaccard(image.labels, found),
                f1_at(image.labels, found),
            ]
        )
    pq, aji, f1 = np.nanmean(np.array(rows), axis=0).tolist()
    return {"score": pq, "pq": pq, "aji": aji, "f1": f1}


def tuned(head: NetworkNuclei, images: Sequence[NucleusImage]) -> NetworkNuclei:
    """The head with those of its architecture's `TUNED` settings that do best on the images."""
    settings: Mapping[str, Any] = head.recipe.settings
    choices = TUNED.get(head.recipe.architecture, {})
    grid = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    maps = [(head.fitted(image.rgb).maps(image.rgb), image) for image in images]

    def score(changed: Mapping[str, float]) -> float:
        found = [
            head.network.segmentation(m, image.labels.shape, {**settings, **changed}).labels
            for m, image in maps
        ]
        pq = [panoptic_quality(i.labels, f).pq for f, (_, i) in zip(found, maps, strict=True)]
        return float(np.nanmean(pq))

    best = max(grid, key=score)
    return replace(head, recipe=replace(head.recipe, settings={**settings, **best}))
