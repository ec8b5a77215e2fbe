"""What a hostile slide is, and a TIFF writer that lies on request."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pyramids import address_pixels

from coverslip.wsi.slide import RGB

IMAGE = address_pixels(300, 200)
"""What every corpus slide shows that is not too broken to show anything."""
Maker = Callable[[Path], RGB | None]


@dataclass(frozen=True)
class Case:
    """One slide of the corpus.

    name       of its file
    wrong      what is wrong with it, or odd
    make       writes it at a path; returns the pixels it shows, where some are to be seen
    expected   "pixels" (every pixel right), or the error's class; UnreadableTile means that the
               slide opens, some tiles raise it, and the others are right
    words      in the error
    options    of `open_slide`
    """

    name: str
    wrong: str
    make: Maker
    expected: str
    words: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


class Corpus(list[Case]):
    """Cases, added by the decorator over the function that makes each."""

    def case(
        self, name: str, expected: str, words: str = "", **options: Any
    ) -> Callable[[Maker], Maker]:
        """The function's docstring says what is wrong."""

        def added(make: Maker) -> Maker:
            wrong = " ".join((make.__doc__ or "").split()).rstrip(".")
            self.append(Case(name, wrong, make, expected, words, options))
            return make

        return added


class Value(NamedTuple):
    """A tag's value as it will stand in the file; `count` need not be true."""

    type: int
    count: int
    payload: bytes


def short(*values: int) -> Value:
    return Value(3, len(values), struct.pack(f"<{len(values)}H", *values))


def long(*values: int) -> Value:
    return Value(4, len(values), struct.pack(f"<{len(values)}I", *values))


def long8(*values: int) -> Value:
    return Value(16, len(values), struct.pack(f"<{len(values)}Q", *values))


def rational(top: int, bottom: int) -> Value:
    return Value(5, 1, struct.pack("<2I", top, bottom))


def text(content: str | bytes) -> Value:
    raw = content.encode() if isinstance(content, str) else content
    return Value(2, len(raw) + 1, raw + b"\0")


def directory(tags: Mapping[int, Value], at: int, after: int = 0, *, big: bool = False) -> bytes:
    """A TIFF directory to lie at byte `at`, its long values behind it; `after` is the next's."""
    head, place, inline = ("<Q", "Q", 8) if big else ("<H", "I", 4)
    entry = struct.calcsize("<HH" + place) + inline
    end = at + struct.calcsize(head) + len(tags) * entry + inline
    entries, values = b"", b""
    for code, value in sorted(tags.items()):
        payload = value.payload
        if len(payload) > inline:
            held = struct.pack("<" + place, end + len(values))
            values += payload + bytes(len(payload) % 2)
        else:
            held = payload.ljust(inline, b"\0")
        entries += struct.pack("<HH" + place, code, value.type, value.count) + held
    return struct.pack(head, len(tags)) + entries + struct.pack("<" + place, after) + values


def header(first: int, *, big: bool = False) -> bytes:
    return (
        struct.pack("<2sHHHQ", b"II", 43, 8, 0, first)
        if big
        else struct.pack("<2sHI", b"II", 42, first)
    )


def tiles_of(image: RGB, side: int = 256) -> list[bytes]:
    """The image's uncompressed tiles, row by row, padded with black."""
    height, width = image.shape[:2]
    padding = [(0, -height % side), (0, -width % side), *[(0, 0)] * (image.ndim - 2)]
    whole = np.pad(image, padding)
    return [
        np.ascontiguousarray(whole[y : y + side, x : x + side]).tobytes()
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]


def tiff(
    changes: Mapping[int, Value | None] | None = None,
    *,
    tiles: Sequence[bytes] | None = None,
    after: int = 0,
    big: bool = False,
) -> bytes:
    """A sound TIFF of `IMAGE` in deflated tiles of 256 px at 0.25 µm/px, but for `changes`.

    changes   tag -> its value, None to leave it out
    tiles     as they stand in the file, instead of `IMAGE`'s
    after     where the directory says the next one lies
    """
    data = [zlib.compress(t) for t in tiles_of(IMAGE)] if tiles is None else list(tiles)
    start = len(header(0, big=big))
    offsets = [start + sum(map(len, data[:i])) for i in range(len(data))]
    tags: dict[int, Value | None] = {
        **{256: long(300), 257: long(200), 258: short(8, 8, 8), 259: short(8), 262: short(2)},
        **{277: short(3), 282: rational(40_000, 1), 283: rational(40_000, 1), 284: short(1)},
        **{296: short(3), 322: long(256), 323: long(256)},
        **{324: long(*offsets), 325: long(*map(len, data))},
        **(changes or {}),
    }
    blob = b"".join(data)
    blob += bytes(len(blob) % 2)
    first = start + len(blob)
    kept = {code: value for code, value in tags.items() if value is not None}
    return header(first, big=big) + blob + directory(kept, first, after, big=big)


def deflate_bomb(size: int) -> bytes:
    """zlib bytes of `size` (a multiple of 16 MiB) zeros, made without ever holding them."""
    part = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = part.compress(bytes(2**24)) + part.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\x9c" + block * (size // 2**24) + b"\x03\x00" + struct.pack(">I", 1)
