"""Zarr v3 shards written directly: whole blocks, flushed, the same bytes every time.

zarr-python reads these arrays; it does not write them, because going through its event loop costs
more per chunk than compressing a tile, and because its files are not flushed to disk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
import orjson

from coverslip.durable import explained, flush_to_disk, replace_file, whole_file
from coverslip.errors import StoreError

ChunkCodec = Literal["zstd", "lossless", "raw", "jpeg"]
ZSTD_LEVEL = {"zstd": 3, "lossless": 1}
"""Pixels shrink no further at higher levels (measured on H&E), only slower."""
ABSENT = (2**64 - 1, 2**64 - 1)
SUM_BYTES = 4
"""Of a checksum."""
PIECE = 2**22
"""Bytes of a file that are summed at a time."""


@dataclass(frozen=True, slots=True)
class RowArray:
    """An array written in blocks of whole rows.

    shape        all rows, then what one row holds
    block_rows   rows per file; chunk_rows of them are compressed together
    codec        "zstd"; "lossless", the same tuned for pixels; "jpeg" for uint8 [N, h, w, 3]
                 with one tile per chunk; "raw", for what hardly shrinks: the bytes as they are,
                 in one file to which blocks are appended, each with its CRC32C (see `stored_rows`)
    """

    shape: tuple[int, ...]
    dtype: str
    block_rows: int
    chunk_rows: int
    codec: ChunkCodec = "zstd"

    def __post_init__(self) -> None:
        if self.chunk_rows < 1 or self.block_rows % self.chunk_rows:
            raise ValueError(
                f"chunk_rows must divide rows_per_block, got {self.chunk_rows} and "
                f"{self.block_rows}"
            )
        if self.codec not in (*ZSTD_LEVEL, "raw", "jpeg"):
            raise ValueError(f"codec must be zstd, lossless, raw or jpeg, got {self.codec!r}")
        tiles = len(self.shape) == 4 and self.shape[3] == 3 and self.dtype == "uint8"
        if self.codec == "jpeg" and not (tiles and self.chunk_rows == 1):
            raise ValueError("jpeg holds uint8 tiles [N, h, w, 3], one per chunk")
        if self.codec == "raw" and self.chunk_rows != self.block_rows:
            raise ValueError("raw blocks are one chunk each")

    @property
    def sharded(self) -> bool:
        return self.chunk_rows < self.block_rows

    @property
    def _file_rows(self) -> int:
        """Rows per file, filled up to whole blocks."""
        if self.codec != "raw":
            return self.block_rows
        return max(1, -(-self.shape[0] // self.block_rows)) * self.block_rows

    def metadata(self) -> dict[str, Any]:
        """The content of its zarr.json."""
        row = tuple(max(side, 1) for side in self.shape[1:])
        from zarr.codecs import Crc32cCodec, ZstdCodec

        extra: dict[str, Any]
        if self.codec == "jpeg":
            from coverslip.tiling.jpeg_codec import JpegChunks

            extra = {"serializer": JpegChunks(), "compressors": None}
        elif self.codec == "raw":
            extra = {"compressors": Crc32cCodec()}
        else:
            extra = {"compressors": ZstdCodec(level=ZSTD_LEVEL[self.codec])}
        return array_metadata(
            shape=self.shape,
            dtype=self.dtype,
            chunks=(self.chunk_rows, *row),
            shards=(self._file_rows, *row) if self.sharded or self.codec == "raw" else None,
            fill_value=0,
            # one folder, not one per row of blocks: fewer inodes, and one to flush
            chunk_key_encoding={"name": "default", "separator": "."},
            **extra,
        )

    def write_block(
        self, folder: Path, number: int, values: npt.NDArray[Any], threads: int
    ) -> None:
        """Write rows [number · block_rows, ...), as values or as `encode` made them.

        Raises StoreError, ValueError, TypeError.
        """
        count = min(self.block_rows, self.shape[0] - number * self.block_rows)
        encoded = values.dtype == object
        wanted = (count,) if encoded else (count, *self.shape[1:])
        if values.shape != wanted:
            raise ValueError(f"{folder.name}: block {number} is {wanted}, got {values.shape}")
        chunks = list(values) if encoded else self._chunks(values, threads)
        place = 0 if self.codec == "raw" else number
        path = folder / ".".join(["c", str(place), *("0" for _ in self.shape[1:])])
        if self.codec == "raw":
            last = (number + 1) * self.block_rows >= self.shape[0]
            append_block(path, number, chunks[0], last=last)
            return
        if not self.sharded:
            replace_file(path, chunks[0])
            return
        absent = [None] * (self.block_rows // self.chunk_rows - len(chunks))
        write_shard(path, [*chunks, *absent])

    def encode(self, rows: npt.NDArray[Any], threads: int) -> npt.NDArray[np.object_]:
        """[N] bytes of the rows of an array whose chunks are single rows."""
        if self.chunk_rows != 1 or not self.sharded or rows.shape[1:] != self.shape[1:]:
            raise ValueError(
                f"rows {rows.shape[1:]} cannot be encoded one by one: the array has chunks of "
                f"{self.chunk_rows} rows {self.shape[1:]}"
            )
        encoded = np.empty(len(rows), object)
        encoded[:] = self._chunks(rows, threads)
        return encoded

    def _chunks(self, values: npt.NDArray[Any], threads: int) -> list[bytes]:
        rows = values.astype(
            np.dtype(self.dtype).newbyteorder("<"), casting="same_kind", copy=False
        )
        chunks = [rows[i : i + self.chunk_rows] for i in range(0, len(rows), self.chunk_rows)]
        if threads == 1 or len(chunks) < 2:
            return list(map(self._encoder(), chunks))
        with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
            return list(pool.map(self._encoder(), chunks))

    def _encoder(self) -> Callable[[npt.NDArray[Any]], bytes]:
        """From the rows of one chunk to its bytes; the last chunk is filled up with zeros."""
        if self.codec == "jpeg":
            from coverslip.tiling.jpeg_codec import jpeg_stream

            return lambda rows: jpeg_stream(rows[0])
        if self.codec == "raw":
            return lambda rows: _summed(self._filled(rows).tobytes())
        from numcodecs.zstd import Zstd

        zstd = Zstd(level=ZSTD_LEVEL[self.codec])
        return lambda rows: bytes(zstd.encode(self._filled(rows)))

    def _filled(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A whole chunk of rows, in C order."""
        if len(rows) < self.chunk_rows:
            padding = np.zeros((self.chunk_rows - len(rows), *rows.shape[1:]), rows.dtype)
            rows = np.concatenate([rows, padding])
        return np.ascontiguousarray(rows)


