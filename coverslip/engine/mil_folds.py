"""A study's folds: each trained, tested, and beside it the linear baseline on the same bags.

folds/<repeat>-<fold>/                      a training, see `mil.training`; and calibration.json,
                                            which says that the fold is done
folds/<repeat>-<fold>/choice/<n>-<inner>/   the same of alternative <n> on an inner fold

A study that was stopped goes on: what is trained is not trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.durable import replace_file
from coverslip.engine.mil_ensemble import CALIBRATION
from coverslip.engine.mil_study import Study
from coverslip.mil.bag_stream import mean_embeddings
from coverslip.mil.bags import Bags
from coverslip.mil.baseline import fitted_probe
from coverslip.mil.calibration import fitted_temperature
from coverslip.mil.figures import MAIN, study_values
from coverslip.mil.prediction import fold_predictions
from coverslip.mil.splits import Fold
from coverslip.mil.tasks import Task, places
from coverslip.mil.training import MilResult, MilTraining
from coverslip.mil.training_config import MilConfig

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Observer = Callable[[str, int, int], None]
"""Told (which training, steps done, steps at most)."""


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What is said of a task's bags; see `Task.prediction`.

    validation, test   of the fold's bags, calibrated
    uncalibrated       of those tested, before
    temperature        that logits were divided by; fitted on validation bags, 1 but for classes
    """

    validation: Floats
    test: Floats
    uncalibrated: Floats
    temperature: float


@dataclass(frozen=True, slots=True, eq=False)
class FoldResult:
    """A fold trained and tested.

    config            it was trained with: the one chosen where there were alternatives
    tasks             fitted to what it was trained on
    model, baseline   of each task
    training          epochs, figures on validation bags, what sub-sampling costs
    """

    fold: Fold
    config: MilConfig
    tasks: tuple[Task, ...]
    model: tuple[Answers, ...]
    baseline: tuple[Answers, ...]
    training: MilResult


@dataclass(frozen=True)
class StudyFolds:
    """How the folds of a study are trained.

    folder     below which the trainings are
    observer   told of every step
    """

    study: Study
    folder: Path
    device: str = "auto"
    observer: Observer | None = None

    def results(self) -> Iterator[FoldResult]:
        """Fold by fold. Raises InvalidConfig."""
        means = bag_means(self.study.bags)
        for fold, inner in self.study.folds():
            config = self._chosen(inner, fold.name) if inner else self.study.config.training
            training, result = self._trained(fold, config, fold.name)
            model = self._of_model(training)
            heat = {t.name: a.temperature for t, a in zip(training.tasks, model, strict=True)}
            replace_file(training.folder / CALIBRATION, orjson.dumps(heat))
            yield FoldResult(
                fold,
                config,
                training.tasks,
                model,
                self._of_baseline(training, means),
                result,
            )

    def _of_model(self, training: MilTraining) -> tuple[Answers, ...]:
        fold = training.fold
        validation, test = (_logits(training, part) for part in (fold.validation, fold.test))
        return tuple(
            _calibrated(task, validation[:, place], test[:, place], self._target(fold, number))
            for number, (task, place) in enumerate(
                zip(training.tasks, places(training.tasks), strict=True)
            )
        )

    def _of_baseline(self, training: MilTraining, means: Floats) -> tuple[Answers, ...]:
        """Of the same bags, with what the training knew of them beside the tiles."""
        fold, covariates = training.fold, training.examples.covariates
        features = means if covariates is None else np.concatenate([means, covariates], axis=1)
        found = []
        for number, task in enumerate(training.tasks):
            target = self.study.targets[:, number]
            known = task.known(target)
            train, validation = (p[known[p]] for p in (fold.train, fold.validation))
            weighted = training.config.class_weights
            probe = fitted_probe(task, features, target, train, validation, class_weights=weighted)
            watched, tested = (probe.logits(features[p]) for p in (fold.validation, fold.test))
            found.append(_calibrated(task, watched, tested, self._target(fold, number)))
        return tuple(found)

    def _target(self, fold: Fold, number: int) -> Floats:
        target: Floats = self.study.targets[fold.validation, number]
        return target

    def _chosen(self, inner: Sequence[Fold], name: str) -> MilConfig:
        """The settings that do best on what the inner folds test; of equals the first."""
        candidates = self.study.config.candidates()
        scores = [
            np.mean(
                [
                    self._score(fold, config, f"{name}/choice/{number}-{fold.number}")
                    for fold in inner
                ]
            )
            for number, config in enumerate(candidates)
        ]
        return candidates[int(np.argmax(scores))]

    def _score(self, fold: Fold, config: MilConfig, name: str) -> float:
        """The mean over tasks of their main figure on what a fold tests."""
        training, _ = self._trained(fold, config, name)
        logits = _logits(training, fold.test)
        found = study_values(training.tasks, logits, self.study.targets[fold.test])
        values = [found[task.name][MAIN[task.kind]] for task in training.tasks]
        there = [value for value in values if value == value]
        return float(np.mean(there)) if there else 0.0

    def _trained(self, fold: Fold, config: MilConfig, name: str) -> tuple[MilTraining, MilResult]:
        study = self.study
        examples, covariates = study.examples(fold)
        facts = {
            "embeddings": study.facts,
            "covariates": covariates,
            "unit": study.config.unit,
            "repeat": fold.repeat,
            "fold": fold.number,
        }
        training = MilTraining(
            config, study.tasks, examples, fold, self.folder / name, facts=facts,
            device=self.device,
        )  # fmt: skip

        def told(step: int, total: int, row: Mapping[str, float]) -> None:
            if self.observer:
                self.observer(name, step, total)

        return training, training.run(told)


def bag_means(bags: Bags) -> Floats:
    """Mean embedding of every bag, float64 [n, dim]; zeros of one without tiles."""
    found = np.zeros((len(bags.names), bags.dim))
    filled = np.flatnonzero([bags.count(index) for index in range(len(found))])
    found[filled] = mean_embeddings(bags, filled)
    return found


def _logits(training: MilTraining, part: Indices) -> Floats:
    """[b, outputs] from all tiles of the bags."""
    return fold_predictions(
        training.network,
        training.examples.bags,
        part,
        training.examples.covariates,
        precision=training.config.precision,
    )


def _calibrated(task: Task, validation: Floats, test: Floats, target: Floats) -> Answers:
    """Logits as answers.

    target   [n, 2] of the validation bags
    """
    temperature = 1.0
    if task.kind == "classes":
        known = task.known(target)
        temperature = fitted_temperature(validation[known], target[known, 0].astype(np.int64))
    return Answers(
        task.prediction(validation / temperature),
        task.prediction(test / temperature),
        task.prediction(test),
        temperature,
    )
