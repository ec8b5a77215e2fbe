"""The stream: right pixels, each native tile once, in order, however it is cut and threaded."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.errors import MissingMpp, UnreadableTile
from coverslip.kernels.resample import area_resample
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.reading import read_at, read_region, read_window, source_for, thumbnail
from coverslip.tiling.stream import StreamCounters, TileStream, Windows, stream_windows
from coverslip.wsi.opening import open_slide
from coverslip.wsi.slide import Box

# mypy: disable-error-code="no-untyped-def"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    left = [t.name for t in threading.enumerate() if t.name.startswith("coverslip")]
    assert not left


@pytest.fixture(scope="module")
def image(address_pixels):
    return address_pixels(300, 220)


def streamed(slide, requests, **options) -> dict[int, np.ndarray]:
    """request -> its windows' pixels, after checking their order."""
    found: dict[int, list] = {}
    for batch in stream_windows(slide, requests, **options):
        found.setdefault(batch.request, []).append((batch.index, batch.pixels))
    for parts in found.values():
        order = np.concatenate([index for index, _ in parts])
        np.testing.assert_array_equal(order, np.arange(len(order)))
    return {r: np.concatenate([pixels for _, pixels in parts]) for r, parts in found.items()}


def defined(image, origin, size, scale) -> np.ndarray:
    """What a window means: the area-weighted mean of level 0."""
    out = np.empty((size[1], size[0], 3), np.uint8)
    area_resample(image, origin, scale, out, backend="numpy")
    return out


class TestPixels:
    @settings(max_examples=60, deadline=None)
    @given(
        tile=st.integers(20, 130),
        native=st.tuples(st.integers(16, 140), st.integers(16, 140)),
        batch=st.integers(1, 20),
        threads=st.integers(1, 3),
    )
    def test_stitched_tiles_are_the_image(
        self, array_slide, image, tile, native, batch, threads
    ) -> None:
        slide = array_slide(image, tile=native)
        grid = TileGrid.over(slide, tile=tile, mpp=0.25)
        canvas = np.full((220 + 2 * tile, 300 + 2 * tile, 3), 255, np.uint8)
        for part in TileStream(slide, grid, batch=batch, threads=threads):
            for pixels, (x, y, w, h) in zip(part.pixels, part.boxes.tolist(), strict=True):
                canvas[y : y + h, x : x + w] = pixels
        np.testing.assert_array_equal(canvas[:220, :300], image)
        assert (canvas[220:] == 255).all()
        assert (canvas[:, 300:] == 255).all()
        assert set(slide.decoded.values()) == {1}
        assert len(slide.decoded) == np.prod(slide.levels[0].grid)

    @settings(max_examples=60, deadline=None)
    @given(
        x=st.floats(-60, 320),
        y=st.floats(-60, 240),
        sx=st.one_of(st.floats(0.3, 6), st.sampled_from([0.989, 1.0, 1.002, 2.0])),
        native=st.tuples(st.integers(16, 140), st.integers(16, 140)),
        size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    )
    def test_windows_are_the_area_mean_of_level_0(
        self, array_slide, image, x, y, sx, native, size
    ) -> None:
        slide = array_slide(image, tile=native)
        found = read_window(slide, (x, y), size, (sx, 1.1 * sx)).astype(int)
        expected = defined(image, (x, y), size, (sx, 1.1 * sx))
        # a lattice within 1/100 px of the pixels is taken to lie on them, which moves a step of
        # the address by at most 255 / 100
        assert np.abs(found - expected).max() <= 3
        assert np.mean(np.abs(found - expected) > 1) < 0.02

    def test_exact_mpp(self, array_slide, image) -> None:
        slide = array_slide(image, mpp=(0.2527, 0.2527))
        for mpp in (0.2527, 0.4, 0.5, 1.0, 1.7):
            grid = TileGrid.over(slide, tile=40, mpp=mpp)
            for part in TileStream(slide, grid, batch=7, threads=1):
                for pixels, box in zip(part.pixels, part.boxes.tolist(), strict=True):
                    expected = defined(image, box[:2], (40, 40), grid.scale)
                    assert np.abs(pixels.astype(int) - expected).max() <= 1

    def test_what_a_tile_holds_beyond_its_level_is_never_seen(self, array_slide) -> None:
        black = np.zeros((101, 103, 3), np.uint8)
        slide = array_slide(black, tile=(64, 64), reductions=2)
        for scale in (0.9, 1.0, 1.5, 2.0, 4.0):
            size = int(np.ceil(130 / scale))
            found = read_window(slide, (0, 0), (size, size), (scale, scale))
            whole = int(np.floor(96 / scale))  # 96: the last px that every reduction keeps
            assert (found[:whole, :whole] == 0).all()
            beyond = int(np.ceil(103 / scale))
            assert (found[:, beyond:] == 255).all()
            assert (found[beyond:] == 255).all()

    def test_reduced_decoding_gives_the_means(self, array_slide, image) -> None:
        slide = array_slide(image, tile=(64, 64), reductions=3)
        assert source_for(slide, (4.0, 4.0)).reduction == 2
        found = read_window(slide, (0, 0), (70, 50), (4.0, 4.0))
        np.testing.assert_array_equal(found, defined(image, (0, 0), (70, 50), (4.0, 4.0)))

    def test_left_out_tiles_are_white(self, array_slide, image) -> None:
        slide = array_slide(image, tile=(64, 64))
        slide.left_out = {(0, 1, 0)}
        expected = image.copy()
        expected[:64, 64:128] = 255
        for origin, scale in (((0, 0), (1.0, 1.0)), ((3.3, 1.7), (1.9, 1.9))):
            found = read_window(slide, origin, (100, 90), scale).astype(int)
            assert np.abs(found - defined(expected, origin, (100, 90), scale)).max() <= 1

    def test_a_window_wholly_outside_is_white_and_free(self, array_slide, image) -> None:
        slide = array_slide(image)
        origins = np.array([[-500.0, -500.0], [900.0, 0.0], [0.0, 900.0]])
        found = streamed(slide, [Windows(origins, (32, 32), (1.0, 1.0))])
        assert (found[0] == 255).all()
        assert not slide.decoded


