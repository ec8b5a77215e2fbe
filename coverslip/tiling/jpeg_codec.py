"""A Zarr v3 codec that keeps each chunk as one JPEG image.

Chunks are [1, h, w, 3] (tiles) or [3, h, w] (OME-NGFF images, channel first: the decoder
interleaves, so it transposes). Registered under the name "coverslip.jpeg"; readers need this
package, or any JPEG decoder for the raw bytes of a chunk. Decoding takes a complete stream of any
chroma subsampling, so tiles of a JPEG slide can be chunks as they are.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import register_codec

NAME = "coverslip.jpeg"
QUALITY = 90


@dataclass(frozen=True)
class JpegChunks(ArrayBytesCodec):
    """uint8 RGB chunks as baseline JPEG, 4:4:4 at `quality` 1 to 100."""

    is_fixed_size = False
    quality: int = QUALITY

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(quality=int((data.get("configuration") or {}).get("quality", QUALITY)))

    def to_dict(self) -> dict[str, Any]:
        return {"name": NAME, "configuration": {"quality": self.quality}}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("JPEG sizes are not known before encoding")

    # zarr runs codecs in its event loop; libjpeg releases the GIL, so chunks go to threads
    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await asyncio.to_thread(self._encode_sync, chunk_array, chunk_spec)

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        from simplejpeg import decode_jpeg, decode_jpeg_header

        data = chunk_bytes.to_bytes()
        height, width = decode_jpeg_header(data)[:2]
        if 3 * height * width != math.prod(chunk_spec.shape):
            raise ValueError(f"a JPEG of {width} x {height} px in a chunk of {chunk_spec.shape}")
        image = decode_jpeg(data)
        if channel_first(chunk_spec.shape):
            image = np.ascontiguousarray(image.transpose(2, 0, 1))
        return chunk_spec.prototype.nd_buffer.from_numpy_array(image.reshape(chunk_spec.shape))

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        array = chunk_array.as_numpy_array()
        shape = chunk_spec.shape
        image = array.transpose(1, 2, 0) if channel_first(shape) else array.reshape(shape[-3:])
        return chunk_spec.prototype.buffer.from_bytes(jpeg_stream(image, self.quality))


def jpeg_stream(image: npt.NDArray[np.uint8], quality: int = QUALITY) -> bytes:
    """[h, w, 3] RGB as a JPEG of full colour resolution."""
    from simplejpeg import encode_jpeg

    pixels = np.ascontiguousarray(image)
    return bytes(encode_jpeg(pixels, quality=quality, colorsubsampling="444"))


def channel_first(shape: tuple[int, ...]) -> bool:
    """Whether a chunk is [3, h, w] rather than [..., h, w, 3]."""
    return len(shape) == 3 and shape[0] == 3


register_codec(NAME, JpegChunks)
