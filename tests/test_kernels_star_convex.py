"""Star-convex polygons against GEOS, scikit-image and StarDist's own code."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.kernels.star_convex import ray_distances, star_labels, star_vertices, surviving_stars


def stars(
    seed: int, count: int, rays: int = 32, size: float = 120
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overlapping ragged polygons: centres, distances, probabilities (some of them equal)."""
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * np.arange(rays) / rays
    waves = rng.normal(0, 0.15, (count, 3, 1)) * np.cos(
        np.arange(2, 5)[:, None] * angle + rng.uniform(0, 6, (count, 3, 1))
    )
    distance = rng.uniform(3, 9, (count, 1)) * np.maximum(1 + waves.sum(axis=1), 0.2)
    return rng.uniform(0, size, (count, 2)), distance, rng.integers(0, 50, count) / 50


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 120), st.sampled_from([3, 4, 8, 32]),
       st.sampled_from([0.0, 0.1, 0.3, 0.7]))  # fmt: skip
def test_suppression_means_the_same_everywhere(
    seed: int, count: int, rays: int, threshold: float
) -> None:
    """Up to pairs whose overlap is within rounding of the threshold."""
    centre, distance, probability = stars(seed, count, rays)
    exact = surviving_stars(centre, distance, probability, threshold, backend="numpy")
    low, high = (
        surviving_stars(centre, distance, probability, threshold + d, backend="numpy")
        for d in (-1e-4, 1e-4)
    )
    if threshold > 0 and np.array_equal(low, high):
        found = surviving_stars(centre, distance, probability, threshold, backend="numba")
        assert np.array_equal(found, exact)


def test_what_stays_does_not_overlap_and_what_goes_does() -> None:
    centre, distance, probability = stars(5, 400)
    kept = surviving_stars(centre, distance, probability, 0.3)
    polygons = shapely.polygons(star_vertices(centre, distance))
    area = shapely.area(polygons)
    shared = shapely.area(shapely.intersection(polygons[:, None], polygons[None]))
    overlap = shared / np.minimum(area[:, None], area[None])
    np.fill_diagonal(overlap, 0)
    assert overlap[np.ix_(kept, kept)].max() <= 0.3 + 1e-6
    stronger = probability[None] >= probability[:, None]
    gone = ~kept
    assert ((overlap > 0.3 - 1e-6) & stronger & kept[None])[gone].any(axis=1).all()


def test_the_same_polygon_many_times_stays_once() -> None:
    centre, distance, _ = stars(1, 1)
    many = np.repeat(centre, 50, axis=0), np.repeat(distance, 50, axis=0), np.zeros(50)
    for backend in ("numpy", "numba"):
        kept = surviving_stars(*many, 0.5, backend=backend)  # type: ignore[arg-type]
        assert kept.tolist() == [True] + [False] * 49


def test_suppression_is_stardists() -> None:
    nms = pytest.importorskip("stardist.nms")
    centre, distance, _ = stars(2, 3000, size=2500)
    distance *= 5  # it rounds vertices to whole pixels, which matters for small polygons
    probability = np.random.default_rng(0).permutation(3000) / 3000  # its order of equals differs
    _, _, _, theirs = nms.non_maximum_suppression_sparse(
        distance.astype(np.float32),
        probability,
        centre[:, ::-1].round().astype(np.float32),
        nms_thresh=0.3,
    )
    ours = surviving_stars(centre.round(), distance.astype(np.float32), probability, 0.3)
    agreeing = np.isin(np.arange(3000), theirs) == ours
    assert 0.2 < ours.mean() < 0.8
    assert agreeing.mean() > 0.99


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 12))
def test_drawing_means_the_same_everywhere(seed: int, count: int) -> None:
    centre, distance, probability = stars(seed, count, size=50)
    a, b = (
        star_labels(centre, distance, probability, (45, 52), backend=name)  # type: ignore[arg-type]
        for name in ("numpy", "numba")
    )
    assert np.array_equal(a, b)


def test_drawing_is_scikit_images() -> None:
    draw = pytest.importorskip("skimage.draw")
    centre, distance, probability = stars(3, 20, size=150)
    theirs = np.zeros((150, 150), np.int32)
    vertices = star_vertices(centre, distance)
    for i in np.argsort(probability, kind="stable"):
        rows, columns = draw.polygon(vertices[i, :, 1], vertices[i, :, 0], theirs.shape)
        theirs[rows, columns] = i + 1
    assert (star_labels(centre, distance, probability, theirs.shape) == theirs).mean() > 0.999


def test_a_square_by_hand() -> None:
    """Four rays of 2 px: a diamond whose middle pixels are five in a cross and four corners out."""
    labels = star_labels(np.array([[3, 3]]), np.full((1, 4), 1.5), np.ones(1), (7, 7))
    assert labels.sum() == 5
    assert labels[3, 2:5].tolist() == labels[2:5, 3].tolist() == [1, 1, 1]


def test_what_is_no_star_is_refused() -> None:
    centre, _, probability = stars(0, 3)
    for bad in (np.zeros((3, 32)), np.full((3, 32), np.nan), np.ones((2, 32)), np.ones((3, 2))):
        with pytest.raises(ValueError, match=r"distances|rows|wanted"):
            surviving_stars(centre, bad, probability, 0.5)


@st.composite
def label_images(draw: st.DrawFn) -> np.ndarray:
    """Small ones: blocks of a few labels, so that rays leave one straight into another."""
    h, w = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    block = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    coarse = rng.integers(0, 4, (-(-h // block), -(-w // block)), np.int32)
    return np.ascontiguousarray(coarse.repeat(block, 0).repeat(block, 1)[:h, :w])


RAYS_AND_STEP = (st.sampled_from([4, 5, 7, 8, 32]), st.sampled_from([1, 2, 3]))
"""No multiples of 3: a sine of exactly 1/2 ends midway between pixels, and the last bit decides."""


@settings(max_examples=60, deadline=None)
@given(label_images(), *RAYS_AND_STEP)
def test_distances_mean_the_same_everywhere(labels: np.ndarray, rays: int, step: int) -> None:
    a, b = (ray_distances(labels, rays, step, backend=name) for name in ("numpy", "numba"))  # type: ignore[arg-type]
    assert a.shape == (-(-labels.shape[0] // step), -(-labels.shape[1] // step), rays)
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_allclose(a, b, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(label_images(), *RAYS_AND_STEP)
def test_distances_are_stardists(labels: np.ndarray, rays: int, step: int) -> None:
    geometry = pytest.importorskip("stardist.geometry")
    theirs = geometry.star_dist(labels.astype(np.uint16), rays, grid=(step, step))
    ours = ray_distances(labels, rays, step)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
