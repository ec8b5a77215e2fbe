"""Is our StarDist the package's? The same weights, the same image, number by number.

A model of the package stardist, in the configuration of `2D_versatile_he` but with random weights
(the outputs' scaled so that there are hundreds of nuclei), looks at an image; ours loads its files.

    python benchmarks/stardist_parity.py                  where tensorflow, stardist and torch are
    python benchmarks/stardist_parity.py --make FOLDER    where tensorflow and stardist are
    python benchmarks/stardist_parity.py --check FOLDER   where coverslip is

    python benchmarks/stardist_parity.py --suppression    where coverslip and stardist are

The last compares suppression alone, over polygons drawn at random.
--small makes what the tests read, in tests/data/stardist_keras; --seed N other weights and images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

BORDER = 2
"""Candidates this close to the image's border, in cells of the grid, the package leaves out."""


def blobs(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 (H, W, 3): dark, purple, blurred spots on pink."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:height, :width]
    depth = np.zeros((height, width))
    for _ in range(height * width // 400):
        y, x, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(3, 8)
        depth = np.maximum(depth, 1 / (1 + np.exp(np.hypot(v - y, u - x) - r)))
    colour = np.array([228, 190, 214]) - depth[..., None] * np.array([130, 130, 80])
    return np.clip(colour + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def normalised(image: np.ndarray) -> np.ndarray:
    """As the package's own `normalize(image, 1, 99.8, axis=(0, 1))`."""
    low, high = np.percentile(image, [1, 99.8], axis=(0, 1))
    return ((image - low) / (high - low)).astype(np.float32)


def make(folder: Path, seed: int, *, small: bool) -> None:
    """A model's folder as the package writes it, and `expected.npz` with what it makes."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group
    from stardist.models import Config2D, StarDist2D

    size = {"unet_n_filter_base": 4, "net_conv_after_unet": 16} if small else {}
    rays, shape = (16, (64, 96)) if small else (32, (512, 512))
    config = Config2D(axes="YXC", n_rays=rays, grid=(2, 2), n_channel_in=3, **size)
    model = StarDist2D(config, name=folder.name, basedir=str(folder.parent))
    network = model.keras_model
    rng = np.random.default_rng(seed)
    for layer in network.layers:
        if weights := layer.get_weights():
            kernel, bias = weights
            spread = np.sqrt(2 / np.prod(kernel.shape[:3]))  # He's, so that no level fades
            kernel, bias = rng.normal(0, spread, kernel.shape), rng.normal(0, 0.1, bias.shape)
            layer.set_weights([kernel, bias])
    image = blobs(*shape, seed)
    x = normalised(image)
    # outputs with a mean and a spread of our choosing
    chance, distance = network.predict(x[None], verbose=0)
    logit = np.log(chance / (1 - chance))
    far = 7.0 if small else 10.0
    for name, found, mean, spread in (("prob", logit, -1.0, 1.2), ("dist", distance, far, 1.5)):
        kernel, bias = network.get_layer(name).get_weights()
        scale = spread / found.std(axis=(0, 1, 2))
        bias = (bias - found.mean(axis=(0, 1, 2))) * scale + mean
        network.get_layer(name).set_weights([kernel * scale, bias])
    model.thresholds = {"prob": 0.3, "nms": 0.3}
    chance, distance = network.predict(x[None], verbose=0)
    expected = {"image": image, "probability": chance[0, ..., 0], "distance": distance[0]}
    for key, border in (("", BORDER), ("_to_the_border", 0)):
        labels, stars = model.predict_instances(x, predict_kwargs={"b": border})
        expected |= {f"labels{key}": labels.astype(np.uint16), f"points{key}": stars["points"]}
    np.savez_compressed(folder / "expected.npz", **expected)
    (folder / "thresholds.json").write_text('{"prob": 0.3, "nms": 0.3}\n')
    with h5py.File(folder / "weights_best.h5", "w") as file:
        save_weights_to_hdf5_group(file, network)


def check(folder: Path) -> list[tuple[str, str]]:
    """What differs, for a table."""
    import torch

    from coverslip.heads.keras_weights import load_stardist
    from coverslip.heads.stardist import LEAST_DISTANCE
    from coverslip.kernels.star_convex import surviving_stars

    recipe, network = load_stardist(folder)
    expected = np.load(folder / "expected.npz")
    image = expected["image"]
    x = torch.from_numpy(normalised(image).transpose(2, 0, 1)[None].copy())
    with torch.inference_mode():
        logit, distance, classes = (m[0].numpy() for m in network(x))
    chance = 1 / (1 + np.exp(-logit[0]))
    d_chance = np.abs(chance - expected["probability"])
    theirs = expected["distance"].transpose(2, 0, 1)
    d_distance = np.abs(distance - theirs)
    shares = d_distance / np.maximum(np.abs(theirs), 1)
    rows = [
        ("image", f"{image.shape[1]} x {image.shape[0]} px"),
        ("weights", f"{sum(p.numel() for p in network.parameters()):,}"),
        ("probability, theirs", f"{expected['probability'].min():.3f} to "
                                f"{expected['probability'].max():.3f}"),
        ("probability, largest difference", f"{d_chance.max():.1e}"),
        ("distance, theirs", f"{theirs.min():.1f} to {theirs.max():.1f} px"),
        ("distance, largest difference", f"{d_distance.max():.1e} px"),
        ("distance, largest share", f"{shares.max():.1e} of max(distance, 1 px)"),
    ]  # fmt: skip
    shape = (image.shape[0], image.shape[1])

    def survivors(
        chance: np.ndarray, distance: np.ndarray, candidates: np.ndarray
    ) -> tuple[list[list[int]], np.ndarray]:
        """(row, column) in px and score, by falling score."""
        row, column = np.nonzero(candidates)
        rays, score = np.maximum(distance[:, row, column].T, LEAST_DISTANCE), chance[row, column]
        centre = np.stack([2 * column, 2 * row], axis=1)
        kept = surviving_stars(centre, rays, score, recipe.settings["overlap"])
        order = np.argsort(-score[kept], kind="stable")
        return centre[kept][order][:, ::-1].tolist(), score[kept][order]

    for title, key, border in (("inside", "", BORDER), ("whole", "_to_the_border", 0)):
        seen = np.full_like(logit, -50)
        inner = (slice(None), *(slice(border, n - border) for n in chance.shape))
        seen[inner] = logit[inner]
        candidates = 1 / (1 + np.exp(-seen[0])) > recipe.settings["probability"]
        ours, score = survivors(chance, distance, candidates)
        plain = expected[f"points{key}"].tolist()
        candidates = (seen[0] > -50) & (expected["probability"] > recipe.settings["probability"])
        chances = expected["probability"][candidates]
        on_theirs, _ = survivors(expected["probability"], theirs, candidates)
        scored = {tuple(p): s for p, s in zip(ours, score.tolist(), strict=True)}
        common = [tuple(p) for p in plain if tuple(p) in scored]
        both = zip((tuple(p) for p in ours if p in plain), common, strict=True)
        moved = [abs(scored[p] - scored[q]) for p, q in both if p != q]
        labels = network.segmentation([seen, distance, classes], shape, recipe.settings).labels
        drawn = expected[f"labels{key}"]
        rows += [
            (f"{title}: candidates", f"{len(chances):,}"),
            (f"{title}: of a probability met before", f"{len(chances) - len(set(chances))}"),
            (f"{title}: survivors, ours and theirs", f"{len(ours):,} and {len(plain):,}"),
            (f"{title}: of one alone, ours from their maps", f"{_different(on_theirs, plain)}"),
            (f"{title}: of one alone", f"{_different(ours, plain)}"),
            (f"{title}: in another order by score", f"{len(moved)} of {len(common):,}"
             + (f", by {max(moved):.0e} of score" if moved else "")),
            (f"{title}: pixels that agree, nucleus or not",
             f"{((labels > 0) == (drawn > 0)).mean():.2%}"),
            (f"{title}: pixels that agree on which nucleus", f"{_same_nucleus(labels, drawn):.2%}"),
        ]  # fmt: skip
    return rows


def _different(one: list[list[int]], other: list[list[int]]) -> int:
    return len(set(map(tuple, one)) ^ set(map(tuple, other)))


def _same_nucleus(labels: np.ndarray, drawn: np.ndarray) -> float:
    """Share of pixels in nuclei that are in pairs of nuclei which are each other's best match."""
    pairs, count = np.unique(np.stack([labels.ravel(), drawn.ravel()]), axis=1, return_counts=True)
    best = {}
    for (a, b), n in zip(pairs.T.tolist(), count.tolist(), strict=True):
        for side in (("ours", a), ("theirs", b)):
            if a and b and n > best.get(side, (0, 0, 0))[0]:
                best[side] = (n, a, b)
    mutual = set(best.values())
    agreeing = sum(n for n, a, b in mutual if best["ours", a] == best["theirs", b])
    return float(agreeing / np.count_nonzero((labels > 0) | (drawn > 0)))


def suppressions() -> list[tuple[str, str]]:
    """How many of how many polygons the package's compiled function and ours judge differently."""
    from stardist.nms import non_maximum_suppression_inds

    from coverslip.kernels.star_convex import surviving_stars

    rows = []
    for rays in (3, 4, 8, 16, 32, 64):
        different, judged = np.zeros(2, int), np.zeros(2, int)
        for seed in range(20):
            rng = np.random.default_rng(seed)
            count, radius = 1500, (0.5, 2, 6, 20, 60)[seed % 5]
            centre = 2 * rng.integers(-2, 10 * radius + 10, (count, 2))
            wave = np.cos(rng.integers(2, 5, (count, 1)) * np.arange(rays) * 2 * np.pi / rays)
            nucleus = radius * rng.uniform(0.6, 1.4, (count, 1)) * (1 + 0.2 * wave)
            shapeless = radius * rng.uniform(0, 2, (count, rays))
            score, threshold = np.linspace(1, 0, count), (0.1, 0.3, 0.5, 0.7)[seed % 4]
            for kind, distance in enumerate((nucleus, shapeless)):
                distance = np.maximum(distance, 1e-3).astype(np.float32)
                theirs = non_maximum_suppression_inds(
                    distance, centre[:, ::-1].astype(np.float32), score, threshold, verbose=0
                )
                ours = surviving_stars(centre, distance, score, threshold)
                different[kind] += np.count_nonzero(ours != theirs)
                judged[kind] += count
        for kind, name in enumerate(("like nuclei", "every ray drawn by itself")):
            rows.append(
                (f"{rays} rays, {name}", f"{different[kind]} of {judged[kind]:,} different")
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", type=Path, metavar="FOLDER")
    parser.add_argument("--check", type=Path, metavar="FOLDER")
    parser.add_argument("--small", action="store_true", help="4 filters, for the tests")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--suppression", action="store_true")
    arguments = parser.parse_args()
    if arguments.suppression:
        for name, value in suppressions():
            print(f"{name:48} {value}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        alone = not (arguments.make or arguments.check)
        made = Path(temporary) / "model" if alone else arguments.make
        if made:
            make(made.resolve(), arguments.seed, small=arguments.small)
        if found := (made if alone else arguments.check):
            for name, value in check(found):
                print(f"{name:48} {value}")


if __name__ == "__main__":
    main()
