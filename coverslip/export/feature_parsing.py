"""One decoded GeoJSON feature as an object, in every spelling QuPath has had for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast
from uuid import UUID

import numpy as np
import shapely

from coverslip.export.geometry_grid import highest_dimension
from coverslip.export.qupath_objects import KINDS, Color, Kind, QuPathObject, class_parts

_OLD_KINDS: Mapping[str, Kind] = {
    "tma_core": "tmaCore",
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tmaCore",
    "PathRootObject": "root",
}
_DEEPEST_COLLECTION = 16
_ELLIPSE_VERTICES = 128


class Malformed(Exception):
    """A feature that cannot be understood; the text says why."""


def parse_feature(
    raw: Any, origin: tuple[float, float], parent: int | None
) -> tuple[QuPathObject | None, Sequence[Any]]:
    """The object, and the undecoded features within it.

    raw      as decoded from JSON
    origin   (x, y) level-0 px added to every position
    parent   index of the object it lay in

    None for the root of a hierarchy, which is no object of the slide. Raises Malformed.
    """
    if not isinstance(raw, dict) or raw.get("type", "Feature") != "Feature":
        raise Malformed("not a GeoJSON Feature")
    properties = raw.get("properties")
    if properties is None:
        properties = {}
    if not isinstance(properties, dict):
        raise Malformed("'properties' is no object")
    kind = _kind(raw, properties)
    children = properties.get("childObjects", properties.get("children", []))
    if not isinstance(children, list):
        children = []
    raw_geometry = raw.get("geometry")
    if kind == "root":
        return None, children
    if not raw_geometry:
        raise Malformed("no geometry")
    class_name, class_color = _classification(properties.get("classification"))
    nucleus = raw.get("nucleusGeometry")
    name = properties.get("name")
    item = QuPathObject(
        geometry=parse_geometry(raw_geometry, origin),
        kind=kind,
        class_name=class_name,
        class_color=class_color,
        measurements=_measurements(properties.get("measurements")),
        name=name if isinstance(name, str) else "",
        color=_color(properties.get("color")),
        locked=properties.get("isLocked") is True,
        nucleus=parse_geometry(nucleus, origin) if nucleus and kind == "cell" else None,
        id=_uuid(raw.get("id")),
        metadata=_metadata(properties.get("metadata")),
        plane=_plane(raw_geometry),
        parent=parent,
    )
    return item, children


def _kind(raw: Mapping[str, Any], properties: Mapping[str, Any]) -> Kind:
    for key in ("objectType", "object_type", "type"):
        if isinstance(name := properties.get(key), str):
            break
    else:
        name = raw.get("id")  # before 0.3 the type stood there
    if isinstance(name, str):
        if name in KINDS:
            return cast(Kind, name)
        if name in _OLD_KINDS:
            return _OLD_KINDS[name]
    return "annotation"  # as QuPath does


def _uuid(text: Any) -> str:
    try:
        return str(UUID(text)) if isinstance(text, str) and len(text) == 36 else ""
    except ValueError:
        return ""


def _classification(raw: Any) -> tuple[str, Color | None]:
    """("Tumor: Positive", color) from a string, {name}, {names} or the nested form before 0.4."""
    parts: list[str] = []
    color = None
    for depth in range(_DEEPEST_COLLECTION):
        if isinstance(raw, str):
            raw = {"name": raw}
        if not isinstance(raw, dict):
            break
        names = raw.get("name")
        if names is None:
            names = raw.get("names")
        names = [names] if isinstance(names, str) else names
        if isinstance(names, list):
            own = [part for n in names if isinstance(n, str) for part in class_parts(n)]
            # a derived class of old repeats its parents' names or leaves them to the parents
            parts = own + parts if parts[: len(own)] != own else parts
        if depth == 0:
            color = _color(raw["color"]) if "color" in raw else _color(raw.get("colorRGB"))
        raw = raw.get("parentClass")
    return ": ".join(parts), color


def _color(raw: Any) -> Color | None:
    """From [r, g, b], [r, g, b, alpha] or the packed integer of old; None where unset."""
    if isinstance(raw, list) and len(raw) == 1:
        raw = raw[0]
    if isinstance(raw, int) and not isinstance(raw, bool):
        return (raw >> 16) & 255, (raw >> 8) & 255, raw & 255
    if isinstance(raw, list) and len(raw) in (3, 4):
        parts = raw[:3]
        if all(isinstance(c, int | float) and 0 <= c <= 255 for c in parts):
            red, green, blue = (int(c) for c in parts)
            return red, green, blue
    return None


def _measurements(raw: Any) -> dict[str, float]:
    """From {name: number} or the list of {name, value} before 0.4; "NaN" as text is NaN."""
    if isinstance(raw, list):
        pairs = [
            (entry.get("name"), entry.get("value")) for entry in raw if isinstance(entry, dict)
        ]
    elif isinstance(raw, dict):
        pairs = list(raw.items())
    else:
        pairs = []
    found = {}
    for name, value in pairs:
        if isinstance(name, str) and (number := _number(value)) is not None:
            found[name] = number
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if not isinstance(value, str) and value > 0 else -math.inf
    except ValueError:
        return None


def _metadata(raw: Any) -> dict[str, str]:
    if not isinstance(raw, dict):
        return {}
    return {k: v if isinstance(v, str) else str(v) for k, v in raw.items() if v is not None}


def _plane(geometry: Any) -> tuple[int, int, int]:
    plane = geometry.get("plane") if isinstance(geometry, dict) else None
    if not isinstance(plane, dict):
        return -1, 0, 0
    c, z, t = (plane.get(key, default) for key, default in (("c", -1), ("z", 0), ("t", 0)))
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in (c, z, t)):
        raise Malformed("a plane's c, z and t must be whole numbers")
    return c, z, t


def parse_geometry(raw: Any, origin: tuple[float, float] = (0, 0)) -> Any:
    """A shapely geometry from decoded GeoJSON, moved by `origin`, valid where it is an area.

    Raises Malformed.
    """
    try:
        geometry = _geometry(raw, origin, 0)
    except (ValueError, shapely.errors.GEOSException) as error:
        raise Malformed(str(error)) from None
    if isinstance(raw, dict) and raw.get("isEllipse") is True and geometry.area > 0:
        geometry = _ellipse(*geometry.bounds)
    if shapely.get_dimensions(geometry) == 2 and not geometry.is_valid:
        geometry = shapely.make_valid(geometry, method="structure", keep_collapsed=False)
    geometry = highest_dimension(geometry)
    if geometry is None:
        raise Malformed("an area of no extent")
    return geometry


def _geometry(raw: Any, origin: tuple[float, float], depth: int) -> Any:
    if not isinstance(raw, dict):
        raise Malformed("a geometry must be an object")
    kind = raw.get("type")
    if kind == "GeometryCollection":
        parts = raw.get("geometries")
        if not isinstance(parts, list) or depth >= _DEEPEST_COLLECTION:
            raise Malformed("a GeometryCollection without geometries, or nested too deeply")
        return shapely.GeometryCollection([_geometry(part, origin, depth + 1) for part in parts])
    coordinates = raw.get("coordinates")
    if not isinstance(coordinates, list) or not coordinates:
        raise Malformed(f"a {kind} without coordinates" if isinstance(kind, str) else "no geometry")
    if kind == "Point":
        return shapely.Point(_positions([coordinates], origin, 1)[0])
    if kind == "MultiPoint":
        return shapely.MultiPoint(_positions(coordinates, origin, 1))
    if kind == "LineString":
        return shapely.LineString(_positions(coordinates, origin, 2))
    if kind == "MultiLineString":
        return shapely.MultiLineString([_positions(line, origin, 2) for line in coordinates])
    if kind == "Polygon":
        return _polygon(coordinates, origin)
    if kind == "MultiPolygon":
        return shapely.MultiPolygon([_polygon(rings, origin) for rings in coordinates])
    raise Malformed(f"geometry type {kind!r} is unknown")


def _polygon(rings: Any, origin: tuple[float, float]) -> Any:
    if not isinstance(rings, list) or not rings:
        raise Malformed("a polygon without rings")
    outer, *holes = (_positions(ring, origin, 3) for ring in rings)
    return shapely.Polygon(outer, holes)


def _positions(raw: Any, origin: tuple[float, float], least: int) -> Any:
    """[n, 2] float64; a third value of a position is ignored."""
    if not isinstance(raw, list) or len(raw) < least:
        raise Malformed(f"coordinates must be a list of at least {least} positions")
    try:
        pairs = [(x, y) for x, y, *_ in raw]
        if any(type(v) is not float and type(v) is not int for pair in pairs for v in pair):
            raise Malformed("a position must hold numbers")
        positions = np.array(pairs, dtype=np.float64) + np.asarray(origin, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise Malformed("a position must be [x, y]") from None
    if not np.isfinite(positions).all():
        raise Malformed("a position must be finite")
    return positions


def _ellipse(x0: float, y0: float, x1: float, y1: float) -> Any:
    angle = np.linspace(0, 2 * np.pi, _ELLIPSE_VERTICES, endpoint=False)
    x = (x0 + x1) / 2 + (x1 - x0) / 2 * np.cos(angle)
    y = (y0 + y1) / 2 + (y1 - y0) / 2 * np.sin(angle)
    return shapely.Polygon(np.stack([x, y], axis=1))
