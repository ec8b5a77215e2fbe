"""Launching this package's CUDA kernels on CuPy's current device and stream."""

from __future__ import annotations

from functools import cache
from typing import Any

from coverslip.kernels.cuda import cuda_source

LINE = 256
SQUARE = (32, 8)


@cache
def gpu_kernel(source: str, name: str) -> Any:
    """Kernel `name` of `<source>.cu`."""
    return _module(source).get_function(name)


@cache
def _module(source: str) -> Any:
    """`<source>.cu`, compiled once per process (CuPy keeps the binary on disk)."""
    import cupy

    return cupy.RawModule(code=cuda_source(source), options=("-std=c++14",))


def launch_line(source: str, name: str, count: int, arguments: tuple[Any, ...]) -> None:
    """One thread for each of `count`."""
    if count:
        gpu_kernel(source, name)((-(-count // LINE),), (LINE,), arguments)


def launch_square(
    source: str, name: str, shape: tuple[int, int], arguments: tuple[Any, ...]
) -> None:
    """One thread for each pixel of `shape` (rows, columns)."""
    rows, columns = shape
    if rows and columns:
        blocks = (-(-columns // SQUARE[0]), -(-rows // SQUARE[1]))
        gpu_kernel(source, name)(blocks, SQUARE, arguments)
