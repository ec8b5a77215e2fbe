"""Tiles that are decoded and assembled on a GPU: only compressed bytes travel there.

NVIDIA's nvImageCodec decodes a batch of native JPEG tiles at once into device memory; CuPy cuts and
resamples the windows; DLPack hands them to the network. The stream of `coverslip.tiling.stream` on
the CPU stays the default and the reference: it also scales while decoding, which this one cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from coverslip.errors import MissingPackage, UnreadableTile, UnsupportedSlide
from coverslip.tiling.assembly import TilePlane, source_for
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.schedule import Schedule
from coverslip.tiling.stream import TileBatch
from coverslip.wsi.slide import Slide
from coverslip.wsi.tiff import TiffSlide

__all__ = ["DeviceTileStream"]


class DeviceTileStream:
    """The tiles of a grid in order, in batches whose pixels are CuPy arrays.

    slide     with JPEG tiles, in a TIFF file of its own
    indices   which tiles, ascending; all by default
    device    a GPU's number; "cpu" decodes by nvImageCodec's processors and gives NumPy arrays

    Every native tile is decoded once. Raises UnsupportedSlide where the level that is read holds
    anything but JPEG, MissingPackage without nvImageCodec or CuPy, and UnreadableTile.
    """

    def __init__(
        self,
        slide: Slide,
        grid: TileGrid,
        *,
        indices: npt.NDArray[np.int64] | None = None,
        batch: int = 64,
        device: int | Literal["cpu"] = 0,
    ) -> None:
        self.slide, self.grid, self.batch = slide, grid, batch
        self.indices = grid.chosen(indices)
        self._windows = grid.windows().at(self.indices)
        self._plane = TilePlane(slide, source_for(slide, self._windows.scale, most_reduction=0))
        level = self._plane.source.level
        if not isinstance(slide, TiffSlide) or slide.codec(level) != "jpeg":
            raise UnsupportedSlide(
                slide.path,
                "its tiles are not JPEG in a TIFF file, which is what a GPU decodes here",
                "read it with TileStream",
            )
        self._tiff, self._decoder = slide, _Decoder(device)

    def __len__(self) -> int:
        """Batches."""
        return -(-len(self.indices) // self.batch)

    def __iter__(self) -> Iterator[TileBatch]:
        # more workers than windows in a batch: no tile is left to the one window that needs it
        schedule = Schedule.of(self._plane, [self._windows], [self.batch], self.batch + 1)
        width, height = self._windows.size
        held: dict[int, Any] = {}
        for (_, rows), met, done in zip(
            schedule.batches, schedule.decode, schedule.drop, strict=True
        ):
            held |= self._decoded(met.tolist())
            pixels = self._decoder.empty((len(rows), height, width, 3))
            places = zip(
                schedule.spans[0][rows].tolist(), self._windows.origins[rows].tolist(), strict=True
            )
            for i, (span, corner) in enumerate(places):
                self._plane.assemble(held, span, corner, self._windows.scale, pixels[i])
            index = self.indices[rows]
            yield TileBatch(pixels, self.grid.boxes[index], index)
            for key in done.tolist():
                del held[key]

    def _decoded(self, keys: Sequence[int]) -> dict[int, Any]:
        level, columns = self._plane.source.level, self._plane.columns
        found: dict[int, Any] = dict.fromkeys(keys)
        streams: dict[int, bytes] = {}
        for key in keys:
            row, column = divmod(key, columns)
            stream = self._tiff.compressed_tile(level, column, row)
            if stream is not None:  # else the file leaves it out: background
                streams[key] = stream
        width, height = self._plane.tile
        images = self._decoder.decode(list(streams.values()))
        for key, image in zip(streams, images, strict=True):
            if image is None or image.shape != (height, width, 3):
                row, column = divmod(key, columns)
                problem = "nvImageCodec cannot decode it" if image is None else "has another size"
                raise UnreadableTile(self.slide.path, level, column, row, problem)
            found[key] = image
        return found


class _Decoder:
    """nvImageCodec on one device, and where its arrays live."""

    def __init__(self, device: int | Literal["cpu"]) -> None:
        try:
            from nvidia import nvimgcodec
        except ImportError as error:
            raise MissingPackage("decoding on a GPU", "nvidia-nvimgcodec-cu12", "gpu") from error
        self._arrays: Any = np
        if device == "cpu":
            processors = [nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)]
            self._decoder = nvimgcodec.Decoder(
                device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=processors
            )
        else:
            try:
                import cupy
            except ImportError as error:
                raise MissingPackage("decoding on a GPU", "cupy", "gpu") from error
            self._arrays = cupy
            self._decoder = nvimgcodec.Decoder(device_id=device)
        # no colour conversion by an EXIF or ICC of the tile: a slide's tiles are RGB when decoded
        self._params = nvimgcodec.DecodeParams(apply_exif_orientation=False)
        self._open = nvimgcodec.CodeStream

    def empty(self, shape: tuple[int, ...]) -> Any:
        return self._arrays.empty(shape, np.uint8)

    def decode(self, streams: Sequence[bytes]) -> list[Any]:
        """Arrays [h, w, 3], None where a stream is damaged."""
        if not streams:
            return []
        on = 0 if self._arrays is np else self._arrays.cuda.get_current_stream().ptr
        codes = [self._code(stream) for stream in streams]
        images = iter(
            self._decoder.decode(
                [code for code in codes if code is not None],
                params=self._params,
                cuda_stream=on,
            )
        )
        found = [None if code is None else next(images) for code in codes]
        return [None if image is None else self._arrays.asarray(image) for image in found]

    def _code(self, stream: bytes) -> Any:
        try:
            return self._open(stream)
        except RuntimeError:  # what is no image at all is refused here already
            return None
