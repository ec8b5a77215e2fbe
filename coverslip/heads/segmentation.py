"""What every nucleus model gives, and what one that can be trained must offer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Labels = npt.NDArray[np.int32]
Maps = Sequence[npt.NDArray[np.float32]]


class Segmentation(NamedTuple):
    """N nuclei of an image.

    labels        int32 [H, W], 1 to N without gaps, 0 background
    probability   float32 [N] of being a nucleus; nan where the model has no such thing
    class_id      uint8 [N], index into the model's classes
    agreement     float32 [N]: how well the same nucleus is found again in turned and mirrored views
                  of the image, mean IoU, 0 to 1; nan where nobody looked
    """

    labels: Labels
    probability: npt.NDArray[np.float32]
    class_id: npt.NDArray[np.uint8]
    agreement: npt.NDArray[np.float32]

    @classmethod
    def of(
        cls,
        labels: Labels,
        probability: npt.NDArray[np.float32] | None = None,
        class_id: npt.NDArray[np.uint8] | None = None,
    ) -> Segmentation:
        """Without probabilities and all of the first class, where nothing else is said."""
        count = int(labels.max(initial=0))
        unknown = np.full(count, np.nan, np.float32)
        return cls(
            labels,
            unknown if probability is None else probability,
            np.zeros(count, np.uint8) if class_id is None else class_id,
            unknown,
        )

    def where(self, kept: npt.NDArray[np.bool_]) -> Segmentation:
        """Only the nuclei for which `kept` [N] holds, numbered anew."""
        number = np.zeros(len(kept) + 1, np.int32)
        number[1:][kept] = np.arange(1, np.count_nonzero(kept) + 1)
        return Segmentation(
            number[self.labels], self.probability[kept], self.class_id[kept], self.agreement[kept]
        )


class NucleusNetwork(Protocol):
    """A torch module that can be trained to find nuclei, with the arithmetic around it.

    multiple   sides of its input must be multiples of this, px
    reach      how far from a nucleus' centroid pixels may influence it, px

    Called with (b, 3, H, W) float32, normalised; gives a tuple of tensors (b, c, H', W'), its maps.
    """

    multiple: int
    reach: int

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]: ...
    def parameters(self) -> Iterator[Tensor]: ...

    def targets(
        self, labels: Labels, class_id: npt.NDArray[np.uint8]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """What the maps of an image with these nuclei should be; class_id [N], 255 unknown."""
        ...

    def losses(self, maps: tuple[Tensor, ...], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Terms to minimise, each a scalar with its weight in it; targets with a batch axis."""
        ...

    def segmentation(
        self, maps: Maps, shape: tuple[int, int], settings: Mapping[str, Any]
    ) -> Segmentation:
        """The nuclei of one image of (H, W) px from its maps [c, H', W']."""
        ...


UNKNOWN_CLASS = 255
"""Class of a nucleus that nobody told; it teaches where nuclei are, not of which class."""
