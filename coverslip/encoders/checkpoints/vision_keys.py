"""Names of tensors as other libraries save them, turned into timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
_CLIP_OUTSIDE = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding.weight": "pos_embed",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "pre_layrnorm.weight": "norm_pre.weight",
    "pre_layrnorm.bias": "norm_pre.bias",
    "post_layernorm.weight": "norm.weight",
    "post_layernorm.bias": "norm.bias",
}
_CLIP_INSIDE = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_CLIP_PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_CLIP_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_HALVING = re.compile(r"layers\.(\d)\.downsample\.(.+)")
_LOW_RANK = re.compile(
    r"encoder\.base_model\.model\.(?:encoder\.|model\.)?(.+)\.(lora_[AB])\.default\.weight"
)


def vit(state: State) -> State:
    """Of transformers' `ViTModel`. Raises KeyError with the first name that is not one of its."""
    return _renamed(state, _VIT)


def dinov2(state: State) -> State:
    """Of transformers' `Dinov2Model`, with and without registers. Raises KeyError as `vit` does."""
    return _renamed(state, _DINOV2)


def dinov2_own(state: State) -> State:
    """Of DINO's and DINOv2's own code (facebookresearch), as HIPT, DinoBloom and GPFM have it."""
    found: State = {}
    for name, tensor in state.items():
        plain = name.removeprefix("teacher.").removeprefix("module.").removeprefix("backbone.")
        if plain == "mask_token" or plain.startswith(("head.", "dino_head.", "ibot_head.")):
            continue
        plain = plain.replace("register_tokens", "reg_token")
        found[plain.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")] = tensor
    return _without_place_for_class(found)


def clip_vision(state: State) -> State:
    """Of transformers' `CLIPVisionTransformer`, as timm's ViT that normalises before its blocks.

    Raises KeyError with the first name that is not one of its.
    """
    found: State = {}
    parts: dict[str, dict[str, Any]] = {}  # "blocks.3.attn.qkv.weight" -> q, k, v
    for name, tensor in state.items():
        match = _CLIP_LAYER.fullmatch(name)
        if name in _CLIP_OUTSIDE:
            found[_CLIP_OUTSIDE[name]] = tensor
        elif match and match[2] in _CLIP_INSIDE:
            found[f"blocks.{match[1]}.{_CLIP_INSIDE[match[2]]}.{match[3]}"] = tensor
        elif match and match[2] in _CLIP_PARTS:
            whole = f"blocks.{match[1]}.attn.qkv.{match[3]}"
            parts.setdefault(whole, {})[match[2]] = tensor
        elif name != "embeddings.position_ids":
            raise KeyError(name)
    found |= _joined(parts, _CLIP_PARTS)
    if "cls_token" in found:
        found["cls_token"] = found["cls_token"].reshape(1, 1, -1)
        found["pos_embed"] = found["pos_embed"][None]
    return found


def ctranspath(state: State) -> State:
    """Of CTransPath as released, from a timm (0.5) whose stages end where today's begin.

    A stage's halving belongs to the next one today; what the architecture decides is left out.
    """
    found: State = {}
    for name, tensor in state.items():
        plain = name.removeprefix("module.")
        if plain.endswith(("relative_position_index", "attn_mask")) or plain.startswith("head."):
            continue
        if match := _HALVING.fullmatch(plain):
            plain = f"layers.{int(match[1]) + 1}.downsample.{match[2]}"
        found[plain] = tensor
    return found


def seal(state: State) -> State:
    """Of SEAL's low-rank updates of an encoder, without the heads of its training.

    Raises KeyError with the first name that is neither.
    """
    found: State = {}
    for name, tensor in state.items():
        plain = name.removeprefix("module.")
        if plain.startswith(("projection_head.", "decoder.", "organ_emb.")):
            continue
        match = _LOW_RANK.fullmatch(plain)
        if not match:
            raise KeyError(name)
        found[f"{match[1]}.{match[2]}"] = tensor
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
    return _without_place_for_class(found | _joined(parts, ("query", "key", "value")))


def _joined(parts: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> State:
    """Query, key and value in one tensor, as timm has them. Raises KeyError where one lacks."""
    import torch

    return {name: torch.cat([three[part] for part in order]) for name, three in parts.items()}


def _without_place_for_class(state: State) -> State:
    """timm's networks with registers have no place for the class token: it goes into the token."""
    if "reg_token" not in state or "pos_embed" not in state:
        return state
    places = state["pos_embed"]
    return state | {
        "cls_token": state["cls_token"] + places[:, :1],
        "pos_embed": places[:, 1:],
    }