def array_metadata(**arguments: Any) -> dict[str, Any]:
    """What zarr would write for `zarr.create_array(**arguments)`."""
    import zarr
    from zarr.storage import MemoryStore

    kept: dict[str, Any] = {}
    zarr.create_array(MemoryStore(kept), **arguments)
    content: dict[str, Any] = orjson.loads(kept["zarr.json"].to_bytes())
    return content


def write_shard(path: Path, chunks: Iterable[bytes | None]) -> None:
    """Write a shard of chunks (None: absent) in C order, index at the end. Raises StoreError."""
    lengths: list[int | None] = []
    with whole_file(path) as aside, aside.open("wb") as file:
        for chunk in chunks:
            lengths.append(None if chunk is None else len(chunk))
            file.write(chunk or b"")
        file.write(index_of(lengths))


def append_block(path: Path, number: int, block: bytes, *, last: bool) -> None:
    """Add a block to a shard whose blocks are all of one length; behind the last comes the index.

    What a killed process wrote beyond the blocks before is overwritten. Raises StoreError.
    """
    start = number * len(block)
    with explained(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        with open(handle, "wb", buffering=0) as file:
            if os.fstat(handle).st_size < start:
                raise StoreError(
                    path,
                    f"is shorter than the {number} blocks that were written",
                    "remove the slide's store and run again",
                )
            file.truncate(start)
            file.seek(start)
            left = memoryview(block + (index_of([len(block)] * (number + 1)) if last else b""))
            while left:
                left = left[file.write(left) :]
            os.fsync(handle)
        if number == 0:
            flush_to_disk(path.parent)


def index_of(lengths: Sequence[int | None]) -> bytes:
    """What ends a shard: offset and length of its chunks, which follow one another (None: absent),
    and a checksum."""
    index, start = [], 0
    for length in lengths:
        index.append(ABSENT if length is None else (start, length))
        start += length or 0
    return _summed(np.array(index, "<u8").tobytes())


def _summed(data: bytes) -> bytes:
    """The data and their checksum, as Zarr's codec crc32c has it."""
    return data + struct.pack("<I", crc32c(data))


def crc32c(data: bytes | npt.NDArray[Any]) -> int:
    """Castagnoli's checksum, which ends a shard's index and a raw chunk."""
    return int(google_crc32c.value(data))


def file_sum(path: Path) -> tuple[int, int]:
    """(bytes, CRC32C) of a file; little of it is in memory at a time. Raises OSError."""
    size = total = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            size += len(piece)
            total = google_crc32c.extend(total, piece)
    return size, total
