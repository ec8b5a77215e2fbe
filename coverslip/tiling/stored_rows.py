"""Rows of embeddings straight from a stage's files, all or some.

zarr-python reads the same files, but always whole chunks; a bag of embeddings wants the bytes where
they will be used, and often only some of the rows.
"""

from __future__ import annotations

import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.errors import StoreError
from coverslip.tiling.shards import SUM_BYTES, crc32c, index_of

DTYPES = ("float16", "float32")
LARGEST_BLOCK = 2**30
"""Bytes."""
DENSE = 1 / 32
"""Share of rows from which on a disk is faster reading all that lies between (measured)."""
READ_AHEAD = 2**20
"""Bytes the system is asked for at a time; it does not take more at once everywhere."""
AT_ONCE = 2**18
"""Bytes read at a time: while they are copied the system reads ahead (measured)."""
Values = npt.NDArray[Any]
Rows = npt.NDArray[np.integer[Any]]


class StoredRows(ABC):
    """A two-dimensional array of embeddings that `RowArray` wrote. Threads may share it.

    shape   (rows, numbers a row); dtype float16 or float32
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int], dtype: np.dtype[Any], block_rows: int
    ) -> None:
        self._folder, self.shape, self.dtype = str(folder), shape, dtype
        self._block_rows, self._blocks = block_rows, -(-shape[0] // block_rows)

    def read(self, rows: Rows | None = None) -> Values:
        """[n, width] of all rows, or of some in the order given.

        Raises StoreError for what is missing, cut short or damaged; IndexError.
        """
        if rows is None:
            return self._whole()
        rows = np.asarray(rows).astype(np.int64)
        if not len(rows):
            return np.empty((0, self.shape[1]), self.dtype)
        if not 0 <= rows.min() <= rows.max() < self.shape[0]:
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {self.shape[0]}")
        return self._picked(*np.divmod(rows, self._block_rows))

    @abstractmethod
    def _whole(self) -> Values: ...

    @abstractmethod
    def _picked(self, blocks: npt.NDArray[np.int64], within: npt.NDArray[np.int64]) -> Values:
        """Rows by their block, and by their place within it."""

    def _rows_of(self, block: int) -> slice:
        return slice(block * self._block_rows, min((block + 1) * self._block_rows, self.shape[0]))

    @property
    def _block_bytes(self) -> int:
        return self._block_rows * self.shape[1] * self.dtype.itemsize

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """A file's handle. The system's refusals become StoreError."""
        path = f"{self._folder}/{name}"
        try:
            handle = os.open(path, os.O_RDONLY)
            try:
                yield handle
            finally:
                os.close(handle)
        except OSError as error:
            raise self._broken(name, f"cannot be read: {error.strerror or error}") from None

    def _broken(self, name: str, problem: str) -> StoreError:
        return StoreError(
            f"{self._folder}/{name}",
            problem,
            "remove the slide's store and run coverslip features again",
        )


class RawRows(StoredRows):
    """Rows as they are, in one file: blocks of them, each with its checksum behind it.

    A block is checked when it is first read, and trusted from then on: of sound blocks, some rows
    are mapped from disk.
    """

    def __init__(self, *array: Any) -> None:
        super().__init__(*array)
        self._file = "c.0.0"
        self._sound = np.zeros(self._blocks, np.bool_)

    def _whole(self) -> Values:
        out = np.empty(self.shape, self.dtype)
        with self._opened(self._file) as handle:
            self._check_layout(handle)
            for block in range(self._blocks):
                self._load(handle, block, out[self._rows_of(block)])
        return out

    def _picked(self, blocks: npt.NDArray[np.int64], within: npt.NDArray[np.int64]) -> Values:
        touched = np.unique(blocks)
        dense = len(blocks) >= DENSE * self._block_rows * len(touched)
        with self._opened(self._file) as handle:
            size = self._check_layout(handle)
            unknown = touched[~self._sound[touched]].tolist()
            scratch = np.empty((self._block_rows if unknown else 0, self.shape[1]), self.dtype)
            for block in unknown:
                rows = self._rows_of(block)
                self._load(handle, block, scratch[: rows.stop - rows.start])
            if dense and hasattr(os, "posix_fadvise"):
                for start in range(0, size, READ_AHEAD):
                    os.posix_fadvise(handle, start, READ_AHEAD, os.POSIX_FADV_WILLNEED)
            mapped = mmap.mmap(handle, size, access=mmap.ACCESS_READ)
        if not dense:
            mapped.madvise(mmap.MADV_RANDOM)
        width = self.shape[1] * self.dtype.itemsize
        every: Values = np.ndarray(
            (self._blocks, self._block_rows, self.shape[1]),
            self.dtype,
            buffer=mapped,
            strides=(self._block_bytes + SUM_BYTES, width, self.dtype.itemsize),
        )
        found: Values = every[blocks, within]
        return found

    def _check_layout(self, handle: int) -> int:
        """The file's size. Raises StoreError where its index is not that of gapless blocks."""
        index = index_of([self._block_bytes + SUM_BYTES] * self._blocks)
        start = self._blocks * (self._block_bytes + SUM_BYTES)
        size = os.fstat(handle).st_size
        if size != start + len(index):
            raise self._broken(
                self._file, f"holds {size} bytes, not {start + len(index)}: it is damaged"
            )
        if not self._sound.any() and os.pread(handle, len(index), start) != index:
            raise self._broken(self._file, "has another index than a stage writes: it is damaged")
        return size

    def _load(self, handle: int, block: int, rows: Values) -> None:
        """Fill `rows`, all of a block's."""
        filled = bytearray(self._block_bytes - rows.nbytes)  # what fills up the last block
        checksum = bytearray(SUM_BYTES)
        start, values = block * (self._block_bytes + SUM_BYTES), rows.reshape(-1).view(np.uint8)
        read = sum(
            os.preadv(handle, [values[place : place + AT_ONCE].data], start + place)
            for place in range(0, len(values), AT_ONCE)
        )
        read += os.preadv(handle, [filled, checksum], start + rows.nbytes)
        if read != self._block_bytes + SUM_BYTES:
            raise self._broken(self._file, "ended while it was read")
        if not self._sound[block]:
            found = crc32c(rows.tobytes() + filled if filled else rows)
            if found != int.from_bytes(checksum, "little"):
                raise self._broken(
                    self._file, f"does not fit its checksum in block {block}: it is damaged"
                )
            self._sound[block] = True


