"""A trained network as a head: pixels normalised as it wants them, run, its maps taken back."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from coverslip.heads.normalisation import Normalisation
from coverslip.heads.recipe import HeadRecipe
from coverslip.heads.segmentation import Maps

RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class NetworkHead:
    """A head that is a network; many threads may use one.

    recipe          what it is
    network         torch, in its place, not training; `multiple` and `reach` in px
    sha256          of the weights' file
    normalisation   of one slide; set by `fitted`
    """

    recipe: HeadRecipe
    network: Any
    sha256: str
    normalisation: Normalisation | None = None
    _turn: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.recipe.classes

    @property
    def mpp(self) -> float:
        return self.recipe.mpp

    @property
    def multiple(self) -> int:
        """Windows at multiples of this many px of one lattice are seen alike."""
        found: int = self.network.multiple
        return found

    @property
    def context_um(self) -> float:
        reach: int = self.network.reach
        return reach * self.mpp

    @property
    def parameters(self) -> dict[str, Any]:
        return {**self.recipe.deciding(), "weights_sha256": self.sha256}

    def fitted(self, sample: npt.NDArray[np.uint8]) -> Self:
        """Normalised by sampled pixels of the slide's tissue, uint8 [..., 3]."""
        found = Normalisation.of(self.recipe.normalisation, sample)
        return replace(self, normalisation=found, _turn=self._turn)

    def maps(self, rgb: RGB) -> Maps:
        """What the network says of the image, each float32 [c, h, w]."""
        import torch

        h, w = rgb.shape[:2]
        more = (-h % self.multiple, -w % self.multiple)
        padded = np.pad(rgb, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge")
        x = np.ascontiguousarray(self.normalised(padded).transpose(2, 0, 1)[None])
        # one image at a time: it takes all processors, or the whole device
        with self._turn, torch.inference_mode():
            place = next(self.network.parameters()).device
            found = self.network(torch.from_numpy(x).to(place))
            return [m[0].float().cpu().numpy() for m in found]

    def normalised(self, rgb: RGB) -> npt.NDArray[np.float32]:
        """uint8 [H, W, 3] -> float32 [H, W, C]; an image that was not fitted is its own sample."""
        found = self.normalisation or Normalisation.of(self.recipe.normalisation, rgb)
        return found(rgb, self.mpp)
