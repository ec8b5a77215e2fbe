"""The files a slide consists of: most are one file, some are a family of them."""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator
from os import PathLike, fspath
from typing import BinaryIO, NamedTuple

from coverslip.errors import BrokenSlide, UnsupportedSlide

MAX_PARTS = 500_000
"""An OME-Zarr image of 200,000 px a side has as many chunks of 256 px."""
KEY_FILE_BYTES = 65_536
"""OpenSlide reads no larger .vms or .vmu."""
HAMAMATSU = re.compile(rb"^\[(Uncompressed )?Virtual Microscope Specimen\]\s*$", re.MULTILINE)
NAMES_A_FILE = re.compile(r"(ImageFile|MapFile|OptimisationFile|MacroImage)(\([\d,]*\))?")
SERIES = (0x0020, 0x000E)
LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR",
                  b"UT", b"UV"})  # fmt: skip
"""Kinds of DICOM elements whose length is 4 bytes, after 2 of padding (PS3.5, 7.1.2)."""
OPEN_ENDED = 2**32 - 1
MAX_ELEMENTS = 10_000


class SlidePart(NamedTuple):
    """One file of a slide.

    name   from the folder the slide lies in, with `/`; never leads out of it
    size   bytes
    """

    name: str
    size: int


def slide_parts(path: str | PathLike[str]) -> list[SlidePart]:
    """All files that have to lie side by side for the slide at `path` to be read, its own first.

    A folder (OME-Zarr): every file in it. `.mrxs`: the files of the folder beside. Hamamatsu's
    .vms and .vmu: the files they name, as far as they exist. DICOM: the files of its series in the
    same folder. Links are followed; a link to a folder within a folder is refused, since it could
    lead round in circles.

    Raises UnsupportedSlide where a name leads elsewhere, BrokenSlide where pixels are missing;
    OSError, and ValueError for a path that cannot be one.
    """
    path = fspath(path).rstrip("/")
    folder, name = os.path.split(path)
    if name in ("", ".", ".."):
        raise UnsupportedSlide(path, "its path ends in no name", "name the file or folder itself")
    if os.path.isdir(path):
        return _listed(path, name)
    own = SlidePart(name, _size(path))
    if name.lower().endswith(".mrxs"):
        beside = os.path.splitext(name)[0]
        if not os.path.isdir(os.path.join(folder, beside)):
            raise BrokenSlide(path, "the folder of its name, which holds its pixels, is missing")
        return [own, *_listed(os.path.join(folder, beside), beside)]
    with open(path, "rb") as file:
        if own.size <= KEY_FILE_BYTES and HAMAMATSU.search(text := file.read(KEY_FILE_BYTES)):
            names = _named(path, text.decode("utf-8", "surrogateescape"))
            return [own, *_existing(folder, (other for other in names if other != name))]
        file.seek(0)
        if _is_dicom(file):
            others = _rest_of_series(folder, name, _series(file))
            return [own, *_existing(folder, others)]
    return [own]


def _size(path: str) -> int:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise UnsupportedSlide(path, "is no ordinary file (a pipe, socket or device)")
    return found.st_size


def _listed(folder: str, name: str) -> list[SlidePart]:
    """The files in a folder and those below it, as parts whose names begin with `name`."""
    parts = []
    waiting = [(folder, name)]
    while waiting:
        place, prefix = waiting.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                inner = f"{prefix}/{entry.name}"
                if entry.is_file():
                    parts.append(SlidePart(inner, entry.stat().st_size))
                elif entry.is_dir() and entry.is_symlink():
                    raise UnsupportedSlide(folder, f"{inner} is a link to a folder")
                elif entry.is_dir():
                    waiting.append((entry.path, inner))
                if len(parts) > MAX_PARTS:
                    raise UnsupportedSlide(folder, f"consists of more than {MAX_PARTS:,} files")
    return sorted(parts)


def _existing(folder: str, names: Iterator[str]) -> Iterator[SlidePart]:
    for name in names:
        place = os.path.join(folder, name)
        if os.path.isfile(place):
            yield SlidePart(name, os.path.getsize(place))


def _named(path: str, text: str) -> Iterator[str]:
    """The files that a .vms or .vmu names, each once."""
    names: dict[str, None] = {}
    for line in text.splitlines():
        key, _, name = line.partition("=")
        if NAMES_A_FILE.fullmatch(key.strip()) and (name := name.strip()):
            # a backslash begins an escape in such files, and parts folders where they were written
            if name.startswith("/") or {"", ".", ".."} & set(name.split("/")) or "\\" in name:
                raise UnsupportedSlide(path, f"names a file out of its folder: {name!r}")
            names[name] = None
    yield from names


def _is_dicom(file: BinaryIO) -> bool:
    return file.read(132)[128:] == b"DICM"


def _rest_of_series(folder: str, name: str, series: bytes) -> Iterator[str]:
    """The other DICOM files of a folder; without those that certainly are of another series."""
    with os.scandir(folder or ".") as entries:
        others = sorted(e.name for e in entries if e.name != name and e.is_file())
    for other in others:
        with open(os.path.join(folder, other), "rb") as file:
            if _is_dicom(file) and (not series or _series(file) in (series, b"")):
                yield other


def _series(file: BinaryIO) -> bytes:
    """The Series Instance UID after a DICOM header; b"" where it is not found.

    Elements are skipped in the order of the file (explicit, little-endian), with a count of how
    deep within sequences they lie: a sequence may hold the same element of another series.
    """
    depth = 0
    for _ in range(MAX_ELEMENTS):
        head = file.read(8)
        if len(head) < 8:
            break
        tag, kind = struct.unpack("<2H", head[:4]), head[4:6]
        if tag[0] == 0xFFFE:  # an item, or the end of one or of a sequence: these have no kind
            length = struct.unpack("<I", head[4:])[0]
            if tag[1] != 0xE000:
                depth -= 1
        elif kind in LONG:
            tail = file.read(4)
            length = struct.unpack("<I", tail)[0] if len(tail) == 4 else 0
        elif kind.isalpha() and kind.isupper():
            length = struct.unpack("<H", head[6:])[0]
        else:
            break
        if tag == SERIES and depth == 0:
            return file.read(min(length, 64)).rstrip(b"\0 ")
        if depth < 0 or (depth == 0 and SERIES < tag < (0xFFFE, 0)):
            break
        if length == OPEN_ENDED:
            depth += 1
        else:
            file.seek(length, os.SEEK_CUR)
    return b""
