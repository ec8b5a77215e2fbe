"""Recipes of published slide encoders."""

from __future__ import annotations

from collections.abc import Iterator

from coverslip.encoders.slide_registry import SlideEncoderSpec

NETWORKS = "coverslip.encoders.networks."
CHECKPOINTS = "coverslip.encoders.checkpoints."
POOLING = NETWORKS + "attention_pooling:"
KEYS = CHECKPOINTS + "slide_keys:"
NON_COMMERCIAL = "CC-BY-NC-ND-4.0"


def published_slide_encoders() -> Iterator[SlideEncoderSpec]:
    """All recipes, each with what it stands on, its source and licence."""
    for name, pooling in (("mean", "MeanPooling"), ("max", "MaxPooling")):
        yield SlideEncoderSpec(name, "", POOLING + pooling, weights="none", licence="Apache-2.0")
    yield SlideEncoderSpec(
        "titan", "conch-v1.5", NETWORKS + "titan:Titan", {}, 768, 768, mpp=0.5, tile_px=512,
        hub="MahmoodLab/TITAN", revision="dac6773d9961cfc75503440676ff157a2c6e8d2e",
        key_mapping=KEYS + "titan", dtype="float16", licence=NON_COMMERCIAL, gated=True,
        parameters=45.49,
    )  # fmt: skip
    yield SlideEncoderSpec(
        "prism", "virchow", NETWORKS + "prism:Prism", {}, 1280, 2560, mpp=0.5, tile_px=224,
        hub="paige-ai/Prism", key_mapping=KEYS + "prism", dtype="float16", licence=NON_COMMERCIAL,
        gated=True, parameters=99.04,
    )  # fmt: skip
    yield SlideEncoderSpec(
        "prism2", "virchow2-cls", CHECKPOINTS + "remote_slide:Prism2", {}, 2560, 1280,
        mpp=0.5, tile_px=224, hub="paige-ai/Prism2",
        revision="450352d0ddc6b42b21ce20794ce0fbefe6b5a47a", weights="remote-code",
        dtype="bfloat16", licence=NON_COMMERCIAL, gated=True,
    )  # fmt: skip
    yield SlideEncoderSpec(
        "care", "conch-v1.5", CHECKPOINTS + "remote_slide:Care", {}, 512, 768, mpp=0.5,
        tile_px=512, hub="Zipper-1/CARE", weights="remote-code", licence="CC-BY-NC-4.0", gated=True,
    )  # fmt: skip
    yield SlideEncoderSpec(
        "chief", "ctranspath", POOLING + "Chief", {}, 768, 768, mpp=1.0, tile_px=256, weights="",
        key_mapping=KEYS + "chief", licence="AGPL-3.0", parameters=0.66,
    )  # fmt: skip
    yield SlideEncoderSpec(
        "gigapath", "gigapath", NETWORKS + "longnet:LongNet", {}, 768, 1536, mpp=0.5,
        tile_px=256, hub="prov-gigapath/prov-gigapath", file="slide_encoder.pth",
        key_mapping=KEYS + "gigapath", dtype="float16", licence="Apache-2.0 with terms",
        gated=True, parameters=79.23,
    )  # fmt: skip
    yield SlideEncoderSpec(
        "gigapath-flash", "gigapath-flash", NETWORKS + "longnet:LongNet",
        {"input_dim": 384, "width": 384}, 384, 384, mpp=0.5, tile_px=256,
        hub="prov-gigapath/prov-gigapath-flash", file="slide_encoder.pth",
        key_mapping=KEYS + "gigapath", dtype="float16", licence="Apache-2.0 with terms",
        gated=True, parameters=19.71,
    )  # fmt: skip
    yield SlideEncoderSpec(
        "madeleine", "conch", POOLING + "MultiHeadPooling", {"input_dim": 512}, 512, 512, mpp=1.0,
        tile_px=256, hub="MahmoodLab/madeleine", file="model.pt",
        key_mapping=KEYS + "madeleine", licence="MIT", gated=True, parameters=4.73,
    )  # fmt: skip
    yield SlideEncoderSpec(
        "tangle", "uni", POOLING + "MultiHeadPooling", {"input_dim": 1024}, 512, 1024, mpp=0.5,
        tile_px=256, weights="", key_mapping=KEYS + "tangle", licence=NON_COMMERCIAL,
        parameters=5.0,
    )  # fmt: skip
    yield from _feather()
    yield from _cobra()


def _feather() -> Iterator[SlideEncoderSpec]:
    """Attention pooling trained to tell 108 kinds of cancer apart (Shao et al. 2025)."""
    for name, encoder, theirs, dim, tile_px, revision, parameters in (
        ("feather", "conch-v1.5", "conch_v15", 768, 512,
         "423c894c738294e8b0ac38938108180a2c21dd43", 0.79),
        ("feather-uni", "uni", "uni", 1024, 256, "", 0.92),
        ("feather-uni2", "uni2-h", "uni_v2", 1536, 256, "", 1.18),
    ):  # fmt: skip
        yield SlideEncoderSpec(
            name, encoder, POOLING + "AttentionPooling", {"input_dim": dim}, 512, dim, mpp=0.5,
            tile_px=tile_px, hub=f"MahmoodLab/abmil.base.{theirs}.pc108-24k", revision=revision,
            file="model.safetensors", key_mapping=KEYS + "feather", licence=NON_COMMERCIAL,
            gated=True, parameters=parameters,
        )  # fmt: skip


def _cobra() -> Iterator[SlideEncoderSpec]:
    """COBRA II: one network for four tile encoders, at 5x to 30x; its authors' example is 1 µm."""
    for encoder, dim in (
        ("conch", 512), ("uni", 1024), ("virchow2-cls", 1280), ("h-optimus-0", 1536)
    ):  # fmt: skip
        yield SlideEncoderSpec(
            f"cobra2-{encoder}", encoder, NETWORKS + "cobra:Cobra", {}, dim, dim, mpp=1.0,
            tile_px=224, hub="KatherLab/COBRA", file="cobraII.pth.tar",
            key_mapping=KEYS + "cobra", licence="GPL-3.0", gated=True, parameters=11.06,
        )  # fmt: skip
