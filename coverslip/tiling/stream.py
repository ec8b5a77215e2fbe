"""Tiles as a stream: every native tile is decoded at most once, memory is bounded, order is fixed.

The windows of all requests are put in one order (by the last row of native tiles they need) and
cut into batches. For each batch the stream decodes the native tiles met for the first time,
assembles the windows, and drops the tiles nobody needs any more. One producer thread keeps a
bounded queue filled; the codecs and the resampler work without the GIL.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from coverslip.errors import UnreadableTile
from coverslip.tiling.assembly import Source, TilePlane, source_for
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.reading import OnBadTile
from coverslip.tiling.schedule import Schedule
from coverslip.tiling.sheets import Sheets
from coverslip.tiling.windows import Windows
from coverslip.wsi.slide import RGB, Slide

__all__ = [
    "StreamCounters",
    "TileBatch",
    "TileStream",
    "WindowBatch",
    "Windows",
    "stream_windows",
]


@dataclass(slots=True)
class StreamCounters:
    """What a stream did; seconds are summed over its threads.

    native_tiles   tiles decoded, each once; left_out those the file holds no bytes for
    windows        windows assembled
    """

    native_tiles: int = 0
    left_out: int = 0
    windows: int = 0
    decode_seconds: float = 0.0
    assemble_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Some windows of one request.

    request   position of the request in the list that was passed
    index     int64 [B] window numbers, ascending without gaps from batch to batch
    pixels    uint8 [B, h, w, 3]
    bad       native tiles met in this batch that could not be decoded (and are white)
    damaged   bool [B] windows that touch such a tile, wherever it was met first
    """

    request: int
    index: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.uint8]
    bad: tuple[UnreadableTile, ...]
    damaged: npt.NDArray[np.bool_]

    def since(self, first: int) -> WindowBatch:
        """The part of the batch from window `first` on."""
        if self.index[0] >= first:
            return self
        kept = self.index >= first
        return WindowBatch(
            self.request, self.index[kept], self.pixels[kept], self.bad, self.damaged[kept]
        )


@dataclass(frozen=True, slots=True)
class TileBatch:
    """Some tiles of a grid: pixels uint8 [B, T, T, 3], boxes int32 [B, 4], index int64 [B]."""

    pixels: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.int32]
    index: npt.NDArray[np.int64]


class TileStream:
    """The tiles of a grid in order, in batches.

    indices       which tiles, ascending; all by default. Nothing else is read
    threads       decode threads; 1 works in the caller's own thread
    ahead         batches kept ready for a slow consumer; 0 reads and is read by turns
    on_bad_tile   "blank" takes undecodable native tiles as white, lists them in `bad_tiles` and
                  goes on; "raise" raises UnreadableTile

    Iterating twice reads twice.
    """

    def __init__(
        self,
        slide: Slide,
        grid: TileGrid,
        *,
        indices: npt.NDArray[np.int64] | None = None,
        batch: int = 64,
        threads: int = 2,
        ahead: int = 2,
        on_bad_tile: OnBadTile = "raise",
    ) -> None:
        self.slide, self.grid = slide, grid
        self.indices = grid.chosen(indices)
        self.batch, self.threads, self.ahead = batch, threads, ahead
        self.on_bad_tile: OnBadTile = on_bad_tile
        self.counters = StreamCounters()
        self.bad_tiles: list[UnreadableTile] = []

    def __len__(self) -> int:
        """Batches."""
        return -(-len(self.indices) // self.batch)

    def __iter__(self) -> Iterator[TileBatch]:
        for batch in stream_windows(
            self.slide,
            [self.grid.windows().at(self.indices)],
            batch=self.batch,
            threads=self.threads,
            ahead=self.ahead,
            on_bad_tile=self.on_bad_tile,
            counters=self.counters,
        ):
            self.bad_tiles.extend(batch.bad)
            index = self.indices[batch.index]
            yield TileBatch(batch.pixels, self.grid.boxes[index], index)


def stream_windows(
    slide: Slide,
    requests: Sequence[Windows],
    *,
    batch: int | Sequence[int] = 64,
    threads: int = 2,
    ahead: int = 2,
    on_bad_tile: OnBadTile = "raise",
    counters: StreamCounters | None = None,
    beside: Sequence[tuple[float, float]] = (),
) -> Generator[WindowBatch, None, None]:
    """Read the windows of all requests in one pass over the slide.

    batch         windows per batch, the same for all requests or one number each
    threads       decode threads; 1 works in the caller's own thread
    ahead         batches kept ready for a slow consumer. 0 reads and is read by turns: best for a
                  consumer that uses all processors itself, such as a network on the CPU
    counters      filled as the stream goes
    beside        scales of requests that are not made now: windows are cut as if they were

    Each request's windows arrive in their order; how requests interleave depends on nothing but
    where their windows lie. All are cut from the finest source any of them needs. Raises
    UnreadableTile (unless blanked) and ReaderTimeout.
    """
    sizes = [batch] * len(requests) if isinstance(batch, int) else list(batch)
    if len(sizes) != len(requests) or min(sizes, default=1) < 1:
        raise ValueError(f"batch must be one number above 0 per request, got {batch}")
    if not sum(len(request) for request in requests):
        return
    scales = [*(request.scale for request in requests), *beside]
    plane = TilePlane(slide, _finest([source_for(slide, s) for s in scales]))
    pieces = 1 if threads <= 1 else 2 * threads
    schedule = Schedule.of(plane, requests, sizes, pieces)
    sheets = [
        Sheets((min(size, len(r)), r.size[1], r.size[0], 3))
        for r, size in zip(requests, sizes, strict=True)
    ]
    counters = counters if counters is not None else StreamCounters()
    work = _Worker(plane, requests, schedule, sheets, on_bad_tile, counters)
    if threads <= 1:
        yield from work.batches(_run_here, pieces, by_turns=True)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="coverslip-decode") as pool:
        if ahead:
            yield from _read_ahead(lambda: work.batches(pool.submit, pieces), ahead)
        else:
            yield from work.batches(pool.submit, pieces, by_turns=True)


