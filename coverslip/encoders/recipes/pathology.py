"""Recipes of published tile encoders: where their weights are and exactly how tiles go in.

Tools disagree on the preprocessing of the same weights; these follow the model cards. Nothing here
loads anything. `parameters` is what the network holds when built, in millions, as the tests count
it. Where a card does not say at which pixel size tiles were cut, 0.5 µm stands, as the field takes
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from coverslip.encoders.recipes.natural_images import natural_image_encoders
from coverslip.encoders.recipes.own_networks import encoders_with_networks_of_their_own
from coverslip.encoders.registry import EncoderSpec

KEYS = "coverslip.encoders.checkpoints.vision_keys:"
HALF = (0.5, 0.5, 0.5)
HOPTIMUS: dict[str, Any] = {
    "mean": (0.707223, 0.578729, 0.703617),
    "std": (0.211883, 0.230117, 0.177517),
}
HIBOU: dict[str, Any] = {"mean": (0.7068, 0.5755, 0.722), "std": (0.195, 0.2316, 0.1816)}
KAIKO = "1aurent/vit_{}.kaiko_ai_towards_large_pathology_fms"
VIT_KEYS = KEYS + "vit"
DINOV2_KEYS = KEYS + "dinov2"
DINOV2_OWN_KEYS = KEYS + "dinov2_own"

SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
LARGE: dict[str, Any] = {"init_values": 1e-5, "dynamic_img_size": True}
VIRCHOW: dict[str, Any] = {
    "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "",
    "dynamic_img_size": True, **SWIGLU,
}  # fmt: skip
GIANT: dict[str, Any] = {"img_size": 224, "init_values": 1e-5}


def published_encoders() -> Iterator[EncoderSpec]:
    """All recipes, each with its source, licence and whether access has to be asked for."""
    yield from _uni()
    yield from _paige()
    yield from _gigapath()
    yield from _bioptimus()
    yield from _owkin()
    yield from _midnight()
    yield from _large_transformers()
    yield from _hibou()
    yield from _kaiko()
    yield from _lunit()
    yield from _small_transformers()
    yield from _convolutional()
    yield from _dinobloom()
    for name, rotary, parameters in (("pluto-s", False, 21.68), ("pluto-4s", True, 21.60)):
        yield EncoderSpec(
            name, "coverslip.encoders.pluto:pluto_small", {"rotary": rotary}, 384,
            pooling="cls", weights="", licence="yours: trained by you", parameters=parameters,
        )  # fmt: skip
    yield from encoders_with_networks_of_their_own()
    yield from natural_image_encoders()


def _other_pooling(spec: EncoderSpec, pooling: Literal["cls", "cls+mean"], dim: int) -> EncoderSpec:
    """The same network and weights under a name that says how its tokens are pooled."""
    ending = pooling.replace("+", "-")
    return replace(spec, name=f"{spec.name}-{ending}", pooling=pooling, dim=dim)


def _uni() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        "uni", "vit_large_patch16_224", LARGE, 1024, interpolation="bilinear", pooling="cls",
        hub="MahmoodLab/UNI", revision="b55a5ec6cade1a39edfe6534189a9b8ca7a022f0",
        file="pytorch_model.bin",
        sha256="56ef09b44a25dc5c7eedc55551b3d47bcd17659a7a33837cf9abc9ec4e2ffb40",
        dtype="float16", licence="CC-BY-NC-ND-4.0", gated=True, parameters=303.35,
    )  # fmt: skip
    second = EncoderSpec(
        "uni2-h", "vit_giant_patch14_224",
        {"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5,
         "embed_dim": 1536, "mlp_ratio": 5.33334, "no_embed_class": True, "reg_tokens": 8,
         "dynamic_img_size": True, **SWIGLU},
        1536, interpolation="bilinear", pooling="cls", hub="MahmoodLab/UNI2-h",
        revision="d517a8dd47902dd7c308b3c36f63bce47e7b9a43", file="pytorch_model.bin",
        sha256="6e077eda234bebc595868d918d3458d9dd32a050199b0ff04443b2f46a0a3b1e",
        dtype="bfloat16", licence="CC-BY-NC-ND-4.0", gated=True, parameters=681.39,
    )  # fmt: skip
    yield second
    yield replace(
        second, name="seal-uni2-h", base="uni2-h", key_mapping=KEYS + "seal",
        hub="MahmoodLab/SEAL", revision="c20762e7a04551e21e62c083a9c443bdbc48cb89",
        file="seal_univ2_vision.pth",
        sha256="e7ae736968c355ae02e565ee828f1ed6bd9ffe01b7dbc5a9166b3a55d746bd49",
    )  # fmt: skip


def _paige() -> Iterator[EncoderSpec]:
    for name, registers, revision, sha256, licence, parameters in (
        ("Virchow", {}, "19eebc84ae33e79f1b2d866e6ff90ae50e522f9a",
         "3416891b37a2349a2d9ce7ecf00b64a6277011b41351436c1ceb0abb80805408",
         "Apache-2.0", 631.23),
        ("Virchow2", {"reg_tokens": 4}, "3158645804b69e3f3bc4439d4116edddf0840a72",
         "8d6cea947eb2418c3b0dff48cfb9b238e47744ab0dfca21b2b0637b140769b4b",
         "CC-BY-NC-ND-4.0", 631.24),
    ):  # fmt: skip
        spec = EncoderSpec(
            name.lower(), "vit_huge_patch14_224", {**VIRCHOW, **registers}, 2560,
            pooling="cls+mean", hub=f"paige-ai/{name}", revision=revision,
            file="model.safetensors", sha256=sha256, dtype="float16", licence=licence, gated=True,
            parameters=parameters,
        )  # fmt: skip
        yield spec
        yield _other_pooling(spec, "cls", 1280)


def _gigapath() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        "gigapath", "vit_giant_patch14_dinov2",
        {**GIANT, "patch_size": 16, "depth": 40, "num_heads": 24, "embed_dim": 1536,
         "mlp_ratio": 5.33334},
        1536, crop=0.875, pooling="cls", hub="prov-gigapath/prov-gigapath",
        revision="eba85dd46097c3eedfcc2a3a9a930baecb6bcc19", file="pytorch_model.bin",
        sha256="877947214318afa9e011754b74bbc3894a1f480a253afc7bc8045b8321dedd63",
        dtype="float16", licence="Apache-2.0 with terms", gated=True, parameters=1134.95,
    )  # fmt: skip
    yield EncoderSpec(
        "gigapath-flash", "vit_small_patch16_224",
        {**LARGE, "mlp_ratio": 2048 / 384, **SWIGLU}, 384, crop=0.875, pooling="cls",
        hub="prov-gigapath/prov-gigapath-flash", file="pytorch_model.bin", dtype="float16",
        licence="Apache-2.0 with terms", gated=True, parameters=21.68,
    )  # fmt: skip


def _bioptimus() -> Iterator[EncoderSpec]:
    for number, revision, file, sha256, licence in (
        ("0", "b145cc1e6c6b30d3251aa8b1f844e6974188a743", "pytorch_model.bin",
         "bf47b8467403079798661601b6ab06533be789da48d3f8b510aaefe2fbc55cd3", "Apache-2.0"),
        ("1", "3592cb220dec7a150c5d7813fb56e68bd57473b9", "model.safetensors",
         "c4f1e5b457ddf00679626053b0bf2899be6a19c3a04ad191c87ad1cdfd1abfe1", "CC-BY-NC-ND-4.0"),
    ):  # fmt: skip
        yield EncoderSpec(
            f"h-optimus-{number}", "vit_giant_patch14_reg4_dinov2", GIANT, 1536, **HOPTIMUS,
            pooling="cls", hub=f"bioptimus/H-optimus-{number}", revision=revision, file=file,
            sha256=sha256, dtype="float16", licence=licence, gated=True, parameters=1134.77,
        )  # fmt: skip
    mini = EncoderSpec(
        "h0-mini", "vit_base_patch14_reg4_dinov2", {**GIANT, "mlp_ratio": 5.33334, **SWIGLU},
        768, **HOPTIMUS, pooling="cls", hub="bioptimus/H0-mini",
        revision="5b5cc0505d19ae558270045eb0df8c34df4d9609", file="model.safetensors",
        sha256="5e4de45a6527a8160f7c21fe3105c987757efe30ce581e1f2cf5809476069ade",
        dtype="float16", licence="CC-BY-NC-ND-4.0", gated=True, parameters=85.74,
    )  # fmt: skip
    yield mini
    yield _other_pooling(mini, "cls+mean", 1536)


def _owkin() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        "phikon", "vit_base_patch16_224", {}, 768, interpolation="bilinear", pooling="cls",
        hub="owkin/phikon", revision="057cc0295895c2df3dd7681a89680da6015cbefe",
        file="model.safetensors",
        sha256="d01642bfeb683c6b039622eca273e0a8e4208065a4595b63edba178c1c4cfa68",
        key_mapping=VIT_KEYS, dtype="float32", licence="Owkin non-commercial", parameters=85.80,
    )  # fmt: skip
    yield EncoderSpec(
        "phikon-v2", "vit_large_patch16_224", {"init_values": 1e-5}, 1024, pooling="cls",
        hub="owkin/phikon-v2", revision="2ae989a9c40cffaa27f0a6cb29cc94d1d6f9a5fd",
        file="model.safetensors",
        sha256="261ae680fa699b3b951597fd57aa19c02ef735805acb104b93af69b36d928569",
        key_mapping=DINOV2_KEYS, dtype="float32", licence="Owkin non-commercial",
        parameters=303.35,
    )  # fmt: skip


def _midnight() -> Iterator[EncoderSpec]:
    spec = EncoderSpec(
        "midnight-12k", "vit_giant_patch14_dinov2", GIANT, 3072, mean=HALF, std=HALF,
        interpolation="bilinear", pooling="cls+mean", hub="kaiko-ai/midnight",
        revision="adc6b15679c981cce6f9b018bbad09d16eeeda9f", file="model.safetensors",
        sha256="52c14f20386ca17c2af8a7bf32c31c352668a8fbf6aefc88d86be6eaa0c72ca1",
        key_mapping=DINOV2_KEYS, dtype="float16", licence="MIT", parameters=1134.77,
    )  # fmt: skip
    yield spec
    yield _other_pooling(spec, "cls", 1536)
    yield EncoderSpec(
        "openmidnight", "vit_giant_patch14_reg4_dinov2", GIANT, 1536, interpolation="bilinear",
        pooling="cls", hub="SophontAI/OpenMidnight", file="teacher_checkpoint_load.pt",
        key_mapping=DINOV2_OWN_KEYS, dtype="float16", licence="Apache-2.0", gated=True,
        parameters=1134.77,
    )  # fmt: skip


def _large_transformers() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        "gpfm", "vit_large_patch14_dinov2", {"img_size": 224, "init_values": 1e-5}, 1024,
        pooling="cls", hub="majiabo/GPFM", revision="c2e0c6c7cea4d7ae67151c3375d780712f82254e",
        file="GPFM.pth", sha256="ebde1a9d7d9098848034bcff30f8771034c8d0b69e32846fa266940f2fd4604c",
        key_mapping=DINOV2_OWN_KEYS, dtype="float32",
        licence="CC-BY-NC-ND-4.0", parameters=303.23,
    )  # fmt: skip
    yield EncoderSpec(
        "mstar", "vit_large_patch16_224", LARGE, 1024, interpolation="bilinear", pooling="cls",
        hub="Wangyh/mSTAR", revision="162ae5da9897d4ff8b9a4c2daea175ae45012ef7",
        file="model.safetensors",
        sha256="13b2df84648420bbc0fd2eca43ddfb5b7c9764920149988b3e015f39ed6f07ee",
        dtype="float32", licence="CC-BY-NC-ND-4.0", gated=True, parameters=303.35,
    )  # fmt: skip
    yield EncoderSpec(
        "pathorchestra", "vit_large_patch16_224", LARGE, 1024, interpolation="bilinear",
        pooling="cls", hub="AI4Pathology/PathOrchestra",
        revision="8280b11a63919f25e4610f3315c2646b5f38bbb5", file="pytorch_model.bin",
        sha256="3bcf28a162ed187d63ce42b41096eb298702b6d1be8640555660b053354db912",
        dtype="float32", licence="CC-BY-NC-ND-4.0", gated=True, parameters=303.35,
    )  # fmt: skip


def _hibou() -> Iterator[EncoderSpec]:
    """DINOv2 with registers and, unlike its other sizes, a gated MLP."""
    for name, hub, size, hidden, dim, revision, sha256, parameters in (
        ("hibou-b", "hibou-b", "base", 2048, 768, "7fdc8cce365ebfd9e7e60ee6ee9a8d4d59388f3c",
         "2121db3cac83bc9abf13a458a37b0740e2ce725609ff8d4b8e6b6c56c30c3ab6", 85.74),
        ("hibou-l", "hibou-L", "large", 2736, 1024, "31a3b9fee16554c8552cb643d311733bce8faf7c",
         "a63d1699448143ceccf2b7e1c4bf35b995c51f86ef8a6efb471af2eee210b79c", 303.66),
    ):  # fmt: skip
        yield EncoderSpec(
            name, f"vit_{size}_patch14_reg4_dinov2",
            {**GIANT, "mlp_ratio": 2 * hidden / dim, **SWIGLU}, dim, **HIBOU, pooling="cls",
            hub=f"histai/{hub}", revision=revision, file="model.safetensors", sha256=sha256,
            key_mapping=DINOV2_KEYS, dtype="float32", licence="Apache-2.0", gated=True,
            parameters=parameters,
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
            pooling="cls", hub="MarrLab/DinoBloom", file=f"pytorch_model_{size[0]}.bin",
            key_mapping=DINOV2_OWN_KEYS, dtype="bfloat16", licence="Apache-2.0",
            parameters=parameters,
        )  # fmt: skip


def _kaiko() -> Iterator[EncoderSpec]:
    for name, hub, architecture, dim, parameters in (
        ("kaiko-vits16", "small_patch16_224", "vit_small_patch16_224", 384, 21.67),
        ("kaiko-vits8", "small_patch8_224", "vit_small_patch8_224", 384, 21.67),
        ("kaiko-vitb16", "base_patch16_224", "vit_base_patch16_224", 768, 85.80),
        ("kaiko-vitb8", "base_patch8_224", "vit_base_patch8_224", 768, 85.81),
    ):
        yield EncoderSpec(
            name, architecture, {"img_size": 224, "dynamic_img_size": True}, dim,
            mean=HALF, std=HALF, interpolation="bilinear", pooling="cls",
            hub=KAIKO.format(hub), dtype="float32", licence="Kaiko non-commercial",
            parameters=parameters,
        )  # fmt: skip
    yield EncoderSpec(
        "kaiko-vitl14", "vit_large_patch14_reg4_dinov2",
        {"img_size": 224, "dynamic_img_size": True}, 1024, mean=HALF, std=HALF,
        interpolation="bilinear", pooling="cls", hub=KAIKO.format("large_patch14_reg4_224"),
        revision="fb802e347d2c59f05207b70ad75f7df30019c188", file="model.safetensors",
        sha256="149c8b21c60a7115a17572073b09ef142411c91b5194c84a99ebba8b83f20e69",
        dtype="float32", licence="Kaiko non-commercial", parameters=303.23,
    )  # fmt: skip


def _lunit() -> Iterator[EncoderSpec]:
    for patch, revision, sha256 in (
        (8, "c23bc01cfbe022bc1f2a8a9306125a07818e4eb4",
         "0b7e0236ce430064b31485bbb6f85e661dc5eca0cde709e8f04d59f1c2b23e0b"),
        (16, "9ed09909d93f9d39a092d8e49717ae48f9b44e6f",
         "a19eb37d6cf038a7e8a34c7e9ec50698d02759b2f49dd799492f6ce7e4cb5937"),
    ):  # fmt: skip
        yield EncoderSpec(
            f"lunit-vits{patch}", f"vit_small_patch{patch}_224", {}, 384, pooling="cls",
            mean=(0.70322989, 0.53606487, 0.66096631), std=(0.21716536, 0.26081574, 0.20723464),
            hub=f"1aurent/vit_small_patch{patch}_224.lunit_dino", revision=revision,
            file="model.safetensors", sha256=sha256, dtype="float32",
            licence="Lunit non-commercial", parameters=21.67,
        )  # fmt: skip


def _small_transformers() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        "sp22m", "vit_small_patch16_224", {}, 384, pooling="cls", hub="MountSinaiCompPath/SP22M",
        revision="8f636e50446c6b45008fa8cecf30f7bc92633a11", file="pytorch_model.bin",
        sha256="4776892690a941a5728157c38d64aab549d7b861394a328cf3a5620222c4ff41",
        dtype="float32", licence="CC-BY-NC-SA-4.0", parameters=21.67,
    )  # fmt: skip


def _convolutional() -> Iterator[EncoderSpec]:
    yield EncoderSpec(
        "kimianet", "densenet121", {}, 1024, input_px=1000, interpolation="bilinear",
        key_mapping=KEYS + "kimianet", weights="", dtype="float32",
        licence="Kimia Lab, academic", parameters=6.95,
    )  # fmt: skip
    yield EncoderSpec(
        "retccl", "resnet50", {}, 2048, input_px=256, mpp=1.0, interpolation="bilinear",
        hub="jamesdolezal/RetCCL", revision="076c6d18dd11f9ca951c6e294c31a021b42df494",
        file="retccl.pth",
        sha256="931956f31d3f1a3f6047f3172b9e59ee3460d29f7c0c2bb219cbc8e9207795ff",
        dtype="float32", licence="GPL-3.0", parameters=23.51,
    )  # fmt: skip
