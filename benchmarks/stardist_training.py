"""The package stardist trained as long as our StarDist, on the same images.

    python benchmarks/stardist_training.py --export FOLDER [--data FOLDER]   where coverslip is
    python benchmarks/stardist_training.py --train FOLDER                    where stardist is
    python benchmarks/stardist_training.py --score FOLDER [--data FOLDER]    where coverslip is

The data holds dsb2018-histology and monuseg. What both train on is the former, each image scaled so
that its median nucleus measures 31 µm² at 0.5 µm/px, the same ones held out; what both are tried on
is the latter, as in `benchmarks/nuclei.py`. Both see 1,250 batches of 16 crops of 128 px; network,
loss and start are the same (`2D_versatile_he`). Theirs learns as their examples have it: Adam at
3e-4, flips and quarter turns, changed intensity and noise, thresholds from `optimize_thresholds`.
Ours: AdamW at 4e-4, falling as for 3,000 steps, averaged weights, and crops also rescaled,
restained and blurred.

On one core: TF_NUM_INTRAOP_THREADS=1 OMP_NUM_THREADS=1 taskset -c 0 python ...
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

STEPS, BATCH, CROP = 1250, 16, 128
LOOKS = 10
"""At the images held out; the weights with the least loss there are kept."""
MPP, IMAGE_MPP = 0.5, 0.25
DEFAULT = Path(__file__).parents[2] / "shared" / "data"


def export(folder: Path, data: Path) -> None:
    """`images.npz`: taught_N, held_N and tried_N with their labels, as N_labels."""
    from coverslip.engine.nucleus_images import nucleus_images
    from coverslip.engine.nucleus_training import split

    images = nucleus_images(data / "dsb2018-histology", MPP, nucleus_um2=31, least=8)
    taught, held = split(images, share=0.15, seed=0)
    tried = nucleus_images(data / "monuseg", MPP, image_mpp=IMAGE_MPP)
    arrays = {}
    for part, chosen in (("taught", taught), ("held", held), ("tried", tried)):
        for i, image in enumerate(chosen):
            arrays[f"{part}_{i}"] = image.rgb
            arrays[f"{part}_{i}_labels"] = image.labels
        print(f"{part}: {len(chosen)} images, {sum(len(i.class_id) for i in chosen):,} nuclei")
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "images.npz", **arrays)


def train(folder: Path) -> None:
    """The model as the package writes it, in `peer`, and `found.npz` with what it finds."""
    from csbdeep.utils import normalize
    from stardist.models import Config2D, StarDist2D

    with np.load(folder / "images.npz") as file:
        stored = dict(file)

    def part(name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        count = sum(key.startswith(name) for key in stored) // 2
        images = [normalize(stored[f"{name}_{i}"], 1, 99.8, axis=(0, 1)) for i in range(count)]
        return images, [stored[f"{name}_{i}_labels"] for i in range(count)]

    def mirrored(arrays: list[np.ndarray]) -> list[np.ndarray]:
        """At least as large as a crop, which the package demands; so do ours with small images."""
        least = [[(0, max(CROP - n, 0)) for n in a.shape[:2]] + [(0, 0)] * (a.ndim - 2)
                 for a in arrays]  # fmt: skip
        return [np.pad(a, more, mode="symmetric") for a, more in zip(arrays, least, strict=True)]

    np.random.seed(0)  # noqa: NPY002  the package draws from it
    config = Config2D(
        axes="YXC",
        n_rays=32,
        grid=(2, 2),
        n_channel_in=3,
        train_patch_size=(CROP, CROP),
        train_batch_size=BATCH,
        train_epochs=LOOKS,
        train_steps_per_epoch=STEPS // LOOKS,
        train_tensorboard=False,
    )
    model = StarDist2D(config, name="peer", basedir=str(folder))
    taught, held = part("taught"), part("held")
    started = time.process_time()
    model.train(
        *map(mirrored, taught),
        validation_data=tuple(map(mirrored, held)),
        augmenter=augmented,
        seed=0,
    )
    print(f"training: {time.process_time() - started:,.0f} s of a processor")
    model.optimize_thresholds(*held)
    found = [model.predict_instances(image)[0] for image in part("tried")[0]]
    np.savez_compressed(folder / "found.npz", *found)


def augmented(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As in the package's example of training in 2D."""
    random = np.random.default_rng(np.random.randint(1 << 31))  # noqa: NPY002  seeded with the rest
    turns, mirror = random.integers(4), random.integers(2)
    image, labels = (np.rot90(a[:, ::-1] if mirror else a, turns) for a in (image, labels))
    image = image * random.uniform(0.6, 2) + random.uniform(-0.2, 0.2)
    return image + 0.02 * random.uniform() * random.normal(0, 1, image.shape), labels


def score(folder: Path, data: Path) -> None:
    """Theirs, and the same weights in our engine, against labels at 0.25 µm/px."""
    from nuclei import of_head
    from PIL import Image

    from coverslip.heads.keras_weights import convert_stardist

    head = folder / "peer.safetensors"
    convert_stardist(folder / "peer", head, name="peer")
    ours = of_head(str(head))
    rows: dict[str, list[list[float]]] = {}
    with np.load(folder / "found.npz") as found:
        for i, path in enumerate(sorted((data / "monuseg").glob("*_instances.png"))):
            true = np.asarray(Image.open(path)).astype(np.int64)
            image = np.asarray(Image.open(str(path).replace("_instances", "")).convert("RGB"))
            small = found[f"arr_{i}"]
            v, u = (
                np.minimum(((np.arange(n) + 0.5) * IMAGE_MPP / MPP).astype(int), side - 1)
                for n, side in zip(true.shape, small.shape, strict=True)
            )
            rows.setdefault("stardist", []).append(figures(true, small[np.ix_(v, u)]))
            rows.setdefault("its weights in coverslip", []).append(figures(true, ours(image)))
    print("| way | AJI | AJI+ | PQ | DQ | SQ | Dice | F1 at 0.5 |")
    print("|---|---|---|---|---|---|---|---|")
    for way, each in rows.items():
        print(f"| {way} | {' | '.join(f'{f:.3f}' for f in np.mean(each, axis=0))} |")


def figures(true: np.ndarray, found: np.ndarray) -> list[float]:
    from coverslip.heads import metrics

    quality = metrics.panoptic_quality(true, found)
    return [
        metrics.aggregated_jaccard(true, found),
        metrics.aggregated_jaccard_plus(true, found),
        quality.pq,
        quality.dq,
        quality.sq,
        metrics.dice(true, found),
        metrics.f1_at(true, found),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for part in ("export", "train", "score"):
        parser.add_argument(f"--{part}", type=Path, metavar="FOLDER")
    place = Path(os.environ.get("COVERSLIP_TEST_DATA", DEFAULT)) / "nuclei"
    parser.add_argument("--data", type=Path, default=place)
    given = parser.parse_args()
    if given.export:
        export(given.export, given.data)
    if given.train:
        train(given.train)
    if given.score:
        score(given.score, given.data)


if __name__ == "__main__":
    main()
