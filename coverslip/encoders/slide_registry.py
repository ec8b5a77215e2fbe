"""Slide encoders by name: what each stands on, needs and gives, readable without torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import orjson

from coverslip.encoders.registry import Registry, deciding


@dataclass(frozen=True, slots=True)
class SlideEncoderSpec:
    """A recipe: everything that decides what is made of a slide's tile embeddings.

    name            how users and stores call it
    tile_encoder    whose embeddings it takes, by its name in the registry of encoders; "" takes any
    architecture    "package.module:function" that builds the network
    arguments       passed to that function
    dim             length of the slide's embedding; 0 where it is that of a tile's
    input_dim       length of a tile's embedding; 0 takes any
    mpp, tile_px    of the tiles: µm per pixel, and their side at that scale; 0 takes any
    weights         "hub", "remote-code" (hub, with the network as code beside them), "" for weights
                    to be downloaded by hand, "none" for a network without
    hub, revision   repository that holds them, and its commit; "" takes the newest
    file            the checkpoint's name there; "" takes model.safetensors or pytorch_model.bin
    key_mapping     "package.module:function" that renames a checkpoint's keys to the network's
    dtype           on a GPU, under autocast; on the CPU it is float32 always
    parameters      of the network, in millions; 0 where nobody counted
    licence, gated  of the weights
    """

    name: str
    tile_encoder: str
    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    dim: int = 0
    input_dim: int = 0
    mpp: float = 0.0
    tile_px: int = 0
    weights: Literal["hub", "remote-code", "", "none"] = "hub"
    hub: str = ""
    revision: str = ""
    file: str = ""
    key_mapping: str = ""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    parameters: float = 0.0
    licence: str = ""
    gated: bool = False
    kind: ClassVar[str] = "slide encoder"
    weights_flag: ClassVar[str] = "--slide-weights"

    def recipe(self) -> dict[str, Any]:
        """JSON-able; two slide encoders with one recipe and the same weights embed alike."""
        return deciding(
            self, {"licence", "gated", "mpp", "tile_px", "weights", "file", "parameters"}
        )

    def recipe_hash(self) -> str:
        """sha256 of the recipe."""
        content = orjson.dumps(self.recipe(), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(content).hexdigest()


_slide_encoders: Registry[SlideEncoderSpec] = Registry(
    "slide encoder",
    ["coverslip.encoders.recipes.slides:published_slide_encoders"],
    group="coverslip.slide_encoders",
)


def register_slide_encoder(spec: SlideEncoderSpec) -> SlideEncoderSpec:
    """Make one known. The same spec twice is accepted; another under a known name is not."""
    return _slide_encoders.register(spec)


def slide_encoder_names() -> list[str]:
    """All registered names, sorted."""
    return _slide_encoders.names()


def slide_encoder_spec(name: str) -> SlideEncoderSpec:
    """The recipe registered as `name`. Raises UnknownName with the near misses."""
    return _slide_encoders.spec(name)
