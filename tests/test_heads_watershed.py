"""Nuclei do not depend on the windows they were found in: once, whole, wherever the seams run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import openslide
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

import coverslip
from coverslip.heads.instances import Nuclei, concatenate, nuclei_in_window, own_windows
from coverslip.heads.registry import load_nucleus_head
from coverslip.heads.watershed import StainLevels, WatershedNuclei, estimate_levels
from coverslip.wsi.slide import RGB

SAMPLE = Path(coverslip.__file__).parent / "wsi/samples/CMU-1-Small-Region.svs"
STAINED, TISSUE = (70, 50, 130), (230, 190, 215)


def discs(size: tuple[int, int], radius: int, spacing: int) -> tuple[RGB, npt.NDArray[np.int64]]:
    """Nuclei on a jittered lattice over tissue, and their centres (x, y)."""
    rng = np.random.default_rng(1)
    width, height = size
    x, y = np.meshgrid(np.arange(30, width - 30, spacing), np.arange(30, height - 30, spacing))
    centre = np.stack([x.ravel(), y.ravel()], axis=1) + rng.integers(-4, 5, (x.size, 2))
    image = np.full((height, width, 3), TISSUE, np.uint8)
    v, u = np.mgrid[:height, :width]
    for cx, cy in centre.tolist():
        image[(u - cx) ** 2 + (v - cy) ** 2 <= radius**2] = STAINED
    noisy = image + rng.normal(0, 4, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), centre


def windowed(head: WatershedNuclei, image: RGB, own_px: int, shift: tuple[int, int]) -> Nuclei:
    """The image's nuclei by windows whose lattice begins at -`shift`, cut out of it."""
    height, width = image.shape[:2]
    halo = int(np.ceil(head.context_um / head.mpp))
    origins, own = own_windows((width + shift[0], height + shift[1]), (1, 1), own_px, halo)
    side = own_px + 2 * halo
    pad = side + halo
    white = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), constant_values=255)
    parts = []
    for (x, y), box in zip(origins - shift, own - (*shift, 0, 0), strict=True):
        u, v = int(x) + pad, int(y) + pad
        window = white[v : v + side, u : u + side]
        parts.append(nuclei_in_window(head, window, (x, y), (1, 1), box, (width, height)))
    return concatenate(parts)


def rings(nuclei: Nuclei) -> npt.NDArray[np.object_]:
    index = np.repeat(np.arange(len(nuclei)), np.diff(nuclei.polygon_offset))
    return np.asarray(shapely.polygons(shapely.linearrings(nuclei.polygon, indices=index)))


def agreement(one: Nuclei, two: Nuclei) -> float:
    """F1 of outlines matched at an intersection over union of 0.7."""
    a, b = rings(one), rings(two)
    i, j = shapely.STRtree(b).query(a, predicate="intersects")
    shared = shapely.area(shapely.intersection(a[i], b[j]))
    iou = shared / (shapely.area(a[i]) + shapely.area(b[j]) - shared)
    return 2 * float((iou > 0.7).sum()) / (len(a) + len(b))


@pytest.fixture(scope="module")
def pixels() -> RGB:
    with openslide.OpenSlide(SAMPLE) as slide:  # 0.499 µm/px
        return np.asarray(slide.read_region((0, 0), 0, (1300, 1500)))[..., :3].copy()


@pytest.fixture(scope="module")
def whole(pixels: RGB) -> Nuclei:
    return windowed(WatershedNuclei().fitted(pixels), pixels, 1500, (0, 0))


@pytest.mark.parametrize(("own_px", "shift"), [(256, (0, 0)), (300, (97, 41)), (611, (5, 300))])
def test_the_same_nuclei_whatever_the_windows(
    pixels: RGB, whole: Nuclei, own_px: int, shift: tuple[int, int]
) -> None:
    found = windowed(WatershedNuclei().fitted(pixels), pixels, own_px, shift)
    assert len(whole) > 500
    assert agreement(whole, found) > 0.99


def test_outlines_of_real_nuclei_are_valid_and_measured(whole: Nuclei) -> None:
    outlines = rings(whole)
    assert shapely.is_valid(outlines).all()
    area = shapely.area(outlines) * 0.25
    assert np.abs(area / whole.area_um2 - 1).max() < 0.15  # simplified; holes are covered
    assert whole.area_um2.min() >= WatershedNuclei().least_um2
    assert whole.area_um2.max() <= 300
    assert ((whole.circularity > 0) & (whole.circularity <= 1)).all()
    assert ((whole.solidity > 0) & (whole.solidity <= 1)).all()
    assert (whole.minor_axis_um <= whole.major_axis_um).all()