class TestSource:
    def test_a_scanners_habit_does_not_cost_four_times_the_pixels(self, array_slide, image) -> None:
        slide = array_slide(image, downsamples=(2,), mpp=(0.2527, 0.2527))
        assert source_for(slide, (0.5 / 0.2527, 0.5 / 0.2527)).level == 1
        assert source_for(slide, (1.9, 1.9)).level == 0

    def test_the_coarser_axis_decides(self, array_slide, image) -> None:
        slide = array_slide(image, downsamples=(2, 4))
        assert source_for(slide, (4.0, 2.0)).level == 1

    def test_finer_than_level_0_is_level_0(self, array_slide, image) -> None:
        assert source_for(array_slide(image, downsamples=(2,)), (0.5, 0.5)).level == 0

    def test_a_level_is_cheaper_than_a_reduction(self, array_slide, image) -> None:
        slide = array_slide(image, downsamples=(4,), reductions=3)
        source = source_for(slide, (8.0, 8.0))
        assert (source.level, source.reduction, source.downsample) == (1, 1, (8.0, 8.0))


class TestOnePass:
    @settings(max_examples=40, deadline=None)
    @given(
        threads=st.integers(1, 4),
        sizes=st.tuples(st.integers(1, 40), st.integers(1, 9)),
        native=st.integers(16, 140),
    )
    def test_neither_threads_nor_batches_change_anything(
        self, array_slide, image, threads, sizes, native
    ) -> None:
        slide = array_slide(image, tile=(native, native), downsamples=(2,))
        fine, coarse = two_requests(slide)
        reference = streamed(slide, [fine, coarse], batch=1, threads=1)
        slide.decoded.clear()
        found = streamed(slide, [fine, coarse], batch=sizes, threads=threads)
        assert set(slide.decoded.values()) == {1}
        for request, pixels in reference.items():
            np.testing.assert_array_equal(found[request], pixels)

    def test_how_requests_interleave_does_not_depend_on_threads(self, array_slide, image) -> None:
        slide = array_slide(image)
        orders = {
            tuple(
                (b.request, *b.index.tolist())
                for b in stream_windows(slide, two_requests(slide), batch=[5, 2], threads=threads)
            )
            for threads in (1, 2, 4)
        }
        assert len(orders) == 1

    def test_batches_are_full_but_the_last(self, array_slide, image) -> None:
        slide = array_slide(image)
        grid = TileGrid.over(slide, tile=50, mpp=0.25)
        assert len(grid) == 30
        stream = TileStream(slide, grid, batch=8, threads=2)
        assert len(stream) == 4
        assert [len(b.index) for b in stream] == [8, 8, 8, 6]

    def test_only_touched_tiles_are_decoded(self, array_slide, image) -> None:
        slide = array_slide(image, tile=(50, 50))
        grid = TileGrid.over(slide, tile=100, mpp=0.25)
        stream = TileStream(slide, grid, indices=np.array([1, 4]), threads=2)
        (batch,) = list(stream)
        np.testing.assert_array_equal(batch.index, [1, 4])
        np.testing.assert_array_equal(batch.pixels[0], image[:100, 100:200])
        np.testing.assert_array_equal(batch.pixels[1], image[100:200, 100:200])
        assert set(slide.decoded) == {(0, c, r) for c in (2, 3) for r in (0, 1, 2, 3)}
        assert set(slide.decoded.values()) == {1}

    def test_resuming_gives_the_rest(self, array_slide, image) -> None:
        slide = array_slide(image)
        grid = TileGrid.over(slide, tile=40, mpp=0.4, overlap=10)
        whole = np.concatenate([b.pixels for b in TileStream(slide, grid, batch=9)])
        for done in (1, 17, len(grid) - 1):
            indices = np.arange(done, len(grid))
            rest = [b.pixels for b in TileStream(slide, grid, indices=indices, batch=4, threads=1)]
            np.testing.assert_array_equal(np.concatenate(rest), whole[done:])

    @pytest.mark.parametrize("threads", [1, 2])
    def test_memory_holds_a_band_not_the_slide(self, array_slide, address_pixels, threads) -> None:
        slide = array_slide(address_pixels(320, 6400), tile=(64, 64))
        decode, alive, most = slide.decode_tile, weakref.WeakSet(), 0

        class Watched(np.ndarray):
            __hash__ = object.__hash__

        def watched(*place):
            pixels = decode(*place).view(Watched)
            alive.add(pixels)
            return pixels

        slide.decode_tile = watched
        grid = TileGrid.over(slide, tile=80, mpp=0.25, overlap=16)
        for _ in TileStream(slide, grid, batch=5, threads=threads):
            most = max(most, len(alive))
        # 5 columns; a row of windows spans 2 rows of tiles, the next row's are decoded ahead
        assert most <= 5 * 4
        assert len(slide.decoded) == 500

    def test_a_slow_consumer_holds_the_decoders_back(self, array_slide, address_pixels) -> None:
        slide = array_slide(address_pixels(64, 6400), tile=(64, 64))
        grid = TileGrid.over(slide, tile=64, mpp=0.25)
        stream = iter(TileStream(slide, grid, batch=1, threads=2))
        next(stream)
        time.sleep(0.3)
        assert len(slide.decoded) <= 8
        stream.close()  # type: ignore[attr-defined]

    def test_counters(self, array_slide, image) -> None:
        slide = array_slide(image, tile=(64, 64))
        slide.left_out = {(0, 0, 0)}
        counters = StreamCounters()
        streamed(slide, two_requests(slide), counters=counters, threads=2)
        assert counters.native_tiles == len(slide.decoded) == np.prod(slide.levels[0].grid)
        assert counters.left_out == 1
        assert counters.windows == sum(map(len, two_requests(slide)))
        assert counters.decode_seconds > 0
        assert counters.assemble_seconds > 0

    def test_a_batch_is_the_consumers_to_keep(self, array_slide, image) -> None:
        slide = array_slide(image)
        grid = TileGrid.over(slide, tile=50, mpp=0.25)
        kept = [(b, b.pixels.copy()) for b in TileStream(slide, grid, batch=3, threads=2)]
        view = kept[0][0].pixels[1:2, :5]
        for batch, copy in kept:
            np.testing.assert_array_equal(batch.pixels, copy)
        expected = view.copy()
        kept.clear()
        for _ in TileStream(slide, grid, batch=3, threads=1):
            np.testing.assert_array_equal(view, expected)


