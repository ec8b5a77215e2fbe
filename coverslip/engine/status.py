"""How a run gets on, from its journals and its slides' locks alone.

Journals are read once and from then on only where they have grown, so a folder of 10,000 slides
can be asked every second. Of stores nothing is read but which stages a slide in hand has begun.
"""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from coverslip.engine.journal import JournalTail, journals
from coverslip.errors import StoreError
from coverslip.tiling.lock import SILENT_S, lock_holder

LOCK = ".lock"
PROGRESS = ".progress.json"
"""How the names end of locks, and of what counts a begun stage's blocks."""
WINDOW_S = 3600.0
"""Of the slides that ended so recently the rate is taken."""
NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Working:
    """A slide in hand.

    host, pid   of the process; "" and 0 while it opens the slide
    stages      begun and not complete -> blocks of them on disk
    since       when the slide was begun, seconds since 1970; None where no journal tells
    """

    slide: str
    host: str
    pid: int
    stages: Mapping[str, int]
    since: float | None


@dataclass(frozen=True, slots=True)
class Failures:
    """Slides that failed for one reason, whose numbers may differ (written #)."""

    reason: str
    slides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where the slides of an output folder stand.

    slides        that the largest run was given, or that the journals name, if those are more
    done, no_tissue, failed   by each slide's latest word; waiting have not been begun
    running       begun by a process that lives; a slide that is done may be in hand anew
    interrupted   begun and not ended, by a process that is gone; the next run goes on with them
    failures      of `failed`, by reason, most first
    stale_locks   slides whose lock nobody holds; the next run takes them over
    tiles, nuclei   of the slides that are done
    per_hour      slides ended in an hour, over the recent window; None where none has
    seconds_left  at that rate; None where it is unknown or nothing runs
    seconds       stage -> spent on it by all processes, over all runs
    results       status -> how often a slide ended with it, over all runs
    updated       when the latest line was written, seconds since 1970
    """

    slides: int
    done: int
    no_tissue: int
    failed: int
    waiting: int
    running: tuple[Working, ...]
    interrupted: tuple[str, ...]
    failures: tuple[Failures, ...]
    stale_locks: tuple[str, ...]
    tiles: int
    nuclei: int
    per_hour: float | None
    seconds_left: float | None
    seconds: Mapping[str, float]
    results: Mapping[str, int]
    updated: float


@dataclass(frozen=True, slots=True)
class _Ended:
    """A slide's latest result."""

    time: float
    status: str
    reason: str
    tiles: int
    nuclei: int


