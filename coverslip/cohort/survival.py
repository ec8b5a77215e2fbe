"""Survival by a feature: Kaplan-Meier curves and the log-rank test, by lifelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coverslip.cohort.packages import package
from coverslip.engine.plots import COLOURS, save_figure
from coverslip.errors import InvalidConfig

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SurvivalGroup:
    """One curve.

    name      such as "nuclei_per_mm2 <= 1200", or a category
    patients  in it; events that happened to them
    steps     float64 [t, 6]: time, survival, its 95 % interval's low and high end (log-log,
              Greenwood's variance), at risk just before, events; from time 0 on
    median    time at which half of them have had the event; inf where fewer than half have
    """

    name: str
    patients: int
    events: int
    steps: Floats
    median: float


@dataclass(frozen=True, eq=False)
class SurvivalCurves:
    """Groups of patients by one feature, and whether their survival differs.

    feature, time, event   names of the columns
    chi_square, p_value    of the log-rank test with `len(groups)` - 1 degrees of freedom: whether
                           all groups share one hazard. It holds for one feature that was chosen
                           beforehand, not for the best of many
    left_out               patients without the feature, time or event
    """

    feature: str
    time: str
    event: str
    groups: tuple[SurvivalGroup, ...]
    chi_square: float
    p_value: float
    left_out: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """One row a step of a group's curve: group, and the columns of `SurvivalGroup.steps`."""
        import pandas as pd

        names = ["time", "survival", "low", "high", "at_risk", "events"]
        tables = [pd.DataFrame(group.steps, columns=names) for group in self.groups]
        for table, group in zip(tables, self.groups, strict=True):
            table.insert(0, "group", group.name)
        found = pd.concat(tables, ignore_index=True)
        return found.astype({"at_risk": "int64", "events": "int64"})


def survival_curves(
    names: Sequence[str],
    values: Sequence[Any],
    time: Floats,
    event: Floats,
    *,
    columns: tuple[str, str, str],
    groups: int = 2,
) -> SurvivalCurves:
    """Curves of n patients by a feature.

    names     of the patients
    values    the feature, None where unknown: numbers are split at their quantiles into `groups`
              of about equal size, those at a cut in the lower one; anything else is its own group
    time      float64 [n], at least 0; event float64 [n], 1 happened, 0 censored. nan: unknown
    columns   names of the feature, the time and the event

    Patients of whom one is unknown are left out. Raises InvalidConfig: a negative time, an event
    other than 0 and 1, fewer than two groups, or no event at all; MissingPackage.
    """
    feature, time_name, event_name = columns
    numeric = all(value is None or isinstance(value, int | float | np.number) for value in values)
    numbers = np.array([np.nan if v is None else v for v in values], float) if numeric else None
    known = np.isfinite(time) & np.isfinite(event)
    if numbers is not None:
        known &= np.isfinite(numbers)
    else:
        known &= np.array([value is not None for value in values], bool)
    for bad, column, wanted in (
        (known & (time < 0), time_name, "is below 0"),
        (known & (event != 0) & (event != 1), event_name, "is neither 0 nor 1"),
    ):
        if bad.any():
            raise InvalidConfig(f"column {column!r} of {names[int(np.argmax(bad))]} {wanted}")
    if numbers is not None:
        labels, number = _quantile_groups(numbers[known], groups, feature)
    else:
        kept = [str(value) for value, there in zip(values, known, strict=True) if there]
        labels = sorted(set(kept))
        number = np.array([labels.index(value) for value in kept], np.int64)
    if len(labels) < 2:
        raise InvalidConfig(
            f"{feature!r} makes {len(labels)} group of {int(known.sum())} patients; a comparison "
            "wants two or more"
        )
    durations, events = time[known], event[known]
    if not events.any():
        raise InvalidConfig(f"no event ({event_name!r}) happened to any of {len(events)} patients")
    curves = tuple(
        _group(label, durations[number == i], events[number == i]) for i, label in enumerate(labels)
    )
    chi_square, p_value = _log_rank(durations, number, events)
    left_out = tuple(name for name, there in zip(names, known, strict=True) if not there)
    return SurvivalCurves(feature, time_name, event_name, curves, chi_square, p_value, left_out)