@pytest.mark.parametrize(("own_px", "shift"), [(64, (0, 0)), (100, (13, 57)), (400, (0, 0))])
def test_discs_on_borders_are_found_once_and_whole(own_px: int, shift: tuple[int, int]) -> None:
    image, centre = discs((420, 380), radius=8, spacing=40)
    nuclei = windowed(WatershedNuclei().fitted(image), image, own_px, shift)
    assert len(nuclei) == len(centre)
    distance = np.linalg.norm(nuclei.centroid[:, None] - (centre + 0.5), axis=2)
    assert sorted(distance.argmin(axis=1)) == list(range(len(centre)))  # none twice
    assert distance.min(axis=1).max() < 1
    assert nuclei.area_um2 == pytest.approx(np.pi * 8**2 / 4, rel=0.15)  # none cut


def test_touching_discs_are_parted() -> None:
    image = np.full((120, 120, 3), TISSUE, np.uint8)
    v, u = np.mgrid[:120, :120]
    for x in (50, 67):
        image[(u - x) ** 2 + (v - 60) ** 2 <= 81] = STAINED
    assert WatershedNuclei().fitted(image).segment(image).labels.max() == 2


def test_only_labels_like_nuclei_are_plausible() -> None:
    labels: npt.NDArray[np.int32] = np.zeros((120, 120), np.int32)
    v, u = np.mgrid[:120, :120]
    for number, x, radius in ((2, 20, 8), (3, 40, 2), (5, 90, 8), (9, 90, 4)):
        labels[(u - x) ** 2 + (v - 20) ** 2 <= radius**2] = number  # 3 too small, 5 a ring
    labels[60:64, 10:90] = 7  # too long
    labels[70:120] = 11  # too large
    found = WatershedNuclei(mpp=0.25).plausible_nuclei(labels, np.ones(labels.shape, np.float32))
    assert np.unique(found).tolist() == [0, 1]
    np.testing.assert_array_equal(found == 1, labels == 2)


@pytest.mark.parametrize("shape", [(0, 0, 3), (1, 1, 3), (5, 40, 3)])
def test_nothing_is_found_in_glass(shape: tuple[int, int, int]) -> None:
    labels = WatershedNuclei().segment(np.full(shape, 250, np.uint8)).labels
    assert labels.shape == shape[:2]
    assert not labels.any()


def test_a_nucleus_cut_by_the_window_is_not_reported() -> None:
    image, _ = discs((200, 200), radius=8, spacing=40)
    head = WatershedNuclei().fitted(image)
    own = np.array([0.0, 0.0, 400.0, 400.0])
    inside = nuclei_in_window(head, image[:, :112], (0, 0), (1, 1), own, (200, 200))
    edge = nuclei_in_window(head, image[:, :112], (0, 0), (1, 1), own, (112, 200))
    assert inside.polygon[:, 0].max() < 112
    assert len(edge) > len(inside)  # what the slide's own border cuts is all there is


def test_levels_are_of_the_tissue_not_of_the_glass() -> None:
    image, _ = discs((200, 200), radius=8, spacing=40)
    bare = np.full((2000, 200, 3), 245, np.uint8)
    with_glass = estimate_levels(np.concatenate([image, bare]))
    assert with_glass.glass == 245
    assert with_glass.background < with_glass.threshold < with_glass.nuclei
    assert estimate_levels(np.empty((0, 256, 256, 3), np.uint8)) == StainLevels()


def test_pixels_outside_the_range_of_resolutions_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2"):
        WatershedNuclei(mpp=2.0)
    assert load_nucleus_head("watershed") == WatershedNuclei()


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.tuples(st.floats(0.3, 4), st.floats(0.3, 4)),
    st.integers(64, 700),
)
def test_own_boxes_partition_the_slide(
    size: tuple[int, int], scale: tuple[float, float], own_px: int
) -> None:
    origins, own = own_windows(size, scale, own_px, 20)
    points = np.random.default_rng(0).random((50, 2)) * size
    # corners of the boxes belong to exactly one of them, too
    points = np.concatenate([points, own[:20, :2]])
    low, high = own[:, :2], own[:, :2] + own[:, 2:]
    held = ((points[:, None] >= low) & (points[:, None] < high)).all(axis=2).sum(axis=1)
    assert (held == 1).all()
    assert np.allclose(origins + 20 * np.asarray(scale), low)


def test_selecting_keeps_outlines_with_their_nuclei(whole: Nuclei) -> None:
    chosen = whole.at(np.array([7, 3]))
    assert shapely.equals(rings(chosen), rings(whole)[[7, 3]]).all()
    assert len(whole.where(np.zeros(len(whole), bool))) == 0
    assert len(concatenate([])) == 0
    assert len(concatenate([chosen, Nuclei.none(), chosen])) == 4
