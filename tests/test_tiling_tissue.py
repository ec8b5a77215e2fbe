"""Tissue: found where it is faint, not where there is ink, dust, black or padding."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from shapely.geometry import Polygon, box

from coverslip.tiling.quality import QualityLimits, tile_quality
from coverslip.tiling.reading import read_region
from coverslip.tiling.tissue import Tissue, find_tissue, mask_polygons
from coverslip.tiling.tissue_mask import segment_tissue
from coverslip.wsi.opening import open_slide
from coverslip.wsi.slide import Box

GLASS = (243, 242, 244)


def glass(height: int = 300, width: int = 400) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 1.5, (height, width, 3))
    return np.clip(np.array(GLASS) + noise, 0, 255).astype(np.uint8)


def test_glass_is_empty_and_tissue_full() -> None:
    assert not segment_tissue(glass(), 8).tissue.any()
    pink = np.clip(glass().astype(int) - (30, 90, 45), 0, 255).astype(np.uint8)
    assert segment_tissue(pink, 8).tissue.mean() > 0.99


def test_faint_tissue_is_found_and_dust_is_not() -> None:
    image = glass().astype(int)
    image[60:160, 80:260] -= (4, 22, 10)  # pale stroma
    lattice = (np.indices((100, 100)) % 12 < 3).any(axis=0)
    image[180:280, 40:140][lattice] -= (10, 45, 20)  # walls of fat cells
    for y, x in ((20, 20), (200, 350), (290, 300)):
        image[y : y + 4, x : x + 4] = 90  # dust
    mask = segment_tissue(np.clip(image, 0, 255).astype(np.uint8), 8).tissue
    assert mask[65:155, 85:255].mean() > 0.98
    assert mask[190:270, 50:130].mean() > 0.95
    assert not mask[15:30, 15:30].any()
    assert not mask[190:210, 340:370].any()


def test_black_and_a_coverslip_edge_are_left_out() -> None:
    image = glass()
    image[:, :60] = 0  # unscanned
    image[:, 380:383] = (150, 150, 152)  # the edge of the glass
    mask = segment_tissue(image, 8).tissue
    assert mask.mean() < 0.005


@pytest.mark.parametrize(
    "ink", [(40, 60, 150), (30, 110, 60), (200, 20, 30), (25, 25, 28)], ids=str
)
def test_ink_is_left_out(ink: tuple[int, int, int]) -> None:
    image = glass()
    image[100:200, 30:180] = (205, 140, 185)
    image[90:230, 260:290] = ink
    found = segment_tissue(image, 8)
    assert found.tissue[105:195, 35:175].mean() > 0.95
    assert found.tissue[95:225, 262:288].mean() < 0.05
    assert found.pen[100:220, 265:285].mean() > 0.95


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "mpp", "ink", "tissue"),
    [
        ("tcga-green-pen.png", 2, (10, 350, 100, 380), (100, 500, 300, 700)),
        ("tcga-red-pen.png", 2, (150, 50, 350, 120), (200, 300, 400, 440)),
    ],
)
def test_ink_on_real_slides(
    real_data: Path, name: str, mpp: float, ink: tuple[int, ...], tissue: tuple[int, ...]
) -> None:
    image = np.asarray(Image.open(real_data / "images" / name).convert("RGB"))
    mask = segment_tissue(image, mpp).tissue
    y0, x0, y1, x1 = ink
    assert mask[y0:y1, x0:x1].mean() < 0.1
    y0, x0, y1, x1 = tissue
    assert mask[y0:y1, x0:x1].mean() > 0.9


def test_the_sample_slide(small_slide: Path) -> None:
    with open_slide(small_slide) as slide:
        first, second = find_tissue(slide), find_tissue(slide)
        assert np.array_equal(first.mask, second.mask)
        assert 0.6 < first.area_um2(slide.mpp) / 1e6 < 0.85
        area = sum(p.area for p in first.polygons) * slide.mpp[0] ** 2
        assert area == pytest.approx(first.area_um2(slide.mpp), rel=0.03)
        assert all(p.is_valid for p in first.polygons)
        half = find_tissue(slide, region=[box(0, 0, *slide.size).buffer(-400)])
        assert 0 < half.area_um2(slide.mpp) < first.area_um2(slide.mpp)


def test_fractions_are_exact() -> None:
    rng = np.random.default_rng(5)
    mask = ndimage.gaussian_filter(rng.random((40, 50)), 2) > 0.5
    tissue = Tissue(mask, (7.5, 7.5), (), 0.0, (0, 0, 0), "", {})
    boxes = np.stack(
        [*rng.integers(-40, 330, (2, 60)), *rng.integers(1, 90, (2, 60))], axis=1
    ).astype(np.int64)
    pixels = [box(u * 7.5, v * 7.5, (u + 1) * 7.5, (v + 1) * 7.5) for v, u in np.argwhere(mask)]
    found = tissue.fraction(boxes)
    for (x, y, w, h), share in zip(boxes.tolist(), found.tolist(), strict=True):
        square = box(x, y, x + w, y + h)
        exact = sum(p.intersection(square).area for p in pixels) / square.area
        assert share == pytest.approx(exact, abs=1e-5)


def test_polygons_keep_holes() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:35, 5:35] = True
    mask[15:25, 15:25] = False
    (polygon,) = mask_polygons(mask, (10.0, 10.0), (400, 400))
    assert isinstance(polygon, Polygon)
    assert len(polygon.interiors) == 1
    assert polygon.area == pytest.approx(80_000)


def test_blur_lowers_focus_whatever_the_stain(small_slide: Path) -> None:
    with open_slide(small_slide) as slide:
        tiles = np.stack(
            [read_region(slide, Box(x, 1500, 256, 256), slide.mpp[0]) for x in (600, 900, 1200)]
        )
    pale = (255 - (255 - tiles.astype(int)) // 3).astype(np.uint8)
    for batch in (tiles, pale):
        steps = [
            tile_quality(ndimage.gaussian_filter(batch, (0, s, s, 0)), 0.5).focus
            for s in (0, 0.7, 1.5, 3)
        ]
        for sharper, softer in pairwise(steps):
            assert (sharper > softer).all()
        assert (steps[0] > QualityLimits().blurry).all()
        assert (steps[3] < QualityLimits().blurry).all()


def test_flat_tiles_have_a_quality_too() -> None:
    flat = np.stack([np.full((64, 64, 3), v, np.uint8) for v in (0, 128, 255)])
    found = tile_quality(flat, 0.5)
    assert np.isfinite(found.focus).all()
    assert (found.focus == 0).all()
    assert found.brightness.tolist() == [0, 128, 255]
