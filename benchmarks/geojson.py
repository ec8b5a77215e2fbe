"""A million nuclei as QuPath GeoJSON: this engine beside the ways it is usually done.

    python benchmarks/geojson.py [--nuclei 1000000] [--repeat 3] [--loops 100000]

Every row writes the same polygons, ids, class and three measurements, in a process of its own so
that its peak memory is its own. The loops run on `--loops` nuclei and are scaled up, for their
time per nucleus does not depend on the number (their memory does, so it is not given).
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

VERTICES = 26


class Generated:
    """Rows that are made when they are read, so that the peak memory is the writer's alone."""

    def __init__(
        self, count: int, make: Callable[[npt.NDArray[np.int64]], Any], width: int
    ) -> None:
        self.shape = (count, width) if width else (count,)
        self._make = make

    def __getitem__(self, rows: slice) -> Any:
        return self._make(np.arange(*rows.indices(self.shape[0])))


def noise(rows: npt.NDArray[np.int64], salt: int) -> npt.NDArray[np.float64]:
    """Repeatable numbers in [0, 1)."""
    mixed = (rows.astype(np.uint64) + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    return (mixed * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(11)).astype(np.float64) / 2**53


def centroids(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return 100 + 89_000 * np.stack([noise(rows, 1), noise(rows, 2)], axis=1)


def vertices(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    nucleus, corner = np.divmod(rows, VERTICES)
    angle = 2 * np.pi * corner / VERTICES
    reach = (14 + 14 * noise(nucleus, 3)) * (0.9 + 0.2 * noise(rows, 4))
    return centroids(nucleus) + np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None]


def columns(count: int) -> Any:
    from coverslip.export.geojson import PolygonColumns

    return PolygonColumns(
        model="watershed",
        centroid=Generated(count, centroids, 2),
        polygon_offset=Generated(count + 1, lambda rows: rows * VERTICES, 0),
        polygon=Generated(count * VERTICES, vertices, 2),
        classes=("Nucleus",),
        class_id=Generated(count, np.zeros_like, 0),
        measurements={
            "Detection probability": Generated(count, lambda r: noise(r, 5).astype(np.float16), 0),
            "Nucleus: Area µm^2": Generated(count, lambda r: 90 * noise(r, 6), 0),
            "Nucleus: Circularity": Generated(count, lambda r: noise(r, 7), 0),
        },
    )


def coverslip_writes(path: Path, count: int, threads: int) -> None:
    from coverslip.export.geojson import write_geojson

    write_geojson(path, columns(count), slide="case", max_objects=None, threads=threads)


def records(count: int) -> Any:
    """(polygon as shapely, properties) one by one, as a loop over a model's output has them."""
    from shapely import polygons

    source = columns(count)
    for start in range(0, count, 4096):
        stop = min(start + 4096, count)
        rings = source.polygon[start * VERTICES : stop * VERTICES].reshape(-1, VERTICES, 2)
        measured = {k: v[start:stop].tolist() for k, v in source.measurements.items()}
        for i, polygon in enumerate(polygons(rings)):
            yield (
                polygon,
                {
                    "objectType": "detection",
                    "classification": {"name": "Nucleus", "color": [70, 110, 220]},
                    "measurements": {k: v[i] for k, v in measured.items()},
                },
            )


def json_writes(path: Path, count: int) -> None:
    from uuid import uuid4

    import shapely
    from shapely.geometry import mapping

    def features() -> Any:
        for polygon, properties in records(count):
            if not polygon.is_valid:
                polygon = polygon.buffer(0)
            rounded = shapely.transform(polygon, lambda xy: xy.round(2))
            yield {
                "type": "Feature",
                "id": str(uuid4()),
                "geometry": mapping(rounded),
                "properties": properties,
            }

    packed = path.suffix == ".gz"  # at our own level; gzip.open's default takes twice as long
    with gzip.open(path, "wt", 1) if packed else path.open("w") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for i, feature in enumerate(features()):
            file.write("," * (i > 0) + json.dumps(feature))
        file.write("]}")


def geopandas_writes(path: Path, count: int) -> None:
    import geopandas

    shapes, properties = zip(*records(count), strict=True)
    flat = [
        {k: json.dumps(v) if isinstance(v, dict) else v for k, v in p.items()} for p in properties
    ]
    geopandas.GeoDataFrame(flat, geometry=list(shapes)).to_file(path, driver="GeoJSON")


WAYS: dict[str, tuple[str, bool]] = {
    "coverslip, 1 thread": (".geojson", True),
    "coverslip, 2 threads": (".geojson", True),
    "coverslip, gz, 1 thread": (".geojson.gz", True),
    "coverslip, gz, 2 threads": (".geojson.gz", True),
    "json.dumps loop": (".geojson", False),
    "json.dumps loop, gzip level 1": (".geojson.gz", False),
    "geopandas to_file": (".geojson", False),
}


def run_one(way: str, count: int, path: Path) -> None:
    """Write once and print seconds, MiB of peak memory above the imports, and MB of file."""
    import shapely  # noqa: F401

    import coverslip.export.geojson  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    if way.startswith("coverslip"):
        coverslip_writes(path, count, 2 if "2 threads" in way else 1)
    elif way.startswith("json"):
        json_writes(path, count)
    else:
        geopandas_writes(path, count)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([seconds, peak / 1024, path.stat().st_size / 1e6]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuclei", type=int, default=1_000_000)
    parser.add_argument("--loops", type=int, default=100_000, help="nuclei for the slow ways")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, count, path = arguments.one
        run_one(way, int(count), Path(path))
        return
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeat):
            for way, (suffix, ours) in WAYS.items():
                if way.startswith("geopandas") and find_spec("geopandas") is None:
                    continue
                count = arguments.nuclei if ours else min(arguments.loops, arguments.nuclei)
                path = Path(folder) / f"nuclei{suffix}"
                command = [sys.executable, __file__, "--one", way, str(count), str(path)]
                run = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds, peak, size = json.loads(run.stdout)
                scale = arguments.nuclei / count
                found[way].append([seconds * scale, peak, size * scale])
    print_table(found, arguments.nuclei)


def print_table(found: dict[str, list[list[float]]], count: int) -> None:
    median = {
        way: [statistics.median(column) for column in zip(*rows, strict=True)]
        for way, rows in found.items()
        if rows
    }
    print(f"{count:,} nuclei of {VERTICES} vertices, median of {max(map(len, found.values()))}\n")
    print("| way | seconds | against json.dumps | peak memory, MiB | file, MB |")
    print("|---|---|---|---|---|")
    for way, (suffix, ours) in WAYS.items():
        if way not in median:
            print(f"| {way} | not installed | | | |")
            continue
        seconds, peak, size = median[way]
        peer = "json.dumps loop, gzip level 1" if suffix.endswith("gz") else "json.dumps loop"
        ratio = median[peer][0] / seconds
        memory = f"{peak:.0f}" if ours else ""
        print(f"| {way} | {seconds:.1f} | {ratio:.1f} x | {memory} | {size:.0f} |")


if __name__ == "__main__":
    main()
