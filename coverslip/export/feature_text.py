"""GeoJSON features as text, a block at a time.

Numbers become text in few large calls, and the text is then cut at its brackets and commas:
that is what makes the columns' path fast.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import shapely

from coverslip.export.geometry_grid import (
    clipped,
    highest_dimension,
    made_valid,
    polygons_of,
    rounded,
)
from coverslip.export.object_ids import ObjectIds
from coverslip.export.qupath_objects import (
    Color,
    PolygonColumns,
    QuPathObject,
    class_color,
    class_parts,
)

_POLYGON = b'{"type":"Polygon","coordinates":[[%b]]}'
_PLANE = (-1, 0, 0)
_AREAS = frozenset({"cell", "tile"})
"""Kinds that QuPath has only as areas."""


@dataclass(frozen=True, slots=True)
class Text:
    """Features joined by commas.

    body         the features; empty where `count` is 0
    count        how many
    repaired     how many polygons were changed to be valid
    dropped      how many objects had nothing left to write
    compressed   `body` as a deflate fragment, once made
    """

    body: bytes
    count: int
    repaired: int
    dropped: int
    compressed: bytes | None = None

    def packed(self, compressed: bytes) -> Text:
        """The same with its compressed form."""
        return dataclasses.replace(self, compressed=compressed)


@dataclass(frozen=True, slots=True)
class Frame:
    """What all blocks of an export share.

    origin   (x, y) level-0 px subtracted from every coordinate
    size     (width, height) of what QuPath shows; None leaves geometry uncut
    ids      where ids come from
    colors   class name -> color, as far as decided
    """

    origin: tuple[float, float]
    size: tuple[float, float] | None
    ids: ObjectIds
    colors: dict[str, Color]

    def settle(self, name: str, color: Color | None = None) -> None:
        """Decide a class's color at its first mention, for QuPath paints a whole class alike.

        Called by one thread, before any other asks for the class.
        """
        whole = ": ".join(class_parts(name))
        self.colors.setdefault(whole, color or class_color(whole))

    def classification(self, name: str) -> dict[str, Any] | None:
        """QuPath's form of a class, or None for no class."""
        parts = class_parts(name)
        if not parts:
            return None
        whole = ": ".join(parts)
        color = list(self.colors[whole])
        return (
            {"name": whole, "color": color} if len(parts) == 1 else {"names": parts, "color": color}
        )


@dataclass(frozen=True, slots=True)
class ColumnBlock:
    """Some rows of columns, in memory; vertices and offsets begin at 0."""

    columns: PolygonColumns
    centroid: npt.NDArray[np.float64]
    offset: npt.NDArray[np.int64]
    polygon: npt.NDArray[np.float64]
    class_id: npt.NDArray[np.int64] | None
    measurements: Mapping[str, npt.NDArray[Any]]
    twins: Mapping[int, int]

    @classmethod
    def read(cls, columns: PolygonColumns, rows: slice, twins: Mapping[int, int]) -> ColumnBlock:
        """Take the rows from memory or disk.

        Raises ValueError for offsets that go down or beyond the vertices, and unknown class ids.
        """
        offset = np.asarray(columns.polygon_offset[rows.start : rows.stop + 1], dtype=np.int64)
        if (np.diff(offset) < 0).any() or offset[0] < 0 or offset[-1] > columns.polygon.shape[0]:
            raise ValueError(
                f"polygon_offset does not count {columns.polygon.shape[0]} vertices up"
            )
        class_id = None
        if columns.class_id is not None:
            class_id = np.asarray(columns.class_id[rows]).astype(np.int64)
            if class_id.min() < 0 or class_id.max() >= len(columns.classes):
                raise ValueError(f"class ids must be 0 to {len(columns.classes) - 1}")
        return cls(
            columns,
            np.asarray(columns.centroid[rows], dtype=np.float64),
            offset - offset[0],
            np.asarray(columns.polygon[offset[0] : offset[-1]], dtype=np.float64),
            class_id,
            {name: np.asarray(values[rows]) for name, values in columns.measurements.items()},
            {row - rows.start: rank for row, rank in twins.items() if rows.start <= row < rows.stop}
            if twins
            else {},
        )


