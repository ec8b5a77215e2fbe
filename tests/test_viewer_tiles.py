"""Slides as Deep Zoom tiles: geometry, pixels, the slide's own JPEGs, caching, and work in turn."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openslide import OpenSlide
from openslide.deepzoom import DeepZoomGenerator
from pyramids import address_pixels, write_pyramid
from simplejpeg import decode_jpeg
from viewer_stores import viewing

from coverslip.kernels.stain_profile import StainNormalizer, fit_stains, reference_profile
from coverslip.tiling.reading import read_window
from coverslip.tiling.stain_sample import stain_sample
from coverslip.tiling.tissue import find_tissue
from coverslip.viewer import shelf as shelving
from coverslip.viewer import slide_tiles
from coverslip.viewer.byte_cache import ByteCache
from coverslip.viewer.deep_zoom import TILE, DeepZoom
from coverslip.viewer.shelf import Shelf, Stores
from coverslip.viewer.slide_tiles import slide_overview, slide_tile, wants_overview
from coverslip.viewer.work import AskerLeft, Prepared, TooBusy, Work
from coverslip.wsi.opening import open_slide
from coverslip.wsi.tiff import TiffSlide

SIZES = st.tuples(st.integers(1, 300_000), st.integers(1, 300_000))


@given(SIZES)
def test_the_pyramid_is_that_of_openslides_deepzoom(size: tuple[int, int]) -> None:
    bare: Any = SimpleNamespace(
        dimensions=size,
        level_dimensions=(size,),
        level_downsamples=(1.0,),
        properties={},
        get_best_level_for_downsample=lambda downsample: 0,
    )
    theirs = DeepZoomGenerator(bare, tile_size=TILE, overlap=0)
    ours = DeepZoom(size)
    assert ours.levels == theirs.level_count
    levels = range(ours.levels)
    assert tuple(ours.level_size(level) for level in levels) == theirs.level_dimensions
    assert tuple(ours.grid(level) for level in levels) == theirs.level_tiles
    for level in levels:
        columns, rows = ours.grid(level)
        last = theirs.get_tile_dimensions(level, (columns - 1, rows - 1))
        assert ours.tile_size(level, columns - 1, rows - 1) == last
        assert ours.holds(level, columns - 1, rows - 1)
        assert not ours.holds(level, columns, 0)
        assert not ours.holds(level, 0, rows)
    assert not ours.holds(ours.levels, 0, 0)


def test_native_jpeg_tiles_are_passed_through_byte_for_byte(jpeg_slide: Path) -> None:
    with open_slide(jpeg_slide) as slide, viewing([jpeg_slide]) as client:
        assert isinstance(slide, TiffSlide)
        last = DeepZoom(slide.size).last
        for level, native in ((last, 0), (last - 2, 1)):
            columns, rows = (length // TILE for length in slide.levels[native].size)
            for column, row in ((0, 0), (columns - 1, rows - 1)):
                answer = client.get(f"/api/slides/jpeg/tiles/original/{level}/{column}_{row}.jpg")
                assert answer.headers["content-type"] == "image/jpeg"
                assert answer.content == slide.compressed_tile(native, column, row)


def test_other_tiles_are_the_pixels_of_the_reader(jpeg_slide: Path, small_slide: Path) -> None:
    for path in (jpeg_slide, small_slide):
        with open_slide(path) as slide, viewing([path]) as client:
            zoom = DeepZoom(slide.size)
            for level in (zoom.last, zoom.last - 1, zoom.last - 3, 0):
                columns, rows = zoom.grid(level)
                place = (level, columns - 1, rows - 1)  # the edge: never a whole native tile
                answer = client.get(_url(slide.name, *place))
                found = decode_jpeg(answer.content)
                size, scale = zoom.tile_size(*place), float(zoom.scale(level))
                assert found.shape == (size[1], size[0], 3)
                wanted = read_window(slide, zoom.corner(*place), size, (scale, scale))
                # the colours of one slide are not subsampled, those of tiles made here are
                assert np.abs(found.astype(int) - wanted).mean() < 6


def _url(name: str, level: int, column: int, row: int, variant: str = "original") -> str:
    return f"/api/slides/{name}/tiles/{variant}/{level}/{column}_{row}.jpg"


def test_tiles_lie_where_they_say(tmp_path: Path) -> None:
    path = tmp_path / "flat.tif"
    colours = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    image = colours.repeat(TILE, axis=0).repeat(TILE, axis=1)
    write_pyramid(path, image)
    with viewing([path]) as client:
        last = DeepZoom((image.shape[1], image.shape[0])).last
        for row in range(5):
            for column in range(7):
                found = decode_jpeg(client.get(_url("flat", last, column, row)).content)
                assert np.abs(found.reshape(-1, 3).mean(axis=0) - colours[row, column]).max() < 4


def test_a_tile_that_is_not_there(small_slide: Path) -> None:
    with viewing([small_slide]) as client:
        for place in ("13/0_0", "12/9_0", "12/0_12", "0/1_0", "-1/0_0", "12/x_0", "1e1/0_0",
                      "999999999999/0_0", "12/0_0.5"):  # fmt: skip
            answer = client.get(f"/api/slides/CMU-1-Small-Region/tiles/original/{place}.jpg")
            assert answer.status_code == 404, place
            assert "error" in answer.json()
        assert client.get(_url("CMU-1-Small-Region", 5, 0, 0, "sepia")).status_code == 404
        assert client.get(_url("another", 5, 0, 0)).status_code == 404


def test_browsers_keep_tiles(small_slide: Path) -> None:
    url = _url("CMU-1-Small-Region", 11, 0, 0)
    with viewing([small_slide]) as client:
        first = client.get(url)
        assert "max-age" in first.headers["cache-control"]
        again = client.get(url, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get(url, headers={"if-none-match": '"other"'}).content == first.content
    with viewing([small_slide]) as client:  # a viewer that has not made the tile does not now
        again = client.get(url, headers={"if-none-match": first.headers["etag"]})
        assert again.status_code == 304


def test_another_file_has_other_tags(tmp_path: Path, small_slide: Path) -> None:
    path = tmp_path / "case.svs"
    tags = set()
    for _ in range(2):
        shutil.copy(small_slide, path)
        with viewing([path]) as client:
            tags.add(client.get(_url("case", 8, 0, 0)).headers["etag"])
        path.unlink()
    assert len(tags) == 2


def test_damage_is_white_and_told(spoiled: Path) -> None:
    with viewing([spoiled]) as client:
        column, row = 4, 5
        answer = client.get(_url("spoiled", 12, column, row))
        assert "row 6" in answer.headers["x-coverslip-damage"]
        # the native tile begins at (960, 1440), 64 px left of this one and 160 px below its top
        assert decode_jpeg(answer.content)[168:, :168].min() > 240
        assert "x-coverslip-damage" not in client.get(_url("spoiled", 12, 0, 0)).headers


def test_a_damaged_native_jpeg_is_not_passed_through(tmp_path: Path, jpeg_slide: Path) -> None:
    path = tmp_path / "bad.tif"
    shutil.copy(jpeg_slide, path)
    with open_slide(path) as slide:
        assert isinstance(slide, TiffSlide)
        table = slide._tables[0]
        offset, count = int(table.offsets[1]), int(table.counts[1])
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(count))
    with viewing([path]) as client:
        answer = client.get(_url("bad", 11, 1, 0))
        assert answer.headers["x-coverslip-damage"]
        assert decode_jpeg(answer.content).min() == 255


def test_a_slide_without_coarse_levels_is_decoded_whole_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "single.tif"
    image = address_pixels(2300, 1700)
    image[...] = np.linspace(0, 255, 2300).astype(np.uint8)[None, :, None]
    write_pyramid(path, image)
    monkeypatch.setattr(slide_tiles, "OVERVIEW_PX", 600)
    monkeypatch.setattr(slide_tiles, "MOST_NATIVE", 4)
    shelf = Shelf([(str(path), "single")], Stores(None))
    with shelf.lent("single") as opened:
        zoom = opened.zoom
        wants = [wants_overview(opened.slide, zoom, level) for level in range(zoom.levels)]
        assert wants == [level <= zoom.last - 2 for level in range(zoom.levels)]
        overview = slide_overview(opened)
        assert max(overview.image.shape) <= 600
        for level in (zoom.last - 2, zoom.last - 3, 4):
            columns, rows = zoom.grid(level)
            place = (level, columns - 1, rows - 1)
            whole = decode_jpeg(slide_tile(opened, *place).jpeg)
            quick = decode_jpeg(slide_tile(opened, *place, overview=overview).jpeg)
            # but for the last column and row, of which a part lies beyond the slide
            difference = np.abs(whole.astype(int) - quick)[:-1, :-1]
            assert difference.size == 0 or difference.max() < 6
    with viewing([path]) as client:
        assert client.get(_url("single", 9, 0, 0)).status_code == 200
    shelf.close()


def test_variants(small_slide: Path, address_slide: Path) -> None:
    with open_slide(small_slide) as slide, viewing([small_slide]) as client:
        profile = fit_stains(stain_sample(slide, find_tissue(slide)))
        original = read_window(slide, (0, 0), (TILE, TILE), (4.0, 4.0))
        normalised = decode_jpeg(client.get(_url(slide.name, 10, 0, 0, "normalised")).content)
        wanted = StainNormalizer(profile, reference_profile())(original)
        assert np.abs(normalised.astype(int) - wanted).mean() < 3
        assert np.abs(normalised.astype(int) - original).mean() > 6
        blue = decode_jpeg(client.get(_url(slide.name, 10, 0, 0, "haematoxylin")).content)
        pink = decode_jpeg(client.get(_url(slide.name, 10, 0, 0, "eosin")).content)
        dark = original.min(axis=2) < 180
        # haematoxylin takes red, eosin takes green
        assert blue[dark].mean(axis=0)[0] < blue[dark].mean(axis=0)[2]
        assert pink[dark].mean(axis=0)[1] < pink[dark].mean(axis=0)[0]
    with viewing([address_slide]) as client:  # no tissue: nothing to fit
        answer = client.get(_url("address", 9, 0, 0, "normalised"))
        assert answer.status_code == 400
        assert "stains cannot be told apart" in answer.json()["error"]


def test_a_slide_without_pixel_size_is_shown_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "bare.tif"
    write_pyramid(path, address_pixels(300, 200), mpp=None)
    with viewing([path]) as client:
        facts = client.get("/api/slides/bare").json()
        assert (facts["mpp"], facts["variants"]) == (None, ["original"])
        assert client.get(_url("bare", 9, 0, 0)).status_code == 200
        assert client.get(_url("bare", 9, 0, 0, "eosin")).status_code == 409


def test_the_list(tmp_path: Path, small_slide: Path) -> None:
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"II*\0 nothing")
    with viewing([small_slide, broken]) as client:
        found = client.get("/api/slides").json()
        by_id = {slide["id"]: slide for slide in found["slides"]}
        fine, bad = by_id["CMU-1-Small-Region"], by_id["broken"]
        assert (fine["size"], fine["status"], fine["problem"]) == ([2220, 2967], "not run", None)
        assert (bad["size"], bad["status"]) == (None, "unreadable")
        assert bad["problem"].startswith("broken.svs: ")
        assert str(tmp_path) not in bad["problem"]
        thumbnail = client.get(fine["thumbnail"])
        assert decode_jpeg(thumbnail.content).shape == (512, 383, 3)
        answer = client.get(_url("broken", 3, 0, 0))
        assert answer.status_code == 409
        assert str(tmp_path) not in answer.text


def test_slides_are_closed_when_others_are_opened_but_not_under_their_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(TiffSlide, "close", lambda self: closed.append(self.name))
    paths = []
    for name in "abc":
        paths.append(tmp_path / f"{name}.tif")
        write_pyramid(paths[-1], address_pixels(64, 64))
    shelf = Shelf([(str(p), p.stem) for p in paths], Stores(None), most=1)
    with shelf.lent("a"):
        with shelf.lent("b"):
            assert closed == []
        with shelf.lent("c"):
            assert closed == ["b"]
    assert closed == ["b", "a"]
    shelf.close()
    assert closed == ["b", "a", "c"]
    assert shelving.file_version(str(paths[0])) != shelving.file_version(str(paths[1]))


# ---------------------------------------------------------------- work


class Asking:
    """A request that may go away."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    @property
    def receive(self) -> Callable[[], Awaitable[Any]]:
        async def receive() -> dict[str, str]:
            await self.gone.wait()
            return {"type": "http.disconnect"}

        return receive