class RunWatcher:
    """Tells the status of the run in a folder, again and again.

    window   seconds over which the rate is taken

    Raises StoreError where the folder holds no journal.
    """

    def __init__(self, output: Path, window: float = WINDOW_S) -> None:
        self._output, self._window = output, window
        self._journals = JournalTail(output)
        self._forget()
        if not journals(output):
            raise StoreError(
                output, "holds no journal: no run has written here", "name the -o of a run"
            )

    def _forget(self) -> None:
        self._largest, self._updated = 0, 0.0
        self._begun: dict[str, float] = {}
        self._ended: dict[str, _Ended] = {}
        self._worked: list[tuple[float, float]] = []  # (ended, begun) of slides that took work
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._results: Counter[str] = Counter()

    def status(self, now: float | None = None) -> RunStatus:
        """As things stand. Raises StoreError where a journal cannot be read."""
        now = time.time() if now is None else now
        if self._journals.begun_anew():
            self._forget()
        for event in self._journals.news():
            self._take(event)
        locks = {
            path.name.removesuffix(LOCK): holder
            for path in self._output.glob(f"*{LOCK}")
            if not path.name.startswith(".") and (holder := lock_holder(path)) is not None
        }
        open_ones = {
            slide: begun
            for slide, begun in self._begun.items()
            if slide not in self._ended or self._ended[slide].time < begun
        }
        running = [
            Working(slide, holder.host, holder.pid, self._stages(slide), open_ones.get(slide))
            for slide, holder in sorted(locks.items())
            if not holder.dead
        ]
        alive = {working.slide for working in running}
        # a slide is begun, then opened, then locked
        opening = {s for s, b in open_ones.items() if s not in locks and now - b < SILENT_S}
        running += [Working(s, "", 0, {}, open_ones[s]) for s in sorted(opening)]
        settled = {s: e for s, e in self._ended.items() if s not in open_ones}
        states = Counter(ended.status for ended in settled.values())
        slides = max(self._largest, len(self._begun | self._ended))
        rate = self._rate(now if running else self._updated)
        left = slides - len(settled)
        return RunStatus(
            slides=slides,
            done=states["done"] + states["unchanged"],
            no_tissue=states["no tissue"],
            failed=states["failed"],
            waiting=slides - len(self._begun | self._ended),
            running=tuple(running),
            interrupted=tuple(sorted(open_ones.keys() - alive - opening)),
            failures=_grouped(settled),
            stale_locks=tuple(sorted(s for s, holder in locks.items() if holder.dead)),
            tiles=sum(e.tiles for e in settled.values()),
            nuclei=sum(e.nuclei for e in settled.values()),
            per_hour=rate,
            seconds_left=left / rate * 3600 if rate and running else None,
            seconds=dict(sorted(self._seconds.items())),
            results=dict(sorted(self._results.items())),
            updated=self._updated,
        )

    def _take(self, event: Mapping[str, Any]) -> None:
        when, slide = _number(event.get("time")), event.get("slide")
        self._updated = max(self._updated, when)
        match event.get("event"):
            case "run":
                self._largest = max(self._largest, int(_number(event.get("slides"))))
            case "slide" if isinstance(slide, str):
                self._begun[slide] = max(self._begun.get(slide, 0.0), when)
            case "slide ended" if isinstance(slide, str):
                self._end(slide, when, event)

    def _end(self, slide: str, when: float, event: Mapping[str, Any]) -> None:
        status = str(event.get("status"))
        self._results[status] += 1
        seconds = event.get("seconds")
        for stage, spent in seconds.items() if isinstance(seconds, dict) else ():
            self._seconds[stage] += _number(spent)
        if status != "unchanged":
            self._worked.append((when, min(self._begun.get(slide, when), when)))
        if slide not in self._ended or self._ended[slide].time <= when:
            reason = _reason(event, slide) if status == "failed" else ""
            self._ended[slide] = _Ended(
                when,
                status,
                reason,
                int(_number(event.get("tiles"))),
                int(_number(event.get("nuclei"))),
            )

    def _rate(self, until: float) -> float | None:
        """Slides an hour, of those that ended in the window before `until`."""
        start = until - self._window
        recent = [(ended, begun) for ended, begun in self._worked if start <= ended <= until]
        if not recent:
            return None
        first = max(start, min(begun for _, begun in recent))
        return len(recent) / max(until - first, 1e-3) * 3600

    def _stages(self, slide: str) -> dict[str, int]:
        """Stages of a slide that have been begun and are not complete, with blocks on disk."""
        store, found = self._output / f"{slide}.zarr", {}
        for pattern in (f".*{PROGRESS}", f"*/.*{PROGRESS}"):
            for path in store.glob(pattern):
                name = path.name.removesuffix(PROGRESS).removeprefix(".")
                stage = (path.parent / name).relative_to(store).as_posix()
                try:
                    found[stage] = int(_number(orjson.loads(path.read_bytes())["done_blocks"]))
                except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
                    continue  # completed, or replaced, between the two looks
        return dict(sorted(found.items()))


def _number(value: Any) -> float:
    """A number of a journal; 0 for whatever else stands there."""
    sound = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if sound and abs(value) < 2**53 else 0.0


def _reason(event: Mapping[str, Any], slide: str) -> str:
    """Why a slide failed: the first line, without the file's name, numbers as #."""
    line = str(event.get("reason") or "no reason was given").partition("\n")[0]
    name, colon, rest = line.partition(": ")
    if colon and (name == str(event.get("file")) or slide in name):
        line = rest
    return NUMBER.sub("#", line)


def _grouped(settled: Mapping[str, _Ended]) -> tuple[Failures, ...]:
    groups: dict[str, list[str]] = {}
    for slide, ended in sorted(settled.items()):
        if ended.status == "failed":
            groups.setdefault(ended.reason, []).append(slide)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return tuple(Failures(reason, tuple(slides)) for reason, slides in ordered)
