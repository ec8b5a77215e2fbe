"""The slide as an OME-NGFF image: read back through zarr, equal to the slide, tile for tile."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from coverslip.errors import UnreadableTile
from coverslip.tiling import jpeg_codec, pyramid
from coverslip.tiling.pyramid import HoldsJpeg, image_parameters, write_image
from coverslip.tiling.store import SlideStore
from coverslip.wsi import ome_zarr
from coverslip.wsi.opening import open_slide
from coverslip.wsi.slide import RGB, Slide

assert jpeg_codec.NAME  # importing it registers the codec


def kept(slide: Slide, folder: Path, **options: Any) -> SlideStore:
    store = SlideStore.open_or_create(folder / "a.zarr", {"fingerprint": "aa"})
    with store.stage("image", image_parameters(**options)) as stage:
        write_image(slide, stage, **options)
    return store


def pixels(store: SlideStore, level: int) -> RGB:
    """[h, w, 3]."""
    return np.asarray(store.group("image")[str(level)][:]).transpose(1, 2, 0)


def decoded(slide: Slide, level: int) -> RGB:
    """A whole level from its native tiles; white where there is none."""
    (width, height), (w, h) = slide.levels[level].size, slide.levels[level].tile
    columns, rows = slide.levels[level].grid
    image = np.full((rows * h, columns * w, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            tile = slide.decode_tile(level, column, row)
            if tile is not None:
                image[row * h : (row + 1) * h, column * w : (column + 1) * w] = tile
    return image[:height, :width]


def payloads(shard: Path, count: int) -> list[bytes | None]:
    """The chunks of a shard file, read by the format's own words."""
    content = shard.read_bytes()
    index = np.frombuffer(content[-16 * count - 4 : -4], "<u8").reshape(count, 2).tolist()
    return [None if start == 2**64 - 1 else content[start : start + size] for start, size in index]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


class TestCarriedOver:
    def test_every_tile_byte_for_byte(self, jpeg_slide: Path, tmp_path: Path) -> None:
        with open_slide(jpeg_slide) as slide:
            assert isinstance(slide, HoldsJpeg)
            store = kept(slide, tmp_path)
            for level in range(len(slide.levels)):
                columns, rows = slide.levels[level].grid
                side = max(columns, rows)
                found = payloads(store.path / f"image/{level}/c/0/0/0", side * side)
                for row in range(rows):
                    for column in range(columns):
                        stream = slide.compressed_tile(level, column, row)
                        assert stream is not None
                        assert found[row * side + column] == stream
                assert sum(chunk is not None for chunk in found) == columns * rows

    def test_pixels_are_the_slides(self, jpeg_slide: Path, tmp_path: Path) -> None:
        with open_slide(jpeg_slide) as slide:
            store = kept(slide, tmp_path)
            for level in range(len(slide.levels)):
                np.testing.assert_array_equal(pixels(store, level), decoded(slide, level))

    def test_a_part_of_a_real_slide(self, small_slide: Path, tmp_path: Path) -> None:
        with open_slide(small_slide) as slide:
            store = kept(slide, tmp_path)
            part = np.asarray(store.group("image")["0"][:, 1900:2967, 2000:2220])
            whole = decoded(slide, 0)
            np.testing.assert_array_equal(part.transpose(1, 2, 0), whole[1900:, 2000:])

    def test_several_shards(
        self, small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pyramid, "SHARD_PX", 1000)
        with open_slide(small_slide) as slide:
            store = kept(slide, tmp_path)
            np.testing.assert_array_equal(pixels(store, 0), decoded(slide, 0))
        assert len(list((store.path / "image/0/c/0").glob("*/*"))) == 4 * 3


