"""Bags of embeddings from disk: this engine's stores beside HDF5 and .pt files of the same numbers.

    python benchmarks/bags.py [--slides 60] [--dtype float32] [--repeat 5] [--folder EMPTY]

Slides of 2,000 to 10,000 tiles with 1,024 numbers each are written in every layout; then an epoch
in random order is read in each, in turn: whole bags, and 2,048 random tiles of each. "warm": the
files are in the system's cache; "cold": they were thrown out of it before (posix_fadvise). The
store is read as a training does: opened once, blocks checked when they are first read ("1st epoch")
and not again. Memory is what an epoch adds to the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from coverslip.engine.bags import StoredBags
from coverslip.tiling.store import SlideStore

DIM, PICKED, BLOCK = 1024, 2048, 512
STAGE, TILES = "features/made-up@256px_0.5mpp", "tiles/256px_0.5mpp"
Read = Callable[[int, "np.ndarray | None"], np.ndarray]
LAYOUTS = ("store", "zstd", "trident", "chunked", "contiguous", "pt")


def counts(slides: int) -> list[int]:
    return np.random.default_rng(0).integers(2000, 10_001, slides).tolist()


def write(folder: Path, slides: int, dtype: str) -> None:
    """All layouts of the same numbers, flushed to disk."""
    for layout in LAYOUTS:
        (folder / layout).mkdir(parents=True)
    for slide, count in enumerate(counts(slides)):
        values = np.random.default_rng(slide).standard_normal((count, DIM), np.float32)
        values = values.astype(dtype)
        write_store(folder / "store" / f"{slide:04d}.zarr", values, "raw")
        write_store(folder / "zstd" / f"{slide:04d}.zarr", values, "zstd")
        chunks = {"trident": (1, DIM), "chunked": (1024, DIM), "contiguous": None}
        for layout, chunk in chunks.items():
            with h5py.File(folder / layout / f"{slide:04d}.h5", "w") as file:
                file.create_dataset("features", data=values, chunks=chunk)
                file["coords"] = np.zeros((count, 2), np.int64)
        torch.save(torch.from_numpy(values), folder / "pt" / f"{slide:04d}.pt")
    os.sync()


def write_store(path: Path, values: np.ndarray, codec: Any) -> None:
    store = SlideStore.create(path, {"fingerprint": path.name})
    grid = {"tile": 256, "mpp": 0.5}
    with store.stage(TILES, {"grid": grid}) as stage:
        stage.finish({})
    with store.stage(STAGE, {"recipe": {}, "weights_sha256": "made up"}, needs=[TILES]) as stage:
        stage.create_array(
            "features", values.shape, values.dtype.name, rows_per_block=BLOCK, codec=codec
        )
        for block, start in enumerate(range(0, len(values), BLOCK)):
            stage.write_block(block, {"features": values[start : start + BLOCK]})
        stage.finish({"dim": DIM})


def stored(folder: Path) -> Read:
    return StoredBags.open(folder).read


def hdf5(folder: Path, *, sorted_rows: bool = False) -> Read:
    """As the peers read: the dataset whole; or, sorted, only the rows that are wanted."""
    paths = sorted(folder.glob("*.h5"))

    def read(slide: int, rows: np.ndarray | None) -> np.ndarray:
        with h5py.File(paths[slide], "r") as file:
            if rows is not None and sorted_rows:
                order = np.argsort(rows)
                found = np.empty((len(rows), DIM), file["features"].dtype)
                found[order] = file["features"][rows[order]]
                return found
            whole = file["features"][:]
        return whole if rows is None else whole[rows]

    return read


def tensors(folder: Path, *, mapped: bool) -> Read:
    paths = sorted(folder.glob("*.pt"))

    def read(slide: int, rows: np.ndarray | None) -> np.ndarray:
        tensor = torch.load(paths[slide], weights_only=True, mmap=mapped)
        if rows is not None:
            return tensor[torch.from_numpy(rows)].numpy()
        return (tensor.clone() if mapped else tensor).numpy()

    return read


def drop_from_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def epoch(read: Read, slides: int, subset: bool, turn: int) -> tuple[float, int]:
    """(seconds, bytes of the bags handed out)."""
    rng, handed = np.random.default_rng(turn), 0
    sizes = counts(slides)
    wanted = [(i, rng.permutation(sizes[i])[:PICKED] if subset else None)
              for i in rng.permutation(slides).tolist()]  # fmt: skip
    started = time.perf_counter()
    for slide, rows in wanted:
        handed += read(slide, rows).nbytes
    return time.perf_counter() - started, handed


def ways(folder: Path, subset: bool) -> dict[str, tuple[str, Callable[[], Read]]]:
    """Way -> (layout, what opens it); the store's first epoch is one that opens it anew."""
    opened = stored(folder / "store")
    found: dict[str, tuple[str, Callable[[], Read]]] = {
        "coverslip store": ("store", lambda: opened),
        "coverslip store, 1st epoch": ("store", lambda: stored(folder / "store")),
        "coverslip store as it was, zstd": ("zstd", lambda: stored(folder / "zstd")),
        ".pt, torch.load": ("pt", lambda: tensors(folder / "pt", mapped=False)),
        ".pt, torch.load(mmap=True)": ("pt", lambda: tensors(folder / "pt", mapped=True)),
        "HDF5 as TRIDENT writes, chunks of a row": ("trident", lambda: hdf5(folder / "trident")),
        "HDF5, chunks of 1,024 rows": ("chunked", lambda: hdf5(folder / "chunked")),
        "HDF5, contiguous": ("contiguous", lambda: hdf5(folder / "contiguous")),
    }
    if subset:
        found["HDF5, contiguous, only the rows"] = (
            "contiguous", lambda: hdf5(folder / "contiguous", sorted_rows=True)
        )  # fmt: skip
    return found


