"""A stage's arrays while they are being written: in durable blocks, under a name that says so.

<parent>/.<leaf>.partial/         the group until it is complete
<parent>/.<leaf>.progress.json    {hash, done_blocks}: what of it is safely on disk

Blocks are whole shards, or ends of one that grows ("raw"), each flushed to disk before the
progress file counts it, so a crash costs at most one block. Completing is one rename; the progress
file goes last, so a crash on the way there costs nothing. Results whose total is not known
beforehand (nuclei) are spilled block by block and merged at the end in bounded memory.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.durable import UNFINISHED, explained, flush_to_disk, replace_file, whole_file
from coverslip.tiling.shards import ChunkCodec, RowArray, file_sum, write_shard

BLOCKS = ".blocks"
MERGED_CHUNK = 65_536
MERGED_SHARD = 16 * MERGED_CHUNK
"""Rows of merged columns read together, and rows per file; fewer where rows are wide."""
WIDE = 4
"""Values in a row for which there are as many rows as said."""
STAGE_HASH = "coverslip_stage"
"""Attribute of a finished group: the hash of what decided it."""
STAGE_FILES = "coverslip_files"
"""Attribute of a finished group: its other files -> [bytes, CRC32C], for `verification`."""
Columns = Mapping[str, npt.NDArray[Any]]


class StageWriter:
    """Writes one stage; made by `SlideStore.stage`.

    As a context manager it leaves an unfinished stage resumable, whatever the exception.
    """

    def __init__(
        self, final: Path, hash: str, on_complete: Callable[[], None], *, threads: int = 2
    ) -> None:
        self._final, self._hash, self._on_complete = final, hash, on_complete
        self._threads = threads
        self.path = partial_path(final)
        self._progress = progress_path(final)
        self._arrays: dict[str, RowArray] = {}
        self._metadata: dict[str, bytes] = {}
        self._done = self._resume()

    @property
    def done_blocks(self) -> int:
        """Blocks that are safely on disk, counted from the first. Ask after `create_array`."""
        return self._done

    def _resume(self) -> int:
        try:
            found = orjson.loads(self._progress.read_bytes())
            done = int(found["done_blocks"])
            if found["hash"] == self._hash and self.path.is_dir():
                self._sweep()
                return done
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            pass
        self._restart()
        return 0

    def _restart(self) -> None:
        with explained(self.path):
            self._progress.unlink(missing_ok=True)
            if self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True)
            flush_to_disk(self.path.parent)
        self._record(0)

    def _sweep(self) -> None:
        """Remove what a killed process left half written."""
        for file in self.path.rglob(f"{UNFINISHED}*"):
            file.unlink(missing_ok=True)

    def _record(self, done: int) -> None:
        content = {"hash": self._hash, "done_blocks": done}
        replace_file(self._progress, orjson.dumps(content))
        self._done = done

    def create_array(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        *,
        rows_per_block: int,
        chunk_rows: int | None = None,
        codec: ChunkCodec = "zstd",
    ) -> None:
        """Lay out an array of `shape`, written `rows_per_block` rows at a time.

        chunk_rows   rows read together; a divisor of rows_per_block. All of a block by default
        codec        "zstd"; "lossless" for pixels; "raw" for embeddings; "jpeg" for uint8
                     [N, h, w, 3], chunk_rows 1

        Harmless when resumed; a stage left in another layout (by another version) starts over.
        """
        rows = rows_per_block
        if chunk_rows is None:
            rows = chunk_rows = min(rows_per_block, max(shape[0], 1))
        array = RowArray(tuple(shape), dtype, rows, chunk_rows, codec)
        self.lay_out(name, array.metadata())
        self._arrays[name] = array

    def lay_out(self, name: str, metadata: Mapping[str, Any]) -> None:
        """Write an array's zarr.json; what of it is written otherwise goes by `write_shards`."""
        path, wanted = self.path / name / "zarr.json", json_bytes(metadata)
        if path.exists() and path.read_bytes() != wanted:
            self._restart()
            for other, content in self._metadata.items():
                replace_file(self.path / other / "zarr.json", content)
        if not path.exists():
            replace_file(path, wanted)
            flush_to_disk(self.path)
        self._metadata[name] = wanted

    def write_shards(self, number: int, shards: Mapping[str, Sequence[bytes | None]]) -> None:
        """Write a block of encoded shards, by their paths in the group, then record it as done.

        A shard without any chunk is not written: readers take it as the fill value.
        """
        self._expect(number)
        for name, chunks in shards.items():
            if any(chunk is not None for chunk in chunks):
                write_shard(self.path / name, chunks)
                with explained(self.path):
                    for folder in list(Path(name).parents)[1:]:
                        flush_to_disk(self.path / folder)
        self._record(number + 1)

    def write_block(self, number: int, columns: Columns) -> None:
        """Write rows [number · rows_per_block, ...) of each array, then record the block as done.

        Only the last block may be shorter. Raises ValueError for a block out of turn or of
        another shape; StoreError where the disk refuses, and then the block can be written again.
        """
        self._expect(number)
        for name, values in columns.items():
            self._arrays[name].write_block(self.path / name, number, values, self._threads)
        self._record(number + 1)

    def encode(self, name: str, rows: npt.NDArray[Any]) -> npt.NDArray[np.object_]:
        """[N] compressed rows of an array with chunk_rows 1; `write_block` takes them as they are.

        A block that is gathered bit by bit waits in memory as small as it will be on disk.
        """
        return self._arrays[name].encode(rows, self._threads)

    def append_block(self, number: int, columns: Columns) -> None:
        """Spill one block of any length, then record it as done.

        A column `<name>_offset` ([M + 1], from 0) holds where each row begins in column `<name>`.
        """
        self._expect(number)
        # the suffix .npz is kept while it is written, so that numpy adds nothing to the name
        with whole_file(self._block(number)) as aside:
            np.savez(aside, allow_pickle=False, **columns)
        self._record(number + 1)

    def spilled(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """The blocks that `append_block` has written, in order; none once they are merged."""
        merged = left_hash(self.path) == self._hash
        for number in range(0 if merged else self._done):
            with np.load(self._block(number), allow_pickle=False) as block:
                yield dict(block)

    def _expect(self, number: int) -> None:
        if number != self._done:
            raise ValueError(f"block {self._done} is next, got {number}")

    def _block(self, number: int) -> Path:
        return self.path / BLOCKS / f"{number:06d}.npz"

    def finish(self, attributes: Mapping[str, Any], columns: Columns | None = None) -> None:
        """Merge what was spilled, put the group in its place and record it as complete, last.

        columns   what is kept instead of what was spilled, where it was made of that

        Raises ValueError where blocks are missing.
        """
        self._check_complete()
        if (self.path / BLOCKS).exists() and left_hash(self.path) != self._hash:
            self._merge([columns] if columns is not None else None)
        with explained(self._final):
            replace_file(
                self.path / "zarr.json",
                group_bytes(
                    {**attributes, STAGE_HASH: self._hash, STAGE_FILES: self._files_on_disk()}
                ),
            )
            # from here on the blocks are not needed, even if this process dies
            shutil.rmtree(self.path / BLOCKS, ignore_errors=True)
            self._sweep()
            flush_to_disk(self.path)
            self.path.rename(self._final)
            flush_to_disk(self._final.parent)
        self._on_complete()
        with explained(self._progress):
            self._progress.unlink(missing_ok=True)

    def _files_on_disk(self) -> dict[str, list[int]]:
        """Path in the group -> [bytes, CRC32C] of what will stay of it, but for its zarr.json."""
        return {
            path.relative_to(self.path).as_posix(): list(file_sum(path))
            for path in sorted(self.path.rglob("*"))
            if path.is_file()
            and not path.name.startswith(UNFINISHED)
            and path.relative_to(self.path).parts[0] not in (BLOCKS, "zarr.json")
        }

    def _check_complete(self) -> None:
        for name, array in self._arrays.items():
            wanted = -(-array.shape[0] // array.block_rows)
            if self._done < wanted:
                raise ValueError(f"{name} has {wanted} blocks, {self._done} are written")

    def _spilled(self, column: str, blocks: Sequence[Columns] | None) -> Iterator[npt.NDArray[Any]]:
        if blocks is not None:
            yield from (block[column] for block in blocks)
            return
        for number in range(self._done):
            with np.load(self._block(number), allow_pickle=False) as block:
                yield block[column]

    def _merge(self, blocks: Sequence[Columns] | None) -> None:
        """One array per column, filled shard by shard; only one column's shard is in memory."""
        with explained(self.path):
            names = list(blocks[0] if blocks is not None else next(self.spilled()))
            for name in names:
                offsets = name.endswith("_offset")
                rows, sample = 0, np.empty(0)
                for sample in self._spilled(name, blocks):
                    rows += len(sample) - offsets
                wide = max(1, math.prod(sample.shape[1:]) // WIDE)
                chunk = max(1, MERGED_CHUNK // wide)
                array = RowArray(
                    (rows + offsets, *sample.shape[1:]), sample.dtype.name,
                    MERGED_SHARD // MERGED_CHUNK * chunk, chunk,
                )  # fmt: skip
                replace_file(self.path / name / "zarr.json", json_bytes(array.metadata()))
                pieces = self._spilled(name, blocks)
                pieces = _counted_on(pieces) if offsets else pieces
                for number, piece in enumerate(_regrouped(pieces, array.block_rows)):
                    array.write_block(self.path / name, number, piece, self._threads)

    def abandon(self) -> None:
        """Throw away everything written so far."""
        self._progress.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to undo: blocks on disk stay for the next run."""


def _counted_on(pieces: Iterator[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Offsets that go on from block to block."""
    base = 0
    for number, values in enumerate(pieces):
        yield (values if number == 0 else values[1:]) + base
        base += int(values[-1])


def _regrouped(pieces: Iterator[npt.NDArray[Any]], rows: int) -> Iterator[npt.NDArray[Any]]:
    """The same rows in pieces of `rows`, the last one shorter."""
    waiting: list[npt.NDArray[Any]] = []
    held = 0
    for piece in pieces:
        waiting.append(piece)
        held += len(piece)
        if held < rows:
            continue
        merged = np.concatenate(waiting)
        whole = held // rows * rows
        for start in range(0, whole, rows):
            yield merged[start : start + rows]
        waiting, held = [merged[whole:]], held - whole
    if held:
        yield np.concatenate(waiting)


def partial_path(final: Path) -> Path:
    """Where a stage's group lies until it is complete."""
    return final.with_name(f".{final.name}.partial")


def progress_path(final: Path) -> Path:
    """The file that counts a stage's finished blocks."""
    return final.with_name(f".{final.name}.progress.json")


def left_hash(group: Path) -> str:
    """The hash a finished group carries; "" for anything else."""
    try:
        attributes = orjson.loads((group / "zarr.json").read_bytes())["attributes"]
        return str(attributes.get(STAGE_HASH, ""))
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return ""


def group_bytes(attributes: Mapping[str, Any]) -> bytes:
    """The zarr.json of a group."""
    return json_bytes({"attributes": dict(attributes), "node_type": "group", "zarr_format": 3})


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys: the same content is the same bytes."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
    return orjson.dumps(content, option=options)
