"""What a Zarr image from a stranger may demand before it is refused.

Zarr hands a chunk to whatever codec the metadata name, unpickling among them, and lets it grow as
far as its compressed bytes say; so codecs are a list, and a chunk's size is looked at first.
"""

from __future__ import annotations

import bz2
import lzma
import math
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from coverslip.wsi.tiff import MAX_SIDE, MAX_TILE_AREA, MAX_TILES

MAX_METADATA = 2**26
"""Bytes of one metadata file."""
COMPRESSORS = frozenset({"blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma"})
OTHERS = frozenset(
    {"bytes", "transpose", "crc32c", "sharding_indexed", "shuffle", "delta", "coverslip.jpeg"}
)
"""The last is this package's: JPEG tiles that were carried over as they are."""
SLACK = 2**12
"""Bytes that other codecs, such as checksums, may add to a chunk."""
DEFLATE_RATIO = 1032
"""Deflate makes no more than this of one byte."""
UNWATCHED = 2**28
"""Bytes a chunk may become before it is inflated piece by piece to see whether it should."""


def check_metadata(folder: str) -> None:
    """Raises ValueError where a metadata file of the folder is absurdly large."""
    for name in ("zarr.json", ".zattrs", ".zgroup", ".zarray", ".zmetadata"):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and (size := os.path.getsize(path)) > MAX_METADATA:
            raise ValueError(f"{name} has {size:,} bytes")


def check_array(array: Any) -> None:
    """Raises ValueError for absurd sizes and chunks, and for codecs that no image needs."""
    shape, chunks = array.shape, array.chunks
    if len(shape) != len(chunks) or min(shape) < 1 or max(shape) > MAX_SIDE:
        raise ValueError(f"it claims an absurd size of {shape}")
    if min(chunks) < 1 or math.prod(chunks) > 3 * MAX_TILE_AREA:
        raise ValueError(f"its chunks measure {chunks}")
    tiles = math.prod(-(-a // b) for a, b in zip(shape, chunks, strict=True))
    if tiles > MAX_TILES:
        raise ValueError(f"it is cut into {tiles:,} chunks")
    names = list(_codecs(array.metadata))
    if strange := sorted(set(names) - COMPRESSORS - OTHERS):
        raise ValueError(f"it wants the codec {', '.join(strange)}")
    if sum(name in COMPRESSORS for name in names) > 2:  # two: a shard's chunks, and its index
        raise ValueError("it is compressed more than once")


def check_chunk(folder: str, array: Any, place: tuple[int, ...]) -> None:
    """Raises ValueError where a chunk would become larger than its pixels.

    folder   the image's
    place    the chunk's, along each axis

    Chunks within shards are not looked at.
    """
    names = list(_codecs(array.metadata))
    compressor = next((name for name in names if name in COMPRESSORS), None)
    path = os.path.join(folder, array.path, array.metadata.encode_chunk_key(place))
    if compressor is None or "sharding_indexed" in names or not os.path.isfile(path):
        return
    most = math.prod(array.chunks) * array.dtype.itemsize + SLACK
    size = os.path.getsize(path)
    if size > most + most // 8:
        raise ValueError(f"the chunk has {size:,} bytes, its pixels {most - SLACK:,}")
    with open(path, "rb") as file:
        claimed = _inflated(compressor, file.read(size), most)
    if claimed > most:
        raise ValueError(
            f"the chunk inflates to more than the {most - SLACK:,} bytes of its pixels"
        )


def _codecs(metadata: Any) -> Iterator[str]:
    """The names of an array's codecs, of either version of Zarr, and of those within shards."""
    if metadata.zarr_format == 2:
        for codec in (*(metadata.filters or ()), metadata.compressor):
            if codec is not None:
                yield str(codec.codec_id)
        return
    waiting = list(metadata.codecs)
    while waiting:
        codec = waiting.pop()
        name = str(codec.to_dict()["name"])
        yield name
        if name == "sharding_indexed":
            waiting += codec.codecs


def _inflated(compressor: str, data: bytes, most: int) -> int:
    """How many bytes the data become; a little more than `most` where they are more than that."""
    if compressor == "blosc":
        return int(struct.unpack_from("<I", data, 4)[0]) if len(data) >= 16 else 0
    if compressor == "lz4":
        return int(struct.unpack_from("<I", data)[0]) if len(data) >= 4 else 0
    if compressor == "zstd":
        return _zstd_size(data, most)
    if compressor in ("gzip", "zlib") and len(data) * DEFLATE_RATIO <= UNWATCHED:
        return 0
    decompressor: Any = {
        "gzip": lambda: zlib.decompressobj(31),
        "zlib": zlib.decompressobj,
        "bz2": bz2.BZ2Decompressor,
        "lzma": lzma.LZMADecompressor,
    }[compressor]()
    return len(decompressor.decompress(data, most + 1))


def _zstd_size(data: bytes, most: int) -> int:
    """What the frame's header says, or where it says nothing, what decoding shows (RFC 8878)."""
    if len(data) < 5:
        return 0
    descriptor = data[4]
    single = descriptor >> 5 & 1
    at = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    width = (single, 2, 4, 8)[descriptor >> 6]
    if width:
        size = int.from_bytes(data[at : at + width], "little")
        return size + 256 if width == 2 else size
    from imagecodecs import ZstdError, zstd_decode

    try:
        return len(zstd_decode(data, out=most))
    except ZstdError:
        return most + 1
