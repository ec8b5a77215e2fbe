"""Tiles of several slides before and after normalisation to one target, as one picture.

    python examples/stain_figure.py [SLIDE ...] [--output docs/stain.jpg]

Each slide's stains are fitted once, from pixels sampled over all its tissue; then every tile is
recoloured with the same numbers. The left half of the picture is as scanned, the right half as the
target.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from coverslip import TileGrid, TileStream, find_tissue, open_slide
from coverslip.kernels.stain_profile import StainNormalizer, fit_stains, reference_profile
from coverslip.tiling.stain_sample import stain_sample

SAMPLE = Path(str(files("coverslip.wsi") / "samples" / "CMU-1-Small-Region.svs"))
GAP = 12


def row_of(path: Path, method: str, mpp: float, tiles: int) -> np.ndarray:
    """uint8 [256, W, 3]: tiles as scanned, a gap, the same tiles normalised."""
    with open_slide(path) as slide:
        tissue = find_tissue(slide)
        profile = fit_stains(stain_sample(slide, tissue), method)  # type: ignore[arg-type]
        grid = TileGrid.over(slide, tile=256, mpp=mpp, tissue=tissue, min_tissue=0.9)
        spread = np.linspace(0, len(grid) - 1, tiles + 2).round().astype(np.int64)[1:-1]
        stream = TileStream(slide, grid, indices=np.unique(spread))
        plain = np.concatenate([batch.pixels for batch in stream])
    normalized = StainNormalizer(profile, reference_profile())(plain)
    print(f"{path.name}: {'; '.join(profile.problems) or 'normalised'}")
    white = np.full((256, GAP, 3), 255, np.uint8)
    return np.concatenate([*plain, white, *normalized], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Stain normalisation, looked at.")
    parser.add_argument("slides", nargs="*", type=Path, default=[SAMPLE])
    parser.add_argument("--output", type=Path, default=Path("stain.png"))
    parser.add_argument("--method", default="macenko")
    parser.add_argument("--mpp", type=float, default=1.1)
    parser.add_argument("--tiles", type=int, default=3)
    given = parser.parse_args()
    rows = [row_of(path, given.method, given.mpp, given.tiles) for path in given.slides]
    width = min(row.shape[1] for row in rows)
    Image.fromarray(np.concatenate([row[:, :width] for row in rows])).save(given.output)
    print(f"wrote {given.output}")


if __name__ == "__main__":
    main()
