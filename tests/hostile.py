"""A corpus of broken and odd slides, each with what must come of it.

    python hostile.py FOLDER [--seconds 20] [--gigabytes 4] [--info] [--part 0 1]

writes the corpus, opens and reads every slide in a process of its own, whose time and memory are
limited, and prints what came of it as JSON. `test_wsi_hostile` holds it against what must.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import hostile_files
import hostile_tiffs
import hostile_zarrs
import numpy as np
from hostile_case import Case

from coverslip.cli import main as coverslip
from coverslip.errors import CoverslipError, UnreadableTile
from coverslip.wsi.opening import READERS, open_slide
from coverslip.wsi.slide import RGB, Slide

CASES: tuple[Case, ...] = (*hostile_files.CASES, *hostile_tiffs.CASES, *hostile_zarrs.CASES)
MOST_TILES = 4
"""Columns and rows of native tiles that are read."""


@dataclass
class Observation:
    """What came of a slide.

    outcome     "pixels", "wrong pixels", the error's class, "crash SIGSEGV", "hang", "info: ..."
    message     the error's
    seconds     it took
    megabytes   the process held at most
    """

    name: str
    outcome: str
    message: str
    seconds: float
    megabytes: float = 0.0


def make_corpus(folder: Path) -> dict[str, RGB | None]:
    """Write every slide; name -> the pixels it shows."""
    return {case.name: case.make(folder / case.name) for case in CASES}


def observe(path: Path, case: Case, pixels: RGB | None, info: bool = False) -> tuple[str, str]:
    """(outcome, message) of opening and reading the slide; and of `coverslip info`."""
    opened = False
    try:
        with open_slide(path, **case.options) as slide:
            opened = True
            outcome, message = _read(slide, pixels)
    except CoverslipError as error:
        outcome, message = type(error).__name__, str(error)
    if (
        not info or "read_timeout_s" in case.options
    ):  # `info` knows no such option and would wait for long
        return outcome, message
    said = io.StringIO()
    arguments = ["info", str(path), *(["--assume-mpp", "0.25"] if case.options else [])]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = coverslip(arguments)
    fine = opened or outcome == "MissingMpp" or "icc" in case.options
    if (status == 0) != fine or "Traceback" in said.getvalue():
        return f"info: status {status}", said.getvalue()
    return outcome, message


def _read(slide: Slide, pixels: RGB | None) -> tuple[str, str]:
    problems = []
    for number, level in enumerate(slide.levels):
        for row in range(min(level.grid[1], MOST_TILES)):
            for column in range(min(level.grid[0], MOST_TILES)):
                try:
                    tile = slide.decode_tile(number, column, row)
                except UnreadableTile as error:
                    problems.append(str(error))
                    continue
                if number or pixels is None:
                    continue
                x, y = column * level.tile[0], row * level.tile[1]
                wanted = pixels[y : y + level.tile[1], x : x + level.tile[0]]
                white = np.full_like(wanted, 255)
                seen = white if tile is None else tile[: wanted.shape[0], : wanted.shape[1]]
                if not np.array_equal(seen, wanted):
                    return "wrong pixels", f"in column {column}, row {row}"
    if problems:
        return "UnreadableTile", problems[0]
    if pixels is not None and slide.size != (pixels.shape[1], pixels.shape[0]):
        return "wrong pixels", f"{slide.size}"
    return ("pixels", "") if pixels is not None else ("opens", f"{slide.reader} {slide.size}")


def limited(
    work: Callable[[], tuple[str, str]], name: str, seconds: float, gigabytes: float
) -> Observation:
    """What `work` returns, in a forked process of limited time and memory."""
    source, sink = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(source)
        _report(work, sink, gigabytes)
    os.close(sink)
    answer = b""
    while (left := started + seconds - time.monotonic()) > 0:
        if select.select([source], [], [], left)[0]:
            part = os.read(source, 1 << 16)
            if not part:
                break
            answer += part
    else:
        os.killpg(child, signal.SIGKILL)
    os.close(source)
    _, status, used = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it left running
    taken, megabytes = time.monotonic() - started, used.ru_maxrss / 1024
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hung = number == signal.SIGKILL and taken >= seconds
        outcome = "hang" if hung else f"crash {signal.Signals(number).name}"
        return Observation(name, outcome, "", taken, megabytes)
    return Observation(name, *json.loads(answer), taken, megabytes)


def _report(work: Callable[[], tuple[str, str]], sink: int, gigabytes: float) -> None:
    os.setpgid(0, 0)
    most = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    try:
        found = work()
    except MemoryError:
        found = "memory", "MemoryError"
    except BaseException as error:
        found = f"uncaught {type(error).__name__}", traceback.format_exc()[-1500:]
    os.write(sink, json.dumps(found).encode("utf-8", "backslashreplace"))
    os._exit(0)


def import_readers(folder: Path) -> None:
    """So that no child pays for it: everything that a sound TIFF and a PNG want."""
    for name in (*READERS.values(), "zarr"):
        import_module(name)
    for case in CASES:
        if case.name in ("twin.tif", "png.svs"):
            folder.mkdir()
            observe(folder / case.name, case, case.make(folder / case.name), info=True)
            shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--info", action="store_true", help="try coverslip info, too")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), help="which, of how many")
    given = parser.parse_args()
    part, parts = given.part
    given.folder.mkdir(parents=True, exist_ok=True)
    shown = make_corpus(given.folder)
    import_readers(given.folder / "sound")
    found = []
    for case in CASES[part::parts]:
        path, pixels = given.folder / case.name, shown[case.name]
        found.append(
            limited(
                lambda path=path, case=case, pixels=pixels: observe(path, case, pixels, given.info),
                case.name,
                given.seconds,
                given.gigabytes,
            )
        )
    json.dump([asdict(each) for each in found], sys.stdout)


if __name__ == "__main__":
    main()
