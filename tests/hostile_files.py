"""What is no slide, plain images, odd names, links, and formats of many files."""

from __future__ import annotations

import gzip
import io
import os
import random
import socket
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from hostile_case import IMAGE, Case, Corpus, deflate_bomb, tiff
from PIL import Image

from coverslip.wsi.slide import RGB

CASES = Corpus()
case = CASES.case
KNOWN = {"assume_mpp": 0.25}
"""Plain images record no pixel size."""


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _zip() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("slide.svs", tiff())
    return content.getvalue()


for _name, _wrong, _content, _expected, _words in (
    ("empty.svs", "no byte", b"", "BrokenSlide", "empty"),
    ("text.svs", "text", b"slide of Mrs ...\n" * 50, "UnsupportedSlide", "no reader"),
    ("html.svs", "a web page", b"<!DOCTYPE html><title>404</title>",
     "UnsupportedSlide", "no reader"),
    ("noise.svs", "random bytes", random.Random(0).randbytes(9000),
     "UnsupportedSlide", "no reader"),
    ("zeros.svs", "zeros", bytes(2**20), "UnsupportedSlide", "no reader"),
    ("zip.svs", "a zip with a slide in it", _zip(), "UnsupportedSlide", "no reader"),
    ("gzip.tif", "a gzipped slide", gzip.compress(tiff(), 1), "UnsupportedSlide", "no reader"),
    ("postscript.svs", "PostScript, which Pillow hands to an interpreter",
     b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 300 200\n%%EndComments\nshowpage\n",
     "UnsupportedSlide", "no reader"),
    ("nothing-but-czi.czi", "the header of a CZI and noise",
     b"ZISRAWFILE".ljust(16, b"\0") + b"\xff" * 600, "BrokenSlide", "OpenSlide cannot open it"),
):  # fmt: skip
    CASES.append(Case(_name, _wrong, partial(_write, _content), _expected, _words))


@case("terabyte-of-nothing.svs", "UnsupportedSlide", "no reader")
def terabyte(path: Path) -> None:
    """A sparse file of 1 TiB."""
    with open(path, "wb") as file:
        file.truncate(2**40)


# --- what lies at the path ---


@case("folder.svs", "UnsupportedSlide", "is a folder")
def folder(path: Path) -> None:
    """A folder named like a slide."""
    path.mkdir()


@case("dangling.svs", "UnsupportedSlide", "cannot be opened")
def dangling(path: Path) -> None:
    """A link to nothing."""
    path.symlink_to(path.parent / "nowhere" / "slide.svs")


@case("loop.svs", "UnsupportedSlide", "cannot be opened")
def loop(path: Path) -> None:
    """A link to itself."""
    path.symlink_to(path.name)


@case("pipe.svs", "UnsupportedSlide", "no ordinary file")
def pipe(path: Path) -> None:
    """A pipe that nobody ever writes to."""
    os.mkfifo(path)


@case("zeros-without-end.svs", "UnsupportedSlide", "no ordinary file")
def device(path: Path) -> None:
    """A link to a device that never ends."""
    path.symlink_to("/dev/zero")


@case("socket.svs", "UnsupportedSlide", "no ordinary file")
def listening(path: Path) -> None:
    """A socket."""
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have 107 bytes
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(path.name)
    os.chdir(here)


@case("link.svs", "pixels")
def link(path: Path) -> RGB:
    """A link to a sound slide."""
    target = path.parent / "beside" / "target.tif"
    target.parent.mkdir()
    target.write_bytes(tiff())
    path.symlink_to(target)
    return IMAGE


def _write_sound(path: Path) -> RGB:
    path.write_bytes(tiff())
    return IMAGE


for _name, _wrong in {
    "new\nline.tif": "a line break in the name",
    "🔬 肝臓.tif": "emoji and Japanese in the name",
    "red \x1b[31m.tif": "a terminal's escape sequence in the name",
    "nul\\x00%00.tif": "what looks like a NUL in the name",
    "latin-\udce9.tif": "a name that is not UTF-8",
    "\u202efit.tif": "a right-to-left override in the name",
    "-rf --output=x.tif": "a name like a flag",
    "a\"b'c;$(touch x)`x`|&.tif": "a shell's syntax in the name",
    "[a-z]*?.tif": "a pattern in the name",
    "n" * 251 + ".tif": "the longest name a file can have",
    "..%2f..%2fetc%2fpasswd.tif": "what looks like a path in the name",
    "twin.tif": "one of two slides of one stem",
    "twin.svs": "the other of two slides of one stem",
}.items():
    CASES.append(Case(_name, _wrong, _write_sound, "pixels"))


# --- plain images ---


def _encoded(image: Image.Image, format: str) -> bytes:
    content = io.BytesIO()
    image.save(content, format)
    return content.getvalue()


@case("png.svs", "pixels", **KNOWN)
def renamed_png(path: Path) -> RGB:
    """A PNG."""
    path.write_bytes(_encoded(Image.fromarray(IMAGE), "PNG"))
    return IMAGE


