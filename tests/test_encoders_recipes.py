"""Every published recipe without its weights: network, dim, transform, names of tensors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from coverslip.cli import main
from coverslip.encoders.checkpoints import vision_keys
from coverslip.encoders.encoder import pooled
from coverslip.encoders.loading import _network, load_encoder
from coverslip.encoders.recipes.pathology import SWIGLU, published_encoders
from coverslip.encoders.registry import EncoderSpec, encoder_spec, register
from coverslip.errors import MissingWeights

RECIPES = {spec.name: spec for spec in published_encoders()}

DOCUMENTED = {  # millions, as the model cards and papers give them
    "efficientnet-lite0": 3.37, "efficientnet-lite1": 4.14, "efficientnet-lite2": 4.81,
    "uni": 303, "uni2-h": 681, "seal-uni2-h": 681, "virchow": 632, "virchow-cls": 632,
    "virchow2": 632, "virchow2-cls": 632, "gigapath": 1135, "gigapath-flash": 21.7,
    "h-optimus-0": 1135, "h-optimus-1": 1135, "h0-mini": 86, "h0-mini-cls-mean": 86,
    "phikon": 86, "phikon-v2": 303, "midnight-12k": 1135, "midnight-12k-cls": 1135,
    "openmidnight": 1135, "gpfm": 303, "mstar": 303, "pathorchestra": 303,
    "hibou-b": 85.7, "hibou-l": 303.7, "kimianet": 7.0, "retccl": 23.5, "sp22m": 21.7,
    "dinobloom-s": 21.5, "dinobloom-b": 86, "dinobloom-l": 303, "dinobloom-g": 1135,
    "pluto-s": 21.7, "pluto-4s": 21.7,
    "kaiko-vits16": 21.7, "kaiko-vits8": 21.7, "kaiko-vitb16": 86, "kaiko-vitb8": 86,
    "kaiko-vitl14": 303, "lunit-vits8": 21.7, "lunit-vits16": 21.7,
    "ctranspath": 27.5, "conch-v1.5": 307, "genbio-pathfm": 1134, "isight": 304.5,
    "pathoduet-he": 86, "pathoduet-ihc": 86,
    "grandqc-mpp1": 6.25, "grandqc-mpp1.5": 6.25, "grandqc-mpp2": 6.25, "grandqc-tissue": 6.57,
    "resnet50": 23.5, "resnet50-clam": 8.54, "dinov2-base": 86, "dinov2-large": 304,
    "dinov3-small": 21.6, "dinov3-base": 85.7, "dinov3-large": 303, "dinov3-7b": 6716,
    "gemma-4-e4b": 167.4, "gemma-4-26b": 569.6,
}  # fmt: skip
KNOWN_AS_CODE = {name for name, spec in RECIPES.items() if spec.weights == "remote-code"}
BY_HAND = {"kimianet", "pluto-s", "pluto-4s", "pathoduet-he", "pathoduet-ihc",
           "grandqc-mpp1.5", "grandqc-mpp2"}  # fmt: skip
PACKAGED = {"efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"}


def embedding_facts(spec: EncoderSpec) -> tuple[int, float]:
    """(dim, millions of parameters) of the network, built without memory for its weights."""
    with torch.device("meta"), torch.inference_mode():
        network = _network(spec).eval()
        parameters = sum(p.numel() for p in network.parameters()) / 1e6
        if spec.name.startswith("gemma"):  # its code asks tensors for their values
            return network.tower.config.hidden_size, parameters
        pixels = torch.zeros(1, 3, spec.input_px, spec.input_px)
        dim = pooled(network, pixels, spec.pooling).shape[1]
    return int(dim), parameters


def test_every_recipe_is_documented() -> None:
    assert set(RECIPES) == set(DOCUMENTED) | KNOWN_AS_CODE
    assert len({spec.recipe_hash() for spec in RECIPES.values()}) == len(RECIPES)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_network_is_the_published_one(name: str) -> None:
    """Built without memory for its weights: documented size and dim."""
    if name.startswith("gemma"):
        pytest.importorskip("transformers")
    spec = RECIPES[name]
    dim, parameters = embedding_facts(spec)
    assert dim == spec.dim
    assert parameters == pytest.approx(spec.parameters, abs=0.006)
    assert parameters == pytest.approx(DOCUMENTED[name], rel=0.01)


@pytest.mark.parametrize("spec", RECIPES.values(), ids=RECIPES)
def test_every_record_says_where_its_weights_are(spec: EncoderSpec) -> None:
    assert spec.licence
    assert bool(re.fullmatch(r"[\w.-]+/[\w.-]+", spec.hub)) == (spec.name not in BY_HAND | PACKAGED)
    assert (spec.weights == "") == (spec.name in BY_HAND)
    assert (spec.weights == "package") == (spec.name in PACKAGED)
    assert re.fullmatch(r"[0-9a-f]{40}|", spec.revision)
    assert re.fullmatch(r"[0-9a-f]{64}|", spec.sha256)
    assert spec.file or not spec.sha256, "a hash of which file?"
    assert not spec.base or spec.base in RECIPES
    assert len(spec.columns) in (0, spec.dim)
    side = round(spec.input_px / spec.crop)
    assert (side, spec.crop) == (256, 0.875) if "gigapath" in spec.name else side == spec.input_px


def test_variants_differ_in_pooling_alone() -> None:
    for name, dim in (("virchow", 2560), ("virchow2", 2560), ("midnight-12k", 3072)):
        whole, cls = RECIPES[name], RECIPES[f"{name}-cls"]
        assert (whole.dim, cls.dim, cls.pooling) == (dim, dim // 2, "cls")
        assert replace(cls, name=name, dim=dim, pooling=whole.pooling) == whole


def small(name: str, architecture: str, mapping: str, **arguments: Any) -> EncoderSpec:
    """A recipe of the same kind, small enough to be run."""
    arguments = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 4} | arguments
    return register(
        EncoderSpec(
            name, architecture, arguments, 48, input_px=32, pooling="cls", key_mapping=mapping
        )
    )


VIT = small(
    "small-vit",
    "vit_tiny_patch16_224",
    "coverslip.encoders.checkpoints.vision_keys:vit",
    patch_size=8,
)
DINO = small(
    "small-dinov2",
    "vit_small_patch14_dinov2",
    "coverslip.encoders.checkpoints.vision_keys:dinov2",
    patch_size=8,
)
HIBOU = small(
    "small-hibou", "vit_small_patch14_reg4_dinov2",
    "coverslip.encoders.checkpoints.vision_keys:dinov2",
    patch_size=8, mlp_ratio=2 * 128 / 48, **SWIGLU,
)  # fmt: skip


def hub_model(spec: EncoderSpec) -> Any:
    """The `transformers` library's own model of that size, with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    common = {
        "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
        "patch_size": 8, "layer_norm_eps": 1e-6,
    }  # fmt: skip
    if spec is VIT:
        config = transformers.ViTConfig(**common, intermediate_size=192)
        return transformers.ViTModel(config).eval()
    if spec is DINO:
        return transformers.Dinov2Model(transformers.Dinov2Config(**common, mlp_ratio=4)).eval()
    config = transformers.Dinov2WithRegistersConfig(
        **common, mlp_ratio=4, num_register_tokens=4, use_swiglu_ffn=True
    )
    model = transformers.Dinov2WithRegistersModel(config).eval()
    for parameter in model.parameters():  # tokens and places begin as zeros
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("spec", [VIT, DINO, HIBOU], ids=lambda spec: spec.name)
def test_hub_checkpoints_give_the_same_embedding(spec: EncoderSpec, tmp_path: Path) -> None:
    """Against the library that wrote such checkpoints, number by number."""
    theirs = hub_model(spec)
    theirs.save_pretrained(tmp_path)  # under the names that checkpoints on the hub have
    path = tmp_path / "model.safetensors"
    tiles = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    ours = load_encoder(spec.name, weights=path, device="cpu").encode(tiles)
    pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    with torch.inference_mode():
        expected = theirs(pixel_values=pixels).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def hub_names(depth: int, dinov2: bool, swiglu: bool = False) -> dict[str, torch.Tensor]:
    """Names as such checkpoints have them, each tensor one number of its own."""
    inside = (
        ["norm1", "norm2", "attention.output.dense"]
        + (["mlp.weights_in", "mlp.weights_out"] if swiglu else ["mlp.fc1", "mlp.fc2"])
        if dinov2
        else ["layernorm_before", "layernorm_after", "attention.output.dense",
              "intermediate.dense", "output.dense"]
    )  # fmt: skip
    unused = "embeddings.mask_token" if dinov2 else "pooler.dense.weight"
    names = ["embeddings.cls_token", "embeddings.position_embeddings",
             "embeddings.patch_embeddings.projection.weight",
             "embeddings.patch_embeddings.projection.bias", "layernorm.weight",
             "layernorm.bias", unused]  # fmt: skip
    for i in range(depth):
        layers = [*inside, *(f"attention.attention.{p}" for p in ("query", "key", "value"))]
        names += [f"encoder.layer.{i}.{n}.{k}" for n in layers for k in ("weight", "bias")]
        if dinov2:
            names += [f"encoder.layer.{i}.layer_scale{s}.lambda1" for s in (1, 2)]
    return {name: torch.full((1,), float(i)) for i, name in enumerate(names)}


