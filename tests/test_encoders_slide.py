"""Slide encoders by their laws, and number by number against plain readings of the same weights.

The checkpoints are made here, under the names that the published ones have; beside each stands the
same computation written out once more, slowly and without blocks.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from coverslip.encoders.checkpoints import slide_keys
from coverslip.encoders.networks.attention_pooling import SoftmaxSum
from coverslip.encoders.networks.bag import Bag
from coverslip.encoders.networks.cobra import scan
from coverslip.encoders.networks.longnet import DilatedAttention, place_codes
from coverslip.encoders.networks.titan import alibi_slopes, distance_bias
from coverslip.encoders.recipes.slides import published_slide_encoders
from coverslip.encoders.registry import encoder_names, encoder_spec
from coverslip.encoders.slide_encoder import SlideEncoder, build, load_slide_encoder
from coverslip.encoders.slide_registry import (
    SlideEncoderSpec,
    register_slide_encoder,
    slide_encoder_names,
    slide_encoder_spec,
)
from coverslip.errors import MissingWeights, RecipeMismatch, UnknownName

RECIPES = {spec.name: spec for spec in published_slide_encoders()}
Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]

DOCUMENTED = {  # millions in the part of the published checkpoint that reads tiles
    "titan": 48.5, "prism": 99.0, "chief": 1.19, "gigapath": 86.33, "gigapath-flash": 21.5,
    "madeleine": 5.0, "tangle": 5.0, "feather": 0.84, "feather-uni": 0.97, "feather-uni2": 1.24,
    "cobra2-conch": 11.06, "cobra2-uni": 11.06, "cobra2-virchow2-cls": 11.06,
    "cobra2-h-optimus-0": 11.06,
}  # fmt: skip
FLASH = {"input_dim": 384, "width": 384}


# The published checkpoints' names and shapes ---------------------------------------------------


def linear(name: str, inward: int, outward: int, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (outward, inward)}
    return shapes | ({f"{name}.bias": (outward,)} if bias else {})


def norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def gated(name: str, dim: int, hidden: int) -> Shapes:
    return (
        linear(f"{name}.attention_a.0", dim, hidden)
        | linear(f"{name}.attention_b.0", dim, hidden)
        | linear(f"{name}.attention_c", hidden, 1)
    )


def feather_names(input_dim: int, hidden: int = 512, attention_dim: int = 384) -> Shapes:
    return (
        linear("model.patch_embed.0", input_dim, hidden)
        | gated("model.global_attn", hidden, attention_dim)
        | linear("model.classifier", hidden, 108)
    )


def chief_names(input_dim: int = 768, hidden: int = 512, attention_dim: int = 256) -> Shapes:
    return (
        linear("attention_net.0", input_dim, hidden)
        | gated("attention_net.3", hidden, attention_dim)
        | linear("classifiers", hidden, 2)
        | linear("instance_classifiers.0", hidden, 2)
        | linear("instance_classifiers.1", hidden, 2)
        | linear("att_head.fc1", hidden, attention_dim)
        | linear("att_head.fc2", attention_dim, 1)
        | linear("text_to_vision.0", 768, hidden)
    )


def multi_head_names(
    name: str, project: str, input_dim: int, hidden: int = 512, heads: int = 4
) -> Shapes:
    shapes = linear(project, hidden * heads, hidden)
    widths = (input_dim, hidden, hidden, hidden * heads)
    for i in range(3):
        shapes |= linear(f"{name}.pre_attn.{4 * i}", widths[i], widths[i + 1])
        shapes |= norm(f"{name}.pre_attn.{4 * i + 1}", widths[i + 1])
    for i in range(heads):
        shapes |= gated(f"{name}.attn.{i}", hidden, hidden)
    return shapes


def madeleine_names(input_dim: int = 512, hidden: int = 512, heads: int = 4) -> Shapes:
    shapes = multi_head_names("wsi_embedders", "projector", input_dim, hidden, heads)
    shapes |= linear("token_projector", hidden * heads, 128)
    return {f"module.{name}": shape for name, shape in shapes.items()}


def tangle_names(input_dim: int = 1024, hidden: int = 512, heads: int = 4) -> Shapes:
    project = "wsi_embedder.proj_multihead"
    return multi_head_names("wsi_embedder", project, input_dim, hidden, heads)


def titan_names(
    input_dim: int = 768, width: int = 768, depth: int = 6, hidden: int = 3072, queries: int = 128,
    **_: int,
) -> Shapes:  # fmt: skip
    shapes = linear("patch_embed.0", input_dim, width) | norm("norm", width)
    shapes |= {"cls_token": (1, 1, width), "proj": (width, width)}
    for i in range(depth):
        block = f"blocks.modules_list.{i}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", width, 3 * width)
        shapes |= linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1", width, hidden)
        shapes |= linear(f"{block}.mlp.fc2", hidden, width)
    for pool, count in (("attn_pool", queries), ("attn_pool_contrastive", 1)):
        shapes |= {f"{pool}.query": (count, width), f"{pool}.attn.in_proj_bias": (3 * width,)}
        shapes |= {f"{pool}.attn.in_proj_weight": (3 * width, width)}
        shapes |= linear(f"{pool}.attn.out_proj", width, width)
        shapes |= norm(f"{pool}.ln_q", width) | norm(f"{pool}.ln_k", width)
    return {f"vision_encoder.{name}": shape for name, shape in shapes.items()}


def prism_names(
    input_dim: int = 2560, width: int = 1280, latents: int = 512, reads: int = 8,
    thoughts: int = 6, own_readings: int = 2, **_: int,
) -> Shapes:  # fmt: skip
    """Of the layers that share weights, those of the last: a file may keep any of the names."""
    shapes: Shapes = {"perceiver.latents": (1 + latents, width)} | norm("cls_norm", width)

    def feed(name: str) -> Shapes:
        return (
            norm(f"{name}.ff.norm", width)
            | linear(f"{name}.ff.net.0", width, 2 * width)
            | linear(f"{name}.ff.net.2", width, width)
        )

    for i in (*range(own_readings - 1), reads - 1):
        layer = f"perceiver.layers.{i}.xattn"
        shapes |= norm(f"{layer}.xattn.x_norm", width) | feed(layer)
        shapes |= linear(f"{layer}.xattn.to_q", width, width, bias=False)
        shapes |= linear(f"{layer}.xattn.to_kv", input_dim, 2 * width, bias=False)
        shapes |= linear(f"{layer}.xattn.to_out", width, width, bias=False)
    for j in range(thoughts):
        layer = f"perceiver.layers.{reads - 1}.tf.{j}"
        shapes |= norm(f"{layer}.mhsa.norm", width) | feed(layer)
        shapes |= {f"{layer}.mhsa.mha.in_proj_weight": (3 * width, width)}
        shapes |= {f"{layer}.mhsa.mha.out_proj.weight": (width, width)}
    return {f"image_resampler.{name}": shape for name, shape in shapes.items()}


def gigapath_names(
    input_dim: int = 1536, width: int = 768, layers: int = 12, **_: object
) -> Shapes:
    shapes: Shapes = {"cls_token": (1, 1, width)}
    shapes |= linear("patch_embed.proj", input_dim, width)
    shapes |= norm("norm", width) | norm("encoder.layer_norm", width)
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{layer}.self_attn.{part}", width, width)
        shapes |= norm(f"{layer}.self_attn.inner_attn_ln", width)
        shapes |= norm(f"{layer}.self_attn_layer_norm", width)
        shapes |= norm(f"{layer}.final_layer_norm", width)
        shapes |= linear(f"{layer}.ffn.fc1", width, 4 * width)
        shapes |= linear(f"{layer}.ffn.fc2", 4 * width, width)
        shapes |= norm(f"{layer}.ffn.ffn_layernorm", 4 * width)
    return shapes


def cobra_names(
    input_dims: tuple[int, ...] = (512, 1024, 1280, 1536), width: int = 768, layers: int = 1,
    heads: int = 4, attention_dim: int = 256, state: int = 128,
) -> Shapes:  # fmt: skip
    inner, shapes = 2 * width, norm("norm", width) | norm("mamba_enc.norm", width)
    for dim in input_dims:
        head = f"embed.{dim}.head"
        shapes |= norm(f"{head}.0", dim) | linear(f"{head}.1", dim, width)
        shapes |= linear(f"{head}.4", width, width)
    shapes |= linear("mamba_enc._fc1.0", width, width)
    shapes |= linear("mamba_enc.classifier", width, width)
    for i in range(layers):
        space, count, mixed = f"mamba_enc.layers.{i}.1", inner // 64, inner + 2 * state
        shapes |= norm(f"mamba_enc.layers.{i}.0", width)
        shapes |= linear(f"{space}.in_proj", width, inner + mixed + count, bias=False)
        shapes |= linear(f"{space}.out_proj", inner, width, bias=False)
        shapes |= {f"{space}.conv1d.weight": (mixed, 1, 4), f"{space}.conv1d.bias": (mixed,)}
        shapes |= {f"{space}.{part}": (count,) for part in ("dt_bias", "A_log", "D")}
        shapes |= {f"{space}.norm.weight": (inner,)}
    for i in range(heads):
        shapes |= gated(f"attn.{i}", width // heads, attention_dim)
    return shapes


def published_names(spec: SlideEncoderSpec) -> Shapes:
    """Of the real checkpoint of a recipe."""
    kind = spec.key_mapping.rpartition(":")[2]
    names: Callable[..., Shapes] = globals()[f"{kind}_names"]
    return names(**spec.arguments)


def beyond(kind: str) -> Shapes:
    """Names of what the real checkpoint of that kind has besides, of no consequence here."""
    return {
        "titan": {"text_encoder.token_embedding.weight": (9, 4), "logit_scale": ()},
        "prism": {"text_decoder.model.x": (3,), "temperature": (), "img_to_latents.a": (2,),
                  "image_resampler.img_norm.weight": (8,)},
        "chief": {"organ_embedding": (19, 768)},
        "gigapath": {"mask_token": (1, 1, 4), "decoder_pos_embed": (1, 2, 4)},
        "tangle": {"rna_embedder.blocks.0.0.weight": (4, 4), "mean_projector.layers.bias": (4,)},
    }.get(kind, {})  # fmt: skip


def made_up(shapes: Shapes, seed: int = 0) -> State:
    """Weights of such sizes that signals neither die nor explode."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        fan = shape[-1] if len(shape) > 1 else 4
        state[name] = torch.randn(shape, generator=generator) * fan**-0.5
    return state


