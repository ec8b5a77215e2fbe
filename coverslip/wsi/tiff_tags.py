"""Every tag of every directory in a TIFF, as it stands: for finding what a file tells of a patient
and for copying what does not.

Values are read when asked for, so that a hostile directory costs no memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from coverslip.errors import BrokenSlide
from coverslip.wsi.tiff_directories import MAX_DIRECTORIES, MAX_TAGS, directory_offsets

FORMATS = {
    **{1: "B", 2: "s", 3: "H", 4: "I", 5: "2I", 6: "b", 7: "s", 8: "h", 9: "i", 10: "2i"},
    **{11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"},
}
"""Type of a tag -> struct format of one value."""
SUB_DIRECTORIES = 330


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag's type, how many values it has, and where in the file they are, in bytes."""

    type: int
    count: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory's place in the file, its tags by code, and whether another one points to it."""

    offset: int
    tags: Mapping[int, Tag]
    below: bool = False


class TiffTags:
    """The directories of a TIFF, main chain first, then what their SubIFDs tags point to.

    layout   sizes and byte order of this kind of TIFF
    length   of the file, in bytes

    To be closed. Raises BrokenSlide for chains and tags that leave the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = open(path, "rb")  # noqa: SIM115  (open as long as the object)
        try:
            self.length = os.fstat(self._file.fileno()).st_size
            self.layout, offsets = directory_offsets(path, self._file)
            self.directories = [self._directory(offset) for offset in offsets]
            self.directories += self._below()
        except BaseException:
            self.close()
            raise

    def bytes_at(self, offset: int, length: int) -> bytes:
        """A part of the file. Raises BrokenSlide where it leaves the file."""
        if offset < 0 or length < 0 or offset + length > self.length:
            raise self._broken(f"bytes {offset:,} to {offset + length:,} of {self.length:,}")
        return os.pread(self._file.fileno(), length, offset)

    def data(self, tag: Tag, most: int | None = None) -> bytes:
        """A tag's values as they stand; the first `most` bytes of them."""
        length = tag.length if most is None else min(tag.length, most)
        return self.bytes_at(tag.offset, length)

    def numbers(self, tag: Tag) -> tuple[Any, ...]:
        """A tag's values as numbers; two for each of a fraction."""
        one = FORMATS[tag.type]
        if one == "s":
            raise self._broken("text in place of numbers")
        count = tag.count * int(one[:-1] or 1)
        return struct.unpack(f"{self.layout.order}{count}{one[-1]}", self.data(tag))

    def number(self, directory: Directory, code: int, default: int = 0) -> int:
        """The first value of a tag; `default` where the directory has none."""
        tag = directory.tags.get(code)
        return int(self.numbers(tag)[0]) if tag and tag.count else default

    def text(self, tag: Tag, most: int = 2**20) -> str:
        """A tag's bytes as text, without what follows the last character."""
        return self.data(tag, most).decode("utf-8", "replace").rstrip("\0 ")

    def _directory(self, offset: int, below: bool = False) -> Directory:
        order, kind = self.layout.order, self.layout
        size = struct.calcsize(kind.count)
        (count,) = struct.unpack(order + kind.count, self.bytes_at(offset, size))
        if count > MAX_TAGS:
            raise self._broken(f"{count} tags in one")
        inline = struct.calcsize(kind.offset)
        tags = {}
        for number in range(count):
            place = offset + size + number * kind.tag_bytes
            entry = self.bytes_at(place, kind.tag_bytes)
            code, type, values = struct.unpack_from(f"{order}HH{kind.offset}", entry)
            if type not in FORMATS:
                continue
            length = values * struct.calcsize("=" + FORMATS[type])
            at = place + kind.tag_bytes - inline
            if length > inline:
                (at,) = struct.unpack(order + kind.offset, entry[-inline:])
            if at + length > self.length:
                raise self._broken(f"tag {code} claims {length:,} bytes at {at:,}")
            tags[code] = Tag(type, values, at, length)
        return Directory(offset, tags, below)

    def _below(self) -> list[Directory]:
        found: dict[int, Directory] = {}
        for directory in self.directories:
            tag = directory.tags.get(SUB_DIRECTORIES)
            if tag is None or tag.count > MAX_DIRECTORIES:
                continue
            for offset in self.numbers(tag):
                if len(found) < MAX_DIRECTORIES and offset and offset not in found:
                    found[offset] = self._directory(offset, below=True)
        return list(found.values())

    def _broken(self, what: str) -> BrokenSlide:
        return BrokenSlide(
            self.path,
            f"its TIFF directories cannot be followed: {what}",
            "the file is damaged; copy it again from the scanner",
        )

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
