"""What a study's folds come to: every bag as it was predicted while held out, and figures of that.

A bag is tested once a repeat; its predictions are averaged over repeats. Intervals are of patients
drawn again from all that were tested: they say how far the figure depends on who was in the cohort,
not on how networks were initialised; for that there are the figures of the single folds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.durable import write_csv
from coverslip.engine.mil_folds import Answers, FoldResult
from coverslip.engine.mil_study import Study
from coverslip.mil.figures import MAIN, task_differences, task_estimates, task_values
from coverslip.mil.intervals import Estimate
from coverslip.mil.operating_points import OperatingPoint, Performance
from coverslip.mil.tasks import Task

Floats = npt.NDArray[np.float64]
WAYS = ("model", "baseline")


@dataclass(frozen=True, slots=True)
class PointFigures:
    """A threshold chosen on each fold's validation bags, and what the thresholds give on the bags
    that the folds tested."""

    aim: str
    wanted: float
    thresholds: tuple[float, ...]
    found: Performance


@dataclass(frozen=True, slots=True, eq=False)
class WayFigures:
    """How well one way answers a task.

    predictions    [n] or [n, classes] of all bags; nan for those that no fold tested
    uncalibrated   the same before calibration
    figures        of all tested bags together
    by_fold        the task's main figure in each fold
    points         of a task of two classes
    """

    predictions: Floats
    uncalibrated: Floats
    figures: dict[str, Estimate]
    by_fold: tuple[float, ...]
    points: tuple[PointFigures, ...]

    @property
    def tested(self) -> npt.NDArray[np.bool_]:
        """[n]: bags that some fold tested."""
        return tested_bags(self.predictions)


@dataclass(frozen=True, slots=True, eq=False)
class TaskFigures:
    """A task, its targets [n, 2], and both ways to answer it.

    beyond   figure -> by how much the model is better than the baseline on the same patients
    """

    task: Task
    target: Floats
    model: WayFigures
    baseline: WayFigures
    beyond: dict[str, Estimate]


def study_figures(study: Study, results: Sequence[FoldResult]) -> list[TaskFigures]:
    """Of every task. Raises InvalidConfig where a two-class task has no bag to choose a threshold
    on."""
    return [_task_figures(study, number, task, results) for number, task in enumerate(study.tasks)]


def _task_figures(
    study: Study, number: int, task: Task, results: Sequence[FoldResult]
) -> TaskFigures:
    target = study.targets[:, number]
    model, baseline = (
        _way_figures(study, task, target, [(r, getattr(r, way)[number]) for r in results])
        for way in WAYS
    )
    tested = model.tested
    beyond = task_differences(
        task, model.predictions[tested], baseline.predictions[tested], target[tested],
        study.patients[tested], resamples=study.config.resamples, seed=study.config.split.seed,
    )  # fmt: skip
    return TaskFigures(task, target, model, baseline, beyond)


def _way_figures(
    study: Study, task: Task, target: Floats, folds: Sequence[tuple[FoldResult, Answers]]
) -> WayFigures:
    total = len(target)
    said = _pooled(total, [(r.fold.test, a.test) for r, a in folds])
    tested = tested_bags(said)
    config = study.config
    figures = task_estimates(
        task, said[tested], target[tested], study.patients[tested],
        resamples=config.resamples, seed=config.split.seed,
    )  # fmt: skip
    return WayFigures(
        said,
        _pooled(total, [(r.fold.test, a.uncalibrated) for r, a in folds]),
        figures,
        tuple(task_values(task, a.test, target[r.fold.test])[MAIN[task.kind]] for r, a in folds),
        tuple(_points(study, task, target, folds)),
    )


def tested_bags(predictions: Floats) -> npt.NDArray[np.bool_]:
    """[n]: bags that some fold tested."""
    return ~np.isnan(predictions.reshape(len(predictions), -1)[:, 0])


def _pooled(total: int, parts: Sequence[tuple[npt.NDArray[np.int64], Floats]]) -> Floats:
    """[total, ...]: the mean of what was said of each bag; nan of which nothing was."""
    said = np.zeros((total, *parts[0][1].shape[1:]))
    times = np.zeros(total)
    for indices, values in parts:
        said[indices] += values
        times[indices] += 1
    times[times == 0] = np.nan
    pooled: Floats = said / times.reshape(-1, *[1] * (said.ndim - 1))
    return pooled


def _points(
    study: Study, task: Task, target: Floats, folds: Sequence[tuple[FoldResult, Answers]]
) -> Iterator[PointFigures]:
    """Of the second of two classes."""
    if task.kind != "classes" or len(task.classes) != 2:
        return
    config = study.config
    aims = {"sensitivity": config.sensitivity, "specificity": config.specificity}
    for aim, wanted in aims.items():
        if not wanted:
            continue
        thresholds, margins = [], []
        for result, answers in folds:
            watched = target[result.fold.validation]
            known = task.known(watched)
            score, positive = answers.validation[known, 1], watched[known, 0] == 1
            point = OperatingPoint.chosen(score, positive, aim, wanted)  # type: ignore[arg-type]
            thresholds.append(point.threshold)
            # of an infinite threshold no average could be taken; none reaches 2 either
            margins.append((result.fold.test, answers.test[:, 1] - min(point.threshold, 2.0)))
        margin = _pooled(len(target), margins)
        tested = ~np.isnan(margin) & task.known(target)
        found = OperatingPoint(aim, wanted, 0.0).performance(  # type: ignore[arg-type]
            margin[tested], target[tested, 0] == 1, study.patients[tested],
            resamples=config.resamples, seed=config.split.seed,
        )  # fmt: skip
        yield PointFigures(aim, wanted, tuple(thresholds), found)


def write_tables(
    folder: Path, study: Study, results: Sequence[FoldResult], found: Sequence[TaskFigures]
) -> list[Path]:
    """`folds.csv`, `predictions.csv` and `figures.csv`; returns their paths."""
    tables = {
        "folds.csv": _fold_rows(study, results),
        "predictions.csv": _prediction_rows(study, found),
        "figures.csv": _figure_rows(found),
    }
    for name, rows in tables.items():
        write_csv(folder / name, rows)
    return [folder / name for name in tables]


def _fold_rows(study: Study, results: Sequence[FoldResult]) -> Iterator[Sequence[Any]]:
    yield "bag", "patient", "repeat", "fold", "part"
    for result in results:
        fold = result.fold
        for part in ("train", "validation", "test"):
            for index in getattr(fold, part):
                yield (
                    study.bags.names[index], study.patients[index], fold.repeat, fold.number, part
                )  # fmt: skip


def _prediction_rows(study: Study, found: Sequence[TaskFigures]) -> Iterator[Sequence[Any]]:
    columns = [column for figures in found for column in _columns(figures.task)]
    yield ("bag", "patient", *columns)
    for index, name in enumerate(study.bags.names):
        row: list[Any] = [name, study.patients[index]]
        for figures in found:
            row.append(_label(figures.task, figures.target[index]))
            row += [figures.target[index, 1]] if figures.task.event else []
            for way in WAYS:
                said = np.atleast_1d(getattr(figures, way).predictions[index])
                row += ["" if np.isnan(value) else f"{value:.6g}" for value in said]
        yield row


def _columns(task: Task) -> Iterator[str]:
    yield task.name
    if task.event:
        yield task.event
    for way in WAYS:
        if task.classes:
            yield from (f"{task.name} {way} {name}" for name in task.classes)
        else:
            yield f"{task.name} {way} {'risk' if task.event else 'value'}"


def _label(task: Task, target: Floats) -> Any:
    if np.isnan(target[0]):
        return ""
    return task.classes[int(target[0])] if task.classes else f"{target[0]:.6g}"


def _figure_rows(found: Sequence[TaskFigures]) -> Iterator[Sequence[Any]]:
    yield "task", "figure", "way", "value", "low", "high", "folds_mean", "folds_spread"
    for figures in found:
        main = MAIN[figures.task.kind]
        for way in WAYS:
            answered: WayFigures = getattr(figures, way)
            folds = np.array([v for v in answered.by_fold if v == v])
            for name, estimate in answered.figures.items():
                of_folds = [folds.mean(), folds.std()] if name == main and len(folds) else ["", ""]
                yield figures.task.name, name, way, *_plain(estimate), *of_folds
            for point in answered.points:
                for name in ("sensitivity", "specificity", "ppv", "npv"):
                    estimate = getattr(point.found, name)
                    at = f"{name} at {point.aim} {point.wanted:g}"
                    yield figures.task.name, at, way, *_plain(estimate), "", ""


def _plain(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high