def _quantile_groups(
    values: Floats, groups: int, feature: str
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """(labels, group of each), from the lowest values on."""
    if groups < 2:
        raise InvalidConfig(f"a comparison wants 2 groups or more, got {groups}")
    if not len(values):
        return [], np.empty(0, np.int64)
    cuts = np.quantile(values, np.arange(1, groups) / groups)
    number = np.searchsorted(cuts, values, side="left").astype(np.int64)
    if len(np.unique(number)) < groups:
        raise InvalidConfig(
            f"{feature!r} has too few different values among {len(values)} patients for {groups} "
            "groups\n  ask for fewer groups, or another feature"
        )
    ends = [f"{cut:.4g}" for cut in cuts]
    labels = [f"{feature} <= {ends[0]}"]
    labels += [f"{low} < {feature} <= {high}" for low, high in pairwise(ends)]
    return [*labels, f"{feature} > {ends[-1]}"], number


def _group(name: str, time: Floats, event: Floats) -> SurvivalGroup:
    fitted = package("lifelines", "a survival curve").KaplanMeierFitter().fit(time, event)
    interval = fitted.confidence_interval_.to_numpy()
    table = fitted.event_table
    steps = np.column_stack(
        [
            table.index.to_numpy(float),
            fitted.survival_function_.to_numpy()[:, 0],
            interval[:, 0],
            interval[:, 1],
            table["at_risk"].to_numpy(float),
            table["observed"].to_numpy(float),
        ]
    )
    return SurvivalGroup(
        name, len(time), int(event.sum()), steps, float(fitted.median_survival_time_)
    )


def _log_rank(time: Floats, group: npt.NDArray[np.int64], event: Floats) -> tuple[float, float]:
    statistics = package("lifelines.statistics", "the log-rank test")
    found = statistics.multivariate_logrank_test(time, group, event)
    return float(found.test_statistic), float(found.p_value)


def draw_survival(curves: SurvivalCurves, path: Path) -> None:
    """The curves with their 95 % intervals and, below, how many are at risk; PNG or SVG.

    Raises StoreError where the disk refuses.
    """
    from matplotlib.figure import Figure

    rows = len(curves.groups)
    figure = Figure(figsize=(6.4, 4.0 + 0.25 * rows), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4.0, 0.3 + 0.25 * rows])
    for group, colour in zip(curves.groups, _colours(rows), strict=True):
        time, survival, low, high = group.steps.T[:4]
        label = f"{group.name} (n = {group.patients}, events = {group.events})"
        above.step(time, survival, where="post", color=colour, label=label)
        censored = np.append(-np.diff(group.steps[:, 4]), group.steps[-1, 4]) > group.steps[:, 5]
        above.plot(time[censored], survival[censored], "|", color=colour, markersize=6)
        above.fill_between(time, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
    above.set_ylim(0, 1.02)
    above.set_ylabel(f"share without {curves.event}")
    above.set_title(f"log-rank p = {curves.p_value:.3g}", fontsize=9)
    above.legend(frameon=False, fontsize=8)
    above.grid(alpha=0.3)
    last = max(float(group.steps[-1, 0]) for group in curves.groups)
    times = np.array([tick for tick in above.get_xticks() if 0 <= tick <= last])
    for row, (group, colour) in enumerate(zip(curves.groups, _colours(rows), strict=True)):
        for at, count in zip(times, at_risk(group, times), strict=True):
            below.text(at, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    below.set_ylim(rows - 0.5, -0.5)
    below.set_yticks([])
    below.set_xlabel(curves.time)
    below.set_ylabel("at risk", fontsize=8)
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
    below.spines["left"].set_visible(False)
    save_figure(figure, path)


def at_risk(group: SurvivalGroup, times: Floats) -> list[int]:
    """Patients of whom it is still unknown at each time: neither had the event nor were lost to
    view before."""
    steps = group.steps
    after = np.searchsorted(steps[:, 0], times, side="left")
    counts = np.append(steps[:, 4], 0.0)
    return [int(count) for count in counts[after]]


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
