"""Writing QuPath object files as a stream: a million nuclei in memory that does not grow.

Objects are taken in blocks. Threads turn each block into text and compress it; one writer puts
the pieces in order, so the file is the same byte for byte whatever the number of threads.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import BinaryIO

from coverslip.durable import explained, flush_to_disk, unfinished_prefix
from coverslip.export.feature_text import ColumnBlock, Frame, Text, column_text, object_text
from coverslip.export.gzip_fragments import GzipFragments, fragment
from coverslip.export.object_ids import ObjectIds
from coverslip.export.qupath_objects import Color, PolygonColumns, QuPathObject, class_parts
from coverslip.wsi.slide import Box

BLOCK = 8192
"""Objects turned into text at a time."""
MAX_OBJECTS = 500_000
"""Objects per file: QuPath builds the whole file in memory before it shows anything."""

_HEAD = b'{"type":"FeatureCollection","features":[\n'
_BETWEEN = b",\n"
_TAIL = b"\n]}\n"

Work = Callable[[], Text]


@dataclass(frozen=True, slots=True)
class WrittenGeoJSON:
    """What became of an export.

    paths      the files, in order; several where the objects were split
    objects    how many were written
    repaired   of these, how many polygons QuPath would have refused or altered as they came
    dropped    objects outside the slide, or without any area on QuPath's grid
    """

    paths: tuple[Path, ...]
    objects: int
    repaired: int
    dropped: int


def write_geojson(
    path: str | PathLike[str],
    objects: PolygonColumns | Iterable[QuPathObject | PolygonColumns],
    *,
    slide: str,
    bounds: Box | None = None,
    colors: Mapping[str, Color] | None = None,
    max_objects: int | None = MAX_OBJECTS,
    threads: int | None = None,
) -> WrittenGeoJSON:
    """Write objects as a FeatureCollection that every QuPath since 0.4 imports whole.

    path          ends in .geojson, .json, .geojson.gz or .json.gz; QuPath chooses by the name
    objects       columns (fast), objects one by one, or both mixed; never held all at once
    slide         the slide's name, from which the ids are made: exporting again gives the same ids
    bounds        the part of the slide QuPath shows; subtracted, and what lies outside is cut off
    colors        class name -> color; other classes take their objects' or the palette's
    max_objects   beyond this `name.geojson.gz` becomes `name.part-01-of-03.geojson.gz` and so on;
                  None for one file in any case
    threads       None takes up to four

    Parts appear only when all are complete, and files of an earlier export of the same name that
    this one does not replace are removed. Raises StoreError where the folder cannot be written,
    ValueError for a name or values that mean nothing.
    """
    target = Path(fspath(path))
    stem, suffix = _split_name(target)
    if max_objects is not None and max_objects < 1:
        raise ValueError(f"max_objects must be at least 1, got {max_objects}")
    frame = Frame(
        origin=(bounds.x, bounds.y) if bounds else (0, 0),
        size=(bounds.w, bounds.h) if bounds else None,
        ids=ObjectIds(slide),
        colors={": ".join(class_parts(name)): c for name, c in (colors or {}).items()},
    )
    blocks = _blocks(objects, frame, max_objects)
    with explained(target), ExitStack() as cleanup:
        target.parent.mkdir(parents=True, exist_ok=True)
        parts: list[_Part] = []
        totals = [0, 0, 0]
        for number, text in _in_order(blocks, threads or _default_threads(), suffix):
            while len(parts) <= number:
                if parts:
                    parts[-1].finish()
                parts.append(_Part(target.parent, suffix))
                cleanup.callback(parts[-1].discard)
            parts[-1].write(text)
            for i, count in enumerate((text.count, text.repaired, text.dropped)):
                totals[i] += count
        if not parts:
            parts.append(_Part(target.parent, suffix))
            cleanup.callback(parts[-1].discard)
        parts[-1].finish()
        paths = _publish(parts, target, stem, suffix)
    return WrittenGeoJSON(paths, *totals)


def _split_name(target: Path) -> tuple[str, str]:
    """("case", ".geojson.gz") of "case.geojson.gz"."""
    match = re.fullmatch(r"(.+?)(\.(?:geojson|json)(?:\.gz)?)", target.name, re.I | re.S)
    if match is None:
        raise ValueError(
            f"{target.name!r}: QuPath reads objects only from .geojson and .json, plain or .gz"
        )
    return match[1], match[2]


def _default_threads() -> int:
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(granted or 1, 4)


def _blocks(
    objects: PolygonColumns | Iterable[QuPathObject | PolygonColumns],
    frame: Frame,
    max_objects: int | None,
) -> Iterator[tuple[int, Work]]:
    """(part, work) for every block; no block crosses from one part into the next."""
    sources = _sources([objects] if isinstance(objects, PolygonColumns) else objects)
    seen = 0

    def room() -> int:
        return BLOCK if max_objects is None else min(BLOCK, max_objects - seen % max_objects)

    def part() -> int:
        return 0 if max_objects is None else seen // max_objects

    for source in sources:
        if isinstance(source, PolygonColumns):
            first = 0
            twins = frame.ids.twins(source)
            for name in source.classes:
                frame.settle(name)
            while first < len(source):
                rows = slice(first, min(first + room(), len(source)))
                block = ColumnBlock.read(source, rows, twins)
                yield part(), lambda block=block: column_text(block, frame)  # type: ignore[misc]
                seen += rows.stop - first
                first = rows.stop
        else:
            while run := list(islice(source, room())):
                prepared = [(item, frame.ids.of_object(item)) for item in run]
                for item in run:
                    frame.settle(item.class_name, item.class_color)
                yield part(), lambda prepared=prepared: object_text(prepared, frame)  # type: ignore[misc]
                seen += len(run)


def _sources(
    objects: Iterable[QuPathObject | PolygonColumns],
) -> Iterator[PolygonColumns | Iterator[QuPathObject]]:
    """Columns as they are, and single objects in between as one iterator each run."""
    waiting = iter(objects)
    following: deque[PolygonColumns] = deque()

    def singles(first: QuPathObject) -> Iterator[QuPathObject]:
        yield first
        for item in waiting:
            if isinstance(item, PolygonColumns):
                following.append(item)
                return
            yield item

    for item in waiting:
        if isinstance(item, PolygonColumns):
            yield item
        else:
            yield singles(item)
            if following:
                yield following.popleft()


def _in_order(
    blocks: Iterator[tuple[int, Work]], threads: int, suffix: str
) -> Iterator[tuple[int, Text]]:
    """Each block's text, compressed where the file is, in the order of the blocks."""
    packed = suffix.lower().endswith(".gz")

    def finished(work: Work) -> Text:
        text = work()
        return text.packed(fragment(text.body)) if packed else text

    if threads == 1:
        for part, work in blocks:
            yield part, finished(work)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="geojson") as pool:
        waiting: deque[tuple[int, Future[Text]]] = deque()
        try:
            for part, work in blocks:
                waiting.append((part, pool.submit(finished, work)))
                if len(waiting) > threads + 1:
                    number, future = waiting.popleft()
                    yield number, future.result()
            while waiting:
                number, future = waiting.popleft()
                yield number, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


