"""What is learned from: bags, and what is known of each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coverslip.errors import InvalidConfig
from coverslip.mil.bags import Bags
from coverslip.mil.splits import Fold


@dataclass(frozen=True, slots=True, eq=False)
class MilExamples:
    """Bags and what is known of them.

    targets      float64 [n, tasks, 2], see `tasks`
    covariates   float32 [n, c] without nan, or None
    """

    bags: Bags
    targets: npt.NDArray[np.float64]
    covariates: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        count, covariates = len(self.bags.names), self.covariates
        if self.targets.ndim != 3 or self.targets.shape[::2] != (count, 2):
            raise ValueError(f"targets must be [{count}, tasks, 2], got {list(self.targets.shape)}")
        if covariates is not None:
            if covariates.ndim != 2 or len(covariates) != count:
                raise ValueError(f"covariates must be [{count}, c], got {list(covariates.shape)}")
            if not np.isfinite(covariates).all():
                row = int(np.flatnonzero(~np.isfinite(covariates).all(axis=1))[0])
                raise InvalidConfig(f"bag {self.bags.names[row]!r}: a covariate that is not finite")

    @property
    def width(self) -> int:
        """Covariates of a bag."""
        return 0 if self.covariates is None else self.covariates.shape[1]

    def digest(self, fold: Fold) -> str:
        """sha256 of all that a training on a fold goes by, but the embeddings themselves."""
        found = hashlib.sha256()
        for side in (fold.train, fold.validation):
            names = [self.bags.names[int(i)] for i in side]
            found.update(repr((names, [self.bags.count(int(i)) for i in side])).encode())
            found.update(self.targets[side].tobytes())
            if self.covariates is not None:
                found.update(self.covariates[side].tobytes())
        return found.hexdigest()
