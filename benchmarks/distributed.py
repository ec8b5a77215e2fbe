"""What sharing slides costs, and what a killed worker costs.

    python benchmarks/distributed.py [--slides 200] [--side 1024] [--repeat 3] [--ways 6]

Small slides are generated; then `coverslip run` (tissue, tiles, quality, nuclei by the watershed,
GeoJSON) makes the same of them in every way, each a command of its own with one thread a worker.
The time is the whole command's, with starting and ending the workers. A way that makes other bytes
than one process alone ends the benchmark. "One killed": whichever worker has a slide in hand after
a third of the slides is killed with SIGKILL.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import tifffile

RUN = [sys.executable, "-m", "coverslip", "run"]
OPTIONS = ["--encoder", "none", "--nuclei", "watershed", "--export", "geojson", "--threads", "1"]
OVER_DASK = ["--scheduler", "dask", "--workers"]
WAYS: dict[str, Sequence[Sequence[str]]] = {
    "one process": [[]],
    "Dask, 1 worker": [[*OVER_DASK, "1"]],
    "two processes that share, one a device": [["--device", "cpu,cpu"]],
    "two runs that know nothing of each other": [[], []],
    "Dask, 2 workers": [[*OVER_DASK, "2"]],
    "Dask, 2 workers, one killed": [[*OVER_DASK, "2"]],
}


def write_slide(path: Path, side: int, seed: int) -> None:
    """A disc of tissue with nuclei, at 0.5 µm."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    image = np.full((side, side, 3), 235, np.int16)
    cx, cy = random.uniform(0.35, 0.65, 2) * side
    tissue = (x - cx) ** 2 + (y - cy) ** 2 < (0.35 * side) ** 2
    image[tissue] = (190, 110, 160)
    disc = np.hypot(*np.mgrid[-8:9, -8:9]) < 7.8
    for px, py in random.integers(8, side - 8, (side // 16, 2)):
        near = (slice(py - 8, py + 9), slice(px - 8, px + 9))
        image[near][disc & tissue[near]] = (90, 40, 120)
    image += random.integers(-6, 7, image.shape, np.int16)
    with tifffile.TiffWriter(path) as writer:
        for step in (1, 4):
            writer.write(
                np.clip(image[::step, ::step], 0, 255).astype(np.uint8),
                tile=(256, 256),
                compression="jpeg",
                photometric="rgb",
                resolution=(2e4 / step, 2e4 / step),
                resolutionunit="CENTIMETER",
                subfiletype=int(step > 1),
                metadata=None,
            )


def contents(output: Path) -> dict[str, bytes]:
    """Stores, exports and locks; not journal and report, which hold times."""
    roots = [*output.glob("*.zarr"), output / "geojson", *output.glob("*.lock")]
    files = [f for root in roots for f in ([root] if root.is_file() else root.rglob("*"))]
    return {f.relative_to(output).as_posix(): f.read_bytes() for f in files if f.is_file()}


def kill_one(output: Path, after: int) -> None:
    """The worker that has a slide in hand once so many stores are there."""
    while len(list(output.glob("geojson/*"))) < after:
        time.sleep(0.05)
    while True:
        for path in output.glob("*.lock"):
            try:
                os.kill(orjson.loads(path.read_bytes())["pid"], signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError, orjson.JSONDecodeError):
                continue
            return


def timed(slides: Path, output: Path, commands: Sequence[Sequence[str]], kill: int) -> float:
    """Seconds until all commands have ended."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    began = time.perf_counter()
    running = [
        subprocess.Popen([*RUN, str(slides), "-o", str(output), *OPTIONS, *flags], **quiet)  # type: ignore[call-overload]
        for flags in commands
    ]
    if kill:
        kill_one(output, kill)
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"exit codes {codes}; see {output}")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--slides", type=int, default=200)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ways", type=int, default=len(WAYS), help="only the first so many")
    given = parser.parse_args()
    ways = dict(list(WAYS.items())[: given.ways])
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        slides = folder / "slides"
        slides.mkdir(parents=True)
        for number in range(given.slides):
            write_slide(slides / f"slide-{number:04d}.tif", given.side, number)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        standard: dict[str, bytes] = {}
        for turn in range(given.repeat):
            for way, commands in ways.items():
                output = folder / f"out-{turn}-{way.replace(' ', '-')}"
                kill = given.slides // 3 if "killed" in way else 0
                seconds[way].append(timed(slides, output, commands, kill))
                standard = standard or contents(output)
                if contents(output) != standard:
                    raise SystemExit(f"{way}: other bytes than one process made; see {output}")
                shutil.rmtree(output)
                print(f"{way}: {seconds[way][-1]:.1f} s", file=sys.stderr, flush=True)
        print(
            f"{given.slides} slides of {given.side} px, {len(standard):,} files, all ways alike\n"
        )
        print("| way | s, median (least-most) | against one process |")
        print("|---|---|---|")
        first = statistics.median(seconds["one process"])
        for way, taken in seconds.items():
            median = statistics.median(taken)
            print(f"| {way} | {median:.1f} ({min(taken):.1f}-{max(taken):.1f}) | "
                  f"{median / first:.3f} |")  # fmt: skip


if __name__ == "__main__":
    main()
