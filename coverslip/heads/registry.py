"""Nucleus heads by name."""

from __future__ import annotations

from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from coverslip.errors import UnknownName


class NucleusHead(Protocol):
    """Finds the nuclei in a window.

    name, classes   what it is called; names of the classes, in the order of class ids
    mpp             µm per px of the windows it wants
    context_um      how far beyond a nucleus' centroid pixels may influence it
    parameters      JSON-able; everything that decides its result, apart from `fitted`
    """

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def mpp(self) -> float: ...
    @property
    def context_um(self) -> float: ...
    @property
    def parameters(self) -> dict[str, Any]: ...

    def fitted(self, sample: npt.NDArray[np.uint8]) -> Self:
        """The head adapted to one slide by sampled pixels, uint8 [..., 3]."""
        ...

    def intensity(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What a nucleus' mean intensity is measured on, float32 [H, W]."""
        ...

    def segment(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """uint8 [H, W, 3] -> int32 [H, W] labels, 4-connected."""
        ...


def nucleus_head_names() -> list[str]:
    """All names, sorted."""
    return ["watershed"]


def load_nucleus_head(name: str) -> NucleusHead:
    """The head called `name`. Raises UnknownName."""
    if name not in nucleus_head_names():
        raise UnknownName("nucleus model", name, nucleus_head_names())
    from coverslip.heads.watershed import WatershedNuclei

    return WatershedNuclei()
