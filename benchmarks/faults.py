"""Faults at random moments of a run; then it is resumed, and compared with an undisturbed one.

    python benchmarks/faults.py SLIDE [--seconds 60] [--seed 0] [--only NAME ...]

For each fault: how often it was tried, and how often something was lost or wrong. Wrong is also a
store that `coverslip verify` finds damaged between the fault and the resume, a leftover behind the
resume, a message without a cause or a process that outlives the run. Needs fork (Linux, macOS).
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

from faulty_runs import (  # noqa: E402
    OPTIONS,
    Prepared,
    counted_operations,
    differences,
    impatient,
    jumping_clock,
    killed_at,
    refused_from,
    results,
    run_in_fork,
)
from power_cut import Recorder, cut_power  # noqa: E402

from coverslip.cli import main  # noqa: E402
from coverslip.engine.verify import verdicts  # noqa: E402
from coverslip.errors import StoreError, StoreVersion  # noqa: E402

NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
FAULT_SAYS = {errno.ENOSPC: "No space left on device", errno.EROFS: "Read-only file system"}


class Bench:
    """A slide, what an undisturbed run leaves of it, and folders for disturbed ones."""

    def __init__(self, slide: Path, folder: Path, draw: random.Random) -> None:
        self.slide, self.folder, self.draw, self.number = slide, folder, draw, 0
        main(["run", str(slide), "-o", str(folder / "warm"), *OPTIONS])
        began = time.monotonic()
        self.sound = folder / "sound"
        self.operations = counted_operations(slide, self.sound)
        self.seconds = time.monotonic() - began
        self.wanted = results(self.sound)

    def output(self) -> Path:
        self.number += 1
        return self.folder / f"try-{self.number}"

    def looks_wrong(self, output: Path) -> bool:
        """Whether a store claims as complete what is damaged."""
        try:
            return any(not verdict.sound for verdict in verdicts(output))
        except StoreError:  # there is none yet
            return False

    def resumed(self, output: Path, prepared: Prepared | None = None) -> tuple[int, int]:
        """(lost, wrong) after the same command was given again."""
        wrong = int(self.looks_wrong(output))
        ended = run_in_fork(self.slide, output, prepared=prepared)
        lost, different = differences(results(output), self.wanted)
        if ended.code or lost or different or wrong:
            print(f"{output}: {ended.code}, {lost} lost, {different} wrong, {wrong}: {ended.said}")
        else:
            shutil.rmtree(output)
        return int(lost > 0 or ended.code != 0), int(different > 0 or wrong > 0)

    def signalled(self, number: int, code: int) -> tuple[int, int]:
        output = self.output()
        after = self.draw.uniform(0, self.seconds)
        ended = run_in_fork(self.slide, output, signalled=(number, after))
        begun = output.exists()  # before it is, a signal may still find Python starting
        expected = (code, 0) if begun else (code, 0, -number)
        wrong = ended.orphans > 0 or ended.code not in expected or "Traceback" in ended.said
        if number != signal.SIGKILL and ended.code > 0:
            wrong |= "stopped by SIG" not in ended.said or bool(list(output.glob("*.lock")))
        if wrong:
            print(f"{output}: {ended}")
        lost, different = self.resumed(output)
        return lost, int(different or wrong)

    def refused(self, number: int) -> tuple[int, int]:
        output, at = self.output(), self.draw.randint(1, self.operations)
        ended = run_in_fork(self.slide, output, prepared=refused_from(at, number))
        wrong = "Traceback" in ended.said or "unexpected" in ended.said
        if ended.code:  # 0 where it was the very end that was refused, and nothing was lost
            wrong |= ended.code != 1 or FAULT_SAYS[number] not in ended.said
        if wrong:
            print(f"{output}: refused at {at}: {ended}")
        lost, different = self.resumed(output)
        return lost, int(different or wrong)


def killed_by_time(bench: Bench) -> tuple[int, int]:
    return bench.signalled(signal.SIGKILL, -signal.SIGKILL)


def killed_by_operation(bench: Bench) -> tuple[int, int]:
    """Up to three times in a row, as far as there are operations left."""
    output = bench.output()
    for _ in range(bench.draw.randint(1, 3)):
        at = bench.draw.randint(1, bench.operations)
        run_in_fork(bench.slide, output, prepared=killed_at(at))
    return bench.resumed(output)


def killed_beside_another(bench: Bench) -> tuple[int, int]:
    """Two runs begin at once; what the killed one leaves, the other has to take over."""
    output, at = bench.output(), bench.draw.randint(1, bench.operations)
    pid = os.fork()
    if not pid:
        run_in_fork(bench.slide, output, prepared=killed_at(at))
        os._exit(0)
    ended = run_in_fork(bench.slide, output, prepared=impatient)
    os.waitpid(pid, 0)
    lost, different = differences(results(output), bench.wanted)
    wrong = ended.code != 0 or lost > 0 or different > 0
    if wrong:
        print(f"{output}: killed at {at}: {lost} lost, {different} wrong: {ended}")
    again_lost, again_wrong = bench.resumed(output)
    return int(lost > 0 or again_lost > 0), int(wrong or again_wrong > 0)


def power_cuts(bench: Bench) -> tuple[int, int]:
    output, at = bench.output(), bench.draw.randint(1, bench.operations)
    log = output.with_name(f"{output.name}.log")
    kept = output.with_name(f"{output.name}.kept")
    run_in_fork(bench.slide, output, prepared=Recorder(log, kept, at))
    cut_power(log, output, bench.draw)
    return bench.resumed(output, impatient)


def clock_jumps(bench: Bench) -> tuple[int, int]:
    """In a whole run, and in one that goes on with a killed one."""
    output, seed = bench.output(), bench.draw.randrange(2**32)
    if bench.draw.random() < 0.5:
        at = bench.draw.randint(1, bench.operations)
        run_in_fork(bench.slide, output, prepared=killed_at(at))
    ended = run_in_fork(bench.slide, output, prepared=jumping_clock(seed))
    lost, wrong = bench.resumed(output)
    return int(lost or ended.code != 0), wrong


def disk_full(bench: Bench) -> tuple[int, int]:
    """A real file system of random size, which then is given room."""
    size = sum(map(len, bench.wanted.values())) >> 10
    disk, kilobytes = bench.output(), bench.draw.randint(30, 2 * size)
    disk.mkdir()
    pid = os.fork()
    if not pid:
        ctypes.CDLL(None).unshare(NEW_MOUNTS)
        tmpfs = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(disk)]
        subprocess.run(tmpfs, check=True)
        full = run_in_fork(bench.slide, disk / "out")
        subprocess.run(["mount", "-o", "remount,size=500m", "none", str(disk)], check=True)
        lost, wrong = bench.resumed(disk / "out")
        wrong |= "Traceback" in full.said or full.code not in (0, 1)
        os._exit(lost + 2 * wrong)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return int(bool(code & 1)), int(bool(code & 2) or code not in range(4))


def _flipped(bench: Bench, output: Path) -> None:
    """One random byte of a copy of the undisturbed results, in a file drawn at random."""
    draw = bench.draw
    path = output / draw.choice(sorted(bench.wanted))
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    path.write_bytes(content)


def byte_flips(bench: Bench) -> tuple[int, int]:
    """Wrong where verify sees nothing."""
    output = bench.folder / "flipped"
    if not output.exists():
        shutil.copytree(bench.sound, output)
    before = results(output)
    _flipped(bench, output)
    decode = bench.draw.random() < 0.1
    try:
        unseen = all(verdict.sound for verdict in verdicts(output, decode=decode))
    except StoreVersion:  # the byte of the schema's number
        unseen = False
    for name, content in before.items():
        (output / name).write_bytes(content)
    return 0, int(unseen)


def byte_flips_repaired(bench: Bench) -> tuple[int, int]:
    output = bench.output()
    shutil.copytree(bench.sound, output)
    _flipped(bench, output)
    main(["verify", str(output), "--repair", "--json"])
    return bench.resumed(output)


FAULTS: dict[str, Callable[[Bench], tuple[int, int]]] = {
    "kill -9 at a random time": killed_by_time,
    "kill -9 before a random change to the disk, up to 3 times": killed_by_operation,
    "two runs share the folder, one is killed": killed_beside_another,
    "power cut: what was not flushed is lost, cut or zeroed": power_cuts,
    "SIGTERM": lambda bench: bench.signalled(signal.SIGTERM, 143),
    "SIGINT": lambda bench: bench.signalled(signal.SIGINT, 130),
    "ENOSPC from a random change on": lambda bench: bench.refused(errno.ENOSPC),
    "EROFS from a random change on": lambda bench: bench.refused(errno.EROFS),
    "a real disk of random size fills up": disk_full,
    "the clock jumps by up to a day": clock_jumps,
    "a byte flipped: seen by verify": byte_flips,
    "a byte flipped: verify --repair, run again": byte_flips_repaired,
}


def measured(bench: Bench, name: str, seconds: float) -> tuple[int, int, int]:
    """(tries, lost, wrong) of one fault."""
    tries = lost = wrong = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        one_lost, one_wrong = FAULTS[name](bench)
        tries, lost, wrong = tries + 1, lost + one_lost, wrong + one_wrong
    return tries, lost, wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=list(FAULTS), help="words of faults' names")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    bench = Bench(arguments.slide, folder, random.Random(arguments.seed))
    print(
        f"{bench.operations} changes to the disk, {bench.seconds:.1f} s, {len(bench.wanted)} files"
    )
    print("| fault | tries | lost | wrong |\n|---|---|---|---|", flush=True)
    failed = 0
    for name in FAULTS:
        if any(word in name for word in arguments.only):
            tries, lost, wrong = measured(bench, name, arguments.seconds)
            failed += lost + wrong
            print(f"| {name} | {tries} | {lost} | {wrong} |", flush=True)
    if not failed:
        shutil.rmtree(folder)
    sys.exit(int(failed > 0))
