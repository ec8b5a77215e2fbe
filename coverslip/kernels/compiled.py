"""How Numba compiles here: without the GIL, cached on disk, once for all processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numba


def _writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _give_the_cache_a_place() -> None:
    """Numba keeps machine code beside the source, else in the user's cache. Where neither may be
    written (a read-only container) it would refuse to compile: then it goes to the temporary files.
    """
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if numba.config.CACHE_DIR or _writable(Path(__file__).parent) or _writable(user):  # type: ignore[attr-defined]
        return
    folder = Path(tempfile.gettempdir()) / f"coverslip-numba-{os.getuid()}"
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]


_give_the_cache_a_place()

Loop = TypeVar("Loop", bound=Callable[..., object])


def compiled(loop: Loop) -> Loop:
    """Decorates a kernel's loop."""
    return numba.njit(nogil=True, cache=True)(loop)  # type: ignore[return-value]
