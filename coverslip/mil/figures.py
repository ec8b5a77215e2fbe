"""Which figures tell how well a task is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.mil import metrics
from coverslip.mil.intervals import RESAMPLES, Estimate, Figure, estimates
from coverslip.mil.tasks import Task, places

Floats = npt.NDArray[np.float64]

MAIN: Mapping[str, str] = {
    "classes": "auroc",
    "ordinal": "quadratic_kappa",
    "number": "r2",
    "survival": "c_index",
    "survival-bins": "c_index",
}
"""The figure that a task's score is; more is better."""


def task_estimates(
    task: Task,
    said: Floats,
    target: Floats,
    patients: npt.NDArray[Any],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Every figure of a task with its interval, over the bags that have a label.

    said       predictions of n bags, see `Task.prediction`
    target     [n, 2]
    patients   [n]: bags of one patient are drawn together. Classes, or events, are strata
    """
    return _estimates(
        task, task_figures(task, said, target), target, patients, resamples=resamples, seed=seed
    )


def task_differences(
    task: Task,
    said: Floats,
    other: Floats,
    target: Floats,
    patients: npt.NDArray[Any],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Estimate]:
    """What a figure of `said` is above that of `other`, on the same patients in every resample."""
    one, two = (task_figures(task, answers, target) for answers in (said, other))
    figures = {name: _difference(one[name], two[name]) for name in one}
    return _estimates(task, figures, target, patients, resamples=resamples, seed=seed)


def task_values(task: Task, said: Floats, target: Floats) -> dict[str, float]:
    """The same without intervals; nan where a figure has no meaning."""
    weight = np.ones((1, int(task.known(target).sum())))
    empty = not weight.size
    return {
        name: float("nan") if empty else float(figure(weight)[0])
        for name, figure in task_figures(task, said, target).items()
    }


def study_values(
    tasks: Sequence[Task], logits: npt.NDArray[np.floating[Any]], targets: Floats
) -> dict[str, dict[str, float]]:
    """`task_values` of each task by its name; logits [n, outputs of all], targets [n, tasks, 2]."""
    return {
        task.name: task_values(task, task.prediction(logits[:, place]), targets[:, number])
        for number, (task, place) in enumerate(zip(tasks, places(tasks), strict=True))
    }


def _estimates(
    task: Task,
    figures: Mapping[str, Figure],
    target: Floats,
    patients: npt.NDArray[Any],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Estimate]:
    known = task.known(target)
    strata = None
    if task.classes or task.event:
        strata = target[known, 0 if task.classes else 1].astype(np.int64)
    return estimates(figures, patients[known], strata, resamples=resamples, seed=seed)


def _difference(one: Figure, two: Figure) -> Figure:
    return lambda weight: one(weight) - two(weight)


def task_figures(task: Task, said: Floats, target: Floats) -> dict[str, Figure]:
    """By name, as functions of the weights of the bags that have a label.

    Raises ValueError where a prediction is not finite.
    """
    if not np.isfinite(said).all():
        raise ValueError(f"task {task.name!r}: predictions that are not finite")
    known = task.known(target)
    said, value, event = said[known], target[known, 0], target[known, 1] == 1
    if task.kind == "number":
        return {
            "r2": lambda w: metrics.determination(said, value, w),
            "pearson": lambda w: metrics.pearson(said, value, w),
            "mae": lambda w: metrics.absolute_error(said, value, w),
        }
    if task.event:
        return {"c_index": lambda w: metrics.concordance(said, value, event, w)}
    label, guess = value.astype(np.int64), guesses(task, said)
    found: dict[str, Figure] = {
        "auroc": lambda w: metrics.over_classes(metrics.auroc, said, label, w),
        "auprc": lambda w: metrics.over_classes(metrics.auprc, said, label, w),
        "balanced_accuracy": lambda w: metrics.balanced_accuracy(guess, label, w),
        "log_loss": lambda w: metrics.log_loss(said, label, w),
        "brier": lambda w: metrics.brier(said, label, w),
        "ece": lambda w: metrics.calibration_error(said, label, w),
    }
    if task.kind == "ordinal":
        classes = len(task.classes)
        found |= {
            "quadratic_kappa": lambda w: metrics.kappa(guess, label, classes, w, 2),
            "linear_kappa": lambda w: metrics.kappa(guess, label, classes, w, 1),
        }
    return found


def guesses(task: Task, probabilities: Floats) -> npt.NDArray[np.int64]:
    """[n] the class to name: of "classes" the most probable, of "ordinal" the middle one, which is
    as likely to be too low as too high."""
    if task.kind == "ordinal":
        return np.asarray((probabilities.cumsum(axis=1)[:, :-1] < 0.5).sum(axis=1), np.int64)
    return np.asarray(probabilities.argmax(axis=1), np.int64)
