"""Runs of the command line that meet a fault, each in a process of its own, forked when warm.

A process that has run once has everything imported and compiled; its forks are whole processes
that can be killed, told to stop, refused the disk or given another clock, and begin at once.
"""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from coverslip.cli import main

OPTIONS = (
    "--nuclei", "watershed", "--export", "geojson,h5,parquet", "--image", "carried",
    "--pixels", "jpeg", "--device", "cpu", "--json",
)  # fmt: skip
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
REMOVALS = {"os.remove", "os.rmdir"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
DAY_S = 86400.0
Prepared = Callable[[Path], None]
"""Called in the new process with the output folder, before the run."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: its exit code (negative: the signal that killed it), what it said, whether
    processes outlived it, and how long it took."""

    code: int
    said: str
    orphans: int
    seconds: float


def run_in_fork(
    slide: Path,
    output: Path,
    *,
    prepared: Prepared | None = None,
    signalled: tuple[int, float] | None = None,
    options: tuple[str, ...] = OPTIONS,
) -> Ended:
    """`coverslip run` in a fork of this process.

    signalled   (signal, seconds after the start at which it is sent)
    """
    said, began = output.with_name(f"{output.name}.said"), time.monotonic()
    sys.stdout.flush()
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    pid = os.fork()
    if not pid:
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", buffering=0), write_through=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", buffering=0), write_through=True)
        try:
            os.setsid()
            if prepared is not None:
                prepared(output)
            code = main(["run", str(slide), "-o", str(output), *options])
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 99
        os._exit(code)
    os.close(handle)
    if signalled is not None:
        number, after = signalled
        deadline = began + after
        while time.monotonic() < deadline and not os.waitid(
            os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(0.005)
        os.kill(pid, number)  # of a process that has ended, but was not waited for, harmless
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    orphans = sum(_session(process) == pid for process in psutil.pids())
    text = said.read_text(errors="replace")
    return Ended(status, text, orphans, time.monotonic() - began)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return 0


class DiskOperations:
    """Counts what a run does to its folder, and acts at the `at`-th operation: opening to write,
    flushing, renaming, removing, making folders."""

    def __init__(self, act: Callable[[str, int], None]) -> None:
        self.count, self._act, self._folder = 0, act, ""

    def __call__(self, output: Path) -> None:
        self._folder = str(output.absolute())
        real = os.fsync

        def fsync(handle: int) -> None:
            self._counted("fsync")
            real(handle)

        os.fsync = fsync  # type: ignore[assignment]
        sys.addaudithook(self._audited)

    def _audited(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & WRITING):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(
            self._folder
        ):
            self._counted(event)

    def _counted(self, event: str) -> None:
        self.count += 1
        self._act(event, self.count)


def killed_at(operation: int) -> Prepared:
    """Dies before its `operation`-th change to the disk, without any clean-up."""

    def act(event: str, count: int) -> None:
        if count >= operation:
            os.kill(os.getpid(), signal.SIGKILL)

    return DiskOperations(act)


def refused_from(operation: int, number: int, most: int = 10**9) -> Prepared:
    """The disk refuses `most` changes from the `operation`-th on; a full one still removes."""

    def act(event: str, count: int) -> None:
        removal = event in REMOVALS and number == errno.ENOSPC
        if operation <= count < operation + most and not removal:
            raise OSError(number, os.strerror(number))

    return DiskOperations(act)


def impatient(output: Path) -> None:
    """Watches locks of another start of the machine for a moment instead of two minutes."""
    from coverslip.engine import run, slide_queue
    from coverslip.tiling import lock

    lock.SILENT_S, run.LOOK_S, slide_queue.LOOK_S = 0.2, 0.1, 0.1


def jumping_clock(seed: int) -> Prepared:
    """The wall clock jumps by up to a day either way, again and again."""

    def prepare(output: Path) -> None:
        draw, real, offset = random.Random(seed), time.time, [0.0]

        def jumped() -> float:
            if draw.random() < 0.2:
                offset[0] = draw.uniform(-DAY_S, DAY_S)
            return real() + offset[0]

        time.time = jumped

    return prepare


def counted_operations(slide: Path, output: Path, options: tuple[str, ...] = OPTIONS) -> int:
    """How many changes an undisturbed run into `output` makes; what it leaves is the standard."""
    told, tell = os.pipe()

    def act(event: str, count: int) -> None:
        os.write(tell, b".")

    ended = run_in_fork(slide, output, prepared=DiskOperations(act), options=options)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        count = len(pipe.read())
    if ended.code:
        raise RuntimeError(ended.said)
    return count


def results(output: Path) -> dict[str, bytes]:
    """Every file of the stores and exports, and every lock and left-over, by relative path; not
    the journal and report, which hold times."""
    kept = [*output.glob("*.zarr"), *(output / name for name in ("geojson", "h5", "parquet"))]
    files = [file for root in kept for file in root.rglob("*")] + list(output.glob("*.lock"))
    files += list(output.rglob(".*"))
    return {
        path.relative_to(output).as_posix(): path.read_bytes() for path in files if path.is_file()
    }


def differences(found: dict[str, bytes], wanted: dict[str, bytes]) -> tuple[int, int]:
    """(files lost, files wrong or too many)."""
    lost = len(wanted.keys() - found.keys())
    return lost, sum(wanted.get(name) != content for name, content in found.items())
