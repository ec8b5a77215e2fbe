"""Slides that are yet to be done, while other runs may be at work on the same folder."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coverslip.engine.journal import JournalTail
from coverslip.engine.result import SlideResult, result_of_event
from coverslip.engine.scheduling import Slide
from coverslip.errors import CoverslipError
from coverslip.tiling.lock import is_free
from coverslip.tiling.store import SlideStore
from coverslip.worker_identity import place
from coverslip.wsi.fingerprint import fingerprint

if TYPE_CHECKING:
    from coverslip.engine.process import Observer

LOOK_S = 2.0
"""Between two looks at what others do."""


def rows_told(tail: JournalTail, settings: str) -> Iterator[tuple[float, SlideResult]]:
    """(time, row) of slides that journals newly tell of, by runs with these settings. Raises
    StoreError."""
    for event in tail.news():
        if event.get("event") != "slide ended" or event.get("settings") != settings:
            continue
        result, when = result_of_event(event), event.get("time")
        if result is not None and isinstance(when, int | float):
            yield when, result


class SlideQueue:
    """Hands out a run's slides, one by one, and collects what became of them.

    A slide that another run has in hand is put off until it is free: done by that run, or left by
    one that died. What another run has done since this one began, with the same settings, is not
    done again.

    settings    digest of this run's; see `RunConfig.digest`
    on_result   called with each slide's row
    observer    told which slides are waited for
    """

    def __init__(
        self,
        slides: Sequence[Slide],
        output: Path,
        settings: str,
        on_result: Callable[[SlideResult], None],
        observer: Observer,
    ) -> None:
        self._output, self._settings = output, settings
        self._on_result, self._observer = on_result, observer
        self._waiting, self._put_off = deque(slides), list[Slide]()
        self._unfinished = {slide_id for _, slide_id in slides}
        self._tail = JournalTail(output, from_now=True)
        self._elsewhere: dict[str, SlideResult] = {}
        self._heard, self._looked = time.monotonic(), time.monotonic()

    @property
    def over(self) -> bool:
        """Whether every slide has its row."""
        return not self._unfinished

    @property
    def waiting(self) -> list[Slide]:
        """Those that have not been handed out, in their order."""
        return list(self._waiting)

    def next(self) -> Slide | None:
        """One to work on; None where there is none now. Raises StoreError."""
        self._listen()
        if not self._waiting:
            self._look_at_put_off()
        while self._waiting:
            slide = self._waiting.popleft()
            if self._done_elsewhere(slide):
                continue
            if is_free(self._store(slide)):
                return slide
            self._put_off.append(slide)
            self._go_elsewhere()
        return None

    def _go_elsewhere(self) -> None:
        """Another run is here in the list: each goes on at a place of its own, instead of side by
        side."""
        if self._waiting:
            own = hashlib.blake2b(f"{place()} {os.getpid()}".encode(), digest_size=4).digest()
            self._waiting.rotate(int.from_bytes(own, "big") % len(self._waiting))

    def finished(self, result: SlideResult) -> None:
        """A slide has its row."""
        self._unfinished.discard(result.slide)
        self._on_result(result)

    def take(self, slide: Slide, result: SlideResult | None) -> None:
        """What became of a slide that was handed out; None where another process has it in hand."""
        if result is None:
            self._put_off.append(slide)
        else:
            self.finished(result)

    def _listen(self) -> None:
        """To what other runs say, every other second."""
        if time.monotonic() - self._heard < LOOK_S:
            return
        self._heard = time.monotonic()
        for _, result in rows_told(self._tail, self._settings):
            if result.status != "failed":  # it may go better here
                self._elsewhere[result.slide] = result

    def _look_at_put_off(self) -> None:
        if not self._put_off or time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        free = [slide for slide in self._put_off if is_free(self._store(slide))]
        self._put_off = [slide for slide in self._put_off if slide not in free]
        self._waiting.extend(free)
        for _, slide_id in self._put_off:
            self._observer(slide_id, "another process has it in hand", 0, 1)

    def _done_elsewhere(self, slide: Slide) -> bool:
        """Whether another run has told that it did this slide, and its store is of this file."""
        path, slide_id = slide
        result = self._elsewhere.pop(slide_id, None)
        if result is None or not is_free(self._store(slide)):
            return False
        try:
            made_of = str(SlideStore.open(self._store(slide)).slide["fingerprint"])
            same = made_of == fingerprint(path)
        except (CoverslipError, OSError):
            return False
        if same:
            self.finished(result)
        return same

    def _store(self, slide: Slide) -> Path:
        return self._output / f"{slide[1]}.zarr"
