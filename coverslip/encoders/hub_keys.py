"""Names of tensors as other libraries save them, turned into timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

State = dict[str, Any]

_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_VIT = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_DINOV2 = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
}
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias|lambda1)")
_UNUSED = re.compile(r"(pooler|classifier)\.|embeddings\.mask_token$")


def vit(state: State) -> State:
    """Of transformers' `ViTModel`. Raises KeyError with the first name that is not one of its."""
    return _renamed(state, _VIT)


def dinov2(state: State) -> State:
    """Of transformers' `Dinov2Model`, with and without registers. Raises KeyError as `vit` does."""
    return _renamed(state, _DINOV2)


def dinov2_own(state: State) -> State:
    """Of DINOv2's own code (facebookresearch/dinov2), as DinoBloom and GPFM were trained."""
    found: State = {}
    for name, tensor in state.items():
        plain = name.removeprefix("teacher.").removeprefix("backbone.")
        if plain == "mask_token" or plain.startswith(("dino_head.", "ibot_head.")):
            continue
        plain = plain.replace("register_tokens", "reg_token")
        found[plain.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")] = tensor
    return found


def kimianet(state: State) -> State:
    """Of KimiaNet's DenseNet121 (Riasatian et al. 2021): `[module.]model.0.[features.]conv0...`."""
    found: State = {}
    for name, tensor in state.items():
        plain = name.removeprefix("module.")
        if plain.startswith(("fc_4.", "classifier.")):  # its 30 diagnoses
            continue
        inner = plain.removeprefix("model.0.").removeprefix("features.")
        if inner == plain:
            raise KeyError(name)
        found[f"features.{inner}"] = tensor
    return found


def _renamed(state: State, inside: Mapping[str, str]) -> State:
    import torch

    found: State = {}
    parts: dict[str, dict[str, Any]] = {}  # "blocks.3.attn.qkv.weight" -> query, key, value
    for name, tensor in state.items():
        plain = name.removeprefix("vit.").removeprefix("dinov2.")
        if _UNUSED.match(plain):
            continue
        if plain in _OUTSIDE:
            found[_OUTSIDE[plain]] = tensor
            continue
        match = _LAYER.fullmatch(plain)
        if not match:
            raise KeyError(name)
        layer, what, kind = match.groups()
        if what in ("layer_scale1", "layer_scale2"):
            found[f"blocks.{layer}.ls{what[-1]}.gamma"] = tensor
        elif what.startswith("attention.attention."):
            whole = f"blocks.{layer}.attn.qkv.{kind}"
            parts.setdefault(whole, {})[what.rpartition(".")[2]] = tensor
        else:
            found[f"blocks.{layer}.{inside[what]}.{kind}"] = tensor
    for name, three in parts.items():
        found[name] = torch.cat([three["query"], three["key"], three["value"]])
    return found
