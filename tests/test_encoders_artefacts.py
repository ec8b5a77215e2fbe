"""Artefacts tile by tile: the networks are GrandQC's, and a tile is its pixels' classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coverslip.cli import main
from coverslip.encoders.encoder import pooled
from coverslip.encoders.loading import load_encoder
from coverslip.encoders.networks.artefacts import unet, unet_plus_plus
from coverslip.encoders.registry import EncoderSpec, encoder_spec
from coverslip.errors import MissingWeights

pytestmark = pytest.mark.filterwarnings("ignore:`timm-` encoders are deprecated")

ARTEFACTS = encoder_spec("grandqc-mpp1")
TISSUE = encoder_spec("grandqc-tissue")


def their_network(spec: EncoderSpec) -> Any:
    """As GrandQC's code builds it, with random weights and lived-in batch norms."""
    library = pytest.importorskip("segmentation_models_pytorch")
    kind = library.UnetPlusPlus if spec is TISSUE else library.Unet
    torch.manual_seed(0)
    network = kind(
        encoder_name="timm-efficientnet-b0", encoder_weights=None, classes=spec.dim, activation=None
    ).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network


def tiles(side: int = 512, count: int = 2) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, side // 32, side // 32, 3), dtype=np.uint8)
    return coarse.repeat(32, axis=1).repeat(32, axis=2)


def normalised(images: np.ndarray, spec: EncoderSpec) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


@pytest.mark.parametrize("spec", [ARTEFACTS, TISSUE], ids=lambda spec: spec.name)
def test_pixels_are_classed_as_by_the_library_that_trained_them(spec: EncoderSpec) -> None:
    theirs = their_network(spec)
    ours = (unet_plus_plus if spec is TISSUE else unet)(spec.dim).eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    pixels = normalised(tiles(128), spec)
    with torch.inference_mode():
        expected = theirs(pixels)
        found = ours(pixels)
    assert found.shape == (2, spec.dim, 128, 128)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("spec", [ARTEFACTS, TISSUE], ids=lambda spec: spec.name)
def test_a_tile_is_the_share_of_its_pixels_in_each_class(spec: EncoderSpec, tmp_path: Path) -> None:
    theirs = their_network(spec)
    path = tmp_path / spec.file
    torch.save(theirs.state_dict(), path)
    encoder = load_encoder(spec.name, weights=path, device="cpu")
    images = tiles()
    found = encoder.encode(images)
    assert found.dtype == np.float32
    assert encoder.dim == len(spec.columns) == spec.dim
    with torch.inference_mode():
        classes = theirs(normalised(images, spec)).argmax(dim=1).numpy()  # (2, 512, 512)
    expected = [np.bincount(tile.flatten(), minlength=spec.dim) / 512**2 for tile in classes]
    assert len(np.unique(classes)) > 1
    np.testing.assert_allclose(found, expected, atol=1e-3)  # a pixel on the fence may fall over
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_shares_are_exact_in_half_precision() -> None:
    """A network under autocast gives bfloat16; 512² pixels are more than it can count."""

    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            classes = torch.zeros(len(x), 4, 512, 512, dtype=torch.bfloat16)
            classes[:, 3, 0, 0] = 1
            return classes

    found = pooled(Halves(), torch.zeros(1, 3, 512, 512), "class-shares")
    assert found.dtype == torch.float32
    assert found.tolist() == [[1 - 2**-18, 0, 0, 2**-18]]


def test_the_models_differ_in_pixel_size_alone() -> None:
    names = ("grandqc-mpp1", "grandqc-mpp1.5", "grandqc-mpp2")
    assert [encoder_spec(name).mpp for name in names] == [1.0, 1.5, 2.0]
    assert {encoder_spec(name).columns for name in names} == {ARTEFACTS.columns}
    assert ARTEFACTS.columns[1] == "tissue"


def test_a_whole_pickled_model_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As its authors publish them."""
    path = tmp_path / "GrandQC_MPP2.pth"
    torch.save(their_network(ARTEFACTS), path)
    with pytest.raises(MissingWeights, match=r"GrandQC_MPP2\.pth") as refused:
        load_encoder("grandqc-mpp2", weights=path, device="cpu")
    said = str(refused.value)
    assert "segmentation_models_pytorch" in said
    assert "weights_only=False" in said
    assert "state_dict()" in said
    assert main(["models", "verify", "grandqc-mpp2", "--weights", str(path)]) == 1
    assert "state_dict()" in capsys.readouterr().err


def test_without_its_file_it_says_which_to_get() -> None:
    with pytest.raises(MissingWeights, match=r"GrandQC_MPP15\.pth.*grandqc-mpp1\.5\.pth"):
        load_encoder("grandqc-mpp1.5", device="cpu")


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    torch.save(unet(7).state_dict(), tmp_path / "grandqc-mpp1.pth")
    with pytest.raises(MissingWeights, match=r"segmentation_head\.0\.bias is \(7,\), not \(8,\)"):
        load_encoder("grandqc-mpp1", weights=tmp_path, device="cpu")
