"""How well instances were found: AJI, AJI+, PQ, Dice, F1. Labels are int [H, W], 0 background."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

Labels = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Shared pixels of every true with every predicted object.

    shared           int64 [T, P]; true_area [T]; predicted_area [P]
    """

    shared: npt.NDArray[np.int64]
    true_area: npt.NDArray[np.int64]
    predicted_area: npt.NDArray[np.int64]

    @classmethod
    def of(cls, true: Labels, predicted: Labels) -> Overlaps:
        _, t = np.unique(true, return_inverse=True)
        _, p = np.unique(predicted, return_inverse=True)
        t, p = t.reshape(true.shape), p.reshape(predicted.shape)
        # a row and a column for the background, also where there is none
        t = t + (0 if (true == 0).any() else 1)
        p = p + (0 if (predicted == 0).any() else 1)
        rows, columns = int(t.max(initial=0)) + 1, int(p.max(initial=0)) + 1
        table = np.bincount((t * columns + p).ravel(), minlength=rows * columns)
        table = table.reshape(rows, columns)
        return cls(table[1:, 1:], table.sum(1)[1:], table.sum(0)[1:])

    @property
    def union(self) -> npt.NDArray[np.int64]:
        return self.true_area[:, None] + self.predicted_area[None, :] - self.shared

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.shared / np.maximum(self.union, 1), np.float64)


@dataclass(frozen=True, slots=True)
class Panoptic:
    """PQ = DQ · SQ (Kirillov et al. 2019) at IoU above 0.5; nan where there is nothing at all."""

    pq: float
    dq: float
    sq: float


def panoptic_quality(true: Labels, predicted: Labels) -> Panoptic:
    """PQ and its parts. Above an IoU of 0.5 a match is unique, so no assignment is needed."""
    overlaps = Overlaps.of(true, predicted)
    matched = overlaps.iou[overlaps.iou > 0.5]
    hits, objects = len(matched), sum(overlaps.shared.shape)
    if not objects:
        return Panoptic(np.nan, np.nan, np.nan)
    dq = 2 * hits / objects
    sq = float(matched.mean()) if hits else 0.0
    return Panoptic(dq * sq, dq, sq)


def aggregated_jaccard(true: Labels, predicted: Labels) -> float:
    """AJI (Kumar et al. 2017): each true object with its best prediction, which may serve twice;
    unused predictions count against it. nan where there is nothing at all."""
    overlaps = Overlaps.of(true, predicted)
    iou = overlaps.iou
    if not overlaps.true_area.size and not overlaps.predicted_area.size:
        return float("nan")
    shared, union, used = 0, 0, set()
    for t in range(len(overlaps.true_area)):
        p = int(np.argmax(iou[t])) if iou.shape[1] else -1
        if p < 0 or not overlaps.shared[t, p]:
            union += int(overlaps.true_area[t])
            continue
        shared += int(overlaps.shared[t, p])
        union += int(overlaps.union[t, p])
        used.add(p)
    union += int(sum(a for p, a in enumerate(overlaps.predicted_area.tolist()) if p not in used))
    return shared / union


def aggregated_jaccard_plus(true: Labels, predicted: Labels) -> float:
    """AJI+ (Graham et al. 2019): as AJI, each prediction used at most once (best assignment)."""
    overlaps = Overlaps.of(true, predicted)
    if not overlaps.true_area.size and not overlaps.predicted_area.size:
        return float("nan")
    t, p = linear_sum_assignment(-overlaps.iou)
    met = overlaps.shared[t, p] > 0
    t, p = t[met], p[met]
    shared = overlaps.shared[t, p].sum()
    left = overlaps.true_area.sum() - overlaps.true_area[t].sum()
    spare = overlaps.predicted_area.sum() - overlaps.predicted_area[p].sum()
    return float(shared / (overlaps.union[t, p].sum() + left + spare))


def dice(true: Labels, predicted: Labels) -> float:
    """Dice of foreground against background; nan where both are empty."""
    a, b = true > 0, predicted > 0
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return float(2 * np.count_nonzero(a & b) / total) if total else float("nan")


def f1_at(true: Labels, predicted: Labels, iou: float = 0.5) -> float:
    """F1 of objects matched one to one with at least `iou`; nan where there is nothing at all."""
    overlaps = Overlaps.of(true, predicted)
    objects = sum(overlaps.shared.shape)
    if not objects:
        return float("nan")
    good = overlaps.iou >= iou
    t, p = linear_sum_assignment(-good.astype(np.int64))
    return float(2 * np.count_nonzero(good[t, p]) / objects)


Metric = Callable[[Labels, Labels], float]


def by_class(
    metric: Metric,
    true: Labels,
    true_class: npt.NDArray[np.integer],
    predicted: Labels,
    predicted_class: npt.NDArray[np.integer],
    classes: int,
) -> npt.NDArray[np.float64]:
    """A metric for the objects of each class alone, float64 [classes]; nan where there is neither
    a true nor a predicted one. Their `np.nanmean` is what PanNuke calls mPQ, with PQ as metric.

    true_class, predicted_class   class ids of labels 1 to N
    """

    def only(labels: Labels, class_id: npt.NDArray[np.integer], wanted: int) -> Labels:
        return np.where(np.append(False, class_id == wanted)[labels], labels, 0)

    return np.array(
        [metric(only(true, true_class, c), only(predicted, predicted_class, c))
         for c in range(classes)]
    )  # fmt: skip
