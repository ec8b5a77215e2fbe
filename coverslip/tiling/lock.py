"""One worker per slide: a lock file beside the store, with its holder's marks and a heartbeat.

Many processes on many machines share a folder by these locks. No machine's clock is compared with
another's: a holder on this machine is asked for by its number; one elsewhere counts as dead when
its heartbeat was watched for `SILENT_S` of the watcher's own time, and did not move.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from coverslip.durable import explained
from coverslip.errors import StoreBusy
from coverslip.worker_identity import fate, own_marks

HEARTBEAT_S = 10.0
SILENT_S = 120.0
"""Of watching without a heartbeat, after which a lock of another machine is taken over."""
CLAIM_S = 10.0
"""A claim to remove a lock takes milliseconds; one watched for so long was left behind."""
Claim = dict[str, object]


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who works on a slide, as its lock says.

    host, pid   "" and 0 where the lock was not written to the end
    dead        its process is gone; of another machine's: its heartbeat looks older than
                `SILENT_S` by the clock, which people may want to know and nothing is done for
    """

    host: str
    pid: int
    dead: bool


def lock_path(store: Path) -> Path:
    """`<store>.lock`."""
    return store.with_name(store.name.removesuffix(".zarr") + ".lock")


def lock_holder(path: Path) -> LockHolder | None:
    """Who holds the lock file at `path`; None where nobody does."""
    try:
        holder, beaten = _read(path)
    except FileNotFoundError:
        return None
    pid, known = holder.get("pid"), fate(holder)
    old = known == "unknown" and abs(time.time() - beaten / 1e9) >= SILENT_S
    return LockHolder(
        str(holder.get("host", "")), pid if isinstance(pid, int) else 0, known == "gone" or old
    )


@contextlib.contextmanager
def lock(store: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold `<store>.lock` for the length of the block.

    wait_s   how long to wait for another's; more than `SILENT_S`, to outlast a dead machine's

    Raises StoreBusy where another process holds it, or this one; also at the end, where this
    process was silent for so long that another took the lock over: what it did may be undone.
    """
    path, token = lock_path(store), uuid.uuid4().hex
    until = time.monotonic() + wait_s
    while time.monotonic() < until and not is_free(store):
        time.sleep(min(1.0, SILENT_S / 10))
    _acquire(path, token)
    heartbeat = _Heartbeat(path, token)
    heartbeat.start()
    try:
        try:
            yield
        except Exception as error:
            if not heartbeat.held():  # what went wrong may be the other's doing
                raise _taken_over(path) from error
            raise
        if not heartbeat.held():
            raise _taken_over(path)
    finally:
        heartbeat.stop()
        _remove(path, token)


def _taken_over(path: Path) -> StoreBusy:
    return StoreBusy(
        path,
        "was taken over by another process while this one was held up",
        "run again; what that one does is the same",
    )


def is_free(store: Path) -> bool:
    """Whether a slide is nobody's; the lock of a process that has died is removed.

    Whoever waits for a slide asks every few seconds: dead machines are found out by being watched.
    Raises StoreError.
    """
    path = lock_path(store)
    with explained(path):
        return not path.exists() or _freed(path)


def _acquire(path: Path, token: str) -> None:
    claim = {**own_marks(), "token": token}
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(8):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                if not _freed(path):
                    raise _busy(path) from None
                continue
            with os.fdopen(handle, "wb") as file:
                file.write(orjson.dumps(claim))
            return
    raise StoreBusy(path, "is taken and freed faster than it can be claimed", "try again")


def _busy(path: Path) -> StoreBusy:
    with contextlib.suppress(FileNotFoundError):
        holder, _ = _read(path)
        if holder:
            who = f"process {holder.get('pid')} on {holder['host']} is working on this slide"
            return StoreBusy(
                path,
                who,
                f"wait for it; if it has died, coverslip run takes over after {SILENT_S:g} s",
            )
    return StoreBusy(path, "another process is working on this slide", "wait for it")


def _freed(path: Path) -> bool:
    """Whether the lock is no longer there: its holder is gone, or has been watched for long enough
    and was silent, and the lock was removed."""
    try:
        holder, beaten = _read(path)
    except FileNotFoundError:
        _watch.forget(path)
        return True
    token = str(holder.get("token", ""))
    if not _is_dead(path, holder, (token, beaten), SILENT_S):
        return False
    _remove(path, token)
    return True


def _is_dead(path: Path, holder: Claim, mark: object, silent_s: float) -> bool:
    """Whether the process that wrote a file is gone, or the file was watched for so long and kept
    its mark; it is then watched no more."""
    known = fate(holder)
    dead = known == "gone" or (known == "unknown" and _watch.silence(path, mark) >= silent_s)
    if dead:
        _watch.forget(path)
    return dead


class _Watch:
    """For how long files have not changed while this process watched them.

    Between two looks no more than a heartbeat's time counts: where everything stood still, the
    holder could not show itself either.
    """

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[object, float, float]] = {}
        self._guard = threading.Lock()

    def silence(self, path: Path, mark: object) -> float:
        """Seconds, of all looks at `path` until now that found this mark."""
        now = time.monotonic()
        with self._guard:
            before, last, silent = self._seen.get(path, (None, now, 0.0))
            silent = silent + min(now - last, HEARTBEAT_S) if before == mark else 0.0
            self._seen[path] = (mark, now, silent)
        return silent

    def forget(self, path: Path) -> None:
        with self._guard:
            self._seen.pop(path, None)


_watch = _Watch()


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
            file.write(orjson.dumps({**own_marks(), "token": token}))
        with contextlib.suppress(FileNotFoundError):
            if str(_read(path)[0].get("token", "")) == token:
                path.unlink()
    finally:
        claim.unlink(missing_ok=True)


def remove_abandoned_claims(folder: Path) -> None:
    """Remove claims on the locks in a folder that killed processes left. Raises StoreError."""
    with explained(folder):
        for claim in folder.glob(".*.lock.*.removing"):
            _remove_if_abandoned(claim)


def _remove_if_abandoned(claim: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        holder, written = _read(claim)
        if _is_dead(claim, holder, written, CLAIM_S):
            claim.unlink()


def _read(path: Path) -> tuple[Claim, int]:
    """(who holds the lock, empty where that was not written to the end; when it was last touched,
    in ns of the file server's time). Raises FileNotFoundError."""
    with open(path, "rb") as file:  # opening, a network's file system asks its server
        content, beaten = file.read(), os.fstat(file.fileno()).st_mtime_ns
    try:
        claim = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}, beaten
    return (claim if isinstance(claim, dict) and "host" in claim else {}), beaten


class _Heartbeat:
    """Touches a lock every few seconds from a thread, as long as it is ours."""

    def __init__(self, path: Path, token: str) -> None:
        self._path, self._token = path, token
        self._stop, self._lost = threading.Event(), False
        self._thread = threading.Thread(target=self._beat, name="coverslip-lock", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def held(self) -> bool:
        """Whether the lock has been ours all the time."""
        self._touch()
        return not self._lost

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            self._touch()

    def _touch(self) -> None:
        try:
            if _read(self._path)[0].get("token") != self._token:
                self._lost = True
            elif not self._lost:
                os.utime(self._path)
        except FileNotFoundError:
            self._lost = True
        except OSError:
            pass  # the disk is away: the next beat tells