@pytest.mark.parametrize("name", ["phikon", "phikon-v2", "midnight-12k"])
def test_every_tensor_of_the_real_names_finds_its_place(name: str) -> None:
    with torch.device("meta"):
        wanted = set(_network(RECIPES[name]).state_dict())
    depth = 1 + max(int(m[1]) for key in wanted if (m := re.match(r"blocks\.(\d+)", key)))
    swiglu = name == "midnight-12k"
    mapping = vision_keys.vit if name == "phikon" else vision_keys.dinov2
    found = mapping(hub_names(depth, name != "phikon", swiglu))
    assert set(found) == wanted
    state = hub_names(depth, name != "phikon", swiglu)
    three = [f"encoder.layer.1.attention.attention.{p}.bias" for p in ("query", "key", "value")]
    assert found["blocks.1.attn.qkv.bias"].tolist() == [state[p].item() for p in three]


@pytest.mark.parametrize("name", ["gpfm", "dinobloom-s", "dinobloom-g", "openmidnight"])
def test_dinov2s_own_names_find_their_places(name: str) -> None:
    """As its training code saves them: w12 and w3 in the giant, registers, a mask token, heads."""
    with torch.device("meta"):
        wanted = _network(RECIPES[name]).state_dict()
        giant = name in ("dinobloom-g", "openmidnight")
        theirs = {
            "teacher.backbone." + (k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
                                   if giant else k).replace("reg_token", "register_tokens"): v
            for k, v in wanted.items()
        }  # fmt: skip
        if name == "openmidnight":  # its positions begin with the class token's
            theirs["teacher.backbone.pos_embed"] = torch.zeros(1, 257, 1536)
        theirs["teacher.backbone.mask_token"] = torch.zeros(1, 1536)
        theirs["teacher.dino_head.mlp.0.weight"] = torch.zeros(2, 2)
    found = vision_keys.dinov2_own(theirs)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}


