"""Do embeddings tell slides apart, and still when their stains are changed?

python benchmarks/slide_separation.py SLIDES... --encoder a,b [--assume-mpp 0.5]

Tiles of every slide's left half are the known ones; the nearest ten by cosine vote for those of its
right half, so that no tile is found by its own neighbour. "±30 %" asks for tiles whose stains were
changed by as much, at random for each, among unchanged ones: colour alone no longer answers.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt

from coverslip.encoders.evaluation import balanced_accuracy, knn
from coverslip.encoders.loading import load_encoder
from coverslip.kernels.stain_profile import jittered_stains
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.stream import TileStream
from coverslip.tiling.tissue import find_tissue
from coverslip.wsi.opening import open_slide, slide_paths

EACH = 120
"""Tiles a slide, at most."""


def tiles_of(path: str, assume_mpp: float | None) -> tuple[npt.NDArray[np.uint8], npt.NDArray]:
    """Tiles at 0.5 µm/px, and which of them lie in the right half."""
    with open_slide(path, assume_mpp=assume_mpp) as slide:
        grid = TileGrid.over(slide, mpp=0.5, tissue=find_tissue(slide), min_tissue=0.5)
        chosen = np.unique(np.linspace(0, len(grid) - 1, min(EACH, len(grid))).astype(np.int64))
        pixels = [b.pixels.copy() for b in TileStream(slide, grid, indices=chosen)]
    x = grid.boxes[chosen, 0]
    return np.concatenate(pixels), x > np.median(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("slides", nargs="+")
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--assume-mpp", type=float)
    given = parser.parse_args()
    parts = [tiles_of(path, given.assume_mpp) for path in slide_paths(given.slides)]
    pixels = np.concatenate([p for p, _ in parts])
    asked = np.concatenate([right for _, right in parts])
    labels = np.repeat(np.arange(len(parts)), [len(p) for p, _ in parts])
    changed = {
        "as scanned": pixels[asked],
        "stains ±30 %": jittered_stains(pixels[asked], np.random.default_rng(0), strength=0.3),
        "stains ±60 %": jittered_stains(pixels[asked], np.random.default_rng(0), strength=0.6),
    }
    print(f"{len(parts)} slides, {(~asked).sum()} known tiles, {asked.sum()} asked for; "
          f"chance {1 / len(parts):.2f}\n")  # fmt: skip
    print(f"| encoder | {' | '.join(changed)} |\n|---|{'---|' * len(changed)}")
    for name in given.encoder.split(","):
        name, _, weights = name.partition("=")
        encoder = load_encoder(name, weights=weights or None)
        known = encoder.encode(pixels[~asked])
        row = [
            balanced_accuracy(labels[asked], knn(known, labels[~asked], encoder.encode(tiles)))
            for tiles in changed.values()
        ]
        print(f"| {encoder.name} | {' | '.join(f'{value:.3f}' for value in row)} |", flush=True)


if __name__ == "__main__":
    main()