def _finest(sources: Sequence[Source]) -> Source:
    return min(sources, key=lambda s: (s.downsample[0] * s.downsample[1], s.reduction))


T = TypeVar("T")
Submit = Callable[..., "Future[None]"]


@dataclass(frozen=True, slots=True)
class _Assembly:
    """One batch while its windows are being assembled."""

    number: int
    pixels: npt.NDArray[np.uint8]
    work: list[Future[None]]


@dataclass(slots=True)
class _Worker:
    """Decodes and assembles a schedule's batches, whoever lends it threads."""

    plane: TilePlane
    requests: Sequence[Windows]
    schedule: Schedule
    sheets: list[Sheets]
    on_bad_tile: OnBadTile
    counters: StreamCounters
    tiles: dict[int, RGB | None] = field(default_factory=dict)
    bad: dict[int, UnreadableTile] = field(default_factory=dict)
    counting: threading.Lock = field(default_factory=threading.Lock)

    def batches(self, submit: Submit, pieces: int, by_turns: bool = False) -> Iterator[WindowBatch]:
        """The batches in order, each cut into `pieces` for the threads.

        The next batch is begun before this one is handed over, so that no thread waits for the
        slowest piece; unless by turns, when nothing runs while the consumer has a batch.
        """
        begun: _Assembly | None = None
        decoding = self._decode(0, submit, pieces)
        for number in range(len(self.schedule.batches)):
            _wait(decoding)
            assembly = self._assemble(number, submit, pieces)
            if by_turns:
                yield self._finished(assembly)
            elif begun is not None:
                yield self._finished(begun)
            begun = assembly
            decoding = self._decode(number + 1, submit, pieces)
        if not by_turns and begun is not None:
            yield self._finished(begun)

    def _decode(self, number: int, submit: Submit, pieces: int) -> list[Future[None]]:
        """Begin to decode the tiles that batch `number` meets first."""
        keys = self.schedule.decode[number] if number < len(self.schedule.batches) else ()
        parts = np.array_split(keys, min(pieces, len(keys))) if len(keys) else []
        return [submit(self._decode_some, part.tolist()) for part in parts]

    def _decode_some(self, keys: list[int]) -> None:
        self._decode_to(self.tiles, keys)

    def _decode_to(self, tiles: dict[int, RGB | None], keys: list[int]) -> float:
        """Returns the seconds it took."""
        started = time.perf_counter()
        for key in keys:
            tiles[key] = self._blanked(key, self.plane.decode, key)
        return self._counted(started, len(keys), sum(tiles[key] is None for key in keys))

    def _decode_whole(self, out: RGB, key: int) -> float:
        """A window that is a native tile, decoded where it belongs; returns the seconds."""
        started = time.perf_counter()
        found = self._blanked(key, self.plane.decode_into, out, key)
        if not found:
            out[...] = 255
        return self._counted(started, 1, not found)

    def _blanked(self, key: int, decode: Callable[..., T], *arguments: Any) -> T | None:
        """What `decode` returns, or None for a bad tile where that is allowed."""
        try:
            return decode(*arguments)
        except UnreadableTile as error:
            if self.on_bad_tile == "raise":
                raise
            with self.counting:
                self.bad[key] = error
            return None

    def _counted(self, started: float, tiles: int, left_out: int) -> float:
        taken = time.perf_counter() - started
        with self.counting:
            self.counters.native_tiles += tiles
            self.counters.left_out += left_out
            self.counters.decode_seconds += taken
        return taken

    def _assemble(self, number: int, submit: Submit, pieces: int) -> _Assembly:
        """Begin to assemble batch `number`, whose shared tiles are decoded."""
        request, index = self.schedule.batches[number]
        pixels = self.sheets[request].lend()[: len(index)]
        parts = np.array_split(np.arange(len(index)), min(pieces, len(index)))
        work = [submit(self._assemble_some, number, part, pixels) for part in parts]
        return _Assembly(number, pixels, work)

    def _assemble_some(
        self, number: int, part: npt.NDArray[np.int64], pixels: npt.NDArray[np.uint8]
    ) -> None:
        started, decoding = time.perf_counter(), 0.0
        request, index = self.schedule.batches[number]
        windows, numbers = self.requests[request], index[part]
        spans = self.schedule.spans[request][numbers]
        places = zip(spans.tolist(), windows.origins[numbers].tolist(), strict=True)
        needs = self._needs(spans)
        for i, (span, corner), (shared, alone) in zip(part.tolist(), places, needs, strict=True):
            if len(alone) == 1 and self.plane.is_tile(
                alone[0], corner, windows.scale, windows.size
            ):
                decoding += self._decode_whole(pixels[i], alone[0])
                continue
            tiles = self.tiles
            if alone:
                tiles = {key: tiles[key] for key in shared}
                decoding += self._decode_to(tiles, alone)
            self.plane.assemble(tiles, span, corner, windows.scale, pixels[i])
        with self.counting:
            self.counters.windows += len(part)
            self.counters.assemble_seconds += time.perf_counter() - started - decoding

    def _needs(self, spans: npt.NDArray[np.int64]) -> Iterator[tuple[list[int], list[int]]]:
        """Per window, the tiles it shares with others and those that only it needs."""
        keys = self.plane.keys(spans)
        ends = np.cumsum((spans[:, 2] - spans[:, 0]) * (spans[:, 3] - spans[:, 1]))
        alone = self.schedule.alone[keys]
        start = 0
        for end in ends.tolist():
            mine, only = keys[start:end], alone[start:end]
            yield mine[~only].tolist(), mine[only].tolist()
            start = end

    def _finished(self, assembly: _Assembly) -> WindowBatch:
        """Wait for a batch, drop the tiles it was the last to use, and say what was bad."""
        _wait(assembly.work)
        request, index = self.schedule.batches[assembly.number]
        for key in self.schedule.drop[assembly.number].tolist():
            del self.tiles[key]
        with self.counting:
            known = sorted(self.bad.items())
        first = self.schedule.first
        bad = tuple(error for key, error in known if first[key] == assembly.number)
        damaged = np.zeros(len(index), np.bool_)
        if known:
            broken = np.array([key for key, _ in known])
            spans = self.schedule.spans[request][index]
            damaged[:] = [np.isin(self.plane.keys(s[None]), broken).any() for s in spans]
        return WindowBatch(request, index, assembly.pixels, bad, damaged)


def _run_here(function: Callable[..., None], *arguments: object) -> Future[None]:
    """A `submit` that works at once, in the caller's thread."""
    future: Future[None] = Future()
    function(*arguments)
    future.set_result(None)
    return future


def _wait(futures: Sequence[Future[None]]) -> None:
    """Wait for all, then raise the first's exception: nothing is left running behind it."""
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None:
            raise error


def _read_ahead(start: Callable[[], Iterator[WindowBatch]], ahead: int) -> Iterator[WindowBatch]:
    """Run an iterator in a thread of its own, at most `ahead` items before the consumer."""
    ready: queue.Queue[WindowBatch | BaseException | None] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: WindowBatch | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        batches = start()
        try:
            for batch in batches:
                if not put(batch):
                    return
        except BaseException as error:
            put(error)
        else:
            put(None)

    producer = threading.Thread(target=produce, name="coverslip-stream", daemon=True)
    producer.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        if not sys.is_finalizing():  # then no daemon thread runs any more, and joining would wait
            producer.join()
