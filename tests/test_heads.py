"""Kernels on labels and stains, the nucleus head, ownership and metrics."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from coverslip.heads.instances import Nuclei, concatenate, nuclei_in_window, own_windows
from coverslip.heads.metrics import (
    aggregated_jaccard,
    aggregated_jaccard_plus,
    dice,
    f1_at,
    panoptic_quality,
)
from coverslip.heads.watershed import StainLevels, WatershedNuclei, estimate_levels
from coverslip.kernels.labels import label_measures, label_outlines, seeded_watershed
from coverslip.kernels.stain import EOSIN, HEMATOXYLIN, separate_stains, stain_matrix
from coverslip.tiling.reading import read_window
from coverslip.wsi.opening import open_slide
from coverslip.wsi.slide import Slide


def random_labels(seed: int, size: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels, _ = ndimage.label(ndimage.gaussian_filter(rng.random((size, size)), 1.2) > 0.52)
    return labels.astype(np.int32)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_outlines_are_valid_and_hold_the_pixel_centres(seed: int) -> None:
    labels = random_labels(seed)
    outlines = {b: label_outlines(labels, backend=b) for b in ("numpy", "numba")}  # type: ignore[arg-type]
    assert np.array_equal(outlines["numpy"].vertex, outlines["numba"].vertex)
    assert np.array_equal(outlines["numpy"].offset, outlines["numba"].offset)
    found = outlines["numba"]
    for i, label in enumerate(found.label.tolist()):
        ring = found.vertex[found.offset[i] : found.offset[i + 1]]
        polygon = shapely.Polygon(ring)
        assert polygon.is_valid
        v, u = np.nonzero(labels == label)
        assert shapely.contains_xy(polygon, u + 0.5, v + 0.5).all()
        filled = ndimage.binary_fill_holes(labels == label, np.ones((3, 3)) > 0)
        assert abs(polygon.area - filled.sum()) <= 0.125 * len(ring)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_watershed_means_the_same_everywhere(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height = ndimage.gaussian_filter(rng.random((30, 33)), 1).astype(np.float32)
    mask = ndimage.gaussian_filter(rng.random((30, 33)), 2) > 0.48
    seeds = np.zeros((30, 33), np.int32)
    places = rng.integers(0, 30, (5, 2))
    seeds[places[:, 0], places[:, 1]] = np.arange(1, 6)
    outs = [seeded_watershed(height, seeds, mask, backend=b) for b in ("numpy", "numba")]  # type: ignore[arg-type]
    assert np.array_equal(*outs)
    skimage = pytest.importorskip("skimage.segmentation")
    reference = skimage.watershed(height, seeds * mask, mask=mask, connectivity=1)
    assert (reference == outs[0]).mean() > 0.98


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_measures_agree_with_scikit_image(seed: int) -> None:
    skimage = pytest.importorskip("skimage.measure")
    labels = random_labels(seed)
    image = np.random.default_rng(seed).random(labels.shape).astype(np.float32)
    for backend in ("numpy", "numba"):
        found = label_measures(labels, image, backend=backend)  # type: ignore[arg-type]
        for i, region in enumerate(skimage.regionprops(labels, image)):
            assert found.label[i] == region.label
            assert found.area[i] == region.area
            assert found.centroid[i] == pytest.approx(np.array(region.centroid)[::-1] + 0.5)
            assert found.mean[i] == pytest.approx(region.intensity_mean, rel=1e-5)
            assert found.axes[i, 0] == pytest.approx(region.axis_major_length, rel=1e-6, abs=1e-6)
            y0, x0, y1, x1 = region.bbox
            assert found.box[i].tolist() == [x0, y0, x1, y1]


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (7, 5, 3), (2, 16, 16, 3)])
def test_stains_mean_the_same_everywhere(shape: tuple[int, ...]) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    matrix = stain_matrix(HEMATOXYLIN, EOSIN)
    one, other = (separate_stains(rgb, matrix, 240, backend=b) for b in ("numpy", "numba"))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_pure_stain_is_found_alone() -> None:
    matrix = stain_matrix(HEMATOXYLIN, EOSIN)
    light = 256 * np.exp(-0.8 * matrix[0]) - 1
    found = separate_stains(np.round(light).astype(np.uint8)[None], matrix)
    np.testing.assert_allclose(found[0], [0.8, 0, 0], atol=0.02)


def nuclei_of(slide: Slide, head: WatershedNuclei, own_px: int) -> Nuclei:
    scale = (head.mpp / slide.mpp[0], head.mpp / slide.mpp[1])
    halo = int(np.ceil(head.context_um / head.mpp))
    side = own_px + 2 * halo
    parts = []
    for (x, y), own in zip(*own_windows(slide.size, scale, own_px, halo), strict=True):
        pixels = read_window(slide, (x, y), (side, side), scale)
        parts.append(nuclei_in_window(head, pixels, (x, y), scale, own, slide.size))
    return concatenate(parts)


def polygons_of(nuclei: Nuclei) -> list[shapely.Polygon]:
    ends = pairwise(nuclei.polygon_offset.tolist())
    return [shapely.Polygon(nuclei.polygon[a:b]) for a, b in ends]


def matched(ours: list[shapely.Polygon], theirs: list[shapely.Polygon], iou: float) -> float:
    """F1 of polygons matched at an IoU."""
    tree, hits = shapely.STRtree(theirs), 0
    for polygon in ours:
        near = [theirs[i] for i in tree.query(polygon)]
        best = max((p.intersection(polygon).area / p.union(polygon).area for p in near), default=0)
        hits += best > iou
    return 2 * hits / (len(ours) + len(theirs))


def test_the_tiling_does_not_change_the_nuclei(small_slide: Path) -> None:
    """F1 at IoU 0.7 above 0.99 whatever the tile size; none twice, none cut."""
    with open_slide(small_slide) as slide:
        scale = (0.5 / slide.mpp[0],) * 2
        head = WatershedNuclei().fitted(read_window(slide, (600, 600), (800, 800), scale))
        reference = polygons_of(nuclei_of(slide, head, 1500))
        assert len(reference) > 2000
        assert all(polygon.is_valid for polygon in reference)
        for own_px in (200, 333):
            found = polygons_of(nuclei_of(slide, head, own_px))
            assert matched(found, reference, 0.7) > 0.99
            tree = shapely.STRtree(found)
            a, b = tree.query(found, predicate="overlaps")
            shared = shapely.area(shapely.intersection(np.array(found)[a], np.array(found)[b]))
            assert (shared < 0.3 * shapely.area(np.array(found)[a])).all(), "found twice"


@given(st.integers(50, 900), st.integers(50, 900), st.floats(0.5, 4), st.integers(16, 300))
@settings(max_examples=40, deadline=None)
def test_own_boxes_partition_the_slide(width: int, height: int, scale: float, own_px: int) -> None:
    _, own = own_windows((width, height), (scale, scale), own_px, 8)
    points = np.random.default_rng(0).random((200, 2)) * [width, height]
    x, y, w, h = own.T[:, :, None]
    across, down = points.T
    inside = (across >= x) & (across < x + w) & (down >= y) & (down < y + h)
    assert (inside.sum(axis=0) == 1).all()


def test_discs_are_found_once_and_whole() -> None:
    image = np.full((400, 400, 3), (228, 190, 214), np.uint8)
    v, u = np.mgrid[:400, :400]
    centres = [(60, 60), (128, 128), (200, 130), (256, 256), (300, 128), (128, 300)]
    for x, y in centres:
        image[(u - x) ** 2 + (v - y) ** 2 <= 64] = (92, 60, 130)
    head = WatershedNuclei(levels=estimate_levels(image))
    labels = head.segment(image).labels
    assert labels.max() == len(centres)
    area = np.bincount(labels.ravel())[1:]
    np.testing.assert_allclose(area, np.pi * 64, rtol=0.4)


def test_blank_pictures_have_no_nuclei() -> None:
    for grey in (0, 128, 255):
        image = np.full((120, 120, 3), grey, np.uint8)
        head = WatershedNuclei().fitted(image)
        assert head.segment(np.full_like(image, 255)).labels.max() == 0
    assert estimate_levels(np.empty((0, 3), np.uint8)) == StainLevels()


def test_metrics_by_hand() -> None:
    true = np.zeros((4, 8), int)
    true[:2, :4] = 1  # 8 px
    true[2:, 4:] = 2  # 8 px
    assert aggregated_jaccard(true, true) == panoptic_quality(true, true).pq == 1
    found = np.zeros_like(true)
    found[:2, :3] = 5  # 6 of 8: IoU 0.75
    found[0, 7] = 6  # 1 px of nothing
    quality = panoptic_quality(true, found)
    assert quality.dq == pytest.approx(2 * 1 / 4)
    assert quality.sq == pytest.approx(0.75)
    assert aggregated_jaccard(true, found) == pytest.approx(6 / (8 + 8 + 1))
    assert aggregated_jaccard_plus(true, found) == pytest.approx(6 / (8 + 8 + 1))
    assert dice(true, found) == pytest.approx(2 * 6 / (16 + 7))
    assert f1_at(true, found, 0.5) == pytest.approx(0.5)
    assert f1_at(true, found, 0.8) == 0


def test_aji_lets_a_prediction_serve_twice_and_aji_plus_does_not() -> None:
    true = np.zeros((2, 8), int)
    true[:, :3], true[:, 3:6] = 1, 2
    found = np.zeros_like(true)
    found[:, :6] = 1
    assert aggregated_jaccard(true, found) == pytest.approx(12 / 24)
    assert aggregated_jaccard_plus(true, found) == pytest.approx(6 / 18)


def test_nothing_at_all_is_not_a_number() -> None:
    empty = np.zeros((3, 3), int)
    assert np.isnan(aggregated_jaccard(empty, empty))
    assert np.isnan(panoptic_quality(empty, empty).pq)