def test_work_is_bounded_and_forgets_who_left() -> None:
    async def scene() -> None:
        work, gate, ran = Work(threads=1, waiting=2), threading.Event(), []

        def task(name: str) -> str:
            gate.wait(5)
            ran.append(name)
            return name

        first = asyncio.create_task(work(Asking(), task, "first"))
        await asyncio.sleep(0.01)
        leaver = Asking()
        leaving = asyncio.create_task(work(leaver, task, "left"))
        third = asyncio.create_task(work(Asking(), task, "third"))
        await asyncio.sleep(0.01)
        assert work.queued == 2
        with pytest.raises(TooBusy):
            await work(Asking(), task, "too many")
        leaver.gone.set()
        with pytest.raises(AskerLeft):
            await leaving
        assert work.queued == 1
        gate.set()
        assert await first == "first"
        assert await third == "third"
        assert ran == ["first", "third"]
        # a cancelled wait gives its place back as well
        gate.clear()
        busy = asyncio.create_task(work(Asking(), task, "busy"))
        await asyncio.sleep(0.01)
        dropped = asyncio.create_task(work(Asking(), task, "dropped"))
        await asyncio.sleep(0.01)
        dropped.cancel()
        busy.cancel()
        await asyncio.gather(dropped, busy, return_exceptions=True)
        assert work.queued == 0
        gate.set()
        assert await work(Asking(), task, "last") == "last"
        assert "dropped" not in ran
        work.close()

    asyncio.run(scene())


