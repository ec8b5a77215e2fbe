"""Do slide-level models learn what is there, and nothing where nothing is?

python benchmarks/mil.py STORES --background SLIDE --signal SLIDE [--models abmil,clam-sb]
    [--bags 80] [--epochs 16] [--learning-rate 5e-4] [--patience 5] [--arguments JSON]

STORES        a run's output folder with embeddings: coverslip features SLIDES -o STORES
background    slide whose tiles fill all bags
signal        slide whose tiles are planted in half of the bags, 1 % of their tiles

Bags are drawn from real embeddings. Two experiments on the same folds: labels that say which bags
have planted tiles, and labels that have nothing to do with them. Reported are the AUROC on bags
while they were held out, with its interval over bags drawn again, and how many of the planted tiles
are among those that get the most attention (as many as are planted): a bag's recall.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from coverslip.engine.bags import StoredBags
from coverslip.engine.mil_folds import bag_means
from coverslip.mil.bags import Bags
from coverslip.mil.baseline import fitted_probe
from coverslip.mil.examples import MilExamples
from coverslip.mil.figures import task_estimates
from coverslip.mil.intervals import Estimate
from coverslip.mil.prediction import fold_predictions
from coverslip.mil.registry import slide_model_names
from coverslip.mil.splits import Fold, SplitConfig, cross_validation, strata_of
from coverslip.mil.tasks import Task
from coverslip.mil.training import MilTraining
from coverslip.mil.training_config import MilConfig

BAGS, TILES, PLANTED = 80, 300, 3
TASK = Task("planted", "classes", ("no", "yes"))
FOLDS = SplitConfig(folds=4)
CONFIG = MilConfig(epochs=16, patience=5, bags_per_step=4, learning_rate=5e-4)


@dataclass(frozen=True)
class SimulatedBags:
    """Rows of a table of embeddings.

    rows      int [bags, TILES]
    planted   bool [bags, TILES]
    """

    table: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    planted: npt.NDArray[np.bool_]

    @classmethod
    def drawn(
        cls,
        background: npt.NDArray[np.float32],
        signal: npt.NDArray[np.float32],
        bags: int = BAGS,
        seed: int = 0,
    ) -> SimulatedBags:
        """Every other bag has planted tiles. No signal tile is in two bags, if there are enough."""
        random = np.random.default_rng(seed)
        rows = np.stack([random.choice(len(background), TILES) for _ in range(bags)])
        planted = np.zeros(rows.shape, np.bool_)
        chosen = random.permutation(len(signal))
        for number, bag in enumerate(range(1, bags, 2)):
            place = random.choice(TILES, PLANTED, replace=False)
            taken = np.arange(number * PLANTED, (number + 1) * PLANTED) % len(signal)
            rows[bag, place] = len(background) + chosen[taken]
            planted[bag, place] = True
        return cls(np.concatenate([background, signal]), rows, planted)

    @property
    def names(self) -> list[str]:
        return [f"bag {number}" for number in range(len(self.rows))]

    @property
    def dim(self) -> int:
        return self.table.shape[1]

    def count(self, index: int) -> int:
        return self.rows.shape[1]

    def read(
        self, index: int, rows: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        found = self.rows[index] if rows is None else self.rows[index][rows]
        return self.table[found]


@dataclass(frozen=True)
class Outcome:
    auroc: Estimate
    recall: float
    seconds: float


def cross_validated(
    bags: Bags,
    labels: npt.NDArray[np.float64],
    model: str,
    splits: SplitConfig = FOLDS,
    config: MilConfig = CONFIG,
) -> tuple[npt.NDArray[np.float64], list[tuple[Fold, torch.nn.Module]]]:
    """(logits [bags, 2] of every bag while it was held out, the network of each fold).

    model   a name in the registry, or "baseline"
    """
    targets = np.stack([labels, np.zeros(len(labels))], axis=1)[:, None]
    folds = cross_validation(np.array(bags.names), strata_of([TASK], targets), splits)
    said, networks = np.zeros((len(labels), 2)), []
    means = bag_means(bags)
    for fold in folds:
        if model == "baseline":
            probe = fitted_probe(TASK, means, targets[:, 0], fold.train, fold.validation)
            said[fold.test] = probe.logits(means[fold.test])
            continue
        with tempfile.TemporaryDirectory() as folder:
            training = MilTraining(
                replace(config, model=model), [TASK], MilExamples(bags, targets), fold,
                Path(folder), facts={}, device="cpu",
            )  # fmt: skip
            training.run()
        said[fold.test] = fold_predictions(training.network, bags, fold.test)
        networks.append((fold, training.network))
    return said, networks


def auroc(bags: Bags, labels: npt.NDArray[np.float64], said: npt.NDArray[np.float64]) -> Estimate:
    target = np.stack([labels, np.zeros(len(labels))], axis=1)
    return task_estimates(TASK, TASK.prediction(said), target, np.array(bags.names))["auroc"]


def experiment(
    bags: SimulatedBags, labels: npt.NDArray[np.float64], model: str, config: MilConfig
) -> Outcome:
    """A model by cross-validation."""
    began = time.perf_counter()
    said, networks = cross_validated(bags, labels, model, config=config)
    seconds = time.perf_counter() - began
    recalls = [found for fold, network in networks for found in _recalls(network, bags, fold)]
    recall = float(np.mean(recalls)) if recalls else float("nan")
    return Outcome(auroc(bags, labels, said), recall, seconds)


def _recalls(network: torch.nn.Module, bags: SimulatedBags, fold: Fold) -> list[float]:
    """Of each bag tested that has planted tiles."""
    found = []
    for bag in fold.test:
        planted = bags.planted[bag]
        if not planted.any():
            continue
        with torch.inference_mode():
            attention = network(torch.from_numpy(bags.read(bag)), None).attention.mean(dim=0)
        top = np.argsort(-attention.numpy(), kind="stable")[:PLANTED]
        found.append(float(planted[top].mean()))
    return found


def embeddings(stores: Path, slide: str) -> npt.NDArray[np.float32]:
    bags = StoredBags.open(stores)
    return bags.read(bags.names.index(slide)).astype(np.float32)


def shuffled_labels(truth: npt.NDArray[np.float64], seed: int = 1) -> npt.NDArray[np.float64]:
    """Labels that go with half of the bags of either kind: what is planted says nothing of them.

    Plainly permuted, they would agree with it by some bags more or less than half, and that can be
    learned.
    """
    random = np.random.default_rng(seed)
    labels = np.zeros(len(truth))
    for kind in (0.0, 1.0):
        own = random.permutation(np.flatnonzero(truth == kind))
        labels[own[: len(own) // 2]] = 1
    return labels


def report(bags: SimulatedBags, models: Sequence[str], config: MilConfig) -> None:
    """A table, a row a model."""
    truth = bags.planted.any(axis=1).astype(float)
    shuffled = shuffled_labels(truth)
    print(
        f"{len(truth)} bags of {TILES} tiles, {PLANTED} planted in every other; "
        f"{FOLDS.folds} folds; at most {config.epochs} epochs at {config.learning_rate:g}"
    )
    print("| model | AUROC | recall of planted tiles | AUROC, labels shuffled | s |")
    print("|---|---|---|---|---|")
    for model in ["baseline", *models]:
        found, none = (experiment(bags, labels, model, config) for labels in (truth, shuffled))
        recall = "" if np.isnan(found.recall) else f"{found.recall:.2f}"
        seconds = found.seconds + none.seconds
        print(f"| {model} | {found.auroc} | {recall} | {none.auroc} | {seconds:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stores", type=Path)
    parser.add_argument("--background", required=True)
    parser.add_argument("--signal", required=True)
    parser.add_argument("--bags", type=int, default=BAGS)
    parser.add_argument("--models", default=",".join(slide_model_names()))
    parser.add_argument("--epochs", type=int, default=CONFIG.epochs)
    parser.add_argument("--learning-rate", type=float, default=CONFIG.learning_rate)
    parser.add_argument("--patience", type=int, default=CONFIG.patience)
    parser.add_argument("--arguments", type=json.loads, default={}, help="of the models, as JSON")
    given = parser.parse_args()
    background, signal = (embeddings(given.stores, s) for s in (given.background, given.signal))
    config = replace(
        CONFIG,
        epochs=given.epochs,
        learning_rate=given.learning_rate,
        patience=given.patience,
        arguments=given.arguments,
    )
    report(SimulatedBags.drawn(background, signal, given.bags), given.models.split(","), config)


if __name__ == "__main__":
    main()