# The same computations once more ---------------------------------------------------------------


def lin(s: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))


def layer_norm(s: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps)


def gated_scores(s: State, name: str, h: Tensor) -> Tensor:  # (n, d) -> (n, 1)
    value = torch.tanh(lin(s, f"{name}.attention_a.0", h))
    return lin(s, f"{name}.attention_c", value * lin(s, f"{name}.attention_b.0", h).sigmoid())


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """(m, d), (n, d), (n, d) -> (m, d)."""
    return ((q @ k.T) * q.shape[1] ** -0.5 + bias).softmax(dim=1) @ v


def in_heads(heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True)
    return torch.cat([attention(*part) for part in parts], dim=1)


def read_feather(s: State, x: Tensor, cells: Tensor) -> Tensor:
    h = lin(s, "model.patch_embed.0", x).relu()
    return (gated_scores(s, "model.global_attn", h).softmax(dim=0) * h).sum(dim=0)


def read_chief(s: State, x: Tensor, cells: Tensor) -> Tensor:
    h = lin(s, "attention_net.0", x).relu()
    return (gated_scores(s, "attention_net.3", h).softmax(dim=0) * x).sum(dim=0)


def read_chief_prompted(s: State, x: Tensor, cells: Tensor) -> Tensor:
    h = lin(s, "attention_net.0", x).relu()
    mean = (gated_scores(s, "attention_net.3", h).softmax(dim=0) * h).sum(dim=0)
    return mean + lin(s, "text_to_vision.0", s["organ_embedding"][13]).relu()