def column_text(block: ColumnBlock, frame: Frame) -> Text:
    """A block of columns as features, in the order of its rows."""
    geometry, kept, repaired = _polygon_texts(block, frame)
    ids = frame.ids.of_places(block.columns.model, block.centroid, block.twins)
    values = [_number_texts(column) for column in block.measurements.values()]
    names = [orjson.dumps(name) for name in block.measurements]
    classes = block.columns.classes or ("",)
    tails = [_tail(block.columns.kind, frame.classification(name)) for name in classes]
    class_id = [0] * len(ids) if block.class_id is None else block.class_id.tolist()
    features = []
    whole = all(b"null" not in column for column in values)
    template = b",".join(name.replace(b"%", b"%%") + b":%b" for name in names)
    for i in kept.tolist():
        if whole:
            measured = template % tuple([column[i] for column in values])
        else:
            measured = b",".join(
                name + b":" + column[i]
                for name, column in zip(names, values, strict=True)
                if column[i] != b"null"
            )
        features.append(
            b'{"type":"Feature","id":"%b","geometry":%b,"properties":%b,"measurements":{%b}}}'
            % (ids[i], geometry[i], tails[class_id[i]], measured)
        )
    return Text(b",\n".join(features), len(features), repaired, len(ids) - len(features))


def _tail(kind: str, classification: Mapping[str, Any] | None) -> bytes:
    """The properties' beginning, up to the measurements."""
    properties: dict[str, Any] = {"objectType": kind}
    if classification is not None:
        properties["classification"] = classification
    return orjson.dumps(properties)[:-1]


def _polygon_texts(
    block: ColumnBlock, frame: Frame
) -> tuple[list[bytes], npt.NDArray[np.int64], int]:
    """Each row's geometry as text, which rows have one, and how many were repaired."""
    count = len(block.offset) - 1
    vertices = np.round(block.polygon - np.asarray(frame.origin, dtype=np.float64), 2)
    rings, offset = _closed(vertices, block.offset)
    finite = np.isfinite(rings).all(axis=1)
    usable = np.diff(offset) >= 4
    if not finite.all():
        owner = np.repeat(np.arange(count), np.diff(offset))
        usable[owner[~finite]] = False
    texts = [b""] * count
    rows = np.flatnonzero(usable)
    if not len(rows):
        return texts, rows, 0
    if len(rows) < count:
        rings = rings[np.repeat(usable, np.diff(offset))]
        offset = np.concatenate([[0], np.cumsum(np.diff(offset)[usable])])
    owner = np.repeat(np.arange(len(rows)), np.diff(offset))
    shapes = shapely.polygons(shapely.linearrings(rings, indices=owner))
    cut = shapes if frame.size is None else clipped(shapes, frame.size)
    moved = np.flatnonzero(cut != shapes) if cut is not shapes else np.empty(0, np.int64)
    if len(moved):
        cut[moved] = rounded(cut[moved])
    valid, repaired = made_valid(cut)
    for i, text in enumerate(_ring_texts(rings, offset)):
        texts[rows[i]] = _POLYGON % text
    for i in np.union1d(moved, np.flatnonzero(repaired)).tolist():
        texts[rows[i]] = b"" if valid[i] is None else orjson.dumps(shape_json(valid[i]))
    left = ~shapely.is_missing(valid)
    return texts, rows[left], int((repaired & left).sum())


