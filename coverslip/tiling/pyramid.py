"""The whole slide as an OME-NGFF 0.5 image in its store: sharded, levels as the slide has them.

image/            attributes.ome: multiscales (axes c, y, x; µm), omero (red, green, blue)
image/<level>     uint8 [3, h, w], fill value 255; chunks are the slide's native tiles

JPEG tiles of a JPEG slide become chunks as they are, byte for byte, under the codec
"coverslip.jpeg": nothing is decoded, nothing is lost, and the image is no larger than the slide.
NGFF keeps channels first, so the codec transposes on decoding. Other levels are kept without loss
(zstd), and so is everything in a portable image, which any Zarr v3 reader opens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from coverslip.errors import UnreadableTile
from coverslip.tiling.shards import ZSTD_LEVEL, array_metadata

if TYPE_CHECKING:
    from coverslip.tiling.stage_writer import StageWriter
    from coverslip.wsi.slide import RGB, Slide

OnBadTile = Literal["raise", "blank"]
SHARD_PX = 4096
"""Longest side of a shard: 256 tiles of 256 px, 48 MB decoded."""
CHUNK_PX = 256
"""Side of a chunk where native tiles are no good: strips, or whole images."""
USABLE_TILE = range(128, 1025)
COARSEST_PX = 2048
"""Levels are added by halving until one fits: a viewer loads the coarsest whole."""


@runtime_checkable
class HoldsJpeg(Protocol):
    """A slide that hands over its compressed tiles."""

    def codec(self, level: int) -> str:
        """ "jpeg" where `compressed_tile` gives JPEG streams."""
        ...

    def compressed_tile(self, level: int, column: int, row: int) -> bytes | None:
        """A complete stream; None for background. Raises UnreadableTile."""
        ...


def image_parameters(*, portable: bool = False, on_bad_tile: OnBadTile = "raise") -> dict[str, Any]:
    """What decides the stage `image`, for its hash."""
    return {
        "format": "OME-NGFF 0.5",
        "portable": portable,
        "on_bad_tile": on_bad_tile,
        "shard_px": SHARD_PX,
        "coarsest_px": COARSEST_PX,
    }


def write_image(
    slide: Slide,
    stage: StageWriter,
    *,
    portable: bool = False,
    on_bad_tile: OnBadTile = "raise",
    threads: int = 2,
    observer: Callable[[int, int], None] = lambda done, total: None,
) -> list[UnreadableTile]:
    """Complete `stage` (named "image") with all levels of the slide; resumes by shards.

    portable      decode every tile and keep it without loss: about ten times the size, readable
                  without this package
    on_bad_tile   "blank" leaves a tile that cannot be read white; those met are returned
    threads       decode threads; where tiles are carried over, one is enough
    observer      called with (shards written, all shards)

    A few shards are in memory at a time. Raises StoreError; UnreadableTile, after which the stage
    can be resumed.
    """
    writer = _ImageWriter(slide, stage, _planes(slide, portable), on_bad_tile)
    for plane in writer.planes:
        stage.lay_out(plane.name, plane.metadata())
    blocks = [(plane, place) for plane in writer.planes for place in plane.shards()]
    with ExitStack() as stack:
        run: Callable[..., Any] = map
        if threads > 1:
            run = stack.enter_context(ThreadPoolExecutor(threads, "image")).map
        for number in range(stage.done_blocks, len(blocks)):
            plane, place = blocks[number]
            chunks = list(run(writer.chunk_of(plane), plane.chunks_of(place)))
            stage.write_shards(number, {plane.shard_path(place): chunks})
            observer(number + 1, len(blocks))
    stage.finish({"ome": _ome(slide, writer.planes)})
    return list(writer.unreadable.values())


Place = tuple[int, int]
"""(row, column) of a shard or of a chunk in its level."""


@dataclass(frozen=True, slots=True)
class _Plane:
    """One level of the image.

    number       its place in the pyramid, and its name
    native       the slide's level it is, or None where it is halved from the plane before
    size         (width, height) px
    downsample   (x, y) level-0 px per px
    chunk        (width, height) px
    carried      chunks are the slide's JPEG tiles
    """

    number: int
    native: int | None
    size: tuple[int, int]
    downsample: tuple[float, float]
    chunk: tuple[int, int]
    carried: bool

    @property
    def name(self) -> str:
        return str(self.number)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of chunks."""
        return -(-self.size[1] // self.chunk[1]), -(-self.size[0] // self.chunk[0])

    @property
    def side(self) -> int:
        """Chunks along a side of a shard."""
        return max(1, min(SHARD_PX // max(self.chunk), max(self.grid)))

    def shards(self) -> Iterator[Place]:
        rows, columns = self.grid
        for row in range(-(-rows // self.side)):
            for column in range(-(-columns // self.side)):
                yield row, column

    def shard_path(self, place: Place) -> str:
        return f"{self.name}/c/0/{place[0]}/{place[1]}"

    def chunks_of(self, shard: Place) -> Iterator[Place]:
        """Places of a shard's chunks in the level, also beyond its edge."""
        for row in range(self.side):
            for column in range(self.side):
                yield shard[0] * self.side + row, shard[1] * self.side + column

    def holds(self, chunk: Place) -> bool:
        """Whether any of the chunk lies in the level; shards reach beyond its edge."""
        return chunk[0] < self.grid[0] and chunk[1] < self.grid[1]

    def metadata(self) -> dict[str, Any]:
        from zarr.codecs import ZstdCodec

        from coverslip.tiling.jpeg_codec import JpegChunks

        codec: dict[str, Any] = {"compressors": ZstdCodec(level=ZSTD_LEVEL["lossless"])}
        if self.carried:
            codec = {"serializer": JpegChunks(), "compressors": None}
        width, height = self.chunk
        return array_metadata(
            shape=(3, self.size[1], self.size[0]),
            dtype="uint8",
            chunks=(3, height, width),
            shards=(3, height * self.side, width * self.side),
            fill_value=255,
            dimension_names=("c", "y", "x"),
            **codec,
        )


def _planes(slide: Slide, portable: bool) -> list[_Plane]:
    planes = []
    for number, level in enumerate(slide.levels):
        usable = level.tile[0] in USABLE_TILE and level.tile[1] in USABLE_TILE
        carried = (
            usable
            and not portable
            and isinstance(slide, HoldsJpeg)
            and slide.codec(number) == "jpeg"
        )
        chunk = level.tile if usable else (CHUNK_PX, CHUNK_PX)
        planes.append(_Plane(number, number, level.size, level.downsample, chunk, carried))
    while max((last := planes[-1]).size) > COARSEST_PX:
        size = (-(-last.size[0] // 2), -(-last.size[1] // 2))
        downsample = (last.downsample[0] * 2, last.downsample[1] * 2)
        chunk = (CHUNK_PX, CHUNK_PX)
        planes.append(_Plane(len(planes), None, size, downsample, chunk, False))
    return planes


class _ImageWriter:
    """Makes the chunks of the planes. Safe to call from several threads."""

    def __init__(
        self,
        slide: Slide,
        stage: StageWriter,
        planes: Sequence[_Plane],
        on_bad_tile: OnBadTile,
    ) -> None:
        from numcodecs.zstd import Zstd

        self.slide, self.planes = slide, planes
        self.unreadable: dict[tuple[int, int, int], UnreadableTile] = {}
        self._stage, self._on_bad_tile = stage, on_bad_tile
        self._zstd = Zstd(level=ZSTD_LEVEL["lossless"])

    def chunk_of(self, plane: _Plane) -> Callable[[Place], bytes | None]:
        """The bytes of the chunk at a place of `plane`; None for background."""
        if plane.carried:
            return lambda place: self._carried(plane, place)
        if plane.native is None:
            import zarr

            from coverslip.tiling import jpeg_codec  # noqa: F401  (registers the codec)

            finer = zarr.open_array(self._stage.path / self.planes[plane.number - 1].name, mode="r")
            return lambda place: self._encoded(_halved(finer, plane, place))
        return lambda place: self._encoded(self._decoded(plane, place))

    def _carried(self, plane: _Plane, place: Place) -> bytes | None:
        from simplejpeg import decode_jpeg_header

        if plane.native is None or not plane.holds(place):
            return None
        row, column = place
        slide: Any = self.slide
        try:
            stream: bytes | None = slide.compressed_tile(plane.native, column, row)
            if stream is None:
                return None
            height, width, _, _ = decode_jpeg_header(stream)
            if (width, height) != plane.chunk:
                raise ValueError(f"the stream says {width} x {height} px")
        except UnreadableTile as error:
            self._note(error)
            return None
        except ValueError as error:
            self._note(UnreadableTile(slide.path, plane.native, column, row, str(error)))
            return None
        return stream

    def _decoded(self, plane: _Plane, place: Place) -> RGB | None:
        """[h, w, 3] of a chunk, white beyond the level; None for background."""
        if plane.native is None or not plane.holds(place):
            return None
        width, height = plane.chunk
        x, y = place[1] * width, place[0] * height
        right, bottom = min(x + width, plane.size[0]), min(y + height, plane.size[1])
        image = np.full((height, width, 3), 255, np.uint8)
        tile_width, tile_height = self.slide.levels[plane.native].tile
        found = False
        for row in range(y // tile_height, -(-bottom // tile_height)):
            for column in range(x // tile_width, -(-right // tile_width)):
                tile = self._tile(plane.native, column, row)
                if tile is None:
                    continue
                found = True
                left, top = column * tile_width, row * tile_height
                x0, y0 = max(x, left), max(y, top)
                x1, y1 = min(right, left + tile_width), min(bottom, top + tile_height)
                part = tile[y0 - top : y1 - top, x0 - left : x1 - left]
                image[y0 - y : y1 - y, x0 - x : x1 - x] = part
        return image if found else None

    def _tile(self, level: int, column: int, row: int) -> RGB | None:
        try:
            return self.slide.decode_tile(level, column, row)
        except UnreadableTile as error:
            self._note(error)
            return None

    def _note(self, error: UnreadableTile) -> None:
        if self._on_bad_tile == "raise":
            raise error
        self.unreadable[error.level, error.column, error.row] = error

    def _encoded(self, image: RGB | None) -> bytes | None:
        if image is None or image.min(initial=255) == 255:
            return None
        return bytes(self._zstd.encode(np.ascontiguousarray(image.transpose(2, 0, 1))))


def _halved(finer: Any, plane: _Plane, place: Place) -> RGB | None:
    """A chunk of means of 2 x 2 px of the finer level, white beyond its edge."""
    width, height = plane.chunk
    x, y = place[1] * width, place[0] * height
    if not plane.holds(place):
        return None
    part = np.asarray(finer[:, 2 * y : 2 * (y + height), 2 * x : 2 * (x + width)])
    # an odd edge goes on, so that the last column and row are no mixture with white
    odd = ((0, 0), (0, part.shape[1] % 2), (0, part.shape[2] % 2))
    part = np.pad(part, odd, mode="edge").astype(np.uint16)
    mean = (
        part[:, ::2, ::2] + part[:, 1::2, ::2] + part[:, ::2, 1::2] + part[:, 1::2, 1::2] + 2
    ) // 4
    image = np.full((height, width, 3), 255, np.uint8)
    image[: mean.shape[1], : mean.shape[2]] = mean.transpose(1, 2, 0)
    return image


def _ome(slide: Slide, planes: Sequence[_Plane]) -> dict[str, Any]:
    """The metadata of OME-NGFF 0.5; without a unit where the slide's pixel size is unknown."""
    size = slide.pixel_size
    x, y = (1.0, 1.0) if size is None else (size.x, size.y)
    unit = {} if size is None else {"unit": "micrometer"}
    datasets = [
        {
            "path": plane.name,
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, y * plane.downsample[1], x * plane.downsample[0]]}
            ],
        }
        for plane in planes
    ]
    axes = [
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space", **unit},
        {"name": "x", "type": "space", **unit},
    ]
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    colours = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}
    channels = [
        {"label": label, "color": colour, "window": window, "active": True}
        for label, colour in colours.items()
    ]
    return {
        "version": "0.5",
        "multiscales": [{"name": slide.name, "axes": axes, "datasets": datasets}],
        "omero": {"channels": channels, "rdefs": {"model": "color"}},
    }
