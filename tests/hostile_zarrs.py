"""Broken and odd OME-Zarr images."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hostile_case import IMAGE, Corpus, deflate_bomb

from coverslip.wsi.slide import RGB

CASES = Corpus()
case = CASES.case
SCALE = [1.0, 0.25, 0.25]
SIDE = 256
RAW = [{"name": "bytes", "configuration": {}}]


def image(
    path: Path,
    *,
    array: Mapping[str, Any] | None = None,
    dataset: str = "0",
    scale: Any = None,
    ome: Mapping[str, Any] | None = None,
    shape: tuple[int, ...] = (3, 200, 300),
    chunks: tuple[int, ...] = (3, SIDE, SIDE),
    codecs: Any = RAW,
) -> Path:
    """A Zarr v3 image whose two chunks hold `IMAGE`, but for what is given."""
    axes = [
        {"name": "c", "type": "channel"},
        *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx"),
    ]
    scale = SCALE if scale is None else scale
    transforms = [{"type": "scale", "scale": scale}]
    held = {
        "version": "0.5",
        "multiscales": [
            {"axes": axes, "datasets": [{"path": dataset, "coordinateTransformations": transforms}]}
        ],
    }
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {**held, **(ome or {})}}}
    values = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 255,
        "codecs": codecs,
        "attributes": {},
    }
    (path / "0/c/0/0").mkdir(parents=True)
    (path / "zarr.json").write_text(json.dumps(group))
    (path / "0/zarr.json").write_text(json.dumps({**values, **(array or {})}))
    whole = np.pad(IMAGE, ((0, 56), (0, 212), (0, 0)), constant_values=255)
    for column in range(2):
        part = whole[:, column * SIDE : (column + 1) * SIDE].transpose(2, 0, 1)
        (path / f"0/c/0/0/{column}").write_bytes(part.tobytes())
    return path / "0/c/0/0"


@case("sound.ome.zarr", "pixels")
def sound(path: Path) -> RGB:
    """Nothing; the others differ from it."""
    image(path)
    return IMAGE


@case("missing-chunk.ome.zarr", "pixels")
def missing_chunk(path: Path) -> RGB:
    """The second chunk is not there: Zarr's fill value, here white."""
    (image(path) / "1").unlink()
    seen = IMAGE.copy()
    seen[:, SIDE:] = 255
    return seen


@case("no-chunks.ome.zarr", "pixels")
def no_chunks(path: Path) -> RGB:
    """No chunk is there."""
    chunks = image(path)
    for number in "01":
        (chunks / number).unlink()
    return np.full_like(IMAGE, 255)


@case("cut-chunk.ome.zarr", "UnreadableTile", "")
def cut_chunk(path: Path) -> RGB:
    """The second chunk ends early."""
    chunk = image(path) / "1"
    chunk.write_bytes(chunk.read_bytes()[:1000])
    return IMAGE


@case("chunk-is-a-folder.ome.zarr", "pixels")
def chunk_is_a_folder(path: Path) -> RGB:
    """The second chunk is a folder: to Zarr as if it were not there."""
    chunk = image(path) / "1"
    chunk.unlink()
    chunk.mkdir()
    seen = IMAGE.copy()
    seen[:, SIDE:] = 255
    return seen


@case("deflate-bomb.ome.zarr", "UnreadableTile", "the chunk")
def bomb(path: Path) -> None:
    """Gzipped chunks of 4 MiB that inflate to 4 GiB."""
    chunks = image(path, codecs=[*RAW, {"name": "gzip", "configuration": {"level": 1}}])
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    for number in "01":
        (chunks / number).write_bytes(head + deflate_bomb(2**32)[2:-4] + struct.pack("<2I", 0, 0))


@case("zstd-bomb.ome.zarr", "UnreadableTile", "inflates")
def zstd_bomb(path: Path) -> None:
    """Zstandard chunks of 128 KiB that become 4 GiB."""
    level = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    chunks = image(path, codecs=[*RAW, level])
    blocks = 2**32 // 2**17
    one = struct.pack("<I", 2**17 << 3 | 1 << 1)[:3] + b"\0"
    last = struct.pack("<I", 2**17 << 3 | 1 << 1 | 1)[:3] + b"\0"
    head = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**32)
    for number in "01":
        (chunks / number).write_bytes(head + one * (blocks - 1) + last)


def _pickled(path: Path, codecs: Mapping[str, Any]) -> None:
    """A Zarr v2 image of these codecs, its chunks pickles that leave a folder behind."""
    image(path)
    (path / "0/c/0").rename(path / "0/0")
    (path / "0/zarr.json").unlink()
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
    (path / "zarr.json").unlink()
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps(attributes))
    array = {
        **{"zarr_format": 2, "shape": [3, 200, 300], "chunks": [3, SIDE, SIDE], "dtype": "|u1"},
        **{"fill_value": 255, "order": "C", "compressor": None, "dimension_separator": "/"},
        **{"filters": None},
        **codecs,
    }
    (path / "0/.zarray").write_text(json.dumps(array))
    for number in "01":
        (path / "0/0/0" / number).write_bytes(pickle.dumps(_Execution(str(path / "executed"))))


@case("pickle-filter.zarr", "BrokenSlide", "pickle")
def pickle_filter(path: Path) -> None:
    """Zarr v2 whose filter unpickles its chunks, which would run whatever they hold."""
    _pickled(path, {"filters": [{"id": "pickle"}]})


@case("pickle-compressor.zarr", "BrokenSlide", "pickle")
def pickle_compressor(path: Path) -> None:
    """Zarr v2 whose compressor unpickles its chunks."""
    _pickled(path, {"compressor": {"id": "pickle"}})


