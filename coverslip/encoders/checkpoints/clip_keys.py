"""Names of tensors in the checkpoints of image-text models, turned into those of our towers.

A checkpoint holds both towers and often more; each function takes what is its tower's and leaves
the rest. Every one raises KeyError with the first name that belongs to neither.
"""

from __future__ import annotations

import re
from typing import Any

State = dict[str, Any]

_OPEN_CLIP_TEXT = (
    "text.", "text_decoder.", "transformer.", "token_embedding.", "positional_embedding",
    "ln_final.", "text_projection", "logit_scale", "logit_bias",
    "input_resolution", "context_length", "vocab_size",
)  # fmt: skip
_OWN = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")

_TRANSFORMERS_OUTSIDE = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "logit_scale": "logit_scale",
}
_TRANSFORMERS_PROJECTIONS = {
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
_TRANSFORMERS_INSIDE = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_TRANSFORMERS_LAYER = re.compile(
    r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)"
)


def image(state: State) -> State:
    """The image tower of an open_clip checkpoint, or of transformers' `CLIPModel`."""
    found: State = {}
    for name, tensor in _as_open_clip(state).items():
        if name.startswith("visual."):
            found[f"tower.{name.removeprefix('visual.')}"] = tensor
        elif not name.startswith(_OPEN_CLIP_TEXT):
            raise KeyError(name)
    return found


def text(state: State) -> State:
    """The text tower and the logit scale of either."""
    found: State = {}
    for name, tensor in _as_open_clip(state).items():
        if name == "logit_scale":
            found[name] = tensor.reshape(())
        elif name.startswith("text."):
            if not name.endswith(".position_ids"):  # a buffer, of older transformers
                found[name] = tensor
        elif name.startswith(_OWN):
            found[f"text.{name}"] = tensor
        elif not name.startswith(("visual.", *_OPEN_CLIP_TEXT)):
            raise KeyError(name)
    return found


def conch_image(state: State) -> State:
    """The image tower of CONCH, without the pooling that its captions were decoded from."""
    found: State = {}
    for name, tensor in _plain(state).items():
        inner = name.removeprefix("visual.")
        if name.startswith("visual.") and not inner.startswith(
            ("attn_pool_caption.", "ln_caption.")
        ):
            found[inner] = tensor
        elif not name.startswith(("visual.", *_OPEN_CLIP_TEXT)):
            raise KeyError(name)
    return found


def keep_image(state: State) -> State:
    """The image tower of KEEP, whose LayerScale calls its factor `weight`."""
    found: State = {}
    for name, tensor in state.items():
        if name.startswith(("visual.", "visual_head.")):
            found[re.sub(r"\.ls([12])\.weight$", r".ls\1.gamma", name)] = tensor
        elif not name.startswith(("text.", "logit_scale")):
            raise KeyError(name)
    return found


def keep_text(state: State) -> State:
    """The text tower of KEEP."""
    found: State = {}
    for name, tensor in state.items():
        if name.startswith(("text.", "logit_scale")):
            if not name.endswith(".position_ids"):
                found[name] = tensor
        elif not name.startswith(("visual.", "visual_head.")):
            raise KeyError(name)
    return found


def musk_image(state: State) -> State:
    """The image expert of MUSK: what torchscale calls A."""
    return _expert(state, "A", "vision_embed.", "vision_head.")


def musk_text(state: State) -> State:
    """The text expert of MUSK: what torchscale calls B."""
    return _expert(state, "B", "text_embed.", "language_head.")


def _expert(state: State, letter: str, embedding: str, head: str) -> State:
    found: State = {}
    for name, tensor in state.items():
        plain = name.removeprefix("beit3.")
        if plain.startswith(embedding):
            inner = plain.removeprefix(embedding)
            if inner != "mask_token":
                found[f"embed.{inner}"] = tensor
        elif plain.startswith(head):
            found[f"head.{plain.removeprefix(head)}"] = tensor
        elif plain == "logit_scale":
            if letter == "B":
                found[plain] = tensor
        elif plain.startswith("encoder."):
            parts = plain.removeprefix("encoder.").split(".")
            if letter in parts:
                found[".".join(part for part in parts if part != letter)] = tensor
            elif not {"A", "B"} & set(parts):
                raise KeyError(name)
        elif not plain.startswith(
            ("vision_embed.", "text_embed.", "vision_head.", "language_head.")
        ):
            raise KeyError(name)
    return found


def _plain(state: State) -> State:
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _as_open_clip(state: State) -> State:
    """Either library's names as open_clip's."""
    state = _plain(state)
    if not any(name.startswith(("vision_model.", "text_model.")) for name in state):
        return state
    import torch

    found: State = {}
    parts: dict[str, dict[str, Any]] = {}  # "visual...attn.in_proj_weight" -> its q, k, v
    for name, tensor in state.items():
        if name.endswith(".position_ids"):
            continue
        if name in _TRANSFORMERS_OUTSIDE:
            found[_TRANSFORMERS_OUTSIDE[name]] = tensor
            continue
        if name in _TRANSFORMERS_PROJECTIONS:
            found[_TRANSFORMERS_PROJECTIONS[name]] = tensor.T.contiguous()
            continue
        match = _TRANSFORMERS_LAYER.fullmatch(name)
        if not match:
            raise KeyError(name)
        tower, layer, what, kind = match.groups()
        block = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{layer}"
        if what in _TRANSFORMERS_INSIDE:
            found[f"{block}.{_TRANSFORMERS_INSIDE[what]}.{kind}"] = tensor
        elif what in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            whole = f"{block}.attn.in_proj_{kind}"
            parts.setdefault(whole, {})[what[len("self_attn.")]] = tensor
        else:
            raise KeyError(name)
    for name, three in parts.items():
        found[name] = torch.cat([three["q"], three["k"], three["v"]])
    return found
