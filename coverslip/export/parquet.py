"""Nuclei and tiles as Parquet, one row each, with GeoParquet geometry (WKB, level-0 px).

Written as a stream of row groups, so the size of a slide does not matter. A file reads with
pandas, polars, DuckDB or geopandas; the columns keep the types they have in the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
OUTLINES = ("centroid", "polygon_offset", "polygon")
Block = Mapping[str, Any]


def write_nuclei_parquet(
    path: str | PathLike[str],
    columns: Any,
    slide: str,
    model: str,
    classes: Sequence[str] = (),
) -> int:
    """One row per nucleus: slide, x, y, the measures and the outline. Returns the rows written.

    columns   mapping of `centroid` [M, 2], `polygon_offset` [M + 1], `polygon` [V, 2] in level-0
              px and any further [M] columns; read block by block
    classes   names that `class_id` counts; with them a column `class` is written

    An outline of fewer than three corners is null. Raises StoreError where the disk refuses.
    """
    total = int(columns["centroid"].shape[0])
    kept = sorted(name for name in columns if name not in OUTLINES)
    names = np.array([*classes, None], object)
    types: dict[str, Any] = {"slide": "string", "x": "float64", "y": "float64"}
    types |= {name: np.dtype(columns[name].dtype).name for name in kept}
    if classes:
        types["class"] = "string"

    def blocks() -> Iterator[Block]:
        for start in range(0, total, ROWS):
            rows = slice(start, min(start + ROWS, total))
            centroid = np.asarray(columns["centroid"][rows])
            block = {
                "slide": [slide] * len(centroid),
                "x": centroid[:, 0],
                "y": centroid[:, 1],
                **{name: np.asarray(columns[name][rows]) for name in kept},
                "geometry": shapely.to_wkb(_outlines(columns, rows)),
            }
            if classes:
                number = block["class_id"].astype(np.int64)
                known = (number >= 0) & (number < len(classes))
                block["class"] = names[np.where(known, number, len(classes))]
            yield block

    _write(path, blocks(), types, {"slide": slide, "model": model, "classes": list(classes)})
    return total


def _outlines(columns: Any, rows: slice) -> npt.NDArray[Any]:
    """[M] shapely polygons, None where there are too few corners."""
    offset = np.asarray(columns["polygon_offset"][rows.start : rows.stop + 1]).astype(np.int64)
    corner = np.asarray(columns["polygon"][int(offset[0]) : int(offset[-1])], np.float64)
    lengths = np.diff(offset)
    drawn = lengths >= 3
    found = np.full(len(lengths), None, object)
    if drawn.any():
        ring = np.repeat(np.arange(int(drawn.sum())), lengths[drawn])
        corner = corner[np.repeat(drawn, lengths)]
        found[drawn] = shapely.polygons(shapely.linearrings(corner, indices=ring))
    return found


def write_tiles_parquet(
    path: str | PathLike[str],
    boxes: npt.NDArray[np.int32],
    columns: Mapping[str, npt.NDArray[Any]],
    slide: str,
) -> int:
    """One row per tile: slide, x, y, w, h (level-0 px), further [N] columns and the square.

    Returns the rows written. Raises StoreError where the disk refuses.
    """
    types: dict[str, Any] = {"slide": "string", **dict.fromkeys("xywh", boxes.dtype.name)}
    types |= {name: values.dtype.name for name, values in columns.items()}

    def blocks() -> Iterator[Block]:
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

    _write(path, blocks(), types, {"slide": slide})
    return len(boxes)


def _write(
    path: str | PathLike[str],
    blocks: Iterator[Block],
    types: Mapping[str, str],
    facts: Mapping[str, Any],
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        # level-0 px of a slide are no place on Earth: no coordinate reference system
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None}},
    }
    fields = [
        (name, pa.string() if kind == "string" else pa.from_numpy_dtype(np.dtype(kind)))
        for name, kind in types.items()
    ]
    metadata = {"geo": orjson.dumps(geo), "coverslip": orjson.dumps(facts)}
    schema = pa.schema([*fields, ("geometry", pa.binary())], metadata)
    with (
        whole_file(Path(fspath(path))) as aside,
        pq.ParquetWriter(aside, schema, compression="zstd") as writer,
    ):
        for block in blocks:
            writer.write_table(
                pa.table([pa.array(block[f.name], f.type) for f in schema], schema=schema)
            )
