"""Zarr images: what every codec of theirs may become, and that sound ones are read as before."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hostile_case import IMAGE
from hostile_zarrs import RAW, SCALE, image

from coverslip.errors import BrokenSlide, UnreadableTile
from coverslip.tiling.reading import read_window
from coverslip.wsi.opening import open_slide

V2 = {
    "none": None,
    "blosc": numcodecs.Blosc("lz4"),
    "zstd": numcodecs.Zstd(),
    "gzip": numcodecs.GZip(1),
    "zlib": numcodecs.Zlib(1),
    "lz4": numcodecs.LZ4(),
    "bz2": numcodecs.BZ2(1),
    "lzma": numcodecs.LZMA(preset=0),
}
SHARDED = {"chunks": (3, 64, 64), "shards": (3, 128, 128)}
V3: dict[str, dict[str, Any]] = {
    "default": {},
    "blosc": {"compressors": zarr.codecs.BloscCodec()},
    "gzip and checksum": {"compressors": [zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()]},
    "sharded": SHARDED,
    "sharded gzip": {**SHARDED, "compressors": zarr.codecs.GzipCodec()},
}


def _write(path: Path, version: Any, **settings: Any) -> None:
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    data = np.ascontiguousarray(IMAGE.transpose(2, 0, 1))
    group.create_array("0", data=data, **{"chunks": (3, 64, 128), **settings})
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    scale = [{"type": "scale", "scale": SCALE}]
    held = {
        "axes": [{"name": "c", "type": "channel"}, *axes],
        "datasets": [{"path": "0", "coordinateTransformations": scale}],
        "version": "0.4",
    }
    if version == 2:
        group.attrs["multiscales"] = [held]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [held]}


@pytest.mark.parametrize(
    ("version", "settings"),
    [
        *(pytest.param(2, {"compressors": codec}, id=f"2 {name}") for name, codec in V2.items()),
        *(pytest.param(3, settings, id=f"3 {name}") for name, settings in V3.items()),
    ],
)
def test_sound_images_are_read(tmp_path: Path, version: int, settings: dict[str, Any]) -> None:
    _write(tmp_path / "x.ome.zarr", version, **settings)
    with open_slide(tmp_path / "x.ome.zarr") as slide:
        assert np.array_equal(read_window(slide, (0, 0), slide.size, (1, 1)), IMAGE)


@pytest.mark.parametrize("name", ["blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma"])
def test_a_chunk_of_another_size_is_one_bad_tile(tmp_path: Path, name: str) -> None:
    _write(tmp_path / "x.ome.zarr", 2, compressors=V2[name])
    (chunk,) = (tmp_path / "x.ome.zarr/0").rglob("0.0.1") or [None]
    larger = V2[name].encode(np.arange(2**22, dtype=np.uint32))  # type: ignore[union-attr]
    chunk.write_bytes(bytes(larger))
    with open_slide(tmp_path / "x.ome.zarr") as slide:
        with pytest.raises(UnreadableTile, match=r"the chunk (has|inflates)"):
            slide.decode_tile(0, 1, 0)
        assert np.array_equal(slide.decode_tile(0, 0, 0), IMAGE[:64, :128])


def _frame(blocks: list[bytes]) -> bytes:
    """A Zstandard frame of raw blocks that does not say how large its content is (RFC 8878)."""
    parts = [b"\x28\xb5\x2f\xfd\x00\x58"]  # magic, nothing told, a window of 2 MiB
    for number, block in enumerate(blocks):
        last = number == len(blocks) - 1
        parts.append(struct.pack("<I", len(block) << 3 | last)[:3] + block)
    return b"".join(parts)


@pytest.mark.parametrize("more", [0, 10])
def test_frames_of_untold_size_are_looked_into(tmp_path: Path, more: int) -> None:
    level = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    place = image(tmp_path / "x.ome.zarr", codecs=[*RAW, level])
    for number in "01":
        content = (place / number).read_bytes()
        blocks = [content[i : i + 2**16] for i in range(0, len(content), 2**16)]
        repeated = [struct.pack("<I", 2**17 << 3 | 1 << 1)[:3] + b"\0"] * more
        frame = _frame(blocks)
        (place / number).write_bytes(frame[:6] + b"".join(repeated) + frame[6:])
    with open_slide(tmp_path / "x.ome.zarr") as slide:
        if more:
            with pytest.raises(UnreadableTile, match="the chunk"):
                slide.decode_tile(0, 0, 0)
        else:
            assert np.array_equal(read_window(slide, (0, 0), slide.size, (1, 1)), IMAGE)


def test_a_codec_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ome.zarr"
    _write(path, 2, compressors=V2["none"], filters=[numcodecs.FixedScaleOffset(0, 1, "|u1")])
    with pytest.raises(BrokenSlide, match="the codec fixedscaleoffset"):
        open_slide(path)
