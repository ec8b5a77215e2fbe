"""Resampling: the definition means the area, and every backend means the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.kernels.resample import area_resample

BACKENDS = ["numba", pytest.param("cupy", marks=pytest.mark.gpu)]


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resampled(image, origin, scale, size, backend):  # type: ignore[no-untyped-def]
    out = np.empty((size[1], size[0], 3), np.uint8)
    area_resample(image, origin, scale, out, backend=backend)
    return out


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


def test_the_definition_is_the_mean_over_the_area() -> None:
    image = noise(8, 6)
    # one pixel over [1.5, 4.0) x [0.25, 2.0), summed by hand
    weight_x = np.array([0, 0.5, 1, 1, 0, 0, 0, 0])
    weight_y = np.array([0.75, 1, 0, 0, 0, 0])
    mean = np.einsum("y,x,yxc->c", weight_y, weight_x, image.astype(float)) / (2.5 * 1.75)
    found = resampled(image, (1.5, 0.25), (2.5, 1.75), (1, 1), "numpy")
    np.testing.assert_array_equal(found[0, 0], np.floor(mean + 0.5))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_halves_round_up(backend: str) -> None:
    image = np.array([[[0, 1, 254], [1, 2, 255]]], np.uint8)
    found = resampled(image, (0, 0), (2, 1), (1, 1), backend)
    np.testing.assert_array_equal(found[0, 0], [1, 2, 255])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_scale_one_on_the_pixels_copies(backend: str) -> None:
    image = noise(37, 23)
    found = resampled(image, (5, 4), (1, 1), (20, 10), backend)
    np.testing.assert_array_equal(found, image[4:14, 5:25])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("factor", [2, 3, 4, 7])
def test_whole_factors_are_exact(backend: str, factor: int) -> None:
    image = noise(9 * factor, 5 * factor)
    means = image.reshape(5, factor, 9, factor, 3).mean(axis=(1, 3))
    found = resampled(image, (0, 0), (factor, factor), (9, 5), backend)
    np.testing.assert_array_equal(found, np.floor(means + 0.5))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_white_lies_outside_and_an_edge_pixel_is_mixed_with_it(backend: str) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    found = resampled(image, (-2, 3), (4, 4), (3, 1), backend)[..., 0]
    # halves outside in x: 2 of 4 columns; in y 3 of 4 rows
    np.testing.assert_array_equal(found, [[round(255 * 7 / 8), round(255 * 7 / 8), 255]])


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (1, 1), (3, 1)])
@pytest.mark.parametrize("scale", [0.3, 1.0, 1.03, 2.5])
def test_tiny_and_empty_images(backend: str, size: tuple[int, int], scale: float) -> None:
    image = noise(*size)
    expected = resampled(image, (-0.4, 0.2), (scale, scale), (5, 4), "numpy")
    np.testing.assert_array_equal(
        resampled(image, (-0.4, 0.2), (scale, scale), (5, 4), backend), expected
    )


def test_empty_output_is_left_alone(backend: str) -> None:
    assert resampled(noise(4, 4), (0, 0), (1, 1), (0, 3), backend).shape == (3, 0, 3)


def test_output_may_be_a_view(backend: str) -> None:
    image, canvas = noise(40, 40), np.zeros((20, 60, 3), np.uint8)
    area_resample(image, (0.5, 0.5), (1.5, 1.5), canvas[3:13, 10:20], backend=backend)
    expected = resampled(image, (0.5, 0.5), (1.5, 1.5), (10, 10), backend)
    np.testing.assert_array_equal(canvas[3:13, 10:20], expected)
    assert canvas.sum() == expected.sum()


@settings(max_examples=80, deadline=None)
@given(
    x=st.floats(-9, 30),
    y=st.floats(-9, 30),
    sx=st.one_of(st.floats(0.2, 9), st.floats(0.95, 1.05)),
    sy=st.one_of(st.floats(0.2, 9), st.floats(0.95, 1.05)),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_numba_means_the_same(
    x: float, y: float, sx: float, sy: float, width: int, height: int, seed: int
) -> None:
    image = noise(31, 17, seed)
    expected = resampled(image, (x, y), (sx, sy), (width, height), "numpy").astype(int)
    found = resampled(image, (x, y), (sx, sy), (width, height), "numba").astype(int)
    assert np.abs(found - expected).max() <= 1
    assert np.mean(found != expected) < 0.02 or expected.size < 1000


@pytest.mark.parametrize("scale", [0.989, 1.0, 1.003, 1.052, 1.3, 2.0])
def test_windows_side_by_side_are_one_window(scale: float) -> None:
    image = noise(300, 80)
    whole = resampled(image, (0.3, 0.6), (scale, scale), (128, 40), "numba").astype(int)
    for u in range(0, 128, 32):
        part = resampled(image, (0.3 + u * scale, 0.6), (scale, scale), (32, 40), "numba")
        assert np.abs(whole[:, u : u + 32] - part).max() <= 1


def test_a_batch_is_its_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 31, 40, 3), dtype=np.uint8)
    out = np.empty((3, 11, 12, 3), np.uint8)
    area_resample(images, (0.5, -1.0), (3.1, 2.9), out)
    for image, found in zip(images, out, strict=True):
        alone = np.empty((11, 12, 3), np.uint8)
        area_resample(image, (0.5, -1.0), (3.1, 2.9), alone)
        assert np.array_equal(found, alone)
    with pytest.raises(ValueError, match="one length"):
        area_resample(images, (0, 0), (3, 3), out[:2])


@pytest.mark.parametrize("origin", [(0, 0), (3, 2), (0.5, 0), (-2, 0), (1, 1)])
def test_halving_is_exact(origin: tuple[float, float]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 53, 3), dtype=np.uint8)
    a, b = np.zeros((2, 18, 25, 3), np.uint8)
    area_resample(image, origin, (2.0, 2.0), a, backend="numpy")
    area_resample(image, origin, (2.0, 2.0), b, backend="numba")
    assert np.array_equal(a, b)
