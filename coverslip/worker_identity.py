"""Who works: a process by marks that no other has, and whether it still lives.

Clocks have no part in it: a process is told from a later one of its number by the ticks since the
machine's start at which it began, and machines by the random number of their start.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

Fate = Literal["alive", "gone", "unknown"]


def own_marks() -> dict[str, object]:
    """Of this process, for others to read.

    host      name of the machine, for people
    place     where its number means something: this start of the machine, and the container
    pid       its number; `started` tells it from another that had or gets it
    """
    return {
        "host": socket.gethostname(),
        "place": place(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def fate(marks: Mapping[str, Any]) -> Fate:
    """Of the process with these marks; unknown where it cannot be asked for from here."""
    pid = marks.get("pid")
    if marks.get("place") != place() or not isinstance(pid, int) or pid < 1:
        return "unknown"
    return "alive" if _started(pid) == marks.get("started") else "gone"


def own_name() -> str:
    """How names begin of files and folders that are this process's alone; names no machine."""
    return f"{place()}.{os.getpid()}-"


def fate_by_name(name: str) -> Fate:
    """Of the process whose name this begins with, as far as its number tells."""
    where, _, rest = name.partition(".")
    pid = rest.partition("-")[0]
    if where != place() or not pid.isdecimal():
        return "unknown"
    return "gone" if _started(int(pid)) is None else "alive"


@cache
def place() -> str:
    """The same for processes that can see one another, and for no others; names no machine."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    marks = f"{socket.gethostname()} {_start_of_the_machine()} {space}"
    return hashlib.blake2b(marks.encode(), digest_size=6).hexdigest()


def _start_of_the_machine() -> str:
    """A number drawn anew each time the machine starts; "" where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        import subprocess

        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def _started(pid: int) -> float | None:
    """When a process began: ticks since the machine's start, or a time where the system keeps no
    such; None where it is gone, also where only its parent has not been told yet."""
    try:
        _, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
        state, *numbers = rest.split()
        return None if state in "ZX" else float(numbers[18])
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except ProcessLookupError:
        return None
    import psutil

    try:
        return round(float(psutil.Process(pid).create_time()), 2)
    except psutil.Error:
        return None
