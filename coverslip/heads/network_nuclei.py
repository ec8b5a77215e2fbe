"""A trained network as a nucleus head: normalised, run, and its maps turned into nuclei."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.heads.recipe import HeadRecipe, load_head
from coverslip.heads.segmentation import Maps, NucleusNetwork, Segmentation
from coverslip.kernels.stain import DAB, EOSIN, HEMATOXYLIN, stain_concentration, stain_matrix

RGB = npt.NDArray[np.uint8]
Range = tuple[tuple[float, float, float], tuple[float, float, float]]

LOW, HIGH = 1.0, 99.8
"""Percentiles of each channel that become 0 and 1, as StarDist's models were trained."""
MATRIX = stain_matrix(HEMATOXYLIN, EOSIN, DAB)
IMAGENET: Range = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""Mean and spread, grey levels."""


@dataclass(frozen=True, slots=True)
class NetworkNuclei:
    """A nucleus head that is a network; many threads may use one.

    recipe    what it is
    network   torch, in its place, not training
    sha256    of the weights' file
    span      (subtract, divide by) for each channel, grey levels; set by `fitted`
    """

    recipe: HeadRecipe
    network: NucleusNetwork
    sha256: str
    span: Range | None = None
    _turn: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def load(cls, path: Path, device: str = "auto") -> NetworkNuclei:
        """From a head's file. Raises InvalidConfig."""
        return cls(*load_head(path, device))

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
        return self.network.multiple

    @property
    def context_um(self) -> float:
        return self.network.reach * self.mpp

    @property
    def parameters(self) -> dict[str, Any]:
        return {**self.recipe.deciding(), "weights_sha256": self.sha256}

    def fitted(self, sample: npt.NDArray[np.uint8]) -> NetworkNuclei:
        """Normalised by sampled pixels of the slide's tissue, uint8 [..., 3]."""
        return replace(self, span=percentile_span(sample), _turn=self._turn)

    def intensity(self, rgb: RGB) -> npt.NDArray[np.float32]:
        """Haematoxylin concentration, float32 [H, W]."""
        return np.asarray(stain_concentration(rgb, MATRIX, 0, 240.0), np.float32)

    def segment(self, rgb: RGB) -> Segmentation:
        """uint8 [H, W, 3] at `mpp`."""
        maps = self.maps(rgb)
        shape = (rgb.shape[0], rgb.shape[1])
        return self.network.segmentation(maps, shape, self.recipe.settings)

    def maps(self, rgb: RGB) -> Maps:
        """What the network says of the image, each float32 [c, h, w]."""
        import torch

        h, w = rgb.shape[:2]
        more = (-h % self.network.multiple, -w % self.network.multiple)
        padded = np.pad(rgb, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge")
        x = self.normalised(padded).transpose(2, 0, 1)[None]
        # one image at a time: it takes all processors, or the whole device
        with self._turn, torch.inference_mode():
            place = next(self.network.parameters()).device
            found = self.network(torch.from_numpy(x).to(place))
            return [m[0].float().cpu().numpy() for m in found]

    def normalised(self, rgb: RGB) -> npt.NDArray[np.float32]:
        """uint8 [..., 3] -> float32; an image that was not fitted is its own sample."""
        if self.recipe.normalisation == "imagenet":
            low, width = IMAGENET
        else:
            low, width = self.span or percentile_span(rgb)
        scaled: npt.NDArray[np.float32] = rgb - np.array(low, np.float32)
        return np.asarray(scaled / np.array(width, np.float32), np.float32)


def percentile_span(sample: npt.NDArray[np.uint8]) -> Range:
    """(1st percentile, 99.8th less 1st) of each channel; what is of one colour is not stretched."""
    pixels = sample.reshape(-1, 3)
    if not len(pixels):
        return (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
    low, high = np.percentile(pixels, [LOW, HIGH], axis=0)
    width = np.maximum(high - low, 16.0)
    return tuple(low.tolist()), tuple(width.tolist())
