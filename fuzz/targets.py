"""What is fuzzed: each target takes bytes and raises nothing but what it may.

A parser is handed hostile bytes as a file, and what it returns is used as the engine uses it. Only
the errors it documents are caught; whatever else comes out is a finding.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from coverslip.engine.clinical import ClinicalTable
from coverslip.engine.config import RunConfig
from coverslip.errors import (
    InvalidConfig,
    InvalidGeoJSON,
    SlideError,
    StoreError,
)
from coverslip.export.geojson_reader import Limits, read_geojson
from coverslip.export.hdf5_features import read_features_h5
from coverslip.heads.recipe import read_recipe
from coverslip.tiling.store import SlideStore
from coverslip.wsi import ome_zarr, tiff
from coverslip.wsi.codecs import Jpeg2000Codec, JpegCodec, jpeg2000_levels
from coverslip.wsi.icc import IccSlide
from coverslip.wsi.image import ImageSlide
from coverslip.wsi.opening import open_slide, read_mpp_table
from coverslip.wsi.pixel_size import pixel_size_of
from coverslip.wsi.slide import Slide
from coverslip.wsi.tiff_tags import TiffTags
from coverslip.wsi.tile_comments import without_comments
from coverslip.wsi.xml_identifiers import xml_identifiers

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))
Target = Callable[[bytes], None]
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
SEPARATOR = b"\0--\0"
"""Between the files of one input."""


@contextmanager
def a_file(data: bytes) -> Iterator[str]:
    """A path at which the bytes lie, in memory where the system allows."""
    place = Path(MEMORY) / f"coverslip-fuzzed-{os.getpid()}"
    place.write_bytes(data)
    try:
        yield str(place)
    finally:
        place.unlink()


def _read(slide: Slide) -> None:
    for number, level in enumerate(slide.levels[:4]):
        if level.tile[0] * level.tile[1] > 2**22:
            continue
        for column in range(min(level.grid[0], 2)):
            with suppress(SlideError):
                tile = slide.decode_tile(number, column, 0)
                assert tile is None or tile.shape == (level.tile[1], level.tile[0], 3)


def tiff_file(data: bytes) -> None:
    """Directories, tile tables and tiles of a TIFF."""
    with a_file(data) as path, suppress(SlideError), open_slide(
        path, reader="tiff", cross_check=False, require_mpp=False
    ) as slide:  # fmt: skip
        _read(slide)


def tiff_tags(data: bytes) -> None:
    """Every tag of every directory, as the search for identifiers reads them."""
    with a_file(data) as path, suppress(SlideError), TiffTags(path) as tags:
        for directory in tags.directories[:16]:
            for code, tag in directory.tags.items():
                tags.text(tag, 4096)
                with suppress(SlideError):
                    tags.number(directory, code)


def jpeg_tile(data: bytes) -> None:
    """Tables spliced into a tile, its comments taken out."""
    tables, _, tile = data.partition(SEPARATOR)
    codec = JpegCodec((64, 64), tables, rgb=bool(tables))
    with suppress(ValueError):
        without_comments(codec.stream(tile))
        codec.decode(tile, 0, 0)
    with suppress(ValueError):
        codec.decode(tile, 0, 2)


def jpeg2000_tile(data: bytes) -> None:
    """The header of a JPEG 2000 tile, and the tile."""
    codec = Jpeg2000Codec((64, 64), jpeg2000_levels(data))
    for reduction in {0, codec.reductions}:
        # OpenJPEG's bindings raise kinds of their own, which the reader turns into UnreadableTile
        with suppress(Exception):
            codec.decode(data, 0, reduction)


class _Page:
    """A directory that says nothing but a description."""

    def __init__(self, description: str) -> None:
        self.description, self.tags = description, dict[str, object]()


def description(data: bytes) -> None:
    """ImageDescription: vendor, properties, pixel size, identifiers."""
    text = data.decode("utf-8", "replace")
    page = _Page(text)
    for vendor in (tiff._vendor(page), "philips", "perkinelmer", "aperio"):
        with suppress(SlideError):
            pixel_size_of("fuzzed", tiff._properties(vendor, page), True)
    list(xml_identifiers(text))


def geojson(data: bytes) -> None:
    """QuPath's GeoJSON, as text, gzip or zip."""
    limits = Limits(bytes=2**22, feature=2**20, objects=10_000, depth=16)
    with a_file(data) as path, suppress(InvalidGeoJSON):
        read_geojson(path, limits=limits)


