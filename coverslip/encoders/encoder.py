"""A loaded encoder: uint8 tiles in, float32 embeddings out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coverslip.encoders.hub import checkpoint_from_hub, not_given, without_hub
from coverslip.encoders.registry import EncoderSpec, encoder_names, encoder_spec
from coverslip.errors import MissingPackage, MissingWeights, UnknownName
from coverslip.kernels.backend import backend_of

if TYPE_CHECKING:
    import torch

Tiles = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]
Recolour = Callable[[Any], Any]
"""uint8 [B, H, W, 3] -> the same, for NumPy and CuPy arrays: stain normalisation."""

CPU_BATCH = 8
"""Tiles that pass through the network together on a CPU, whatever the batch: their activations
stay in cache. EfficientNet-Lite0 on 2 cores: 73 tiles/s and 250 MB, against 46 tiles/s and 1.1 GB
in batches of 64."""


class Encoder:
    """A network with its recipe, on a device.

    spec              the recipe; recipe its JSON-able form
    name, dim         as in stores
    weights_sha256    of the checkpoint's file ("random" for random weights)
    device            torch device

    fp32 on the CPU; bfloat16 (float16 where the GPU lacks it) under autocast on a GPU. The same
    batch gives the same bytes; batches of another size may differ in the last bits, so callers that
    must be reproducible fix how they batch.
    """

    def __init__(
        self, spec: EncoderSpec, network: torch.nn.Module, weights_sha256: str, device: str
    ) -> None:
        import torch

        self.spec, self.weights_sha256 = spec, weights_sha256
        self.name, self.recipe = spec.name, spec.recipe()
        self.device = torch.device(device)
        network = network.eval().requires_grad_(False)
        self._network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean = 255 * torch.tensor(spec.mean, device=self.device).view(1, 3, 1, 1)
        self._std = 255 * torch.tensor(spec.std, device=self.device).view(1, 3, 1, 1)
        self._half = None
        if self.device.type == "cuda":
            self._half = _gpu_dtype(spec.dtype)
        self.dim = self._measured_dim()

    def _measured_dim(self) -> int:
        side = self.spec.input_px
        dim = self.encode(np.zeros((1, side, side, 3), np.uint8)).shape[1]
        if self.spec.dim and dim != self.spec.dim:
            raise MissingWeights(
                f"{self.name}: gives {dim} numbers a tile, its recipe says {self.spec.dim}"
            )
        return int(dim)

    def encode(self, tiles: Tiles, recolour: Recolour | None = None) -> Embeddings:
        """tiles uint8 [B, H, W, 3] RGB of any side -> float32 [B, dim].

        tiles      NumPy, or CuPy (then nothing but the embeddings leaves the GPU)
        recolour   applied to the tiles first, on the device of the network (on a GPU by CuPy)
        """
        import torch

        if tiles.ndim != 4 or tiles.shape[3] != 3 or tiles.dtype != np.uint8:
            raise ValueError(f"tiles must be uint8 [B, H, W, 3], got {tiles.dtype} {tiles.shape}")
        at_once = len(tiles) if self.device.type == "cuda" else CPU_BATCH
        parts = [tiles[i : i + at_once] for i in range(0, len(tiles), max(at_once, 1))]
        with torch.inference_mode():
            found = [
                self._embed(self._upload(part, recolour)).float().cpu().numpy() for part in parts
            ]
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
                    yield self._embed(waiting).float().cpu().numpy()
                torch.cuda.current_stream(self.device).wait_stream(uploading)
                ready.record_stream(torch.cuda.current_stream(self.device))
                waiting = ready
            if waiting is not None:
                yield self._embed(waiting).float().cpu().numpy()

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
        if self._half is None:
            return pooled(self._network, x, self.spec.pooling)
        with torch.autocast("cuda", dtype=self._half):
            return pooled(self._network, x, self.spec.pooling)

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
    tokens = network.forward_features(x)  # (b, prefix + n, d)
    prefix = network.num_prefix_tokens
    cls, patches = tokens[:, 0], tokens[:, prefix:].mean(dim=1)  # (b, d), (b, d)
    if pooling == "cls":
        return cls  # type: ignore[no-any-return]
    return patches if pooling == "mean" else torch.cat([cls, patches], dim=1)


def _gpu_dtype(dtype: str) -> torch.dtype | None:
    """What the network computes in on a GPU; None for float32, float16 where it lacks bfloat16."""
    import torch

    if dtype == "bfloat16" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return None if dtype == "float32" else torch.float16


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


def load_encoder(
    name: str = "efficientnet-lite0",
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Encoder:
    """An encoder by its registered name, or any timm model by timm's.

    weights   a local checkpoint (safetensors or torch), or a folder that holds <name>.safetensors;
              "random" for none at all (for tests)
    device    "auto" takes a GPU where there is one
    seed      of random weights

    Raises UnknownName; MissingWeights where the weights are not here, and says what to put where.
    """
    import torch

    spec = _spec_of(name)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if weights == "random":
        torch.manual_seed(seed)
        return Encoder(spec, _network(spec), f"random-{seed}", device)
    if weights is not None or spec.weights == "package":
        path = _weights_file(spec, weights) if weights is not None else _packaged(spec)
        return Encoder(spec, _with_weights(spec, path, weights is None), _file_sha256(path), device)
    network = _from_hub(spec)
    return Encoder(spec, network, _state_sha256(network), device)


def _spec_of(name: str) -> EncoderSpec:
    import timm

    if name in encoder_names():
        return encoder_spec(name)
    plain = name.removeprefix("timm:")
    if not timm.is_model(plain.partition(".")[0]):
        known = [*encoder_names(), *timm.list_models(f"*{plain[:6]}*")]
        raise UnknownName("encoder", name, known)
    config = timm.get_pretrained_cfg(plain)
    if config is None:
        raise UnknownName("encoder", name, timm.list_models(pretrained=True))
    return EncoderSpec(
        name=plain.replace("/", "_"),
        architecture=plain,
        input_px=config.input_size[-1],
        mean=(config.mean[0], config.mean[1], config.mean[2]),
        std=(config.std[0], config.std[1], config.std[2]),
        interpolation="bicubic" if config.interpolation == "bicubic" else "bilinear",
        crop=1.0,
        licence=config.license or "",
    )


def _network(spec: EncoderSpec, pretrained: bool = False) -> torch.nn.Module:
    import timm

    module, _, function = spec.architecture.partition(":")
    if function:
        built: torch.nn.Module = getattr(import_module(module), function)(**spec.arguments)
        return built
    arguments = dict(spec.arguments)
    if isinstance(layer := arguments.get("mlp_layer"), str):
        arguments["mlp_layer"] = getattr(timm.layers, layer)
    source = f"hf-hub:{spec.hub}" if pretrained and spec.hub else spec.architecture
    network: torch.nn.Module = timm.create_model(
        source, pretrained=pretrained, num_classes=0, **arguments
    )
    return network


def _packaged(spec: EncoderSpec) -> Path:
    module, _, _ = spec.key_mapping.partition(":")
    path: Path = import_module(module).weights_path()
    return path


def _with_weights(spec: EncoderSpec, path: Path, packaged: bool) -> torch.nn.Module:
    from coverslip.encoders.weights import load_strictly, read_weights

    network, state = _network(spec), read_weights(path)
    if spec.key_mapping and (packaged or not set(network.state_dict()) <= state.keys()):
        module, _, function = spec.key_mapping.partition(":")
        try:
            state = getattr(import_module(module), function)(state)
        except KeyError as error:
            raise MissingWeights(
                f"{path}: not {spec.name}'s weights; unknown tensor {error}"
            ) from None
    _fit_positions(network, state)
    load_strictly(network, state, path)
    return network


def _fit_positions(network: Any, state: dict[str, Any]) -> None:
    """Position embeddings of another input size, resampled to this network's (bicubic)."""
    import timm.layers

    own, found = getattr(network, "pos_embed", None), state.get("pos_embed")
    if own is None or found is None or own.shape == found.shape or own.ndim != found.ndim:
        return
    if own.shape[2] != found.shape[2]:
        return  # another width: reported as such when it is loaded
    prefix = 0 if network.no_embed_class else network.num_prefix_tokens
    state["pos_embed"] = timm.layers.resample_abs_pos_embed(  # type: ignore[attr-defined]
        found, new_size=list(network.patch_embed.grid_size), num_prefix_tokens=prefix
    )


def _from_hub(spec: EncoderSpec) -> torch.nn.Module:
    if not spec.weights:
        raise without_hub(spec)
    if spec.key_mapping:  # saved by another library than timm
        return _with_weights(spec, checkpoint_from_hub(spec), packaged=True)
    try:
        return _network(spec, pretrained=True)
    except Exception as error:  # the hub client raises a zoo of network errors
        raise not_given(spec, error) from error


def _weights_file(spec: EncoderSpec, weights: str | Path) -> Path:
    """The file itself, or `<name>.safetensors` or `<name>.pth` of a folder."""
    path = Path(weights)
    if not path.is_dir():
        return path
    names = [f"{spec.name}{suffix}" for suffix in (".safetensors", ".pth", ".bin")]
    for name in names:
        if (path / name).is_file():
            return path / name
    raise MissingWeights(f"{path}: holds no weights of {spec.name}; looked for {', '.join(names)}")


def _file_sha256(path: Path) -> str:
    from coverslip.encoders.weights import file_sha256

    return file_sha256(path)


def _state_sha256(network: torch.nn.Module) -> str:
    """sha256 over the tensors of weights that came from no single file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
