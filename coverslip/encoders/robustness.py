"""What another stain, another scanner or another pixel size does to an embedding.

Three figures for every change: how far embeddings drift, how much a probe that was trained on
unchanged tiles loses on changed ones, and whether a changed tile is still found by the unchanged
one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coverslip.encoders.evaluation import Figure, Floats, Labels, linear, probe, unit
from coverslip.kernels.resample import area_resample
from coverslip.kernels.stain_profile import jittered_stains

RGB = npt.NDArray[np.uint8]

STAINS = (0.1, 0.3)
"""Strengths of stain change; see `jittered_stains`."""
SCALES = (0.8, 1.25)
"""µm per pixel, as a multiple of what they are."""


@dataclass(frozen=True, slots=True)
class Robustness:
    """What one change does.

    drift       mean 1 - cosine between a tile's two embeddings, the mean embedding taken out: 0
                where nothing moves, 1 where the changed tile is like any other
    found       share of changed tiles whose nearest unchanged tile is their own
    accuracy    balanced accuracy of a linear probe trained on unchanged tiles and asked changed
                ones; `drop` what it loses against unchanged ones
    """

    drift: float
    found: float
    accuracy: Figure
    drop: float


def changed_tiles(tiles: RGB, seed: int = 0) -> dict[str, RGB]:
    """The same tiles, changed: "stain ±10 %"..., "0.8 x µm"... -> uint8 [N, H, W, 3]."""
    found = {
        f"stain ±{strength:.0%}": np.asarray(
            jittered_stains(tiles, np.random.default_rng(seed), strength=strength)
        )
        for strength in STAINS
    }
    return found | {f"{scale:g} x µm": rescaled(tiles, scale) for scale in SCALES}


def rescaled(tiles: RGB, scale: float) -> RGB:
    """Tiles as a scanner with `scale` times as large pixels would see them, around the same middle;
    what they do not show is mirrored from what they do. uint8 [N, H, W, 3] -> the same."""
    height, width = tiles.shape[1:3]
    above, beside = (max(0, math.ceil(side * (scale - 1) / 2)) for side in (height, width))
    padded = np.pad(tiles, ((0, 0), (above, above), (beside, beside), (0, 0)), mode="reflect")
    corner = (beside - width * (scale - 1) / 2, above - height * (scale - 1) / 2)
    out = np.empty_like(tiles)
    area_resample(padded, corner, (scale, scale), out)
    return out


def robustness(
    plain: Floats,
    changed: Mapping[str, Floats],
    labels: Labels,
    *,
    folds: int = 5,
    repeats: int = 3,
    seed: int = 0,
) -> dict[str, Robustness]:
    """What each change does to embeddings.

    plain     float32 [N, D] of the tiles; changed the same of the changed ones, by name
    labels    int64 [N]
    """
    before = probe(plain, labels, linear, folds=folds, repeats=repeats, seed=seed)
    mean = plain.mean(axis=0)
    own = unit(plain - mean)
    found = {}
    for name, other in changed.items():
        moved = unit(other - mean)
        after = probe(plain, labels, linear, asked=other, folds=folds, repeats=repeats, seed=seed)
        found[name] = Robustness(
            drift=float(1 - (own * moved).sum(axis=1).mean()),
            found=float(((moved @ own.T).argmax(axis=1) == np.arange(len(own))).mean()),
            accuracy=after,
            drop=before.mean - after.mean,
        )
    return found