def test_what_takes_long_is_made_once() -> None:
    class Thing:
        nbytes = 60

    async def scene() -> None:
        work, made = Work(threads=4, waiting=10), []

        def make() -> Thing:
            time.sleep(0.02)
            made.append(1)
            return Thing()

        prepared = Prepared(work, limit=100)
        found = await asyncio.gather(*(prepared.get("a", make) for _ in range(5)))
        assert len(made) == 1
        assert len({id(each) for each in found}) == 1
        await prepared.get("b", make)  # there is room for one of the two
        await prepared.get("a", make)
        assert len(made) == 3

        def fail() -> Thing:
            raise ValueError("no")

        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                await prepared.get("c", fail)
        work.close()

    asyncio.run(scene())


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), max_size=40))
def test_the_cache_never_holds_more_than_its_limit(puts: list[tuple[int, int]]) -> None:
    cache: ByteCache[int] = ByteCache(100)
    for key, size in puts:
        cache.put(key, size, size)
        assert cache.size <= 100
        assert cache.get(key) == size
    assert cache.size == sum(v for v in (cache.get(key) for key in range(10)) if v is not None)


def test_too_many_requests_are_told_to_come_again(small_slide: Path) -> None:
    with viewing([small_slide]) as client:
        work = client.app.state.viewer.work  # type: ignore[attr-defined]
        work._free, work._most = 0, 0
        answer = client.get(_url("CMU-1-Small-Region", 5, 0, 0))
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        work._free = 4


@pytest.mark.real
def test_a_real_slides_tiles_are_mostly_its_own(real_data: Path) -> None:
    path = real_data / "slides" / "crohn-biopsy-20x.svs"
    if not path.exists():
        pytest.skip(f"{path.name} is absent")
    with open_slide(path) as slide, OpenSlide(path) as theirs, viewing([path]) as client:
        assert isinstance(slide, TiffSlide)
        last = DeepZoom(slide.size).last
        answer = client.get(_url(slide.name, last, 40, 30))
        assert answer.content == slide.compressed_tile(0, 40, 30)
        generator = DeepZoomGenerator(theirs, tile_size=TILE, overlap=0)
        for level in (last - 1, last - 3, last - 5):
            column, row = (length // 2 for length in DeepZoom(slide.size).grid(level))
            found = decode_jpeg(client.get(_url(slide.name, level, column, row)).content)
            wanted = np.asarray(generator.get_tile(level, (column, row)))
            height = len(wanted)  # theirs scale by a thumbnail, which may lose a row
            assert np.abs(found[:height].astype(int) - wanted).mean() < 6
