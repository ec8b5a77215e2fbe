"""Star-convex polygons against GEOS, scikit-image and StarDist's own code."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.kernels.clipping import shared_area
from coverslip.kernels.clipping_edges import new_state
from coverslip.kernels.star_convex import (
    ray_distances,
    star_labels,
    star_vertices,
    surviving_stars,
    whole_vertices,
)


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
    centre, distance, probability = stars(seed, count, rays)
    a, b = (
        surviving_stars(centre, distance, probability, threshold, backend=name)  # type: ignore[arg-type]
        for name in ("numpy", "numba")
    )
    assert np.array_equal(a, b)


def test_what_stays_does_not_overlap_and_what_goes_does() -> None:
    """By GEOS, up to what rounded crossings move."""
    centre, distance, probability = stars(5, 400)
    kept = surviving_stars(centre, distance, probability, 0.3)
    polygons = shapely.make_valid(shapely.polygons(whole_vertices(centre, distance)))
    area = shapely.area(polygons)
    shared = shapely.area(shapely.intersection(polygons[:, None], polygons[None]))
    overlap = shared / np.minimum(area[:, None], area[None])
    np.fill_diagonal(overlap, 0)
    assert overlap[np.ix_(kept, kept)].max() <= 0.35
    stronger = probability[None] >= probability[:, None]
    gone = ~kept
    assert ((overlap > 0.25) & stronger & kept[None])[gone].any(axis=1).all()


def shared(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> float:
    return shared_area(np.array(a), np.array(b), new_state(max(len(a), len(b))))


SQUARE = [(0, 0), (10, 0), (10, 10), (0, 10)]


def test_shared_areas_by_hand() -> None:
    assert shared(SQUARE, SQUARE) == 100
    assert shared(SQUARE, [(5, 5), (15, 5), (15, 15), (5, 15)]) == 25
    assert shared(SQUARE, SQUARE[::-1]) == 100, "clockwise or not"
    assert shared(SQUARE, [(2, 2), (4, 2), (4, 4), (2, 4)]) == 4
    assert shared(SQUARE, [(10, 0), (20, 0), (20, 10), (10, 10)]) == 0, "a common edge"
    assert shared(SQUARE, [(3, 3), (3, 3), (3, 3)]) == 0, "a point"
    assert shared(SQUARE, [(0, 0), (5, 5), (9, 9)]) == 0, "a line"
    # two bars cross a square: two pieces; a U around one: the part between is not shared
    u = [(0, 0), (9, 0), (9, 9), (6, 9), (6, 3), (3, 3), (3, 9), (0, 9)]
    assert shared(u, [(-1, 5), (12, 5), (12, 7), (-1, 7)]) == 12
    # an edge leaves the square at (10, 5.5), which becomes (10, 6): 22.5 and not 23.75
    assert shared(SQUARE, [(5, 5), (15, 6), (15, 20), (5, 20)]) == 22.5


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([3, 4, 8, 32, 64]))
def test_shared_areas_are_those_of_geos_but_for_roundings(seed: int, rays: int) -> None:
    centre, distance, _ = stars(seed, 2, rays, size=12)
    a, b = whole_vertices(centre, distance)
    found = shared_area(a, b, new_state(rays))
    p, q = (shapely.make_valid(shapely.polygons(v)) for v in (a, b))
    exact = shapely.intersection(p, q)
    assert abs(found - exact.area) <= 0.2 * exact.length + 0.5


def test_the_same_polygon_many_times_stays_once() -> None:
    centre, distance, _ = stars(1, 1)
    many = np.repeat(centre, 50, axis=0), np.repeat(distance, 50, axis=0), np.zeros(50)
    for backend in ("numpy", "numba"):
        kept = surviving_stars(*many, 0.5, backend=backend)  # type: ignore[arg-type]
        assert kept.tolist() == [True] + [False] * 49


@pytest.mark.parametrize("rays", [3, 8, 32])
@pytest.mark.parametrize("scale", [0.2, 1, 4])
def test_suppression_is_stardists(rays: int, scale: float) -> None:
    """Down to the last one, of nuclei below a pixel as of large ones; some cross the border."""
    nms = pytest.importorskip("stardist.nms")
    for seed, threshold in ((0, 0.1), (1, 0.3), (2, 0.5)):
        centre, distance, _ = stars(seed, 1500, rays, size=300 * scale**0.5)
        centre, distance = 2 * (centre // 2), (scale * distance).astype(np.float32)
        probability = np.random.default_rng(seed).permutation(1500) / 1500  # no equals
        order = np.argsort(-probability)
        theirs = nms.non_maximum_suppression_inds(
            distance[order],
            centre[order][:, ::-1].astype(np.float32),
            probability[order],
            thresh=threshold,
            verbose=0,
        )
        ours = surviving_stars(centre, distance, probability, threshold)
        assert np.array_equal(ours[order], theirs)
        assert scale < 1 or 0.05 < ours.mean() < 0.95


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


def test_distances_without_bound_end_somewhere() -> None:
    """What a network says of an image it was not made for may be anything."""
    centre, distance, probability = stars(0, 30, rays=8)
    distance[::3] *= 1e30
    distance[1::3, ::2] = 3e38
    for backend in ("numpy", "numba"):
        kept = surviving_stars(centre, distance, probability, 0.3, backend=backend)  # type: ignore[arg-type]
        assert kept[np.argmax(probability)]
        assert kept.sum() < 30


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
