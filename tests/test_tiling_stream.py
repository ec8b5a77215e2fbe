"""Grids, windows and the stream: exact places, each native tile once, the same in any way of running."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import ArraySlide, address_pixels
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.errors import UnreadableTile
from coverslip.kernels.resample import area_resample
from coverslip.tiling.assembly import source_for
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.reading import read_at, read_region, read_window, thumbnail
from coverslip.tiling.stream import StreamCounters, TileStream, stream_windows
from coverslip.tiling.windows import Windows
from coverslip.wsi.opening import open_slide
from coverslip.wsi.slide import Box


class DamagedSlide(ArraySlide):
    """One native tile cannot be decoded."""

    def decode_tile(self, level, column, row, reduction=0):  # type: ignore[no-untyped-def]
        if (column, row) == (2, 3):
            raise UnreadableTile(self.path, level, column, row, "made so")
        return super().decode_tile(level, column, row, reduction)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(20, 300), st.integers(20, 260)),
    tile=st.integers(16, 96),
    native=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    batch=st.integers(1, 9),
    threads=st.integers(1, 3),
)
def test_tiles_stitched_together_are_the_image(
    size: tuple[int, int], tile: int, native: tuple[int, int], batch: int, threads: int
) -> None:
    image = address_pixels(*size)
    slide = ArraySlide(image, native)
    grid = TileGrid.over(slide, tile=tile, mpp=0.5)
    whole = np.zeros((size[1] + tile, size[0] + tile, 3), np.uint8)
    for part in TileStream(slide, grid, batch=batch, threads=threads):
        for pixels, (x, y, w, h) in zip(part.pixels, part.boxes.tolist(), strict=True):
            whole[y : y + h, x : x + w] = pixels
    assert np.array_equal(whole[: size[1], : size[0]], image)
    assert (whole[size[1] : size[1] + 1, : size[0] // 2] != 254).all()
    assert len(slide.decoded) == len(set(slide.decoded)), "a native tile was decoded twice"


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(1.0, 3.7),
    x=st.floats(-20, 150),
    y=st.floats(-20, 150),
    reductions=st.just(0),
)
def test_windows_at_any_scale_equal_the_definition(
    scale: float, x: float, y: float, reductions: int
) -> None:
    image = np.random.default_rng(3).integers(0, 256, (180, 200, 3), dtype=np.uint8)
    slide = ArraySlide(image, reductions=reductions)
    found = read_window(slide, (x, y), (40, 30), (scale, scale))
    expected = np.empty((30, 40, 3), np.uint8)
    area_resample(image, (x, y), (scale, scale), expected, backend="numpy")
    off = 0.02 if abs(scale - 1) < 0.001 else 0  # within a hundredth of a pixel it is a copy
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1 + 255 * off


def test_order_and_pixels_do_not_depend_on_how_it_runs() -> None:
    slide = ArraySlide(address_pixels(500, 400))
    grid = TileGrid.over(slide, tile=64, mpp=0.9)
    reference = np.concatenate([b.pixels for b in TileStream(slide, grid, batch=100, threads=1)])
    for batch, threads in ((1, 2), (7, 3), (64, 4)):
        batches = list(TileStream(slide, grid, batch=batch, threads=threads))
        assert np.array_equal(np.concatenate([b.index for b in batches]), np.arange(len(grid)))
        assert np.array_equal(np.concatenate([b.pixels for b in batches]), reference)
        assert all(len(b.index) == batch for b in batches[:-1])


def test_only_what_is_asked_for_is_decoded() -> None:
    slide = ArraySlide(address_pixels(640, 480), tile=(64, 48))
    grid = TileGrid.over(slide, tile=32, mpp=0.5)
    indices = np.array([0, 1, len(grid) - 1])
    list(TileStream(slide, grid, indices=indices))
    assert set(slide.decoded) == {(0, 0), (9, 9)}


def test_requests_share_one_pass() -> None:
    slide = ArraySlide(address_pixels(600, 500))
    tiles = TileGrid.over(slide, tile=64, mpp=1.0).windows()
    large = Windows(np.array([[-10.5, -3.0], [200.0, 0.0], [90.0, 180.0]]), (210, 190), (1.3, 1.3))
    counters = StreamCounters()
    seen: dict[int, list[int]] = {0: [], 1: []}
    for batch in stream_windows(slide, [tiles, large], batch=[5, 1], counters=counters):
        seen[batch.request].extend(batch.index.tolist())
        if batch.request == 1:
            i = int(batch.index[0])
            origin = (float(large.origins[i, 0]), float(large.origins[i, 1]))
            alone = read_window(slide, origin, large.size, large.scale)
            assert np.array_equal(batch.pixels[0], alone)
    assert seen == {0: list(range(len(tiles))), 1: [0, 1, 2]}
    columns, rows = slide.levels[0].grid
    assert counters.native_tiles == columns * rows


def test_a_damaged_tile_raises_or_is_blanked_and_reported() -> None:
    image = np.full((400, 400, 3), 90, np.uint8)
    slide = DamagedSlide(image, (64, 48))
    grid = TileGrid.over(slide, tile=50, mpp=0.5)
    with pytest.raises(UnreadableTile, match="column 2, row 3"):
        list(TileStream(slide, grid))
    stream = TileStream(slide, grid, batch=4, on_bad_tile="blank")
    whole = np.zeros((400, 400, 3), np.uint8)
    for part in stream:
        for pixels, (x, y, w, h) in zip(part.pixels, part.boxes.tolist(), strict=True):
            whole[y : y + h, x : x + w] = pixels
    assert [(e.column, e.row) for e in stream.bad_tiles] == [(2, 3)]
    expected = image.copy()
    expected[3 * 48 : 4 * 48, 2 * 64 : 3 * 64] = 255
    assert np.array_equal(whole, expected)
    damaged = np.concatenate(
        [b.damaged for b in stream_windows(slide, [grid.windows()], on_bad_tile="blank")]
    )
    touches = [
        bool(Box(x, y, w, h).intersection(Box(128, 144, 64, 48)).w)
        and bool(Box(x, y, w, h).intersection(Box(128, 144, 64, 48)).h)
        for x, y, w, h in grid.boxes.tolist()
    ]
    assert damaged.tolist() == touches


def test_stopping_early_leaves_no_thread() -> None:
    slide = ArraySlide(address_pixels(900, 900))
    before = threading.active_count()
    stream = iter(TileStream(slide, TileGrid.over(slide, tile=32, mpp=0.5), batch=2, threads=3))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_reduced_decoding_is_used_and_near() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    slide = ArraySlide(image, (64, 64), reductions=2)
    assert source_for(slide, (4.0, 4.0)).reduction == 2
    assert source_for(slide, (1.97, 1.97)).reduction == 1, "2 % too coarse counts as fine enough"
    assert source_for(slide, (1.9, 1.9)).reduction == 0
    found = read_window(slide, (0, 0), (64, 64), (4.0, 4.0))
    expected = image.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(found - expected).max() <= 0.5 + 1e-6


def test_the_grid_does_not_drift() -> None:
    slide = ArraySlide(np.zeros((8, 8, 3), np.uint8), mpp=0.2527)
    slide.levels = (type(slide.levels[0])((200_000, 900), (1.0, 1.0), (256, 256)),)
    grid = TileGrid.over(slide, tile=256, mpp=0.5)
    place = 256 * 200 * 0.5 / 0.2527
    assert abs(grid.boxes[200, 0] - place) <= 0.5
    assert grid.boxes[0, 2] == round(256 * 0.5 / 0.2527)


@given(overlap=st.integers(0, 40), mpp=st.floats(0.3, 3.0))
@settings(max_examples=25, deadline=None)
def test_a_grid_covers_the_slide_and_survives_json(overlap: int, mpp: float) -> None:
    slide = ArraySlide(np.zeros((333, 517, 3), np.uint8))
    grid = TileGrid.over(slide, tile=64, mpp=mpp, overlap=overlap)
    covered = np.zeros((333, 517), bool)
    for x, y, w, h in grid.boxes.tolist():
        covered[y : y + h + 1, x : x + w + 1] = True  # boxes are rounded, pixels are not
    assert covered.all()
    again = TileGrid.from_dict(grid.to_dict())
    assert again.digest() == grid.digest()
    assert again.name == grid.name


def test_the_sample_slide_at_scale_one(sample_slide: Path) -> None:
    import openslide

    with open_slide(sample_slide) as slide, openslide.OpenSlide(sample_slide) as other:
        grid = TileGrid.over(slide, tile=224, mpp=slide.mpp[0])
        for batch in TileStream(slide, grid):
            for pixels, (x, y, w, h) in zip(batch.pixels, batch.boxes.tolist(), strict=True):
                w, h = min(w, slide.size[0] - x), min(h, slide.size[1] - y)
                region = np.asarray(other.read_region((x, y), 0, (w, h)).convert("RGB"))
                assert np.array_equal(pixels[:h, :w], region)


def test_regions_and_overviews(address_slide: Path) -> None:
    with open_slide(address_slide) as slide:
        assert slide.mpp == pytest.approx((0.25, 0.25))
        region = read_region(slide, Box(300, 200, 128, 64), slide.mpp[0])
        assert np.array_equal(region, address_pixels(1500, 1100)[200:264, 300:428])
        assert read_region(slide, Box(0, 0, 400, 200), 0.5).shape == (100, 200, 3)
        assert thumbnail(slide, 300).shape == (220, 300, 3)
        assert read_at(slide, 4.0).shape == (69, 94, 3)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 50), st.integers(1, 50), st.floats(-9, 30), st.floats(0.2, 5.0),
    st.sampled_from(["noise", "flat", "white", "black"]),
)  # fmt: skip
def test_resampling_means_the_same_everywhere(
    width: int, height: int, start: float, scale: float, kind: str
) -> None:
    images = {
        "noise": np.random.default_rng(1).integers(0, 256, (height, width, 3)),
        "flat": np.full((height, width, 3), 77),
        "white": np.full((height, width, 3), 255),
        "black": np.zeros((height, width, 3)),
    }
    image = images[kind].astype(np.uint8)
    outs = {}
    for backend in ("numpy", "numba"):
        out = np.empty((12, 15, 3), np.uint8)
        area_resample(image, (start, start), (scale, scale), out, backend=backend)  # type: ignore[arg-type]
        outs[backend] = out
    assert np.abs(outs["numpy"].astype(int) - outs["numba"]).max() <= 1


def test_halves_round_up_and_outside_is_white() -> None:
    image = np.array([[[10, 10, 10], [11, 11, 11]]], np.uint8)
    for backend in ("numpy", "numba"):
        out = np.empty((1, 2, 3), np.uint8)
        area_resample(image, (0, 0), (2, 1), out, backend=backend)  # type: ignore[arg-type]
        assert out[0, :, 0].tolist() == [11, 255]
