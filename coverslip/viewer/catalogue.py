"""The list of slides: what is known of each without looking into it, and of all after a while."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from coverslip.errors import CoverslipError, InvalidGeoJSON, SlideError, StoreError, printable
from coverslip.tiling.store import SlideStore
from coverslip.viewer.shelf import Shelf

Status = Literal["done", "partial", "not run", "unreadable"]


@dataclass(frozen=True, slots=True)
class SlideLine:
    """What opening a slide has told.

    size      (width, height) level-0 px; None where it cannot be opened, or was not yet
    mpp       (x, y) µm per level-0 px; None where unknown
    problem   why it cannot be opened; empty where it can
    """

    size: tuple[int, int] | None = None
    mpp: tuple[float, float] | None = None
    problem: str = ""


class Catalogue:
    """All slides of a shelf; a thread of its own opens one after the other."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._lines: dict[str, SlideLine] = {}
        self._news = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._look, name="catalogue", daemon=True)

    def start(self) -> None:
        """Begin to look into the slides."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the slide in hand."""
        self._ending = True
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        for slide_id in self._shelf.paths:
            if self._ending:
                break
            line = _line(self._shelf, slide_id)
            with self._news:
                self._lines[slide_id] = line
                self._news.notify_all()

    def lines(self, patience_s: float) -> Mapping[str, SlideLine]:
        """What is known of each slide, all of them or what is there after so many seconds."""
        with self._news:
            self._news.wait_for(lambda: len(self._lines) == len(self._shelf.paths), patience_s)
            return dict(self._lines)


def _line(shelf: Shelf, slide_id: str) -> SlideLine:
    try:
        with shelf.lent(slide_id) as opened:
            size = opened.slide.pixel_size
            return SlideLine(opened.slide.size, (size.x, size.y) if size else None)
    except CoverslipError as error:
        return SlideLine(problem=told(error))
    except Exception as error:  # a reader's own fault is this slide's, not the list's
        return SlideLine(problem=f"unexpected {type(error).__name__}: {printable(str(error))}")


def slide_entry(shelf: Shelf, slide_id: str, line: SlideLine | None) -> dict[str, Any]:
    """A slide's line in the list; line is None where it was not looked into yet."""
    problem, store = line.problem if line else "", None
    try:
        store = shelf.stores.of(slide_id)
    except StoreError as error:
        problem = problem or told(error)
    stages = stages_of(store)
    status: Status
    if line and line.problem:
        status = "unreadable"
    elif store is None:
        status = "not run"
    else:
        status = "partial" if not stages or has_partial(store) else "done"
    return {
        "name": Path(shelf.path(slide_id)).name,
        "size": line.size if line else None,
        "mpp": line.mpp if line else None,
        "status": status,
        "problem": problem or None,
        "stages": stages,
    }


def stages_of(store: SlideStore | None) -> list[str]:
    """The complete stages, less the records of what was exported."""
    return [s for s in store.stages() if not s.startswith("export/")] if store else []


def has_partial(store: SlideStore) -> bool:
    """Whether a stage was begun and not finished."""
    path = Path(store.path)
    return any(next(path.glob(p), None) for p in (".*.partial", "*/.*.partial"))


def told(error: CoverslipError) -> str:
    """An error as the page tells it: the file's name in place of its whole path."""
    if isinstance(error, SlideError | StoreError):
        name = printable(Path(error.path).name)
        return f"{name}: {error.problem}" + (f"; {error.hint}" if error.hint else "")
    if isinstance(error, InvalidGeoJSON):
        return str(error).removeprefix(f"{printable(error.path)}: ")
    return str(error)
