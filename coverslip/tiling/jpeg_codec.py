"""A Zarr v3 codec that keeps each chunk as one JPEG image.

Chunks are [1, T, T, 3] (tiles) or [3, h, w] (OME-NGFF images, channel first). Registered under the
name "coverslip.jpeg"; readers need this package, or any JPEG decoder for the raw chunk bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import register_codec

NAME = "coverslip.jpeg"


@dataclass(frozen=True)
class JpegChunks(ArrayBytesCodec):
    """uint8 RGB chunks as baseline JPEG, 4:4:4 at `quality` 1 to 100."""

    is_fixed_size = False
    quality: int = 90

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(quality=int((data.get("configuration") or {}).get("quality", 90)))

    def to_dict(self) -> dict[str, Any]:
        return {"name": NAME, "configuration": {"quality": self.quality}}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("JPEG sizes are not known before encoding")

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return _decoded(chunk_bytes, chunk_spec)

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return self._encoded(chunk_array, chunk_spec)

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return _decoded(chunk_bytes, chunk_spec)

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return self._encoded(chunk_array, chunk_spec)

    def _encoded(self, chunk: NDBuffer, spec: ArraySpec) -> Buffer:
        from simplejpeg import encode_jpeg

        array = chunk.as_numpy_array()
        image = (
            array.transpose(1, 2, 0)
            if channel_first(spec.shape)
            else array.reshape(spec.shape[-3:])
        )
        stream = encode_jpeg(
            np.ascontiguousarray(image), quality=self.quality, colorsubsampling="444"
        )
        return spec.prototype.buffer.from_bytes(stream)


def _decoded(chunk: Buffer, spec: ArraySpec) -> NDBuffer:
    from simplejpeg import decode_jpeg

    image = decode_jpeg(chunk.to_bytes())
    if channel_first(spec.shape):
        image = np.ascontiguousarray(image.transpose(2, 0, 1))
    return spec.prototype.nd_buffer.from_numpy_array(image.reshape(spec.shape))


def channel_first(shape: tuple[int, ...]) -> bool:
    """Whether a chunk is [3, h, w] rather than [..., h, w, 3]."""
    return len(shape) == 3 and shape[0] == 3


register_codec(NAME, JpegChunks)
