"""Reading the object files that QuPath writes, from every version, and files like them.

The file is read as a stream, feature by feature. What QuPath tolerates is tolerated: a bare array,
one feature or a bare geometry instead of a collection, repeated keys, the spellings of versions
before 0.4. What cannot be understood raises InvalidGeoJSON with the file and the feature's number.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import shapely

from coverslip.errors import InvalidGeoJSON
from coverslip.export.feature_parsing import Malformed, parse_feature
from coverslip.export.geometry_grid import polygons_of
from coverslip.export.qupath_objects import QuPathObject
from coverslip.wsi.slide import Box

REGIONS = frozenset({"annotation", "tile", "tmaCore"})
"""Kinds that mark a part of a slide; a detection or a cell marks a thing in it."""

_SIMPLE = ("Point", "LineString", "Polygon")
_GEOMETRIES = {*_SIMPLE, *(f"Multi{name}" for name in _SIMPLE), "GeometryCollection"}
_CHUNK = 1 << 20
_BLANK = " \t\n\r"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a file may demand before it is refused.

    bytes     of text, once decompressed
    feature   characters of one feature
    objects   in the file
    depth     of objects within objects
    """

    bytes: int = 8 << 30
    feature: int = 256 << 20
    objects: int = 10_000_000
    depth: int = 64


def read_geojson(
    path: str | PathLike[str], *, bounds: Box | None = None, limits: Limits | None = None
) -> list[QuPathObject]:
    """Every object of a file, in its order; objects within objects follow their parent.

    path     GeoJSON as text, gzip or zip, whatever its name
    bounds   of the slide; their corner is added, so positions are level-0 px of the whole slide
    limits   for files from strangers

    Polygons that cross themselves, which QuPath before 0.6 wrote, come repaired. Raises
    InvalidGeoJSON.
    """
    limits = limits or Limits()
    origin = (bounds.x, bounds.y) if bounds else (0, 0)
    found: list[QuPathObject] = []
    for where, feature in _features(fspath(path), limits):
        waiting: list[tuple[Any, int | None, int, str]] = [(feature, None, 0, where)]
        while waiting:
            raw, parent, depth, place = waiting.pop()
            if depth > limits.depth:
                _refuse(path, place, f"objects nested more than {limits.depth} deep")
            try:
                item, children = parse_feature(raw, origin, parent)
            except Malformed as error:
                _refuse(path, place, str(error))
            own = parent
            if item is not None:
                if len(found) >= limits.objects:
                    _refuse(path, place, f"more than {limits.objects} objects")
                own = len(found)
                found.append(item)
            waiting += [
                (child, own, depth + 1, f"{place}, child {i}") for i, child in enumerate(children)
            ][::-1]
    return found


def region_polygons(
    path: str | PathLike[str],
    class_name: str | None = None,
    bounds: Box | None = None,
    *,
    limits: Limits | None = None,
) -> list[shapely.Polygon]:
    """The polygons that mark regions of a slide, in level-0 px of the whole slide.

    class_name   only annotations of this class, upper and lower case alike; None for all, less
                 what lies under annotations of QuPath's class "Ignore*"
    bounds       of the slide, as in `read_geojson`

    Points, lines, detections and cells are no regions. Raises InvalidGeoJSON.
    """
    regions = [
        item for item in read_geojson(path, bounds=bounds, limits=limits) if item.kind in REGIONS
    ]
    if class_name is not None:
        wanted = class_name.strip().casefold()
        regions = [item for item in regions if item.class_name.casefold() == wanted]
        return [polygon for item in regions for polygon in polygons_of(item.geometry)]
    ignored = [item.geometry for item in regions if item.class_name.casefold() == "ignore*"]
    kept = [item.geometry for item in regions if item.class_name.casefold() != "ignore*"]
    if ignored:
        mask = shapely.union_all(ignored)
        kept = [shapely.difference(geometry, mask) for geometry in kept]
    return [polygon for geometry in kept for polygon in polygons_of(geometry)]


def _refuse(path: str | PathLike[str], place: str, problem: str) -> NoReturn:
    raise InvalidGeoJSON(path, f"{place}: {problem}" if place else problem) from None


def _features(path: str, limits: Limits) -> Iterator[tuple[str, Any]]:
    """(where, decoded feature) for each feature of the file or of a zip's entries."""
    try:
        with Path(path).open("rb") as file:
            for name, content in _contents(file):
                for where, feature in _collection(_TextStream(path, content, limits)):
                    yield (f"{name}, {where}" if name else where), feature
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InvalidGeoJSON(path, f"cannot be read: {reason}") from error


