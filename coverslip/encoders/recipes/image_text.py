"""Recipes of encoders that see images and read text alike. Nothing here loads anything.

Their image embedding is the projected one, which is what text is compared with. `parameters` is
what the image tower holds when built, in millions, as the tests count it. Where the authors do not
say at which pixel size they trained (KEEP, OmiCLIP), 0.5 µm stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from coverslip.encoders.registry import EncoderSpec
from coverslip.errors import UnknownName

CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
HALF = (0.5, 0.5, 0.5)
TOWERS = "coverslip.encoders.networks.clip_towers"
KEYS = "coverslip.encoders.checkpoints.clip_keys"

VIT_B_32: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
COCA_L_14: dict[str, Any] = {
    "embed_dim": 768,
    "vision_cfg": {
        "image_size": 224, "layers": 24, "width": 1024, "patch_size": 14,
        "attentional_pool": True, "attn_pooler_heads": 8, "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 76, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12,
        "embed_cls": True, "output_tokens": True,
    },
}  # fmt: skip
PREFIX = "open_clip:"


def clip_encoders() -> Iterator[EncoderSpec]:
    """All recipes, each with its source, licence and whether access has to be asked for."""
    open_clip = EncoderSpec(
        "", f"{TOWERS}:open_clip_image", **CLIP, key_mapping=f"{KEYS}:image",
        text=f"{TOWERS}:open_clip_text", dtype="float32",
    )  # fmt: skip
    yield replace(
        open_clip, name="plip", arguments={**VIT_B_32, "quick_gelu": True}, dim=512,
        hub="vinid/plip", revision="67ade53ddd32195868f422585f72698ef5d15094",
        file="pytorch_model.bin",
        sha256="98a7f8d2a1f4a8fc8f6dedb3a16ff7efbe02a7ef67c93904c80bca9767c69630",
        licence="MIT", parameters=87.85,
    )  # fmt: skip
    yield replace(
        open_clip, name="quiltnet-b-32", arguments=VIT_B_32, dim=512,
        hub="wisdomik/QuiltNet-B-32", revision="8ce77289ce35a90b2f1db1137dfa4bc2df175e33",
        file="open_clip_pytorch_model.bin",
        sha256="e88815d05f50493a54fc2bab7ccf54075d24339d7b217e6f173c0c158ace92e7",
        licence="MIT", parameters=87.85,
    )  # fmt: skip
    yield replace(
        open_clip, name="biomedclip",
        arguments={
            "embed_dim": 512,
            "vision_cfg": {"timm_model_name": "vit_base_patch16_224", "timm_pool": "",
                           "timm_proj": "linear", "image_size": 224},
        },
        dim=512, text=f"{TOWERS}:biomedclip_text",
        hub="microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        revision="9f341de24bfb00180f1b847274256e9b65a3a32e", file="open_clip_pytorch_model.bin",
        sha256="52cc993c5c5ff962bd0c60931874bc001e7e9b41666a385530f4a036294576be",
        licence="MIT", parameters=86.19,
    )  # fmt: skip
    yield replace(
        open_clip, name="omiclip", arguments=COCA_L_14, dim=768,
        hub="WangGuangyuLab/Loki", file="checkpoint.pt", licence="BSD-3-Clause", gated=True,
        parameters=306.72,
    )  # fmt: skip
    yield EncoderSpec(
        "conch", f"{TOWERS}:ConchImage", {"dim": 512, "side": 448}, 512, 448, **CLIP,
        key_mapping=f"{KEYS}:conch_image", text=f"{TOWERS}:conch_text", hub="MahmoodLab/CONCH",
        revision="f9ca9f877171a28ade80228fb195ac5d79003357", file="pytorch_model.bin",
        sha256="40a9644b9ba0e83a74576e0a5e5f7313599fa9c9cdaf3c20f8a3e271b0e9ae7c",
        dtype="float32", licence="CC-BY-NC-ND-4.0", gated=True, parameters=87.83,
    )  # fmt: skip
    yield EncoderSpec(
        "keep", f"{TOWERS}:KeepImage", {"dim": 768}, 768, key_mapping=f"{KEYS}:keep_image",
        text=f"{TOWERS}:keep_text", hub="Astaxanthin/KEEP",
        revision="28a25d95cc6ba27a7e6fab3f144e13dbafd8b21e", file="model.safetensors",
        sha256="82f610d5359aca67b5fd5d841009f26db430ae78d0693743589c0a727b0a146d",
        dtype="float16", licence="MIT", parameters=304.73,
    )  # fmt: skip
    yield EncoderSpec(
        "musk", "coverslip.encoders.networks.musk:musk_image", {}, 1024, 384, mean=HALF, std=HALF,
        key_mapping=f"{KEYS}:musk_image", text=f"{TOWERS}:musk_text", hub="xiangjx/musk",
        revision="de1ffed28608c197d2903f6fa42b491a3fbf0fb8", file="model.safetensors",
        sha256="83d9f2429ec3f04fc3bdc4bc6d8e6c78035ea196fdce9fe05d76ea0e8cad0375",
        dtype="float16", licence="CC-BY-NC-ND-4.0", gated=True, parameters=304.99,
    )  # fmt: skip


def open_clip_spec(name: str) -> EncoderSpec:
    """Any architecture of open_clip, and how tiles go in for one of its published weights.

    name   "open_clip:ViT-B-32", prepared as CLIP's own images; "open_clip:ViT-B-16-SigLIP.webli",
           as for the weights that open_clip calls so

    Without such a name the weights are a local checkpoint. Raises UnknownName with the near misses;
    MissingPackage.
    """
    from coverslip.encoders.text_tokens import text_package

    package = text_package("open_clip", f"encoder {name}")
    model, _, tag = name.removeprefix(PREFIX).partition(".")
    config = package.get_model_config(model)
    if config is None:
        known = [PREFIX + known for known in package.list_models()]
        raise UnknownName("encoder", name, known)
    published = package.get_pretrained_cfg(model, tag) if tag else {}
    if tag and not published:
        tags = package.list_pretrained_tags_by_model(model)
        raise UnknownName("encoder", name, [f"{PREFIX}{model}.{known}" for known in tags])
    owner, _, file = published.get("hf_hub", "").rpartition("/")
    arguments = {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}
    arguments["vision_cfg"]["timm_model_pretrained"] = False
    arguments["quick_gelu"] = bool(config.get("quick_gelu") or published.get("quick_gelu"))
    mean, std = published.get("mean", CLIP["mean"]), published.get("std", CLIP["std"])
    return EncoderSpec(
        name.replace(":", "_"), f"{TOWERS}:open_clip_image", arguments, config["embed_dim"],
        config["vision_cfg"].get("image_size", 224), mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        interpolation="bilinear" if published.get("interpolation") == "bilinear" else "bicubic",
        key_mapping=f"{KEYS}:image", text=f"{TOWERS}:open_clip_text",
        weights="hub" if owner else "", hub=owner,
        file=(file or "open_clip_model.safetensors") if owner else "", dtype="float32",
    )  # fmt: skip
