"""Encoders: the default's weights are mapped right, checkpoints load strictly, errors help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from coverslip.encoders.checkpoints.weights import read_weights
from coverslip.encoders.loading import load_encoder
from coverslip.encoders.registry import EncoderSpec, encoder_names, encoder_spec, register
from coverslip.errors import MissingWeights, UnknownName


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)


def test_default_embeds_as_its_authors_own_network(tiles: np.ndarray) -> None:
    author = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    from coverslip.encoders.networks.efficientnet_lite import weights_path

    reference = author.from_name("efficientnet-lite0")
    reference.load_state_dict(torch.load(weights_path(), weights_only=True))
    reference.eval()
    encoder = load_encoder("efficientnet-lite0", device="cpu")
    mean = torch.tensor(encoder.spec.mean).view(3, 1, 1)
    std = torch.tensor(encoder.spec.std).view(3, 1, 1)
    images = (torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        expected = reference.extract_features(images).mean(dim=(2, 3))
    found = encoder.encode(tiles)
    assert found.shape == (3, 1280)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_the_same_batch_gives_the_same_bytes(tiles: np.ndarray) -> None:
    encoder = load_encoder(device="cpu")
    assert encoder.encode(tiles).tobytes() == encoder.encode(tiles).tobytes()


def test_resizing_is_antialiased(tiles: np.ndarray) -> None:
    from PIL import Image

    encoder = load_encoder(device="cpu")
    large = np.stack([np.asarray(Image.fromarray(t).resize((448, 448))) for t in tiles])
    resized = encoder._resized(encoder._upload(large)).permute(0, 2, 3, 1).numpy()
    expected = np.stack(
        [
            np.asarray(Image.fromarray(t).resize((224, 224), Image.Resampling.BILINEAR))
            for t in large
        ]
    )
    assert np.abs(resized - expected).max() <= 1.0


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_checkpoint_loads(tmp_path: Path, tiles: np.ndarray, suffix: str) -> None:
    name = "resnet18"
    original = load_encoder(name, weights="random", seed=3, device="cpu")
    path = tmp_path / f"weights{suffix}"
    state = {f"module.{k}": v.contiguous() for k, v in original._network.state_dict().items()}
    if suffix == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    again = load_encoder(name, weights=path, device="cpu")
    assert np.array_equal(again.encode(tiles), original.encode(tiles))
    assert len(again.weights_sha256) == 64


def test_wrong_weights_name_the_first_tensor(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"stem.weight": torch.zeros(2)}, path)
    with pytest.raises(MissingWeights, match=r"first missing: bn1\.bias"):
        load_encoder("resnet18", weights=path, device="cpu")


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    path = tmp_path / "trap.pth"
    path.write_bytes(pickle.dumps({"state_dict": Trap()}, protocol=2))
    with pytest.raises(MissingWeights, match="weights alone"):
        read_weights(path)
    assert not (tmp_path / "ran").exists()


def test_without_a_hub_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(MissingWeights, match="--weights FILE"):
        load_encoder("vit_tiny_patch16_224", device="cpu")


def test_token_pooling_skips_prefix_tokens() -> None:
    spec = EncoderSpec(
        name="test-tokens",
        architecture="vit_tiny_patch16_224",
        arguments={"reg_tokens": 4, "img_size": 64, "depth": 2},
        input_px=64,
        pooling="cls+mean",
        weights="",
    )
    register(spec)
    encoder = load_encoder("test-tokens", weights="random", device="cpu")
    assert encoder.dim == 2 * 192
    tiles = np.zeros((2, 64, 64, 3), np.uint8)
    with torch.inference_mode():
        tokens = encoder._network.forward_features(
            (encoder._resized(encoder._upload(tiles)) - encoder._mean) / encoder._std
        )
    np.testing.assert_allclose(
        encoder.encode(tiles)[:, 192:], tokens[:, 5:].mean(1).numpy(), atol=1e-5
    )


def test_a_near_miss_is_named() -> None:
    with pytest.raises(UnknownName, match="efficientnet-lite0"):
        encoder_spec("efficientnet-lite")
    assert "efficientnet-lite0" in encoder_names()


def test_another_recipe_under_a_known_name_is_refused() -> None:
    with pytest.raises(ValueError, match="another encoder"):
        register(EncoderSpec(name="efficientnet-lite0", architecture="resnet18"))


def test_recipes_hash_what_matters() -> None:
    base = encoder_spec("efficientnet-lite0")
    from dataclasses import replace

    assert replace(base, interpolation="bicubic").recipe_hash() != base.recipe_hash()
    assert replace(base, licence="other").recipe_hash() == base.recipe_hash()


@pytest.mark.gpu
def test_gpu_and_cpu_agree(tiles: np.ndarray) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_cpu = load_encoder(device="cpu").encode(tiles)
    gpu = load_encoder(device="cuda")
    (streamed,) = gpu.encode_stream([tiles])
    assert np.array_equal(streamed, gpu.encode(tiles))
    cosine = (
        (on_cpu * streamed).sum(1)
        / np.linalg.norm(on_cpu, axis=1)
        / np.linalg.norm(streamed, axis=1)
    )
    assert cosine.min() > 0.995
