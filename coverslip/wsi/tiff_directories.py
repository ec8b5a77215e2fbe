"""The chain of directories in a TIFF, walked before anything trusts it.

A hostile or damaged file may point its directories in a circle, beyond its end, or at a hundred
thousand of them; tifffile is handed only files whose chain is sound.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from coverslip.errors import BrokenSlide

MAX_DIRECTORIES = 4096
MAX_TAGS = 4096
MAX_TAG_BYTES = 2**28
"""All tags of a directory together; eight million tiles, say, take 128 MiB."""
SUB_DIRECTORIES = 330


TYPE_BYTES = {
    **{1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4},
    **{16: 8, 17: 8, 18: 8},
}
"""Type of a tag -> bytes of one value."""


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """Sizes in the two kinds of TIFF.

    order, offset, count   struct formats: of the byte order, an offset, a directory's tag count
    tag_bytes              of a tag in its directory
    first                  where the first directory lies
    """

    order: str
    offset: str
    count: str
    tag_bytes: int
    first: int


def is_tiff(path: str) -> bool:
    """Whether the file begins as a classic TIFF or BigTIFF does."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return _layout(file.read(16)) is not None


def check_directories(path: str) -> int:
    """The number of directories in the main chain.

    Raises BrokenSlide for a chain that runs in a circle, leaves the file, holds an absurd number
    of directories or tags, or none.
    """
    with open(path, "rb") as file:
        return len(directory_offsets(path, file)[1])


def directory_offsets(path: str, file: BinaryIO) -> tuple[TiffLayout, list[int]]:
    """The kind of TIFF, and where each directory of the main chain lies; raises as above."""
    layout = _layout(file.read(16))
    if layout is None:
        raise BrokenSlide(path, "is not a TIFF")
    return layout, _walk(path, file, layout, os.fstat(file.fileno()).st_size)


def _layout(head: bytes) -> TiffLayout | None:
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return None
    (version,) = struct.unpack(order + "H", head[2:4])
    if version == 42:
        return TiffLayout(order, "I", "H", 12, struct.unpack(order + "I", head[4:8])[0])
    if version == 43 and len(head) >= 16:
        return TiffLayout(order, "Q", "Q", 20, struct.unpack(order + "Q", head[8:16])[0])
    return None


def _walk(path: str, file: BinaryIO, layout: TiffLayout, length: int) -> list[int]:
    seen: dict[int, None] = {}
    offset = layout.first
    hint = "the file is damaged; copy it again from the scanner"
    while offset:
        if offset in seen:
            raise BrokenSlide(path, "its TIFF directories point in a circle", hint)
        if len(seen) >= MAX_DIRECTORIES:
            raise BrokenSlide(path, f"has more than {MAX_DIRECTORIES} TIFF directories", hint)
        seen[offset] = None
        for below in _sub_directories(path, file, layout, offset, length):
            _sub_directories(path, file, layout, below, length)
        count = _read(path, file, layout.order + layout.count, offset, length)
        if count > MAX_TAGS:
            raise BrokenSlide(path, f"a TIFF directory claims {count} tags", hint)
        after = offset + struct.calcsize(layout.count) + count * layout.tag_bytes
        offset = _read(path, file, layout.order + layout.offset, after, length)
    if not seen:
        raise BrokenSlide(path, "holds no TIFF directory", hint)
    return list(seen)


def _sub_directories(
    path: str, file: BinaryIO, layout: TiffLayout, offset: int, length: int
) -> list[int]:
    """Where the directories lie that this one points to; its tags claim no absurd amount."""
    count = _read(path, file, layout.order + layout.count, offset, length)
    claimed, found = 0, []
    file.seek(offset + struct.calcsize(layout.count))
    content = file.read(min(count, MAX_TAGS) * layout.tag_bytes)
    content = content[: len(content) // layout.tag_bytes * layout.tag_bytes]
    for code, kind, values, held in struct.iter_unpack(
        f"{layout.order}HH{layout.offset * 2}", content
    ):
        claimed += values * TYPE_BYTES.get(kind, 0)
        if code == SUB_DIRECTORIES:
            found = _listed(path, file, layout, (kind, values, held), length)
    if claimed > MAX_TAG_BYTES:
        raise BrokenSlide(
            path,
            f"the tags of one TIFF directory claim {claimed:,} bytes",
            "the file is damaged; copy it again from the scanner",
        )
    return found


def _listed(
    path: str, file: BinaryIO, layout: TiffLayout, tag: tuple[int, int, int], length: int
) -> list[int]:
    """The offsets in a SubIFDs tag of this type, number of values and inline value."""
    kind, values, held = tag
    if values > MAX_DIRECTORIES:
        raise BrokenSlide(
            path,
            f"a TIFF directory lists {values:,} sub-directories",
            "the file is damaged; copy it again from the scanner",
        )
    one = {4: "I", 13: "I", 16: "Q", 18: "Q"}.get(kind)
    if one is None or values == 0:
        return []
    size = struct.calcsize(one)
    if values * size <= struct.calcsize(layout.offset):
        raw = struct.pack(layout.order + layout.offset, held)
    elif held + values * size <= length:
        file.seek(held)
        raw = file.read(values * size)
    else:
        return []  # tifffile leaves out a tag whose values lie beyond the file
    offsets = struct.unpack_from(f"{layout.order}{values}{one}", raw)
    return [offset for offset in dict.fromkeys(offsets) if 0 < offset < length]


def _read(path: str, file: BinaryIO, format: str, offset: int, length: int) -> int:
    size = struct.calcsize(format)
    if offset + size > length:
        raise BrokenSlide(
            path,
            f"is truncated: a TIFF directory lies at byte {offset:,} of {length:,}",
            "the file is incomplete; copy it again",
        )
    file.seek(offset)
    value: int = struct.unpack(format, file.read(size))[0]
    return value
