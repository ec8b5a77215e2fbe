"""Tiles as a stream: every native tile is decoded at most once, memory is bounded, order is fixed.

The windows of all requests are put in one order (by the last row of native tiles they need) and
cut into batches. For each batch the stream decodes the native tiles met for the first time,
assembles the windows, and drops the tiles nobody needs any more. One producer thread keeps a
bounded queue filled; the codecs and the resampler work without the GIL.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from coverslip.errors import UnreadableTile
from coverslip.tiling.assembly import Source, TilePlane, source_for
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.reading import OnBadTile
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
        on_bad_tile: OnBadTile = "raise",
    ) -> None:
        self.slide, self.grid = slide, grid
        self.indices = np.arange(len(grid)) if indices is None else np.asarray(indices, np.int64)
        if np.any(np.diff(self.indices) <= 0):
            raise ValueError("indices must ascend")
        self.batch, self.threads, self.on_bad_tile = batch, threads, on_bad_tile
        self.counters = StreamCounters()
        self.bad_tiles: list[UnreadableTile] = []

    def __len__(self) -> int:
        """Batches."""
        return -(-len(self.indices) // self.batch)

    def __iter__(self) -> Iterator[TileBatch]:
        every = self.grid.windows()
        windows = Windows(every.origins[self.indices], every.size, every.scale)
        for batch in stream_windows(
            self.slide,
            [windows],
            batch=self.batch,
            threads=self.threads,
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
) -> Iterator[WindowBatch]:
    """Read the windows of all requests in one pass over the slide.

    batch         windows per batch, the same for all requests or one number each
    threads       decode threads; 1 works in the caller's own thread
    ahead         batches kept ready for a slow consumer
    counters      filled as the stream goes

    Each request's windows arrive in their order; how requests interleave depends on nothing but
    where their windows lie. All are cut from the finest source any of them needs. Raises
    UnreadableTile (unless blanked) and ReaderTimeout.
    """
    sizes = [batch] * len(requests) if isinstance(batch, int) else list(batch)
    if len(sizes) != len(requests) or min(sizes, default=1) < 1:
        raise ValueError(f"batch must be one number above 0 per request, got {batch}")
    if not sum(len(request) for request in requests):
        return
    plane = TilePlane(slide, _finest([source_for(slide, r.scale) for r in requests]))
    schedule = _Schedule.of(plane, requests, sizes)
    sheets = [_Sheets.of(r, size) for r, size in zip(requests, sizes, strict=True)]
    work = _Worker(plane, requests, schedule, sheets, on_bad_tile, counters or StreamCounters())
    if threads <= 1:
        yield from work.batches(_run_here)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="coverslip-decode") as pool:
        yield from _read_ahead(lambda: work.batches(pool.submit, pieces=2 * threads), ahead)


def _finest(sources: Sequence[Source]) -> Source:
    return min(sources, key=lambda s: (s.downsample[0] * s.downsample[1], s.reduction))


@dataclass(frozen=True, slots=True)
class _Schedule:
    """Batches in the order they are made, and which tiles each is the first and last to use."""

    batches: list[tuple[int, npt.NDArray[np.int64]]]  # request, window numbers
    spans: list[npt.NDArray[np.int64]]  # per request [N, 4]
    decode: list[npt.NDArray[np.int64]]  # per batch: tiles met for the first time
    drop: list[npt.NDArray[np.int64]]  # per batch: tiles used for the last time

    @classmethod
    def of(cls, plane: TilePlane, requests: Sequence[Windows], sizes: Sequence[int]) -> _Schedule:
        spans = [plane.spans(request) for request in requests]
        batches = _batches(spans, sizes)
        count = plane.columns * plane.rows
        first = np.full(count, len(batches), np.int64)
        last = np.full(count, -1, np.int64)
        for number, (request, index) in enumerate(batches):
            keys = np.unique(plane.keys(spans[request][index]))
            np.minimum.at(first, keys, number)
            last[keys] = number
        return cls(batches, spans, _by_batch(first, len(batches)), _by_batch(last, len(batches)))


def _batches(
    spans: Sequence[npt.NDArray[np.int64]], sizes: Sequence[int]
) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Every request's windows in runs of its size, ordered by the last tile row a run needs."""
    runs = [
        (int(span[index[-1], 3]), request, index)
        for request, (span, size) in enumerate(zip(spans, sizes, strict=True))
        for index in np.split(np.arange(len(span)), range(size, len(span), size))
        if len(index)
    ]
    runs.sort(key=lambda run: run[0])  # stable: a request's own order is kept
    return [(request, index) for _, request, index in runs]


def _by_batch(number: npt.NDArray[np.int64], batches: int) -> list[npt.NDArray[np.int64]]:
    """For each batch, the tiles whose `number` it is."""
    order = np.argsort(number, kind="stable")
    edges = np.searchsorted(number[order], np.arange(batches + 1))
    return [order[edges[i] : edges[i + 1]] for i in range(batches)]


