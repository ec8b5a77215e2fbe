"""Where weights come from: files, folders, mirrors, the hub, and repositories that are code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from coverslip.cli import main
from coverslip.encoders.checkpoints.hub import check_published, fetch_weights, local_checkpoint
from coverslip.encoders.checkpoints.weights import file_sha256, read_weights, with_updates
from coverslip.encoders.loading import _network, load_encoder
from coverslip.encoders.registry import EncoderSpec, encoder_names, encoder_spec, register
from coverslip.encoders.slide_registry import slide_encoder_names
from coverslip.errors import MissingWeights

State = dict[str, Tensor]
ARGUMENTS = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 4}
SMALL = register(
    EncoderSpec(
        "small", "vit_tiny_patch16_224", ARGUMENTS, 48, input_px=32, pooling="cls",
        hub="lab/small", revision="a" * 40, gated=True,
    )
)  # fmt: skip
SMALL_MEAN = register(replace(SMALL, name="small-mean", pooling="mean"))
TILES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def state(spec: EncoderSpec = SMALL, seed: int = 0) -> State:
    torch.manual_seed(seed)
    return _network(spec).state_dict()


class Hub:
    """Stands in for the hub: hands out the files it was given, and notes what was asked for."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked = root, []

    def put(self, name: str, content: bytes | State) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save_file(content, path)
        return path

    def hf_hub_download(
        self, repository: str, file: str, *, revision: str | None, local_dir: Path | None = None
    ) -> str:
        self.asked.append((repository, file, revision))
        source = self.root / repository / file
        if local_dir is None:
            if not source.is_file():
                raise OSError(f"404 for {repository}/{file}\nand more")
            return str(source)
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / "lock").touch()  # the client leaves such, whatever happens
        if not source.is_file():
            raise OSError(f"404 for {repository}/{file}\nand more")
        (local_dir / file).write_bytes(source.read_bytes())
        return str(local_dir / file)

    def snapshot_download(self, repository: str, *, revision: str | None, local_dir: Path) -> str:
        self.asked.append((repository, "", revision))
        for path in sorted((self.root / repository).rglob("*")):
            local_dir.mkdir(parents=True, exist_ok=True)
            (local_dir / path.name).write_bytes(path.read_bytes())
        if not local_dir.is_dir():
            raise OSError("no such repository")
        return str(local_dir)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.hf_hub_download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    return hub


@pytest.fixture
def fresh(request: pytest.FixtureRequest) -> Callable[..., EncoderSpec]:
    """A registered variant of the small recipe, under a name of this test's own."""

    def make(**changes: Any) -> EncoderSpec:
        return register(replace(SMALL, **{"name": request.node.name, **changes}))

    return make


def test_a_recipes_revision_is_what_is_loaded(hub: Hub) -> None:
    hub.put("lab/small/model.safetensors", state())
    encoder = load_encoder("small", device="cpu")
    assert hub.asked == [("lab/small", "model.safetensors", "a" * 40)]
    assert encoder.weights_sha256 == file_sha256(hub.root / "lab/small/model.safetensors")
    assert encoder.encode(TILES).shape == (2, 48)


def test_the_other_usual_name_is_tried_too(hub: Hub) -> None:
    path = hub.put("lab/small/pytorch_model.bin", b"")
    torch.save(state(), path)
    assert load_encoder("small", device="cpu").weights_sha256 == file_sha256(path)


