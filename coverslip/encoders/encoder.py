"""A loaded encoder: uint8 tiles in, float32 embeddings out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from coverslip.encoders.registry import EncoderSpec
from coverslip.errors import MissingPackage, MissingWeights, NotEnoughMemory
from coverslip.kernels.backend import backend_of

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Tiles = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]
Recolour = Callable[[Any], Any]
"""uint8 [B, H, W, 3] -> the same, for NumPy and CuPy arrays: stain normalisation."""

CPU_BATCH = 8
"""Tiles that pass through the network together on a CPU, whatever the batch: their activations
stay in cache. EfficientNet-Lite0 on 2 cores: 73 tiles/s and 250 MB, against 46 tiles/s and 1.1 GB
in batches of 64."""


Precision = Literal["auto", "float32", "float16", "bfloat16"]

UPLOAD = 512
"""Tiles that go to a GPU together."""
FREE_SHARE = 0.7
"""How much of a GPU's free memory a batch may take."""


class Encoder:
    """A network with its recipe, on a device.

    spec              the recipe; recipe its JSON-able form
    name, dim         as in stores
    weights_sha256    of the checkpoint's file ("random" for random weights)
    device            torch device
    precision         what it computes in. "auto": float32 on the CPU; what the recipe says, under
                      autocast, on a GPU (float16 where the GPU lacks bfloat16)
    compiled          through torch.compile: slow to start, then faster
    at_once           tiles that pass through the network together: found from the GPU's memory, and
                      halved whenever that turns out to be too little

    The same batch gives the same bytes; batches of another size may differ in the last bits, so
    callers that must be reproducible fix how they batch.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        network: torch.nn.Module,
        weights_sha256: str,
        device: str,
        *,
        precision: Precision = "auto",
        compiled: bool = False,
    ) -> None:
        import torch

        self.spec, self.weights_sha256 = spec, weights_sha256
        self.name, self.recipe = spec.name, spec.recipe()
        self.device = torch.device(device)
        network = network.eval().requires_grad_(False)
        self._network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean = 255 * torch.tensor(spec.mean, device=self.device).view(1, 3, 1, 1)
        self._std = 255 * torch.tensor(spec.std, device=self.device).view(1, 3, 1, 1)
        self._half = _half_dtype(precision, spec.dtype, self.device)
        self._pooled: Callable[..., torch.Tensor] = (
            torch.compile(pooled, dynamic=True) if compiled else pooled
        )
        self.at_once = CPU_BATCH
        self.dim = self._measured_dim()
        if self.device.type == "cuda":
            self.at_once = self._fitting_batch()

    @property
    def precision(self) -> str:
        """What it computes in: "float32", "float16" or "bfloat16"."""
        return "float32" if self._half is None else str(self._half).removeprefix("torch.")

    def encode(self, tiles: Tiles, recolour: Recolour | None = None) -> Embeddings:
        """tiles uint8 [B, H, W, 3] RGB of any side -> float32 [B, dim].

        tiles      NumPy, or CuPy (then nothing but the embeddings leaves the GPU)
        recolour   applied to the tiles first, on the device of the network (on a GPU by CuPy)
        """
        import torch

        if tiles.ndim != 4 or tiles.shape[3] != 3 or tiles.dtype != np.uint8:
            raise ValueError(f"tiles must be uint8 [B, H, W, 3], got {tiles.dtype} {tiles.shape}")
        parts = [tiles[i : i + UPLOAD] for i in range(0, len(tiles), UPLOAD)]
        with torch.inference_mode():
            found = [self._embed_all(self._upload(part, recolour)) for part in parts]
        return np.concatenate(found) if found else np.empty((0, self.dim), np.float32)

    def encode_stream(
        self, batches: Iterable[Tiles], recolour: Recolour | None = None
    ) -> Iterator[Embeddings]:
        """Embeddings batch by batch; on a GPU the next batch uploads while this one computes."""
        import torch

        if self.device.type != "cuda":
            for tiles in batches:
                yield self.encode(tiles, recolour)
            return
        uploading = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        waiting: torch.Tensor | None = None
        with torch.inference_mode():
            for tiles in batches:
                with torch.cuda.stream(uploading):
                    ready = self._upload(tiles, recolour)
                if waiting is not None:
                    yield self._embed_all(waiting)
                torch.cuda.current_stream(self.device).wait_stream(uploading)
                ready.record_stream(torch.cuda.current_stream(self.device))
                waiting = ready
            if waiting is not None:
                yield self._embed_all(waiting)

    def half_precision_cosine(self, tiles: Tiles) -> float:
        """The least cosine between what `tiles` embed to and what they would in float32: 1.0 where
        that is what it computes in."""
        if self._half is None or not len(tiles):
            return 1.0
        found, half = self.encode(tiles), self._half
        self._half = None
        try:
            exact = self.encode(tiles)
        finally:
            self._half = half
        length = np.linalg.norm(found, axis=1) * np.linalg.norm(exact, axis=1)
        return float(((found * exact).sum(axis=1) / np.maximum(length, 1e-12)).min())

    def _measured_dim(self) -> int:
        side = self.spec.input_px
        dim = self.encode(np.zeros((1, side, side, 3), np.uint8)).shape[1]
        if self.spec.dim and dim != self.spec.dim:
            raise MissingWeights(
                f"{self.name}: gives {dim} numbers a tile, its recipe says {self.spec.dim}"
            )
        return int(dim)

    def _fitting_batch(self) -> int:
        """A power of two, at most `UPLOAD`, that leaves some of the GPU's memory free."""
        import torch

        side, count = self.spec.input_px, 8
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self.encode(np.zeros((count, side, side, 3), np.uint8))
        each = (torch.cuda.max_memory_allocated(self.device) - before) / count
        free, _ = torch.cuda.mem_get_info(self.device)
        fitting = max(1, int(FREE_SHARE * free / max(each, 1)))
        return min(UPLOAD, 1 << (fitting.bit_length() - 1))

    def _embed_all(self, pixels: torch.Tensor) -> Embeddings:
        """pixels uint8 [B, 3, H, W] on the device -> float32 [B, dim], `at_once` at a time."""
        import torch

        found: list[Embeddings] = []
        done = 0
        while done < len(pixels):
            part = pixels[done : done + self.at_once]
            try:
                found.append(self._embed(part).float().cpu().numpy())
            except torch.OutOfMemoryError as error:
                self._take_fewer(len(part), error)
                continue
            done += len(part)
        return np.concatenate(found)

    def _take_fewer(self, tried: int, error: Exception) -> None:
        import torch

        if tried == 1:
            raise NotEnoughMemory(
                f"{self.name}: the memory of {self.device} does not hold the network and one tile\n"
                "  free it of other work, choose a smaller encoder, or --device cpu"
            ) from error
        self.at_once = tried // 2
        logger.warning("%s: %d tiles at once are too many; going on with %d", self.name, tried,
                       self.at_once)  # fmt: skip
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _upload(self, tiles: Tiles, recolour: Recolour | None = None) -> torch.Tensor:
        """uint8 [B, 3, H, W] on the device, channels last: the bytes travel as they are."""
        import torch

        on_gpu = self.device.type == "cuda"
        if recolour is not None and not on_gpu:
            tiles = recolour(tiles)
        if backend_of(tiles) == "cupy":  # decoded there: stays there
            pixels = torch.utils.dlpack.from_dlpack(tiles).to(self.device)
        else:
            pixels = torch.from_numpy(np.ascontiguousarray(tiles))
            if on_gpu:
                pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        if recolour is not None and on_gpu:
            pixels = _recoloured_on_gpu(pixels, recolour)
        return pixels.permute(0, 3, 1, 2)

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        x = (self._resized(pixels) - self._mean) / self._std  # (b, 3, px, px)
        half = self._half
        with torch.autocast(self.device.type, dtype=half, enabled=half is not None):
            return self._pooled(self._network, x, self.spec.pooling)

    def _resized(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 [B, 3, px, px] in 0..255: resized, then cropped from the middle."""
        import torch
        from torch.nn.functional import interpolate

        side = self.spec.input_px
        target = round(side / self.spec.crop)
        x = pixels.to(torch.float32, memory_format=torch.channels_last)
        if x.shape[2:] != (target, target):
            mode, antialias = self.spec.interpolation, self.spec.antialias
            x = interpolate(x, (target, target), mode=mode, antialias=antialias)
            x = x.clamp(0, 255)
        margin = (target - side) // 2
        return x[:, :, margin : margin + side, margin : margin + side]


def pooled(network: Any, x: torch.Tensor, pooling: str) -> torch.Tensor:
    """(b, 3, px, px) -> (b, dim), pooled as a recipe says."""
    import torch

    if pooling == "pooled":
        return network(x)  # type: ignore[no-any-return]
    if pooling == "class-shares":
        classes = network(x)  # (b, dim, px, px)
        found = classes.argmax(dim=1, keepdim=True)  # (b, 1, px, px)
        each = torch.arange(classes.shape[1], device=x.device).view(1, -1, 1, 1)
        shares: torch.Tensor = (found == each).float().mean(dim=(2, 3))
        return shares
    tokens = network.forward_features(x)  # (b, prefix + n, d)
    prefix = network.num_prefix_tokens
    cls, patches = tokens[:, 0], tokens[:, prefix:].mean(dim=1)  # (b, d), (b, d)
    if pooling == "cls":
        return cls  # type: ignore[no-any-return]
    return patches if pooling == "mean" else torch.cat([cls, patches], dim=1)


def _half_dtype(precision: Precision, recipe: str, device: torch.device) -> torch.dtype | None:
    """What the network computes in under autocast; None for float32."""
    import torch

    wanted: str = precision
    if precision == "auto":
        wanted = recipe if device.type == "cuda" else "float32"
        if wanted == "bfloat16" and not torch.cuda.is_bf16_supported():
            wanted = "float16"
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(wanted)


def _recoloured_on_gpu(pixels: torch.Tensor, recolour: Recolour) -> torch.Tensor:
    """The same memory seen by CuPy, on torch's own stream; nothing is copied either way."""
    import torch

    try:
        import cupy
    except ImportError as error:
        raise MissingPackage("stain normalisation on a GPU", "cupy", "gpu") from error
    stream = torch.cuda.current_stream(pixels.device).cuda_stream
    with cupy.cuda.Device(pixels.device.index or 0), cupy.cuda.ExternalStream(stream):
        return torch.utils.dlpack.from_dlpack(recolour(cupy.from_dlpack(pixels)))
