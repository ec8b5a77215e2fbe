"""Broken and odd TIFFs."""

from __future__ import annotations

import struct
import zlib
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import simplejpeg
from hostile_case import (
    IMAGE,
    Case,
    Corpus,
    Value,
    deflate_bomb,
    directory,
    header,
    long,
    long8,
    rational,
    short,
    text,
    tiff,
    tiles_of,
)

from coverslip.wsi.slide import RGB

CASES = Corpus()
case = CASES.case
BOMB = 2**32
JPEG_TILES = [
    simplejpeg.encode_jpeg(np.frombuffer(t, np.uint8).reshape(256, 256, 3), 90)
    for t in tiles_of(IMAGE)
]
AS_JPEG = {259: short(7), 262: short(6)}


# --- cut off, or pointing nowhere ---


@case("header-alone.tif", "BrokenSlide", "no TIFF directory")
def header_alone(path: Path) -> None:
    """Eight bytes: a header that points to no directory."""
    path.write_bytes(header(0))


@case("four-bytes.tif", "UnsupportedSlide", "no reader")
def four_bytes(path: Path) -> None:
    """Half a header."""
    path.write_bytes(b"II*\0")


@case("half-bigtiff-header.tif", "UnsupportedSlide", "no reader")
def half_bigtiff_header(path: Path) -> None:
    """Half a BigTIFF header."""
    path.write_bytes(header(16, big=True)[:9])


@case("cut-in-directory.tif", "BrokenSlide", "truncated")
def cut_in_directory(path: Path) -> None:
    """The file ends within its directory."""
    path.write_bytes(tiff()[:-200])


@case("cut-in-tags.tif", "BrokenSlide", "")
def cut_in_tags(path: Path) -> None:
    """The file ends within the values of its tags."""
    path.write_bytes(tiff()[:-5])


@case("cut-in-pixels.tif", "UnreadableTile", "lies at bytes")
def cut_in_pixels(path: Path) -> RGB:
    """The directory comes first; the file ends within the second tile."""
    tiles = [zlib.compress(t) for t in tiles_of(IMAGE)]
    tags = {
        **{256: long(300), 257: long(200), 258: short(8, 8, 8), 259: short(8), 262: short(2)},
        **{277: short(3), 282: rational(40_000, 1), 283: rational(40_000, 1), 284: short(1)},
        **{296: short(3), 322: long(256), 323: long(256)},
        **{324: long(4096, 4096 + len(tiles[0])), 325: long(*map(len, tiles))},
    }
    content = (header(8) + directory(tags, 8)).ljust(4096, b"\0") + b"".join(tiles)
    path.write_bytes(content[:-100])
    return IMAGE


@case("first-directory-beyond.tif", "BrokenSlide", "truncated")
def first_directory_beyond(path: Path) -> None:
    """The header points to a directory beyond the file."""
    path.write_bytes(header(2**31) + bytes(1000))


@case("directory-in-header.tif", "BrokenSlide", "")
def directory_in_header(path: Path) -> None:
    """The header points into itself."""
    path.write_bytes(header(1) + bytes(100_000))


@case("bigtiff-directory-at-2-63.tif", "BrokenSlide", "truncated")
def bigtiff_directory_far(path: Path) -> None:
    """A BigTIFF whose first directory lies at byte 2^63 + 1."""
    path.write_bytes(header(2**63 + 1, big=True) + bytes(100))


@case("points-to-itself.tif", "BrokenSlide", "circle")
def points_to_itself(path: Path) -> None:
    """A directory whose successor is itself."""
    content = tiff()
    path.write_bytes(tiff(after=struct.unpack_from("<I", content, 4)[0]))


@case("two-in-a-circle.tif", "BrokenSlide", "circle")
def two_in_a_circle(path: Path) -> None:
    """Two directories that follow each other."""
    path.write_bytes(header(8) + directory({}, 8, 100).ljust(92, b"\0") + directory({}, 100, 8))


