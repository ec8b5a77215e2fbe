"""One worker per slide: a lock file beside the store, with host, process and heartbeat."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import orjson

from coverslip.durable import explained
from coverslip.errors import StoreBusy

HEARTBEAT_S = 10.0
STALE_S = 120.0


@contextlib.contextmanager
def lock(store: Path, *, stale_s: float = STALE_S) -> Iterator[None]:
    """Hold `<store>.lock` for the length of the block.

    A lock whose process is gone (same host), or whose heartbeat is older than `stale_s`, is taken
    over. Raises StoreBusy where a living process holds it.
    """
    path = store.with_name(store.name.removesuffix(".zarr") + ".lock")
    token = uuid.uuid4().hex
    _acquire(path, token, stale_s)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, stop), name="coverslip-lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        if _read(path).get("token") == token:
            path.unlink(missing_ok=True)


def _acquire(path: Path, token: str, stale_s: float) -> None:
    claim = {"host": socket.gethostname(), "pid": os.getpid(), "token": token,
             "process_started": _process_started(os.getpid())}  # fmt: skip
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(8):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                _remove_if_dead(path, stale_s)
                continue
            with os.fdopen(handle, "wb") as file:
                file.write(orjson.dumps(claim))
            return
    raise StoreBusy(path, "is taken and freed faster than it can be claimed", "try again")


def _remove_if_dead(path: Path, stale_s: float) -> None:
    """Raises StoreBusy where the holder lives."""
    holder = _read(path)
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return
    here = holder.get("host") == socket.gethostname()
    pid = holder.get("pid")
    gone = here and isinstance(pid, int) and _process_started(pid) != holder.get("process_started")
    if not gone and age < stale_s:
        raise StoreBusy(
            path,
            f"process {pid} on {holder.get('host', 'another host')} is working on this slide",
            f"wait for it; a dead worker's lock is taken over after {stale_s:g} s",
        )
    # rename first: of several who find it dead, one wins
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        aside.unlink()


def _read(path: Path) -> dict[str, object]:
    try:
        claim = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return claim if isinstance(claim, dict) else {}


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)


def _process_started(pid: int) -> float | None:
    """When a process of this host began; None where it is gone."""
    import psutil

    try:
        return round(psutil.Process(pid).create_time(), 2)
    except psutil.Error:
        return None
