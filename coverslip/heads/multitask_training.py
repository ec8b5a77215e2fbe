"""Images labelled for some tasks only: how Cerberus' batches are mixed of them, and how well it
does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from coverslip.heads.augmentation import crop_of, paled_nuclei
from coverslip.heads.cerberus import Cerberus, tissue_probability
from coverslip.heads.crop_batches import CropBatches, Targets
from coverslip.heads.metrics import dice, panoptic_quality
from coverslip.heads.network_head import RGB
from coverslip.heads.network_nuclei import NetworkNuclei
from coverslip.heads.recipe import HeadRecipe
from coverslip.heads.segmentation import Labels
from coverslip.heads.training import TrainingConfig


@dataclass(frozen=True, eq=False)
class MultitaskImage:
    """An image at the head's resolution, labelled for some tasks.

    rgb      uint8 [H, W, 3]
    labels   int32 [H, W] by task, "nuclei", "glands", "lumina": all there are, 0 background. Of a
             task that is not among them nothing is known
    tissue   class of the whole image; None where nobody told
    name     for messages
    """

    rgb: RGB
    labels: Mapping[str, Labels]
    tissue: str | None
    name: str


@dataclass(frozen=True, eq=False)
class MultitaskSource:
    """Images that are drawn from together.

    share   how many of all crops are of this source, beside the shares of the others
    name    for messages
    """

    images: Sequence[MultitaskImage]
    share: float
    name: str


class MultitaskBatches(CropBatches[MultitaskImage]):
    """Augmented crops of several sources, each with its share of every batch.

    Within a source one tissue class comes as often as another, and larger images more often than
    smaller ones.
    """

    def __init__(
        self,
        sources: Sequence[MultitaskSource],
        recipe: HeadRecipe,
        network: Cerberus,
        config: TrainingConfig,
    ) -> None:
        super().__init__(recipe, network, config)
        self._sources, self._network = sources, network
        share = np.cumsum([source.share for source in sources])
        self._ends = share / share[-1]
        self._odds = [_odds(source.images) for source in sources]

    def drawn(self, random: np.random.Generator) -> Iterable[MultitaskImage]:
        """Every source has its share of the batch, but for less than one crop."""
        places = (np.arange(self._config.batch) + random.random()) / self._config.batch
        for i in np.searchsorted(self._ends[:-1], places, side="right").tolist():
            images = self._sources[i].images
            yield images[random.choice(len(images), p=self._odds[i])]

    def example(self, image: MultitaskImage, random: np.random.Generator) -> tuple[RGB, Targets]:
        side, changes = self._config.crop, self._config.augmentation
        crop, cut = crop_of(image.rgb, list(image.labels.values()), side, changes, random)
        labels = {k: v.astype(np.int32) for k, v in zip(image.labels, cut, strict=True)}
        if "nuclei" in labels:
            crop = paled_nuclei(crop, labels["nuclei"], changes.vesicular, random)
        kind = None if image.tissue is None else self._network.tissue_classes.index(image.tissue)
        return crop, self._network.partial_targets(labels, kind, (side, side))


def _odds(images: Sequence[MultitaskImage]) -> npt.NDArray[np.float64]:
    """[N] how likely each is drawn."""
    size = np.sqrt([image.rgb.shape[0] * image.rgb.shape[1] for image in images])
    kinds = [image.tissue for image in images]
    total: Counter[str | None] = Counter()
    for kind, one in zip(kinds, size.tolist(), strict=True):
        total[kind] += one
    odds = size / np.array([total[kind] for kind in kinds])
    return np.asarray(odds / odds.sum(), np.float64)


def multitask_figures(head: NetworkNuclei, images: Sequence[MultitaskImage]) -> dict[str, float]:
    """Of each task of the head, over the images that are labelled for it.

    "pq <task>", "dice <task>"   means over images; nan where there is nothing
    "balanced_accuracy"          of tissue classes: mean share of a class's images that are found
    "score"                      mean of PQs and balanced accuracy, those that are known
    """
    names, network = head.tissue_classes, cast(Cerberus, head.network)
    rows: dict[str, list[float]] = {
        f"{what} {task}": [] for task in ("nuclei", *head.others) for what in ("pq", "dice")
    }
    hits: dict[str, list[float]] = {}
    for image in images:
        maps = head.fitted(image.rgb).maps(image.rgb)
        for task in ("nuclei", *head.others):
            if (true := image.labels.get(task)) is not None:
                found = network.segmentation(maps, true.shape, head.recipe.settings, task)
                rows[f"pq {task}"].append(panoptic_quality(true, found.labels).pq)
                rows[f"dice {task}"].append(dice(true, found.labels))
        if image.tissue in names:
            right = names[int(tissue_probability(maps).argmax())] == image.tissue
            hits.setdefault(image.tissue, []).append(float(right))
    figures = {name: _mean(values) for name, values in rows.items()}
    if names:
        figures["balanced_accuracy"] = _mean([_mean(values) for values in hits.values()])
    scored = [value for name, value in figures.items() if not name.startswith("dice")]
    return {"score": float(np.nan_to_num(_mean(scored))), **figures}


def _mean(values: Sequence[float]) -> float:
    """Of those that are no nan; nan where none is left."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
