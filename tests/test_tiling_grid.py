"""Grids: tiles cover the slide without drifting, and travel as values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coverslip.errors import MissingMpp
from coverslip.tiling.grid import TileGrid, all_boxes


class Columns:
    """Tissue that covers only the boxes left of `x`."""

    def __init__(self, x: int) -> None:
        self.x = x

    def fraction(self, boxes: np.ndarray) -> np.ndarray:
        return np.clip((self.x - boxes[:, 0]) / boxes[:, 2], 0, 1).astype(np.float32)


def slide(array_slide, width=1500, height=1100, mpp=(0.25, 0.25)):  # type: ignore[no-untyped-def]
    return array_slide(np.zeros((height, width, 3), np.uint8), mpp=mpp)


@settings(max_examples=100, deadline=None)
@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    mpp=st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)),
    tile=st.integers(16, 300),
    wanted=st.floats(0.2, 4),
    data=st.data(),
)
def test_tiles_cover_the_slide(
    width: int,
    height: int,
    mpp: tuple[float, float],
    tile: int,
    wanted: float,
    data: st.DataObject,
) -> None:
    step = data.draw(st.integers(tile // 4, tile))
    assume(step * wanted / max(mpp) >= 2)  # starts stay apart when rounded
    boxes = all_boxes((width, height), mpp, tile, step, wanted).astype(float)
    for axis, length in enumerate((width, height)):
        starts = np.unique(boxes[:, axis])
        scale = wanted / mpp[axis]
        exact = np.arange(len(starts)) * step * scale
        assert starts[0] == 0
        assert np.abs(starts - exact).max() <= 0.5 + 1e-6  # rounded once, never adding up
        assert starts[-1] < length + 0.5
        assert starts[-1] + tile * scale >= length - 0.5 - 1e-6
    order = np.lexsort((boxes[:, 0], boxes[:, 1]))
    np.testing.assert_array_equal(boxes[order], boxes)


def test_a_crooked_pixel_size_does_not_drift(array_slide) -> None:  # type: ignore[no-untyped-def]
    grid = TileGrid.over(slide(array_slide, 120_000, 1, (0.2527, 0.2527)), tile=256, mpp=0.5)
    # tile 200 starts at 200 · 256 · 0.5 / 0.2527, not at 200 · round(506.53)
    assert grid.boxes[200, 0] == round(200 * 256 * 0.5 / 0.2527) == 101_306
    assert grid.boxes[200, 2] == 507


@pytest.mark.parametrize(("length", "tiles"), [(512, 1), (513, 2), (1024, 2), (1, 1), (1025, 3)])
def test_no_tile_starts_where_nothing_is_left(  # type: ignore[no-untyped-def]
    array_slide, length: int, tiles: int
) -> None:
    assert len(TileGrid.over(slide(array_slide, length, 512), tile=256, mpp=0.5)) == tiles


def test_overlap_moves_the_step_and_the_name(array_slide) -> None:  # type: ignore[no-untyped-def]
    grid = TileGrid.over(slide(array_slide), tile=256, mpp=0.5, overlap=64)
    assert (grid.step, grid.overlap, grid.name) == (192, 64, "256px_0.5mpp_64overlap")
    assert grid.boxes[1, 0] - grid.boxes[0, 0] == 384
    assert TileGrid.over(slide(array_slide), mpp=0.5).name == "256px_0.5mpp"


def test_tissue_decides_which_tiles_stay(array_slide) -> None:  # type: ignore[no-untyped-def]
    grid = TileGrid.over(slide(array_slide), mpp=0.5, tissue=Columns(600), min_tissue=0.25)
    assert set(grid.boxes[:, 0].tolist()) == {0}
    grid = TileGrid.over(slide(array_slide), mpp=0.5, tissue=Columns(600), min_tissue=0.0)
    assert set(grid.boxes[:, 0].tolist()) == {0, 512}  # no tissue at all is never kept
    assert grid.tissue_fraction.dtype == np.float32
    none = TileGrid.over(slide(array_slide), mpp=0.5, tissue=Columns(-9))
    assert len(none) == 0
    assert none.boxes.shape == (0, 4)


def test_a_grid_is_a_value(array_slide) -> None:  # type: ignore[no-untyped-def]
    grid = TileGrid.over(slide(array_slide), mpp=0.5, overlap=32, tissue=Columns(600))
    again = TileGrid.from_dict(grid.to_dict())
    assert again.digest() == grid.digest()
    np.testing.assert_array_equal(again.boxes, grid.boxes)
    np.testing.assert_array_equal(again.tissue_fraction, grid.tissue_fraction)
    assert again.parameters() == grid.parameters()
    other = TileGrid.over(slide(array_slide), mpp=0.5, overlap=32)
    assert other.digest() != grid.digest()


def test_unequal_pixel_sizes_scale_apart(array_slide) -> None:  # type: ignore[no-untyped-def]
    grid = TileGrid.over(slide(array_slide, mpp=(0.25, 0.5)), tile=100, mpp=0.5)
    assert grid.scale == (2.0, 1.0)
    np.testing.assert_array_equal(grid.boxes[0], [0, 0, 200, 100])


def test_wrong_arguments_are_named(array_slide) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="overlap"):
        TileGrid.over(slide(array_slide), tile=256, overlap=256)
    with pytest.raises(ValueError, match="mpp"):
        TileGrid.over(slide(array_slide), mpp=-1)
    with pytest.raises(MissingMpp, match="--assume-mpp"):
        TileGrid.over(slide(array_slide, mpp=None))