class ZstdRows(StoredRows):
    """Rows in compressed blocks, a file each, as stages wrote them formerly."""

    def _whole(self) -> Values:
        out = np.empty(self.shape, self.dtype)
        for block in range(self._blocks):
            rows = self._rows_of(block)
            out[rows] = self._decoded(block)[: rows.stop - rows.start]
        return out

    def _picked(self, blocks: npt.NDArray[np.int64], within: npt.NDArray[np.int64]) -> Values:
        out = np.empty((len(blocks), self.shape[1]), self.dtype)
        for block in np.unique(blocks).tolist():
            where = np.flatnonzero(blocks == block)
            out[where] = self._decoded(block)[within[where]]
        return out

    def _decoded(self, block: int) -> Values:
        from numcodecs.zstd import Zstd

        name = f"c.{block}.0"
        with self._opened(name) as handle:
            data = os.read(handle, os.fstat(handle).st_size)
        whole = np.empty((self._block_rows, self.shape[1]), self.dtype)
        try:
            Zstd().decode(data, out=whole)
        except (RuntimeError, ValueError) as error:
            raise self._broken(name, f"cannot be decompressed ({error})") from None
        return whole


def stored_rows(folder: Path) -> StoredRows:
    """An array of embeddings, from its zarr.json; of the rows nothing is read.

    Raises StoreError: unreadable, or laid out otherwise than stages do.
    """
    try:
        content = orjson.loads((folder / "zarr.json").read_bytes())
        (rows, width), dtype = map(int, content["shape"]), str(content["data_type"])
        chunk = tuple(map(int, content["chunk_grid"]["configuration"]["chunk_shape"]))
        codecs: Any = content["codecs"]
        shard: tuple[int, ...] = ()
        if codecs[0]["name"] == "sharding_indexed":
            inside = codecs[0]["configuration"]
            shard, chunk = chunk, tuple(map(int, inside["chunk_shape"]))
            codecs = inside["codecs"]
        names = [codec["name"] for codec in codecs]
        order = codecs[0]["configuration"]["endian"]
        separator = content["chunk_key_encoding"]["configuration"]["separator"]
        block_rows, across = chunk
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise StoreError(folder, f"is no array of embeddings ({error!r})") from None
    sides = rows > 0 and block_rows > 0 and 0 < width == across and dtype in DTYPES
    whole = (-(-rows // block_rows) * block_rows, width) if sides else ()
    kinds: dict[tuple[bool, tuple[str, ...]], type[StoredRows]] = {
        (True, ("bytes", "crc32c")): RawRows,
        (False, ("bytes", "zstd")): ZstdRows,
    }
    kind = kinds.get((shard == whole, tuple(map(str, names))))
    if not sides or kind is None or (order, separator) != ("little", "."):
        raise StoreError(
            folder,
            f"is {dtype} [{rows}, {width}] in chunks {list(chunk)} of {names}, not embeddings as "
            "a stage writes them",
        )
    if block_rows * width * np.dtype(dtype).itemsize > LARGEST_BLOCK:
        raise StoreError(folder, f"claims blocks of {block_rows} x {width} numbers")
    return kind(folder, (rows, width), np.dtype(dtype).newbyteorder("<"), block_rows)
