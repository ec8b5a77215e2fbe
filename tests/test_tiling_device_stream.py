"""Decoding by nvImageCodec: the same tiles as the stream on the CPU gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyramids import address_pixels, write_pyramid

from coverslip.errors import UnreadableTile, UnsupportedSlide
from coverslip.tiling.device_stream import DeviceTileStream
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.stream import TileStream
from coverslip.wsi.opening import open_slide

pytest.importorskip("nvidia.nvimgcodec")


@pytest.mark.parametrize("overlap", [0, 40])
def test_tiles_of_level_0_are_the_same(small_slide: Path, overlap: int) -> None:
    """Abbreviated RGB streams with tables; windows across native tiles."""
    with open_slide(small_slide) as slide:
        grid = TileGrid.over(slide, tile=256, mpp=slide.mpp[0], overlap=overlap)
        stream = DeviceTileStream(slide, grid, batch=17, device="cpu")
        ours, theirs = list(stream), list(TileStream(slide, grid, batch=17))
        assert len(ours) == len(theirs) == len(stream)
        for a, b in zip(ours, theirs, strict=True):
            assert np.array_equal(a.index, b.index)
            assert np.array_equal(a.boxes, b.boxes)
            assert np.abs(a.pixels.astype(int) - b.pixels).max() <= 1


def test_smaller_tiles_are_resampled_from_whole_ones(small_slide: Path) -> None:
    """The CPU's stream scales in the DCT domain, this one afterwards: alike, not equal."""
    with open_slide(small_slide) as slide:
        grid = TileGrid.over(slide, tile=128, mpp=1.1)
        chosen = np.arange(3, 40, 2)
        a = np.concatenate(
            [b.pixels for b in DeviceTileStream(slide, grid, indices=chosen, device="cpu")]
        )
        b = np.concatenate([b.pixels for b in TileStream(slide, grid, indices=chosen)])
    error = ((a.astype(float) - b) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 30


def test_every_native_tile_is_decoded_once(
    small_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(small_slide) as slide:
        grid = TileGrid.over(slide, tile=200, mpp=slide.mpp[0], overlap=60)
        stream = DeviceTileStream(slide, grid, batch=5, device="cpu")
        seen: list[int] = []
        decoded = stream._decoded
        monkeypatch.setattr(stream, "_decoded", lambda keys: (seen.extend(keys), decoded(keys))[1])
        assert sum(len(batch.index) for batch in stream) == len(grid)
    assert len(seen) == len(set(seen)) > 100


def test_what_is_not_jpeg_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deflate.tif"
    write_pyramid(path, address_pixels(600, 500))
    with open_slide(path, mpp=0.5) as slide:
        grid = TileGrid.over(slide, tile=256, mpp=0.5)
        with pytest.raises(UnsupportedSlide, match="read it with TileStream"):
            DeviceTileStream(slide, grid, device="cpu")


def test_a_damaged_tile_is_named(spoiled: Path) -> None:
    with open_slide(spoiled) as slide:
        grid = TileGrid.over(slide, tile=256, mpp=slide.mpp[0])
        with pytest.raises(UnreadableTile, match=r"nvImageCodec|cannot"):
            list(DeviceTileStream(slide, grid, device="cpu"))


@pytest.mark.gpu
def test_on_a_gpu_nothing_comes_back_but_embeddings(small_slide: Path) -> None:
    cupy = pytest.importorskip("cupy")
    from coverslip.encoders.loading import load_encoder
    from coverslip.kernels.stain_profile import StainNormalizer, fit_stains, reference_profile

    encoder = load_encoder("efficientnet-lite0", device="cuda")
    with open_slide(small_slide) as slide:
        grid = TileGrid.over(slide, tile=256, mpp=slide.mpp[0])
        (first, *_), (plain, *_) = DeviceTileStream(slide, grid), TileStream(slide, grid)
    assert isinstance(first.pixels, cupy.ndarray)
    assert np.abs(first.pixels.get().astype(int) - plain.pixels).max() <= 2
    recolour = StainNormalizer(fit_stains(plain.pixels), reference_profile())
    a, b = encoder.encode(first.pixels, recolour), encoder.encode(plain.pixels, recolour)
    assert np.abs(a - b).max() < 0.05 * np.abs(b).max()