def test_kimianets_densenet_is_torchvisions(tmp_path: Path) -> None:
    """The same numbers as torchvision's DenseNet121 to the last pooled layer, through its names."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = models.densenet121(weights=None).eval()
    state = {f"module.model.0.{k}": v for k, v in theirs.features.state_dict().items()}
    state["module.fc_4.weight"] = torch.zeros(30, 1024)
    torch.save(state, tmp_path / "kimianet.pth")
    encoder = load_encoder("kimianet", weights=tmp_path, device="cpu")
    tile = np.random.default_rng(0).integers(0, 256, (1, 1000, 1000, 3), dtype=np.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.spec.mean, encoder.spec.std))
    pixels = (torch.from_numpy(tile).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.inference_mode():
        expected = torch.relu(theirs.features(pixels)).mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(encoder.encode(tile), expected, atol=1e-4)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    save_file({**hub_names(2, False), "encoder.layer.0.surprise": torch.zeros(1)}, path)
    with pytest.raises(MissingWeights, match=r"bad\.safetensors.*surprise"):
        load_encoder("small-vit", weights=path, device="cpu")


def test_positions_of_another_input_size_are_resampled(tmp_path: Path) -> None:
    larger = EncoderSpec("x", DINO.architecture, {**DINO.arguments, "img_size": 64})
    torch.manual_seed(0)
    save_file(_network(larger).state_dict(), tmp_path / "small-dinov2.safetensors")
    encoder = load_encoder("small-dinov2", weights=tmp_path, device="cpu")
    assert encoder.encode(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 48)
    with pytest.raises(MissingWeights, match=r"small-vit\.safetensors"):
        load_encoder("small-vit", weights=tmp_path, device="cpu")


def test_models_are_listed_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--json"]) == 0
    listed = {m["name"]: m for m in json.loads(capsys.readouterr().out)}
    assert RECIPES.keys() <= listed.keys()
    assert listed["uni"]["gated"] is True
    assert main(["models"]) == 0
    assert "MahmoodLab/UNI2-h" in capsys.readouterr().out
    assert main(["models", "info", "virchow2"]) == 0
    assert encoder_spec("virchow2").recipe_hash() in capsys.readouterr().out
    assert main(["models", "info"]) == 2
    assert main(["models", "info", "virchw2"]) == 1
    assert "virchow2" in capsys.readouterr().err


def test_weights_are_verified(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["models", "verify", "efficientnet-lite0"]) == 0
    assert "1280 numbers a tile" in capsys.readouterr().out
    (tmp_path / "uni.pth").write_bytes(b"nothing")
    assert main(["models", "verify", "uni", "--weights", str(tmp_path)]) == 1
    assert "uni.pth" in capsys.readouterr().err


def test_without_a_hub_the_message_says_which_file_goes_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("phikon", "lunit-vits8"):
        assert main(["models", "fetch", name, "--to", str(tmp_path)]) == 1
        said = capsys.readouterr().err
        assert f"{name}.safetensors" in said
        assert RECIPES[name].hub in said
    assert not list(tmp_path.iterdir())
    for command in (["models", "fetch", "kimianet"], ["models", "verify", "pathoduet-he"]):
        assert main(command) == 1
        assert "downloaded by hand" in capsys.readouterr().err
