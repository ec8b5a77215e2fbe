"""The native TIFF reader against known pixels and against OpenSlide."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pyramids import address_pixels, write_pyramid

from coverslip.errors import BrokenSlide, SlideError, UnreadableTile, UnsupportedSlide
from coverslip.tiling.reading import read_window
from coverslip.wsi import tiff
from coverslip.wsi.opening import open_slide
from coverslip.wsi.slide import Slide

SLIDES = ("breast-lobular-40x-region", "crohn-biopsy-20x", "giardia-10x", "tcga-cr-7395-jp2k")


def whole(slide: Slide) -> np.ndarray:
    return read_window(slide, (0, 0), slide.size, (1.0, 1.0))


@pytest.mark.parametrize("compression", [None, "adobe_deflate", "lzw", "zstd", "packbits"])
@pytest.mark.parametrize("predictor", [False, True])
def test_lossless_tiles_come_back_exactly(
    tmp_path: Path, compression: str | None, predictor: bool
) -> None:
    if predictor and compression in (None, "packbits"):
        pytest.skip("no predictor there")
    image = address_pixels(700, 530)
    write_pyramid(tmp_path / "a.tif", image, compression=compression, predictor=predictor)
    with tiff.open(tmp_path / "a.tif") as slide:
        assert np.array_equal(whole(slide), image)


@pytest.mark.parametrize("rows", [1, 7, 64, 530])
def test_strips_are_tiles_too(tmp_path: Path, rows: int) -> None:
    image = address_pixels(300, 530)
    tifffile.imwrite(tmp_path / "s.tif", image, rowsperstrip=rows, compression="lzw")
    with tiff.open(tmp_path / "s.tif") as slide:
        assert np.array_equal(whole(slide), image)


def test_bigtiff_and_levels(tmp_path: Path) -> None:
    image = address_pixels(1030, 770)
    write_pyramid(tmp_path / "b.tif", image, levels=3, bigtiff=True)
    with tiff.open(tmp_path / "b.tif") as slide:
        assert [level.size for level in slide.levels] == [(1030, 770), (515, 385), (257, 192)]
        assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2), (4, 4)]
        tile = slide.decode_tile(2, 0, 0)
        assert tile is not None
        assert np.array_equal(tile[:192, :256], image[:768:4, :1024:4])


def test_ome_tiff_with_subifds(tmp_path: Path) -> None:
    image = address_pixels(1000, 600)
    path = tmp_path / "x.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        size = {"axes": "YXS", "PhysicalSizeX": 0.265, "PhysicalSizeY": 0.265}
        options = {"tile": (128, 128), "compression": "adobe_deflate", "photometric": "rgb"}
        writer.write(image, subifds=1, metadata=size, **options)
        writer.write(image[::2, ::2].copy(), subfiletype=1, **options)
    with open_slide(path, cross_check=False) as slide:
        assert slide.name == "x"
        assert len(slide.levels) == 2
        assert slide.mpp == (0.265, 0.265)
        assert slide.pixel_size is not None
        assert slide.pixel_size.source == "OME-XML"
        assert np.array_equal(whole(slide), image)


@pytest.mark.parametrize("rgb", [True, False])
def test_jpeg_colours(tmp_path: Path, rgb: bool) -> None:
    """Smooth colours survive JPEG nearly unchanged, whether stored as RGB or YCbCr."""
    y, x = np.mgrid[:512, :512]
    image = np.stack([x // 2, y // 2, 255 - (x + y) // 4], axis=-1).astype(np.uint8)
    encoder = {"level": 95, "outcolorspace": "rgb"} if rgb else {"level": 95}
    with tifffile.TiffWriter(tmp_path / "j.tif") as writer:
        writer.write(
            image, tile=(256, 256), compression="jpeg",
            photometric="rgb", compressionargs=encoder,
        )  # fmt: skip
    with tiff.open(tmp_path / "j.tif") as slide:
        assert np.abs(whole(slide).astype(int) - image).mean() < 2
        assert slide.levels[0].reductions == 3


def test_sparse_tiles_are_background(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    write_pyramid(path, address_pixels(512, 512))
    with tifffile.TiffFile(path) as file:
        counts = file.pages[0].tags["TileByteCounts"]
        values = list(counts.value)
    values[1] = 0
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["TileByteCounts"].overwrite(values)
    with tiff.open(path) as slide:
        assert slide.decode_tile(0, 1, 0) is None
        assert (whole(slide)[:256, 256:] == 255).all()
        assert np.array_equal(whole(slide)[256:], address_pixels(512, 512)[256:])


def test_one_damaged_tile_does_not_poison_the_rest(spoiled: Path, small_slide: Path) -> None:
    with open_slide(spoiled, cross_check=False) as slide, open_slide(small_slide) as sound:
        with pytest.raises(UnreadableTile, match="level 0, column 4, row 6") as caught:
            slide.decode_tile(0, 4, 6)
        assert (caught.value.column, caught.value.row) == (4, 6)
        for column, row in ((3, 6), (5, 6), (4, 7)):
            expected = sound.decode_tile(0, column, row)
            assert np.array_equal(slide.decode_tile(0, column, row), expected)


@pytest.mark.parametrize(
    ("image", "options", "words"),
    [
        (np.zeros((64, 64, 3), np.uint16), {"photometric": "rgb"}, "16-bit"),
        (np.zeros((64, 64), np.float32), {}, "float32"),
        (np.zeros((64, 64, 4), np.uint8), {"photometric": "separated"}, "CMYK"),
    ],
)
def test_what_is_not_rgb_is_named(
    tmp_path: Path, image: np.ndarray, options: dict[str, str], words: str
) -> None:
    tifffile.imwrite(tmp_path / "n.tif", image, **options)
    with pytest.raises(UnsupportedSlide, match=words):
        tiff.open(tmp_path / "n.tif")


def test_greyscale_and_palette_become_rgb(tmp_path: Path) -> None:
    grey = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    tifffile.imwrite(tmp_path / "g.tif", grey)
    colours = np.stack([np.arange(256)[::-1] * 257, np.arange(256) * 257, np.zeros(256)])
    tifffile.imwrite(
        tmp_path / "p.tif", grey, photometric="palette", colormap=colours.astype(np.uint16)
    )
    with tiff.open(tmp_path / "g.tif") as slide:
        assert np.array_equal(whole(slide), np.repeat(grey[..., None], 3, -1))
    with tiff.open(tmp_path / "p.tif") as slide:
        assert np.array_equal(whole(slide)[..., 0], 255 - grey)
        assert np.array_equal(whole(slide)[..., 1], grey)


def test_directories_in_a_circle(tmp_path: Path) -> None:
    # one directory of no tags that names itself as the next
    content = b"II" + struct.pack("<HI", 42, 8) + struct.pack("<H", 0) + struct.pack("<I", 8)
    (tmp_path / "circle.tif").write_bytes(content)
    with pytest.raises(BrokenSlide, match="circle"):
        tiff.open(tmp_path / "circle.tif")


def test_a_hundred_thousand_directories(tmp_path: Path) -> None:
    entries = [struct.pack("<HI", 0, 8 + 6 * (i + 1)) for i in range(100_000)]
    (tmp_path / "many.tif").write_bytes(b"II" + struct.pack("<HI", 42, 8) + b"".join(entries))
    with pytest.raises(BrokenSlide, match="directories"):
        tiff.open(tmp_path / "many.tif")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_slides_are_refused_or_fail_by_tile(
    tmp_path: Path, small_slide: Path, share: float
) -> None:
    content = small_slide.read_bytes()
    path = tmp_path / "cut.svs"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SlideError, match=r"cut\.svs"), open_slide(path) as slide:
        whole(slide)


def test_absurd_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "vast.tif"
    write_pyramid(path, address_pixels(256, 256))
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["ImageWidth"].overwrite(2**31 - 1)
    with pytest.raises(BrokenSlide, match=r"absurd|tiles"):
        tiff.open(path)


def test_a_jpeg_that_claims_to_be_huge_is_not_decoded(tmp_path: Path, small_slide: Path) -> None:
    path = tmp_path / "bomb.svs"
    path.write_bytes(small_slide.read_bytes())
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0", offset, offset + count)
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    path.write_bytes(data)
    with tiff.open(path) as slide, pytest.raises(UnreadableTile, match="65000 x 65000"):
        slide.decode_tile(0, 0, 0)


def test_the_sample_equals_openslide(small_slide: Path) -> None:
    import openslide

    with open_slide(small_slide) as slide, openslide.OpenSlide(small_slide) as other:
        expected = np.asarray(other.read_region((0, 0), 0, slide.size).convert("RGB"))
        assert np.array_equal(whole(slide), expected)
        assert slide.properties["coverslip.cross-check"] == "openslide"
        assert set(slide.associated) == {"label", "macro", "thumbnail"}
        label = slide.associated_image("label")
        assert np.array_equal(label, np.asarray(other.associated_images["label"].convert("RGB")))


@pytest.mark.real
@pytest.mark.parametrize("name", SLIDES)
def test_real_slides_equal_openslide_and_reduce_faithfully(real_data: Path, name: str) -> None:
    """Identical pixels at scale 1. Reduced tiles against area-averaged full ones: PSNR above 45 dB
    for JPEG (DCT scaling is nearly averaging), above 22 dB for JPEG 2000 (wavelets keep edges)."""
    import openslide

    path = real_data / "slides" / f"{name}.svs"
    with open_slide(path, require_mpp=False) as slide, openslide.OpenSlide(path) as other:
        level = slide.levels[0]
        columns, rows = level.grid
        least = 45 if slide.codec(0) == "jpeg" else 22  # type: ignore[attr-defined]
        for place in np.linspace(0, columns * (rows - 1) - 1, 7).astype(int).tolist():
            row, column = divmod(place, columns)
            width = min(level.tile[0], level.size[0] - column * level.tile[0])
            corner = (column * level.tile[0], row * level.tile[1])
            tile = slide.decode_tile(0, column, row)
            assert tile is not None
            region = other.read_region(corner, 0, (width, level.tile[1])).convert("RGB")
            assert np.array_equal(tile[:, :width], np.asarray(region))
            if width < level.tile[0]:
                continue
            for reduction in range(1, level.reductions + 1):
                k = 1 << reduction
                small = slide.decode_tile(0, column, row, reduction)
                assert small is not None
                mean = tile.reshape(256 // k, k, 256 // k, k, 3).mean(axis=(1, 3))
                error = np.mean((mean - small) ** 2)
                assert 10 * np.log10(255**2 / max(error, 1e-9)) > least


def test_a_jpeg_tile_is_handed_over_whole(small_slide: Path) -> None:
    from simplejpeg import decode_jpeg

    with tiff.open(small_slide) as slide:
        stream = slide.compressed_tile(0, 3, 3)
        assert stream is not None
        assert np.array_equal(decode_jpeg(stream), slide.decode_tile(0, 3, 3))
