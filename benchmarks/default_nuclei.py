"""How the nucleus model in the package was trained; run it to train it again.

python benchmarks/default_nuclei.py DSB SLIDES... --teacher FILE -o OUT [--steps 2600]

DSB      histology of the Data Science Bowl 2018 (BBBC038, CC0): <name>.png, <name>_instances.png
SLIDES   unlabelled (MIT and CC0 licences)
FILE     a distance-map head trained on DSB alone (`coverslip train nuclei DSB --architecture
         distance-map --nucleus-area 31`): few images of few laboratories, so that elsewhere it
         finds less than the watershed does

Watershed and FILE together label the slides: a pixel is nucleus where a weighted mean of what both
say is above a half, and known where that mean is clear. A student learns from these and, half of
the time, from DSB's own labels, under changes of stain, scale and focus that its teachers did not
have to see through (Xie et al. 2020, "Self-training with Noisy Student", arXiv:1911.04252).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coverslip.engine.nucleus_images import nucleus_images
from coverslip.engine.nucleus_training import finished_head, split
from coverslip.heads.augmentation import Augmentation
from coverslip.heads.network_nuclei import NetworkNuclei
from coverslip.heads.nucleus_training import NucleusBatches, NucleusImage, nucleus_figures
from coverslip.heads.recipe import SETTINGS, HeadRecipe
from coverslip.heads.training import Batch, Training, TrainingConfig
from coverslip.heads.watershed import WatershedNuclei
from coverslip.kernels.labels import (
    distance_transform,
    filled_holes,
    gaussian,
    largest_parts,
    local_maxima,
    opened_by_disc,
    seeded_watershed,
)
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.stream import TileStream
from coverslip.tiling.tissue import find_tissue
from coverslip.wsi.opening import open_slide, slide_paths

MPP, SIDE, EACH = 0.5, 320, 80
"""µm per px; px of a pseudo-labelled image; images a slide."""
CLEAR = 0.2
"""A mean this far from a half is known."""

RECIPE = HeadRecipe(
    "distance-map-he",
    "nuclei",
    "distance-map",
    {"channels": 5, "filters": 16},
    MPP,
    normalisation="stain",
    settings=SETTINGS["distance-map"],
    licence="Apache-2.0",
    data="histology of DSB 2018 (BBBC038, CC0); unlabelled slides under MIT and CC0 licences",
)
CONFIG = TrainingConfig(
    steps=2600,
    batch=16,
    crop=128,
    learning_rate=2e-3,
    validate_every=200,
    augmentation=Augmentation(scale=(0.6, 1.5), stain=0.4, brightness=0.15),
)


def pseudo_labelled(
    path: str, teacher: NetworkNuclei, share: float, seed: int
) -> list[NucleusImage]:
    """Images of a slide's tissue as watershed and teacher, whose weight is `share`, label it."""
    with open_slide(path) as slide:
        tissue = find_tissue(slide)
        grid = TileGrid.over(slide, tile=SIDE, mpp=MPP, tissue=tissue, min_tissue=0.7)
        order = np.random.default_rng(seed).permutation(len(grid))
        chosen = np.sort(order[:EACH])
        tiles = np.concatenate([b.pixels for b in TileStream(slide, grid, indices=chosen)])
    sample = tiles[:: max(1, len(tiles) // 16)]
    teacher, watershed = teacher.fitted(sample), WatershedNuclei().fitted(sample)
    return [
        _labelled(t, teacher, watershed, share, f"{Path(path).stem} {i}")
        for i, t in enumerate(tiles)
    ]


def _labelled(
    rgb: npt.NDArray[np.uint8],
    teacher: NetworkNuclei,
    watershed: WatershedNuclei,
    share: float,
    name: str,
) -> NucleusImage:
    logit, depth = (m[0] for m in list(teacher.maps(rgb))[:2])
    contrast = teacher.normalised(rgb)[..., 4]  # haematoxylin above its surroundings' threshold
    mean = share / (1 + np.exp(-logit))
    mean = mean + (1 - share) / (1 + np.exp(-6 * (contrast + 0.05)))
    mask = filled_holes(opened_by_disc(np.ascontiguousarray(mean > 0.5), 1.0), 64.0)
    height = gaussian(distance_transform(mask, 16.0), 1.0) / 6
    height = (height + gaussian(np.ascontiguousarray(depth), 1.0)).astype(np.float32)
    labels = largest_parts(seeded_watershed(-height, local_maxima(height, mask, 4.0), mask))
    plausible = watershed.plausible_nuclei(labels, watershed.intensity(rgb))
    known = (np.abs(mean - 0.5) > CLEAR) & ((labels > 0) == (plausible > 0))
    count = int(plausible.max(initial=0))
    return NucleusImage(rgb, plausible, np.zeros(count, np.uint8), name, known)


class Both:
    """Half of each batch from either source."""

    def __init__(self, one: NucleusBatches, other: NucleusBatches) -> None:
        self._sources = (one, other)

    def batch(self, step: int) -> Batch:
        parts = [source.batch(step) for source in self._sources]
        known = np.ones_like(parts[0].targets["depth"])
        targets = [{"known": known, **part.targets} for part in parts]
        return Batch(
            np.concatenate([part.images for part in parts]),
            {k: np.concatenate([t[k] for t in targets]) for k in targets[0]},
        )


def train(
    taught: Sequence[NucleusImage],
    held_out: Sequence[NucleusImage],
    pseudo: Sequence[NucleusImage],
    config: TrainingConfig,
    folder: Path,
    start: Path | None,
) -> Path:
    training = Training(RECIPE, config, folder, start=start)
    half = replace(config, batch=config.batch // 2)
    other = replace(half, seed=config.seed + 1)
    source = Both(
        NucleusBatches(taught, RECIPE, training.network, half),
        NucleusBatches(pseudo, RECIPE, training.network, other),
    )

    def validate(network: object) -> dict[str, float]:
        found = nucleus_figures(NetworkNuclei(RECIPE, network, ""), held_out)
        print(training.step, {k: round(v, 3) for k, v in found.items()}, flush=True)
        return found

    return training.run(source, validate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dsb", type=Path)
    parser.add_argument("slides", nargs="+")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.3, help="weight of FILE, 0 to 1")
    parser.add_argument("--vesicular", type=float, default=0.0, help="share of nuclei paled")
    parser.add_argument("--start", type=Path, help="a head to go on from")
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    parser.add_argument("--learning-rate", type=float, default=CONFIG.learning_rate)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    images = nucleus_images(given.dsb, MPP, nucleus_um2=31, least=8)
    taught, held_out = split(images, CONFIG.validation, CONFIG.seed)
    teacher = NetworkNuclei.load(given.teacher)
    pseudo = [
        image
        for number, path in enumerate(slide_paths(given.slides))
        for image in pseudo_labelled(path, teacher, given.share, number)
    ]
    print(f"{len(taught)} labelled images, {len(held_out)} held out, {len(pseudo)} pseudo-labelled")
    changes = replace(CONFIG.augmentation, vesicular=given.vesicular)
    config = replace(CONFIG, steps=given.steps, learning_rate=given.learning_rate,
                     augmentation=changes)  # fmt: skip
    path = train(taught, held_out, pseudo, config, given.output, given.start)
    trained = finished_head(path, held_out, (len(taught), len(held_out)))
    print(trained)


if __name__ == "__main__":
    main()
