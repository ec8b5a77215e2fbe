"""Vendors whose slides are generated here after their own facts, and the cross-check at open."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from pyramids import address_pixels

from coverslip.errors import BrokenSlide
from coverslip.tiling.reading import read_window
from coverslip.wsi import cross_check, tiff
from coverslip.wsi.opening import open_slide

TILES = {"tile": (256, 256), "photometric": "rgb", "compression": "adobe_deflate", "metadata": None}


def test_philips_levels_are_padded_and_still_powers_of_two(tmp_path: Path) -> None:
    path, image = tmp_path / "p.tiff", address_pixels(1280, 768)
    spacing = (
        '<DataObject ObjectType="DPUfsImport"><Attribute Name="DICOM_PIXEL_SPACING" '
        'Group="0x0028">&quot;0.000226891&quot; &quot;0.000226891&quot;</Attribute></DataObject>'
    )
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, description=spacing, software="Philips DP v1.0", **TILES)
        padded = np.full((512, 768, 3), 255, np.uint8)  # 640 x 384 px in whole tiles
        padded[:384, :640] = image[::2, ::2]
        writer.write(padded, subfiletype=1, **TILES)
        writer.write(address_pixels(100, 40), description="Label", photometric="rgb", metadata=None)
    with open_slide(path, cross_check=False) as slide:
        assert slide.vendor == "philips"
        assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2)]
        assert slide.mpp == pytest.approx((0.226891, 0.226891))
        assert slide.associated == ("label",)
        assert np.array_equal(read_window(slide, (0, 0), (1280, 768), (1, 1)), image)


def test_qptiff_pages_say_what_they_are(tmp_path: Path) -> None:
    path, image = tmp_path / "q.qptiff", address_pixels(1024, 512)

    def described(kind: str) -> str:
        return (
            "<?xml version='1.0'?><PerkinElmer-QPI-ImageDescription>"
            f"<ImageType>{kind}</ImageType></PerkinElmer-QPI-ImageDescription>"
        )

    plain = {"photometric": "rgb", "metadata": None}
    size = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, description=described("FullResolution"), **size, **TILES)
        writer.write(image[::4, ::4].copy(), description=described("Thumbnail"), **plain)
        writer.write(image[::2, ::2].copy(), description=described("ReducedResolution"), **TILES)
        writer.write(address_pixels(64, 48), description=described("Label"), **plain)
    with open_slide(path, cross_check=False) as slide:
        assert slide.vendor == "perkinelmer"
        assert [level.size for level in slide.levels] == [(1024, 512), (512, 256)]
        assert set(slide.associated) == {"thumbnail", "label"}
        assert slide.mpp == pytest.approx((0.25, 0.25))


@pytest.mark.parametrize("compression", [33003, 33005])
def test_jpeg_2000_colours(tmp_path: Path, compression: int) -> None:
    y, x = np.mgrid[:256, :256]
    image = np.stack([x, y, 255 - (x + y) // 2], axis=-1).astype(np.uint8)
    stored = image
    if compression == 33003:
        r, g, b = image.astype(float).transpose(2, 0, 1)
        luma = 0.299 * r + 0.587 * g + 0.114 * b
        chroma = (128 + (b - luma) / 1.772, 128 + (r - luma) / 1.402)
        stored = np.stack([luma, *chroma], axis=-1).round().clip(0, 255).astype(np.uint8)
    stream = imagecodecs.jpeg2k_encode(stored, codecformat="j2k", reversible=True, mct=False)
    path = tmp_path / "j.tif"
    tifffile.imwrite(
        path, iter([stream]), shape=image.shape, dtype=np.uint8, tile=(256, 256),
        compression=compression, photometric="rgb", metadata=None,
    )  # fmt: skip
    with tiff.open(path) as slide:
        tile = slide.decode_tile(0, 0, 0)
        assert tile is not None
        assert np.abs(tile.astype(int) - image).max() <= 3
        small = slide.decode_tile(0, 0, 0, 1)
        assert small is not None
        mean = image.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
        assert np.abs(small - mean).mean() < 4


def test_two_readers_that_differ_are_told(
    small_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cross_check._openslide_tile

    def inverted(*arguments: object) -> object:
        found = original(*arguments)  # type: ignore[arg-type]
        return None if found is None else 255 - found

    monkeypatch.setattr(cross_check, "_openslide_tile", inverted)
    with pytest.raises(BrokenSlide, match="differ by"):
        open_slide(small_slide)
    open_slide(small_slide, cross_check=False).close()