class _Execution:
    """Unpickled, it leaves a folder behind."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.mkdir, (self.trace,)


@case("absurd-shape.ome.zarr", "BrokenSlide", "absurd size")
def absurd_shape(path: Path) -> None:
    """2^50 px a side."""
    image(path, shape=(3, 2**50, 2**50))


@case("absurd-chunks.ome.zarr", "BrokenSlide", "its chunks measure")
def absurd_chunks(path: Path) -> None:
    """Chunks of 2^20 px a side."""
    image(path, shape=(3, 2**20, 2**20), chunks=(3, 2**20, 2**20))


@case("absurd-channel-chunks.ome.zarr", "BrokenSlide", "its chunks measure")
def absurd_channel_chunks(path: Path) -> None:
    """Chunks of 2^40 channels of three."""
    image(path, chunks=(2**40, SIDE, SIDE))


@case("tiny-chunks.ome.zarr", "BrokenSlide", "chunks")
def tiny_chunks(path: Path) -> None:
    """16 million px a side in chunks of one."""
    image(path, shape=(3, 2**24, 2**24), chunks=(3, 1, 1))


@case("shape-of-zero.ome.zarr", "BrokenSlide", "")
def shape_of_zero(path: Path) -> None:
    """No row of pixels."""
    image(path, shape=(3, 0, 300))


@case("negative-shape.ome.zarr", "BrokenSlide", "")
def negative_shape(path: Path) -> None:
    """-200 rows of pixels."""
    image(path, shape=(3, -200, 300))


@case("negative-chunks.ome.zarr", "BrokenSlide", "")
def negative_chunks(path: Path) -> None:
    """Chunks of -256 px."""
    image(path, chunks=(3, -256, 256))


@case("path-traversal.ome.zarr", "BrokenSlide", "")
def traversal(path: Path) -> None:
    """A level whose path leads out of the slide."""
    image(path, dataset="../sound.ome.zarr/0")


@case("absolute-path.ome.zarr", "BrokenSlide", "")
def absolute(path: Path) -> None:
    """A level whose path is /etc."""
    image(path, dataset="/etc")


@case("16-bit.ome.zarr", "UnsupportedSlide", "uint16")
def deep(path: Path) -> None:
    """16 bits a sample."""
    image(path, array={"data_type": "uint16"})


@case("no-channel-axis.ome.zarr", "BrokenSlide", "")
def no_axis(path: Path) -> None:
    """Axes without a channel."""
    axes = [{"name": n, "type": "space"} for n in "zyx"]
    transforms = [{"type": "scale", "scale": SCALE}]
    image(
        path,
        ome={
            "multiscales": [
                {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transforms}]}
            ]
        },
    )


@case("more-axes-than-dimensions.ome.zarr", "BrokenSlide", "3 axes")
def more_axes(path: Path) -> None:
    """Three axes over an array of two dimensions."""
    image(path, shape=(200, 300), chunks=(SIDE, SIDE))


@case("no-levels.ome.zarr", "BrokenSlide", "no level")
def no_levels(path: Path) -> None:
    """A multiscale image of no level."""
    image(path, ome={"multiscales": [{"axes": [{"name": n} for n in "cyx"], "datasets": []}]})


@case("multiscales-is-text.ome.zarr", "BrokenSlide", "")
def multiscales_text(path: Path) -> None:
    """Multiscales that are text."""
    image(path, ome={"multiscales": "yes"})


for _name, _wrong, _scale, _expected in (
    ("zero-scale", "a pixel size of 0", [1, 0, 0], "BrokenSlide"),
    ("negative-scale", "a pixel size of -0.25", [1, -0.25, -0.25], "ImplausibleMpp"),
    ("nan-scale", "a pixel size of nan", [1, float("nan"), float("nan")], "ImplausibleMpp"),
    ("infinite-scale", "a pixel size of 1e999", [1, float("inf"), float("inf")], "ImplausibleMpp"),
    ("scale-is-text", "a pixel size that is text", ["one", "two", "three"], "BrokenSlide"),
    ("short-scale", "a pixel size of one number", [1], "BrokenSlide"),
):

    def _write_scaled(path: Path, scale: Any = _scale) -> None:
        image(path, scale=scale)

    _write_scaled.__doc__ = _wrong
    case(f"{_name}.ome.zarr", _expected)(_write_scaled)


@case("cut-metadata.ome.zarr", "BrokenSlide", "metadata cannot be read")
def cut_metadata(path: Path) -> None:
    """A zarr.json that ends early."""
    image(path)
    (path / "zarr.json").write_text((path / "zarr.json").read_text()[:100])


@case("deep-metadata.ome.zarr", "BrokenSlide", "metadata cannot be read")
def deep_metadata(path: Path) -> None:
    """A zarr.json of 200,000 brackets within each other."""
    image(path)
    (path / "zarr.json").write_text(
        '{"zarr_format":3,"node_type":"group","attributes":' + "[" * 200_000
    )


@case("zeros-for-metadata.ome.zarr", "BrokenSlide", "68,719,476,736")
def sparse_metadata(path: Path) -> None:
    """A zarr.json of 64 GiB of holes."""
    image(path)
    with open(path / "zarr.json", "r+b") as file:
        file.truncate(2**36)


@case("unknown-codec.ome.zarr", "BrokenSlide", "")
def unknown_codec(path: Path) -> None:
    """A codec nobody knows."""
    image(path, codecs=[*RAW, {"name": "quantum", "configuration": {}}])


@case("group-in-a-circle.ome.zarr", "BrokenSlide", "")
def circle(path: Path) -> None:
    """Its level is a link to itself."""
    image(path, dataset="round/round/0")
    (path / "round").symlink_to("round")
