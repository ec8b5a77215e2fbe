"""What a power cut may leave of a run's folder: whatever was not flushed is lost, some or all.

A recorder in the running process notes what it changes and flushes, and keeps what is replaced;
when the process was killed, the folder is changed to a state that a disk could have been left in:
of every folder's entries (files made, renamed, removed, folders made) those since its last fsync
are undone from a random one on, and every file that was not fsynced since it was opened to write
is cut at random, or its end zeroed. After Pillai et al. 2014 (ALICE). What is removed with a whole
tree counts as removed at once.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
from collections import defaultdict
from pathlib import Path

import orjson

WRITING = os.O_WRONLY | os.O_RDWR


class Recorder:
    """Notes the changes of a process below its output folder, and kills it before the `at`-th."""

    def __init__(self, log: Path, kept: Path, at: int) -> None:
        self._log_path, self._kept, self._at = log, kept, at
        self._count, self._busy = 0, False

    def __call__(self, output: Path) -> None:
        self._folder = f"{output.absolute()}"
        self._kept.mkdir(parents=True)
        self._log = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        real = os.fsync

        def fsync(handle: int) -> None:
            self._counted()
            real(handle)
            self._note("fsync", os.readlink(f"/proc/self/fd/{handle}"), os.fstat(handle).st_ino)

        os.fsync = fsync  # type: ignore[assignment]
        sys.addaudithook(self._audited)

    def _audited(self, event: str, arguments: tuple[object, ...]) -> None:
        first = arguments[0] if arguments else None
        if self._busy or not isinstance(first, str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(first))
        if not path.startswith(self._folder):
            return
        self._busy = True
        try:
            if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
                self._counted()
                if not os.path.lexists(path):
                    self._note("made", path)
                self._note("written", path)
            elif event == "os.mkdir":
                self._counted()
                self._note("made", path)
            elif event == "os.remove":
                self._counted()
                self._note("removed", path, self._keep(path))
            elif event == "os.rename":
                self._counted()
                target = os.path.abspath(os.fsdecode(arguments[1]))  # type: ignore[arg-type]
                self._note("renamed", path, target, self._keep(target))
        finally:
            self._busy = False

    def _keep(self, path: str) -> str:
        """Another name for a file that is about to go; "" where there is none."""
        if not os.path.isfile(path):
            return ""
        kept = self._kept / str(self._count)
        os.link(path, kept)
        return str(kept)

    def _counted(self) -> None:
        self._count += 1
        if self._count >= self._at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _note(self, *what: object) -> None:
        os.write(self._log, orjson.dumps(what) + b"\n")


def cut_power(log: Path, output: Path, draw: random.Random) -> int:
    """Bring `output` to a state that a power cut may have left; returns how many changes it lost.

    The machine has started anew: the processes of before cannot be asked for.
    """
    events = [orjson.loads(line) for line in log.read_bytes().splitlines()]
    waiting: dict[str, list[int]] = defaultdict(list)  # folder -> its changes since its fsync
    written: dict[str, int] = {}
    flushed: dict[int, int] = {}
    for number, (kind, path, *more) in enumerate(events):
        if kind == "fsync":
            waiting.pop(path, None)
            flushed[more[0]] = number
        elif kind == "written":
            written[path] = number
        else:
            waiting[os.path.dirname(path)].append(number)
            if kind == "renamed" and path in written:
                written[more[0]] = written.pop(path)
    lost = 0
    for path, number in written.items():
        if os.path.isfile(path) and flushed.get(os.stat(path).st_ino, -1) < number:
            lost += _cut(Path(path), draw)
    undone = [n for changes in waiting.values() for n in changes[draw.randint(0, len(changes)) :]]
    for number in sorted(undone, reverse=True):
        _undo(events[number])
    for path in output.glob("*.lock"):
        with contextlib.suppress(orjson.JSONDecodeError):  # that was cut
            marks = orjson.loads(path.read_bytes())
            path.write_bytes(orjson.dumps({**marks, "place": "another start"}))
    return lost + len(undone)


def _cut(path: Path, draw: random.Random) -> int:
    content = path.read_bytes()
    if not content or draw.random() < 0.2:
        return 0
    kept = draw.randrange(len(content))
    rest = bytes(len(content) - kept) if draw.random() < 0.5 else b""
    path.write_bytes(content[:kept] + rest)
    return 1


def _undo(event: list[str]) -> None:
    kind, path, *more = event
    if kind == "made":
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.remove(path)
        return
    if not os.path.isdir(os.path.dirname(path)):
        return  # the folder itself was lost
    if kind == "removed":
        if more[0]:
            shutil.copyfile(more[0], path)
        return
    target, kept = more
    if os.path.lexists(target):
        os.rename(target, path)
    if kept:
        shutil.copyfile(kept, target)
