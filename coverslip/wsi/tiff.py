"""Slides of the TIFF family, read by their compressed tiles.

Aperio SVS, generic tiled TIFF and BigTIFF, cloud-optimised TIFF, OME-TIFF, Philips TIFF,
PerkinElmer QPTIFF, and striped TIFFs. tifffile reads the directories; tiles are fetched by offset
with one `pread` each and decoded at the smallest scale that serves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.errors import BrokenSlide, NotRgb, UnreadableTile, UnsupportedSlide
from coverslip.wsi.codecs import Codec, Jpeg2000Codec, JpegCodec, SegmentCodec, jpeg2000_levels
from coverslip.wsi.naming import slide_name
from coverslip.wsi.slide import RGB, Box, Level, Slide
from coverslip.wsi.tiff_directories import check_directories, is_tiff
from coverslip.wsi.tile_comments import without_comments

JPEG, JPEG2000 = {7}, {33003, 33005, 33004, 34712}
CIELAB = {8, 9, 10}
MAX_SIDE = 2**24
MAX_TILES = 2**26
MAX_TILE_AREA = 2**28
MAX_TILE_BYTES = 2**29
STRIP_ROWS = 256
DELEGATED = ("hamamatsu", "trestle", "leica", "ventana")
"""Vendors whose TIFFs need more than their tiles to be placed right; OpenSlide knows how."""


def can_read(path: str | PathLike[str]) -> bool:
    """Whether the file is a TIFF at all; `open` decides on the rest."""
    return is_tiff(fspath(path))


def open(path: str | PathLike[str]) -> TiffSlide:
    """Open a TIFF-family slide.

    Raises BrokenSlide for damaged or absurd directories, UnsupportedSlide for pixels this reader
    does not turn into RGB (another reader may).
    """
    return TiffSlide(fspath(path))


@dataclass(frozen=True, slots=True)
class _TileTable:
    """Where one level's native tiles lie, and what decodes them."""

    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    codec: Codec


