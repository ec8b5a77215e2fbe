"""Shapes against scikit-image, simplified outlines, holes, and nuclei told apart by HoVer maps."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from coverslip.kernels.hover import hover_instances
from coverslip.kernels.labels import (
    connected_components,
    filled_holes,
    label_means,
    label_measures,
    label_outlines,
    opened_by_disc,
)
from coverslip.kernels.shapes import outline_polygons, shape_measures, simplified_outlines


def blobs(seed: int, size: int = 90, level: float = 0.5) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((size, size)), 3)
    return connected_components(noise > np.quantile(noise, level))


def test_shapes_are_scikit_images() -> None:
    measure = pytest.importorskip("skimage.measure")
    labels = blobs(1)
    measures = label_measures(labels, np.zeros(labels.shape, np.float32))
    polygons = outline_polygons(label_outlines(labels))
    found = shape_measures(polygons, measures.axes)
    for i, region in enumerate(measure.regionprops(labels)):
        assert found.eccentricity[i] == pytest.approx(region.eccentricity, abs=1e-6)
        if region.area > 60 and region.area_filled == region.area:
            assert found.perimeter[i] == pytest.approx(region.perimeter, rel=0.12)
            assert found.solidity[i] == pytest.approx(region.solidity, abs=0.06)


def test_a_disc_and_a_bar() -> None:
    v, u = np.mgrid[:80, :80]
    labels = ((u - 40) ** 2 + (v - 30) ** 2 <= 20**2).astype(np.int32)
    labels[60:64, 10:70] = 2
    measures = label_measures(labels, np.zeros(labels.shape, np.float32))
    found = shape_measures(outline_polygons(label_outlines(labels)), measures.axes)
    assert found.circularity[0] == pytest.approx(0.92, abs=0.05)
    assert found.solidity[0] > 0.97
    assert found.eccentricity[0] < 0.05
    assert found.eccentricity[1] > 0.99
    assert found.circularity[1] < 0.25
    assert found.perimeter[1] == pytest.approx(2 * (60 + 4), rel=0.03)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 4), st.floats(0.2, 0.95))
def test_simplified_outlines_are_valid_and_near(seed: int, tolerance: float, level: float) -> None:
    outlines = label_outlines(blobs(seed, 60, level))
    thinned, by_definition = (
        simplified_outlines(outlines, tolerance, backend=name)  # type: ignore[arg-type]
        for name in ("numba", "numpy")
    )
    assert np.array_equal(thinned.vertex, by_definition.vertex)
    assert np.array_equal(thinned.offset, by_definition.offset)
    traced, simple = outline_polygons(outlines), outline_polygons(thinned)
    assert shapely.is_valid(simple).all()
    assert (shapely.area(simple) > 0).all()
    for a, b in zip(traced.tolist(), simple.tolist(), strict=True):
        strayed = shapely.distance(shapely.points(a.exterior.coords), b.exterior)
        assert strayed.max() <= tolerance + 1e-9
        assert len(b.exterior.coords) <= len(a.exterior.coords)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_all_holes_filled_is_scipys(seed: int) -> None:
    mask = blobs(seed, 40, 0.4) > 0
    assert np.array_equal(filled_holes(mask, np.inf), ndimage.binary_fill_holes(mask))
    assert np.array_equal(filled_holes(mask, 0), mask)


def test_opening_keeps_what_a_disc_covers() -> None:
    v, u = np.mgrid[:50, :50]
    disc = (u - 25) ** 2 + (v - 25) ** 2 <= 10**2
    hair = disc.copy()
    hair[24:26, :] = True
    opened = opened_by_disc(hair, 3)
    assert not opened[24:26, :10].any()
    assert (opened & disc).sum() > 0.95 * disc.sum()


def hover_maps(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a perfect network says of these nuclei."""
    horizontal, vertical = np.zeros((2, *labels.shape), np.float32)
    for i, box in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[box] == i
        v, u = np.nonzero(inside)
        for map, at in ((horizontal, u), (vertical, v)):
            off = at - at.mean()
            low, high = max(-off.min(), 1e-6), max(off.max(), 1e-6)
            map[box][inside] = np.where(off < 0, off / low, off / high)
    return (labels > 0).astype(np.float32), horizontal, vertical


def touching_discs() -> np.ndarray:
    v, u = np.mgrid[:160, :160]
    labels = np.zeros((160, 160), np.int32)
    for i, (x, y) in enumerate([(30, 30), (54, 32), (44, 53), (110, 40), (110, 64), (60, 120)], 1):
        labels[((u - x) ** 2 + (v - y) ** 2 <= 12.5**2) & (labels == 0)] = i
    return labels


@pytest.mark.parametrize("span", [None, (-0.35, 0.12)])
def test_hover_maps_tell_touching_nuclei_apart(span: tuple[float, float] | None) -> None:
    true = touching_discs()
    found = hover_instances(*hover_maps(true), span=span)
    assert found.max() == true.max()
    for i in range(1, true.max() + 1):
        mine = np.bincount(found[true == i]).argmax()
        both = (true == i) & (found == mine)
        assert both.sum() / ((true == i) | (found == mine)).sum() > 0.8


def test_with_a_fixed_span_a_nucleus_does_not_depend_on_the_others() -> None:
    maps = hover_maps(touching_discs())
    whole = hover_instances(*maps, span=(-0.35, 0.12))
    part = hover_instances(*(m[80:, :] for m in maps), span=(-0.35, 0.12))
    assert np.array_equal(part[20:] > 0, whole[100:] > 0)


def test_no_nucleus_at_all() -> None:
    empty = np.zeros((20, 30), np.float32)
    assert hover_instances(empty, empty, empty).max() == 0


def test_means_of_every_channel_are_scikit_images() -> None:
    measure = pytest.importorskip("skimage.measure")
    labels = blobs(4)
    image = np.random.default_rng(0).random((*labels.shape, 3)).astype(np.float32)
    expected = [region.intensity_mean for region in measure.regionprops(labels, image)]
    for backend in ("numpy", "numba"):
        found = label_means(labels, image, backend=backend)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert label_means(np.zeros((4, 5), np.int32), np.zeros((4, 5, 2), np.uint8)).shape == (0, 2)
