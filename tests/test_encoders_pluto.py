"""PLUTO by its laws: patch sizes, positions, dense features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from coverslip.encoders.loading import load_encoder
from coverslip.encoders.pluto import FlexiblePatches, Pluto, patch_resize, rotary_angles, rotated
from coverslip.tiling.reading import read_window
from coverslip.wsi.opening import open_slide


def small(rotary: bool = False) -> Pluto:
    torch.manual_seed(0)
    network = Pluto(width=48, depth=3, heads=4, hidden=96, registers=2, grid=6, rotary=rotary)
    return network.eval()


@pytest.fixture(scope="module")
def tissue(small_slide: Path) -> torch.Tensor:
    """(4, 3, 96, 96) of real tissue, in 0..1."""
    with open_slide(small_slide) as slide:
        tiles = [read_window(slide, (700 + 150 * i, 900), (96, 96), (1, 1)) for i in range(4)]
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("new", [16, 20, 32])
def test_a_larger_kernel_sees_the_enlarged_patch_as_before(new: int) -> None:
    """<resize(x), w'> = <x, w>, exactly, for any x: the law of FlexiViT."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 1, 16, 16, generator=generator, dtype=torch.float64)
    w = torch.randn(7, 256, generator=generator, dtype=torch.float64)
    resized = F.interpolate(x, (new, new), mode="bilinear", antialias=False)
    changed = w @ patch_resize(16, new).T
    torch.testing.assert_close(resized.flatten(1) @ changed.T, x.flatten(1) @ w.T)


def test_the_same_patch_needs_no_change() -> None:
    torch.testing.assert_close(patch_resize(16, 16), torch.eye(256, dtype=torch.float64))
    patches = FlexiblePatches(8, 16)
    x = torch.randn(2, 3, 32, 48)
    expected = F.conv2d(x, patches.weight, patches.bias, stride=16)
    assert torch.equal(patches(x, 16), expected)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(("patch", "least"), [(32, 0.99), (24, 0.99), (8, 0.9)])
def test_another_patch_size_keeps_the_embedding_close(
    tissue: torch.Tensor, rotary: bool, patch: int, least: float
) -> None:
    """The same tissue with as many patches of another size: what tells tiles apart stays.

    Where patches shrink, detail is lost that kernels of noise look at as much as at the rest; these
    are smooth, as trained ones are.
    """
    network, side = small(rotary), 6 * patch
    if patch < 16:
        coarse = torch.randn(48, 3, 4, 4, generator=torch.Generator().manual_seed(1)) / 16
        smooth = F.interpolate(coarse, (16, 16), mode="bilinear")
        network.patches.weight.data.copy_(smooth)
    other = F.interpolate(tissue, (side, side), mode="bilinear", antialias=patch < 16)
    with torch.inference_mode():
        one, two = network(tissue), network(other, patch)
    assert F.cosine_similarity(one, two, dim=1).min() > 0.99
    mean = one.mean(dim=0)  # common to all tiles, and large before training
    cosine = F.cosine_similarity((one - mean)[:, None], (two - mean)[None], dim=2)
    assert cosine.diagonal().min() > least
    assert torch.equal(cosine.argmax(dim=1), torch.arange(4))


@pytest.mark.parametrize("rotary", [False, True])
def test_shapes(rotary: bool) -> None:
    network = small(rotary)
    x = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        assert network(x).shape == (2, 48)
        assert network.forward_features(x).shape == (2, 3 + 4 * 6, 48)
        assert network.forward_features(x, 8).shape == (2, 3 + 8 * 12, 48)
        dense = network.dense_features(x, (1, 3))
        assert [d.shape for d in dense] == [(2, 48, 4, 6)] * 2
        last = network.forward_features(x)[:, 3:].transpose(1, 2).unflatten(2, (4, 6))
        assert torch.equal(dense[1], last)


def test_rotation_tells_relative_places_only() -> None:
    """Turning query and key by their places: the product depends on the difference alone."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16)
    angle = rotary_angles((5, 5), 16, torch.device("cpu"))
    q25, k25 = (rotated(t.expand(1, 1, 25, 16), angle)[0, 0] for t in (q, k))
    product = (q25 @ k25.T).reshape(5, 5, 5, 5)
    torch.testing.assert_close(product[0, 0, 1, 2], product[2, 1, 3, 3], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(product[4, 4, 2, 3], product[2, 2, 0, 1], rtol=1e-4, atol=1e-3)
    assert not torch.isclose(product[0, 0, 1, 2], product[0, 0, 2, 1])


def test_position_matters() -> None:
    """A transformer without positions would not notice that patches changed places."""
    x = torch.rand(1, 3, 96, 96)
    moved = torch.cat([x[..., 48:], x[..., :48]], dim=3)
    for rotary in (False, True):
        network = small(rotary)
        with torch.inference_mode():
            assert not torch.allclose(network(x), network(moved), atol=1e-5)


def test_what_does_not_divide_is_refused() -> None:
    for patch, side in ((16, 100), (7, 70), (40, 80)):
        with pytest.raises(ValueError, match="patch"):
            small()(torch.rand(1, 3, side, side), patch)


def test_it_is_an_encoder_like_the_others() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    for name in ("pluto-s", "pluto-4s"):
        encoder = load_encoder(name, weights="random", device="cpu")
        assert encoder.encode(tiles).shape == (3, 384)