class TestWithoutLoss:
    def test_tiles_no_viewer_wants_are_cut_anew(self, crooked_slide: Path, tmp_path: Path) -> None:
        with open_slide(crooked_slide) as slide:
            store = kept(slide, tmp_path)
            for level in range(len(slide.levels)):
                np.testing.assert_array_equal(pixels(store, level), decoded(slide, level))
            assert store.group("image")["0"].chunks == (3, 256, 256)

    def test_portable_needs_nothing_of_ours(self, jpeg_slide: Path, tmp_path: Path) -> None:
        with open_slide(jpeg_slide) as slide:
            store = kept(slide, tmp_path, portable=True)
            np.testing.assert_array_equal(pixels(store, 0), decoded(slide, 0))
        assert b"coverslip.jpeg" not in (store.path / "image/0/zarr.json").read_bytes()

    @pytest.mark.parametrize("tile", [(700, 16), (64, 64), (300, 200), (2000, 1200)])
    def test_any_native_tile(self, array_slide: Any, tmp_path: Path, tile: Any) -> None:
        image = np.random.default_rng(0).integers(0, 250, (500, 700, 3)).astype(np.uint8)
        store = kept(array_slide(image, tile=tile), tmp_path)
        np.testing.assert_array_equal(pixels(store, 0), image)

    def test_background_takes_no_room(self, array_slide: Any, tmp_path: Path) -> None:
        image = np.zeros((600, 600, 3), np.uint8)
        slide = array_slide(image, tile=(256, 256))
        slide.left_out = {(0, c, r) for c in range(3) for r in range(3)} - {(0, 1, 1)}
        store = kept(slide, tmp_path)
        wanted = np.full_like(image, 255)
        wanted[256:512, 256:512] = 0
        np.testing.assert_array_equal(pixels(store, 0), wanted)
        found = payloads(store.path / "image/0/c/0/0/0", 9)
        assert [chunk is None for chunk in found] == [i != 4 for i in range(9)]


