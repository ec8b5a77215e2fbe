"""The run's diary: one JSON object per line, appended and flushed to disk as things happen.

Each machine (each container) that works in a folder has a file of its own in `journal/`, because
file systems of a network keep what one machine appends in order, and not what several do. Who reads
them reads all of them.

Clock times, host names and durations live here and only here, so that stores and exports stay
byte-identical from run to run. Files are named without their folders. A line cut short by a crash
is skipped when read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from coverslip.durable import explained
from coverslip.engine.disclosure import PATHS, disclosed
from coverslip.errors import StoreError
from coverslip.worker_identity import place

Event = dict[str, Any]


def journals(output: Path) -> list[Path]:
    """The journals of an output folder, of all machines."""
    return sorted(output.glob("journal/*.jsonl"))


class Journal:
    """Appends events to this machine's file; every line carries `time` (seconds since 1970) and
    `event`. Several processes of a machine may write at once.

    keep   what may be told beside (see `disclosure`)

    Raises StoreError.
    """

    def __init__(self, output: Path, keep: Sequence[str] = ()) -> None:
        path = output / "journal" / f"{place()}.jsonl"
        self.path, self._keep = path, keep
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open(path)

    def _open(self, path: Path) -> None:
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115  (open as long as the run)
        if self._file.seek(0, os.SEEK_END) > 0:
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":  # the last run was cut off inside a line
                self._file.write(b"\n")

    def write(self, event: str, **facts: Any) -> None:
        """Append one event; on disk when this returns. Raises StoreError."""
        content = {"time": round(time.time(), 3), "event": event, **facts}
        line = orjson.dumps(_encodable(content), default=str)
        if PATHS not in self._keep:
            line = orjson.dumps(disclosed(orjson.loads(line), self._keep))
        with explained(self.path):
            self._file.write(line + b"\n")
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _encodable(content: Any) -> Any:
    """Texts from names that are not UTF-8, with their odd bytes as escapes."""
    if isinstance(content, str):
        return content.encode("utf-8", "backslashreplace").decode()
    if isinstance(content, dict):
        return {key: _encodable(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_encodable(value) for value in content]
    return content


def read_journals(output: Path) -> Iterator[Event]:
    """The events of a folder's journals, one journal after the other, each oldest first."""
    for path in journals(output):
        with open(path, "rb") as lines:
            for line in lines:
                if (event := _event(line)) is not None:
                    yield event


def _event(line: bytes) -> Event | None:
    """None for what a crash cut short, or is no event."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return event if isinstance(event, dict) else None


class JournalTail:
    """What is added to a folder's journals from look to look, so that they are read only once.

    from_now   begin with what is added after this
    """

    def __init__(self, output: Path, *, from_now: bool = False) -> None:
        self._output = output
        self._read = {p: p.stat().st_size for p in journals(output)} if from_now else {}

    def begun_anew(self) -> bool:
        """Whether a journal holds less than was read of it; the next look begins at the start."""
        if any(path.stat().st_size < self._read.get(path, 0) for path in journals(self._output)):
            self._read.clear()
            return True
        return False

    def news(self) -> Iterator[Event]:
        """Events since the last look; a line that is still being written waits. Raises
        StoreError."""
        for path in journals(self._output):
            try:
                if path.stat().st_size > self._read.get(path, 0):
                    yield from self._added(path)
            except OSError as error:
                raise StoreError(path, f"cannot be read: {error.strerror or error}") from None

    def _added(self, path: Path) -> Iterator[Event]:
        with open(path, "rb") as file:
            file.seek(self._read.get(path, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read[path] = self._read.get(path, 0) + len(line)
                if (event := _event(line)) is not None:
                    yield event