@case("100000-directories.tif", "BrokenSlide", "more than 4096")
def many_directories(path: Path) -> None:
    """A chain of 100,000 directories."""
    path.write_bytes(
        header(8) + b"".join(directory({}, 8 + 6 * i, 14 + 6 * i) for i in range(100_000))
    )


@case("100000-sub-directories.tif", "pixels")
def many_sub_directories(path: Path) -> RGB:
    """An OME-TIFF whose SubIFDs tag lists its own directory 100,000 times; not ours, but
    OpenSlide's."""
    changes = {270: text("<OME xmlns='x'></OME>"), 330: long(*[8] * 100_000)}
    first = struct.unpack_from("<I", tiff(changes), 4)[0]
    path.write_bytes(tiff({**changes, 330: long(*[first] * 100_000)}))
    return IMAGE


@case("65535-tags.tif", "BrokenSlide", "65535 tags")
def many_tags(path: Path) -> None:
    """A directory that claims 65,535 tags."""
    path.write_bytes(header(8) + b"\xff\xff" + bytes(900_000))


@case("bigtiff-2-64-tags.tif", "BrokenSlide", "tags")
def bigtiff_many_tags(path: Path) -> None:
    """A BigTIFF directory that claims 2^64 - 1 tags."""
    path.write_bytes(header(16, big=True) + b"\xff" * 8 + bytes(1000))


@case("sparse-tag-of-32-GiB.tif", "BrokenSlide", "claim 34,")
def sparse_tag(path: Path) -> None:
    """64 GiB of holes, in which TileOffsets claims 4 billion entries of 8 bytes."""
    content = tiff({324: Value(16, 2**32 - 1, struct.pack("<Q", 4096))}, big=True)
    path.write_bytes(content)
    with open(path, "r+b") as file:
        file.truncate(2**36)


@case("description-of-4-GiB.tif", "pixels")
def description_beyond(path: Path) -> RGB:
    """An ImageDescription that claims 4 GiB of a file of 200 KiB; not ours, but OpenSlide's."""
    path.write_bytes(tiff({270: Value(2, 2**32 - 1, b"Aperio  ")}))
    return IMAGE


# --- tile tables ---


@case("tiles-beyond.tif", "UnreadableTile", "lies at bytes")
def tiles_beyond(path: Path) -> None:
    """Every tile lies beyond the file."""
    path.write_bytes(tiff({324: long(2**31, 2**32 - 1)}))


@case("tiles-at-2-63.tif", "BrokenSlide", "")
def tiles_at_2_63(path: Path) -> None:
    """BigTIFF tile offsets that no signed number holds."""
    path.write_bytes(tiff({324: long8(2**63, 2**64 - 1)}, big=True))


@case("tiles-in-header.tif", "UnreadableTile", "")
def tiles_in_header(path: Path) -> None:
    """Every tile begins in the header."""
    path.write_bytes(tiff({324: long(1, 2)}))


@case("tiles-of-one-byte.tif", "UnreadableTile", "")
def tiles_of_one_byte(path: Path) -> None:
    """Every tile is one byte long."""
    path.write_bytes(tiff({325: long(1, 1)}))


@case("overlapping-tiles.tif", "pixels")
def overlapping_tiles(path: Path) -> RGB:
    """Both tiles are the same bytes of the file."""
    first = zlib.compress(tiles_of(IMAGE)[0])
    path.write_bytes(tiff({324: long(8, 8), 325: long(len(first), len(first))}))
    return np.concatenate([IMAGE[:, :256], IMAGE[:, :44]], axis=1)


@case("zero-length-tiles.tif", "pixels")
def zero_length_tiles(path: Path) -> RGB:
    """The second tile has no bytes: left out by the scanner, so white."""
    image = IMAGE.copy()
    image[:, 256:] = 255
    path.write_bytes(tiff({325: long(len(zlib.compress(tiles_of(IMAGE)[0])), 0)}))
    return image


@case("tiles-of-2-GiB.tif", "UnreadableTile", "lies at bytes")
def tiles_of_2_gib(path: Path) -> None:
    """Tiles that claim 2 GiB each of a sparse file of 64 GiB."""
    path.write_bytes(tiff({325: long(2**31, 2**31)}))
    with open(path, "r+b") as file:
        file.truncate(2**36)