class _Part:
    """One file of an export, under a temporary name until all of them are complete."""

    def __init__(self, folder: Path, suffix: str) -> None:
        handle, name = tempfile.mkstemp(dir=folder, prefix=unfinished_prefix(), suffix=suffix)
        self.path = Path(name)
        self._file: BinaryIO = os.fdopen(handle, "wb")
        packed = suffix.lower().endswith(".gz")
        self._gzip = GzipFragments(self._file) if packed else None
        self._empty = True
        self._put(_HEAD)

    def _put(self, data: bytes, compressed: bytes | None = None) -> None:
        if self._gzip is None:
            self._file.write(data)
        else:
            self._gzip.write(data, compressed)

    def write(self, text: Text) -> None:
        if not text.count:
            return
        if not self._empty:
            self._put(_BETWEEN)
        self._put(text.body, text.compressed)
        self._empty = False

    def finish(self) -> None:
        self._put(_TAIL)
        if self._gzip is not None:
            self._gzip.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.path.chmod(0o644)

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


def _publish(parts: list[_Part], target: Path, stem: str, suffix: str) -> tuple[Path, ...]:
    """Give the finished parts their names, then remove what an earlier export left beside them."""
    count = len(parts)
    width = max(2, len(str(count)))
    if count == 1:
        paths = [target]
    else:
        paths = [
            target.with_name(f"{stem}.part-{i + 1:0{width}d}-of-{count:0{width}d}{suffix}")
            for i in range(count)
        ]
    for part, path in zip(parts, paths, strict=True):
        part.path.replace(path)
    ours = re.compile(re.escape(stem) + r"(\.part-\d+-of-\d+)?" + re.escape(suffix), re.S)
    for entry in list(target.parent.iterdir()):
        if ours.fullmatch(entry.name) and entry not in paths:
            entry.unlink()
    flush_to_disk(target.parent)
    return tuple(paths)
