"""How well one click finds a nucleus, and how long its answer takes.

The model that ships was trained on histology of DSB 2018, each image scaled so that its median
nucleus measures 31 µm²; the 15 % of the images that were held out are used here. MoNuSeg was never
trained on. Clicks are drawn inside nuclei, not at their middles, from a fixed seed.

    python benchmarks/clicks.py [--data FOLDER] [--clicks 1000] [--threads 2]

FOLDER holds nuclei/dsb2018-histology, nuclei/monuseg (`<name>.png`, `<name>_instances.png`) and
slides/. A click is timed from the call to the polygon, on an opened slide and a loaded model, each
at another place of the tissue.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from coverslip.engine.clicks import ClickSegmenter
from coverslip.engine.nucleus_images import nucleus_images
from coverslip.heads.click_training import click_figures
from coverslip.heads.nucleus_training import NucleusImage
from coverslip.tiling.tissue import find_tissue
from coverslip.wsi.opening import open_slide

DEFAULT = Path(__file__).parents[2] / "shared" / "data"
SLIDE = "breast-lobular-40x-region.svs"
TIMED = 60


def held_out(folder: Path, mpp: float, share: float) -> list[NucleusImage]:
    images = nucleus_images(folder, mpp, nucleus_um2=31, least=8)
    order = np.random.default_rng(0).permutation(len(images))
    return [images[i] for i in order[: round(share * len(images))]]


def figures(segmenter: ClickSegmenter, name: str, images: Sequence[NucleusImage], n: int) -> None:
    recipe = segmenter.recipe
    side, threshold = recipe.settings["patch_px"], recipe.settings["threshold"]
    for marked, exclude in (("one click", False), ("and one on each neighbour", True)):
        found = click_figures(
            segmenter.network, images, side, threshold, most=n, exclude=exclude, seed=1
        )
        cells = " | ".join(f"{found[k]:.3f}" for k in ("iou", "dice", "found"))
        print(f"| {name} | {marked} | {cells} |", flush=True)


def timed(segmenter: ClickSegmenter, path: Path) -> None:
    with open_slide(path) as slide:
        random = np.random.default_rng(0)
        points = random.uniform(0, slide.size, (20 * TIMED, 2))
        points = points[find_tissue(slide).contains(points)][: TIMED + 1]
        took, answered = [], 0
        for point in points:
            started = time.perf_counter()
            found = segmenter.segment(slide, point[None])
            took.append(1e3 * (time.perf_counter() - started))
            answered += found[0] is not None
        started = time.perf_counter()
        segmenter.segment(slide, points[1:17])
        batch = 1e3 * (time.perf_counter() - started) / 16
    print(
        f"\n{path.name}: first click {took[0]:.0f} ms, then median {np.median(took[1:]):.0f} ms, "
        f"95th percentile {np.percentile(took[1:], 95):.0f} ms; 16 at once {batch:.0f} ms each; "
        f"{answered} of {len(points)} random places in tissue were answered by an object"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    folder = os.environ.get("COVERSLIP_TEST_DATA", DEFAULT)
    parser.add_argument("--data", type=Path, default=Path(folder))
    parser.add_argument("--clicks", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="nuclick-he")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    segmenter = ClickSegmenter.load(options.model, "cpu")
    mpp = segmenter.recipe.mpp
    nuclei = options.data / "nuclei"
    print("| images | marks | mean IoU | mean Dice | answered |")
    print("|---|---|---|---|---|")
    images = held_out(nuclei / "dsb2018-histology", mpp, 0.15)
    figures(segmenter, "DSB 2018, held out", images, options.clicks)
    figures(
        segmenter, "MoNuSeg", nucleus_images(nuclei / "monuseg", mpp, image_mpp=0.25),
        options.clicks,
    )  # fmt: skip
    timed(segmenter, options.data / "slides" / SLIDE)


if __name__ == "__main__":
    main()