@case("no-tile-offsets.tif", "BrokenSlide", "")
def no_tile_offsets(path: Path) -> None:
    """No TileOffsets."""
    path.write_bytes(tiff({324: None}))


@case("no-tile-lengths.tif", "BrokenSlide", "")
def no_tile_lengths(path: Path) -> None:
    """No TileByteCounts."""
    path.write_bytes(tiff({325: None}))


@case("one-tile-offset.tif", "BrokenSlide", "needs 2 tiles")
def one_tile_offset(path: Path) -> None:
    """One offset for two tiles."""
    path.write_bytes(tiff({324: long(8)}))


@case("text-for-tile-offsets.tif", "BrokenSlide", "")
def text_for_offsets(path: Path) -> None:
    """TileOffsets that are text."""
    path.write_bytes(tiff({324: text("not numbers at all")}))


# --- sizes ---


@case("no-width.tif", "BrokenSlide", "")
def no_width(path: Path) -> None:
    """No ImageWidth."""
    path.write_bytes(tiff({256: None}))


@case("zero-width.tif", "BrokenSlide", "")
def zero_width(path: Path) -> None:
    """No pixel wide."""
    path.write_bytes(tiff({256: long(0)}))


@case("4-billion-wide.tif", "BrokenSlide", "absurd size")
def absurd_width(path: Path) -> None:
    """4,294,967,295 px wide."""
    path.write_bytes(tiff({256: long(2**32 - 1)}))


@case("16-million-square.tif", "BrokenSlide", "tiles")
def absurd_area(path: Path) -> None:
    """16 million px a side with a table of two tiles."""
    path.write_bytes(tiff({256: long(2**24), 257: long(2**24)}))


@case("tiles-of-no-width.tif", "BrokenSlide", "")
def no_tile_width(path: Path) -> None:
    """TileWidth 0."""
    path.write_bytes(tiff({322: long(0)}))


@case("tiles-of-2-billion.tif", "BrokenSlide", "OpenSlide cannot open it")
def absurd_tile(path: Path) -> None:
    """Tiles of 2,147,483,648 px a side."""
    path.write_bytes(tiff({322: long(2**31), 323: long(2**31)}))


@case("2-billion-rows-per-strip.tif", "pixels")
def absurd_strip(path: Path) -> RGB:
    """One strip that claims 4,294,967,295 rows, as libtiff writes for "all of them"."""
    changes = {322: None, 323: None, 324: None, 325: None, 278: long(2**32 - 1)}
    data = zlib.compress(IMAGE.tobytes())
    path.write_bytes(tiff({**changes, 273: long(8), 279: long(len(data))}, tiles=[data]))
    return IMAGE


# --- kinds of pixel ---


def _samples(
    path: Path, image: np.ndarray, photometric: int, bits: int = 8, kind: int = 1, planar: int = 1
) -> None:
    """A TIFF of an image of so many samples; kind 1 is whole numbers, 3 floating point."""
    samples = image.shape[2]
    planes = [image] if planar == 1 else [image[..., [c]] for c in range(samples)]
    changes = {258: short(*[bits] * samples), 262: short(photometric), 277: short(samples)}
    more = {284: short(planar), 339: short(*[kind] * samples)}
    tiles = [zlib.compress(t) for plane in planes for t in tiles_of(plane)]
    path.write_bytes(tiff({**changes, **more}, tiles=tiles))


@case("16-bit.tif", "pixels")
def sixteen_bit(path: Path) -> RGB:
    """16 bits a sample; not ours, OpenSlide takes the upper eight."""
    _samples(path, IMAGE.astype(np.uint16) * 257, 2, bits=16)
    return IMAGE


@case("float.tif", "UnreadableTile", "32-bit")
def floating(path: Path) -> None:
    """Floating-point samples."""
    _samples(path, IMAGE.astype(np.float32), 2, bits=32, kind=3)


