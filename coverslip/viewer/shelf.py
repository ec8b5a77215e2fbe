"""The slides that may be looked at, by id, and what a run has stored of them."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coverslip.errors import InvalidConfig, StoreError, UnknownName
from coverslip.tiling.store import SlideStore
from coverslip.viewer.deep_zoom import DeepZoom
from coverslip.wsi.opening import open_slide
from coverslip.wsi.slide import Slide

OPEN_SLIDES = 16
"""Kept open; each holds a file and its tables of tiles."""
LOOK_S = 0.5
"""Seconds between two looks at whether a store has changed."""


class Stores:
    """The stores of an output folder, read anew when a run has changed them.

    output   None where there is no run to show
    """

    def __init__(self, output: Path | None) -> None:
        self.output = output
        self._read: dict[str, tuple[int, SlideStore]] = {}
        self._looked: dict[str, float] = {}
        self._lock = threading.Lock()

    def of(self, slide_id: str) -> SlideStore | None:
        """The slide's store; None where there is none. Raises StoreError where it is broken.

        slide_id   one that the shelf knows
        """
        if self.output is None:
            return None
        path = self.output / f"{slide_id}.zarr"
        with self._lock:
            now = time.monotonic()
            if slide_id in self._read and now - self._looked[slide_id] < LOOK_S:
                return self._read[slide_id][1]
            self._looked[slide_id] = now
        try:
            changed = (path / "zarr.json").stat().st_mtime_ns
        except OSError:
            with self._lock:
                self._read.pop(slide_id, None)
            return None
        with self._lock:
            kept = self._read.get(slide_id)
            if kept is None or kept[0] != changed:
                kept = (changed, SlideStore.open(path))
                self._read[slide_id] = kept
        return kept[1]

    def sound(self, slide_id: str) -> SlideStore | None:
        """As `of`, None for a broken store too: its slide can be looked at all the same, and the
        list of slides tells of it."""
        try:
            return self.of(slide_id)
        except StoreError:
            return None


@dataclass
class OpenedSlide:
    """A slide in use.

    version   changes with the file
    """

    slide: Slide
    zoom: DeepZoom
    version: str
    users: int = 0
    doomed: bool = False


class Shelf:
    """Slides by id, opened when first looked at. Safe to share between threads.

    slides   (path, id) each, as `slide_ids` gives them
    stores   of the same slides: their pixel size goes before the file's, for theirs is the one
             that everything found was measured with
    most     slides kept open; the one not used for longest is closed
    """

    def __init__(
        self, slides: Sequence[tuple[str, str]], stores: Stores, most: int = OPEN_SLIDES
    ) -> None:
        self.paths = {slide_id: path for path, slide_id in slides}
        if len(self.paths) != len(slides):
            raise InvalidConfig("two of these slides have the same id; view their folders apart")
        self.stores, self._most = stores, most
        self._open: OrderedDict[str, OpenedSlide] = OrderedDict()
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {slide_id: threading.Lock() for slide_id in
                                                    self.paths}  # fmt: skip

    def path(self, slide_id: str) -> str:
        """Raises UnknownName."""
        try:
            return self.paths[slide_id]
        except KeyError:
            raise UnknownName("slide", slide_id, self.paths) from None

    @contextmanager
    def lent(self, slide_id: str) -> Iterator[OpenedSlide]:
        """The slide, open for the length of the block. Raises UnknownName, SlideError."""
        opened = self._taken(slide_id)
        if opened is None:
            with self._opening[slide_id]:
                opened = self._taken(slide_id) or self._opened(slide_id)
        try:
            yield opened
        finally:
            with self._lock:
                opened.users -= 1
                if opened.doomed and not opened.users:
                    opened.slide.close()

    def _taken(self, slide_id: str) -> OpenedSlide | None:
        self.path(slide_id)
        with self._lock:
            opened = self._open.get(slide_id)
            if opened is not None:
                self._open.move_to_end(slide_id)
                opened.users += 1
            return opened

    def _opened(self, slide_id: str) -> OpenedSlide:
        path = self.paths[slide_id]
        slide = open_slide(path, mpp=self._stored_mpp(slide_id), require_mpp=False)
        opened = OpenedSlide(slide, DeepZoom(slide.size), file_version(path), users=1)
        with self._lock:
            self._open[slide_id] = opened
            while len(self._open) > self._most:
                self._close(self._open.popitem(last=False)[1])
        return opened

    def _stored_mpp(self, slide_id: str) -> tuple[float, float] | None:
        store = self.stores.sound(slide_id)
        found = store.slide.get("mpp") if store else None
        return (float(found[0]), float(found[1])) if found else None

    def _close(self, opened: OpenedSlide) -> None:
        opened.doomed = True
        if not opened.users:
            opened.slide.close()

    def close(self) -> None:
        """Close all slides, those in use when their users are done."""
        with self._lock:
            for opened in self._open.values():
                self._close(opened)
            self._open.clear()


def file_version(path: str) -> str:
    """Changes when the file, or the folder that a slide is, is written again."""
    try:
        found = os.stat(path)
        content = f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
    except OSError:  # a URL
        content = path
    return hashlib.blake2b(content.encode(), digest_size=6).hexdigest()