def test_fetched_weights_are_found_and_load(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.put("lab/small/model.safetensors", state())
    to = tmp_path / "weights"
    assert main(["models", "fetch", "small", "--to", str(to)]) == 0
    assert f"--encoder small --weights {to}" in capsys.readouterr().out
    path = to / "lab" / "small" / "model.safetensors"
    assert path.is_file()
    hub.asked.clear()
    found = load_encoder("small", weights=to, device="cpu")
    assert found.weights_sha256 == file_sha256(path)
    assert not hub.asked
    assert load_encoder("small-mean", weights=to, device="cpu").dim == 48


def test_weights_that_timm_fetches_itself_are_fetched_here(hub: Hub, tmp_path: Path) -> None:
    hub.put("timm/vit_small_patch16_dinov3.lvd1689m/model.safetensors", {"x": torch.zeros(1)})
    path = fetch_weights(encoder_spec("dinov3-small"), tmp_path)
    assert path == tmp_path / "timm/vit_small_patch16_dinov3.lvd1689m/model.safetensors"
    plain = EncoderSpec("plain-resnet", "resnet18.a1_in1k")  # no hub named: timm knows it
    hub.put("timm/resnet18.a1_in1k/model.safetensors", {"x": torch.zeros(1)})
    assert fetch_weights(plain, tmp_path).parent.name == "resnet18.a1_in1k"


def test_packaged_weights_need_no_fetching(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="come with a package"):
        fetch_weights(encoder_spec("efficientnet-lite0"), tmp_path)


def test_another_file_than_the_published_is_removed(
    hub: Hub, tmp_path: Path, fresh: Callable[..., EncoderSpec]
) -> None:
    hub.put("lab/small/model.safetensors", state())
    spec = fresh(file="model.safetensors", sha256="0" * 64)
    with pytest.raises(MissingWeights, match=r"model\.safetensors: not the published weights"):
        fetch_weights(spec, tmp_path)
    assert not (tmp_path / "lab/small/model.safetensors").exists()


def test_a_hub_that_refuses_leaves_nothing_and_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(MissingWeights) as refused:
        fetch_weights(SMALL, tmp_path / "weights")
    said = str(refused.value)
    assert "404 for lab/small/model.safetensors" in said
    assert "and more" not in said
    assert "ask for access on the page of lab/small" in said
    assert f"model.safetensors of lab/small at revision {'a' * 40}" in said
    assert "small.safetensors or lab/small/model.safetensors" in said
    assert not (tmp_path / "weights").exists()


def test_what_is_there_already_stays_when_the_hub_refuses(hub: Hub, tmp_path: Path) -> None:
    mine = tmp_path / "weights" / "lab" / "small" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(MissingWeights):
        fetch_weights(SMALL, tmp_path / "weights")
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    "place",
    ["small.safetensors", "small-mean.safetensors", "lab/small/model.safetensors", "small.pth",
     "lab/small/pytorch_model.bin", "small.bin"],
)  # fmt: skip
def test_folders_may_be_laid_out_by_encoder_or_by_repository(place: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state(), path)
    else:
        torch.save(state(), path)
    assert load_encoder("small", weights=tmp_path, device="cpu").weights_sha256 == file_sha256(path)


def test_an_encoders_own_file_comes_first(tmp_path: Path) -> None:
    for name in ("small-mean.safetensors", "small.pth"):
        (tmp_path / name).touch()
    assert local_checkpoint(SMALL, tmp_path).name == "small.pth"
    assert local_checkpoint(SMALL_MEAN, tmp_path).name == "small-mean.safetensors"


def test_an_empty_folder_says_what_it_could_hold(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=r"small\.safetensors.*lab/small/model\.safetensors"):
        load_encoder("small", weights=tmp_path, device="cpu")
    with pytest.raises(MissingWeights, match="no such file"):
        load_encoder("small", weights=tmp_path / "absent.pth", device="cpu")


def test_a_part_of_a_larger_model_is_fetched_alone(
    hub: Hub, tmp_path: Path, fresh: Callable[..., EncoderSpec]
) -> None:
    """From the files that an index names, and only those that hold the part."""
    spec = fresh(file="model.safetensors.index.json", prefix="vision.", gated=False)
    inside = {f"vision.{k}": v for k, v in state().items()}
    half = len(inside) // 2
    parts = {
        "1.safetensors": dict(list(inside.items())[:half]),
        "2.safetensors": dict(list(inside.items())[half:]) | {"language.x": torch.zeros(9)},
    }
    places = {name: file for file, tensors in parts.items() for name in tensors}
    places["language.y"] = "3.safetensors"
    index = json.dumps({"weight_map": places}).encode()
    hub.put(f"lab/small/{spec.file}", index)
    for name, tensors in parts.items():
        hub.put(f"lab/small/{name}", tensors)
    path = fetch_weights(spec, tmp_path / "weights")
    assert [file for _, file, _ in hub.asked] == [spec.file, "1.safetensors", "2.safetensors"]
    assert load_file(path).keys() == state().keys()
    alone = load_encoder(spec.name, weights=tmp_path / "weights", device="cpu").encode(TILES)
    whole = load_encoder(spec.name, weights=hub.root, device="cpu").encode(TILES)
    np.testing.assert_array_equal(alone, whole)


