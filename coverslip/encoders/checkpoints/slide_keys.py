"""Names of tensors in published slide encoders' checkpoints, turned into those of our networks.

Every function takes and returns tensors by name, leaves out what the slide's embedding does not
need, and raises KeyError with the first name that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

State = dict[str, Any]

_GATED = {
    r"attention_a\.0\.(weight|bias)": r"value.\1",
    r"attention_b\.0\.(weight|bias)": r"gate.\1",
    r"attention_c\.(weight|bias)": r"score.\1",
}


def _inside(theirs: str, ours: str, names: Mapping[str, str]) -> dict[str, str]:
    """Rules for a module within another."""
    return {theirs + old: ours + new for old, new in names.items()}


def _renamed(state: State, rules: Mapping[str, str], unused: str) -> State:
    """By the first rule (a pattern and what replaces it) that matches a name as a whole."""
    found: State = {}
    for name, tensor in state.items():
        plain = name.removeprefix("module.")
        if re.fullmatch(unused, plain):
            continue
        for pattern, replacement in rules.items():
            if match := re.fullmatch(pattern, plain):
                found[match.expand(replacement)] = tensor
                break
        else:
            raise KeyError(name)
    return found


def feather(state: State) -> State:
    """Of MIL-Lab's ABMIL; without its classifier."""
    rules = {r"model\.patch_embed\.0\.(.+)": r"project.0.\1"}
    rules |= _inside(r"model\.global_attn\.", "attend.", _GATED)
    return _renamed(state, rules, r"model\.classifier\..+")


_CHIEF = {
    r"attention_net\.0\.(.+)": r"project.0.\1",
    **_inside(r"attention_net\.3\.", "attend.", _GATED),
}
_CHIEF_UNUSED = r"(instance_)?classifiers\..+|att_head\..+"


def chief(state: State) -> State:
    """Of CHIEF_pretraining.pth, without classifiers and without the organs' prompts."""
    return _renamed(state, _CHIEF, _CHIEF_UNUSED + r"|organ_embedding|text_to_vision\..+")


def chief_prompted(state: State) -> State:
    """The same with the organs' prompts, for `Chief(organ=...)`."""
    prompt = {r"organ_embedding": "organs", r"text_to_vision\.0\.(.+)": r"prompt.0.\1"}
    return _renamed(state, _CHIEF | prompt, _CHIEF_UNUSED)


def _multi_head(theirs: str) -> dict[str, str]:
    """Linear, norm, GELU and dropout, three times; we have no dropout."""
    places = {0: 0, 1: 1, 4: 3, 5: 4, 8: 6, 9: 7}
    rules = {rf"{theirs}pre_attn\.{old}\.(.+)": rf"embed.{new}.\1" for old, new in places.items()}
    for old, new in _GATED.items():
        rules[rf"{theirs}attn\.(\d+)\.{old}"] = r"attend.\1." + new.replace(r"\1", r"\2")
    return rules


def madeleine(state: State) -> State:
    """Of MADELEINE's model.pt; without what projects tokens in training."""
    rules = _multi_head(r"wsi_embedders\.") | {r"projector\.(.+)": r"project.\1"}
    return _renamed(state, rules, r"token_projector\..+")


def tangle(state: State) -> State:
    """Of TANGLE v2's model.pt; without the genes' side."""
    rules = _multi_head(r"wsi_embedder\.")
    rules |= {r"wsi_embedder\.proj_multihead\.(.+)": r"project.\1"}
    return _renamed(state, rules, r"(rna_embedder|rna_reconstruction|mean_projector)\..+")


def titan(state: State) -> State:
    """Of TITAN's vision encoder; without the text tower and the captioner's pooling."""
    block = r"vision_encoder\.blocks\.modules_list\.(\d+)\."
    pool = r"vision_encoder\.attn_pool_contrastive\."
    rules = {
        r"vision_encoder\.patch_embed\.0\.(.+)": r"embed.\1",
        r"vision_encoder\.cls_token": "class_token",
        r"vision_encoder\.norm\.(.+)": r"norm.\1",
        block + r"(norm[12])\.(.+)": r"blocks.\1.\2.\3",
        block + r"attn\.qkv\.(.+)": r"blocks.\1.attention.qkv.\2",
        block + r"attn\.proj\.(.+)": r"blocks.\1.attention.project.\2",
        block + r"mlp\.fc1\.(.+)": r"blocks.\1.mlp.0.\2",
        block + r"mlp\.fc2\.(.+)": r"blocks.\1.mlp.2.\2",
        pool + "query": "pool.query",
        pool + r"attn\.(.+)": r"pool.attention.\1",
        pool + r"ln_q\.(.+)": r"pool.norm_query.\1",
        pool + r"ln_k\.(.+)": r"pool.norm_tokens.\1",
    }
    unused = r"text_encoder\..+|logit_scale|vision_encoder\.(attn_pool\..+|proj)"
    return _renamed(state, rules, unused)


