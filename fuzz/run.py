"""Fuzzing for a bounded time.

    python fuzz/run.py [TARGET ...] [--seconds 60] [--findings fuzz/findings]

Each target runs in a process of its own, guided by coverage where atheris is installed (Python 3.11
to 3.13); without it inputs are mutated blindly, and the report says so. An input that raises what
it must not, crashes, takes more than ten seconds or 3 GB is kept under `--findings`, and the exit
code is 1. `--repeat FILE` hands one input to one target again.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SECONDS_EACH, MEGABYTES = 10, 3000
NAMES = (
    *("tiff_file", "tiff_tags", "jpeg_tile", "jpeg2000_tile", "description", "geojson", "hdf5"),
    *("store", "zarr_image", "icc", "recipe", "clinical_table", "mpp_table", "settings"),
)


def fuzz_guided(name: str, seconds: int, findings: Path) -> None:
    """By libFuzzer; does not return."""
    import atheris

    with atheris.instrument_imports(include=["coverslip", "targets"]):
        from targets import TARGETS, seeds
    corpus = findings / f"corpus-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    flags = [f"-max_total_time={seconds}", f"-timeout={SECONDS_EACH}", f"-rss_limit_mb={MEGABYTES}"]
    kept = [f"-artifact_prefix={findings}/{name}-", "-max_len=65536", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, *kept, str(corpus)], TARGETS[name])
    atheris.Fuzz()


def fuzz_blindly(name: str, seconds: int, findings: Path) -> None:
    """By mutations of the seeds, without coverage."""
    from targets import TARGETS, seeds

    known, draw = list(seeds(name)), random.Random(name)
    current, count = findings / f"{name}-current", 0
    ended = time.monotonic() + seconds
    while time.monotonic() < ended:
        data = mutated(draw.choice(known), draw)
        current.write_bytes(data)  # what a crash leaves behind
        signal.alarm(SECONDS_EACH)
        TARGETS[name](data)
        signal.alarm(0)
        count += 1
    current.unlink(missing_ok=True)
    print(f"{name}: {count} inputs, without coverage (atheris is not installed)")


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One to eight changes: bits, whole bytes, telling numbers, parts left out, repeated, moved."""
    content = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(len(content) + 1)
        length = draw.choice((1, 2, 4, 8, 16, 64))
        kind = draw.randrange(5)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            content[at : at + length] = draw.randbytes(length)
        elif kind == 2:
            telling = draw.choice((0, 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1))
            content[at : at + 4] = telling.to_bytes(4, draw.choice(("little", "big")))
        elif kind == 3:
            del content[at : at + length]
        else:
            start = draw.randrange(len(content) + 1)
            content[at:at] = content[start : start + length]
    return bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--findings", type=Path, default=Path(__file__).parent / "findings")
    parser.add_argument("--repeat", type=Path)
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if strange := set(given.targets) - set(NAMES):
        parser.error(f"no target {', '.join(sorted(strange))}; known: {', '.join(NAMES)}")
    given.findings.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(Path(__file__).parent))
    if given.repeat:
        from targets import TARGETS

        TARGETS[given.targets[0]](given.repeat.read_bytes())
        return 0
    if given.within:
        guided = importlib.util.find_spec("atheris") is not None
        (fuzz_guided if guided else fuzz_blindly)(given.targets[0], given.seconds, given.findings)
        return 0
    failed = [name for name in given.targets or NAMES if not _sound(name, given)]
    print(f"findings in {given.findings}: {', '.join(failed)}" if failed else "no findings")
    return int(bool(failed))


def _sound(name: str, given: argparse.Namespace) -> bool:
    """Whether a target's process ended as it should; prints what it did."""
    command = [sys.executable, __file__, name, "--within", "--seconds", str(given.seconds)]
    log = given.findings / f"{name}.log"
    with open(log, "wb") as sink:
        status = subprocess.run(
            [*command, "--findings", str(given.findings)],
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ).returncode
    said = log.read_text(errors="replace").splitlines()
    told = [line for line in said if line.startswith(("Done", f"{name}:", "stat::number_of"))]
    outcome = "sound" if status == 0 else f"FAILED, see {log}"
    print(f"{name}: {outcome}; {' '.join(told)}", flush=True)
    return status == 0


if __name__ == "__main__":
    sys.exit(main())
