"""Stain vectors estimated from the pixels of one slide.

Both methods take optical densities, float64 [N, 3], of stained pixels only (`stained_pixels`), and
return (2, 3) rows of unit length: haematoxylin, eosin. They are deterministic.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from coverslip.kernels.stain import EOSIN, HEMATOXYLIN, stain_matrix

Densities = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float64]

LEAST_DENSITY = 0.15
"""Macenko's beta: a pixel with less than this in any channel tells more of glass than of stain."""
SPARSITY = 0.1
"""Vahadane's lambda."""
NMF_PIXELS = 20_000
NMF_ROUNDS = 200


def stained_pixels(
    rgb: npt.NDArray[np.uint8], density: Densities
) -> tuple[npt.NDArray[np.bool_], float]:
    """Which pixels tell of haematoxylin and eosin, and the share of brown among the dense ones.

    rgb       uint8 [N, 3]
    density   their optical densities, float64 [N, 3]

    Left out: glass (any channel below `LEAST_DENSITY`), what is black or saturated in a channel
    (densities end there), and hues that no mixture of the two stains has. Both absorb green most,
    so ink and brown are what absorbs red much more than green (green pens) or more than green while
    hardly any blue (blue pens), or blue as much as green (brown chromogen, red pens, haemosiderin).
    """
    red, green, blue = density.T
    dense = (density >= LEAST_DENSITY).all(axis=1) | (density.sum(axis=1) >= 6 * LEAST_DENSITY)
    inky = (red > 1.4 * green) | ((red > 1.15 * green) & (blue < 0.3 * green))
    brown = blue > 0.95 * green
    kept = (density >= LEAST_DENSITY).all(axis=1) & (rgb.min(axis=1) > 5) & ~inky & ~brown
    share = float((dense & brown & ~inky).sum()) / max(float(dense.sum()), 1.0)
    return kept, share


def macenko_vectors(density: Densities, percentile: float = 1.0) -> Vectors:
    """The extreme directions in the plane in which the densities lie.

    percentile   of the angles that is cut off at either end

    Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis",
    ISBI: eigenvectors of the covariance span the plane; the stain vectors are the robust extremes
    of the angle within it. The one with more red is haematoxylin.
    """
    _, vectors = np.linalg.eigh(np.cov(density, rowvar=False))
    plane = vectors[:, [2, 1]]  # (3, 2), the largest first
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    along = density @ plane  # (n, 2)
    angle = np.arctan2(along[:, 1], along[:, 0])
    ends = np.percentile(angle, [percentile, 100 - percentile])
    found = np.stack([np.cos(ends), np.sin(ends)], axis=1) @ plane.T  # (2, 3)
    return _haematoxylin_first(found)


def vahadane_vectors(density: Densities, sparsity: float = SPARSITY) -> Vectors:
    """The two non-negative vectors whose sparse non-negative mixtures give the densities.

    Vahadane et al. 2016, "Structure-preserving color normalization and sparse stain separation for
    histological images", IEEE TMI 35: minimises |V - H W|^2 / 2 + sparsity * |H|_1 over W (2, 3)
    with rows of unit length and H (N, 2), both non-negative, by turns: H exactly, W by block
    coordinate descent (Mairal et al. 2010). Starts from Ruifrok's vectors.
    """
    step = max(1, len(density) // NMF_PIXELS)
    samples = density[::step]
    vectors = stain_matrix(HEMATOXYLIN, EOSIN)[:2]
    for _ in range(NMF_ROUNDS):
        mixed = sparse_concentrations(samples, vectors, sparsity)
        inner, outer = mixed.T @ mixed, mixed.T @ samples  # (2, 2), (2, 3)
        before = vectors.copy()
        for j in range(2):
            if inner[j, j] > 0:
                moved = vectors[j] + (outer[j] - inner[j] @ vectors) / inner[j, j]
                vectors[j] = np.maximum(moved, 1e-6)
                vectors[j] /= np.linalg.norm(vectors[j])
        if np.abs(vectors - before).max() < 1e-7:
            break
    return _haematoxylin_first(vectors)


def sparse_concentrations(density: Densities, vectors: Vectors, sparsity: float) -> Densities:
    """The non-negative (N, 2) that minimises |V - H W|^2 / 2 + sparsity * |H|_1, exactly.

    With two stains there are four cases: both present, either alone, none.
    """
    pull = density @ vectors.T - sparsity  # (n, 2)
    overlap = float(vectors[0] @ vectors[1])
    both = (pull - overlap * pull[:, ::-1]) / (1 - overlap**2)
    alone = np.maximum(pull, 0)
    # of the single stains the one that explains more; with unit vectors that is the larger one
    stronger = alone[:, 0] >= alone[:, 1]
    single = np.where(np.stack([stronger, ~stronger], axis=1), alone, 0)
    return np.where((both >= 0).all(axis=1, keepdims=True), both, single)


def _haematoxylin_first(vectors: Vectors) -> Vectors:
    """Rows of unit length, pointing up, the redder absorber (haematoxylin) first."""
    vectors = vectors * np.where(vectors.sum(axis=1, keepdims=True) < 0, -1, 1)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors if vectors[0, 0] >= vectors[1, 0] else vectors[::-1])


def fixed_vectors(density: Densities) -> Vectors:
    """Vectors that do not depend on the slide (Ruifrok & Johnston 2001)."""
    return stain_matrix(HEMATOXYLIN, EOSIN)[:2]
