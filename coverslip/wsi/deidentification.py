"""A copy of a slide without what identifies a patient; its pixels byte for byte.

Aperio SVS and plain tiled TIFFs, classic and BigTIFF. The levels' compressed tiles are copied and
their directories written anew: of the tags only those that say how pixels are stored and coloured,
of Aperio's description only its line of sizes, AppMag and MPP. What no level needs (label, macro,
dates, serial numbers, private tags, bytes that nothing points to) is not copied. The copy takes its
name after it has been read back and compared (see `deidentification_check`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from coverslip.durable import whole_file
from coverslip.errors import (
    BrokenSlide,
    SlideError,
    UnsupportedSlide,
)
from coverslip.wsi import tiff
from coverslip.wsi.deidentification_check import check_copy
from coverslip.wsi.identifiers import (
    holds_no_text,
    identifiers_of,
    is_thumbnail,
    name_identifiers,
)
from coverslip.wsi.identifying_words import APERIO_HEADER, PLAIN_TAGS
from coverslip.wsi.naming import slide_name
from coverslip.wsi.tiff_directories import TiffLayout
from coverslip.wsi.tiff_tags import FORMATS, SUB_DIRECTORIES, Directory, TiffTags
from coverslip.wsi.tile_comments import tile_comments

VENDORS = ("aperio", "generic-tiff")
OFFSETS, COUNTS = (273, 324), (279, 325)
DESCRIPTION, JPEG_TABLES, WIDTH, HEIGHT, COMPRESSION = 270, 347, 256, 257, 259
LEFT_OUT = frozenset({*OFFSETS, *COUNTS, *range(512, 522), SUB_DIRECTORIES, DESCRIPTION})
"""Tags that are written anew, and those that point to old-style JPEG."""
OLD_JPEG = 6
MAX_VALUE_BYTES = 2**26
NUMBER = re.compile(r"\d{1,7}(?:\.\d{1,10})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Deidentified:
    """What became of one slide.

    found    how many identifiers the original held
    levels   that were copied; tiles how many tiles and strips, each the same bytes
    bytes    of the copy
    """

    path: Path
    found: int
    levels: int
    tiles: int
    bytes: int


def deidentified(
    path: str | Path, copy: str | Path, *, keep_thumbnail: bool = True
) -> Deidentified:
    """Write a copy of the slide that identifies nobody, and compare it with the original.

    keep_thumbnail   Aperio's small picture of the scanned area, which many readers count on

    Raises UnsupportedSlide for formats whose metadata are bound to their pixels; SlideError for a
    copy that is there already, whose name identifies, or that did not pass the comparison; then
    nothing is left of it.
    """
    path, copy = str(path), Path(copy)
    _check_name(copy)
    found = identifiers_of(path)
    with tiff.open(path) as slide, TiffTags(path) as tags:
        kept = _kept(slide, tags, keep_thumbnail)
        with whole_file(copy) as aside:
            with open(aside, "wb") as file:
                tiles = _Copy(tags, file, slide.vendor).write(kept)
            check_copy(path, str(aside), found, tags, kept, slide_name(copy))
            size = aside.stat().st_size
        return Deidentified(copy, len(found), len(slide.levels), tiles, size)


def _check_name(copy: Path) -> None:
    if copy.exists():
        raise SlideError(copy, "is there already", "choose another name, or remove it first")
    for each in name_identifiers(slide_name(copy)):
        raise SlideError(
            copy,
            f"its name holds {each.value}, which looks like {_with_article(each.kind)}",
            "choose another name; for many, list them in a CSV with columns slide,name: --names",
        )


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _kept(slide: tiff.TiffSlide, tags: TiffTags, keep_thumbnail: bool) -> list[Directory]:
    """The directories that the copy has: the levels', and the thumbnail's in its place."""
    if slide.vendor not in VENDORS:
        raise UnsupportedSlide(
            slide.path,
            f"is {slide.vendor}: only Aperio SVS and plain tiled TIFFs can be deidentified",
            "its metadata are bound to its pixels; export it as SVS or TIFF with its vendor's "
            "software, or convert it, and deidentify that",
        )
    levels = set(slide.level_directories)
    kept = []
    for number, directory in enumerate(tags.directories):
        if directory.below:
            raise UnsupportedSlide(
                slide.path,
                "holds directories below its directories (SubIFDs)",
                "convert it to a plain tiled TIFF first",
            )
        thumbnail = (
            keep_thumbnail and slide.vendor == "aperio" and is_thumbnail(tags, number, slide.size)
        )
        if directory.offset in levels or thumbnail:
            kept.append(directory)
    if [d.offset for d in kept if d.offset in levels] != list(slide.level_directories):
        raise UnsupportedSlide(slide.path, "its levels do not lie in the order of their sizes")
    return kept


class _Copy:
    """Writes a TIFF of the same kind and byte order: of each directory first its tiles, then its
    values, then the directory; every offset is known when it is written."""

    def __init__(self, tags: TiffTags, file: BinaryIO, vendor: str) -> None:
        self._tags, self._file, self._aperio = tags, file, vendor == "aperio"
        self._layout: TiffLayout = tags.layout
        self._copied = 0

    def write(self, kept: list[Directory]) -> int:
        """Returns the number of tiles and strips."""
        order, wide = self._layout.order, self._layout.offset
        mark = b"II" if order == "<" else b"MM"
        if wide == "Q":
            head = mark + struct.pack(order + "HHH", 43, 8, 0)
        else:
            head = mark + struct.pack(order + "H", 42)
        self._file.write(head + struct.pack(order + wide, 0))
        link, tiles = len(head), 0
        for number, directory in enumerate(kept):
            values, count = self._values(directory, number, kept[0])
            tiles += count
            link = self._write_directory(values, link)
        return tiles

    def _values(
        self, directory: Directory, number: int, base: Directory
    ) -> tuple[dict[int, tuple[int, bytes]], int]:
        """Code -> (type, values as bytes) of the new directory; the tiles are written."""
        values: dict[int, tuple[int, bytes]] = {}
        for code, tag in directory.tags.items():
            if code in PLAIN_TAGS - LEFT_OUT and holds_no_text(code, tag):
                if tag.length > MAX_VALUE_BYTES:
                    raise self._broken(f"tag {code} holds {tag.length:,} bytes")
                values[code] = (tag.type, self._tags.data(tag))
        self._check_comments(values.get(JPEG_TABLES, (0, b""))[1], f"directory {number}")
        if self._aperio:
            text = aperio_description(self._tags, directory, base)
            values[DESCRIPTION] = (2, text.encode("ascii") + b"\0")
        if self._tags.number(directory, COMPRESSION) == OLD_JPEG:
            raise UnsupportedSlide(self._tags.path, "its tiles are old-style JPEG (compression 6)")
        offset_code, count_code = self._tables(directory)
        offsets = self._array(directory, offset_code)
        counts = self._array(directory, count_code)
        moved = self._copy_tiles(offsets, counts, number)
        values[offset_code] = self._packed(moved)
        values[count_code] = (
            directory.tags[count_code].type,
            self._tags.data(directory.tags[count_code]),
        )
        return values, len(offsets)

    def _tables(self, directory: Directory) -> tuple[int, int]:
        for codes in zip(OFFSETS[::-1], COUNTS[::-1], strict=True):
            if all(code in directory.tags for code in codes):
                return codes
        raise self._broken("a level's directory lists no tiles")

    def _array(self, directory: Directory, code: int) -> npt.NDArray[np.int64]:
        tag = directory.tags[code]
        kind = FORMATS[tag.type]
        if kind not in ("H", "I", "Q"):
            raise self._broken(f"tag {code} is of type {tag.type}")
        width = {"H": "u2", "I": "u4", "Q": "u8"}[kind]
        return np.frombuffer(self._tags.data(tag), self._layout.order + width).astype(np.int64)

    def _packed(self, offsets: npt.NDArray[np.int64]) -> tuple[int, bytes]:
        wide = self._layout.offset == "Q"
        width = self._layout.order + ("u8" if wide else "u4")
        return (16 if wide else 4), offsets.astype(width).tobytes()

    def _copy_tiles(
        self, offsets: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], number: int
    ) -> npt.NDArray[np.int64]:
        """Where each tile lies in the copy; tiles that share bytes share them there."""
        if len(offsets) != len(counts):
            raise self._broken(
                f"directory {number} lists {len(offsets)} tiles, {len(counts)} sizes"
            )
        held = np.flatnonzero((offsets > 0) & (counts > 0))
        pairs, inverse = np.unique(
            np.stack([offsets[held], counts[held]], 1), axis=0, return_inverse=True
        )
        places = np.zeros(len(pairs), np.int64)
        for i, (offset, count) in enumerate(pairs.tolist()):
            data = self._tags.bytes_at(offset, count)
            self._check_comments(data, f"a tile of directory {number}")
            self._copied += count
            if self._copied > self._tags.length:
                raise self._broken("its tiles overlap")
            places[i] = self._file.tell()
            self._file.write(data)
        moved = np.zeros(len(offsets), np.int64)
        moved[held] = places[inverse.reshape(-1)]
        return moved

    def _check_comments(self, data: bytes, where: str) -> None:
        for comment in tile_comments(data):
            raise UnsupportedSlide(
                self._tags.path,
                f"{where} holds words inside its compressed pixels: {comment[:60]!r}",
                "they cannot go while the pixels stay untouched; convert the slide",
            )

    def _write_directory(self, values: Mapping[int, tuple[int, bytes]], link: int) -> int:
        """Write a directory and point `link` to it; returns where its own link lies."""
        order, kind = self._layout.order, self._layout
        inline = struct.calcsize(kind.offset)
        entries = []
        for code in sorted(values):
            type, data = values[code]
            count = len(data) // struct.calcsize("=" + FORMATS[type])
            if len(data) > inline:
                self._align()
                place = struct.pack(order + kind.offset, self._file.tell())
                self._file.write(data)
            else:
                place = data.ljust(inline, b"\0")
            entries.append(struct.pack(f"{order}HH{kind.offset}", code, type, count) + place)
        self._align()
        start = self._file.tell()
        if start >= 2 ** (8 * inline):
            raise self._broken("the copy is too large for a classic TIFF")
        self._file.write(struct.pack(order + kind.count, len(entries)) + b"".join(entries))
        end = self._file.tell()
        self._file.write(struct.pack(order + kind.offset, 0))
        self._file.seek(link)
        self._file.write(struct.pack(order + kind.offset, start))
        self._file.seek(0, 2)
        return end

    def _align(self) -> None:
        self._file.write(b"\0" * (-self._file.tell() % 8))

    def _broken(self, problem: str) -> BrokenSlide:
        return BrokenSlide(self._tags.path, problem, "the file is damaged; copy it again")


def aperio_description(tags: TiffTags, directory: Directory, base: Directory) -> str:
    """The line of sizes, AppMag and MPP of a directory's description; nothing else of it."""
    tag = directory.tags.get(DESCRIPTION)
    header, *fields = (tags.text(tag) if tag else "").split("|")
    if not APERIO_HEADER.fullmatch(header):
        size = f"{tags.number(directory, WIDTH)}x{tags.number(directory, HEIGHT)}"
        whole = f"{tags.number(base, WIDTH)}x{tags.number(base, HEIGHT)}"
        header = f"Aperio Image Library \r\n{whole}" + ("" if directory is base else f" -> {size}")
    return "|".join([header, *_scale(fields)])


def _scale(fields: list[str]) -> Iterator[str]:
    for field in fields:
        name, _, value = (part.strip() for part in field.partition("="))
        if name in ("AppMag", "MPP") and NUMBER.fullmatch(value):
            yield f"{name} = {value}"
