"""The CUDA sources without a GPU: compiled for one, and run on the CPU thread by thread."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coverslip.kernels._stain_numpy import lab_step
from coverslip.kernels.cuda import cuda_source
from coverslip.kernels.cuda_values import density_values, lab_values
from coverslip.kernels.labels import distance_transform, gaussian, local_maxima
from coverslip.kernels.resample import area_resample
from coverslip.kernels.stain import separate_stains, stain_matrix, transform_density, transform_lab

SOURCES = ("stain", "resample", "labels")

SHIM = """
#include <algorithm>
#include <cmath>
#define __global__
#define __device__
using std::max; using std::min;
struct Place { int x, y; };
static Place blockIdx, threadIdx, blockDim;
#define __log2f log2f
#define __powf powf
"""
LOOPS = """
#define EVERY(BX, BY, TX, TY, CALL)                                        \\
    blockDim.x = TX; blockDim.y = TY;                                      \\
    for (blockIdx.y = 0; blockIdx.y < BY; blockIdx.y++)                    \\
    for (blockIdx.x = 0; blockIdx.x < BX; blockIdx.x++)                    \\
    for (threadIdx.y = 0; threadIdx.y < TY; threadIdx.y++)                 \\
    for (threadIdx.x = 0; threadIdx.x < TX; threadIdx.x++) CALL;
