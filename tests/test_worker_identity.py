"""Who works, and whether it still lives: without any clock."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from coverslip import worker_identity
from coverslip.worker_identity import fate, own_marks, place


def test_a_process_knows_itself() -> None:
    marks = own_marks()
    assert (marks["pid"], marks["place"]) == (os.getpid(), place())
    assert fate(marks) == "alive"


def test_a_process_that_ended_is_gone_also_before_its_parent_is_told() -> None:
    code = "import orjson\nfrom coverslip.worker_identity import own_marks\n"
    code += "import sys\nsys.stdout.buffer.write(orjson.dumps(own_marks()) + b'\\n')\n"
    code += "sys.stdout.flush()\nsys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    marks = orjson.loads(process.stdout.readline())
    assert fate(marks) == "alive"
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert fate(marks) == "gone"
    process.wait()
    process.stdout.close()
    assert fate(marks) == "gone"


def test_a_number_that_is_used_again_is_another_process() -> None:
    assert fate({**own_marks(), "started": 1.0}) == "gone"


@pytest.mark.parametrize(
    "change",
    [{"place": "elsewhere"}, {"place": None}, {"pid": "7"}, {"pid": 0}, {"pid": -1}, {"pid": None}],
)
def test_what_cannot_be_asked_for_is_unknown(change: dict[str, object]) -> None:
    assert fate({**own_marks(), **change}) == "unknown"
    assert fate({}) == "unknown"


def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil's time of creation would: it adds to the machine's start by the clock of now."""
    before = own_marks()
    monkeypatch.setattr("psutil.boot_time", lambda: time.time() - 1e6)
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert own_marks() == before


def test_another_start_of_the_machine_is_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = own_marks()
    place.cache_clear()
    monkeypatch.setattr(worker_identity, "_start_of_the_machine", lambda: "another")
    try:
        assert fate(marks) == "unknown"  # a cloned machine may have the same name
    finally:
        place.cache_clear()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_without_proc_psutil_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text
    absent = ("/proc/",)

    def read_text(path: Path, *arguments: object, **named: object) -> str:
        if str(path).startswith(absent):
            raise FileNotFoundError(str(path))
        return real(path, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    place.cache_clear()
    try:
        marks = own_marks()
        assert isinstance(marks["started"], float)
        assert fate(marks) == "alive"
        assert fate({**marks, "pid": 2**22 + 1}) == "gone"
    finally:
        place.cache_clear()
