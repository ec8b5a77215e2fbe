"""How far a figure might be off: intervals from patients drawn again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

Floats = npt.NDArray[np.float64]
Figure = Callable[[Floats], Floats]
"""Weights [r, n] of n bags in r resamples -> the figure [r]; see `metrics`."""

RESAMPLES = 1000
CONFIDENCE = 0.95
WEIGHTS_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, and between what it lies with a confidence of 95 %; nan where that is not known."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def estimates(
    figures: Mapping[str, Figure],
    patients: npt.NDArray[Any],
    strata: npt.NDArray[np.int64] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Each figure with the percentile interval of its bootstrap.

    patients   [n], whose each bag is: all bags of a patient are drawn together
    strata     [n], see `resampled_weights`

    A figure that no resample can change, such as an AUROC of 1, has an interval without width:
    that says what these patients show, not that there could be no others. The interval of a single
    patient is nan.
    """
    count = len(patients)
    alone = len(np.unique(patients)) < 2
    drawn: dict[str, list[Floats]] = {name: [] for name in figures}
    if not alone:
        for weight in resampled_weights(patients, strata, resamples=resamples, seed=seed):
            for name, figure in figures.items():
                drawn[name].append(figure(weight))
    found = {}
    for name, figure in figures.items():
        value = float(figure(np.ones((1, count)))[0]) if count else np.nan
        values = np.concatenate(drawn[name]) if drawn[name] else np.empty(0)
        found[name] = Estimate(value, *_middle(values))
    return found


def resampled_weights(
    patients: npt.NDArray[Any],
    strata: npt.NDArray[np.int64] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Iterator[Floats]:
    """Blocks [some resamples, n] of how often each bag counts; together `resamples` rows.

    strata   int [n], a class of each bag. Patients are drawn among those that have bags of the
             same classes, as many as there are: no class ever vanishes
    """
    _, patient = np.unique(patients, return_inverse=True)
    groups = _groups(patient, strata)
    generator = np.random.default_rng(seed)
    block = max(1, WEIGHTS_AT_ONCE // max(1, len(patient)))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        times = np.zeros((rows, int(patient.max()) + 1))
        for members in groups:
            pick = generator.integers(len(members), size=(rows, len(members)))
            pick += np.arange(rows)[:, None] * len(members)
            counts = np.bincount(pick.ravel(), minlength=rows * len(members))
            times[:, members] = counts.reshape(rows, len(members))
        yield times[:, patient]


def wilson_interval(hits: int, count: int) -> Estimate:
    """A share with Wilson's score interval (1927), which keeps its width where all or none hit;
    nan of none."""
    if not count:
        return Estimate(np.nan, np.nan, np.nan)
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    share, spread = hits / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    # at 0 and 1 the ends meet the share but for rounding
    low, high = min(share, float(centre - half)), max(share, float(centre + half))
    return Estimate(share, max(0.0, low), min(1.0, high))


def _groups(
    patient: npt.NDArray[np.int64], strata: npt.NDArray[np.int64] | None
) -> list[npt.NDArray[np.int64]]:
    """Patients that may stand for one another: those whose bags have the same set of classes."""
    if strata is None:
        return [np.unique(patient)]
    classes, column = np.unique(strata, return_inverse=True)
    has = np.zeros((int(patient.max()) + 1, len(classes)), np.bool_)
    has[patient, column] = True
    _, group = np.unique(has, axis=0, return_inverse=True)
    group = group.reshape(-1)
    return [np.flatnonzero(group == g) for g in range(int(group.max()) + 1)]


def _middle(values: Floats) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