class TiffSlide(Slide):
    """See `Slide`. `compressed_tile` hands over JPEG tiles as they are.

    level_directories   where in the file the directory of each level lies
    """

    reader = "tiff"

    def __init__(self, path: str) -> None:
        from tifffile import TiffFile

        self.path, self.name = path, slide_name(path)
        check_directories(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._length = os.fstat(self._fd).st_size
            with TiffFile(path) as file:
                pages = [_page(path, file, i) for i in range(len(file.pages))]
                self.vendor = _vendor(pages[0])
                if self.vendor in DELEGATED:
                    raise UnsupportedSlide(path, f"{self.vendor} TIFF is read through OpenSlide")
                pyramid = _pyramid(self.vendor, pages)
                self.level_directories = tuple(int(page.offset) for page in pyramid)
                self.properties = _properties(self.vendor, pages[0])
                self.icc_profile = _icc_profile(pages[0])
                self._pages = _associated(self.vendor, pages, pyramid)
                self.associated = tuple(self._pages)
                built = [
                    self._level(page, number, pyramid[0]) for number, page in enumerate(pyramid)
                ]
        except (UnsupportedSlide, BrokenSlide):
            self.close()
            raise
        except Exception as error:  # tifffile raises many kinds over damaged tags
            self.close()
            raise BrokenSlide(
                path, f"its TIFF tags cannot be read ({type(error).__name__}: {error})"
            ) from error
        self.levels = tuple(level for level, _ in built)
        self._tables = [table for _, table in built]
        self.bounds = Box(0, 0, *self.levels[0].size)
        self.pixel_size = None

    def _level(self, page: Any, number: int, base: Any) -> tuple[Level, _TileTable]:
        size = (int(page.imagewidth), int(page.imagelength))
        _check_size(self.path, size)
        tile = (int(page.tilewidth), int(page.tilelength)) if page.is_tiled else _strip(page)
        if min(tile) < 1 or tile[0] * tile[1] > MAX_TILE_AREA:
            raise UnsupportedSlide(self.path, f"its native tiles measure {tile[0]} x {tile[1]} px")
        columns, rows = -(-size[0] // tile[0]), -(-size[1] // tile[1])
        offsets = np.asarray(page.dataoffsets, np.int64)
        counts = np.asarray(page.databytecounts, np.int64)
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        wanted = columns * rows * planes
        if columns * rows > MAX_TILES or len(offsets) < wanted or len(counts) < wanted:
            raise BrokenSlide(
                self.path,
                f"level {number} needs {wanted:,} tiles, its directory lists {len(offsets):,}",
            )
        table = _TileTable(offsets, counts, self._codec(page, tile, offsets, counts))
        downsample = _downsample(size, (int(base.imagewidth), int(base.imagelength)), self.vendor)
        return Level(size, downsample, tile, table.codec.reductions), table

    def _codec(
        self,
        page: Any,
        tile: tuple[int, int],
        offsets: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
    ) -> Codec:
        compression, photometric = int(page.compression), int(page.photometric)
        convert = _conversion(self.path, page)
        if page.planarconfig == 2:
            raise UnsupportedSlide(self.path, "its colour planes are stored apart")
        if compression in JPEG and page.bitspersample == 8 and photometric in (1, 2, 6):
            whole = page.is_tiled or tile[1] == page.imagelength
            if whole or page.imagelength % tile[1] == 0:
                return JpegCodec(tile, page.jpegtables or b"", rgb=photometric == 2)
        if compression in JPEG2000 and page.samplesperpixel == 3:
            first = int(np.argmax(counts > 0)) if np.any(counts > 0) else 0
            sample = os.pread(self._fd, min(int(counts[first]), 8192), int(offsets[first]))
            return Jpeg2000Codec(tile, jpeg2000_levels(sample), ycc=compression == 33003)
        from tifffile import COMPRESSION

        try:
            name = COMPRESSION(compression).name.lower()
        except ValueError:
            raise UnsupportedSlide(self.path, f"unknown TIFF compression {compression}") from None
        return SegmentCodec(tile, page.decode, convert, name)

    def decode_tile(self, level: int, column: int, row: int, reduction: int = 0) -> RGB | None:
        table = self._tables[level]
        segment = row * self.levels[level].grid[0] + column
        try:
            data = self._bytes(table, segment)
            return None if data is None else table.codec.decode(data, segment, reduction)
        except Exception as error:  # each codec has exceptions of its own
            problem = str(error) or type(error).__name__
            raise UnreadableTile(self.path, level, column, row, problem) from error

    def decode_tile_into(
        self, out: RGB, level: int, column: int, row: int, reduction: int = 0
    ) -> bool:
        table = self._tables[level]
        if not isinstance(table.codec, JpegCodec):
            return super().decode_tile_into(out, level, column, row, reduction)
        try:
            data = self._bytes(table, row * self.levels[level].grid[0] + column)
            if data is not None:
                table.codec.decode_into(out, data, reduction)
        except Exception as error:  # each codec has exceptions of its own
            problem = str(error) or type(error).__name__
            raise UnreadableTile(self.path, level, column, row, problem) from error
        return data is not None

    def compressed_tile(self, level: int, column: int, row: int) -> bytes | None:
        """A JPEG tile as a complete stream, its coded pixels untouched, without comments and Exif,
        which may speak of a patient; None for background.

        Raises UnreadableTile; TypeError where the level is not JPEG (see `codec`).
        """
        table = self._tables[level]
        if not isinstance(table.codec, JpegCodec):
            raise TypeError(f"level {level} is {table.codec.name}, not jpeg")
        try:
            data = self._bytes(table, row * self.levels[level].grid[0] + column)
            return None if data is None else without_comments(table.codec.stream(data))
        except ValueError as error:
            raise UnreadableTile(self.path, level, column, row, str(error)) from error

    def codec(self, level: int) -> str:
        """How the level's tiles are compressed: "jpeg", "jpeg2000", "adobe_deflate", ..."""
        return self._tables[level].codec.name

    def _bytes(self, table: _TileTable, segment: int) -> bytes | None:
        offset, count = int(table.offsets[segment]), int(table.counts[segment])
        if count == 0 or offset == 0:
            return None
        if count < 0 or count > MAX_TILE_BYTES or offset < 0 or offset + count > self._length:
            raise ValueError(f"lies at bytes {offset:,} to {offset + count:,} of {self._length:,}")
        data = os.pread(self._fd, count, offset)
        if len(data) != count:
            raise ValueError(f"only {len(data):,} of its {count:,} bytes could be read")
        return data

    def associated_image(self, name: str) -> RGB:
        from tifffile import TiffFile

        number = self._pages[name]
        with TiffFile(self.path) as file:
            page = _page(self.path, file, number)
            _check_size(self.path, (page.imagewidth, page.imagelength))
            return _conversion(self.path, page)(np.asarray(page.asarray()))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _page(path: str, file: Any, number: int) -> Any:
    page = file.pages[number]
    if not hasattr(page, "tags"):
        raise BrokenSlide(path, f"TIFF directory {number} cannot be read")
    return page


def _check_size(path: str, size: tuple[int, int]) -> None:
    if min(size) < 1 or max(size) > MAX_SIDE:
        raise BrokenSlide(path, f"claims an absurd size of {size[0]:,} x {size[1]:,} px")


def _vendor(page: Any) -> str:
    description = page.description or ""
    software = str(page.tags["Software"].value) if "Software" in page.tags else ""
    if description.startswith("Aperio"):
        return "aperio"
    if software.startswith("Philips") or "<DataObject ObjectType=" in description[:400]:
        return "philips"
    if "<PerkinElmer-QPI-ImageDescription" in description[:400]:
        return "perkinelmer"
    if "<OME " in description[:2000] or "<ome:OME" in description[:2000]:
        return "ome"
    if 65420 in page.tags or 65421 in page.tags:
        return "hamamatsu"
    if "<scn " in description[:2000]:
        return "leica"
    if b"<iScan" in bytes(page.tags[700].value[:4000] if 700 in page.tags else b""):
        return "ventana"
    if software.startswith("MedScan"):
        return "trestle"
    return "generic-tiff"


def _pyramid(vendor: str, pages: Sequence[Any]) -> list[Any]:
    """The pages that are resolutions of the slide, finest first."""
    base = pages[0]
    if vendor == "perkinelmer":
        levels = [p for p in pages if _qptiff_type(p) in ("FullResolution", "ReducedResolution")]
        return levels or [base]
    below = list(base.pages) if vendor == "ome" and base.subifds else list(pages[1:])
    levels = [base]
    for page in below:
        tiled = page.is_tiled or (not base.is_tiled and page.subfiletype & 1)
        if tiled and _is_reduction(page, levels[-1], base):
            levels.append(page)
    return levels


def _is_reduction(page: Any, finer: Any, base: Any) -> bool:
    """Smaller than the level above it, of the same shape (within padding) and kind of pixel."""
    if page.imagewidth >= finer.imagewidth or page.imagelength >= finer.imagelength:
        return False
    across, down = base.imagewidth / page.imagewidth, base.imagelength / page.imagelength
    # a level may be padded to whole tiles (Philips) or be rounded by a pixel
    slack = max(page.tilewidth / page.imagewidth, page.tilelength / page.imagelength, 0.02)
    alike = abs(across / down - 1) <= min(slack, 0.5)
    return bool(alike and page.samplesperpixel == base.samplesperpixel)


def _qptiff_type(page: Any) -> str:
    found = re.search(r"<ImageType>(\w+)</ImageType>", page.description or "")
    return found[1] if found else ""


def _associated(vendor: str, pages: Sequence[Any], pyramid: Sequence[Any]) -> Mapping[str, int]:
    """Name -> page number of what is not the slide itself."""
    levels = {page.offset for page in pyramid}
    found: dict[str, int] = {}
    for number, page in enumerate(pages):
        if page.offset in levels or page.is_tiled:
            continue
        words = (page.description or "").lower()[:4096]
        if vendor == "perkinelmer":
            name = {"Label": "label", "Overview": "macro", "Thumbnail": "thumbnail"}.get(
                _qptiff_type(page), ""
            )
        elif "label" in words or (vendor == "aperio" and page.subfiletype == 1):
            name = "label"
        elif "macro" in words or (vendor == "aperio" and page.subfiletype == 9):
            name = "macro"
        else:
            name = "thumbnail"
        if name and name not in found:
            found[name] = number
    return found


def _downsample(size: tuple[int, int], base: tuple[int, int], vendor: str) -> tuple[float, float]:
    """(x, y) level-0 px per px: the whole number both sides agree on, else the sides' own ratios.

    20,014 x 15,177 px over 5,003 x 3,794 is a level of 4, its last pixels cut off, not 4.0003.
    """
    across, down = base[0] / size[0], base[1] / size[1]
    whole = round((across + down) / 2)
    if vendor == "philips":  # levels are padded to whole tiles, so sizes say little
        whole = 2 ** round(np.log2(max(min(across, down), 1)))
        return float(whole), float(whole)
    if whole and all(abs(b / whole - s) < 1 for b, s in zip(base, size, strict=True)):
        return float(whole), float(whole)
    return across, down


def _strip(page: Any) -> tuple[int, int]:
    return int(page.imagewidth), min(int(page.rowsperstrip), int(page.imagelength))


def _conversion(path: str, page: Any) -> Callable[[npt.NDArray[Any]], RGB]:
    """From the page's samples to RGB. Raises UnsupportedSlide, naming what the pixels are, and
    NotRgb where OpenSlide would show one channel of many as grey, or CIE L*a*b* discoloured."""
    samples, bits = int(page.samplesperpixel), page.bitspersample
    if int(page.photometric) in (0, 1) and samples > 4:
        raise NotRgb(path, f"its pixels are {samples} channels, not RGB", "convert it first")
    if int(page.photometric) in CIELAB:
        raise NotRgb(path, "its pixels are CIE L*a*b*, not RGB", "convert it first")
    if int(page.photometric) == 3 and page.colormap is None:
        raise NotRgb(path, "its pixels are numbers of a palette that is not there")
    if page.dtype != np.uint8 or bits != 8:
        raise UnsupportedSlide(
            path,
            f"its pixels are {bits}-bit {page.dtype}; brightfield slides are 8-bit RGB",
            "convert it to 8-bit RGB first",
        )
    photometric = int(page.photometric)
    if photometric == 3:
        colours = (np.asarray(page.colormap) >> 8).astype(np.uint8).T  # (256, 3)
        return lambda image: np.asarray(colours[_one_channel(image)])
    if samples == 1 and photometric in (0, 1):
        return lambda image: _grey(_one_channel(image), inverted=photometric == 0)
    if samples in (3, 4) and photometric in (2, 6):
        return lambda image: np.ascontiguousarray(image[..., :3])
    kind = {5: "CMYK"}.get(photometric, f"photometric {photometric}")
    raise UnsupportedSlide(path, f"its pixels are {kind} with {samples} samples, not RGB")


def _one_channel(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return image[..., 0] if image.ndim == 3 else image


def _grey(image: npt.NDArray[np.uint8], inverted: bool) -> RGB:
    grey = 255 - image if inverted else image
    return np.repeat(grey[..., None], 3, axis=-1)


def _icc_profile(page: Any) -> bytes | None:
    return bytes(page.tags[34675].value) if 34675 in page.tags else None


def _properties(vendor: str, page: Any) -> dict[str, str]:
    """The file's metadata under OpenSlide's names, as far as it has some."""
    description = page.description or ""
    found = {"openslide.vendor": vendor}
    if description:
        found["tiff.ImageDescription"] = description
    for tag in ("Make", "Model", "Software", "DateTime"):
        if tag in page.tags:
            found[f"tiff.{tag}"] = str(page.tags[tag].value)
    for tag in ("XResolution", "YResolution"):
        if tag in page.tags:
            top, bottom = page.tags[tag].value
            if bottom:
                found[f"tiff.{tag}"] = repr(top / bottom)
    if "ResolutionUnit" in page.tags:
        unit = int(page.tags["ResolutionUnit"].value)
        found["tiff.ResolutionUnit"] = {1: "none", 2: "inch", 3: "centimeter"}.get(unit, str(unit))
    if vendor == "aperio":
        pairs = (part.partition("=") for part in description.split("|")[1:])
        found |= {f"aperio.{k.strip()}": v.strip() for k, sign, v in pairs if sign}
    if vendor == "philips":
        spacing = re.search(
            r'Name="DICOM_PIXEL_SPACING"[^>]{0,400}>\s*&?(?:quot;|")?([\d.eE+-]+)"?\s+"?([\d.eE+-]+)',
            description.replace("&quot;", '"'),
        )
        if spacing:
            found["philips.DICOM_PIXEL_SPACING"] = f'"{spacing[1]}" "{spacing[2]}"'
    if vendor == "perkinelmer":
        power = re.search(r"<Objective>([\d.]+)x?</Objective>", description)
        if power:
            found["openslide.objective-power"] = power[1]
    if "aperio.AppMag" in found:
        found["openslide.objective-power"] = found["aperio.AppMag"]
    return found