def read_madeleine(s: State, x: Tensor, cells: Tensor) -> Tensor:
    return read_multi_head(s, "module.wsi_embedders", "module.projector", x)


def read_tangle(s: State, x: Tensor, cells: Tensor) -> Tensor:
    return read_multi_head(s, "wsi_embedder", "wsi_embedder.proj_multihead", x)


def read_multi_head(s: State, name: str, project: str, x: Tensor) -> Tensor:
    for i in (0, 4, 8):
        x = lin(s, f"{name}.pre_attn.{i}", x)
        x = F.gelu(layer_norm(s, f"{name}.pre_attn.{i + 1}", x))
    h = x.reshape(len(x), -1, 3)  # (n, hidden, heads)
    means = [
        (gated_scores(s, f"{name}.attn.{i}", h[:, :, i]).softmax(dim=0) * h[:, :, i]).sum(dim=0)
        for i in range(3)
    ]
    return lin(s, project, torch.stack(means, dim=1).flatten())


def read_titan(s: State, x: Tensor, cells: Tensor) -> Tensor:
    s = {name.removeprefix("vision_encoder."): t for name, t in s.items()}
    heads, n = 6, len(x)
    x = torch.cat([s["cls_token"][0], F.gelu(lin(s, "patch_embed.0", x))])
    apart = torch.zeros(n + 1, n + 1)
    for i in range(n):
        for j in range(n):
            apart[i + 1, j + 1] = float(np.hypot(*(cells[i] - cells[j]).tolist()))
    slopes = [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]  # of 6 heads
    for i in range(2):
        block = f"blocks.modules_list.{i}"
        q, k, v = lin(s, f"{block}.attn.qkv", layer_norm(s, f"{block}.norm1", x, 1e-6)).chunk(3, 1)
        parts = zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), slopes, strict=True)
        mixed = torch.cat([attention(q, k, v, -m * apart) for q, k, v, m in parts], dim=1)
        x = x + lin(s, f"{block}.attn.proj", mixed)
        h = F.gelu(lin(s, f"{block}.mlp.fc1", layer_norm(s, f"{block}.norm2", x, 1e-6)))
        x = x + lin(s, f"{block}.mlp.fc2", h)
    pool = "attn_pool_contrastive"
    tokens = layer_norm(s, f"{pool}.ln_k", layer_norm(s, "norm", x, 1e-6))
    weights, biases = s[f"{pool}.attn.in_proj_weight"], s[f"{pool}.attn.in_proj_bias"]
    q, k, v = (
        F.linear(of, w, b)
        for of, w, b in zip(
            (layer_norm(s, f"{pool}.ln_q", s[f"{pool}.query"]), tokens, tokens),
            weights.chunk(3),
            biases.chunk(3),
            strict=True,
        )
    )
    return lin(s, f"{pool}.attn.out_proj", in_heads(4, q, k, v))[0]


def read_prism(s: State, x: Tensor, cells: Tensor) -> Tensor:
    s = {name.removeprefix("image_resampler."): t for name, t in s.items()}

    def feed(name: str, z: Tensor) -> Tensor:
        value, gate = lin(s, f"{name}.net.0", layer_norm(s, f"{name}.norm", z)).chunk(2, 1)
        return z + lin(s, f"{name}.net.2", value * F.gelu(gate))

    z = s["perceiver.latents"]
    for turn in range(4):
        layer = f"perceiver.layers.{0 if turn == 0 else 3}.xattn"
        q = lin(s, f"{layer}.xattn.to_q", layer_norm(s, f"{layer}.xattn.x_norm", z))
        mixed = in_heads(2, q, *lin(s, f"{layer}.xattn.to_kv", x).chunk(2, 1))
        z = feed(f"{layer}.ff", z + lin(s, f"{layer}.xattn.to_out", mixed))
        for j in range(2):
            layer = f"perceiver.layers.3.tf.{j}"
            h = layer_norm(s, f"{layer}.mhsa.norm", z)
            qkv = F.linear(h, s[f"{layer}.mhsa.mha.in_proj_weight"]).chunk(3, 1)
            z = feed(f"{layer}.ff", z + lin(s, f"{layer}.mhsa.mha.out_proj", in_heads(4, *qkv)))
    return layer_norm(s, "cls_norm", z)[0]


def read_gigapath(s: State, x: Tensor, cells: Tensor) -> Tensor:
    """Dilated attention with zeros for the places that are left empty, head by head."""
    order = sorted(range(len(x)), key=lambda i: (cells[i][1], cells[i][0]))
    frequency = 10000.0 ** -(torch.arange(4) / 4)
    column, row = (place.float()[:, None] * frequency for place in cells.unbind(dim=1))
    code = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)
    x = (lin(s, "patch_embed.proj", x) + code)[order]
    x = torch.cat([s["cls_token"][0], x])
    for i in range(2):
        layer = f"encoder.layers.{i}"
        h = layer_norm(s, f"{layer}.self_attn_layer_norm", x)
        q, k, v = (lin(s, f"{layer}.self_attn.{p}_proj", h).chunk(4, 1) for p in "qkv")
        mixed = torch.cat(
            [dilated_head(q[j], k[j], v[j], j) for j in range(4)], dim=1
        )  # (n, width)
        mixed = layer_norm(s, f"{layer}.self_attn.inner_attn_ln", mixed)
        x = x + lin(s, f"{layer}.self_attn.out_proj", mixed)
        h = F.gelu(lin(s, f"{layer}.ffn.fc1", layer_norm(s, f"{layer}.final_layer_norm", x)))
        x = x + lin(s, f"{layer}.ffn.fc2", layer_norm(s, f"{layer}.ffn.ffn_layernorm", h))
    return layer_norm(s, "norm", x[1:].mean(dim=0), 1e-6)