@case("png-without-size.svs", "MissingMpp", "--assume-mpp")
def png_without_size(path: Path) -> None:
    """A PNG, and nobody says how large its pixels are."""
    path.write_bytes(_encoded(Image.fromarray(IMAGE), "PNG"))


@case("png-cut.png", "BrokenSlide", "cannot be decoded", **KNOWN)
def cut_png(path: Path) -> None:
    """The first 500 bytes of a PNG."""
    path.write_bytes(_encoded(Image.fromarray(IMAGE), "PNG")[:500])


@case("png-16-bit.png", "UnsupportedSlide", "not 8-bit RGB", **KNOWN)
def deep_png(path: Path) -> None:
    """A PNG of 16-bit grey."""
    path.write_bytes(_encoded(Image.fromarray(IMAGE[..., 0].astype(np.uint16)), "PNG"))


@case("png-bomb.png", "BrokenSlide", "too large", **KNOWN)
def png_bomb(path: Path) -> None:
    """A PNG of 65,000 px a side, 4 MiB that inflate to 4 GiB."""
    path.write_bytes(_png(65_000, deflate_bomb(2**32)))


@case("png-text-bomb.png", "UnsupportedSlide", "no reader", **KNOWN)
def png_text_bomb(path: Path) -> None:
    """A PNG whose comment inflates to 4 GiB."""
    path.write_bytes(
        _png(16, zlib.compress(bytes(49 * 16)), b"zTXt", b"x\0\0" + deflate_bomb(2**32))
    )


