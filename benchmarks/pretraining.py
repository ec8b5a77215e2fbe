"""Does pretraining teach? A tiny PLUTO before and after, on tiles it never saw, several seeds.

python benchmarks/pretraining.py SLIDES... --probe TILES [--probe-pattern REGEX] [--seeds 5]
    [--curve docs/pretraining.png]

Every seed draws its own initial weights, tiles, views and folds. The probe's tiles are of other
slides, patients and scanners than the training's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from coverslip.encoders.encoder import Encoder
from coverslip.encoders.evaluation import few_shot, knn, linear, probe
from coverslip.encoders.pretrain import PretrainConfig, Pretraining
from coverslip.engine.config import RunConfig
from coverslip.engine.labelled_tiles import LabelledTiles
from coverslip.engine.plots import draw_training
from coverslip.engine.pretraining import SlideTiles

TINY = PretrainConfig(
    name="pluto-tiny",
    input_px=96,
    width=96,
    depth=4,
    heads=3,
    registers=1,
    patch=8,
    patches=(8, 16),
    patch_odds=(0.9, 0.1),
    mpps=(0.5, 1.0),
    tile=96,
    large=64,
    large_area=(0.4, 1.0),
    small=32,
    small_area=(0.05, 0.3),
    parts=1,
    stain_jitter=0.01,
    blur=0.0,
    steps=200,
    batch=64,
    prototypes=128,
    head_hidden=128,
    learning_rate=1e-3,
    momentum=0.97,
    teacher_temperature=0.04,
    dino=0.1,
    ibot=0.1,
    koleo=0.02,
    mae=1.0,
    fourier=0.3,
    save_every=1000,
    probe_every=25,
)


def figures(encoder: Encoder, tiles: LabelledTiles, seed: int) -> dict[str, float]:
    """Balanced accuracies of the encoder as it is."""
    features = encoder.encode(tiles.pixels)
    return {
        "linear": probe(features, tiles.labels, linear, repeats=5, seed=seed).mean,
        "knn": probe(features, tiles.labels, knn, repeats=5, seed=seed).mean,
        "5-shot": few_shot(features, tiles.labels, 5, seed=seed).mean,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("slides", nargs="+")
    parser.add_argument("--probe", type=Path, required=True)
    parser.add_argument("--probe-pattern", default="")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=TINY.steps)
    parser.add_argument("--curve", type=Path, help="PNG of the first seed's terms and probes")
    given = parser.parse_args()
    labelled = LabelledTiles.read(given.probe, given.probe_pattern)
    before: list[dict[str, float]] = []
    after: list[dict[str, float]] = []
    print("| seed | probe | random | pretrained | minutes |\n|---|---|---|---|---|")
    for seed in range(given.seeds):
        config = replace(TINY, seed=seed, steps=given.steps)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            training = Pretraining(config, Path(folder))
            before.append(figures(training.encoder(), labelled, seed))
            tiles = SlideTiles(given.slides, config, RunConfig(encoder=()))
            wanted = given.curve if seed == 0 else None
            training.run(tiles, (lambda encoder: figures(encoder, labelled, 0)) if wanted else None)
            tiles.close()
            if wanted:
                draw_training(training.folder / "log.csv", training.folder / "probe.csv", wanted)
            after.append(figures(training.encoder(), labelled, seed))
        minutes = (time.perf_counter() - started) / 60
        for name in before[-1]:
            print(
                f"| {seed} | {name} | {before[-1][name]:.3f} | {after[-1][name]:.3f} "
                f"| {minutes:.1f} |",
                flush=True,
            )
    for name in before[0]:
        pairs = [(b[name], a[name]) for b, a in zip(before, after, strict=True)]
        gains = [a - b for b, a in pairs]
        print(
            f"| mean of {len(pairs)} | {name} | {statistics.mean(b for b, _ in pairs):.3f} "
            f"| {statistics.mean(a for _, a in pairs):.3f} | better in "
            f"{sum(gain > 0 for gain in gains)} of {len(gains)}, by {min(gains):+.3f} to "
            f"{max(gains):+.3f} |"
        )


if __name__ == "__main__":
    main()
