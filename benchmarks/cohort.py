"""SQL over the nuclei of a cohort: DuckDB on the Parquet files beside pandas that loads them.

    python benchmarks/cohort.py [--nuclei 1000000 10000000] [--slides 50] [--repeat 5]

Nuclei are made up and written as `coverslip export` writes them, outlines included; every query
runs in a process of its own, so that its peak memory is its own. The files are read once before, so
that both ways find them in the page cache. pandas reads the columns that a query needs, and no
others. Then one slide of each size is measured: morphometry and spatial statistics.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CLASSES = ("Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
CORNERS = 16
SIDE = 60_000  # level-0 px of a slide

PER_CLASS = """select slide, class, count(*) as nuclei, avg(area_um2) as area
               from nuclei group by all order by all"""
JOINED = """select grade, median(area_um2), avg(circularity), count(*) from nuclei
            join clinical using (slide) where class = 'Neoplastic' group by grade order by grade"""
REGION = """select * exclude geometry from nuclei where slide = 'slide-007'
            and x between 20000 and 24000 and y between 20000 and 24000
            order by area_um2 desc limit 100"""


def made_up_columns(count: int, seed: int) -> dict[str, npt.NDArray[Any]]:
    random = np.random.default_rng(seed)
    centroid = random.random((count, 2)) * SIDE
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    reach = random.uniform(8, 20, (count, 1, 1))
    polygon = centroid[:, None] + reach * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    names = ("probability", "agreement", "perimeter_um", "major_axis_um", "minor_axis_um",
             "circularity", "solidity", "hematoxylin_mean")  # fmt: skip
    return {
        "centroid": centroid,
        "polygon_offset": np.arange(count + 1) * CORNERS,
        "polygon": polygon.reshape(-1, 2).astype(np.float32),
        "class_id": random.choice(5, count, p=[0.4, 0.2, 0.25, 0.01, 0.14]).astype(np.uint8),
        "area_um2": random.gamma(4, 10, count).astype(np.float32),
        **{name: random.random(count).astype(np.float32) for name in names},
    }


def write_cohort(folder: Path, nuclei: int, slides: int) -> None:
    """The Parquet files; prints how fast they were written."""
    from coverslip.export.parquet import write_nuclei_parquet

    seconds = 0.0
    for number in range(slides):
        columns = made_up_columns(nuclei // slides, number)
        started = time.perf_counter()
        slide = f"slide-{number:03d}"
        write_nuclei_parquet(folder / f"{slide}.parquet", columns, slide, "model", CLASSES)
        seconds += time.perf_counter() - started
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"\n{nuclei:,} nuclei of {slides} slides: {size / 1e6:,.0f} MB, written in {seconds:.0f} s"
    )


def clinical(folder: Path) -> dict[str, list[Any]]:
    slides = [path.stem for path in sorted(folder.glob("*.parquet"))]
    return {"slide": slides, "grade": [1 + i % 3 for i in range(len(slides))]}


def by_duckdb(query: str) -> Callable[[Path], Any]:
    def found(folder: Path) -> Any:
        import pyarrow as pa

        from coverslip.cohort.tables import SqlLimits, open_tables, query_result

        files = sorted(folder.glob("*.parquet"))
        tables = {"clinical": pa.table(clinical(folder))}
        connection = open_tables({"nuclei": files}, tables, folder, SqlLimits(threads=2))
        return query_result(connection, query).fetchall()

    return found


def loaded(folder: Path, columns: list[str]) -> Any:
    import pandas as pd

    files = sorted(folder.glob("*.parquet"))
    return pd.concat([pd.read_parquet(file, columns=columns) for file in files])


def pandas_per_class(folder: Path) -> Any:
    groups = loaded(folder, ["slide", "class", "area_um2"]).groupby(["slide", "class"])["area_um2"]
    return groups.agg(["size", "mean"])


def pandas_joined(folder: Path) -> Any:
    import pandas as pd

    frame = loaded(folder, ["slide", "class", "area_um2", "circularity"])
    frame = frame[frame["class"] == "Neoplastic"].merge(pd.DataFrame(clinical(folder)), on="slide")
    return frame.groupby("grade").agg({"area_um2": ["median", "size"], "circularity": "mean"})


def pandas_region(folder: Path) -> Any:
    import pandas as pd
    import pyarrow.parquet as pq

    path = folder / "slide-007.parquet"  # pandas must be told where to look
    names = [name for name in pq.read_schema(path).names if name != "geometry"]
    frame = pd.read_parquet(path, columns=names)
    inside = frame["x"].between(20000, 24000) & frame["y"].between(20000, 24000)
    return frame[inside].nlargest(100, "area_um2")


QUERIES: dict[str, dict[str, Callable[[Path], Any]]] = {
    "count and mean area by slide and class": {
        "coverslip": by_duckdb(PER_CLASS),
        "pandas": pandas_per_class,
    },
    "median area of tumour nuclei by grade, joined": {
        "coverslip": by_duckdb(JOINED),
        "pandas": pandas_joined,
    },
    "largest nuclei of a region of one slide": {
        "coverslip": by_duckdb(REGION),
        "pandas": pandas_region,
    },
}


def run_one(query: str, way: str, folder: Path) -> None:
    """Ask once and print seconds and MiB of peak memory above the imports."""
    import duckdb  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import coverslip.cohort.tables  # noqa: F401

    for path in folder.glob("*.parquet"):
        path.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, from what is held now
    before = peak_kib()
    started = time.perf_counter()
    QUERIES[query][way](folder)
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, (peak_kib() - before) / 1024]))


def peak_kib() -> int:
    """Of this process, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure_slide(nuclei: int) -> None:
    """Print how long one slide's row takes, but for reading its store."""
    from coverslip.cohort.measurements import MeasurementSettings, spatial_statistics
    from coverslip.cohort.morphometry import morphometry
    from coverslip.cohort.spatial import PointPattern
    from coverslip.tiling.tissue import Tissue

    columns = made_up_columns(nuclei, 0)
    mask = np.ones((SIDE // 32, SIDE // 32), bool)
    tissue = Tissue(mask, (32.0, 32.0), (), 0.0, (240.0, 240.0, 240.0), "made up", {})
    started = time.perf_counter()
    row = morphometry(columns, "nuclei", CLASSES, tissue.area_um2((0.25, 0.25)))
    counted = time.perf_counter()
    pattern = PointPattern.of(columns["centroid"], tissue, (SIDE, SIDE), (0.25, 0.25))
    row |= spatial_statistics(pattern, columns["class_id"], list(CLASSES), MeasurementSettings())
    ended = time.perf_counter()
    print(
        f"a slide of {nuclei:,}: morphometry {counted - started:.1f} s, spatial statistics "
        f"{ended - counted:.1f} s, {len(row)} columns"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuclei", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--slides", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        query, way, folder = arguments.one
        run_one(query, way, Path(folder))
        return
    for nuclei in arguments.nuclei:
        with tempfile.TemporaryDirectory() as folder:
            write_cohort(Path(folder), nuclei, arguments.slides)
            print("\n| query | way | seconds | peak memory, MiB |\n|---|---|---|---|")
            for query, ways in QUERIES.items():
                found: dict[str, list[list[float]]] = {way: [] for way in ways}
                for _ in range(arguments.repeat):
                    for way in ways:
                        command = [sys.executable, __file__, "--one", query, way, folder]
                        run = subprocess.run(command, capture_output=True, text=True, check=True)
                        found[way].append(json.loads(run.stdout))
                for way, rows in found.items():
                    seconds, peak = (statistics.median(c) for c in zip(*rows, strict=True))
                    print(f"| {query} | {way} | {seconds:.2f} | {peak:.0f} |")
    for nuclei in (100_000, 1_000_000):
        measure_slide(nuclei)


if __name__ == "__main__":
    main()