def _png(side: int, data: bytes, kind: bytes = b"", more: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    extra = chunk(kind, more) if kind else b""
    end = chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + end


@case("jpeg-cmyk.jpg", "UnsupportedSlide", "CMYK", **KNOWN)
def cmyk_jpeg(path: Path) -> None:
    """A JPEG in CMYK."""
    path.write_bytes(_encoded(Image.new("CMYK", (64, 64)), "JPEG"))


@case("jpeg-cut.jpg", "BrokenSlide", "cannot be decoded", **KNOWN)
def cut_jpeg(path: Path) -> None:
    """Half a JPEG."""
    content = _encoded(Image.fromarray(IMAGE), "JPEG")
    path.write_bytes(content[: len(content) // 2])


@case("jpeg-bomb.jpg", "BrokenSlide", "too large", **KNOWN)
def bomb_jpeg(path: Path) -> None:
    """A JPEG that claims 65,500 px a side."""
    content = bytearray(_encoded(Image.fromarray(IMAGE), "JPEG"))
    struct.pack_into(">2H", content, content.index(b"\xff\xc0") + 5, 65_500, 65_500)
    path.write_bytes(content)


# --- formats of several files, and DICOM ---


@case("alone.mrxs", "BrokenSlide", "the folder of its name")
def lone_mrxs(path: Path) -> None:
    """An MRXS without its folder."""
    path.write_bytes(_encoded(Image.fromarray(IMAGE), "JPEG"))


SLIDEDAT = """[GENERAL]
SLIDE_VERSION = 01.02
SLIDE_ID = x
IMAGENUMBER_X = {0}
IMAGENUMBER_Y = {0}
OBJECTIVE_MAGNIFICATION = 20
[HIERARCHICAL]
INDEXFILE = {1}
HIER_COUNT = 1
NONHIER_COUNT = 0
HIER_0_NAME = Slide zoom level
HIER_0_COUNT = 1
HIER_0_VAL_0 = ZoomLevel_0
HIER_0_VAL_0_SECTION = LAYER_0
[DATAFILE]
FILE_COUNT = {2}
FILE_0 = {3}
[LAYER_0]
OVERLAP_X = 0
OVERLAP_Y = 0
MICROMETER_PER_PIXEL_X = {4}
MICROMETER_PER_PIXEL_Y = {4}
IMAGE_FILL_COLOR_BGR = 16777215
DIGITIZER_WIDTH = {5}
DIGITIZER_HEIGHT = {5}
IMAGE_FORMAT = JPEG
IMAGE_CONCAT_FACTOR = 0
"""


def _mrxs(*values: object) -> None:
    *fields, path = values
    assert isinstance(path, Path)
    path.write_bytes(_encoded(Image.fromarray(IMAGE), "JPEG"))
    beside = path.with_suffix("")
    beside.mkdir()
    (beside / "Slidedat.ini").write_text(SLIDEDAT.format(*fields))
    (beside / "Index.dat").write_bytes(b"")
    (beside / "Data0000.dat").write_bytes(b"01.02x")


for _name, _wrong, _values in (
    ("path-traversal.mrxs", "an MRXS whose index and data are /etc/passwd",
     (4, "../../../../../../etc/passwd", 1, "../../../../../../etc/passwd", 0.25, 256)),
    ("absurd-grid.mrxs", "an MRXS of 2,147,483,647 images a side",
     (2**31 - 1, "Index.dat", 1, "Data0000.dat", 0.25, 2**31 - 1)),
    ("absurd-data-files.mrxs", "an MRXS of 2,147,483,647 data files",
     (4, "Index.dat", 2**31 - 1, "Data0000.dat", 0.25, 256)),
    ("no-index.mrxs", "an MRXS whose index is empty",
     (4, "Index.dat", 1, "Data0000.dat", "nan", 256)),
):  # fmt: skip
    CASES.append(
        Case(
            _name,
            _wrong,
            partial(_mrxs, *_values),
            "ReaderTimeout" if _name == "absurd-grid.mrxs" else "BrokenSlide",
            "within 3 s" if _name == "absurd-grid.mrxs" else "OpenSlide cannot open it",
            {"read_timeout_s": 3} if _name == "absurd-grid.mrxs" else {},
        )
    )


@case("noise.mrxs", "BrokenSlide", "OpenSlide cannot open it")
def noise_ini(path: Path) -> None:
    """An MRXS whose Slidedat.ini is noise."""
    path.write_bytes(b"x")
    path.with_suffix("").mkdir()
    (path.with_suffix("") / "Slidedat.ini").write_bytes(random.Random(1).randbytes(4000))


@case("absurd.vms", "BrokenSlide", "Too many columns")
def absurd_vms(path: Path) -> None:
    """A Hamamatsu VMS of a billion JPEGs, the first of them /etc/passwd."""
    path.write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1000000000\n"
        "NoJpegRows=1000000000\nImageFile=../../../../../etc/passwd\n"
        "MapFile=../../../../../etc/passwd\nOptimisationFile=\nSourceLens=20\n"
    )


DICOM_WSI = "1.2.840.10008.5.1.4.1.1.77.1.6"


def _element(group: int, number: int, kind: bytes, content: bytes, length: int = -1) -> bytes:
    content += b"\0" * (len(content) % 2)
    size = len(content) if length < 0 else length
    head = struct.pack("<2H", group, number) + kind
    long = kind in (b"OB", b"OW", b"SQ", b"UN")
    return head + (struct.pack("<HI", 0, size) if long else struct.pack("<H", size)) + content


def _dicom(*elements: bytes) -> bytes:
    syntax = b"1.2.840.10008.1.2.4.50"
    meta = _element(2, 2, b"UI", DICOM_WSI.encode()) + _element(2, 3, b"UI", b"1.2.3")
    meta += _element(2, 0x10, b"UI", syntax)
    start = _element(2, 0, b"UL", struct.pack("<I", len(meta)))
    return bytes(128) + b"DICM" + start + meta + b"".join(elements)


VOLUME = (
    _element(8, 8, b"CS", b"ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
    _element(8, 0x16, b"UI", DICOM_WSI.encode()),
    _element(8, 0x18, b"UI", b"1.2.3"),
    _element(0x20, 0xE, b"UI", b"1.2.4"),
)


def _size(side: int, frames: bytes) -> bytes:
    return b"".join(
        (
            _element(0x28, 2, b"US", struct.pack("<H", 3)),
            _element(0x28, 4, b"CS", b"YBR_FULL_422"),
            _element(0x28, 6, b"US", struct.pack("<H", 0)),
            _element(0x28, 8, b"IS", frames),
            _element(0x28, 0x10, b"US", struct.pack("<H", 256)),
            _element(0x28, 0x11, b"US", struct.pack("<H", 256)),
            _element(0x28, 0x100, b"US", struct.pack("<H", 8)),
            _element(0x28, 0x101, b"US", struct.pack("<H", 8)),
            _element(0x28, 0x102, b"US", struct.pack("<H", 7)),
            _element(0x28, 0x103, b"US", struct.pack("<H", 0)),
            _element(0x48, 6, b"UL", struct.pack("<I", side)),
            _element(0x48, 7, b"UL", struct.pack("<I", side)),
        )
    )


FRAGMENT = struct.pack("<2HI", 0xFFFE, 0xE000, 2**31) + b"\xff\xd8"
for _name, _wrong, _content in (
    ("header-alone.dcm", "DICOM that ends after its header", _dicom()),
    ("noise.dcm", "a DICOM header and noise", _dicom(random.Random(2).randbytes(5000))),
    ("fragments.dcm", "DICOM whose only fragment claims 2 GiB",
     _dicom(*VOLUME, _size(512, b"4"), _element(0x7FE0, 0x10, b"OB", FRAGMENT, 2**32 - 1))),
    ("no-fragments.dcm", "DICOM of 4 billion px a side and 2 billion frames, none there",
     _dicom(*VOLUME, _size(2**32 - 1, b"2147483647"),
            _element(0x7FE0, 0x10, b"OB", b"", 2**32 - 1))),
    ("nested.dcm", "DICOM sequences nested 100,000 deep",
     _dicom(VOLUME[0], *[_element(8, 0x1140, b"SQ", b"", 2**32 - 1)
                         + struct.pack("<2HI", 0xFFFE, 0xE000, 2**32 - 1)] * 100_000)),
    ("length-of-4-GiB.dcm", "a DICOM element that claims 4 GiB",
     _dicom(VOLUME[0], _element(8, 0x2112, b"OB", b"x", 2**32 - 2))),
):  # fmt: skip
    CASES.append(
        Case(_name, _wrong, partial(_write, _content), "BrokenSlide", "OpenSlide cannot open it")
    )
