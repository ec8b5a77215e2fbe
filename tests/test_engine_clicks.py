"""Objects by clicks on slides: where they lie, how large they are, and what is no answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import shapely
import torch
from torch import Tensor, nn

import coverslip
from coverslip.engine.clicks import (
    BATCH,
    DEFAULT,
    ClickedObject,
    ClickSegmenter,
    click_model_names,
    segment_click,
)
from coverslip.errors import InvalidConfig, MissingMpp, UnknownName
from coverslip.heads.recipe import HeadRecipe, save_head
from coverslip.heads.registry import SHIPPED
from coverslip.wsi.opening import open_slide

if TYPE_CHECKING:
    from conftest import ArraySlide

Disc = tuple[float, float, float]  # x, y level-0 px, radius µm


class Dark(nn.Module):
    """What is dark is an object, but for what a mark on another one covers."""

    multiple = 16

    def __init__(self) -> None:
        super().__init__()
        self.steepness = nn.Parameter(torch.tensor(4.0))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:  # (b, 5, H, W) -> (b, 1, H, W)
        self.seen.append(x)
        return -self.steepness * x[:, :1] - 100 * x[:, 4:5]


@pytest.fixture
def dark() -> ClickSegmenter:
    recipe = HeadRecipe(
        "dark",
        "clicks",
        "test_engine_clicks:Dark",
        mpp=0.25,
        normalisation="imagenet",
        settings={"threshold": 0.5, "patch_px": 128, "least_um2": 2.0},
    )
    return ClickSegmenter(recipe, Dark(), "")  # type: ignore[arg-type]


def drawn(size: tuple[int, int], mpp: tuple[float, float], discs: list[Disc]) -> np.ndarray:
    """Dark discs on a light ground; at their borders pixels are dark by the share covered."""
    cover = np.zeros((size[1], size[0]))
    for disc in discs:
        x0, y0, x1, y1 = (int(n) for n in ellipse(disc, mpp).buffer(2).bounds)
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, size[0]), min(y1, size[1])
        x, y = (a + (np.arange((b - a) * 8) + 0.5) / 8 for a, b in ((x0, x1), (y0, y1)))
        far = ((y - disc[1]) * mpp[1])[:, None] ** 2 + ((x - disc[0]) * mpp[0])[None] ** 2
        inside = (far <= disc[2] ** 2).reshape(y1 - y0, 8, x1 - x0, 8)
        part = cover[y0:y1, x0:x1]
        np.maximum(part, inside.mean(axis=(1, 3)), out=part)
    # the red channel's middle between the two is ImageNet's mean, the network's border
    grey = 123.675 + 100 * (0.5 - cover)
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=-1)


def ellipse(disc: Disc, mpp: tuple[float, float]) -> shapely.Polygon:
    circle = shapely.Point(0, 0).buffer(disc[2], quad_segs=64)
    scaled = shapely.transform(circle, lambda p: p / np.array(mpp) + np.array(disc[:2]))
    assert isinstance(scaled, shapely.Polygon)
    return scaled


@pytest.mark.parametrize(
    "mpp", [(0.25, 0.25), (0.37, 0.37), (0.2527, 0.2527), (0.11, 0.11), (0.5, 0.25)]
)
def test_a_disc_is_outlined_where_it_lies(
    array_slide: type[ArraySlide], dark: ClickSegmenter, mpp: tuple[float, float]
) -> None:
    disc = (203.3, 171.8, 5.0)
    slide = array_slide(drawn((400, 350), mpp, [disc]), mpp=mpp)
    (found,) = dark.segment(slide, [(disc[0] - 2.2 / mpp[0], disc[1] + 1.7 / mpp[1])])
    assert isinstance(found, ClickedObject)
    assert found.polygon.is_valid
    true = ellipse(disc, mpp)
    difference = np.subtract(found.polygon.centroid.coords[0], disc[:2]) * mpp
    assert np.abs(difference).max() < 0.05  # µm; a model pixel has 0.25
    assert shapely.hausdorff_distance(found.polygon, true) * max(mpp) < 0.3
    shared = found.polygon.intersection(true).area / found.polygon.union(true).area
    assert shared > 0.95
    assert found.area_um2 == pytest.approx(np.pi * 25, rel=0.02)
    assert found.polygon.area * mpp[0] * mpp[1] == pytest.approx(found.area_um2, rel=0.03)
    assert 0.5 < found.probability <= 1
    assert found.whole


def test_answers_come_in_the_order_of_the_clicks(
    array_slide: type[ArraySlide], dark: ClickSegmenter
) -> None:
    discs = [(60.0 + 90 * i, 80.0, 4.0) for i in range(BATCH + 2)]
    slide = array_slide(drawn((1700, 160), (0.25, 0.25), discs))
    points = [(x + 3, y) for x, y, _ in discs]
    points.insert(1, (105.0, 80.0))  # between two discs
    found = dark.segment(slide, np.array(points))
    assert [answer is None for answer in found] == [i == 1 for i in range(BATCH + 3)]
    for answer, point in zip(found, points, strict=True):
        if answer is not None:
            assert answer.polygon.contains(shapely.Point(point))
    assert dark.segment(slide, []) == []
    assert dark.segment(slide, np.empty((0, 2)), squiggle=True) == []


def test_other_clicks_in_the_patch_are_not_meant(
    array_slide: type[ArraySlide], dark: ClickSegmenter
) -> None:
    slide = array_slide(drawn((300, 300), (0.25, 0.25), [(150.0, 150.0, 5.0)]))
    points = [(135.0, 150.0), (166.0, 150.0)]
    alone = [dark.segment(slide, [point])[0] for point in points]
    together = dark.segment(slide, points)
    for i, (one, both) in enumerate(zip(alone, together, strict=True)):
        assert one is not None
        assert both is not None
        assert one.polygon.contains(shapely.Point(points[1 - i]))
        assert not both.polygon.contains(shapely.Point(points[1 - i]))
    (excluded,) = dark.segment(slide, points[:1], exclude=[points[1], (9.0, 5000.0)])
    assert excluded == together[0]
    seen = dark.network.seen[-1]  # type: ignore[attr-defined]
    assert float(seen[0, 3].max()) > 0.9
    assert float(seen[0, 4].max()) > 0.9


def test_only_the_patch_is_read(array_slide: type[ArraySlide], dark: ClickSegmenter) -> None:
    image = drawn((1000, 1000), (0.25, 0.25), [(500.0, 500.0, 4.0)])
    slide = array_slide(image)  # tiles of 64 px
    dark.segment(slide, [(500.9, 500.2)])
    assert {(column, row) for _, column, row in slide.decoded} == {
        (column, row) for column in (6, 7, 8) for row in (6, 7, 8)
    }
    shown = dark.network.seen[0][0, 0].numpy() * 58.395 + 123.675  # type: ignore[attr-defined]
    np.testing.assert_allclose(shown, image[436:564, 436:564, 0], atol=0.01)


def test_a_squiggle_means_one_object(array_slide: type[ArraySlide], dark: ClickSegmenter) -> None:
    row = [(100.0 + 12 * i, 100.0 + i, 3.0) for i in range(16)]
    slide = array_slide(drawn((400, 220), (0.25, 0.25), row))
    line = [(100.0, 100.0), (180.0, 106.0), (280.0, 115.0)]
    (found,) = dark.segment(slide, line, squiggle=True)
    assert found is not None
    assert found.polygon.contains(shapely.LineString(line))
    assert found.whole
    (cut,) = dark.segment(slide, line[1:2])
    assert cut is not None
    assert not cut.whole
    (larger,) = dark.segment(slide, line[1:2], patch_um=80)
    assert larger is not None
    assert larger.whole
    with pytest.raises(ValueError, match="45 µm long, too long for a patch of 32 µm"):
        dark.segment(slide, line, squiggle=True, patch_um=32)


def test_at_the_slides_edge_objects_end_there(
    array_slide: type[ArraySlide], dark: ClickSegmenter
) -> None:
    slide = array_slide(drawn((150, 101), (0.3, 0.3), [(147.0, 99.0, 4.0)]), mpp=(0.3, 0.3))
    (found,) = dark.segment(slide, [(147.0, 99.0)])
    assert found is not None
    assert found.polygon.is_valid
    assert found.polygon.bounds[2:] == pytest.approx((150, 101), abs=0.5)
    assert shapely.box(0, 0, 150, 101).covers(found.polygon)


@pytest.mark.parametrize("point", [(-0.1, 5.0), (5.0, 100.0), (200.0, 5.0), (np.nan, 5.0)])
def test_a_point_off_the_slide_is_refused(
    array_slide: type[ArraySlide], dark: ClickSegmenter, point: tuple[float, float]
) -> None:
    slide = array_slide(drawn((200, 100), (0.25, 0.25), []))
    with pytest.raises(ValueError, match="is off the slide of 200 x 100 px"):
        dark.segment(slide, [(3.0, 3.0), point])


def test_what_means_nothing_is_refused(
    array_slide: type[ArraySlide], dark: ClickSegmenter, tmp_path: Path
) -> None:
    slide = array_slide(drawn((200, 100), (0.25, 0.25), []))
    with pytest.raises(MissingMpp):
        dark.segment(array_slide(slide.images[0], mpp=None), [(3.0, 3.0)])
    with pytest.raises(ValueError, match=r"\(x, y\) each, got an array of shape \(2,\)"):
        dark.segment(slide, (3.0, 3.0))  # type: ignore[arg-type]
    for patch_um in (0, -3, 1e6, np.nan):
        with pytest.raises(ValueError, match="patch_um must be above 0 and at most 512"):
            dark.segment(slide, [(3.0, 3.0)], patch_um=patch_um)
    with pytest.raises(UnknownName, match="nuclick-he"):
        segment_click(slide, [(3.0, 3.0)], model="nuklick-he")
    with pytest.raises(InvalidConfig, match="no such file"):
        segment_click(slide, [(3.0, 3.0)], model=str(tmp_path / "no.safetensors"))
    other = HeadRecipe("other", "nuclei", "test_engine_clicks:Dark")
    save_head(tmp_path / "other.safetensors", other, Dark())
    with pytest.raises(InvalidConfig, match="a head for nuclei, not for clicks"):
        ClickSegmenter.load(str(tmp_path / "other.safetensors"))


def test_a_file_written_anew_is_loaded_anew(
    array_slide: type[ArraySlide], dark: ClickSegmenter, tmp_path: Path
) -> None:
    slide = array_slide(drawn((200, 200), (0.25, 0.25), [(100.0, 100.0, 4.0)]))
    path = tmp_path / "dark.safetensors"
    save_head(path, dark.recipe, Dark())
    assert segment_click(slide, [(100.0, 100.0)], model=str(path))[0] is not None
    blind = Dark()
    nn.init.zeros_(blind.steepness)
    save_head(path, dark.recipe, blind)
    assert segment_click(slide, [(100.0, 100.0)], model=str(path)) == [None]


def test_the_public_names() -> None:
    assert coverslip.segment_click is segment_click
    assert coverslip.ClickSegmenter is ClickSegmenter
    assert coverslip.ClickedObject is ClickedObject


def test_the_model_that_ships(small_slide: Path) -> None:
    """A nucleus of the real slide, and its glass."""
    assert DEFAULT in click_model_names()
    assert (SHIPPED / f"{DEFAULT}.safetensors").stat().st_size < 6e6
    segmenter = ClickSegmenter.load(device="cpu")
    assert "CC0" in segmenter.recipe.licence
    with open_slide(small_slide) as slide:
        nucleus, glass = (901.8, 2119.2), (60.0, 300.0)
        found = segmenter.segment(slide, [nucleus, glass])
        again = segment_click(slide, [nucleus, glass])
    assert found[1] is None
    assert found[0] is not None
    assert found[0].polygon.contains(shapely.Point(nucleus))
    assert 10 < found[0].area_um2 < 100
    assert again[0] is not None
    assert again[0].polygon.equals(found[0].polygon)
