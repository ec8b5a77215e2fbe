"""Encoders by name: their networks built, their weights found and loaded strictly."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coverslip.encoders.checkpoints.hub import (
    checkpoint_from_hub,
    local_checkpoint,
    not_given,
    without_hub,
)
from coverslip.encoders.checkpoints.weights import file_sha256, state_sha256
from coverslip.encoders.encoder import Encoder, Precision
from coverslip.encoders.recipes.image_text import open_clip_spec
from coverslip.encoders.registry import EncoderSpec, encoder_names, encoder_spec
from coverslip.errors import MissingWeights, UnknownName

if TYPE_CHECKING:
    import torch

RECIPE_FILE = ".json"
"""How the name of an encoder ends that is a recipe's file."""


def load_encoder(
    name: str = "efficientnet-lite0",
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    precision: Precision = "auto",
    compiled: bool = False,
    trust_remote_code: bool = False,
) -> Encoder:
    """An encoder by its registered name, any timm model by timm's, or the .json of a recipe.

    weights   a local checkpoint (safetensors or torch), or a folder that holds <name>.safetensors,
              or <repository>/<file> as the hub has it; "random" for none at all (for tests). A
              recipe's .json has its weights beside it, as pretraining leaves them
    device    "auto" takes a GPU where there is one
    seed      of random weights
    precision, compiled   see `Encoder`
    trust_remote_code     run the code that some repositories hold in place of a known network

    Raises UnknownName; MissingWeights where the weights are not here, and says what to put where.
    """
    import torch

    spec = _spec_of(name)
    if weights is None and name.endswith(RECIPE_FILE):
        weights = Path(name).with_suffix(".safetensors")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    network, sha256 = _loaded(spec, weights, seed, trust_remote_code)
    return Encoder(spec, network, sha256, device, precision=precision, compiled=compiled)


def _loaded(
    spec: EncoderSpec, weights: str | Path | None, seed: int, trust_remote_code: bool
) -> tuple[torch.nn.Module, str]:
    """The network with its weights, and their sha256."""
    import torch

    if weights == "random":
        torch.manual_seed(seed)
        return _network(spec), f"random-{seed}"
    if spec.weights == "remote-code":
        from coverslip.encoders.checkpoints.remote_code import remote_network

        remote = remote_network(spec, weights, trust_remote_code)
        return remote, state_sha256(remote)
    if weights is not None or spec.weights == "package" or spec.hub:
        path = _weights_file(spec, weights)
        return _with_weights(spec, path, weights), file_sha256(path)
    network = _from_timm(spec)
    return network, state_sha256(network)


def _spec_of(name: str) -> EncoderSpec:
    import timm

    if name.endswith(RECIPE_FILE):
        return EncoderSpec.from_json(Path(name))
    if name in encoder_names():
        return encoder_spec(name)
    if name.startswith("open_clip:"):
        return open_clip_spec(name)
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
    network: torch.nn.Module = timm.create_model(
        spec.architecture, pretrained=pretrained, num_classes=0, **arguments
    )
    return network


def _packaged(spec: EncoderSpec) -> Path:
    module, _, _ = spec.key_mapping.partition(":")
    path: Path = import_module(module).weights_path(spec.architecture)
    return path


def _with_weights(spec: EncoderSpec, path: Path, weights: str | Path | None) -> torch.nn.Module:
    from coverslip.encoders.checkpoints.weights import load_strictly, with_updates

    network = _network(spec)
    state = _state_of(spec, path, set(network.state_dict()))
    if spec.base:
        base = encoder_spec(spec.base)
        beside = weights if weights is not None and Path(weights).is_dir() else None
        whole = _state_of(base, _weights_file(base, beside), set(network.state_dict()))
        state = with_updates(whole, state, path)
    _fit_positions(network, state)
    load_strictly(network, state, path)
    return network


def _state_of(spec: EncoderSpec, path: Path, wanted: set[str]) -> dict[str, Any]:
    """A checkpoint's tensors under the network's names; those that have them are taken as is."""
    from coverslip.encoders.checkpoints.weights import beyond, read_weights, without_prefix

    state = read_weights(path, spec.prefix)
    plain = without_prefix(state, wanted)
    if not spec.key_mapping or (wanted <= plain.keys() and not beyond(plain, wanted)):
        return plain
    module, _, function = spec.key_mapping.partition(":")
    try:
        renamed: dict[str, Any] = getattr(import_module(module), function)(state)
    except KeyError as error:
        raise MissingWeights(f"{path}: not {spec.name}'s weights; unknown tensor {error}") from None
    return renamed


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


def _from_timm(spec: EncoderSpec) -> torch.nn.Module:
    if not spec.weights:
        raise without_hub(spec)
    try:
        return _network(spec, pretrained=True)
    except Exception as error:  # the hub client raises a zoo of network errors
        raise not_given(spec, error) from error


def _weights_file(spec: EncoderSpec, weights: str | Path | None) -> Path:
    """Of `weights`, of the package, or of the hub."""
    if weights is not None:
        return local_checkpoint(spec, weights)
    if spec.weights == "package":
        return _packaged(spec)
    if not spec.weights:
        raise without_hub(spec)
    return checkpoint_from_hub(spec)
