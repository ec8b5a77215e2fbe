"""Searching embeddings: building, opening and asking an index; and what it finds on real slides.

    python benchmarks/search.py [--rows 100000,1000000] [--dim 384] [--spread 0.5]
    python benchmarks/search.py --cohort OUT [--group breast=a --group gut=b,c]

The first fills indices with made-up vectors: 1,000 clusters, the variance of whose centres falls
with the axis as 1/j, as that of real tiles' embeddings does, and that of their members likewise,
at `--spread` times the deviation. Every index is built and asked in a process of its own. Memory is
what the process holds itself; pages of mapped files belong to the system's cache and can be dropped
at any time.

The second takes every tenth tile of an output folder as a query and looks at its 5 nearest, without
its own slide's tiles within two tile sides: how many are of the same slide, and of the same group.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

CLUSTERS, BLOCK = 1000, 16_384
QUERIES, NEAREST = 100, 10
WAYS = ("flat", "ivf", "FAISS IndexFlatIP in memory")


def made_up(rows: int, dim: int, spread: float, seed: int) -> Iterator[np.ndarray]:
    """float32 [n, dim] blocks, `rows` in all."""
    scale = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    centres = scale * np.random.default_rng(0).standard_normal((CLUSTERS, dim), np.float32)
    rng = np.random.default_rng(seed)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        noise = scale * rng.standard_normal((count, dim), np.float32)
        yield centres[rng.integers(0, CLUSTERS, count)] + spread * noise


def own_memory() -> float:
    """MB of this process that are no mapped file's."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x]
    return int(line.split()[1]) / 1024