def measure(folder: Path, slides: int, repeat: int, subset: bool, cold: bool) -> Iterator[str]:
    ours, *others = ways(folder, subset).items()
    taken: dict[str, list[float]] = {}
    handed = 0
    for turn in range(repeat + 1):
        for name, (layout, opening) in [
            ours,
            *others[turn % len(others) :],
            *others[: turn % len(others)],
        ]:
            read = opening()
            if cold:
                drop_from_cache(folder / layout)
            seconds, handed = epoch(read, slides, subset, turn)
            if turn:
                taken.setdefault(name, []).append(seconds)
    what = f"{PICKED:,} random tiles" if subset else "whole bags"
    best = min(statistics.median(t) for n, t in taken.items() if not n.startswith("coverslip"))
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        yield (
            f"| {what}, {'cold' if cold else 'warm'} | {name} | {handed / median / 1e9:.2f} "
            f"({handed / max(seconds) / 1e9:.2f}-{handed / min(seconds) / 1e9:.2f}) | "
            f"{slides / median:,.0f} | {best / median:.2f}x |"
        )


def peak_mb() -> float:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1]) / 1024


def epoch_memory(folder: Path, slides: int, subset: bool) -> float:
    """MB that an epoch adds to a process's peak."""
    read = stored(folder / "store")
    before = peak_mb()
    epoch(read, slides, subset, 1)
    return peak_mb() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=60)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float32")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--memory", choices=["whole", "subset"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        print(epoch_memory(given.folder, given.slides, given.memory == "subset"))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made) / "bags"
        if not folder.exists():
            write(folder, given.slides, given.dtype)
        total = sum(counts(given.slides)) * DIM * np.dtype(given.dtype).itemsize
        print(f"{given.slides} slides, {given.dtype}, {total / 1e9:.2f} GB\n")
        for layout in LAYOUTS:
            size = sum(p.stat().st_size for p in (folder / layout).rglob("*") if p.is_file())
            print(f"- {layout}: {size / total:.3f} bytes on disk per byte")
        print("\n| epoch | way | GB/s (slowest-fastest) | bags/s | against the best peer |")
        print("|---|---|---|---|---|")
        for subset in (False, True):
            for cold in (False, True):
                for line in measure(folder, given.slides, given.repeat, subset, cold):
                    print(line, flush=True)
        for way in ("whole", "subset"):
            command = [sys.executable, __file__, "--folder", str(folder), "--memory", way]
            command += ["--slides", str(given.slides)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"\nPeak memory of an epoch of the store, {way}: {float(run.stdout):.0f} MB")


if __name__ == "__main__":
    main()
