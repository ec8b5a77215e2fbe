"""One worker per slide: a lock file beside the store, with host, process and heartbeat."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from coverslip.durable import explained
from coverslip.errors import StoreBusy

HEARTBEAT_S = 10.0
STALE_S = 120.0
CLAIM_S = 10.0
"""A claim to remove a lock takes milliseconds; an older one was left by a killed process."""
Claim = dict[str, object]


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who works on a slide, as its lock says.

    host, pid   "" and 0 where the lock was not written to the end
    dead        its process is gone, or silent for too long: the next run takes the lock over
    """

    host: str
    pid: int
    dead: bool


def lock_holder(path: Path, *, stale_s: float = STALE_S) -> LockHolder | None:
    """Who holds the lock file at `path`; None where nobody does."""
    try:
        holder = _read(path)
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
    pid = holder.get("pid")
    return LockHolder(
        str(holder.get("host", "")),
        pid if isinstance(pid, int) else 0,
        _gone(holder) or age >= stale_s,
    )


@contextlib.contextmanager
def lock(store: Path, *, stale_s: float = STALE_S) -> Iterator[None]:
    """Hold `<store>.lock` for the length of the block.

    A lock whose process is gone (same host), or whose heartbeat is older than `stale_s`, is taken
    over. Raises StoreBusy where a living process holds it, also this one.
    """
    path = store.with_name(store.name.removesuffix(".zarr") + ".lock")
    token = uuid.uuid4().hex
    _acquire(path, token, stale_s)
    stop = threading.Event()
    beat = threading.Thread(
        target=_beat, args=(path, token, stop), name="coverslip-lock", daemon=True
    )
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        _remove(path, token)


def _acquire(path: Path, token: str, stale_s: float) -> None:
    claim = _own_claim(token)
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


def _own_claim(token: str) -> Claim:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": _process_started(os.getpid()),
        "token": token,
    }


def _remove_if_dead(path: Path, stale_s: float) -> None:
    """Raises StoreBusy where the holder lives."""
    try:
        holder = _read(path)
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return
    if not _gone(holder) and age < stale_s:
        who = f"process {holder.get('pid')} on {holder['host']}" if holder else "another process"
        raise StoreBusy(
            path,
            f"{who} is working on this slide",
            f"wait for it; a dead worker's lock is taken over after {stale_s:g} s",
        )
    _remove(path, str(holder.get("token", "")))


def _gone(holder: Claim) -> bool:
    """Whether the holder was a process of this host that has ended."""
    pid = holder.get("pid")
    return (
        holder.get("host") == socket.gethostname()
        and isinstance(pid, int)
        and _process_started(pid) != holder.get("process_started")
    )


def _remove(path: Path, token: str) -> None:
    """Remove the lock if it still is the one with this token.

    Several may find the same lock dead at once, and one of them may have replaced it already when
    the next comes to remove it: whoever looks and removes holds a claim on that token.
    """
    claim = path.with_name(f".{path.name}.{token}.removing")
    try:
        handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        _remove_if_abandoned(claim)
        time.sleep(0.05)
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(orjson.dumps(_own_claim(token)))
        with contextlib.suppress(FileNotFoundError):
            if str(_read(path).get("token", "")) == token:
                path.unlink()
    finally:
        claim.unlink(missing_ok=True)


def remove_abandoned_claims(folder: Path) -> None:
    """Remove claims on the locks in a folder that killed processes left. Raises StoreError."""
    with explained(folder):
        for claim in folder.glob(".*.lock.*.removing"):
            _remove_if_abandoned(claim)


def _remove_if_abandoned(claim: Path) -> None:
    """The age counts either way: after a jump of the clock it may lie in the future."""
    with contextlib.suppress(FileNotFoundError):
        if _gone(_read(claim)) or abs(time.time() - claim.stat().st_mtime) > CLAIM_S:
            claim.unlink()


def _read(path: Path) -> Claim:
    """Who holds the lock; empty where that was not written to the end. Raises FileNotFoundError."""
    try:
        claim = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return {}
    return claim if isinstance(claim, dict) and "host" in claim else {}


def _beat(path: Path, token: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):
            if _read(path).get("token") == token:
                os.utime(path)


def _process_started(pid: int) -> float | None:
    """When a process of this host began; None where it is gone."""
    import psutil

    try:
        return round(float(psutil.Process(pid).create_time()), 2)
    except psutil.Error:
        return None
