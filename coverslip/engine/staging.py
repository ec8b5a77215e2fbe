"""Slides copied from slow storage to a local disk before they are read, one ahead of the other.

Tiles are read in small pieces, which network storage answers slowly; one sequential copy, made
while the slide before is processed, hides that. What cannot be copied is read where it lies.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from types import TracebackType
from typing import Self

from coverslip.durable import FULL
from coverslip.engine.slide_copies import CopyStopped, NotCopied, SlideCopies, SlideCopy
from coverslip.errors import StoreError

LIMIT = 200 * 10**9
IN_PLACE = "was read in place: "
TAKEN = "copies of slides that are being processed leave no room for it"
LOOK_AGAIN_S = 0.5
"""Between looks for room that others in this process may have made."""
END_S = 10.0
"""How long a copy's thread is waited for: a read from storage that has gone may never return."""


@dataclass(frozen=True, slots=True)
class Staging:
    """Where slides are copied to before they are read, and how much may lie there at once.

    folder   local; made if missing
    limit    bytes of copies at once, of this process
    """

    folder: Path
    limit: int = LIMIT

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit must be at least 1 byte, got {self.limit}")


@dataclass(frozen=True, slots=True)
class StagedSlide:
    """path   to read from: the copy's, or the slide's own where it was not copied
    remark   why it was not copied; "" where it was, or where nothing had to be
    """

    path: str
    remark: str


@contextmanager
def staged(path: str, staging: Staging) -> Iterator[StagedSlide]:
    """One slide, copied for the length of the block; URLs are not.

    Raises StoreError where nothing can be written to the staging folder.
    """
    if "://" in path:
        yield StagedSlide(path, "")
        return
    try:
        copies = SlideCopies(staging.folder, staging.limit)
    except StoreError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in FULL:
            raise
        # a disk that others filled in the middle of a run costs time, not slides
        yield StagedSlide(path, f"{IN_PLACE}{staging.folder}: {error.problem}")
        return
    with closing(copies):
        try:
            slide = StagedSlide(
                copies.copy(path, stopped=lambda: False, make_room=_raise_taken).path, ""
            )
        except NotCopied as error:
            slide = StagedSlide(path, f"{IN_PLACE}{error}")
        yield slide


def _raise_taken() -> None:
    raise NotCopied(TAKEN)