class TestTrouble:
    @pytest.mark.parametrize("threads", [1, 3])
    def test_a_bad_tile_raises_with_its_place(self, array_slide, image, threads) -> None:
        slide = array_slide(image)
        slide.broken = {(0, 2, 1)}
        grid = TileGrid.over(slide, tile=50, mpp=0.25)
        with pytest.raises(UnreadableTile, match="level 0, column 2, row 1") as caught:
            list(TileStream(slide, grid, batch=4, threads=threads))
        assert (caught.value.column, caught.value.row) == (2, 1)

    @pytest.mark.parametrize("threads", [1, 3])
    def test_or_is_white_and_recorded(self, array_slide, image, threads) -> None:
        slide = array_slide(image, tile=(64, 64))
        slide.broken = {(0, 2, 1)}
        grid = TileGrid.over(slide, tile=50, mpp=0.25)
        stream = TileStream(slide, grid, batch=4, threads=threads, on_bad_tile="blank")
        pixels = np.concatenate([b.pixels for b in stream])
        (bad,) = stream.bad_tiles
        assert (bad.level, bad.column, bad.row) == (0, 2, 1)
        expected = image.copy()
        expected[64:128, 128:192] = 255
        for found, (x, y, _, _) in zip(pixels, grid.boxes.tolist(), strict=True):
            inside = expected[y : y + 50, x : x + 50]
            np.testing.assert_array_equal(found[: inside.shape[0], : inside.shape[1]], inside)

    def test_every_window_over_a_bad_tile_says_so(self, array_slide, image) -> None:
        slide = array_slide(image, tile=(64, 64))
        slide.broken = {(0, 2, 1)}
        grid = TileGrid.over(slide, tile=50, mpp=0.25)
        damaged = np.concatenate(
            [
                b.damaged
                for b in stream_windows(slide, [grid.windows()], batch=4, on_bad_tile="blank")
            ]
        )
        x, y = grid.boxes[:, 0], grid.boxes[:, 1]
        touching = (x < 192) & (x + 50 > 128) & (y < 128) & (y + 50 > 64)
        np.testing.assert_array_equal(damaged, touching)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_stopping_early_leaves_no_thread(self, array_slide, image, threads) -> None:
        slide = array_slide(image)
        grid = TileGrid.over(slide, tile=20, mpp=0.25)
        for _ in TileStream(slide, grid, batch=2, threads=threads):
            break

    def test_a_consumer_that_raises_leaves_no_thread(self, array_slide, image) -> None:
        slide = array_slide(image)
        grid = TileGrid.over(slide, tile=20, mpp=0.25)

        def consume() -> None:
            for _ in TileStream(slide, grid, batch=2, threads=2):
                raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            consume()

    def test_any_exception_of_a_reader_arrives(self, array_slide, image) -> None:
        slide = array_slide(image)

        def fails(*_):
            raise MemoryError("no room")

        slide.decode_tile = fails
        with pytest.raises(MemoryError, match="no room"):
            list(TileStream(slide, TileGrid.over(slide, mpp=0.25), threads=2))

    def test_wrong_arguments_are_named(self, array_slide, image) -> None:
        slide = array_slide(image)
        windows = two_requests(slide)[0]
        with pytest.raises(ValueError, match="batch"):
            list(stream_windows(slide, [windows], batch=0))
        with pytest.raises(ValueError, match="sorted by y"):
            Windows(np.array([[0.0, 5.0], [0.0, 1.0]]), (4, 4), (1.0, 1.0))
        with pytest.raises(ValueError, match="ascend"):
            TileStream(slide, TileGrid.over(slide, mpp=0.25), indices=np.array([2, 1]))

    def test_nothing_asked_is_nothing_read(self, array_slide, image) -> None:
        slide = array_slide(image)
        empty = Windows(np.empty((0, 2)), (8, 8), (1.0, 1.0))
        assert list(stream_windows(slide, [])) == []
        assert list(stream_windows(slide, [empty, empty], threads=2)) == []
        assert not slide.decoded


