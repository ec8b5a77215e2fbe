"""Pictures of a study's figures: curves of ROC and calibration, confusion, scatter, training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coverslip.curve import log_rows
from coverslip.engine.mil_figures import TaskFigures, WayFigures
from coverslip.engine.plots import COLOURS, panels, save_figure
from coverslip.mil.calibration import Reliability
from coverslip.mil.figures import guesses
from coverslip.mil.operating_points import roc
from coverslip.mil.tasks import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
SIDE = 3.6
"""Inches of a panel."""


def draw_task(figures: TaskFigures, path: Path) -> None:
    """What a task's predictions look like, by its kind."""
    task = figures.task
    if task.classes:
        _draw_classes(figures, path)
    elif task.event:
        _draw_risk(figures, path)
    else:
        _draw_numbers(figures, path)


def draw_trainings(logs: Sequence[Path], path: Path) -> None:
    """Loss of every fold on what it trained on and on what it watched, over epochs."""
    figure, axes = panels(1, 2, (2 * SIDE, SIDE))
    for number, folder in enumerate(logs):
        colour = COLOURS[number % len(COLOURS)]
        epochs: dict[int, list[float]] = {}
        for row in log_rows(folder / "log.csv"):
            epochs.setdefault(int(row["epoch"]), []).append(row["loss"])
        axes[0].plot(
            list(epochs), [np.mean(v) for v in epochs.values()], color=colour, label=folder.name
        )
        watched = list(log_rows(folder / "validation.csv"))
        axes[1].plot([r["epoch"] for r in watched], [r["loss"] for r in watched], color=colour)
    axes[0].legend(frameon=False, fontsize=7, title="repeat-fold", title_fontsize=7)
    for axis, what in zip(axes, ("trained on", "watched"), strict=True):
        axis.set(xlabel="epoch", ylabel="loss", title=f"bags {what}")
    save_figure(figure, path)


def _draw_classes(figures: TaskFigures, path: Path) -> None:
    task = figures.task
    figure, axes = panels(1, 3, (3 * SIDE, SIDE))
    known, label = _labelled(figures)
    for way, line in (("baseline", ":"), ("model", "-")):
        said = getattr(figures, way).predictions[known]
        for number in [1] if len(task.classes) == 2 else range(len(task.classes)):
            curve = roc(said[:, number], label == number)
            name = task.classes[number]
            axes[0].plot(
                curve.false_positive_rate, curve.true_positive_rate, line,
                color=COLOURS[number % len(COLOURS)], linewidth=1.5 if way == "model" else 1,
                label=f"{name}, {way}",
            )  # fmt: skip
    for point in figures.model.points:
        axes[0].plot(1 - point.found.specificity.value, point.found.sensitivity.value, "k.")
    _square(axes[0], "1 - specificity", "sensitivity")
    axes[0].legend(frameon=False, fontsize=7, loc="lower right")
    lines = {"model": (figures.model.predictions, COLOURS[0])}
    if task.kind == "classes":  # others are not calibrated
        lines["before calibration"] = (figures.model.uncalibrated, COLOURS[1])
    for words, (predictions, colour) in lines.items():
        found = Reliability.of(predictions[known], label)
        axes[1].plot(found.confidence, found.right, ".-", color=colour, label=words)
    _square(axes[1], "probability of the likeliest class", "share that has it")
    axes[1].legend(frameon=False, fontsize=7, loc="upper left")
    _confusion(axes[2], task, figures.model, known, label)
    save_figure(figure, path)


def _confusion(
    axis: Axes,
    task: Task,
    way: WayFigures,
    known: npt.NDArray[np.bool_],
    label: npt.NDArray[np.int64],
) -> None:
    """Bags by class and by what they were called; coloured by their share of the class."""
    counts = np.zeros((len(task.classes),) * 2, np.int64)
    np.add.at(counts, (label, guesses(task, way.predictions[known])), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        axis.text(column, row, f"{count}", ha="center", va="center", fontsize=8,
                  color="white" if share[row, column] > 0.6 else "black")  # fmt: skip
    names = [name if len(name) <= 14 else name[:13] + "…" for name in task.classes]
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set(xlabel="called", ylabel="is")


def _draw_numbers(figures: TaskFigures, path: Path) -> None:
    figure, axes = panels(1, 2, (2 * SIDE, SIDE))
    known = _known(figures)
    value = figures.target[known, 0]
    for axis, way, colour in zip(axes, ("model", "baseline"), COLOURS, strict=False):
        said = getattr(figures, way).predictions[known]
        axis.plot(value, said, ".", color=colour, markersize=4)
        ends = [min(value.min(), said.min()), max(value.max(), said.max())]
        axis.plot(ends, ends, color="0.6", linewidth=0.8)
        axis.set(xlabel=figures.task.name, ylabel=f"{way} says", title=way)
    save_figure(figure, path)


def _draw_risk(figures: TaskFigures, path: Path) -> None:
    """Share surviving (Kaplan & Meier) of the half at higher and at lower risk."""
    figure, axes = panels(1, 2, (2 * SIDE, SIDE))
    known = _known(figures)
    time, event = figures.target[known].T
    for axis, way in zip(axes, ("model", "baseline"), strict=True):
        risk = getattr(figures, way).predictions[known]
        high = risk > np.median(risk)
        for half, words, colour in ((~high, "lower", COLOURS[0]), (high, "higher", COLOURS[1])):
            moments, surviving = surviving_share(time[half], event[half] == 1)
            label = f"{words} risk, {half.sum()} bags"
            axis.step(moments, surviving, where="post", color=colour, label=label)
        axis.set(xlabel=figures.task.name, ylabel="share without the event", title=way,
                 ylim=(0, 1.02))  # fmt: skip
        axis.legend(frameon=False, fontsize=7)
    save_figure(figure, path)


def surviving_share(time: Floats, event: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """(times, share surviving beyond each), from 0 and 1 (Kaplan & Meier 1958)."""
    moments = np.unique(time[event])
    at_risk = (time[:, None] >= moments).sum(axis=0)
    events = ((time[:, None] == moments) & event[:, None]).sum(axis=0)
    surviving = np.concatenate([[1.0], np.cumprod(1 - events / at_risk)])
    end = time.max(initial=0.0)  # the last share holds until then
    return np.concatenate([[0.0], moments, [end]]), np.append(surviving, surviving[-1])


def _known(figures: TaskFigures) -> npt.NDArray[np.bool_]:
    """[n]: bags that have a label and were tested."""
    return figures.task.known(figures.target) & figures.model.tested


def _labelled(figures: TaskFigures) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    known = _known(figures)
    return known, figures.target[known, 0].astype(np.int64)


def _square(axis: Any, x: str, y: str) -> None:
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")
