"""How well nuclei are found on MoNuSeg, and how fast.

The heads were tuned and trained on other images (histology of DSB 2018, each scaled so that its
median nucleus measures 31 µm²); the peer was not tuned.

    python benchmarks/nuclei.py [--data FOLDER] [--nuclei default,watershed,FILE.safetensors]

FOLDER holds `<name>.png` (40x, 0.25 µm/px) and `<name>_instances.png` (uint16 labels). Each is
segmented at the head's resolution and compared at its own. The peer is the usual classical
recipe: Otsu on the haematoxylin channel, distance transform, watershed (scikit-image).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from coverslip.heads.metrics import (
    aggregated_jaccard,
    aggregated_jaccard_plus,
    dice,
    f1_at,
    panoptic_quality,
)
from coverslip.heads.registry import load_nucleus_head
from coverslip.kernels.resample import area_resample

IMAGE_MPP = 0.25
DEFAULT = Path(__file__).parents[2] / "shared" / "data"


def of_head(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Labels by a head of the engine, at the image's own size."""
    head = load_nucleus_head(name)

    def found(image: np.ndarray) -> np.ndarray:
        scale = head.mpp / IMAGE_MPP
        side = [round(s / scale) for s in image.shape[:2]]
        small = np.empty((*side, 3), np.uint8)
        area_resample(image, (0.0, 0.0), (scale, scale), small)
        labels = head.fitted(small).segment(small).labels
        v, u = (((np.arange(n) + 0.5) / scale).astype(int) for n in image.shape[:2])
        return labels[np.ix_(np.minimum(v, side[0] - 1), np.minimum(u, side[1] - 1))]

    return found


def otsu_watershed(image: np.ndarray) -> np.ndarray:
    from scipy import ndimage
    from skimage.color import rgb2hed
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import remove_small_objects
    from skimage.segmentation import watershed

    stain = gaussian(rgb2hed(image)[..., 0], 2)
    mask = remove_small_objects(stain > threshold_otsu(stain), max_size=200)
    distance = gaussian(ndimage.distance_transform_edt(mask), 2)
    seeds = np.zeros(mask.shape, np.int32)
    peaks = peak_local_max(distance, min_distance=8, labels=mask.astype(int))
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-distance, seeds, mask=mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    folder = os.environ.get("COVERSLIP_TEST_DATA", DEFAULT)
    parser.add_argument("--data", type=Path, default=Path(folder) / "nuclei" / "monuseg")
    parser.add_argument("--nuclei", default="default,watershed", help="heads, by comma")
    given = parser.parse_args()
    paths = sorted(given.data.glob("*_instances.png"))
    if not paths:
        raise SystemExit(
            "no images; --data names a folder with <name>.png and <name>_instances.png"
        )
    print("| image | way | AJI | AJI+ | PQ | DQ | SQ | Dice | F1 | found / true | Mpx/s |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    means: dict[str, list[list[float]]] = {}
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        **{f"coverslip {Path(name).stem}": of_head(name) for name in given.nuclei.split(",")},
        "Otsu + watershed (scikit-image)": otsu_watershed,
    }
    for path in paths:
        true = np.asarray(Image.open(path)).astype(np.int64)
        image = np.asarray(Image.open(str(path).replace("_instances", "")).convert("RGB"))
        for name, way in ways.items():
            way(image[:256, :256])  # compiled and loaded outside the clock
            started = time.perf_counter()
            found = way(image)
            rate = image.shape[0] * image.shape[1] / 1e6 / (time.perf_counter() - started)
            quality = panoptic_quality(true, found)
            scores = [
                aggregated_jaccard(true, found),
                aggregated_jaccard_plus(true, found),
                quality.pq,
                quality.dq,
                quality.sq,
                dice(true, found),
                f1_at(true, found),
            ]
            means.setdefault(name, []).append([*scores, rate])
            shown = " | ".join(f"{s:.3f}" for s in scores)
            counts = f"{len(np.unique(found)) - 1} / {len(np.unique(true)) - 1}"
            print(f"| {path.name[:12]} | {name} | {shown} | {counts} | {rate:.1f} |")
    for name, rows in means.items():
        *scores, rate = np.mean(rows, axis=0)
        print(
            f"| **mean** | {name} | {' | '.join(f'**{s:.3f}**' for s in scores)} | | {rate:.1f} |"
        )


if __name__ == "__main__":
    main()