def _closed(
    vertices: npt.NDArray[np.float64], offset: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The rings with their first vertex repeated at the end where it was not; their offsets."""
    lengths = np.diff(offset)
    some = lengths > 0
    open_ = np.zeros(len(lengths), dtype=np.bool_)
    first, last = vertices[offset[:-1][some]], vertices[offset[1:][some] - 1]
    open_[some] = (first != last).any(axis=1) | (lengths[some] == 1)
    closed_offset = offset + np.concatenate([[0], np.cumsum(open_)])
    source = np.arange(closed_offset[-1]) - np.repeat(
        closed_offset[:-1] - offset[:-1], lengths + open_
    )
    source[closed_offset[1:][open_] - 1] = offset[:-1][open_]
    return vertices[source], closed_offset


def _ring_texts(rings: npt.NDArray[np.float64], offset: npt.NDArray[np.int64]) -> list[bytes]:
    """`[x,y],[x,y],...` for each ring."""
    whole = rings.astype(np.int64)
    numbers = whole if (whole == rings).all() else rings + 0.0  # no -0.0
    text = orjson.dumps(np.ascontiguousarray(numbers), option=orjson.OPT_SERIALIZE_NUMPY)
    ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord("]")) + 1
    stops = ends[offset[1:] - 1].tolist()
    starts = [1, *(stop + 1 for stop in stops[:-1])]
    return [text[a:b] for a, b in zip(starts, stops, strict=True)]


def _number_texts(column: npt.NDArray[Any]) -> list[bytes]:
    """Each number as text with six significant digits; `null` for one that is not finite."""
    if column.dtype.kind in "bui":
        numbers: npt.NDArray[Any] = column.astype(np.int64)
    else:
        numbers = six_digits(column.astype(np.float64))
    text = orjson.dumps(np.ascontiguousarray(numbers), option=orjson.OPT_SERIALIZE_NUMPY)
    return text[1:-1].split(b",")


def six_digits(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Rounded to six significant digits, which is what survives in float32 in any case.

    The shortest text of the result has at most these digits. Beyond float32's range: infinite.
    """
    magnitude = np.zeros_like(values)
    usual = np.isfinite(values) & (values != 0)
    magnitude[usual] = np.clip(np.floor(np.log10(np.abs(values[usual]))), -30, 38)
    scale = 10.0 ** (5 - magnitude)
    with np.errstate(over="ignore", invalid="ignore"):
        return (np.round(values * scale) / scale + 0.0).astype(np.float32)


def object_text(objects: Sequence[tuple[QuPathObject, str]], frame: Frame) -> Text:
    """Single objects, each with its id, as features.

    Raises ValueError for a cell or a tile that is no area.
    """
    shapes = _placed([item.geometry for item, _ in objects], frame)
    shapes, repaired = made_valid(shapes)
    features = []
    for (item, id_), shape in zip(objects, shapes.tolist(), strict=True):
        if shape is None:
            continue
        if item.kind in _AREAS and shapely.get_dimensions(shape) != 2:
            raise ValueError(f"a {item.kind} must be a polygon, got a {shape.geom_type}")
        features.append(orjson.dumps(_feature(item, id_, shape, frame)))
    left = ~shapely.is_missing(shapes)
    count = len(features)
    return Text(b",\n".join(features), count, int((repaired & left).sum()), len(objects) - count)


def _placed(geometries: Sequence[Any], frame: Frame) -> npt.NDArray[np.object_]:
    """Geometries in QuPath's frame, cut to it, with two decimals; perhaps invalid, perhaps None."""
    shapes = np.empty(len(geometries), dtype=np.object_)
    shapes[:] = [_finite(highest_dimension(geometry)) for geometry in geometries]
    shapes = shapely.transform(shapely.force_2d(shapes), lambda xy: xy - np.asarray(frame.origin))
    if frame.size is not None:
        shapes = clipped(shapes, frame.size)
    return rounded(shapes)


def _finite(geometry: Any) -> Any:
    if geometry is None or not np.isfinite(shapely.get_coordinates(geometry)).all():
        return None
    return geometry


def _feature(item: QuPathObject, id_: str, shape: Any, frame: Frame) -> dict[str, Any]:
    feature: dict[str, Any] = {
        "type": "Feature",
        "id": id_,
        "geometry": shape_json(shape, item.plane),
    }
    if item.kind == "cell" and item.nucleus is not None:
        nucleus = _nucleus(item.nucleus, shape, frame)
        if nucleus is not None:
            feature["nucleusGeometry"] = shape_json(nucleus, item.plane)
    properties: dict[str, Any] = {"objectType": item.kind}
    if item.name.strip():
        properties["name"] = item.name
    if item.color is not None:
        properties["color"] = list(item.color)
    if (classification := frame.classification(item.class_name)) is not None:
        properties["classification"] = classification
    if item.locked:
        properties["isLocked"] = True
    measurements = {
        name: int(value) if isinstance(value, int) else float(f"{value:.6g}")
        for name, value in item.measurements.items()
        if name.strip() and math.isfinite(value)
    }
    if measurements:
        properties["measurements"] = measurements
    if item.metadata:
        properties["metadata"] = {str(k): str(v) for k, v in item.metadata.items()}
    feature["properties"] = properties
    return feature


def _nucleus(nucleus: Any, cell: Any, frame: Frame) -> Any:
    """The nucleus as far as it lies in its cell, or None."""
    (placed,) = made_valid(_placed([nucleus], frame))[0].tolist()
    if placed is None:
        return None
    if not shapely.covers(cell, placed):
        inside = np.empty(1, dtype=np.object_)
        inside[0] = highest_dimension(shapely.intersection(cell, placed))
        (placed,) = made_valid(rounded(inside))[0].tolist()
    return placed if polygons_of(placed) else None


def shape_json(shape: Any, plane: tuple[int, int, int] = _PLANE) -> dict[str, Any]:
    """A geometry as GeoJSON, with QuPath's plane where it is not the usual one."""
    geometry: dict[str, Any] = shapely.geometry.mapping(shape)
    if plane != _PLANE:
        geometry["plane"] = dict(zip("czt", plane, strict=True))
    return geometry