def dilated_head(q: Tensor, k: Tensor, v: Tensor, head: int) -> Tensor:
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in q]
    for segment, dilation in ((8, 1), (16, 2), (1000, 4)):
        segment = min(segment, len(q))
        places = -(-segment // dilation)
        for start in range(0, len(q), segment):
            first = start + head // (4 // dilation)
            taken = list(range(first, min(start + segment, len(q)), dilation))
            keys = F.pad(k[taken], (0, 0, 0, places - len(taken)))
            values = F.pad(v[taken], (0, 0, 0, places - len(taken)))
            for i in taken:
                scores = keys @ q[i] * len(q[i]) ** -0.5
                found[i].append((scores.logsumexp(0), scores.softmax(0) @ values))
    rows = []
    for ways in found:
        share = torch.stack([total for total, _ in ways]).softmax(0)
        rows.append(sum(part * value for part, (_, value) in zip(share, ways, strict=True)))
    return torch.stack([torch.as_tensor(row) for row in rows])


def read_cobra(s: State, x: Tensor, cells: Tensor) -> Tensor:
    """The state-space layer token by token."""
    order = sorted(range(len(x)), key=lambda i: (cells[i][1], cells[i][0]))
    h = lin(s, "embed.20.head.1", layer_norm(s, "embed.20.head.0", x[order]))
    h = F.gelu(lin(s, "mamba_enc._fc1.0", lin(s, "embed.20.head.4", F.silu(h))))
    for i in range(2):
        space, inner, state = f"mamba_enc.layers.{i}.1", 128, 8
        wide = lin(s, f"{space}.in_proj", layer_norm(s, f"mamba_enc.layers.{i}.0", h))
        gate, mixed, step = wide.split([inner, inner + 2 * state, 2], dim=1)
        mixed = F.pad(mixed, (0, 0, 3, 0))
        kernel, memory, out = s[f"{space}.conv1d.weight"][:, 0].T, torch.zeros(2, 64, state), []
        for t in range(len(h)):
            now = F.silu((mixed[t : t + 4] * kernel).sum(0) + s[f"{space}.conv1d.bias"])
            value, inward, outward = now.split([inner, state, state])
            value = value.view(2, 64)
            size = F.softplus(step[t] + s[f"{space}.dt_bias"])
            memory = memory * (-s[f"{space}.A_log"].exp() * size).exp()[:, None, None]
            memory = memory + (size[:, None] * value)[..., None] * inward
            out.append((memory @ outward + s[f"{space}.D"][:, None] * value).flatten())
        y = torch.stack(out) * F.silu(gate)
        y = y * (y.square().mean(1, keepdim=True) + 1e-5).rsqrt() * s[f"{space}.norm.weight"]
        h = h + lin(s, f"{space}.out_proj", y)
    h = layer_norm(s, "norm", lin(s, "mamba_enc.classifier", h))
    heads = h.reshape(len(h), -1, 2)
    scores = sum(gated_scores(s, f"attn.{i}", heads[:, :, i]) for i in range(2)) / 2
    return (torch.as_tensor(scores).softmax(dim=0) * x[order]).sum(dim=0)


# Small ones of every kind ----------------------------------------------------------------------

KINDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "feather": ("attention_pooling:AttentionPooling", 20, {"hidden": 12, "attention_dim": 6}),
    "chief": ("attention_pooling:Chief", 20, {"hidden": 12, "attention_dim": 6}),
    "chief_prompted": ("attention_pooling:Chief", 20, {"hidden": 12, "attention_dim": 6}),
    "madeleine": ("attention_pooling:MultiHeadPooling", 20, {"hidden": 8, "heads": 3}),
    "tangle": ("attention_pooling:MultiHeadPooling", 20, {"hidden": 8, "heads": 3}),
    "titan": ("titan:Titan", 20,
              {"width": 24, "depth": 2, "heads": 6, "hidden": 32, "pool_heads": 4}),
    "prism": ("prism:Prism", 20,
              {"width": 16, "latents": 5, "reads": 4, "thoughts": 2, "reading_heads": 2,
               "thinking_heads": 4}),
    "gigapath": ("longnet:LongNet", 20,
                 {"width": 16, "layers": 2, "heads": 4, "segments": (8, 16, 1000),
                  "dilations": (1, 2, 4)}),
    "cobra": ("cobra:Cobra", 20,
              {"input_dims": (20,), "width": 64, "layers": 2, "heads": 2, "attention_dim": 6,
               "state": 8}),
}  # fmt: skip
POOLS = ("mean", "max")
WITHOUT_ATTENTION = ("max", "titan", "prism", "gigapath")
READ_PLACES = ("titan", "gigapath", "cobra")


def small(kind: str) -> SlideEncoderSpec:
    architecture, dim, arguments = KINDS[kind]
    own = {} if kind == "cobra" else {"input_dim": dim}
    organ = {"organ": 13} if kind == "chief_prompted" else {}
    return register_slide_encoder(
        SlideEncoderSpec(
            f"small-{kind}", "uni", f"coverslip.encoders.networks.{architecture}",
            arguments | own | organ,
            input_dim=dim, weights="",
            key_mapping=f"coverslip.encoders.checkpoints.slide_keys:{kind}",
        )
    )  # fmt: skip


def loaded(kind: str, folder: Path) -> tuple[SlideEncoder, State]:
    """A small encoder with a checkpoint under the published names."""
    spec = small(kind)
    names: Callable[..., Shapes] = globals()[f"{kind.removesuffix('_prompted')}_names"]
    sizes = {k: v for k, v in spec.arguments.items() if k != "organ"}
    extra = {"layers": 12} if kind == "gigapath" else {}
    shapes = names(**(sizes | extra)) | beyond(kind.removesuffix("_prompted"))
    if kind == "gigapath":  # only the real depth has a layer too many
        shapes = {n: v for n, v in shapes.items() if not re.search(r"layers\.([2-9]|10)\.", n)}
    state = made_up(shapes)
    torch.save({"model": state}, folder / f"small-{kind}.pth")
    return load_slide_encoder(spec.name, weights=folder, device="cpu"), state


