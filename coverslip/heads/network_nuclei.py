"""A trained network as a nucleus head: normalised, run, and its maps turned into nuclei."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from coverslip.errors import InvalidConfig
from coverslip.heads.depth import agreement
from coverslip.heads.network_head import RGB, NetworkHead
from coverslip.heads.recipe import load_head
from coverslip.heads.segmentation import NucleusNetwork, Segmentation
from coverslip.heads.watershed import MATRIX
from coverslip.kernels.stain import stain_concentration


class Findings(NamedTuple):
    """What one look at an image finds.

    others   objects besides nuclei, by name
    tissue   float32 [classes, H / multiple, W / multiple]: the logit of each tissue class at
             every cell of the network; None from a network that names none
    """

    nuclei: Segmentation
    others: Mapping[str, Segmentation]
    tissue: npt.NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class NetworkNuclei(NetworkHead):
    """A nucleus head that is a network; many threads may use one.

    views   turned and mirrored views in which each nucleus is looked for again, 0 to 7
    """

    network: NucleusNetwork
    views: int = 0

    @classmethod
    def load(cls, path: Path, device: str = "auto", views: int = 0) -> NetworkNuclei:
        """From a head's file. Raises InvalidConfig."""
        recipe, network, sha256 = load_head(path, device)
        if recipe.task != "nuclei":
            raise InvalidConfig(f"{path}: is a head for {recipe.task}, not for nuclei")
        return cls(recipe, network, sha256, views=views)

    @property
    def expected(self) -> dict[str, float]:
        """Least medians of a slide's nuclei on which the model is in its depth."""
        return {k: v for k, v in self.recipe.expected.items() if self.views or k != "agreement"}

    @property
    def parameters(self) -> dict[str, Any]:
        looked = {"views": self.views} if self.views else {}
        return {**self.recipe.deciding(), "weights_sha256": self.sha256, **looked}

    def intensity(self, rgb: RGB) -> npt.NDArray[np.float32]:
        """Haematoxylin concentration, float32 [H, W]."""
        return np.asarray(stain_concentration(rgb, MATRIX, 0, 240.0), np.float32)

    @property
    def others(self) -> tuple[str, ...]:
        """What the network finds besides nuclei: "glands", "lumina"."""
        return tuple(getattr(self.network, "others", ()))

    @property
    def tissue_classes(self) -> tuple[str, ...]:
        """What tissues the network tells apart; none that nobody named."""
        return tuple(getattr(self.network, "tissue_classes", ()))

    def tissue_probabilities(
        self, logits: npt.NDArray[np.float32], known: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32]:
        """Of `tissue_classes` at every cell, float32 [h, w, classes]; nan where `known` is not.

        logits   [h, w, classes] of all cells of a slide, put together from its windows
        """
        network: Any = self.network
        found: npt.NDArray[np.float32] = network.tissue_probabilities(logits, known)
        return found

    def segment(self, rgb: RGB) -> Segmentation:
        """uint8 [H, W, 3] at `mpp`."""
        return self._agreed(rgb, self._segmented(rgb))

    def segment_all(self, rgb: RGB) -> Findings:
        """All there is to say of an image, from one pass through the network."""
        network: Any = self.network
        maps, shape, settings = self.maps(rgb), (rgb.shape[0], rgb.shape[1]), self.recipe.settings
        nuclei = network.segmentation(maps, shape, settings)
        others = {task: network.segmentation(maps, shape, settings, task) for task in self.others}
        tissue = np.asarray(maps[-1]) if self.tissue_classes else None
        return Findings(self._agreed(rgb, nuclei), others, tissue)

    def _agreed(self, rgb: RGB, found: Segmentation) -> Segmentation:
        """With the agreement among `views`, where there are any."""
        if not self.views:
            return found
        again = [
            _turned_back(self._segmented(_turned(rgb, view)).labels, view)
            for view in range(1, self.views + 1)
        ]
        return found._replace(agreement=agreement(found.labels, again))

    def _segmented(self, rgb: RGB) -> Segmentation:
        shape = (rgb.shape[0], rgb.shape[1])
        return self.network.segmentation(self.maps(rgb), shape, self.recipe.settings)


def _turned(image: npt.NDArray[Any], view: int) -> npt.NDArray[Any]:
    """View 1 to 7 of a square's eight; quarter turns first, then the mirrored ones."""
    turned = np.rot90(image, view % 4)
    return np.ascontiguousarray(turned[:, ::-1] if view >= 4 else turned)


def _turned_back(image: npt.NDArray[Any], view: int) -> npt.NDArray[Any]:
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if view >= 4 else image, -(view % 4)))
