"""Colour deconvolution means the same in every implementation, and what scikit-image means."""

from __future__ import annotations

import numpy as np
import pytest

from coverslip.kernels.stain import (
    DAB,
    EOSIN,
    HEMATOXYLIN,
    rgb_to_od,
    separate_stains,
    stain_concentration,
    stain_matrix,
)

MATRICES = {
    "H&E": stain_matrix(HEMATOXYLIN, EOSIN),
    "H-DAB": stain_matrix(HEMATOXYLIN, DAB),
    "H-E-DAB": stain_matrix(HEMATOXYLIN, EOSIN, DAB),
}


@pytest.fixture(params=["numpy", "numba"])
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (7, 5, 3), (2, 16, 16, 3)])
@pytest.mark.parametrize("stains", MATRICES)
def test_stains_mean_the_same_everywhere(backend: str, shape: tuple[int, ...], stains: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    matrix = MATRICES[stains]
    density = -np.log((rgb.astype(np.float64) + 1) / 241)
    exact = density @ np.linalg.inv(matrix)
    found = separate_stains(rgb, matrix, 240.0, backend=backend)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=2e-5)
    for i in range(3):
        one = stain_concentration(rgb, matrix, i, 240.0, backend=backend)
        np.testing.assert_allclose(one, exact[..., i], atol=2e-5)
    np.testing.assert_allclose(rgb_to_od(rgb, 240.0, backend=backend), density, atol=1e-5)


def test_glass_holds_nothing_and_black_is_finite(backend: str) -> None:
    ends = np.array([[255] * 3, [240] * 3, [0] * 3], np.uint8)
    found = rgb_to_od(ends, 240.0, backend=backend)
    assert np.isfinite(found).all()
    assert found[1] == pytest.approx(0, abs=1e-6)
    assert (found[0] < 0).all()


def test_pure_stains_come_back_pure() -> None:
    for matrix in MATRICES.values():
        rgb = np.round(256 * np.exp(-0.8 * matrix[:2]) - 1).astype(np.uint8)
        np.testing.assert_allclose(separate_stains(rgb, matrix)[:, :2], 0.8 * np.eye(2), atol=0.05)


def test_stains_are_those_of_scikit_image_up_to_a_stated_factor() -> None:
    color = pytest.importorskip("skimage.color")
    rgb = np.random.default_rng(1).integers(1, 200, (9, 11, 3), dtype=np.uint8)
    theirs = color.rgb2hed(rgb)
    norm = np.linalg.norm([HEMATOXYLIN, EOSIN, DAB], axis=1)
    ours = separate_stains(rgb, MATRICES["H-E-DAB"]) / (np.log(1e6) * norm)
    # one more than the grey level, so that black is finite: 1 / level in relative density
    np.testing.assert_allclose(np.maximum(ours, 0), theirs, atol=0.06)
    bright = rgb.min(axis=-1) > 60
    np.testing.assert_allclose(np.maximum(ours, 0)[bright], theirs[bright], atol=0.003)