def hdf5(data: bytes) -> None:
    """Features in HDF5."""
    with a_file(data) as path, suppress(StoreError):
        read_features_h5(path, (0.25, 0.25))


def store(data: bytes) -> None:
    """A store's zarr.json."""
    folder = _folder()
    (folder / "zarr.json").write_bytes(data)
    with suppress(StoreError):
        held = SlideStore.open(folder)
        for name in held.stages(""):
            held.record(name)


def zarr_image(data: bytes) -> None:
    """The metadata of an OME-Zarr image, of its level, and a chunk."""
    group, _, rest = data.partition(SEPARATOR)
    level, _, chunk = rest.partition(SEPARATOR)
    folder = _folder()
    (folder / "0/c/0/0").mkdir(parents=True)
    (folder / "zarr.json").write_bytes(group)
    (folder / "0/zarr.json").write_bytes(level)
    (folder / "0/c/0/0/0").write_bytes(chunk)
    with suppress(SlideError), ome_zarr.open(folder) as slide:
        _read(slide)


def icc(data: bytes) -> None:
    """An ICC profile."""
    slide = object.__new__(ImageSlide)
    slide.path = slide.name = "fuzzed"
    slide.levels, slide.bounds, slide.pixel_size = (), None, None  # type: ignore[assignment]
    slide.properties, slide.icc_profile = {}, data
    with suppress(SlideError):
        IccSlide(slide)


def recipe(data: bytes) -> None:
    """The record in a head's file."""
    with a_file(data) as path, suppress(InvalidConfig):
        read_recipe(Path(path))


def clinical_table(data: bytes) -> None:
    """A table of patients: CSV, TSV or Parquet."""
    with a_file(data) as path, suppress(InvalidConfig):
        ClinicalTable.read(path)


def mpp_table(data: bytes) -> None:
    """A table of pixel sizes."""
    with a_file(data) as path, suppress(InvalidConfig):
        read_mpp_table(path)


def settings(data: bytes) -> None:
    """Settings in TOML."""
    with a_file(data) as path, suppress(InvalidConfig):
        RunConfig.from_toml(path)


def _folder() -> Path:
    """The same empty folder each time."""
    place = Path(MEMORY) / f"coverslip-fuzz-{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place


