"""Nuclei and tiles as Parquet, one row each, with GeoParquet geometry (WKB, level-0 px)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import shapely

from coverslip.durable import whole_file

ROWS = 65_536
"""Rows per row group, and in memory."""


def write_nuclei_parquet(path: str | PathLike[str], columns: Any, slide: str, model: str) -> int:
    """One row per nucleus: slide, x, y, the measures and the outline. Returns the rows written.

    columns   mapping (or Zarr group) of `centroid` [M, 2], `polygon_offset` [M + 1], `polygon`
              [V, 2] in level-0 px and any further [M] columns; read block by block
    """
    total = columns["centroid"].shape[0]
    kept = sorted(set(columns) - {"centroid", "polygon_offset", "polygon"})

    def blocks() -> Iterator[dict[str, Any]]:
        for start in range(0, total, ROWS):
            rows = slice(start, min(start + ROWS, total))
            offset = np.asarray(columns["polygon_offset"][rows.start : rows.stop + 1])
            vertex = np.asarray(columns["polygon"][int(offset[0]) : int(offset[-1])])
            ring = np.repeat(np.arange(len(offset) - 1), np.diff(offset))
            outlines = shapely.polygons(
                shapely.linearrings(vertex.astype(np.float64), indices=ring)
            )
            centroid = np.asarray(columns["centroid"][rows])
            yield {
                "slide": [slide] * len(centroid),
                "x": centroid[:, 0],
                "y": centroid[:, 1],
                **{name: np.asarray(columns[name][rows]) for name in kept},
                "geometry": shapely.to_wkb(outlines),
            }

    _write(path, blocks(), {"slide": slide, "model": model}, [*kept])
    return int(total)


def write_tiles_parquet(
    path: str | PathLike[str],
    boxes: npt.NDArray[np.int32],
    columns: Mapping[str, npt.NDArray[Any]],
    slide: str,
) -> int:
    """One row per tile: slide, x, y, w, h (level-0 px), further [N] columns and the square."""

    def blocks() -> Iterator[dict[str, Any]]:
        for start in range(0, len(boxes), ROWS):
            rows = slice(start, start + ROWS)
            x, y, w, h = boxes[rows].T
            yield {
                "slide": [slide] * len(x),
                "x": x,
                "y": y,
                "w": w,
                "h": h,
                **{name: values[rows] for name, values in columns.items()},
                "geometry": shapely.to_wkb(shapely.box(x, y, x + w, y + h)),
            }

    _write(path, blocks(), {"slide": slide}, [*columns])
    return len(boxes)


def _write(
    path: str | PathLike[str],
    blocks: Iterator[dict[str, Any]],
    facts: Mapping[str, str],
    names: list[str],
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        # level-0 px of a slide are no place on Earth: an unknown coordinate system
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None}},
    }
    metadata = {"geo": orjson.dumps(geo), "coverslip": orjson.dumps(dict(facts))}
    with whole_file(Path(fspath(path))) as aside:
        writer = None
        try:
            for block in blocks:
                table = pa.table({k: pa.array(v) for k, v in block.items()})
                if writer is None:
                    schema = table.schema.with_metadata(metadata)
                    writer = pq.ParquetWriter(aside, schema, compression="zstd")
                writer.write_table(table.cast(writer.schema))
            if writer is None:
                fields = [("slide", pa.string()), ("x", pa.float64()), ("y", pa.float64())]
                fields += [(name, pa.float32()) for name in names] + [("geometry", pa.binary())]
                writer = pq.ParquetWriter(aside, pa.schema(fields, metadata))
        finally:
            if writer is not None:
                writer.close()
