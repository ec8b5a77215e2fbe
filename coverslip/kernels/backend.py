"""Which implementation of a kernel runs: the array decides."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

Backend = Literal["numpy", "numba", "cupy"]


def backend_of(array: Any) -> Backend:
    """ "cupy" for an array on a GPU, else "numba", else (where Numba is not installed) "numpy"."""
    if type(array).__module__.partition(".")[0] == "cupy":
        return "cupy"
    return "numba" if _has_numba() else "numpy"


def implementation(kernel: str, array: Any, backend: Backend | None = None) -> ModuleType:
    """The module holding `kernel` for this array: `coverslip.kernels._<kernel>_<backend>`.

    backend   overrides the choice; for tests and benchmarks
    """
    return import_module(f"coverslip.kernels._{kernel}_{backend or backend_of(array)}")


@cache
def _has_numba() -> bool:
    return find_spec("numba") is not None