def prism(state: State) -> State:
    """Of PRISM's Perceiver; without the report writer and the projections that meet the text.

    Weights that layers share are there under every layer's name or under one of them.
    """
    theirs = r"image_resampler\.perceiver\.layers\.(\d+)\."
    feed = {
        r"ff\.norm\.(.+)": r"feed.norm.%",
        r"ff\.net\.0\.(.+)": r"feed.inward.%",
        r"ff\.net\.2\.(.+)": r"feed.outward.%",
    }
    reading = {
        r"xattn\.x_norm\.(.+)": r"norm.%",
        r"xattn\.to_q\.(.+)": r"query.%",
        r"xattn\.to_kv\.(.+)": r"key_value.%",
        r"xattn\.to_out\.(.+)": r"project.%",
    } | feed
    thinking = {r"mhsa\.norm\.(.+)": r"norm.%", r"mhsa\.mha\.(.+)": r"attention.%"} | feed
    rules = {
        r"image_resampler\.cls_norm\.(.+)": r"norm.\1",
        r"image_resampler\.perceiver\.latents": "latents",
    }
    for old, new in reading.items():  # the first reads alone, all others with one set
        first = theirs.replace(r"\d+", "0") + r"xattn\." + old
        rules[first] = "reading.0." + new.replace("%", r"\2")
        rules[theirs + r"xattn\." + old] = "reading.1." + new.replace("%", r"\2")
    for old, new in thinking.items():
        rules[theirs + r"tf\.(\d+)\." + old] = r"thinking.\2." + new.replace("%", r"\3")
    unused = r"image_resampler\.img_norm\..+|(text_decoder|img_to_latents|text_to_latents)\..+"
    return _renamed(state, rules, unused + "|temperature")


def gigapath(state: State) -> State:
    """Of GigaPath's and GigaPath-Flash's slide_encoder.pth.

    Without the twelfth layer and the norm after it, which come after the embedding, and without
    what masked pretraining left.
    """
    layer = r"encoder\.layers\.(\d+)\."
    rules = {
        r"patch_embed\.proj\.(.+)": r"embed.\1",
        r"cls_token": "class_token",
        r"norm\.(.+)": r"norm.\1",
        layer + r"self_attn\.q_proj\.(.+)": r"layers.\1.attention.query.\2",
        layer + r"self_attn\.k_proj\.(.+)": r"layers.\1.attention.key.\2",
        layer + r"self_attn\.v_proj\.(.+)": r"layers.\1.attention.value.\2",
        layer + r"self_attn\.out_proj\.(.+)": r"layers.\1.attention.project.\2",
        layer + r"self_attn\.inner_attn_ln\.(.+)": r"layers.\1.attention.norm.\2",
        layer + r"self_attn_layer_norm\.(.+)": r"layers.\1.norm1.\2",
        layer + r"final_layer_norm\.(.+)": r"layers.\1.norm2.\2",
        layer + r"ffn\.fc1\.(.+)": r"layers.\1.mlp.0.\2",
        layer + r"ffn\.ffn_layernorm\.(.+)": r"layers.\1.mlp.2.\2",
        layer + r"ffn\.fc2\.(.+)": r"layers.\1.mlp.3.\2",
    }
    unused = r"encoder\.(layer_norm|layers\.11)\..+|(mask_token|pos_embed|decoder.*)"
    return _renamed(state, rules, unused)


def cobra(state: State) -> State:
    """Of COBRA II: its own file, or a pretraining checkpoint, whose momentum encoder it is."""
    momentum = {n.split("momentum_enc.")[1]: t for n, t in state.items() if "momentum_enc." in n}
    space = r"mamba_enc\.layers\.(\d+)\.1\."
    rules = {
        r"embed\.(\d+)\.head\.([01])\.(.+)": r"embed.\1.\2.\3",
        r"embed\.(\d+)\.head\.4\.(.+)": r"embed.\1.3.\2",
        r"norm\.(.+)": r"norm.\1",
        r"mamba_enc\._fc1\.0\.(.+)": r"inward.0.\1",
        r"mamba_enc\.classifier\.(.+)": r"outward.\1",
        r"mamba_enc\.layers\.(\d+)\.0\.(.+)": r"layers.\1.norm.\2",
        space + r"in_proj\.weight": r"layers.\1.space.inward.weight",
        space + r"conv1d\.(.+)": r"layers.\1.space.convolve.\2",
        space + "dt_bias": r"layers.\1.space.step_bias",
        space + "A_log": r"layers.\1.space.log_decay",
        space + "D": r"layers.\1.space.skip",
        space + r"norm\.weight": r"layers.\1.space.norm.weight",
        space + r"out_proj\.weight": r"layers.\1.space.outward.weight",
    }
    for old, new in _GATED.items():
        rules[rf"attn\.(\d+)\.{old}"] = r"attend.\1." + new.replace(r"\1", r"\2")
    return _renamed(momentum or state, rules, r"mamba_enc\.norm\..+|proj\..+")
