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
        count = _read(path, file, layout.order + layout.count, offset, length)
        if count > MAX_TAGS:
            raise BrokenSlide(path, f"a TIFF directory claims {count} tags", hint)
        after = offset + struct.calcsize(layout.count) + count * layout.tag_bytes
        offset = _read(path, file, layout.order + layout.offset, after, length)
    if not seen:
        raise BrokenSlide(path, "holds no TIFF directory", hint)
    return list(seen)


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
