"""Nucleus heads by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from coverslip.errors import InvalidConfig, UnknownName
from coverslip.heads.segmentation import Segmentation

SHIPPED = Path(__file__).parent / "weights"
"""Heads in the package."""
DEFAULT = "distance-map-he"
"""What "default" is."""


class NucleusHead(Protocol):
    """Finds the nuclei in a window.

    name, classes   what it is called; names of the classes, in the order of class ids
    mpp             µm per px of the windows it wants
    context_um      how far beyond a nucleus' centroid pixels may influence it
    expected        of the median probability and agreement of a slide's nuclei, where known
    multiple        windows whose corners lie this many px apart, or a multiple, are seen alike
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
    def multiple(self) -> int: ...
    @property
    def expected(self) -> Mapping[str, float]: ...
    @property
    def parameters(self) -> dict[str, Any]: ...

    def fitted(self, sample: npt.NDArray[np.uint8]) -> Self:
        """The head adapted to one slide by sampled pixels, uint8 [..., 3]."""
        ...

    def intensity(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What a nucleus' mean intensity is measured on, float32 [H, W]."""
        ...

    def segment(self, rgb: npt.NDArray[np.uint8]) -> Segmentation:
        """The nuclei of an image uint8 [H, W, 3] at `mpp`."""
        ...


def nucleus_head_names() -> list[str]:
    """All names, sorted; besides them, a trained head's file may be named."""
    from coverslip.heads.recipe import read_recipe

    shipped = (p for p in SHIPPED.glob("*.safetensors") if read_recipe(p).task == "nuclei")
    return sorted(["default", "watershed", *(p.stem for p in shipped)])


def load_nucleus_head(name: str, device: str = "auto", views: int = 0) -> NucleusHead:
    """The head called `name`, or the one in a file of that name, as `coverslip train` writes it.

    views   turned and mirrored views in which a trained one looks for each nucleus again

    "default" is the one that ships. Raises UnknownName, InvalidConfig.
    """
    if name == "watershed":
        from coverslip.heads.watershed import WatershedNuclei

        return WatershedNuclei()
    path = Path(name) if name.endswith(".safetensors") else SHIPPED / f"{name}.safetensors"
    if name == "default":
        path = SHIPPED / f"{DEFAULT}.safetensors"
    if not path.exists():
        if path.parent != SHIPPED:
            raise InvalidConfig(f"{path}: no such file; heads are trained by `coverslip train`")
        raise UnknownName("nucleus model", name, nucleus_head_names())
    from coverslip.heads.network_nuclei import NetworkNuclei

    return NetworkNuclei.load(path, device, views)