class Peak:
    """MB of its own that the process took at most above what it had, sampled every 10 ms."""

    def __enter__(self) -> Self:
        self.before, self.most, self._over = own_memory(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._over.wait(0.01):
            self.most = max(self.most, own_memory() - self.before)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self.most = max(self.most, own_memory() - self.before)


def build(way: str, folder: Path, rows: int, dim: int, spread: float) -> dict[str, float]:
    """Seconds and MB that it takes to build the index."""
    import faiss

    from coverslip.encoders.search import MadeBy, Part, build_index, unit

    started = time.perf_counter()
    with Peak() as peak:
        if way in ("flat", "ivf"):
            made_by = MadeBy("made up", "", "", "")
            parts = [Part("all", "", rows)]
            build_index(folder, made_up(rows, dim, spread, 1), made_by, parts, dim=dim, kind=way)
        else:
            index = faiss.IndexFlatIP(dim)
            for block in made_up(rows, dim, spread, 1):
                index.add(unit(block))
            folder.mkdir()
            faiss.write_index(index, str(folder / "index"))
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    return {"build s": seconds, "build MB": peak.most, "disk MB": size}


def ask(way: str, folder: Path, rows: int, dim: int, spread: float) -> dict[str, float]:
    """What opening the index and one query after the other take."""
    import faiss

    from coverslip.encoders.search import VectorIndex, recall, unit

    (block,) = made_up(QUERIES, dim, spread, 2)
    queries = unit(block)
    faiss.IndexFlatIP(dim).add(queries)  # whatever FAISS allocates once
    times, found = [], {}
    with Peak() as peak:
        started = time.perf_counter()
        if way in ("flat", "ivf"):
            index: Any = VectorIndex.open(folder)
        else:
            index = faiss.read_index(str(folder / "index"))
        opened = time.perf_counter() - started
        found["open MB"] = own_memory() - peak.before
        for query in queries:
            started = time.perf_counter()
            index.search(query[None], NEAREST)
            times.append(time.perf_counter() - started)
    found |= {"open ms": 1e3 * opened, "ask MB": peak.most, "ask ms": 1e3 * median(times)}
    found["recall"] = recall(index, queries, NEAREST) if way == "ivf" else 1.0
    if way == "ivf":
        found |= {"lists": index.record.lists * index.record.shards}
        found |= {"probes": index.record.probes * index.record.shards}
    return found


def median(values: list[float]) -> float:
    return statistics.median(values)


def measure(rows: list[int], dim: int, spread: float) -> None:
    print(f"{dim} dimensions, {QUERIES} queries one by one (median), {NEAREST} nearest, ", end="")
    print("MB of the process's own\n")
    print("| rows | index | build | peak | on disk | open | holds | one query | peak | recall@10 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for count in rows:
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                place = str(Path(folder) / "index")
                found: dict[str, float] = {}
                for step in ("build", "ask"):
                    command = [sys.executable, __file__, "--one", step, way, place]
                    command += ["--rows", str(count), "--dim", str(dim), "--spread", str(spread)]
                    run = subprocess.run(command, capture_output=True, text=True, check=True)
                    found |= json.loads(run.stdout)
            name = way
            if way == "ivf":
                name = f"ivf, {found['probes']:.0f} of {found['lists']:.0f} lists"
            print(
                f"| {count:,} | {name} | {found['build s']:.1f} s | {found['build MB']:.0f} MB "
                f"| {found['disk MB']:,.0f} MB | {found['open ms']:.1f} ms "
                f"| {found['open MB']:,.0f} MB | {found['ask ms']:.1f} ms "
                f"| {found['ask MB']:,.0f} MB | {found['recall']:.3f} |",
                flush=True,
            )


def precision(output: Path, groups: dict[str, list[str]]) -> None:
    """A row for each slide: the share of the nearest that is of its slide and group, and chance."""
    from coverslip.cohort.search import nearest_tiles, neighbourhood
    from coverslip.cohort.search_index import open_cohort_index
    from coverslip.encoders.search import unit
    from coverslip.wsi.slide import Box

    nearest = 5
    cohort = open_cohort_index(output)
    group_of = {slide: name for name, slides in groups.items() for slide in slides}
    total = cohort.index.record.count
    print(f"{cohort.name}, {nearest} nearest, every tenth tile; in brackets what chance gives\n")
    print("| slide | queries | same slide | same group | same group, own slide left out |")
    print("|---|---|---|---|---|")
    for slide in cohort.stores:
        grid, rows = cohort.tiles(slide), cohort.rows(slide)
        alike = [s for s in cohort.stores if group_of.get(s, s) == group_of.get(slide, slide)]
        many = sum(len(cohort.rows(s)) for s in alike)
        vectors = unit(cohort.vectors(slide))
        hits = np.zeros(3)
        chance = np.zeros(3)
        tiles = range(0, len(grid), 10)
        for tile in tiles:
            box = Box(*grid.boxes[tile].tolist())
            near = rows.start + neighbourhood(grid, box, 2 * grid.tile * grid.mpp)
            close = nearest_tiles(cohort, vectors[tile], nearest, near)
            far = nearest_tiles(cohort, vectors[tile], nearest, np.arange(rows.start, rows.stop))
            hits += [
                np.mean([hit.slide == slide for hit in close]),
                np.mean([hit.slide in alike for hit in close]),
                np.mean([hit.slide in alike for hit in far]),
            ]
            left = total - len(near)
            chance += [
                (len(rows) - len(near)) / left,
                (many - len(near)) / left,
                (many - len(rows)) / (total - len(rows)),
            ]
        shares = [
            f"{h:.3f} ({c:.3f})"
            for h, c in zip(hits / len(tiles), chance / len(tiles), strict=True)
        ]
        if len(alike) == 1:
            shares[2] = "no other slide"
        print(f"| {slide} | {len(tiles)} | {' | '.join(shares)} |")
    print(
        "\nA slide is also one scanner, one stain and one patient: finding a tile's own slide\n"
        "shows that the search works, not that it sees disease. The last column crosses slides."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="100000,1000000")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--spread", type=float, default=0.5)
    parser.add_argument("--cohort", type=Path, help="output folder of a run with features")
    parser.add_argument("--group", action="append", default=[], help="NAME=SLIDE,SLIDE")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows = [int(count) for count in arguments.rows.split(",")]
    if arguments.one:
        step, way, place = arguments.one
        do = build if step == "build" else ask
        print(json.dumps(do(way, Path(place), rows[0], arguments.dim, arguments.spread)))
    elif arguments.cohort:
        pairs = [text.partition("=") for text in arguments.group]
        precision(arguments.cohort, {name: slides.split(",") for name, _, slides in pairs})
    else:
        measure(rows, arguments.dim, arguments.spread)


if __name__ == "__main__":
    main()
