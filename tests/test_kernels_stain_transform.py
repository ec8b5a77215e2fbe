"""Recolouring by tables means what the formulas mean, on any picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.kernels._stain_numpy import lab_to_rgb, rgb_to_lab
from coverslip.kernels.stain import transform_density, transform_lab

COLOURS = st.one_of(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)),
)


def picture(what: Any) -> np.ndarray:
    """Noise of a seed, or one colour."""
    if isinstance(what, tuple):
        return np.full((9, 7, 3), what, np.uint8)
    return np.random.default_rng(what).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@settings(max_examples=80, deadline=None)
@given(COLOURS, st.integers(0, 10_000))
def test_density_transforms_mean_the_same_everywhere(what: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = np.eye(3) * rng.uniform(0.2, 3) + rng.normal(0, 0.4, (3, 3))
    glass, target = rng.uniform(180, 255, (2, 3))
    image, offset = picture(what), rng.normal(0, 0.2, 3)
    a, b = (
        transform_density(image, matrix, offset, glass, target, backend=name)
        for name in ("numpy", "numba")
    )
    assert b.dtype == np.uint8
    assert np.abs(a.astype(int) - b).max(initial=0) <= 1
    assert np.array_equal(b, transform_density(image, matrix, offset, glass, target, threads=3))


@settings(max_examples=80, deadline=None)
@given(COLOURS, st.integers(0, 10_000))
def test_lab_transforms_mean_the_same_everywhere(what: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scale, shift = rng.uniform(0.6, 1.4, 3), rng.normal(0, 6, 3)
    image = picture(what)
    exact = rgb_to_lab(image) * scale + shift
    inside = np.abs(rgb_to_lab(lab_to_rgb(exact)) - exact).max(axis=-1) < 2
    a, b = (transform_lab(image, scale, shift, backend=name) for name in ("numpy", "numba"))
    assert np.abs(a.astype(int) - b)[inside].max(initial=0) <= 1


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (5, 0, 3), (2, 200, 200, 3)])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_nothing_changes_under_the_identity(shape: tuple[int, ...], backend: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    kept = image.copy()
    for threads in (1, 2):
        same = transform_density(image, np.eye(3), threads=threads, backend=backend)
        lab = transform_lab(image, (1, 1, 1), (0, 0, 0), threads=threads, backend=backend)
        assert same.shape == lab.shape == shape
        assert np.array_equal(same, image)
        assert np.abs(lab.astype(int) - image).max(initial=0) <= 1
    assert np.array_equal(kept, image), "the input is not touched"


def test_lab_is_scikit_images() -> None:
    color = pytest.importorskip("skimage.color")
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    np.testing.assert_allclose(rgb_to_lab(image), color.rgb2lab(image), atol=1e-3)
    assert np.array_equal(lab_to_rgb(rgb_to_lab(image)), image)


def test_what_is_brighter_than_glass_is_glass() -> None:
    image = np.array([[[250, 241, 255], [240, 240, 240]]], np.uint8)
    tilted = np.array([[1, 2, -3], [0, 1, 0], [2, 0, 1.0]])
    found = transform_density(image, tilted, background=240, target_background=245)
    assert (found == 245).all()


def test_a_pixel_by_hand() -> None:
    """Twice the density of a grey of half the glass: a quarter."""
    image = np.full((1, 1, 3), 127, np.uint8)  # (127 + 1) / (255 + 1) = 1/2
    assert transform_density(image, 2 * np.eye(3)).tolist() == [[[63, 63, 63]]]  # 256 / 4 - 1