def test_indexes_that_lie_are_named(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(MissingWeights, match=r"index\.json: names gone\.safetensors"):
        read_weights(index)
    index.write_text("[]")
    with pytest.raises(MissingWeights, match=r"index\.json: not the index"):
        read_weights(index)


def test_a_file_of_several_has_one_hash(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
    for number in (1, 2):
        save_file({"ab"[number - 1]: torch.ones(number)}, tmp_path / f"{number}.safetensors")
    before = file_sha256(index)
    index.write_text('{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}')
    assert file_sha256(index) == before
    save_file({"b": torch.zeros(2)}, tmp_path / "2.safetensors")
    assert file_sha256(index) != before


def updates(rank: int = 2) -> State:
    """Of one layer, under the names that SEAL's checkpoints have."""
    torch.manual_seed(1)
    layer = "module.encoder.base_model.model.encoder.blocks.1.attn.qkv"
    return {
        f"{layer}.lora_A.default.weight": torch.randn(rank, 48),
        f"{layer}.lora_B.default.weight": torch.randn(144, rank),
        "module.projection_head.weight": torch.zeros(3, 3),
        "module.organ_emb.weight": torch.zeros(3, 3),
    }


UPDATED = register(
    replace(
        SMALL, name="small-updated", hub="lab/updates", file="updates.pth", base="small",
        key_mapping="coverslip.encoders.checkpoints.vision_keys:seal", gated=False,
    )
)  # fmt: skip


def test_low_rank_updates_are_added_to_their_base(hub: Hub, tmp_path: Path) -> None:
    hub.put("lab/small/model.safetensors", state())
    torch.save(updates(), hub.put("lab/updates/updates.pth", b""))
    found = load_encoder("small-updated", device="cpu")
    low = list(updates().values())
    expected = state()["blocks.1.attn.qkv.weight"] + low[1] @ low[0]
    np.testing.assert_allclose(found._network.blocks[1].attn.qkv.weight, expected, atol=1e-6)
    assert fetch_weights(UPDATED, tmp_path / "w") == tmp_path / "w" / "lab/updates/updates.pth"
    hub.asked.clear()
    carried = load_encoder("small-updated", weights=tmp_path / "w", device="cpu")
    np.testing.assert_array_equal(carried.encode(TILES), found.encode(TILES))
    assert not hub.asked, "its base is in the folder too"


def test_updates_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base, path = state(), tmp_path / "updates.pth"
    good = {"blocks.0.attn.qkv.lora_A": torch.zeros(2, 48),
            "blocks.0.attn.qkv.lora_B": torch.zeros(144, 2)}  # fmt: skip
    assert with_updates(base, good, path).keys() == base.keys()
    for bad, said in (
        ({"blocks.0.attn.qkv.lora_A": torch.zeros(2, 48)}, "no counterpart"),
        ({k.replace("0", "7"): v for k, v in good.items()}, r"blocks\.7\.attn\.qkv"),
        (good | {"blocks.0.attn.qkv.lora_B": torch.zeros(9, 2)}, r"\(9, 48\), not \(144, 48\)"),
    ):
        with pytest.raises(MissingWeights, match=rf"updates\.pth.*{said}"):
            with_updates(base, bad, path)


def test_verifying_tells_the_published_file_from_others(
    tmp_path: Path, fresh: Callable[..., EncoderSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state(), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    spec = fresh(file="model.safetensors", sha256=sha256)
    command = ["models", "verify", spec.name, "--weights", str(path)]
    assert main(command) == 0
    assert f"{sha256}, as published" in capsys.readouterr().out
    save_file(state(seed=1), path)
    assert main(command) == 1
    said = capsys.readouterr().err
    assert f"not {sha256}" in said
    assert "coverslip models fetch" in said
    with pytest.raises(MissingWeights, match="not the published weights"):
        check_published(spec, path)


def test_verifying_loads_strictly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = state()
    del weights["blocks.1.norm2.bias"]
    save_file(weights, tmp_path / "small.safetensors")
    assert main(["models", "verify", "small", "--weights", str(tmp_path)]) == 1
    assert "first missing: blocks.1.norm2.bias" in capsys.readouterr().err


def test_lists_can_be_narrowed(capsys: pytest.CaptureFixture[str]) -> None:
    def listed(*pattern: str) -> list[str]:
        assert main(["models", "list", *pattern, "--json"]) == 0
        return [row["name"] for row in json.loads(capsys.readouterr().out)]

    assert listed() == [*encoder_names(), *slide_encoder_names()]
    virchow = ["virchow", "virchow-cls", "virchow2", "virchow2-cls"]
    assert listed("virchow") == [*virchow, "cobra2-virchow2-cls"]  # slide encoders stand below
    assert listed("dinov3-*") == [f"dinov3-{size}" for size in ("7b", "base", "large", "small")]
    assert listed("BIOPTIMUS") == ["h-optimus-0", "h-optimus-1", "h0-mini", "h0-mini-cls-mean"]
    assert main(["models", "list", "virchw"]) == 1
    assert "virchow" in capsys.readouterr().err
    assert main(["models", "list", "grandqc"]) == 0
    assert "class-shares" in capsys.readouterr().out


CODE = '''
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class TokensConfig(PretrainedConfig):
    model_type = "tokens"

    def __init__(self, width=6, **rest):
        super().__init__(**rest)
        self.width = width


class Tokens(PreTrainedModel):
    """A class token, two registers, and a token for every 8 px."""

    config_class = TokensConfig

    def __init__(self, config):
        super().__init__(config)
        self.lead = torch.nn.Parameter(torch.zeros(1, 3, config.width))
        self.patches = torch.nn.Conv2d(3, config.width, 8, stride=8)
        self.post_init()

    def forward(self, pixel_values):
        places = self.patches(pixel_values).flatten(2).transpose(1, 2)
        lead = self.lead.expand(len(places), -1, -1)
        return BaseModelOutput(last_hidden_state=torch.cat([lead, places], dim=1))
'''
REMOTE = register(
    EncoderSpec(
        "remote", "coverslip.encoders.checkpoints.remote_code:unknown_network",
        {"prefix_tokens": 3}, 6,
        input_px=32, pooling="cls", weights="remote-code", hub="lab/remote", revision="b" * 40,
    )
)  # fmt: skip
REMOTE_BOTH = register(replace(REMOTE, name="remote-both", dim=12, pooling="cls+mean"))


@pytest.fixture
def repository(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> State:
    """A repository that holds a network as code; the tensors of its checkpoint."""
    pytest.importorskip("transformers")
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    monkeypatch.syspath_prepend(modules)
    torch.manual_seed(0)
    tensors = {"lead": torch.randn(1, 3, 6), "patches.weight": torch.randn(6, 3, 8, 8),
               "patches.bias": torch.randn(6)}  # fmt: skip
    names = {"AutoConfig": "modeling_tokens.TokensConfig", "AutoModel": "modeling_tokens.Tokens"}
    config = {"model_type": "tokens", "architectures": ["Tokens"], "auto_map": names, "width": 6}
    hub.put("lab/remote/config.json", json.dumps(config).encode())
    hub.put("lab/remote/modeling_tokens.py", CODE.encode())
    path = hub.put("lab/remote/model.safetensors", b"")
    save_file(tensors, path, {"format": "pt"})
    return tensors


def test_code_from_a_repository_is_not_run_unless_asked(hub: Hub, repository: State) -> None:
    for weights in (None, hub.root, hub.root / "lab/remote"):
        with pytest.raises(MissingWeights, match=r"lab/remote at revision b+.*not run unless"):
            load_encoder("remote", weights=weights, device="cpu")


def test_trusted_code_gives_its_tokens(hub: Hub, repository: State, tmp_path: Path) -> None:
    fetch_weights(REMOTE, tmp_path / "weights")
    assert hub.asked == [("lab/remote", "", "b" * 40)]
    for weights in (tmp_path / "weights", tmp_path / "weights" / "lab/remote"):
        cls = load_encoder("remote", weights=weights, device="cpu", trust_remote_code=True)
        both = load_encoder("remote-both", weights=weights, device="cpu", trust_remote_code=True)
        expected = repository["lead"][0, 0].expand(2, 6)
        np.testing.assert_allclose(cls.encode(TILES), expected, atol=1e-6)
        found = both.encode(TILES)
        np.testing.assert_allclose(found[:, :6], expected, atol=1e-6)
        std, mean = (np.array(v, np.float32) for v in (both.spec.std, both.spec.mean))
        pixels = torch.from_numpy((TILES / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
        places = torch.nn.functional.conv2d(
            pixels, repository["patches.weight"], repository["patches.bias"], stride=8
        )
        np.testing.assert_allclose(found[:, 6:], places.mean(dim=(2, 3)), atol=1e-4)
        assert len(cls.weights_sha256) == 64


def test_trusted_code_is_verified(
    hub: Hub, repository: State, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["models", "verify", "remote", "--weights", str(hub.root)]
    assert main(command) == 1
    assert "trust" in capsys.readouterr().err
    assert main([*command, "--trust-remote-code"]) == 0
    assert "6 numbers a tile" in capsys.readouterr().out


def test_code_that_fails_is_named(hub: Hub, repository: State, tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=r"holds no config\.json of remote"):
        load_encoder("remote", weights=tmp_path / "x", device="cpu", trust_remote_code=True)
    hub.put("lab/remote/modeling_tokens.py", b"raise RuntimeError('their mistake')")
    with pytest.raises(MissingWeights, match=r"lab/remote: cannot be loaded.*their mistake"):
        load_encoder("remote", weights=hub.root, device="cpu", trust_remote_code=True)


def test_a_network_known_as_code_has_no_random_weights() -> None:
    with pytest.raises(MissingWeights, match="built by the code in its repository"):
        load_encoder("rudolfv-2", weights="random", device="cpu")
