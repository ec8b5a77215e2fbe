"""Figures for reports and model cards, as PNG or SVG by the file's ending."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coverslip.curve import log_rows
from coverslip.durable import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito (2008): told apart by colour-blind readers, too."""
PANELS = 4
"""Side by side."""
SMOOTHED = 25
"""Steps over which a training's losses are averaged in its curve."""


def draw_training(log: Path, probe: Path, path: Path) -> None:
    """A pretraining's terms and, beside them, what its probe said, over steps."""
    rows = list(log_rows(log))
    terms = [k for k in rows[0] if k not in ("step", "loss", "learning_rate", "tiles_per_second")]
    terms = [term for term in terms if any(row[term] for row in rows)]
    figure, axes = panels(1, 2, (10, 3.8))
    steps = [row["step"] for row in rows]
    for term, colour in zip(terms, COLOURS, strict=False):
        values = np.array([row[term] for row in rows])
        axes[0].plot(steps, _smooth(values) / abs(values[:SMOOTHED].mean()), color=colour,
                     label=term)  # fmt: skip
    _labelled(axes[0], "step", "term, of its first value")
    if probe.exists():
        asked = list(log_rows(probe))
        for name, colour in zip([k for k in asked[0] if k != "step"], COLOURS, strict=False):
            axes[1].plot([r["step"] for r in asked], [r[name] for r in asked], color=colour,
                         marker="o", markersize=3, label=name)  # fmt: skip
        _labelled(axes[1], "step", "balanced accuracy of the probe")
    save_figure(figure, path)


def draw_bars(
    figures: Mapping[str, Mapping[str, tuple[float, float, float]]],
    path: Path,
    label: str,
    titles: Sequence[str],
) -> None:
    """Bars with intervals: one panel for each of `titles`, a bar for each row of `figures`.

    figures   row -> title -> (value, low, high)
    """
    names = list(figures)
    columns = min(len(titles), PANELS)
    rows = -(-len(titles) // columns)
    height = rows * (0.9 + 0.3 * len(names))
    figure, axes = panels(rows, columns, (0.8 + 2.5 * columns, height))
    for axis in axes[len(titles) :]:
        axis.set_visible(False)
    for number, (axis, title) in enumerate(zip(axes, titles, strict=False)):
        for i, name in enumerate(names):
            if title not in figures[name]:
                continue
            value, low, high = figures[name][title]
            axis.barh(i, value, color=COLOURS[i % len(COLOURS)], height=0.7)
            axis.plot([low, high], [i, i], color="black", linewidth=1)
            axis.text(0.01, i, f"{value:.3f}", va="center", ha="left", color="white", fontsize=8)
        axis.set_yticks(range(len(names)), names if number % columns == 0 else [""] * len(names))
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9)
        axis.set_xlim(min(0.0, axis.get_xlim()[0]), None)
    figure.supxlabel(label, fontsize=8)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write it, whole or not at all."""
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=150, bbox_inches="tight")


def panels(rows: int, columns: int, inches: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Without a display, and without matplotlib's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def _labelled(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.3)


def _smooth(values: Any) -> Any:
    """The running mean over `SMOOTHED` values, of as many as there are at the ends."""
    kernel = np.ones(min(SMOOTHED, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