class _Sheet:
    """Memory lent to one batch; goes back when the batch and every view of it are gone."""

    def __init__(self, memory: npt.NDArray[np.uint8], spare: list[npt.NDArray[np.uint8]]) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory, self._spare = memory, spare

    def __del__(self) -> None:
        self._spare.append(self._memory)


@dataclass(frozen=True, slots=True)
class _Sheets:
    """Memory for the batches of one request, used again as consumers let go of it.

    Fresh memory is zeroed by the kernel page by page, which would cost a twelfth of the time that
    decoding takes.
    """

    shape: tuple[int, int, int, int]
    spare: list[npt.NDArray[np.uint8]] = field(default_factory=list)

    @classmethod
    def of(cls, request: Windows, batch: int) -> _Sheets:
        return cls((min(batch, len(request)), request.size[1], request.size[0], 3))

    def lend(self) -> npt.NDArray[np.uint8]:
        memory = self.spare.pop() if self.spare else np.empty(self.shape, np.uint8)
        return np.asarray(_Sheet(memory, self.spare))


Submit = Callable[..., "Future[None]"]


@dataclass(slots=True)
class _Worker:
    """Decodes and assembles a schedule's batches, whoever lends it threads."""

    plane: TilePlane
    requests: Sequence[Windows]
    schedule: _Schedule
    sheets: list[_Sheets]
    on_bad_tile: OnBadTile
    counters: StreamCounters
    tiles: dict[int, RGB | None] = field(default_factory=dict)
    bad: dict[int, UnreadableTile] = field(default_factory=dict)
    counting: threading.Lock = field(default_factory=threading.Lock)

    def batches(self, submit: Submit, pieces: int = 1) -> Iterator[WindowBatch]:
        """The batches in order; the next one's tiles are decoded while this one is assembled."""
        decoding = self._decode(0, submit, pieces)
        for number in range(len(self.schedule.batches)):
            _wait(decoding)
            if number + 1 < len(self.schedule.batches):
                decoding = self._decode(number + 1, submit, pieces)
            yield self._assembled(number, submit, pieces)
            for key in self.schedule.drop[number].tolist():
                del self.tiles[key]

    def _decode(self, number: int, submit: Submit, pieces: int) -> list[Future[None]]:
        keys = self.schedule.decode[number]
        parts = np.array_split(keys, min(pieces, len(keys))) if len(keys) else []
        return [submit(self._decode_some, part.tolist()) for part in parts]

    def _decode_some(self, keys: list[int]) -> None:
        started, left_out = time.perf_counter(), 0
        for key in keys:
            try:
                tile = self.plane.decode(key)
            except UnreadableTile as error:
                if self.on_bad_tile == "raise":
                    raise
                with self.counting:
                    self.bad[key] = error
                tile = None
            self.tiles[key] = tile
            left_out += tile is None
        with self.counting:
            self.counters.native_tiles += len(keys)
            self.counters.left_out += left_out
            self.counters.decode_seconds += time.perf_counter() - started

    def _assembled(self, number: int, submit: Submit, pieces: int) -> WindowBatch:
        request, index = self.schedule.batches[number]
        windows, spans = self.requests[request], self.schedule.spans[request][index]
        pixels = self.sheets[request].lend()[: len(index)]
        corners = windows.origins[index]
        parts = np.array_split(np.arange(len(index)), min(pieces, len(index)))
        _wait(
            [
                submit(self._assemble_some, part, spans, corners, windows.scale, pixels)
                for part in parts
            ]
        )
        with self.counting:
            known = sorted(self.bad.items())
        met = set(self.schedule.decode[number].tolist()) if known else set()
        bad = tuple(error for key, error in known if key in met)
        damaged = np.zeros(len(index), np.bool_)
        if known:
            broken = np.array([key for key, _ in known])
            damaged[:] = [np.isin(self.plane.keys(s[None]), broken).any() for s in spans]
        return WindowBatch(request, index, pixels, bad, damaged)

    def _assemble_some(
        self,
        part: npt.NDArray[np.int64],
        spans: npt.NDArray[np.int64],
        corners: npt.NDArray[np.float64],
        scale: tuple[float, float],
        pixels: npt.NDArray[np.uint8],
    ) -> None:
        started = time.perf_counter()
        places = zip(spans[part].tolist(), corners[part].tolist(), strict=True)
        for i, (span, corner) in zip(part.tolist(), places, strict=True):
            self.plane.assemble(self.tiles, span, corner, scale, pixels[i])
        with self.counting:
            self.counters.windows += len(part)
            self.counters.assemble_seconds += time.perf_counter() - started


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
        producer.join()