def some_bag(count: int = 37, dim: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of 100 px at level 0 on different cells of a grid, in no order."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(count**0.5)) + 2
    chosen = rng.permutation(side * side)[:count]
    corners = np.stack([chosen % side, chosen // side], axis=1) * 100 + 1000
    return rng.normal(size=(count, dim)).astype(np.float32), corners


@pytest.fixture(params=[*POOLS, *KINDS])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> SlideEncoder:
    if request.param in POOLS:
        return load_slide_encoder(request.param, device="cpu")
    return loaded(request.param, tmp_path)[0]


# The registry ----------------------------------------------------------------------------------


def test_every_recipe_is_documented() -> None:
    assert {n for n, spec in RECIPES.items() if spec.weights != "remote-code"} == {
        *DOCUMENTED,
        *POOLS,
    }
    assert RECIPES.keys() <= set(slide_encoder_names())
    assert len({spec.recipe_hash() for spec in RECIPES.values()}) == len(RECIPES)
    for spec in RECIPES.values():
        assert spec.licence
        assert spec.weights == "none" or (spec.tile_encoder and spec.mpp and spec.tile_px)
        assert bool(spec.hub) is (spec.weights in ("hub", "remote-code"))
        assert replace(spec, licence="other").recipe_hash() == spec.recipe_hash()


def test_slide_encoders_fit_the_tile_encoders_they_stand_on() -> None:
    known = set(encoder_names())
    for spec in RECIPES.values():
        if spec.tile_encoder in known:
            assert encoder_spec(spec.tile_encoder).dim == spec.input_dim, spec.name


def test_names_are_listed_without_torch() -> None:
    code = (
        "import sys; from coverslip.encoders.slide_registry import slide_encoder_names as names;"
        "import coverslip.encoders.slide_encoder, coverslip.encoders.checkpoints.slide_keys;"
        "assert 'titan' in names(); print(sorted({'torch', 'timm'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_near_misses_are_named() -> None:
    with pytest.raises(UnknownName, match="no slide encoder named 'titam'; did you mean titan"):
        load_slide_encoder("titam")


# Checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_released_checkpoint_has_what_the_network_needs(name: str) -> None:
    """Under its real names and in its real sizes, without memory for the numbers."""
    spec, kind = RECIPES[name], RECIPES[name].key_mapping.rpartition(":")[2]
    with torch.device("meta"):
        network = build(spec)
        state = {n: torch.empty(s) for n, s in (published_names(spec) | beyond(kind)).items()}
    wanted = {n: p.shape for n, p in network.state_dict().items()}
    found = getattr(slide_keys, kind)(state)
    assert {n: t.shape for n, t in found.items()} == wanted
    counted = sum(p.numel() for p in network.parameters()) / 1e6
    assert counted == pytest.approx(spec.parameters, abs=0.006)
    total = sum(int(np.prod(s)) for s in published_names(spec).values()) / 1e6
    assert total == pytest.approx(DOCUMENTED[name], rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_released_checkpoint_embeds_as_read_plainly(kind: str, tmp_path: Path) -> None:
    encoder, state = loaded(kind, tmp_path)
    features, corners = some_bag()
    cells = torch.from_numpy(corners // 100)
    expected = globals()[f"read_{kind}"](state, torch.from_numpy(features), cells)
    found = encoder.encode(features, corners, 100.0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_pretraining_checkpoint_of_cobra_is_its_momentum_encoder() -> None:
    shapes = cobra_names()
    plain = {n: torch.empty(s, device="meta") for n, s in shapes.items()}
    wrapped = {f"module.momentum_enc.{n}": t for n, t in plain.items()}
    wrapped |= {"module.momentum_enc.proj.0.weight": torch.empty(1, device="meta")}
    wrapped |= {f"module.base_enc.{n}": t for n, t in plain.items()}
    assert slide_keys.cobra(wrapped).keys() == slide_keys.cobra(plain).keys()


def test_weights_are_found_under_our_names_and_the_hubs(tmp_path: Path) -> None:
    spec = small("feather")
    encoder = load_slide_encoder(spec.name, weights="random", seed=3, device="cpu")
    again = tmp_path / f"{spec.name}.safetensors"
    save_file(encoder._network.state_dict(), again)
    bag = (*some_bag(), 100.0)
    for weights in (again, tmp_path):
        other = load_slide_encoder(spec.name, weights=weights, device="cpu")
        assert np.array_equal(other.encode(*bag), encoder.encode(*bag))
    assert other.weights_sha256 != encoder.weights_sha256 == "random-3"
    file = tmp_path / "mirror" / RECIPES["feather"].hub / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(made_up(feather_names(768)), file)
    feather = load_slide_encoder("feather", weights=tmp_path / "mirror", device="cpu")
    assert feather.encode(*some_bag(5, 768), 100.0).shape == (512,)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    small("feather")
    path = tmp_path / "bad.safetensors"
    shapes = feather_names(20, 12, 6)
    save_file(made_up(shapes | {"surprise": (1,)}), path)
    with pytest.raises(MissingWeights, match=r"bad\.safetensors.*small-feather.*surprise"):
        load_slide_encoder("small-feather", weights=path, device="cpu")
    del shapes["model.global_attn.attention_c.bias"]
    save_file(made_up(shapes), path)
    with pytest.raises(MissingWeights, match=r"bad\.safetensors.*first missing: attend.score.bias"):
        load_slide_encoder("small-feather", weights=path, device="cpu")
    with pytest.raises(MissingWeights, match=r"small-feather\.safetensors"):
        load_slide_encoder("small-feather", weights=tmp_path, device="cpu")


def test_without_a_hub_the_message_says_which_file_goes_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingWeights, match=r"(?s)titan.*HF_TOKEN.*MahmoodLab/TITAN/model\.safe"):
        load_slide_encoder("titan", device="cpu")
    with pytest.raises(MissingWeights, match=r"(?s)slide_encoder\.pth of prov-gigapath"):
        load_slide_encoder("gigapath", device="cpu")
    with pytest.raises(MissingWeights, match=r"(?s)downloaded by hand.*chief\.pth"):
        load_slide_encoder("chief", device="cpu")
    with pytest.raises(MissingWeights, match=r"FOLDER/Zipper-1/CARE"):
        load_slide_encoder("care", device="cpu", trust_remote_code=True)


# Laws ------------------------------------------------------------------------------------------


def test_the_order_of_the_tiles_does_not_matter(encoder: SlideEncoder) -> None:
    features, corners = some_bag()
    order = np.random.default_rng(1).permutation(len(features))
    found = encoder.embed(features, corners, 100.0)
    other = encoder.embed(features[order], corners[order], 100.0)
    np.testing.assert_allclose(other.embedding, found.embedding, atol=1e-5)
    np.testing.assert_allclose(other.attention, found.attention[:, order], atol=1e-5)


def test_places_matter_where_they_are_read(encoder: SlideEncoder) -> None:
    features, corners = some_bag()
    found = encoder.encode(features, corners, 100.0)
    other = encoder.encode(features, corners[::-1], 100.0)
    reads = encoder.name.removeprefix("small-") in READ_PLACES
    assert np.allclose(found, other, atol=1e-6) is not reads


def test_attention_sums_to_one(encoder: SlideEncoder) -> None:
    attention = encoder.embed(*some_bag(), 100.0).attention
    if encoder.name.removeprefix("small-") in WITHOUT_ATTENTION:
        assert attention.shape == (0, 37)
        return
    assert attention.shape[1] == 37
    assert (attention >= 0).all()
    np.testing.assert_allclose(attention.sum(axis=1), 1, atol=1e-5)


def test_one_tile_gets_weight_one(encoder: SlideEncoder) -> None:
    features, corners = some_bag(1)
    embedding, attention = encoder.embed(features, corners, 100.0)
    np.testing.assert_allclose(attention, 1, atol=1e-6)
    if encoder.name in (*POOLS, "small-chief", "small-cobra"):
        np.testing.assert_allclose(embedding, features[0], atol=1e-6)


@pytest.mark.parametrize("encoder", sorted({*POOLS, *KINDS} - {*READ_PLACES}), indirect=True)
def test_a_tile_ten_times_over_weighs_as_one(encoder: SlideEncoder) -> None:
    """Where places are not read: a mean, a maximum and a softmax do not count."""
    features, corners = some_bag()
    many = encoder.encode(np.repeat(features, 10, axis=0), np.repeat(corners, 10, axis=0), 100.0)
    np.testing.assert_allclose(many, encoder.encode(features, corners, 100.0), atol=1e-5)


@pytest.mark.parametrize("budget", [1, 100, 3000])
def test_blocks_change_nothing(encoder: SlideEncoder, budget: int) -> None:
    features, corners = some_bag(101)
    whole = encoder.embed(features, corners, 100.0, budget=10**9)
    parts = encoder.embed(features, corners, 100.0, budget=budget)
    np.testing.assert_allclose(parts.embedding, whole.embedding, atol=1e-5)
    np.testing.assert_allclose(parts.attention, whole.attention, atol=1e-5)


def test_the_same_bag_gives_the_same_bytes(encoder: SlideEncoder) -> None:
    bag = (*some_bag(), 100.0)
    assert encoder.encode(*bag).tobytes() == encoder.encode(*bag).tobytes()


def test_arrays_may_be_read_only_and_of_any_integers(encoder: SlideEncoder) -> None:
    features, corners = some_bag()
    found = encoder.encode(features, corners, 100.0)
    features.flags.writeable = False
    other = encoder.encode(features, corners.astype(np.int32), 100)
    assert np.array_equal(other, found)


def test_stored_as_float16_changes_little(encoder: SlideEncoder) -> None:
    features, corners = some_bag()
    halves = encoder.encode(features.astype(np.float16), corners, 100.0)
    np.testing.assert_allclose(halves, encoder.encode(features, corners, 100.0), atol=2e-2)


def test_half_precision_changes_little(encoder: SlideEncoder) -> None:
    """Autocast as on a GPU, here on the CPU."""
    bag = (*some_bag(), 100.0)
    found = encoder.encode(*bag)
    encoder._half = torch.bfloat16
    other = encoder.encode(*bag)
    assert other.dtype == np.float32
    assert np.abs(other - found).max() < 0.05 * np.abs(found).max()


@pytest.mark.parametrize("kind", ["titan", "gigapath", "cobra"])
def test_crooked_lattices_are_read_as_straight_ones(kind: str, tmp_path: Path) -> None:
    """Corners are whole pixels, rounded; a tile's side need not be."""
    encoder = loaded(kind, tmp_path)[0]
    features, corners = some_bag()
    straight = encoder.encode(features, corners, 100.0)
    for side in (101.587, 99.41):
        crooked = np.rint(corners / 100 * side).astype(np.int64)
        np.testing.assert_allclose(encoder.encode(features, crooked, side), straight, atol=1e-5)


def test_titan_adds_tiles_of_one_cell_and_leaves_out_empty_ones(tmp_path: Path) -> None:
    encoder = loaded("titan", tmp_path)[0]
    features, corners = some_bag()
    halves = np.concatenate([features / 2, features / 2, np.zeros((1, 20), np.float32)])
    places = np.concatenate([corners, corners + 40, [corners.max(axis=0) + 100]])
    expected = encoder.encode(features, corners, 100.0)
    np.testing.assert_allclose(encoder.encode(halves, places, 100.0), expected, atol=1e-5)
    shifted = encoder.encode(features, corners + np.array([7, 700]), 100.0)
    np.testing.assert_allclose(shifted, expected, atol=1e-5)
    with pytest.raises(ValueError, match="all tile embeddings are zero"):
        encoder.encode(features * 0, corners, 100.0)


# Memory ----------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation gave."""

    numbers = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else [out]:
            if isinstance(part, Tensor):
                self.numbers = max(self.numbers, part.numel())
        return out


MANY: dict[str, tuple[str, int, dict[str, Any]]] = {
    **KINDS,
    "titan": ("titan:Titan", 20,
              {"width": 8, "depth": 1, "heads": 2, "hidden": 8, "pool_heads": 2}),
    "gigapath": ("longnet:LongNet", 20,
                 {"width": 16, "layers": 1, "heads": 4, "segments": (64, 512, 10**6),
                  "dilations": (1, 2, 4)}),
    "cobra": ("cobra:Cobra", 20,
              {"input_dims": (20,), "width": 32, "heads": 2, "attention_dim": 6, "state": 8}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "count"),
    [("mean", 100_000), ("max", 100_000), ("feather", 100_000), ("madeleine", 100_000),
     ("chief", 100_000), ("prism", 100_000), ("cobra", 100_000), ("gigapath", 20_000),
     ("titan", 10_000)],
)  # fmt: skip
def test_no_tensor_grows_with_the_square_of_the_tiles(kind: str, count: int) -> None:
    """Nor, where tokens do not meet, with the tiles at all."""
    if kind in POOLS:
        encoder = load_slide_encoder(kind, device="cpu")
    else:
        architecture, dim, arguments = MANY[kind]
        own = {} if kind == "cobra" else {"input_dim": dim}
        spec = SlideEncoderSpec(
            "many", "", f"coverslip.encoders.networks.{architecture}", arguments | own
        )
        torch.manual_seed(0)
        encoder = SlideEncoder(spec, build(spec), "", "cpu")
    budget = 2**18
    features, corners = some_bag(count)
    with Largest() as largest:
        found = encoder.encode(features, corners, 100.0, budget=budget)
    assert np.isfinite(found).all()
    widest = {"titan": 24, "gigapath": 64, "cobra": 33}.get(kind, 4)  # numbers a token has
    assert largest.numbers <= max(budget, features.size, widest * (count + 1))


# Attention, piece by piece ---------------------------------------------------------------------


def test_sums_over_blocks_are_those_of_one_softmax() -> None:
    torch.manual_seed(0)
    scores, values = torch.randn(3, 2, 50) * 1000, torch.randn(3, 50, 4)
    found = SoftmaxSum()
    for part in (slice(0, 1), slice(1, 30), slice(30, 50)):
        found.add(scores[..., part], values[:, part])
    torch.testing.assert_close(found.result(), scores.softmax(dim=-1) @ values)


@pytest.mark.parametrize("segment", [29, 10**6])
def test_one_segment_without_dilation_is_plain_attention(segment: int) -> None:
    torch.manual_seed(0)
    layer = DilatedAttention(32, 4, (segment,), (1,))
    x = torch.randn(29, 32)
    parts = (layer.query(x), layer.key(x), layer.value(x))
    q, k, v = (part.unflatten(1, (4, 8)).transpose(0, 1)[None] for part in parts)
    plain = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)
    with torch.inference_mode():
        found = layer(x, budget=100)
    torch.testing.assert_close(found, layer.project(layer.norm(plain)), atol=1e-5, rtol=1e-5)


def test_heads_fall_into_groups() -> None:
    with pytest.raises(ValueError, match="6 heads do not fall into groups"):
        DilatedAttention(12, 6, (8, 16), (1, 4))


def test_the_distance_bias_of_three_tokens() -> None:
    cells = torch.tensor([[9.0, 9.0], [0.0, 0.0], [3.0, 4.0]])  # a class token and two tiles
    slopes = torch.tensor(alibi_slopes(8))
    bias = distance_bias(cells, slice(0, 3), slopes)
    expected = torch.tensor([[0, 0, 0], [0, 0, 5], [0, 5, 0]])
    torch.testing.assert_close(bias[0], -expected / 2)
    torch.testing.assert_close(bias[7], -expected / 256)
    torch.testing.assert_close(distance_bias(cells, slice(2, 3), slopes), bias[:, 2:])


def test_slopes_fall_geometrically() -> None:
    assert alibi_slopes(4) == [2**-2, 2**-4, 2**-6, 2**-8]
    assert alibi_slopes(12)[:8] == alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(12)[8:] == pytest.approx([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])


def test_places_have_codes_of_their_own() -> None:
    cells = torch.stack(torch.meshgrid(torch.arange(40), torch.arange(30), indexing="ij"), dim=-1)
    codes = place_codes(cells.reshape(-1, 2), 64)
    assert torch.cdist(codes, codes).fill_diagonal_(1).min() > 0.1
    torch.testing.assert_close(codes[0], torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat_interleave(16))
    assert torch.equal(codes[1, 32:], codes[0, 32:])  # the next row: the column's half is the same


def test_a_chunk_at_once_is_token_by_token() -> None:
    torch.manual_seed(0)
    x, decay = torch.randn(9, 2, 3), -torch.rand(9, 2)
    inward, outward, state = torch.randn(9, 4), torch.randn(9, 4), torch.randn(2, 3, 4)
    memory, expected = state.clone(), []
    for t in range(9):
        memory = memory * decay[t].exp()[:, None, None] + x[t][..., None] * inward[t]
        expected.append(memory @ outward[t])
    found = scan(x, decay, inward, outward, state)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, memory, atol=1e-5, rtol=1e-5)


def test_tiles_are_read_row_by_row() -> None:
    corners = torch.tensor([[200, 0], [0, 100], [100, 0], [100, 100]])
    bag = Bag(torch.zeros(4, 1), corners, 100.0, torch.device("cpu"), 10)
    assert bag.row_major().tolist() == [2, 0, 1, 3]
    assert bag.cells().tolist() == [[2, 0], [0, 1], [1, 0], [1, 1]]


# What is refused -------------------------------------------------------------------------------


def test_features_of_another_encoder_are_refused() -> None:
    small("feather")
    encoder = load_slide_encoder("small-feather", weights="random", device="cpu")
    features, corners = some_bag(5, 21)
    with pytest.raises(RecipeMismatch, match=r"(?s)small-feather stands on.*uni \(20.*\(21\)"):
        encoder.encode(features, corners, 100.0)
    with pytest.raises(RecipeMismatch, match=r"(?s)small-feather.*uni .*these.*of phikon \(20\)"):
        encoder.encode(features[:, :20], corners, 100.0, tile_encoder="phikon")
    assert encoder.encode(features[:, :20], corners, 100.0, tile_encoder="uni").shape == (12,)
    mean = load_slide_encoder("mean", device="cpu")
    assert mean.encode(features, corners, 100.0, tile_encoder="phikon").shape == (21,)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f, c: (f[:0], c[:0], 100.0), "no tiles to encode"),
        (lambda f, c: (f, c[:-1], 100.0), r"corners must be int \[37, 2\], got int64 \(36, 2\)"),
        (lambda f, c: (f, c * 1.0, 100.0), "corners must be int"),
        (lambda f, c: (f[0], c, 100.0), r"features must be float \[N, D\]"),
        (lambda f, c: (f.astype(np.int32), c, 100.0), "got int32"),
        (lambda f, c: (f, c, 0.0), "tile_px0 must be above 0, got 0.0"),
        (lambda f, c: (f * np.nan, c, 100.0), "not finite"),
    ],
)
def test_bags_that_mean_nothing_are_refused(change: Any, said: str) -> None:
    encoder = load_slide_encoder("mean", device="cpu")
    with pytest.raises(ValueError, match=said):
        encoder.encode(*change(*some_bag()))


# Networks that only the hub's code builds ------------------------------------------------------

MODELLING = """
from pathlib import Path
from types import SimpleNamespace
import torch
from transformers import PretrainedConfig, PreTrainedModel

Path({trace!r}).touch()

class TinyConfig(PretrainedConfig):
    model_type = "tiny-slide"

class Tiny(PreTrainedModel):
    config_class = TinyConfig
    def __init__(self, config):
        super().__init__(config)
        self.project = torch.nn.Linear({dim}, {out}, bias=False)
        self.text_decoder = torch.nn.Linear(1, 1)
        self.post_init()
    def forward(self, features, count, coords):
        assert count.tolist() == [features.shape[1]]
        found = self.project(features).mean(dim=1) + coords.float().mean()
        return SimpleNamespace(wsi_embedding=found)
    def get_base_embedding(self, tile_embeddings):
        return self.project(tile_embeddings).mean(dim=1)

class TinyProcessor:
    @classmethod
    def register_for_auto_class(cls, name="AutoProcessor"):
        pass
    @classmethod
    def from_pretrained(cls, *args, **options):
        return cls()
    def __call__(self, tile_embeddings):
        from transformers import BatchFeature
        return BatchFeature({{"tile_embeddings": torch.stack(tile_embeddings)}})
"""


@pytest.fixture
def repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[SlideEncoderSpec], tuple[Path, Tensor]]]:
    """Makes a repository as the hub would give it, with code of its own that leaves a trace."""
    pytest.importorskip("transformers")
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])

    def make(spec: SlideEncoderSpec) -> tuple[Path, Tensor]:
        folder = tmp_path / spec.hub
        folder.mkdir(parents=True)
        code = MODELLING.format(trace=str(tmp_path / "ran"), dim=spec.input_dim, out=spec.dim)
        (folder / "modeling_tiny.py").write_text(code)
        parts = {"AutoConfig": "TinyConfig", "AutoModel": "Tiny", "AutoProcessor": "TinyProcessor"}
        places = {auto: f"modeling_tiny.{name}" for auto, name in parts.items()}
        config = {"model_type": "tiny-slide", "architectures": ["Tiny"], "auto_map": places}
        (folder / "config.json").write_text(json.dumps(config))
        weight = torch.randn(spec.dim, spec.input_dim) * spec.input_dim**-0.5
        state = {"project.weight": weight, "text_decoder.weight": torch.zeros(1, 1),
                 "text_decoder.bias": torch.zeros(1)}  # fmt: skip
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return folder, weight

    yield make
    for name in [n for n in sys.modules if n.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["care", "prism2"])