@case("one-bit.tif", "pixels")
def one_bit(path: Path) -> RGB:
    """One bit a pixel; not ours, but OpenSlide's."""
    bits = IMAGE[..., 0] & 1
    whole = np.pad(bits, ((0, 56), (0, 212)))
    tiles = [zlib.compress(np.packbits(whole[:, x : x + 256], axis=1).tobytes()) for x in (0, 256)]
    path.write_bytes(tiff({258: short(1), 262: short(1), 277: short(1)}, tiles=tiles))
    return np.repeat(bits[..., None] * np.uint8(255), 3, axis=2)


@case("cmyk.tif", "pixels")
def cmyk(path: Path) -> RGB:
    """CMYK without black; not ours, but OpenSlide's."""
    black = np.zeros((*IMAGE.shape[:2], 1), np.uint8)
    _samples(path, np.concatenate([255 - IMAGE, black], axis=2), 5)
    return IMAGE


@case("cielab.tif", "NotRgb", "L*a*b*")
def cielab(path: Path) -> None:
    """CIE L*a*b*, all of it white, which OpenSlide shows yellow."""
    _samples(path, np.broadcast_to(np.array([255, 0, 0], np.uint8), IMAGE.shape), 8)


@case("two-samples.tif", "UnreadableTile", "channels=2")
def two_samples(path: Path) -> None:
    """Two samples a pixel said to be RGB."""
    _samples(path, IMAGE[..., :2], 2)


@case("seven-samples.tif", "NotRgb", "7 channels")
def seven_samples(path: Path) -> None:
    """Seven fluorescence channels, of which OpenSlide shows one."""
    _samples(path, np.concatenate([IMAGE, IMAGE, IMAGE[..., :1]], axis=2), 1)


@case("planar.tif", "pixels")
def planar(path: Path) -> RGB:
    """Red, green and blue stored apart; not ours, but OpenSlide's."""
    _samples(path, IMAGE, 2, planar=2)
    return IMAGE


@case("palette.tif", "pixels")
def palette(path: Path) -> RGB:
    """A palette of 256 colours."""
    colours = (np.arange(3 * 256, dtype=np.uint32).reshape(3, 256) * 7919 % 256).astype(np.uint16)
    changes = {258: short(8), 262: short(3), 277: short(1), 320: short(*(colours.ravel() * 257))}
    index = np.ascontiguousarray(IMAGE[..., 0])
    path.write_bytes(tiff(changes, tiles=[zlib.compress(t) for t in tiles_of(index)]))
    return np.ascontiguousarray(colours.T[index].astype(np.uint8))


@case("short-palette.tif", "UnreadableTile", "")
def short_palette(path: Path) -> None:
    """A palette of two colours for pixels of 256."""
    colours = short(0, 65535, 0, 65535, 0, 65535)
    changes = {258: short(8), 262: short(3), 277: short(1), 320: colours}
    path.write_bytes(tiff(changes, tiles=[zlib.compress(t) for t in tiles_of(IMAGE[..., 0])]))


@case("no-palette.tif", "NotRgb", "palette")
def no_palette(path: Path) -> None:
    """Palette pixels and no palette."""
    _samples(path, IMAGE[..., :1], 3)


@case("min-is-white.tif", "pixels")
def min_is_white(path: Path) -> RGB:
    """Grey in which 0 is white."""
    grey = np.ascontiguousarray(IMAGE[..., 0])
    changes = {258: short(8), 262: short(0), 277: short(1)}
    path.write_bytes(tiff(changes, tiles=[zlib.compress(t) for t in tiles_of(grey)]))
    return np.repeat(255 - grey[..., None], 3, axis=2)


@case("rgba.tif", "pixels")
def rgba(path: Path) -> RGB:
    """A fourth sample, said to be alpha and zero throughout."""
    four = np.concatenate([IMAGE, np.zeros((200, 300, 1), np.uint8)], axis=2)
    changes = {258: short(8, 8, 8, 8), 277: short(4), 338: short(0)}
    path.write_bytes(tiff(changes, tiles=[zlib.compress(t) for t in tiles_of(four)]))
    return IMAGE


