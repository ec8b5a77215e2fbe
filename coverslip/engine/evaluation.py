"""Encoders beside each other on the same labelled tiles: one table and one plot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coverslip.durable import write_csv
from coverslip.encoders.evaluation import Figure, few_shot, knn, linear, probe
from coverslip.encoders.robustness import Robustness, changed_tiles, robustness
from coverslip.engine.labelled_tiles import LabelledTiles
from coverslip.engine.plots import draw_bars

if TYPE_CHECKING:
    from coverslip.encoders.encoder import Encoder

SHOTS = (1, 5)
"""Labelled tiles a class that SimpleShot gets, as far as there are that many."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is known of one encoder.

    tiles_per_second   embedded here, by its own time
    probes             "linear", "knn", "5-shot"... -> balanced accuracy
    changes            what another stain or pixel size does
    """

    encoder: str
    dim: int
    weights_sha256: str
    tiles_per_second: float
    probes: dict[str, Figure]
    changes: dict[str, Robustness]

    def row(self) -> dict[str, str]:
        """As the table has it."""
        figures = {
            "encoder": self.encoder,
            "dim": str(self.dim),
            "tiles/s": f"{self.tiles_per_second:.0f}",
            **{name: str(figure) for name, figure in self.probes.items()},
        }
        for name, change in self.changes.items():
            figures[f"{name}: drift"] = f"{change.drift:.3f}"
            figures[f"{name}: found"] = f"{change.found:.2f}"
            figures[f"{name}: linear"] = f"{change.accuracy.mean:.3f} ({-change.drop:+.3f})"
        return figures


def evaluate_encoders(
    tiles: LabelledTiles,
    encoders: Sequence[Callable[[], Encoder]],
    *,
    repeats: int = 10,
    seed: int = 0,
) -> Iterator[Evaluation]:
    """Probe each encoder on the same tiles, folds and changes; loaded one after the other.

    tiles      at least five of every class
    repeats    of cross-validation with new folds
    """
    changed = changed_tiles(tiles.pixels, seed)
    for load in encoders:
        encoder = load()
        encoder.encode(tiles.pixels[:8])  # what compiles, compiles now
        started = time.perf_counter()
        plain = encoder.encode(tiles.pixels)
        rate = len(plain) / (time.perf_counter() - started)
        rarest = int(np.bincount(tiles.labels).min())
        probes = {
            "linear": probe(plain, tiles.labels, linear, repeats=repeats, seed=seed),
            "knn": probe(plain, tiles.labels, knn, repeats=repeats, seed=seed),
        } | {
            f"{shots}-shot": few_shot(plain, tiles.labels, shots, seed=seed)
            for shots in SHOTS
            if shots < rarest
        }
        after = {name: encoder.encode(pixels) for name, pixels in changed.items()}
        changes = robustness(plain, after, tiles.labels, seed=seed)
        yield Evaluation(encoder.name, encoder.dim, encoder.weights_sha256, rate, probes, changes)


def write_evaluation(folder: Path, found: Sequence[Evaluation]) -> tuple[Path, Path]:
    """`evaluation.csv` and `evaluation.png`; returns both paths."""
    table, plot = folder / "evaluation.csv", folder / "evaluation.png"
    rows = [{**evaluation.row(), "weights": evaluation.weights_sha256} for evaluation in found]
    write_csv(table, [list(rows[0]), *([row[name] for name in rows[0]] for row in rows)])
    figures, panels = _bars(found)
    draw_bars(figures, plot, "balanced accuracy, 95 % interval over repeats", panels)
    return table, plot


def _bars(
    found: Sequence[Evaluation],
) -> tuple[dict[str, dict[str, tuple[float, float, float]]], list[str]]:
    """Rows and panels of the plot: the probes, then the linear one on changed tiles."""
    rows = {}
    for evaluation in found:
        figures = dict(evaluation.probes)
        figures |= {f"linear, {name}": c.accuracy for name, c in evaluation.changes.items()}
        rows[evaluation.encoder] = {n: (f.mean, f.low, f.high) for n, f in figures.items()}
    return rows, list(next(iter(rows.values())))