class ReadAhead:
    """Copies of the slides that come next, made by a thread while others are processed.

    paths   in the order in which they will be asked for
    ahead   so many copies at most wait to be asked for

    A context manager; on exit the thread ends soon, also within a large copy, and every copy is
    removed. Asking for a slide passes over those before it: they are copied only when they are
    asked for. A slide that is asked for comes before all others, and takes the room of copies that
    wait; where only slides not yet released hold the room, it is read in place.
    """

    def __init__(self, paths: Sequence[str], staging: Staging, ahead: int) -> None:
        if ahead < 1:
            raise ValueError(f"ahead must be at least 1 slide, got {ahead}")
        self._staging, self._ahead = staging, ahead
        self._paths = list(dict.fromkeys(path for path in paths if "://" not in path))
        self._place = {path: place for place, path in enumerate(self._paths)}
        self._next = list(range(len(self._paths)))  # a heap of places
        self._reached = -1  # the furthest place asked for
        self._asked: dict[str, None] = {}  # in the order of asking, until released
        self._released: set[str] = set()  # at least once
        self._slides: dict[str, tuple[StagedSlide, SlideCopy | None]] = {}
        self._news = threading.Condition()
        self._ended = False
        self._bug: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Raises StoreError where nothing can be written to the staging folder."""
        self._copies = SlideCopies(self._staging.folder, self._staging.limit)
        self._thread = threading.Thread(target=self._work, name="coverslip-staging", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._news:
            self._ended = True
            self._news.notify_all()
        assert self._thread is not None
        self._thread.join(END_S)
        self._copies.close()

    def slide(self, path: str) -> StagedSlide:
        """The slide, when its copy is complete or it is certain that there will be none.

        May be asked for in any order, after its release, and for paths not announced. Until its
        release the answer stays the same.
        """
        if "://" in path:
            return StagedSlide(path, "")
        if self._thread is None:
            raise RuntimeError("slides are copied within the block: with ReadAhead(...) as ahead")
        with self._news:
            self._reached = max(self._reached, self._place.get(path, -1))
            while True:
                if self._bug is not None:
                    raise self._bug
                if self._ended:
                    return StagedSlide(path, f"{IN_PLACE}the work on all slides has ended")
                if path not in self._asked:
                    self._asked[path] = None
                    self._news.notify_all()
                if path in self._slides:
                    return self._slides[path][0]
                self._news.wait()

    def release(self, path: str) -> None:
        """Remove the slide's copy; it will not be asked for, or not soon."""
        with self._news:
            self._asked.pop(path, None)
            self._released.add(path)
            _, copy = self._slides.pop(path, (None, None))
        if copy is not None:
            self._copies.remove(copy)
        with self._news:
            self._news.notify_all()

    def _work(self) -> None:
        try:
            while (path := self._next_path()) is not None:
                copy = None
                try:
                    copy = self._copies.copy(
                        path,
                        stopped=partial(self._is_needless, path),
                        make_room=partial(self._make_room, path),
                    )
                    slide = StagedSlide(copy.path, "")
                except CopyStopped:
                    self._put_back(path)
                    continue
                except NotCopied as error:
                    slide = StagedSlide(path, f"{IN_PLACE}{error}")
                self._settle(path, slide, copy)
        except BaseException as error:
            with self._news:
                self._bug = error
                self._news.notify_all()

    def _next_path(self) -> str | None:
        """What to copy next, waited for; None at the end."""
        while True:
            with self._news:
                if self._ended:
                    return None
                if wanted := self._wanted():
                    return wanted
                copy = None
                if self._may_go_ahead():
                    return self._paths[heappop(self._next)]
                passed = [p for p in self._waiting() if self._place[p] <= self._reached]
                if self._next and passed:
                    _, copy = self._slides.pop(passed[0])
                else:
                    self._news.wait()
            if copy is not None:
                self._copies.remove(copy)

    def _wanted(self) -> str | None:
        return next((path for path in self._asked if path not in self._slides), None)

    def _may_go_ahead(self) -> bool:
        while self._next and (
            self._next[0] <= self._reached or self._paths[self._next[0]] in self._released
        ):
            heappop(self._next)
        return bool(self._next) and len(self._waiting()) < self._ahead

    def _waiting(self) -> list[str]:
        """Slides that nobody has asked for yet, in the order announced."""
        return sorted(
            (p for p in self._slides if p not in self._asked), key=self._place.__getitem__
        )

    def _is_needless(self, path: str) -> bool:
        return self._ended or (path in self._released and path not in self._asked)

    def _make_room(self, path: str) -> None:
        """Remove a copy for `path`'s sake, or wait for one to be removed.

        Raises CopyStopped where it is not wanted, or not first, NotCopied where waiting is in vain.
        """
        with self._news:
            asked = path in self._asked
            if self._is_needless(path) or (not asked and self._wanted()):
                raise CopyStopped
            copies = [p for p in self._waiting() if self._slides[p][1] is not None]
            passed = [p for p in copies if self._place[p] <= self._reached]
            if passed:
                _, copy = self._slides.pop(passed[0])
            elif asked and copies:
                _, copy = self._slides.pop(copies[-1])
                heappush(self._next, self._place[copies[-1]])
            elif asked:
                raise NotCopied(TAKEN)
            else:
                copy = None
                self._news.wait(LOOK_AGAIN_S)
        if copy is not None:
            self._copies.remove(copy)

    def _put_back(self, path: str) -> None:
        """A place that was reached or released meanwhile is left out when its turn comes."""
        with self._news:
            if path in self._place:
                heappush(self._next, self._place[path])

    def _settle(self, path: str, slide: StagedSlide, copy: SlideCopy | None) -> None:
        with self._news:
            needless = self._is_needless(path)
            if not needless:
                self._slides[path] = (slide, copy)
                self._news.notify_all()
        if needless and copy is not None:
            self._copies.remove(copy)