def _contents(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    """(name within a zip or "", decompressed content)."""
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=file) as content:
            yield "", cast(IO[bytes], content)
    elif magic == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            names = [n for n in archive.namelist() if n.lower().endswith((".json", ".geojson"))]
            if not names:
                raise ValueError("the zip holds no .json or .geojson")
            for name in names:
                with archive.open(name) as entry:
                    yield name, entry
    else:
        yield "", file


class _TextStream:
    """JSON decoded value by value from a file that may be larger than memory."""

    def __init__(self, path: str, file: IO[bytes], limits: Limits) -> None:
        self._path, self._file, self._limits = path, file, limits
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._passed = 0
        self._bytes = 0
        self._ended = False

    def fail(self, problem: str) -> NoReturn:
        """Refuse the file, naming the place."""
        _refuse(self._path, f"at character {self._passed + self._at}", problem)

    def next_character(self) -> str:
        """The next character that is not blank, without taking it; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _BLANK:
                    return self._text[self._at]
                self._at += 1
            if not self._read_on(_CHUNK):
                return ""

    def take(self, expected: str) -> None:
        """Step over one character, which must be the one expected."""
        found = self.next_character()
        if found != expected:
            self.fail(f"expected {expected!r}, found {found!r}" if found else "the file ends early")
        self._at += 1

    def value(self) -> Any:
        """Decode the value that begins here, reading on as far as it goes."""
        if not self.next_character():
            self.fail("the file ends early")
        want = _CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                self.fail("nested too deeply")
            except ValueError as error:
                problem, definite = _json_problem(error, len(self._text))
                if definite or self._ended:
                    self.fail(f"not JSON: {problem}")
            else:
                # a number may go on beyond what was read
                if self._ended or end < len(self._text):
                    self._at = end
                    return value
            if len(self._text) - self._at > self._limits.feature:
                self.fail(f"one feature of more than {self._limits.feature} characters")
            self._read_on(want)
            want *= 2

    def _read_on(self, size: int) -> bool:
        """Add text at the end and drop what was passed; False at the end of the file."""
        if self._ended:
            return False
        data = self._file.read(size)
        self._bytes += len(data)
        if self._bytes > self._limits.bytes:
            self.fail(f"more than {self._limits.bytes} bytes")
        try:
            text = self._utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:
            self.fail(f"not UTF-8 text ({error.reason})")
        self._passed += self._at
        self._text = self._text[self._at :] + text
        self._at = 0
        self._ended = not data
        return not self._ended


def _json_problem(error: ValueError, length: int) -> tuple[str, bool]:
    """What is wrong, and whether it is wrong however the text goes on."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error), True  # a whole number of more digits than Python will read
    unfinished = error.msg.startswith("Unterminated string") or error.pos >= length - 16
    return f"{error.msg} at character {error.pos}", not unfinished


def _collection(text: _TextStream) -> Iterator[tuple[str, Any]]:
    """The features of any of the forms QuPath reads."""
    first = text.next_character()
    if first == "[":
        yield from _array(text)
    elif first == "{":
        yield from _object(text)
    else:
        text.fail("the file is empty" if not first else "not GeoJSON: no object and no array")
    if text.next_character():
        text.fail("text after the end of the GeoJSON")


def _array(text: _TextStream) -> Iterator[tuple[str, Any]]:
    text.take("[")
    index = 0
    while text.next_character() != "]":
        if index:
            text.take(",")
        yield f"feature {index}", text.value()
        index += 1
    text.take("]")


def _object(text: _TextStream) -> Iterator[tuple[str, Any]]:
    """A collection, whose features are passed on at once, or one feature, or one geometry."""
    text.take("{")
    held: dict[str, Any] = {}
    while text.next_character() != "}":
        if held:
            text.take(",")
        key = text.value()
        if not isinstance(key, str):
            text.fail("a key must be text")
        text.take(":")
        if key == "features" and text.next_character() == "[":
            yield from _array(text)
            held[key] = None
        else:
            held[key] = text.value()
    text.take("}")
    kind = held.get("type")
    if kind == "Feature":
        yield "feature 0", held
    elif kind in _GEOMETRIES:
        yield "feature 0", {"type": "Feature", "geometry": held, "properties": {}}
    elif "features" not in held or held["features"] is not None:
        text.fail("neither a FeatureCollection, nor a Feature, nor a geometry")