class TestAddedLevels:
    def test_halved_until_one_fits(
        self, array_slide: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pyramid, "COARSEST_PX", 200)
        image = np.random.default_rng(0).integers(0, 250, (501, 701, 3)).astype(np.uint8)
        store = kept(array_slide(image), tmp_path)
        levels = [pixels(store, level) for level in range(3)]
        assert [level.shape[:2] for level in levels] == [(501, 701), (251, 351), (126, 176)]
        for finer, coarser in pairwise(levels):
            odd = ((0, finer.shape[0] % 2), (0, finer.shape[1] % 2), (0, 0))
            padded = np.pad(finer, odd, mode="edge").astype(int)
            h, w = coarser.shape[:2]
            mean = (padded.reshape(h, 2, w, 2, 3).sum(axis=(1, 3)) + 2) // 4
            np.testing.assert_array_equal(coarser, mean)

    def test_of_carried_tiles(
        self, small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pyramid, "SHARD_PX", 500)
        with open_slide(small_slide) as slide:
            store = kept(slide, tmp_path)
            whole = decoded(slide, 0).astype(int)
        assert sorted(store.group("image").array_keys()) == ["0", "1"]
        mean = whole[:2966].reshape(1483, 2, 1110, 2, 3).sum(axis=(1, 3))
        np.testing.assert_array_equal(pixels(store, 1)[:1483], (mean + 2) // 4)


class TestDamage:
    def test_raised_or_left_white(self, spoiled: Path, tmp_path: Path) -> None:
        with open_slide(spoiled) as slide:
            with pytest.raises(UnreadableTile, match="column 4, row 6"):
                kept(slide, tmp_path)
            parameters = image_parameters(on_bad_tile="blank")
            store = SlideStore.open(tmp_path / "a.zarr")
            assert store.state("image") == "partial"
            with store.stage("image", parameters) as stage:
                (error,) = write_image(slide, stage, on_bad_tile="blank")
            assert (error.column, error.row) == (4, 6)
        image = pixels(store, 0)
        assert (image[6 * 240 : 7 * 240, 4 * 240 : 5 * 240] == 255).all()
        assert not (image == 255).all()

    def test_decoded_tiles_too(self, array_slide: Any, tmp_path: Path) -> None:
        slide = array_slide(np.zeros((300, 300, 3), np.uint8))
        slide.broken = {(0, 1, 1)}
        with pytest.raises(UnreadableTile):
            kept(slide, tmp_path / "1")
        assert pixels(kept(slide, tmp_path / "2", on_bad_tile="blank"), 0)[64:128, 64:128].all()


@pytest.mark.parametrize("after", [1, 5, 12])
def test_interrupted_and_resumed_is_the_same(
    small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(pyramid, "SHARD_PX", 1000)

    def interrupt(done: int, total: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    with open_slide(small_slide) as slide:
        whole = kept(slide, tmp_path / "whole")
        store = SlideStore.open_or_create(tmp_path / "cut.zarr", {"fingerprint": "aa"})
        with (
            pytest.raises(KeyboardInterrupt),
            store.stage("image", image_parameters()) as stage,
        ):
            write_image(slide, stage, observer=interrupt)
        again = SlideStore.open(store.path)
        assert again.state("image") == "partial"
        with again.stage("image", image_parameters()) as stage:
            assert stage.done_blocks == after
            write_image(slide, stage)
    assert tree(store.path) == tree(whole.path)


class TestMetadata:
    def test_axes_scales_and_channels(self, address_slide: Path, tmp_path: Path) -> None:
        with open_slide(address_slide) as slide:
            store = kept(slide, tmp_path)
        group = store.group("image")
        ome: Any = group.attrs["ome"]
        assert ome["version"] == "0.5"
        (multiscale,) = ome["multiscales"]
        assert multiscale["name"] == "address"
        assert [axis["name"] for axis in multiscale["axes"]] == ["c", "y", "x"]
        assert [axis.get("unit") for axis in multiscale["axes"]] == [None] + ["micrometer"] * 2
        scales = [d["coordinateTransformations"][0]["scale"] for d in multiscale["datasets"]]
        np.testing.assert_allclose(scales, [[1, 0.25, 0.25], [1, 0.5, 0.5], [1, 1, 1]])
        for dataset in multiscale["datasets"]:
            assert group[dataset["path"]].metadata.dimension_names == ("c", "y", "x")
        assert [c["color"] for c in ome["omero"]["channels"]] == ["FF0000", "00FF00", "0000FF"]

    def test_without_a_pixel_size_there_is_no_unit(self, array_slide: Any, tmp_path: Path) -> None:
        store = kept(array_slide(np.zeros((99, 99, 3), np.uint8), mpp=None), tmp_path)
        ome: Any = store.group("image").attrs["ome"]
        assert all("unit" not in axis for axis in ome["multiscales"][0]["axes"])

    def test_our_own_reader_opens_it(self, jpeg_slide: Path, tmp_path: Path) -> None:
        with open_slide(jpeg_slide) as slide:
            store = kept(slide, tmp_path)
            with ome_zarr.open(store.path / "image") as image:
                assert [level.size for level in image.levels] == [lv.size for lv in slide.levels]
                assert image.mpp == pytest.approx(slide.mpp)
                tile = image.decode_tile(0, 1, 2)
                np.testing.assert_array_equal(tile, slide.decode_tile(0, 1, 2))

    @pytest.mark.filterwarnings("ignore")
    def test_the_specifications_model_accepts_it(self, jpeg_slide: Path, tmp_path: Path) -> None:
        models = pytest.importorskip("ome_zarr_models.v05")
        with open_slide(jpeg_slide) as slide:
            store = kept(slide, tmp_path)
        image = models.Image.from_zarr(zarr.open_group(store.path / "image", mode="r"))
        assert len(image.ome_attributes.multiscales) == 1

    @pytest.mark.filterwarnings("ignore")
    def test_ome_zarr_py_reads_it(self, jpeg_slide: Path, tmp_path: Path) -> None:
        reader, io = pytest.importorskip("ome_zarr.reader"), pytest.importorskip("ome_zarr.io")
        with open_slide(jpeg_slide) as slide:
            store = kept(slide, tmp_path, portable=True)
            location = io.parse_url(str(store.path / "image"), mode="r")
            (node,) = list(reader.Reader(location)())
            assert [tuple(level.shape) for level in node.data] == [
                (3, lv.size[1], lv.size[0]) for lv in slide.levels
            ]
            corner = np.asarray(node.data[0][:, :300, :300]).transpose(1, 2, 0)
            np.testing.assert_array_equal(corner, decoded(slide, 0)[:300, :300])


@pytest.mark.real
def test_real_slides(real_slides: list[Path], tmp_path: Path) -> None:
    for number, path in enumerate(real_slides[1:2]):
        with open_slide(path, mpp=0.5) as slide:
            store = kept(slide, tmp_path / str(number))
            for level in range(len(slide.levels)):
                columns, rows = slide.levels[level].grid
                w, h = slide.levels[level].tile
                place = (columns // 2, rows // 2)
                tile = slide.decode_tile(level, *place)
                assert tile is not None
                x, y = place[0] * w, place[1] * h
                found = store.group("image")[str(level)][:, y : y + h, x : x + w]
                read = np.asarray(found).transpose(1, 2, 0)
                np.testing.assert_array_equal(read, tile[: read.shape[0], : read.shape[1]])
