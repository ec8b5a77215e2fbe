"""Reading through a library that may hang or crash, in a process that can be killed.

The child speaks over two pipes: a request of five integers in, a header and raw RGB out, or JSON
where the request asks what the slide is. It ends when its standard input closes, so it never
outlives its parent. A child that does not answer in time is killed and the next read gets a fresh
one.
"""

from __future__ import annotations

import base64
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from typing import IO, Any

import numpy as np

from coverslip.wsi.slide import RGB

REQUEST = struct.Struct("<5q")  # level, x, y (level-0 px), width, height (level px)
ANSWER = struct.Struct("<?q")  # worked, bytes that follow (pixels, JSON, or the error's text)
DESCRIBE = REQUEST.pack(-1, 0, 0, 0, 0)


class ReadFailed(Exception):
    """The library reported an error, or its process died; the text says which."""


class ReadTimedOut(Exception):
    """The library did not answer in time; its process was killed."""


class GuardedReader:
    """Reads regions of one slide in child processes; safe to share between threads.

    timeout_s   seconds one read may take
    most        children at once; further readers wait
    """

    def __init__(self, path: str, timeout_s: float = 60.0, most: int = 4) -> None:
        self.path, self.timeout_s = path, timeout_s
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(most)

    def describe(self) -> dict[str, Any]:
        """What `RegionReader.describe` says of the slide. Raises as `read`.

        The child stays for the first read.
        """
        facts: dict[str, Any] = json.loads(self._answer(DESCRIBE))
        return {**facts, "profile": base64.b64decode(facts["profile"]) or None}

    def read(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        """(height, width, 3) RGB. Raises ReadFailed, ReadTimedOut; the next read is sound again."""
        payload = self._answer(REQUEST.pack(level, x, y, width, height))
        return np.frombuffer(payload, np.uint8).reshape(height, width, 3)

    def _answer(self, request: bytes) -> bytes:
        with self._places:
            child = self._child()
            try:
                worked, payload = self._ask(child, request)
            except BaseException:
                _kill(child)
                raise
            with self._lock:
                self._idle.append(child)
        if not worked:
            raise ReadFailed(payload.decode(errors="replace"))
        return payload

    def _child(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return subprocess.Popen(
            [sys.executable, "-m", "coverslip.wsi.guarded", self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )

    def _ask(self, child: subprocess.Popen[bytes], request: bytes) -> tuple[bool, bytes]:
        assert child.stdin is not None
        assert child.stdout is not None
        deadline = time.monotonic() + self.timeout_s
        try:
            child.stdin.write(request)
            head = _receive(child.stdout, ANSWER.size, deadline)
            worked, length = ANSWER.unpack(head)
            return worked, _receive(child.stdout, length, deadline)
        except (BrokenPipeError, EOFError):
            child.wait()
            raise ReadFailed(f"the reading process ended with status {child.returncode}") from None

    def close(self) -> None:
        with self._lock:
            children, self._idle = self._idle, []
        for child in children:
            _kill(child)


def _kill(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _receive(pipe: IO[bytes], length: int, deadline: float) -> bytes:
    fd = pipe.fileno()
    received = bytearray()
    while len(received) < length:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise ReadTimedOut
        part = os.read(fd, min(length - len(received), 1 << 20))
        if not part:
            raise EOFError
        received += part
    return bytes(received)


def serve(path: str) -> None:
    """The child's life: answer requests until standard input closes."""
    from coverslip.wsi.openslide_reader import RegionReader

    source, sink = sys.stdin.buffer, sys.stdout.buffer
    reader = None
    while request := source.read(REQUEST.size):
        try:
            reader = reader or RegionReader(path)
            if request == DESCRIBE:
                facts = reader.describe()
                profile = base64.b64encode(facts["profile"]).decode()
                payload = json.dumps({**facts, "profile": profile}).encode()
            else:
                payload = reader.read(*REQUEST.unpack(request)).tobytes()
            worked = True
        except Exception as error:
            payload, worked = f"{type(error).__name__}: {error}".encode(), False
        sink.write(ANSWER.pack(worked, len(payload)))
        sink.write(payload)
        sink.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