class TestRegions:
    def test_region_at_exact_mpp(self, array_slide, image) -> None:
        slide = array_slide(image, mpp=(0.265, 0.265))
        found = read_region(slide, Box(10, 20, 200, 100), 0.5)
        assert found.shape == (53, 106, 3)
        expected = defined(image, (10, 20), (106, 53), (0.5 / 0.265,) * 2)
        assert np.abs(found.astype(int) - expected).max() <= 1

    def test_whole_slide_in_bands(self, array_slide, address_pixels) -> None:
        image = address_pixels(333, 777)
        slide = array_slide(image, mpp=(0.25, 0.25))
        found = read_at(slide, 0.4)
        assert found.shape == (int(np.ceil(777 / 1.6)), int(np.ceil(333 / 1.6)), 3)
        expected = defined(image, (0, 0), found.shape[1::-1], (1.6, 1.6))
        assert np.abs(found.astype(int) - expected).max() <= 1

    def test_thumbnail(self, array_slide, image) -> None:
        slide = array_slide(image)
        assert thumbnail(slide, 100).shape == (73, 100, 3)
        np.testing.assert_array_equal(thumbnail(slide), image)

    def test_without_a_pixel_size_there_is_no_mpp(self, array_slide, image) -> None:
        slide = array_slide(image, mpp=None)
        with pytest.raises(MissingMpp):
            read_region(slide, Box(0, 0, 10, 10), 0.5)
        assert thumbnail(slide, 50).shape == (37, 50, 3)