def seeds(name: str) -> Iterator[bytes]:
    """Where fuzzing begins: sound inputs, and for TIFFs the small files of the hostile corpus."""
    from hostile_case import long
    from hostile_case import tiff as tiff_bytes

    small = _small_image()
    if name in ("tiff_file", "tiff_tags"):
        yield from _corpus(".tif")
        sides = {256: long(20), 257: long(18), 322: long(16), 323: long(16)}
        yield tiff_bytes(sides, tiles=[zlib.compress(bytes(768))] * 4)
        yield tiff_bytes(sides, tiles=[zlib.compress(bytes(768))] * 4, big=True)
    elif name == "jpeg_tile":
        import simplejpeg

        tile = simplejpeg.encode_jpeg(small, 80)
        yield SEPARATOR + tile
        yield tile[:160] + b"\xff\xd9" + SEPARATOR + b"\xff\xd8" + tile[160:]
    elif name == "jpeg2000_tile":
        import imagecodecs

        yield imagecodecs.jpeg2k_encode(small, codecformat="j2k", level=30)
    elif name == "description":
        yield b"Aperio Image Library v10\n46000x32914|AppMag = 20|MPP = 0.4990|Date = 1/2/09"
        yield b'<OME><Image><Pixels PhysicalSizeX="0.25" PhysicalSizeY="0.25"/></Image></OME>'
        yield b'<DataObject ObjectType="x"><Attribute Name="DICOM_PIXEL_SPACING">"0.0002" "0.0002"'
        yield b"<PerkinElmer-QPI-ImageDescription><Objective>20x</Objective>"
    elif name == "geojson":
        ring = b"[[[0,0],[9,0],[9,9],[0,0]]]"
        yield b'{"type":"Feature","geometry":{"type":"Polygon","coordinates":' + ring + b"}}"
        feature = (
            b'{"type":"Feature","id":"PathCellObject","geometry":{"type":"MultiPolygon",'
            b'"coordinates":[' + ring + b']},"properties":{"objectType":"cell","classification":'
            b'{"name":"Tumor","color":[1,2,3]},"measurements":{"Area":1.5}}}'
        )
        yield b'{"type":"FeatureCollection","features":[' + feature + b"]}"
    elif name == "hdf5":
        yield _hdf5_file()
    elif name == "store":
        yield (
            b'{"zarr_format":3,"node_type":"group","attributes":{"coverslip":{"schema":1,"slide":'
            b'{"name":"x"},"stages":{"tissue":{"hash":"a","parameters":{},"needs":{},'
            b'"software":"y"}}}}}'
        )
    elif name == "zarr_image":
        yield from _zarr_images()
    elif name == "icc":
        from PIL import ImageCms

        yield ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    elif name == "recipe":
        head = (
            b'{"__metadata__":{"coverslip":"{\\"name\\":\\"x\\",\\"task\\":\\"nuclei\\",'
            b'\\"architecture\\":\\"y\\",\\"classes\\":[\\"a\\"],\\"mpp\\":0.5}"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        )
        yield struct.pack("<Q", len(head)) + head + bytes(4)
    elif name == "clinical_table":
        yield 'slide,patient,grade\na.svs,1,G2\n"b",2,"x\n;é"\n'.encode()
        yield b"\xef\xbb\xbfslide;patient\r\na;1\r\n"
    elif name == "mpp_table":
        yield b"slide,mpp\na.svs,0.25\n"
        yield b"slide,mpp_x,mpp_y\na,0.25,0.26\n"
    else:
        yield b'mpp = 0.5\ntile = 256\nencoder = ["a", "b"]\nstain = "macenko"\nthreads = 2\n'


def _small_image() -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    return np.ascontiguousarray(np.stack([x * 4, y * 4, x ^ y], axis=-1).astype(np.uint8))


def _corpus(suffix: str, most: int = 2**16) -> Iterator[bytes]:
    import hostile_tiffs

    with tempfile.TemporaryDirectory() as folder:
        for case in hostile_tiffs.CASES:
            path = Path(folder) / case.name
            case.make(path)
            if case.name.endswith(suffix) and path.stat().st_size <= most:
                yield path.read_bytes()


def _zarr_images() -> Iterator[bytes]:
    import hostile_zarrs

    with tempfile.TemporaryDirectory() as name:
        for case in hostile_zarrs.CASES:
            folder = Path(name) / case.name
            case.make(folder)
            chunk = folder / "0/c/0/0/0"
            files = (folder / "zarr.json", folder / "0/zarr.json")
            if all(file.is_file() and file.stat().st_size < 2**14 for file in files):
                content = chunk.read_bytes()[:2000] if chunk.is_file() else b""
                yield SEPARATOR.join([*(file.read_bytes() for file in files), content])


def _hdf5_file() -> bytes:
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("features", data=np.zeros((4, 3), np.float32), chunks=(2, 3))
            held = file.create_dataset("coords", data=np.zeros((4, 2), np.int64))
            held.attrs["patch_size_level0"] = 512
        return path.read_bytes()


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        *(tiff_file, tiff_tags, jpeg_tile, jpeg2000_tile, description, geojson, hdf5, store),
        *(zarr_image, icc, recipe, clinical_table, mpp_table, settings),
    )
}
