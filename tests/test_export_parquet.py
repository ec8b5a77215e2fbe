"""Parquet rows of nuclei and tiles, and their geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import shapely

from coverslip.export import parquet
from coverslip.export.parquet import write_nuclei_parquet, write_tiles_parquet

pq = pytest.importorskip("pyarrow.parquet")


def nuclei(lengths: list[int]) -> dict[str, np.ndarray]:
    """Regular polygons with so many corners around known centres."""
    count = len(lengths)
    centre = np.arange(count * 2, dtype=np.float64).reshape(count, 2) * 50 + 100
    corners = [
        centre[i] + 10 * np.stack([np.cos(a), np.sin(a)], axis=1)
        for i, n in enumerate(lengths)
        for a in [np.linspace(0, 2 * np.pi, n, endpoint=False)]
    ]
    return {
        "centroid": centre,
        "polygon_offset": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "polygon": np.concatenate([np.empty((0, 2)), *corners]).astype(np.float32),
        "class_id": (np.arange(count) % 3).astype(np.uint8),
        "area_um2": np.linspace(1, 2, count).astype(np.float32),
    }


def geo(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(pq.read_schema(path).metadata[b"geo"])
    return found


@pytest.mark.parametrize("rows", [3, 65_536])
def test_nuclei(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(parquet, "ROWS", rows)
    path, columns = tmp_path / "n.parquet", nuclei([5, 8, 3, 12, 4, 6, 7])
    assert write_nuclei_parquet(path, columns, "case-1", "watershed", ["tumour", "stroma"]) == 7
    read = pq.read_table(path)
    assert pq.ParquetFile(path).num_row_groups == -(-7 // rows)
    assert {f.name: str(f.type) for f in read.schema} == {
        "slide": "string",
        "x": "double",
        "y": "double",
        "area_um2": "float",
        "class_id": "uint8",
        "class": "string",
        "geometry": "binary",
    }
    outlines = shapely.from_wkb(read["geometry"].to_pylist())
    assert shapely.is_valid(outlines).all()
    np.testing.assert_allclose(
        shapely.get_coordinates(shapely.centroid(outlines)), columns["centroid"], atol=1e-3
    )
    np.testing.assert_allclose(read["x"], columns["centroid"][:, 0])
    assert read["class"].to_pylist() == ["tumour", "stroma", None] * 2 + ["tumour"]
    assert set(read["slide"].to_pylist()) == {"case-1"}


def test_an_outline_that_is_none_is_null(tmp_path: Path) -> None:
    write_nuclei_parquet(tmp_path / "n.parquet", nuclei([5, 2, 0, 4]), "s", "m")
    read = pq.read_table(tmp_path / "n.parquet")["geometry"].to_pylist()
    assert [g is None for g in read] == [False, True, True, False]


def test_no_nuclei_have_the_same_columns(tmp_path: Path) -> None:
    assert write_nuclei_parquet(tmp_path / "none.parquet", nuclei([]), "s", "m") == 0
    write_nuclei_parquet(tmp_path / "some.parquet", nuclei([4]), "s", "m")
    assert pq.read_schema(tmp_path / "none.parquet") == pq.read_schema(tmp_path / "some.parquet")


def test_tiles(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 512, 512], [512, 0, 512, 512], [0, 512, 512, 512]], np.int32)
    columns = {"tissue_fraction": np.array([0.5, 1.0, 0.25], np.float32)}
    path = tmp_path / "t.parquet"
    assert write_tiles_parquet(path, boxes, columns, "case-1") == 3
    read = pq.read_table(path)
    assert read.column_names == ["slide", "x", "y", "w", "h", "tissue_fraction", "geometry"]
    assert str(read.schema.field("x").type) == "int32"
    squares = shapely.from_wkb(read["geometry"].to_pylist())
    np.testing.assert_array_equal(shapely.bounds(squares)[:, :2], boxes[:, :2])
    np.testing.assert_array_equal(shapely.area(squares), 512.0**2)
    write_tiles_parquet(tmp_path / "none.parquet", boxes[:0], {}, "case-1")
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0


def test_geoparquet_metadata(tmp_path: Path) -> None:
    write_tiles_parquet(tmp_path / "t.parquet", np.zeros((1, 4), np.int32), {}, "s")
    assert geo(tmp_path / "t.parquet") == {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None}},
    }


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    columns = nuclei([4, 4])
    columns["polygon_offset"] = columns["polygon_offset"][:1]  # cut short
    with pytest.raises((IndexError, ValueError)):
        write_nuclei_parquet(tmp_path / "n.parquet", columns, "s", "m")
    assert list(tmp_path.iterdir()) == []
