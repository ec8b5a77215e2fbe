"""Compressed tiles to RGB, at full or reduced resolution.

A codec is made once per level and then called from many threads; the work happens in C without
the GIL. All raise ValueError (or a subclass) for bytes that cannot be decoded.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from coverslip.wsi.slide import RGB

ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""An APP14 segment saying "no colour transform": without it libjpeg takes three components for
YCbCr, but Aperio's "JPEG/RGB" tiles hold RGB and no marker."""


class Codec(Protocol):
    """Decodes one native tile.

    name         "jpeg", "jpeg2000", ...
    reductions   how often it can halve the sides cheaply
    """

    @property
    def name(self) -> str: ...
    @property
    def reductions(self) -> int: ...

    def decode(self, data: bytes, segment: int, reduction: int) -> RGB:
        """data of native tile number `segment` -> RGB at 1 / 2**reduction of its sides."""
        ...


def halvings(size: tuple[int, int], most: int) -> int:
    """How often both sides can be halved without remainder, at most `most` times."""
    times = 0
    while times < most and size[0] % 2 ** (times + 1) == 0 and size[1] % 2 ** (times + 1) == 0:
        times += 1
    return times


@dataclass(frozen=True)
class JpegCodec:
    """Baseline JPEG by libjpeg-turbo, reduced in the DCT domain (1/2, 1/4, 1/8).

    size     (width, height) of a tile; a stream that says otherwise is refused unread
    tables   the TIFF's JPEGTables, or b""
    rgb      components are RGB, whatever libjpeg would guess
    """

    size: tuple[int, int]
    tables: bytes = b""
    rgb: bool = False
    name: str = "jpeg"

    @property
    def reductions(self) -> int:
        return halvings(self.size, 3)

    def stream(self, data: bytes) -> bytes:
        """A complete JPEG stream: tables and colour marker spliced behind its first marker."""
        if data[:2] != b"\xff\xd8":
            raise ValueError("no JPEG stream")
        marker = ADOBE_RGB if self.rgb and b"Adobe" not in data[:64] else b""
        if not marker and not self.tables:
            return data
        body = self.tables[2:-2] if self.tables[-2:] == b"\xff\xd9" else self.tables[2:]
        return b"\xff\xd8" + marker + body + data[2:]

    def decode(self, data: bytes, segment: int, reduction: int) -> RGB:
        out = np.empty((self.size[1] >> reduction, self.size[0] >> reduction, 3), np.uint8)
        self.decode_into(out, data, reduction)
        return out

    def decode_into(self, out: RGB, data: bytes, reduction: int) -> None:
        """Decode into `out`, contiguous and of the reduced tile's size."""
        from simplejpeg import decode_jpeg, decode_jpeg_header

        stream = self.stream(data)
        height, width, _, _ = decode_jpeg_header(stream)
        if (width, height) != self.size:
            expected = f"{self.size[0]} x {self.size[1]}"
            raise ValueError(f"the stream says {width} x {height} px, the file {expected}")
        w, h = width >> reduction, height >> reduction
        smallest = {"min_height": h, "min_width": w, "min_factor": 1} if reduction else {}
        image = decode_jpeg(stream, buffer=out, **smallest)
        if image.shape[:2] != (h, w):
            raise ValueError(f"scaled to {image.shape[1]} x {image.shape[0]} px, not {w} x {h}")


@dataclass(frozen=True)
class Jpeg2000Codec:
    """JPEG 2000 by OpenJPEG, reduced by leaving out wavelet levels.

    size     (width, height) of a tile
    levels   wavelet decompositions in the streams
    ycc      components are YCbCr (Aperio 33003), not RGB (33005)
    """

    size: tuple[int, int]
    levels: int
    ycc: bool = False
    name: str = "jpeg2000"

    @property
    def reductions(self) -> int:
        return halvings(self.size, min(self.levels, 3))

    def decode(self, data: bytes, segment: int, reduction: int) -> RGB:
        pixels = self._reduced(data, reduction) if reduction else self._whole(data)
        return ycbcr_to_rgb(pixels) if self.ycc else pixels

    def _whole(self, data: bytes) -> RGB:
        """imagecodecs: without the GIL, but only at full resolution."""
        from imagecodecs import jpeg2k_decode

        if (claimed := jpeg2000_size(data)) != self.size:
            wanted = f"{self.size[0]} x {self.size[1]}"
            raise ValueError(f"the stream says {claimed[0]} x {claimed[1]} px, not {wanted}")
        pixels = np.asarray(jpeg2k_decode(data))
        expected = (self.size[1], self.size[0], 3)
        if pixels.shape != expected or pixels.dtype != np.uint8:
            raise ValueError(f"decoded to {pixels.shape} {pixels.dtype}, not {expected} uint8")
        return pixels

    def _reduced(self, data: bytes, reduction: int) -> RGB:
        """Pillow: the one binding of OpenJPEG that leaves out wavelet levels."""
        from PIL import Image

        image = Image.open(io.BytesIO(data), formats=["JPEG2000"])
        if image.size != self.size:
            expected = f"{self.size[0]} x {self.size[1]}"
            raise ValueError(f"the stream says {image.width} x {image.height} px, not {expected}")
        if image.mode != "RGB":
            raise ValueError(f"JPEG 2000 with {image.mode} components")
        image.reduce = reduction  # type: ignore[method-assign, assignment]
        return np.asarray(image)


def jpeg2000_size(data: bytes) -> tuple[int, int]:
    """(width, height) that a codestream's SIZ segment announces; (0, 0) if unreadable."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(data) < at + 24:
        return 0, 0
    # SIZ: SOC and marker (4), length (2), capabilities (2), then the grid's and the image's corners
    right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
    return max(right - left, 0), max(bottom - top, 0)


def jpeg2000_levels(data: bytes) -> int:
    """How many wavelet decompositions a codestream's COD segment announces; 0 if unreadable."""
    start = data.find(b"\xff\x4f\xff\x51")
    place = data.find(b"\xff\x52", max(start, 0), max(start, 0) + 4096)
    # COD: marker, length (2), style (1), progression (1), layers (2), colour transform (1), levels
    return data[place + 9] if start >= 0 and place >= 0 and len(data) > place + 9 else 0


@dataclass(frozen=True)
class SegmentCodec:
    """Everything else, through tifffile's own decoder of a page's segments.

    decode_segment   tifffile's `TiffPage.decode`
    convert          its (h, w, samples) array -> RGB
    """

    size: tuple[int, int]
    decode_segment: Callable[..., tuple[npt.NDArray[np.uint8] | None, object, object]]
    convert: Callable[[npt.NDArray[np.uint8]], RGB]
    name: str
    reductions: int = 0

    def decode(self, data: bytes, segment: int, reduction: int) -> RGB:
        decoded, _, _ = self.decode_segment(data, segment)
        if decoded is None:
            raise ValueError("decoded to nothing")
        image = self.convert(decoded[0])
        width, height = self.size
        if image.shape[:2] == (height, width):
            return image
        whole = np.full((height, width, 3), 255, np.uint8)
        part = image[:height, :width]
        whole[: part.shape[0], : part.shape[1]] = part
        return whole


def ycbcr_to_rgb(image: npt.NDArray[np.uint8]) -> RGB:
    """(h, w, 3) full-range YCbCr (ITU-R BT.601, as JFIF) -> RGB."""
    y = image[..., 0].astype(np.float32)
    cb = image[..., 1].astype(np.float32) - 128
    cr = image[..., 2].astype(np.float32) - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    result: RGB = np.clip(rgb + 0.5, 0, 255).astype(np.uint8)
    return result