class TestFiles:
    @pytest.mark.parametrize("name", ["address_slide", "crooked_slide"])
    def test_level_0_comes_back(self, request, address_pixels, name: str) -> None:
        with open_slide(request.getfixturevalue(name)) as slide:
            image = address_pixels(*slide.size)
            canvas = np.zeros_like(image)
            grid = TileGrid.over(slide, tile=100, mpp=slide.mpp[0])
            for part in TileStream(slide, grid, threads=2):
                for pixels, (x, y, w, h) in zip(part.pixels, part.boxes.tolist(), strict=True):
                    inside = canvas[y : y + h, x : x + w]
                    inside[...] = pixels[: inside.shape[0], : inside.shape[1]]
            np.testing.assert_array_equal(canvas, image)

    @pytest.mark.parametrize("name", ["address_slide", "crooked_slide"])
    def test_other_sizes_are_means_of_level_0(self, request, address_pixels, name: str) -> None:
        with open_slide(request.getfixturevalue(name)) as slide:
            image = address_pixels(*slide.size)
            for mpp in (0.3, 0.5, 1.0, 2.1):
                scale = (mpp / slide.mpp[0], mpp / slide.mpp[1])
                found = read_window(slide, (200.0, 128.0), (60, 50), scale).astype(int)
                expected = defined(image, (200, 128), (60, 50), scale)
                # levels are rounded once themselves
                assert np.abs(found - expected).max() <= 2

    def test_jpeg_matches_openslide(self, jpeg_slide: Path, small_slide: Path) -> None:
        for path in (jpeg_slide, small_slide):
            assert_like_openslide(path)

    @pytest.mark.real
    def test_real_slides_match_openslide(self, real_slides: list[Path]) -> None:
        for path in real_slides:
            assert_like_openslide(path)


def assert_like_openslide(path: Path) -> None:
    """Pixels at scale 1 are OpenSlide's; decoded at half size, close to the means of level 0."""
    import openslide

    random = np.random.default_rng(3)
    with open_slide(path, require_mpp=False) as slide, openslide.OpenSlide(path) as peer:
        assert slide.size == peer.dimensions
        # the two convert Aperio's YCbCr JPEG 2000 to RGB with different rounding
        apart = 2 if slide.codec(0) == "jpeg2000" else 0
        for _ in range(6):
            x, y = (int(random.integers(0, side - 512)) // 2 * 2 for side in slide.size)
            theirs = np.asarray(peer.read_region((x, y), 0, (512, 512)).convert("RGB"))
            ours = read_window(slide, (x, y), (512, 512), (1.0, 1.0)).astype(int)
            assert np.abs(ours - theirs).max() <= apart
            if source_for(slide, (2.0, 2.0)).level == 0:  # else the vendor made the level
                half = read_window(slide, (x, y), (256, 256), (2.0, 2.0))
                error = half.astype(float) - defined(theirs, (0, 0), (256, 256), (2, 2))
                # 46 dB and more on real slides, 39 where two JPEGs and 4:2:0 colour add up
                assert 10 * np.log10(255**2 / max(np.mean(error**2), 1e-9)) > 38


def two_requests(slide) -> tuple[Windows, Windows]:
    """Overlapping tiles at one scale, larger ones at another."""
    fine = TileGrid.over(slide, tile=40, mpp=0.26, overlap=8).windows()
    coarse = TileGrid.over(slide, tile=70, mpp=0.5).windows()
    return fine, coarse


LEFT_OPEN = """
import sys
from coverslip import TileGrid, TileStream, open_slide
slide = open_slide(sys.argv[1])
stream = iter(TileStream(slide, TileGrid.over(slide, tile=64, mpp=0.5), batch=1))
next(stream)
sys.left_open = [stream]
sys.left_open.append(sys.left_open)
"""


def test_a_stream_left_open_does_not_keep_python_from_ending(small_slide: Path) -> None:
    """The interpreter closes it when daemon threads no longer run: nobody may wait for one."""
    command = [sys.executable, "-c", LEFT_OPEN, str(small_slide)]
    subprocess.run(command, check=True, timeout=60)