@case("big-endian-lie.tif", "BrokenSlide", "")
def big_endian_lie(path: Path) -> None:
    """Little-endian numbers in a file said to be big-endian."""
    path.write_bytes(b"MM\0*" + tiff()[4:])


# --- compression ---


@case("unknown-compression.tif", "BrokenSlide", "compression: 60001")
def unknown_compression(path: Path) -> None:
    """A compression nobody knows."""
    path.write_bytes(tiff({259: short(60001)}))


@case("noise-for-deflate.tif", "UnreadableTile", "")
def noise_for_deflate(path: Path) -> RGB:
    """The second of two deflated tiles is noise."""
    tiles = [zlib.compress(tiles_of(IMAGE)[0]), bytes(range(256)) * 8]
    path.write_bytes(tiff(tiles=tiles))
    return IMAGE


@case("short-tile.tif", "UnreadableTile", "")
def short_tile(path: Path) -> RGB:
    """The second tile inflates to half its pixels."""
    first, second = tiles_of(IMAGE)
    path.write_bytes(tiff(tiles=[zlib.compress(first), zlib.compress(second[: len(second) // 2])]))
    return IMAGE


@case("deflate-bomb.tif", "UnreadableTile", "")
def inflating_tile(path: Path) -> RGB:
    """The second tile, of 4 MiB, inflates to 4 GiB."""
    path.write_bytes(tiff(tiles=[zlib.compress(tiles_of(IMAGE)[0]), deflate_bomb(BOMB)]))
    return IMAGE


@case("jpeg-bomb.tif", "UnreadableTile", "the stream says 65500 x 65500")
def jpeg_bomb(path: Path) -> None:
    """JPEG tiles of 256 px whose streams claim 65,500 px a side."""
    path.write_bytes(tiff(AS_JPEG, tiles=[_claiming(t, 65500) for t in JPEG_TILES]))


@case("jpeg-tile-too-small.tif", "UnreadableTile", "the stream says 8 x 8")
def jpeg_small(path: Path) -> None:
    """JPEG tiles of 256 px whose streams claim 8 px a side."""
    path.write_bytes(tiff(AS_JPEG, tiles=[_claiming(t, 8) for t in JPEG_TILES]))


@case("jpeg-cut.tif", "UnreadableTile", "")
def jpeg_cut(path: Path) -> None:
    """JPEG tiles that end in their headers."""
    path.write_bytes(tiff(AS_JPEG, tiles=[t[:150] for t in JPEG_TILES]))


@case("jpeg-tables-noise.tif", "UnreadableTile", "")
def jpeg_tables_noise(path: Path) -> None:
    """JPEGTables of noise before sound JPEG tiles."""
    noise = b"\xff\xd8\xff\xdb\xff\xff" + bytes(range(256)) * 4
    path.write_bytes(tiff({**AS_JPEG, 347: Value(7, len(noise), noise)}, tiles=JPEG_TILES))


@case("jpeg-tables-empty.tif", "UnreadableTile", "")
def jpeg_tables_only(path: Path) -> None:
    """JPEG tiles without tables, and none in the directory."""
    bare = [b"\xff\xd8" + t[t.index(b"\xff\xc0") :] for t in JPEG_TILES]
    path.write_bytes(tiff(AS_JPEG, tiles=bare))


@case("jpeg2000-bomb.tif", "UnreadableTile", "")
def jpeg2000_bomb(path: Path) -> None:
    """JPEG 2000 tiles whose streams claim 60,000 px a side."""
    tiles = []
    for tile in tiles_of(IMAGE):
        pixels = np.frombuffer(tile, np.uint8).reshape(256, 256, 3)
        stream = bytearray(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=90))
        at = stream.index(b"\xff\x51") + 6
        struct.pack_into(">2I", stream, at, 60_000, 60_000)
        struct.pack_into(">2I", stream, at + 16, 60_000, 60_000)
        tiles.append(bytes(stream))
    path.write_bytes(tiff({259: short(33005)}, tiles=tiles))


def _claiming(stream: bytes, side: int) -> bytes:
    changed = bytearray(stream)
    struct.pack_into(">2H", changed, stream.index(b"\xff\xc0") + 5, side, side)
    return bytes(changed)


# --- pyramids ---


@case("level-larger-than-base.tif", "pixels")
def larger_level(path: Path) -> RGB:
    """A second directory twice as large as the first; it is no level."""
    _with_second(path, {256: long(600), 257: long(400), 324: long(*[8] * 6), 325: long(*[9] * 6)})
    return IMAGE


@case("level-of-another-shape.tif", "pixels")
def another_shape(path: Path) -> RGB:
    """A second directory of 10 x 190 px; it is no level."""
    _with_second(path, {256: long(10), 257: long(190), 324: long(8), 325: long(9)})
    return IMAGE


@case("level-without-tiles.tif", "BrokenSlide", "level 1 needs")
def level_without_tiles(path: Path) -> None:
    """A second level whose table is empty."""
    _with_second(path, {256: long(150), 257: long(100), 324: long(), 325: long()})


def _with_second(path: Path, changes: dict[int, Value]) -> None:
    """The sound TIFF with a changed directory after its own."""
    at = len(tiff())
    tags = {
        **{258: short(8, 8, 8), 259: short(8), 262: short(2), 277: short(3), 284: short(1)},
        **{322: long(256), 323: long(256), 254: long(1)},
        **changes,
    }
    path.write_bytes(tiff(after=at) + directory(tags, at))


# --- what the file says of itself ---


def described(description: str | bytes, resolution: bool = False) -> bytes:
    changes: dict[int, Value | None] = {270: text(description)}
    return tiff(changes if resolution else {**changes, 282: None, 283: None, 296: None})


OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    "<Image><Pixels {}/></Image></OME>"
)
SIZED = 'PhysicalSizeX="{0}" PhysicalSizeY="{0}"'
ENTITIES = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(12))


def _write_description(description: str | bytes, resolution: bool, path: Path) -> RGB:
    path.write_bytes(described(description, resolution))
    return IMAGE


for _name, _wrong, _description, _resolution, _expected, _words in (
    ("ome-entities.ome.tif", "OME-XML of a billion entities; the TIFF's own resolution counts",
     f'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY e0 "ha">{ENTITIES}]>'
     + OME.format(SIZED.format("&e12;")), True, "pixels", ""),
    ("ome-entities-alone.ome.tif", "OME-XML of a billion entities and no resolution",
     f'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY e0 "ha">{ENTITIES}]>'
     + OME.format(SIZED.format("0.25")), False, "MissingMpp", "--assume-mpp"),
    ("ome-file-entity.ome.tif", "OME-XML whose pixel size is an entity that names a file",
     '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY e SYSTEM "file:///etc/hostname">]>'
     + OME.format(SIZED.format("&e;")), False, "MissingMpp", "--assume-mpp"),
    ("ome-cut.ome.tif", "OME-XML that ends within an attribute",
     OME.format(SIZED.format("0.25"))[:110], False, "MissingMpp", "--assume-mpp"),
    ("ome-deep.ome.tif", "OME-XML nested 200,000 deep",
     OME.format(SIZED.format("0.25")).replace("<Image>", "<a>" * 200_000 + "<Image>")
     .replace("</Image>", "</Image>" + "</a>" * 200_000), False, "MissingMpp", ""),
    ("ome-negative.ome.tif", "OME-XML with a pixel size of -0.25",
     OME.format(SIZED.format("-0.25")), False, "ImplausibleMpp", "-0.25"),
    ("ome-infinite.ome.tif", "OME-XML with a pixel size of INF",
     OME.format(SIZED.format("INF")), False, "ImplausibleMpp", "inf"),
    ("ome-unknown-unit.ome.tif", "OME-XML in parsecs",
     OME.format(SIZED.format("0.25") + ' PhysicalSizeXUnit="pc" PhysicalSizeYUnit="pc"'), False,
     "MissingMpp", "--assume-mpp"),
    ("aperio-zero.svs", "MPP = 0", "Aperio x|MPP = 0", False, "ImplausibleMpp", "of 0"),
    ("aperio-negative.svs", "MPP = -1", "Aperio x|MPP = -1", False, "ImplausibleMpp", "of -1"),
    ("aperio-nan.svs", "MPP = nan", "Aperio x|MPP = nan", False, "ImplausibleMpp", "nan"),
    ("aperio-infinite.svs", "MPP = -inf", "Aperio x|MPP = -inf", False, "ImplausibleMpp", "inf"),
    ("aperio-overflow.svs", "MPP = 1e999", "Aperio x|MPP = 1e999", False, "ImplausibleMpp", "inf"),
    ("aperio-words.svs", "MPP = a quarter", "Aperio x|MPP = a quarter", False, "MissingMpp", ""),
    ("aperio-million-fields.svs", "a description of a million empty fields",
     "Aperio x|MPP = 0.25" + "|=" * 1_000_000, False, "pixels", ""),
    ("unicode.tif", "Japanese, emoji and a right-to-left override in the description",
     "肝臓 🔬 \u202egnp.exe µ\n\x1b[31m", True, "pixels", ""),
    ("latin-1.tif", "a description that is not UTF-8", "0.25 µm/px".encode("latin-1"), True,
     "pixels", ""),
    ("nul-in-description.tif", "NUL bytes and an absurd vendor in the description",
     b"Aperio\0\0|MPP = 9\0|MPP = 0.25", True, "pixels", ""),
):  # fmt: skip
    CASES.append(
        Case(_name, _wrong, partial(_write_description, _description, _resolution),
                   _expected, _words)
    )  # fmt: skip


@case("philips-regular-expression.tif", "MissingMpp", "")
def philips_expression(path: Path) -> RGB:
    """A Philips description that makes a careless search take hours."""
    spacing = 'Name="DICOM_PIXEL_SPACING"' * 200_000
    changes = {270: text(spacing), 305: text("Philips"), 282: None, 283: None, 296: None}
    path.write_bytes(tiff(changes))
    return IMAGE


@case("resolution-over-zero.tif", "MissingMpp", "")
def resolution_over_zero(path: Path) -> None:
    """40,000 / 0 pixels per centimetre."""
    path.write_bytes(tiff({282: rational(40_000, 0), 283: rational(0, 0)}))


@case("not-square.tif", "ImplausibleMpp", "far from square")
def not_square(path: Path) -> None:
    """Pixels of 0.25 x 2.5 µm."""
    path.write_bytes(tiff({283: rational(4_000, 1)}))


@case("resolution-is-text.tif", "MissingMpp", "")
def resolution_is_text(path: Path) -> None:
    """A resolution that is text."""
    path.write_bytes(tiff({282: text("dpi"), 296: text("inch")}))


@case("icc-noise.tif", "BrokenSlide", "ICC profile", icc=True)
def icc_noise(path: Path) -> None:
    """An ICC profile of noise, asked for."""
    path.write_bytes(tiff({34675: Value(7, 4096, bytes(range(256)) * 16)}))


def _write_changed(changes: dict[int, Value | None], path: Path) -> RGB:
    path.write_bytes(tiff(changes))
    return IMAGE


for _vendor, _changes, _expected, _words in (
    ("hamamatsu", {65420: long(1), 65421: long(1)}, "BrokenSlide", "OpenSlide cannot open it"),
    ("leica", {270: text("<scn xmlns='http://www.leica-microsystems.com/scn/2010/10/01'>&x;</scn>")},
     "pixels", ""),
    ("ventana", {700: Value(1, 40, b"<EncodeInfo><iScan>&x;</iScan>".ljust(40))}, "pixels", ""),
    ("trestle", {305: text("MedScan"), 270: text("OverlapsXY=99999999;Background Color=zz;")},
     "ImplausibleMpp", "40000"),
):  # fmt: skip
    CASES.append(
        Case(
            f"{_vendor}-in-name-only.tif",
            f"says it is {_vendor}'s, and is not",
            partial(_write_changed, _changes),
            _expected,
            _words,
        )
    )
