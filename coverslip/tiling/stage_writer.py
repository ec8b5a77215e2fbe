"""A stage's arrays while they are being written: in durable blocks, under a name that says so.

The group lives in `<parent>/.<leaf>.partial` until it is complete. Blocks are whole shards; after
each, its files and then a progress file are flushed to disk, so a crash costs at most one block.
Results whose total is not known beforehand (nuclei) are spilled block by block and merged at the
end in bounded memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.durable import explained, flush_to_disk, replace_file, whole_file

PROGRESS = ".progress.json"
BLOCKS = ".blocks"
ROWS_PER_BLOCK = 65_536
Columns = Mapping[str, npt.NDArray[Any]]


class StageWriter:
    """Writes one stage; made by `SlideStore.stage`.

    As a context manager it leaves an unfinished stage resumable, whatever the exception.
    """

    def __init__(
        self, final: Path, hash: str, on_complete: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._final, self._hash, self._on_complete = final, hash, on_complete
        self.path = final.with_name(f".{final.name}.partial")
        self._arrays: dict[str, Any] = {}
        self._rows: dict[str, int] = {}
        self._done = self._resume_or_restart()

    @property
    def done_blocks(self) -> int:
        """Blocks that are safely on disk, counted from the first."""
        return self._done

    def _resume_or_restart(self) -> int:
        progress = self.path / PROGRESS
        try:
            found = orjson.loads(progress.read_bytes())
            if found["hash"] == self._hash:
                return int(found["done_blocks"])
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            pass
        with explained(self.path):
            if self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True)
        self._record(0)
        return 0

    def _record(self, done: int) -> None:
        content = {"hash": self._hash, "done_blocks": done}
        replace_file(self.path / PROGRESS, orjson.dumps(content))
        self._done = done

    def create_array(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        *,
        rows_per_block: int,
        chunk_rows: int | None = None,
        codec: str = "zstd",
    ) -> None:
        """Lay out an array whose block is `rows_per_block` rows; harmless when resumed.

        chunk_rows   rows read together; a divisor of rows_per_block, which then is a shard
        codec        "zstd", "lossless" (the same, for pixels), or "jpeg" (uint8 [.., h, w, 3])
        """
        import zarr

        rows = min(rows_per_block, max(shape[0], 1))
        chunk = rows if chunk_rows is None else chunk_rows
        rows = -(-rows // chunk) * chunk
        extra: dict[str, Any] = {"compressors": zarr.codecs.ZstdCodec(level=3)}
        if codec == "jpeg":
            from coverslip.tiling.jpeg_codec import JpegChunks

            extra = {"serializer": JpegChunks(), "compressors": None}
        with explained(self.path):
            if (self.path / name / "zarr.json").exists():
                self._arrays[name] = zarr.open_array(str(self.path / name), mode="r+")
            else:
                self._arrays[name] = zarr.create_array(
                    str(self.path / name),
                    shape=shape,
                    dtype=dtype,
                    chunks=(chunk, *(max(s, 1) for s in shape[1:])),
                    shards=None if chunk == rows else (rows, *(max(s, 1) for s in shape[1:])),
                    fill_value=0,
                    **extra,
                )
        self._rows[name] = rows_per_block

    def write_block(self, number: int, columns: Columns) -> None:
        """Write rows [number · rows_per_block, ...) of each array, then record the block as done."""
        if number != self._done:
            raise ValueError(f"block {self._done} is next, got {number}")
        with explained(self.path):
            for name, values in columns.items():
                self._write_rows(name, number, values)
        self._record(number + 1)

    def _write_rows(self, name: str, number: int, values: npt.NDArray[Any]) -> None:
        start = number * self._rows[name]
        self._arrays[name][start : start + len(values)] = values
        for file in sorted((self.path / name / "c" / str(number)).rglob("*")):
            flush_to_disk(file)
        shard = self.path / name / "c" / str(number)
        if shard.exists():
            flush_to_disk(shard)

    def append_block(self, number: int, columns: Columns) -> None:
        """Spill one block of any length, then record it as done.

        A column `<name>_offset` ([M + 1], from 0) holds where each row begins in column `<name>`.
        """
        if number != self._done:
            raise ValueError(f"block {self._done} is next, got {number}")
        with whole_file(self.path / BLOCKS / f"{number:06d}.npz") as aside:
            # `aside` ends in .npz, so numpy adds nothing to the name
            np.savez(aside, **columns)
        self._record(number + 1)

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Merge what was spilled, put the group in its place and record it as complete, last."""
        if (self.path / BLOCKS).exists():
            self._merge()
        with explained(self._final):
            group = {
                "attributes": {**attributes, "coverslip_stage": self._hash},
                "node_type": "group",
                "zarr_format": 3,
            }
            replace_file(self.path / "zarr.json", json_bytes(group))
            shutil.rmtree(self.path / BLOCKS, ignore_errors=True)
            (self.path / PROGRESS).unlink()
            for path in self.path.rglob("*"):
                flush_to_disk(path)
            flush_to_disk(self.path)
            if self._final.exists():
                shutil.rmtree(self._final)
            self.path.rename(self._final)
            flush_to_disk(self._final.parent)
        self._on_complete(attributes)

    def _spilled(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        for number in range(self._done):
            with np.load(self.path / BLOCKS / f"{number:06d}.npz", allow_pickle=False) as block:
                yield {name: block[name] for name in block.files}

    def _merge(self) -> None:
        """One array per column, filled shard by shard."""
        shapes: dict[str, tuple[int, ...]] = {}
        kinds: dict[str, str] = {}
        for block in self._spilled():
            for name, values in block.items():
                before = shapes.get(name, (0,))[0]
                rows = len(values) - 1 if name.endswith("_offset") else len(values)
                shapes[name] = (before + rows, *values.shape[1:])
                kinds[name] = values.dtype.str[1:]
        for name, shape in shapes.items():
            shutil.rmtree(self.path / name, ignore_errors=True)
            total = (shape[0] + 1, *shape[1:]) if name.endswith("_offset") else shape
            dtype = np.dtype(kinds[name]).name
            self.create_array(name, total, dtype, rows_per_block=ROWS_PER_BLOCK)
        with explained(self.path):
            for name in shapes:
                _fill(self, name, self._column(name))

    def _column(self, name: str) -> Iterator[npt.NDArray[Any]]:
        """A column's pieces in order; offsets counted on from block to block."""
        if not name.endswith("_offset"):
            for block in self._spilled():
                yield block[name]
            return
        base = 0
        for number, block in enumerate(self._spilled()):
            values = block[name]
            yield (values if number == 0 else values[1:]) + base
            base += int(values[-1])

    def abandon(self) -> None:
        """Throw away everything written so far."""
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def _fill(writer: StageWriter, name: str, pieces: Iterator[npt.NDArray[Any]]) -> None:
    waiting: list[npt.NDArray[Any]] = []
    held, number = 0, 0
    for piece in pieces:
        waiting.append(piece)
        held += len(piece)
        while held >= ROWS_PER_BLOCK:
            rows = np.concatenate(waiting)
            writer._write_rows(name, number, rows[:ROWS_PER_BLOCK])
            number += 1
            waiting, held = [rows[ROWS_PER_BLOCK:]], held - ROWS_PER_BLOCK
    if held:
        writer._write_rows(name, number, np.concatenate(waiting))


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys: the same content is the same bytes."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
    return orjson.dumps(content, option=options)
