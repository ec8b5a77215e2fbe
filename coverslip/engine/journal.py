"""The run's diary: one JSON object per line, appended and flushed to disk as things happen.

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


class Journal:
    """Appends events to `path`; every line carries `time` (seconds since 1970) and `event`.

    keep   what may be told beside (see `disclosure`)
    """

    def __init__(self, path: Path, keep: Sequence[str] = ()) -> None:
        self.path, self._keep = path, keep
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


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a journal, oldest first; lines that a crash cut short are left out."""
    if not path.exists():
        return
    with open(path, "rb") as lines:
        for line in lines:
            try:
                event = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(event, dict):
                yield event
