"""A study's page: what was asked, how well it was answered, and what to keep in mind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coverslip import __version__
from coverslip.durable import replace_file
from coverslip.engine.mil_figures import TaskFigures, WayFigures
from coverslip.engine.mil_folds import FoldResult
from coverslip.engine.mil_plots import draw_task, draw_trainings
from coverslip.engine.mil_study import Study
from coverslip.engine.pages import page_environment
from coverslip.mil.figures import MAIN
from coverslip.mil.intervals import Estimate
from coverslip.mil.tasks import Task

TITLES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "balanced_accuracy": "balanced accuracy",
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "calibration error",
    "quadratic_kappa": "quadratic kappa",
    "linear_kappa": "linear kappa",
    "r2": "R²",
    "pearson": "Pearson r",
    "mae": "mean absolute error",
    "c_index": "C-index",
}
"""Of figures, as they are printed."""


@dataclass(frozen=True, slots=True)
class TaskPage:
    """A task's part of the page; texts.

    rows     (figure, model, baseline, difference)
    points   (aim, way, sensitivity, specificity, PPV, NPV, threshold)
    folds    (way, main figure in each fold)
    """

    name: str
    kind: str
    bags: str
    picture: str
    rows: list[tuple[str, str, str, str]]
    points: list[tuple[str, ...]]
    folds: list[tuple[str, str]]
    main: str


def write_study_report(
    folder: Path,
    study: Study,
    results: Sequence[FoldResult],
    found: Sequence[TaskFigures],
    settings: str,
) -> Path:
    """`report.html` with its pictures in `report/`; returns its path."""
    pictures = folder / "report"
    pictures.mkdir(parents=True, exist_ok=True)
    draw_trainings([folder / "folds" / result.fold.name for result in results],
                   pictures / "training.png")  # fmt: skip
    tasks = []
    for number, figures in enumerate(found):
        picture = pictures / f"task-{number}.png"
        draw_task(figures, picture)
        tasks.append(_task_page(figures, f"report/{picture.name}"))
    content = (
        page_environment()
        .get_template("study.html")
        .render(
            tasks=tasks,
            facts=list(_facts(study, results)),
            remarks=[*study.remarks, *_warnings(study, found)],
            sampling=list(_sampling(results)),
            chosen=_chosen(results),
            settings=settings,
            version=__version__,
        )
    )
    path = folder / "report.html"
    replace_file(path, content.encode())
    return path


def _task_page(figures: TaskFigures, picture: str) -> TaskPage:
    task = figures.task
    known = task.known(figures.target)
    return TaskPage(
        task.name,
        task.kind,
        _labelled_bags(task, figures.target[known]),
        picture,
        [
            (TITLES[name], str(estimate), str(figures.baseline.figures[name]),
             _signed(figures.beyond[name]))
            for name, estimate in figures.model.figures.items()
        ],
        [row for way in ("model", "baseline") for row in _points(getattr(figures, way), way)],
        [
            (way, ", ".join(f"{value:.3f}" for value in getattr(figures, way).by_fold))
            for way in ("model", "baseline")
        ],
        TITLES[MAIN[task.kind]],
    )  # fmt: skip


def _labelled_bags(task: Task, target: Any) -> str:
    if task.classes:
        count = np.bincount(target[:, 0].astype(int), minlength=len(task.classes))
        return ", ".join(f"{n} {name}" for n, name in zip(count, task.classes, strict=True))
    if task.event:
        return f"{len(target)} bags, {int(target[:, 1].sum())} events"
    return f"{len(target)} bags, {target[:, 0].min():.4g} to {target[:, 0].max():.4g}"


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"


def _points(figures: WayFigures, way: str) -> Iterator[tuple[str, ...]]:
    for point in figures.points:
        found = point.found
        thresholds = ", ".join(f"{value:.3f}" for value in point.thresholds)
        yield (
            f"{point.aim} {point.wanted:g}", way, str(found.sensitivity), str(found.specificity),
            str(found.ppv), str(found.npv), thresholds,
        )  # fmt: skip


def _facts(study: Study, results: Sequence[FoldResult]) -> Iterator[tuple[str, str]]:
    patients = len(np.unique(study.patients))
    tiles = sum(map(study.bags.count, range(len(study.bags))))
    yield f"{len(study.bags):,}", "patients" if study.config.unit == "patient" else "slides"
    if patients != len(study.bags):
        yield f"{patients:,}", "patients"
    yield f"{tiles:,}", "tiles"
    yield f"{len(results)}", "folds"
    yield study.config.training.model, "model"
    yield str(study.facts.get("encoder") or "unknown"), "encoder"


def _warnings(study: Study, found: Sequence[TaskFigures]) -> Iterator[str]:
    """What a reader of the figures should not overlook."""
    if not study.config.split.keep_sites:
        yield (
            "Patients of one site are on both sides of a fold: what a model learned of a site's "
            "scanner and stain counts as skill. Name the column of sites and keep them together."
        )
    for figures in found:
        main = MAIN[figures.task.kind]
        if main in figures.beyond and not figures.beyond[main].low > 0:
            yield (
                f"{figures.task.name}: the model is not shown to be better than a linear model of "
                "mean embeddings."
            )


def _sampling(results: Sequence[FoldResult]) -> Iterator[tuple[str, str, str, str]]:
    """(fold, task, main figure on validation bags with all tiles, with `max_tiles`)."""
    for result in results:
        sampled = result.training.validation_sampled
        for task in result.tasks:
            if sampled:
                main = MAIN[task.kind]
                whole = result.training.validation[task.name][main]
                yield (
                    result.fold.name, task.name, f"{whole:.3f}", f"{sampled[task.name][main]:.3f}"
                )  # fmt: skip


def _chosen(results: Sequence[FoldResult]) -> list[tuple[str, str]]:
    """(fold, settings) where each fold chose its own."""
    if len({str(result.config) for result in results}) < 2:
        return []
    return [
        (r.fold.name, f"{c.model} {c.arguments or ''}, learning rate {c.learning_rate:g}")
        for r in results
        for c in [r.config]
    ]
