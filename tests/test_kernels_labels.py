"""Label kernels mean the same in every implementation, and what SciPy and scikit-image mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from scipy import ndimage

from coverslip.kernels.backend import backend_of, implementation
from coverslip.kernels.labels import (
    connected_components,
    consecutive_labels,
    distance_transform,
    gaussian,
    label_measures,
    label_outlines,
    laplacian_of_gaussian,
    local_maxima,
    local_threshold,
    seeded_watershed,
)

SHAPES = [(0, 0), (0, 3), (1, 1), (1, 9), (9, 1), (17, 23), (40, 33)]


def blobs(shape: tuple[int, int], seed: int = 0) -> npt.NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(size=shape)
    return (
        np.asarray(ndimage.gaussian_filter(noise, 1.5) * 4, np.float32)
        if noise.size
        else (noise.astype(np.float32))
    )


def polygons(labels: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
    found = label_outlines(labels)
    ring = np.repeat(np.arange(len(found.label)), np.diff(found.offset))
    return found.label, shapely.polygons(shapely.linearrings(found.vertex, indices=ring))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_every_backend_means_the_same(shape: tuple[int, int], density: float) -> None:
    rng = np.random.default_rng(3)
    mask, image = rng.random(shape) < density, blobs(shape, 4)
    seeds = (np.cumsum(rng.random(shape) < 0.1).reshape(shape) * mask).astype(np.int32)
    for kernel, args in (
        (connected_components, (mask,)),
        (distance_transform, (mask, 4.5)),
        (local_maxima, (image, mask, 2.5)),
        (seeded_watershed, (image, seeds, mask)),
    ):
        a, b = (kernel(*args, backend=name) for name in ("numpy", "numba"))
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=kernel.__name__)
    a, b = (laplacian_of_gaussian(image, 1.3, backend=name) for name in ("numpy", "numba"))
    np.testing.assert_allclose(a, b, atol=1e-4)
    for sigma in (0.0, 1.3):
        a, b = (gaussian(image, sigma, backend=name) for name in ("numpy", "numba"))
        np.testing.assert_allclose(a, b, atol=1e-5)
    a, b = (local_threshold(image, 4, 0.1, (-1, 1), 0.1, backend=n) for n in ("numpy", "numba"))
    np.testing.assert_allclose(a, b, atol=1e-5)
    level = local_threshold(image, 4, 0.1, (-1, 1), 0.1)
    a, b = (local_threshold(image, 4, level, (-1, 1), 0.1, backend=n) for n in ("numpy", "numba"))
    np.testing.assert_allclose(a, b, atol=1e-5)
    labels = connected_components(mask)
    one, two = (label_outlines(labels, backend=name) for name in ("numpy", "numba"))
    assert np.array_equal(one.vertex, two.vertex)
    assert np.array_equal(one.offset, two.offset)
    for field in ("label", "area", "centroid", "box", "mean", "axes"):
        one, two = (label_measures(labels, image, backend=n) for n in ("numpy", "numba"))
        np.testing.assert_allclose(getattr(one, field), getattr(two, field), rtol=1e-5, atol=1e-5)


def test_the_array_chooses() -> None:
    assert backend_of(np.zeros(1)) == "numba"
    assert implementation("labels", np.zeros(1)).__name__.endswith("_labels_numba")


def test_distances_are_those_of_scipy() -> None:
    mask = blobs((200, 170)) > -0.3
    exact = ndimage.distance_transform_edt(mask)
    np.testing.assert_allclose(distance_transform(mask, 1e3), exact, rtol=1e-6)


def test_gaussian_is_that_of_scipy() -> None:
    image = blobs((60, 50))
    exact = ndimage.gaussian_filter(image.astype(float), 2.0, truncate=3.0, mode="nearest")
    np.testing.assert_allclose(gaussian(image, 2.0), exact, atol=1e-5)


def test_watershed_is_that_of_scikit_image() -> None:
    segmentation = pytest.importorskip("skimage.segmentation")
    height = blobs((150, 130), 2)  # no two pixels are equal: no tie to break
    mask = height < 0.8
    seeds = local_maxima(-height, mask, 3.0)
    ours = seeded_watershed(height, seeds, mask)
    theirs = segmentation.watershed(height, seeds, mask=mask)
    assert seeds.max() > 50
    assert (ours == theirs).mean() > 0.995  # a pixel between two basins may go to either
    assert (ours[mask] > 0).sum() == (theirs[mask] > 0).sum()


def test_a_window_sees_what_the_whole_sees() -> None:
    image = blobs((120, 140), 5)
    mask = image > 0
    inner, cut = np.s_[15:-15, 15:-15], np.s_[11:, 7:]
    for kernel in (
        lambda i, m: gaussian(i, 2.0),
        lambda i, m: local_threshold(i, 10, 0.0, (-1.0, 1.0), 0.05),
        lambda i, m: distance_transform(m, 9.0),
        lambda i, m: local_maxima(i, m, 4.0) > 0,
    ):
        whole = kernel(image, mask)[cut][inner]
        part = kernel(image[cut], mask[cut])[inner]
        assert np.array_equal(whole, part)  # bit for bit


@pytest.mark.parametrize("seed", range(6))
def test_outlines_are_valid_and_cover_exactly_their_pixels(seed: int) -> None:
    raw = np.random.default_rng(seed).random((30, 35)) < (0.2 + 0.12 * seed)
    labels = connected_components(raw)
    names, rings = polygons(labels)
    assert names.tolist() == list(range(1, labels.max() + 1))
    assert shapely.is_valid(rings).all()
    v, u = np.mgrid[: labels.shape[0], : labels.shape[1]] + 0.5
    for name, ring in zip(names.tolist(), rings, strict=True):
        filled = ndimage.binary_fill_holes(labels == name, np.ones((3, 3)))
        assert np.array_equal(shapely.contains_xy(ring, u, v), filled)
        assert ring.area == pytest.approx(filled.sum() - 0.5)
    assert shapely.is_valid(shapely.simplify(rings, 0.4)).all()


@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (7, 5), (2, 3, 4)])
def test_labels_without_gaps_are_scikit_images(shape: tuple[int, ...], least: int) -> None:
    segmentation = pytest.importorskip("skimage.segmentation")
    labels = np.random.default_rng(2).integers(least, 60, shape).astype(np.uint16)
    ours, left = consecutive_labels(labels)
    assert (ours.dtype, left.dtype) == (np.int32, np.int64)
    np.testing.assert_array_equal(np.append(0, left)[ours], labels)  # none changes hands
    if labels.size:
        np.testing.assert_array_equal(ours, segmentation.relabel_sequential(labels)[0])


def test_labels_below_nothing_are_background() -> None:
    ours, left = consecutive_labels(np.array([[-4, 0, 9], [2, 9, -1]]))
    assert ours.tolist() == [[0, 0, 2], [1, 2, 0]]
    assert left.tolist() == [2, 9]


def test_measures_are_those_of_scikit_image() -> None:
    measure = pytest.importorskip("skimage.measure")
    labels = connected_components(blobs((90, 80), 7) > 0.2)
    image = blobs((90, 80), 8)
    ours = label_measures(labels, image)
    for i, region in enumerate(measure.regionprops(labels, image)):
        y, x = region.centroid
        assert ours.label[i] == region.label
        assert ours.area[i] == region.area
        assert ours.centroid[i] == pytest.approx((x + 0.5, y + 0.5))
        y0, x0, y1, x1 = region.bbox
        assert ours.box[i].tolist() == [x0, y0, x1, y1]
        assert ours.mean[i] == pytest.approx(region.intensity_mean, rel=1e-4, abs=1e-5)
        assert ours.axes[i, 0] == pytest.approx(region.axis_major_length)
        assert ours.axes[i, 1] == pytest.approx(region.axis_minor_length, abs=1e-6)


def test_the_laplacian_of_gaussian_is_scipys() -> None:
    image = blobs((60, 50), 5)
    theirs = -(2.5**2) * ndimage.gaussian_laplace(
        image.astype(np.float64), 2.5, mode="nearest", truncate=4
    )
    ours = laplacian_of_gaussian(image, 2.5)
    np.testing.assert_allclose(ours, theirs, atol=0.01 * np.abs(theirs).max())


def test_the_laplacian_peaks_in_the_middle_of_a_disc() -> None:
    v, u = np.mgrid[:61, :61]
    disc = ((u - 30) ** 2 + (v - 28) ** 2 <= 8**2).astype(np.float32)
    found = laplacian_of_gaussian(disc, 8 / np.sqrt(2))
    assert np.unravel_index(found.argmax(), found.shape) == (28, 30)
    assert np.abs(laplacian_of_gaussian(np.full((40, 40), 3, np.float32), 2.0)).max() < 1e-5