def test_code_of_the_hub_runs_only_where_asked_for(
    name: str, repository: Callable[[SlideEncoderSpec], tuple[Path, Tensor]], tmp_path: Path
) -> None:
    spec = slide_encoder_spec(name)
    assert spec.weights == "remote-code"
    folder, weight = repository(spec)
    for weights in (None, folder, "random"):
        with pytest.raises(MissingWeights, match=rf"(?s){spec.hub}.*trust_remote_code=True"):
            load_slide_encoder(name, weights=weights, device="cpu")
    assert not (tmp_path / "ran").exists()
    features, corners = some_bag(7, spec.input_dim)
    expected = features.mean(axis=0) @ weight.numpy().T
    if name == "care":  # it was told where the tiles lie
        expected = expected + (corners // 100).mean()
    for weights in (folder, tmp_path):
        encoder = load_slide_encoder(name, weights=weights, device="cpu", trust_remote_code=True)
        assert (tmp_path / "ran").exists()
        found = encoder.encode(features, corners, 100.0)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert re.fullmatch("[0-9a-f]{64}", encoder.weights_sha256)


def test_code_that_cannot_be_loaded_names_its_folder(
    repository: Callable[[SlideEncoderSpec], tuple[Path, Tensor]], tmp_path: Path
) -> None:
    folder, _ = repository(slide_encoder_spec("care"))
    (folder / "modeling_tiny.py").write_text("raise RuntimeError('broken')\n")
    with pytest.raises(MissingWeights, match=r"Zipper-1/CARE: cannot be loaded.*broken"):
        load_slide_encoder("care", weights=folder, device="cpu", trust_remote_code=True)
    with pytest.raises(MissingWeights, match=r"no config\.json of care"):
        load_slide_encoder("care", weights=folder / "x", device="cpu", trust_remote_code=True)
    with pytest.raises(MissingWeights, match="comes with its weights"):
        load_slide_encoder("care", weights="random", device="cpu", trust_remote_code=True)