typedef const unsigned char *Bytes;
extern "C" {
void on_density(Bytes rgb, Density *v, unsigned char *out, long long n)
{ EVERY((n + 1023) / 1024, 1, 256, 1, transform_density(rgb, *v, out, n)) }
void on_lab(Bytes rgb, Lab *v, unsigned char *out, long long n)
{ EVERY((n + 1023) / 1024, 1, 256, 1, transform_lab(rgb, *v, out, n)) }
void on_stains(Bytes rgb, Density *v, float *out, long long n, int first, int stains)
{ EVERY((n + 255) / 256, 1, 256, 1, stain_densities(rgb, *v, out, n, first, stains)) }
void on_resample(Bytes image, int h, int w, double x, double y, double sx, double sy,
                 unsigned char *out, int rows, int columns)
{ EVERY((columns + 31) / 32, (rows + 7) / 8, 32, 8,
        area_resample(image, h, w, x, y, sx, sy, out, rows, columns)) }
void on_filter(const float *image, const float *weights, int reach, float *between, float *out,
               int rows, int columns)
{ EVERY((columns + 31) / 32, (rows + 7) / 8, 32, 8,
        filter_down(image, weights, reach, between, rows, columns))
  EVERY((columns + 31) / 32, (rows + 7) / 8, 32, 8,
        filter_across(between, weights, reach, out, rows, columns)) }
void on_peaks(const float *height, Bytes mask, float radius, unsigned char *out,
              int rows, int columns)
{ EVERY((columns + 31) / 32, (rows + 7) / 8, 32, 8,
        peaks(height, mask, radius, out, rows, columns)) }
void on_distances(Bytes mask, float limit, float *out, int rows, int columns)
{ EVERY((columns + 31) / 32, (rows + 7) / 8, 32, 8,
        distances(mask, limit, out, rows, columns)) }
}
"""


@pytest.mark.parametrize("name", SOURCES)
def test_the_sources_compile_for_a_gpu(name: str, tmp_path: Path) -> None:
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not here")
    source = tmp_path / f"{name}.cu"
    source.write_text(cuda_source(name))
    command = ["nvcc", "-std=c++14", "-arch=sm_90", "-Werror", "all-warnings", "-ptx", str(source)]
    made = subprocess.run(
        [*command, "-o", str(tmp_path / "out.ptx")], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The same sources as a C++ library in which one thread runs after another."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler is here")
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "all.cpp").write_text(SHIM + "".join(map(cuda_source, SOURCES)) + LOOPS)
    command = [compiler, "-std=c++14", "-O1", "-shared", "-fPIC", "-fno-strict-aliasing", "-w"]
    subprocess.run([*command, str(folder / "all.cpp"), "-o", str(folder / "all.so")], check=True)
    return ctypes.CDLL(str(folder / "all.so"))


def at(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 37, 41, 3), dtype=np.uint8)


MATRIX = np.array([[1.1, 0.1, -0.05], [-0.1, 0.9, 0.1], [0.05, -0.1, 1.2]])


def test_density(emulated: ctypes.CDLL, tiles: np.ndarray) -> None:
    offset, glass, target = np.array([0.1, 0, -0.1]), np.full(3, 240.0), np.array([245, 240, 250.0])
    values, out = density_values(MATRIX, offset, glass, target), np.zeros_like(tiles)
    emulated.on_density(at(tiles), at(values), at(out), ctypes.c_longlong(tiles.size // 3))
    expected = transform_density(tiles, MATRIX, offset, glass, target, backend="numpy")
    assert np.abs(out.astype(int) - expected).max() <= 1
    assert (out != expected).mean() < 0.001


def test_lab(emulated: ctypes.CDLL, tiles: np.ndarray) -> None:
    scale, shift = np.array([0.9, 1.1, 1.05]), np.array([3.0, -2, 1])
    values, out = lab_values(*lab_step(scale, shift)), np.zeros_like(tiles)
    emulated.on_lab(at(tiles), at(values), at(out), ctypes.c_longlong(tiles.size // 3))
    expected = transform_lab(tiles, scale, shift, backend="numpy")
    assert np.abs(out.astype(int) - expected).max() <= 1


def test_concentrations(emulated: ctypes.CDLL, tiles: np.ndarray) -> None:
    matrix = stain_matrix((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
    glass = np.full(3, 240.0)
    values = density_values(np.linalg.inv(matrix), np.zeros(3), glass, glass, base=np.e)
    expected = separate_stains(tiles, matrix, 240.0, backend="numpy")
    count = ctypes.c_longlong(tiles.size // 3)
    out = np.zeros(tiles.shape, np.float32)
    emulated.on_stains(at(tiles), at(values), at(out), count, 0, 3)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    one = np.zeros(tiles.shape[:-1], np.float32)
    emulated.on_stains(at(tiles), at(values), at(one), count, 1, 1)
    np.testing.assert_allclose(one, expected[..., 1], atol=1e-4)


@pytest.mark.parametrize("scale", [(0.6, 0.7), (1.0, 1.0), (1.013, 2.4), (5.5, 3.0)])
def test_resample(emulated: ctypes.CDLL, tiles: np.ndarray, scale: tuple[float, float]) -> None:
    image, origin = tiles[0], (-3.3, 2.25)
    expected, out = np.zeros((11, 14, 3), np.uint8), np.zeros((11, 14, 3), np.uint8)
    area_resample(image, origin, scale, expected, backend="numpy")
    lattice = [ctypes.c_double(v) for v in (*origin, *scale)]
    emulated.on_resample(at(image), *image.shape[:2], *lattice, at(out), 11, 14)
    assert np.abs(out.astype(int) - expected).max() <= 1


def test_labels(emulated: ctypes.CDLL) -> None:
    rng = np.random.default_rng(1)
    image, mask = rng.random((43, 39)).astype(np.float32), rng.random((43, 39)) < 0.8
    weights = np.exp(-0.5 * (np.arange(-4, 5) / 1.3) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    between, out = np.zeros_like(image), np.zeros_like(image)
    emulated.on_filter(at(image), at(weights), 4, at(between), at(out), 43, 39)
    np.testing.assert_allclose(out, gaussian(image, 1.3, backend="numpy"), atol=1e-5)
    rounded = np.round(out, 2)
    peaks = np.zeros(mask.shape, np.uint8)
    emulated.on_peaks(at(rounded), at(mask), ctypes.c_float(2.5), at(peaks), 43, 39)
    expected = local_maxima(rounded, mask, 2.5, backend="numpy")
    assert np.array_equal(peaks > 0, expected > 0)
    emulated.on_distances(at(mask), ctypes.c_float(4.5), at(out), 43, 39)
    np.testing.assert_allclose(out, distance_transform(mask, 4.5, backend="numpy"), atol=1e-5)


@pytest.mark.gpu
def test_a_gpu_means_the_same(tiles: np.ndarray) -> None:
    """What the emulation cannot show: fast intrinsics, launches, and CuPy around them."""
    cupy = pytest.importorskip("cupy")
    there = cupy.asarray(tiles)
    for make in (
        lambda t: transform_density(t, MATRIX, (0.1, 0, -0.1), 240, 245),
        lambda t: transform_lab(t, (0.9, 1.1, 1.05), (3, -2, 1)),
    ):
        assert np.abs(make(there).get().astype(int) - make(tiles)).max() <= 1
    matrix = stain_matrix((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
    np.testing.assert_allclose(
        separate_stains(there, matrix, 240).get(), separate_stains(tiles, matrix, 240), atol=1e-3
    )
    out = cupy.zeros((11, 14, 3), cupy.uint8)
    area_resample(there[0], (-3.3, 2.25), (1.3, 2.4), out)
    expected = np.zeros((11, 14, 3), np.uint8)
    area_resample(tiles[0], (-3.3, 2.25), (1.3, 2.4), expected)
    assert np.abs(out.get().astype(int) - expected).max() <= 1
    grey = tiles[0, ..., 0].astype(np.float32)
    np.testing.assert_allclose(
        gaussian(cupy.asarray(grey), 1.3).get(), gaussian(grey, 1.3), atol=1e-3
    )
