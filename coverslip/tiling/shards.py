"""Zarr v3 shards written directly: one file per block, whole, flushed, the same bytes every time.

zarr-python reads these arrays; it does not write them, because going through its event loop costs
more per chunk than compressing a tile, and because its files are not flushed to disk.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.durable import replace_file, whole_file

ChunkCodec = Literal["zstd", "lossless", "jpeg"]
ZSTD_LEVEL = {"zstd": 3, "lossless": 1}
"""Pixels shrink no further at higher levels (measured on H&E), only slower."""
ABSENT = (2**64 - 1, 2**64 - 1)


@dataclass(frozen=True, slots=True)
class RowArray:
    """An array written in blocks of whole rows.

    shape        all rows, then what one row holds
    block_rows   rows per file; chunk_rows of them are compressed together
    codec        "zstd"; "lossless", the same tuned for pixels; "jpeg" for uint8 [N, h, w, 3]
                 with one tile per chunk
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
        if self.codec not in (*ZSTD_LEVEL, "jpeg"):
            raise ValueError(f"codec must be zstd, lossless or jpeg, got {self.codec!r}")
        tiles = len(self.shape) == 4 and self.shape[3] == 3 and self.dtype == "uint8"
        if self.codec == "jpeg" and not (tiles and self.chunk_rows == 1):
            raise ValueError("jpeg holds uint8 tiles [N, h, w, 3], one per chunk")

    @property
    def sharded(self) -> bool:
        return self.chunk_rows < self.block_rows

    def metadata(self) -> dict[str, Any]:
        """The content of its zarr.json."""
        row = tuple(max(side, 1) for side in self.shape[1:])
        from zarr.codecs import ZstdCodec

        extra: dict[str, Any]
        if self.codec == "jpeg":
            from coverslip.tiling.jpeg_codec import JpegChunks

            extra = {"serializer": JpegChunks(), "compressors": None}
        else:
            extra = {"compressors": ZstdCodec(level=ZSTD_LEVEL[self.codec])}
        return array_metadata(
            shape=self.shape,
            dtype=self.dtype,
            chunks=(self.chunk_rows, *row),
            shards=(self.block_rows, *row) if self.sharded else None,
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
        path = folder / ".".join(["c", str(number), *("0" for _ in self.shape[1:])])
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
        from numcodecs.zstd import Zstd

        zstd = Zstd(level=ZSTD_LEVEL[self.codec])

        def encode(rows: npt.NDArray[Any]) -> bytes:
            if len(rows) < self.chunk_rows:
                padding = np.zeros((self.chunk_rows - len(rows), *rows.shape[1:]), rows.dtype)
                rows = np.concatenate([rows, padding])
            return bytes(zstd.encode(np.ascontiguousarray(rows)))

        return encode


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
    index: list[tuple[int, int]] = []
    with whole_file(path) as aside, aside.open("wb") as file:
        for chunk in chunks:
            index.append(ABSENT if chunk is None else (file.tell(), len(chunk)))
            file.write(chunk or b"")
        table = np.array(index, "<u8").tobytes()
        file.write(table + struct.pack("<I", crc32c(table)))


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, which ends a shard's index."""
    value = 0xFFFFFFFF
    for byte in data:
        value = CASTAGNOLI[(value ^ byte) & 255] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _castagnoli() -> Sequence[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CASTAGNOLI = _castagnoli()
