"""Recipes of encoders whose networks timm lacks: built here, or by code that comes with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from coverslip.encoders.registry import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec

NETWORKS = "coverslip.encoders.networks."
KEYS = "coverslip.encoders.checkpoints.vision_keys:"
HALF = (0.5, 0.5, 0.5)
GRANDQC_CLASSES = (
    "unlabelled", "tissue", "fold", "dark-spot", "pen", "air-bubble-or-edge", "out-of-focus",
    "background",
)  # fmt: skip
"""By the number that GrandQC gives them: 0 marks what nobody annotated."""


def encoders_with_networks_of_their_own() -> Iterator[EncoderSpec]:
    """All recipes, each with its source, licence and whether access has to be asked for."""
    yield EncoderSpec(
        "ctranspath", NETWORKS + "ctranspath:ctranspath", {}, 768,
        interpolation="bilinear", hub="1aurent/swin_tiny_patch4_window7_224.CTransPath",
        revision="59c740e4ed91dda4ebe094b64e4cd2e015c31810", file="model.safetensors",
        sha256="158e29683f19cfb0018d040b95610802b640db60d38b00b25ea7db674cd141e4",
        key_mapping=KEYS + "ctranspath", dtype="float32", licence="GPL-3.0",
        parameters=27.52,
    )  # fmt: skip
    yield EncoderSpec(
        "conch-v1.5", NETWORKS + "conch_v15:ConchV15", {}, 768, 448,
        interpolation="bilinear", hub="MahmoodLab/TITAN",
        revision="dac6773d9961cfc75503440676ff157a2c6e8d2e", file="conch_v1_5_pytorch_model.bin",
        sha256="09daf1912a016512e084636f9c76eee7c42f5c1f09b0461bb76082a3e0fecfa5",
        key_mapping=NETWORKS + "conch_v15:own_keys", dtype="float16",
        licence="CC-BY-NC-ND-4.0", gated=True, parameters=306.71,
    )  # fmt: skip
    yield EncoderSpec(
        "genbio-pathfm", NETWORKS + "pathfm:PathFM", {}, 4608,
        mean=(0.697, 0.575, 0.728), std=(0.188, 0.240, 0.187), interpolation="bilinear",
        hub="genbio-ai/genbio-pathfm", file="model.pth",
        key_mapping=NETWORKS + "pathfm:own_keys", dtype="bfloat16",
        licence="GenBio AI Community", gated=True, parameters=1133.69,
    )  # fmt: skip
    yield EncoderSpec(
        "isight", NETWORKS + "isight:ISight", {}, 1024, 336,
        mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
        hub="nirschl-lab/iSight", file="checkpoints/iSight_model_checkpoint.pth",
        key_mapping=NETWORKS + "isight:own_keys", dtype="float16",
        licence="see its page", parameters=304.56,
    )  # fmt: skip
    for stain in ("he", "ihc"):
        yield EncoderSpec(
            f"pathoduet-{stain}", NETWORKS + "pathoduet:PathoDuet", {}, 768,
            mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear",
            key_mapping=NETWORKS + "pathoduet:own_keys", weights="",
            file=f"checkpoint_{stain.upper()}.pth", dtype="float32", licence="CC-BY-NC-4.0",
            parameters=85.80,
        )  # fmt: skip
    yield from _known_as_code()
    yield from _grandqc()


def _known_as_code() -> Iterator[EncoderSpec]:
    """Networks that only the code in their repositories builds; nobody counted them here."""
    code = EncoderSpec(
        "", "coverslip.encoders.checkpoints.remote_code:unknown_network", pooling="cls",
        weights="remote-code", dtype="float32", gated=True,
    )  # fmt: skip
    yield replace(
        code, name="phaet", arguments={"prefix_tokens": 1}, dim=1024, hub="wearewaiv/phaet",
        revision="e0ce6e0ee248470bd8604823e412ca64048a2495", mean=IMAGENET_MEAN,
        std=IMAGENET_STD, licence="Waiv non-commercial",
    )  # fmt: skip
    yield replace(
        code, name="mascaret", arguments={"prefix_tokens": 1}, dim=1536, hub="wearewaiv/mascaret",
        revision="e95e7ea15e039e78d74def101415e19d9a67ba80", mean=HALF, std=HALF,
        interpolation="bilinear", licence="Waiv non-commercial",
    )  # fmt: skip
    for name, hub, dim, revision in (
        ("rudolfv-2-s", "RudolfV-2-S", 384, "76abacd512a98c72a6db6192af9fc98313c3bd78"),
        ("rudolfv-2-b", "RudolfV-2-B", 768, "b2cb55c8fff8aaaf9cc16fda6d09bfb21dfc6db8"),
        ("rudolfv-2", "RudolfV-2", 1536, "482d9519c6a10fc22fbe5bcd6a87d5daf056643c"),
    ):
        rudolf = replace(
            code, name=name, arguments={"prefix_tokens": 9}, dim=dim, hub=f"Aignostics/{hub}",
            revision=revision, mean=(0.7072, 0.5787, 0.7036), std=(0.2119, 0.2301, 0.1775),
            licence="CC-BY-NC-ND-4.0 with terms",
        )  # fmt: skip
        yield rudolf
        yield replace(rudolf, name=f"{name}-cls-mean", pooling="cls+mean", dim=2 * dim)


def _grandqc() -> Iterator[EncoderSpec]:
    """Quality of each tile: which share of its pixels shows which artefact, and how much is tissue.

    Its authors publish the first as pickled models, which have to be converted once; for the
    second they compress slides by JPEG at quality 80 before, which is not done here.
    """
    hub = "MahmoodLab/hest-tissue-seg"
    for name, mpp, file in (
        ("1", 1.0, "GrandQC_MPP1_state_dict.pth"),
        ("1.5", 1.5, "GrandQC_MPP15.pth"),
        ("2", 2.0, "GrandQC_MPP2.pth"),
    ):
        yield EncoderSpec(
            f"grandqc-mpp{name}", NETWORKS + "artefacts:unet", {"classes": 8}, 8, 512,
            mpp=mpp, pooling="class-shares", columns=GRANDQC_CLASSES,
            weights="hub" if mpp == 1.0 else "", hub=hub if mpp == 1.0 else "", file=file,
            dtype="float32", licence="CC-BY-NC-SA-4.0", parameters=6.25,
        )  # fmt: skip
    yield EncoderSpec(
        "grandqc-tissue", NETWORKS + "artefacts:unet_plus_plus", {"classes": 2}, 2, 512,
        mpp=10.0, pooling="class-shares", columns=("tissue", "background"), hub=hub,
        file="Tissue_Detection_MPP10.pth", dtype="float32", licence="CC-BY-NC-SA-4.0",
        parameters=6.57,
    )  # fmt: skip
