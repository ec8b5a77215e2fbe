"""Point-pattern statistics and morphometry against brute force, closed forms and hand counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from coverslip.cohort.morphometry import class_names, morphometry
from coverslip.cohort.spatial import (
    PointPattern,
    border_distances,
    clark_evans,
    infiltration,
    nearest_distances,
    ripley_k,
)
from coverslip.tiling.tissue import Tissue

MPP = (0.25, 0.5)  # of level 0, unequal on purpose
SCALE = (32.0, 16.0)  # level-0 px per mask px: 8 µm squares


def tissue_of(mask: np.ndarray) -> Tissue:
    return Tissue(mask, SCALE, (), 0.0, (240.0, 240.0, 240.0), "made up", {})


def size_of(tissue: Tissue) -> tuple[int, int]:
    """(width, height) level-0 px of a slide that ends with its mask."""
    height, width = tissue.mask.shape
    return int(width * SCALE[0]), int(height * SCALE[1])


def ring(side: int = 100) -> Tissue:
    """A disc of tissue with a hole off its centre."""
    v, u = np.mgrid[:side, :side] + 0.5
    disc = (u - side / 2) ** 2 + (v - side / 2) ** 2 < (0.46 * side) ** 2
    hole = (u - 0.62 * side) ** 2 + (v - 0.5 * side) ** 2 < (0.12 * side) ** 2
    return tissue_of(disc & ~hole)


def poisson(tissue: Tissue, count: int, seed: int) -> PointPattern:
    """`count` points at random in the tissue."""
    random = np.random.default_rng(seed)
    points = random.random((4 * count, 2)) * size_of(tissue)
    return PointPattern.of(points[tissue.contains(points)][:count], tissue, size_of(tissue), MPP)


# ---------------------------------------------------------------- the tissue's border


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12))
def test_the_border_is_never_nearer_than_said(seed: int, height: int, width: int) -> None:
    """Against the distance to every square that is not tissue, those about the mask included."""
    random = np.random.default_rng(seed)
    tissue = tissue_of(random.random((height, width)) < 0.8)
    points = random.random((20, 2)) * size_of(tissue)
    found = border_distances(points, tissue, size_of(tissue), MPP)
    row, column = np.nonzero(~np.pad(tissue.mask, 1))
    low = np.stack([column - 1, row - 1], axis=1) * 8.0
    away = np.maximum(low - (at := (points * MPP)[:, None]), at - (low + 8)).clip(0)
    exact = np.linalg.norm(away, axis=2).min(axis=1)
    assert (found <= exact + 1e-4).all()
    assert (found >= exact - math.sqrt(2) * 8 - 1e-4).all()
    assert (found[~tissue.contains(points)] == 0).all()


def test_the_slides_edge_is_a_border_where_the_mask_hangs_over_it() -> None:
    tissue = tissue_of(np.ones((30, 30), bool))
    size = (30 * 32 - 100, 30 * 16)
    (found,) = border_distances(np.array([[size[0] - 20.0, 240.0]]), tissue, size, MPP)
    assert found == 5.0  # 20 px of 0.25 µm


# ---------------------------------------------------------------- neighbours


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(0, 30))
def test_nearest_distances_are_those_of_all_pairs(seed: int, n: int, m: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.random((n, 2)) * 100, random.random((m, 2)) * 100
    apart = np.linalg.norm(a[:, None] - b[None], axis=2)
    expected = apart.min(axis=1) if m else np.full(n, np.inf)
    np.testing.assert_allclose(nearest_distances(a, cKDTree(b)), expected)
    apart = np.linalg.norm(a[:, None] - a[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    expected = apart.min(axis=1) if n else np.empty(0)
    np.testing.assert_allclose(nearest_distances(a, cKDTree(a), same=True), expected)


def test_clark_evans_tells_clusters_from_random_from_a_lattice() -> None:
    tissue = tissue_of(np.ones((150, 150), bool))
    size = size_of(tissue)
    at_random = [clark_evans(poisson(tissue, 3000, seed)) for seed in range(5)]
    # standard error 0.26136 / sqrt(n^2 / A) of a mean distance of 0.5 / sqrt(n / A)
    assert np.mean(at_random) == pytest.approx(1, abs=4 * 0.5227 / math.sqrt(5 * 3000))
    step = np.arange(10, 1200, 20) / np.array(MPP)[:, None]
    lattice = np.stack(np.meshgrid(*step), axis=-1).reshape(-1, 2)
    assert clark_evans(PointPattern.of(lattice, tissue, size, MPP)) == pytest.approx(2)
    pairs = np.concatenate([lattice, lattice + 0.1])
    assert clark_evans(PointPattern.of(pairs, tissue, size, MPP)) < 0.05


# ---------------------------------------------------------------- Ripley's K


def brute_ripley(pattern: PointPattern, radius: float) -> float:
    """By the definition, over all pairs."""
    apart = np.linalg.norm(pattern.points[:, None] - pattern.points[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    inner = pattern.border_um >= radius
    counts = (apart[inner] <= radius).sum(axis=1)
    return float(counts.mean() * pattern.area_um2 / (len(pattern) - 1))


@pytest.mark.parametrize("seed", range(3))
def test_ripley_is_that_of_all_pairs(seed: int) -> None:
    pattern = poisson(ring(), 400, seed)
    radii = (15.0, 40.0, 80.0)
    expected = [brute_ripley(pattern, radius) for radius in radii]
    np.testing.assert_allclose(ripley_k(pattern, radii), expected, rtol=1e-12)


def test_ripley_of_points_at_random_is_that_of_a_disc() -> None:
    """In a tissue with a hole, to whose border most discs reach: the correction holds, and the mean
    over patterns is pi r^2 within its own error."""
    tissue, radii = ring(), np.array([20.0, 50.0, 80.0])
    found = np.array([ripley_k(poisson(tissue, 600, seed), radii.tolist()) for seed in range(60)])
    error = found.std(axis=0, ddof=1) / math.sqrt(len(found))
    assert (abs(found.mean(axis=0) - np.pi * radii**2) < 3.5 * error).all()
    assert (error < 0.03 * np.pi * radii**2).all()  # so that the line above says something
    uncorrected = [
        2 * len(cKDTree(p.points).query_pairs(80)) / len(p) / p.per_um2
        for p in (poisson(tissue, 600, seed) for seed in range(10))
    ]
    assert np.mean(uncorrected) < 0.9 * np.pi * 80**2


def test_ripley_of_clusters_is_that_of_their_law() -> None:
    """Thomas's process: Poisson parents, about 8 children each, normally spread by 15 µm; its
    K is pi r^2 + (1 - exp(-r^2 / 4 sigma^2)) / parents per µm^2."""
    tissue, sigma, parents = tissue_of(np.ones((150, 150), bool)), 15.0, 1e-4
    size, found = size_of(tissue), []
    for seed in range(30):
        random = np.random.default_rng(seed)
        centre = random.random((random.poisson(parents * 1320**2), 2)) * 1320 - 60
        points = np.repeat(centre, random.poisson(8, len(centre)), axis=0)
        points = (points + random.normal(0, sigma, points.shape)) / MPP
        inside = points[tissue.contains(points)]
        found.append(ripley_k(PointPattern.of(inside, tissue, size, MPP), [20, 60]))
    radii = np.array([20.0, 60.0])
    expected = np.pi * radii**2 + (1 - np.exp(-(radii**2) / (4 * sigma**2))) / parents
    error = np.std(found, axis=0, ddof=1) / math.sqrt(len(found))
    assert (abs(np.mean(found, axis=0) - expected) < 3.5 * error).all()
    assert (error < 0.05 * expected).all()


def test_ripley_of_some_centres_is_that_of_all_within_its_error() -> None:
    pattern = poisson(ring(200), 4000, 5)
    everything, some = ripley_k(pattern, [50]), ripley_k(pattern, [50], centres=1000)
    np.testing.assert_array_equal(some, ripley_k(pattern, [50], centres=1000))
    assert some != everything
    np.testing.assert_allclose(some, everything, rtol=0.05)


def test_what_is_too_little_is_nan() -> None:
    tissue = ring()
    assert np.isnan(ripley_k(poisson(tissue, 1, 0), [20])).all()
    assert np.isnan(ripley_k(poisson(tissue, 0, 0), [20])).all()
    assert np.isnan(ripley_k(poisson(tissue, 400, 0), [400])).all()  # no disc fits
    assert math.isnan(clark_evans(poisson(tissue, 5, 0)))
    assert math.isnan(clark_evans(poisson(tissue_of(np.zeros((4, 4), bool)), 0, 0)))


# ---------------------------------------------------------------- infiltration


def test_infiltration_by_hand() -> None:
    """Squares of 50 µm: the tumour holds (0, 0), (1, 0) and (3, 2)."""
    neoplastic = np.array([[10.0, 10], [20, 20], [60, 10], [199, 149]])
    inflammatory = np.array([[40.0, 40], [49, 49], [101, 10], [160, 110], [500, 500]])
    found = infiltration(neoplastic, inflammatory, square_um=50, near_um=45)
    assert found.tumour_um2 == 3 * 2500
    assert found.in_tumour == 3  # two in (0, 0), one in (3, 2)
    assert found.fraction == 2 / 3
    assert found.share_in_tumour == 3 / 5
    # nearest neoplastic: 28.3, 40.5, 41, 55.2, far
    assert found.share_near == 3 / 5


def test_infiltration_of_nothing() -> None:
    none, some = np.empty((0, 2)), np.array([[1.0, 1.0]])
    found = infiltration(none, some, square_um=50, near_um=30)
    assert (found.tumour_um2, found.in_tumour, found.share_near) == (0, 0, 0)
    assert math.isnan(found.fraction)
    assert found.share_in_tumour == 0
    found = infiltration(some, none, square_um=50, near_um=30)
    assert found.fraction == 0
    assert math.isnan(found.share_near)
    assert math.isnan(found.share_in_tumour)


# ---------------------------------------------------------------- morphometry


def test_morphometry_by_hand() -> None:
    columns: dict[str, Any] = {
        "centroid": np.zeros((5, 2)),
        "class_id": np.array([0, 1, 0, 0, 2], np.uint8),
        "area_um2": np.array([10, 20, 30, 40, 50], np.float32),
        "agreement": np.array([np.nan, np.nan, 0.5, np.nan, np.nan], np.float32),
    }
    found = morphometry(columns, "nuclei", ["Neoplastic", "T cell", "Dead", "Never"], 2e6)
    assert (found["nuclei"], found["nuclei_per_mm2"]) == (5, 2.5)
    assert (found["nuclei_neoplastic"], found["nuclei_neoplastic_share"]) == (3, 0.6)
    assert found["nuclei_t_cell_per_mm2"] == 0.5
    assert found["nucleus_area_um2_mean"] == 30
    assert found["nucleus_area_um2_sd"] == pytest.approx(math.sqrt(250))
    assert [found[f"nucleus_area_um2_p{p}"] for p in ("05", "25", "50", "75", "95")] == [
        12, 20, 30, 40, 48,
    ]  # fmt: skip
    assert found["nucleus_neoplastic_area_um2_mean"] == pytest.approx(80 / 3)
    assert math.isnan(found["nucleus_dead_area_um2_sd"])
    assert found["nuclei_never"] == 0
    assert math.isnan(found["nucleus_never_area_um2_mean"])
    assert found["nucleus_agreement_mean"] == 0.5
    assert not any("centroid" in name or "class_id" in name for name in found)


def test_one_class_is_not_told_apart_and_no_nuclei_are_no_crash() -> None:
    columns: dict[str, Any] = {"class_id": np.empty(0, np.uint8), "area_um2": np.empty(0)}
    found = morphometry(columns, "glands", ["Gland"], 0.0)
    assert found["glands"] == 0
    assert "glands_gland" not in found
    assert math.isnan(found["gland_area_um2_p50"])
    assert math.isnan(found["glands_per_mm2"])


def test_class_names_stay_apart() -> None:
    assert class_names(["Neoplastic", "T cell (CD8+)", "!"]) == [
        "neoplastic", "t_cell_cd8", "unnamed",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="T cell, t-cell"):
        class_names(["T cell", "t-cell"])
