"""Words inside a compressed tile: comments and application segments of JPEG and JPEG 2000."""

from __future__ import annotations

import re
from collections.abc import Iterator

JPEG, JPEG_SCAN, JPEG_END, JPEG_COMMENT = 0xD8, 0xDA, 0xD9, 0xFE
JPEG_2000, TILE_PART, JPEG_2000_COMMENT = 0x4F, 0x90, 0x64
JFIF_BYTES = 14
"""A JFIF segment without a picture of its own."""
SOFTWARE = re.compile(
    rb"[\0-\2]{0,2}(?:Kakadu[-_ ]?v?[\d.]*|Created by OpenJPEG version [\d.]+|JasPer Version [\d.]+"
    rb"|Kdu-Layer-Info: log_2\{Delta-D\((?:MSE|squared-error)\)/\[?(?:2\^16\*)?"
    rb"Delta-L\(bytes\)\]?\}, L\(bytes\)[\s\d.,eE+-]*"
    rb"|CREATOR: gd-jpeg v[\d.]+ \(using IJG JPEG v\d+\)(?:, (?:default )?quality(?: = \d+)?)?"
    rb"|Intel\(R\) JPEG Library, version \[[\d.]+\]|LEAD Technologies Inc\. V[\d.]+"
    rb"|Lavc[\d.]+)\s*\0?"
)
"""What codecs write of themselves."""


def tile_comments(data: bytes) -> Iterator[bytes]:
    """What a JPEG or JPEG 2000 stream says beside its pixels, codecs' own marks left out.

    data   a tile, or a TIFF's JPEG tables; other streams say nothing
    """
    for begin, end in _segments(data):
        if _speaks(data, begin, end):
            yield data[begin + 4 : end]


def without_comments(data: bytes) -> bytes:
    """A JPEG stream without what `tile_comments` finds in it; itself where that is nothing."""
    spoken = [place for place in _segments(data) if _speaks(data, *place)]
    if not spoken:
        return data
    edges = [0, *(edge for place in spoken for edge in place), len(data)]
    return b"".join(data[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))


def _speaks(data: bytes, begin: int, end: int) -> bool:
    marker, content = data[begin + 1], data[begin + 4 : end]
    if marker == (JPEG_COMMENT if data[1] == JPEG else JPEG_2000_COMMENT):
        return not SOFTWARE.fullmatch(content)
    if data[1] != JPEG or not 0xE0 <= marker <= 0xEF:
        return False
    plain = content.startswith(b"JFIF\0") and len(content) <= JFIF_BYTES
    return not (plain or content.startswith((b"Adobe", b"ICC_PROFILE\0")))


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(begin, end) of each marker segment up to the first scan or tile-part."""
    if data[:1] != b"\xff" or data[1:2] not in (b"\xd8", b"\x4f"):
        return
    last = (JPEG_SCAN, JPEG_END) if data[1] == JPEG else (TILE_PART,)
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xFF:  # fill
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] in last or length < 2:
            return
        yield at, at + 2 + length
        at += 2 + length
