"""How good predictions are, for many weightings of the bags at once.

Every figure takes `weight`, float64 [r, n]: how often each of n bags counts in each of r resamples;
one row of ones is the figure itself. It returns float64 [r], nan where it has no meaning. Weighted
like this a bootstrap is a few products of matrices; scikit-learn's functions, which mean the same,
take one resample at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BINS = 15
"""Of confidence, as Guo et al. 2017 measure the calibration error."""
EVENTS_AT_ONCE = 512


def auroc(score: Floats, positive: Flags, weight: Floats) -> Floats:
    """Chance that a positive bag scores above a negative one; equal scores count half."""
    raised, fallen = _by_score(score, positive, weight)
    below = fallen.cumsum(axis=1) - fallen
    return _share((raised * (below + fallen / 2)).sum(axis=1), raised.sum(1) * fallen.sum(1))


def auprc(score: Floats, positive: Flags, weight: Floats) -> Floats:
    """Average precision: that of each score as a threshold, weighted by the recall it adds. What
    guessing gives is the share of positive bags."""
    raised, fallen = (part[:, ::-1] for part in _by_score(score, positive, weight))
    hits = raised.cumsum(axis=1)
    precision = _share(hits, hits + fallen.cumsum(axis=1), 0.0)
    return _share((raised * precision).sum(axis=1), raised.sum(axis=1))


def over_classes(
    figure: Callable[[Floats, Flags, Floats], Floats],
    probabilities: Floats,
    label: Labels,
    weight: Floats,
) -> Floats:
    """Of two classes the figure of the second; of more its mean over the classes that some but not
    all bags have, each against the rest."""
    if probabilities.shape[1] == 2:
        return figure(probabilities[:, 1], label == 1, weight)
    found = [
        figure(probabilities[:, c], label == c, weight)
        for c in np.unique(label)
        if (label != c).any()
    ]
    return np.mean(found, axis=0) if found else np.full(len(weight), np.nan)


def balanced_accuracy(guess: Labels, label: Labels, weight: Floats) -> Floats:
    """Mean over the classes in `label` of the share of each that was guessed right."""
    right = guess == label
    recall = [share(right, label == c, weight) for c in np.unique(label)]
    return np.mean(recall, axis=0) if recall else np.full(len(weight), np.nan)


def kappa(guess: Labels, label: Labels, classes: int, weight: Floats, power: int = 2) -> Floats:
    """Cohen's kappa with disagreements weighted by (difference of classes) ** power: 1 linear, 2
    quadratic. nan where chance alone would agree always."""
    cells = np.zeros((len(label), classes * classes))
    cells[np.arange(len(label)), label * classes + guess] = 1
    table = (weight @ cells).reshape(-1, classes, classes)
    chance = table.sum(axis=2)[:, :, None] * table.sum(axis=1)[:, None, :]
    step = np.arange(classes)
    cost = np.abs(step[:, None] - step).astype(np.float64) ** power
    expected = (chance * cost).sum(axis=(1, 2))
    found = (table * cost).sum(axis=(1, 2)) * weight.sum(axis=1)
    return 1 - _share(found, expected)


def log_loss(probabilities: Floats, label: Labels, weight: Floats) -> Floats:
    """Mean of -log p of the right class, natural; p is at least 2.2e-16, as scikit-learn has it."""
    right = probabilities[np.arange(len(label)), label]
    return _mean(-np.log(np.maximum(right, np.finfo(np.float64).eps)), weight)


def brier(probabilities: Floats, label: Labels, weight: Floats) -> Floats:
    """Mean squared error of the probabilities: of the second of two classes (0 to 1), or summed
    over more than two (0 to 2), as scikit-learn has it."""
    error = ((probabilities - np.eye(probabilities.shape[1])[label]) ** 2).sum(axis=1)
    return _mean(error / 2 if probabilities.shape[1] == 2 else error, weight)


def calibration_error(
    probabilities: Floats, label: Labels, weight: Floats, bins: int = BINS
) -> Floats:
    """Expected calibration error of the most probable class, in even bins of confidence: how far,
    on average, confidence is from the share that is right."""
    confidence = probabilities.max(axis=1)
    wrong = (probabilities.argmax(axis=1) == label) - confidence
    gap = np.zeros((len(label), bins))
    gap[np.arange(len(label)), confidence_bin(confidence, bins)] = wrong
    return _share(np.abs(weight @ gap).sum(axis=1), weight.sum(axis=1))


def confidence_bin(confidence: Floats, bins: int) -> Labels:
    """The even bin of 0..1 that each lies in; 1 lies in the last."""
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def concordance(risk: Floats, time: Floats, event: Flags, weight: Floats) -> Floats:
    """Harrell's C: in how many pairs of which it is known who had the event first, that one had
    the higher risk.

    A pair is known where the earlier time is an event's, or where both times are equal and only
    one is. Equal risks count half. nan where there is no such pair.
    """
    concordant, comparable = np.zeros(len(weight)), np.zeros(len(weight))
    happened = np.flatnonzero(event)
    for start in range(0, len(happened), EVENTS_AT_ONCE):
        first = happened[start : start + EVENTS_AT_ONCE]  # (e)
        later = time > time[first, None]  # (e, n)
        later |= (time == time[first, None]) & ~event
        above = (risk < risk[first, None]) + 0.5 * (risk == risk[first, None])
        comparable += ((weight @ later.T) * weight[:, first]).sum(axis=1)
        concordant += ((weight @ (above * later).T) * weight[:, first]).sum(axis=1)
    return _share(concordant, comparable)


def absolute_error(value: Floats, wanted: Floats, weight: Floats) -> Floats:
    """Mean of |value - wanted|, in their unit."""
    return _mean(np.abs(value - wanted), weight)


def determination(value: Floats, wanted: Floats, weight: Floats) -> Floats:
    """R²: 1 - squared error over that of the mean; below 0 where the mean is the better guess."""
    middle = _mean(wanted, weight)[:, None]
    total = (weight * (wanted - middle) ** 2).sum(axis=1)
    return 1 - _share(weight @ (value - wanted) ** 2, total)


def pearson(value: Floats, wanted: Floats, weight: Floats) -> Floats:
    """Pearson's correlation; nan where either does not vary."""
    a = value - _mean(value, weight)[:, None]  # (r, n)
    b = wanted - _mean(wanted, weight)[:, None]
    spread = np.sqrt((weight * a * a).sum(axis=1) * (weight * b * b).sum(axis=1))
    return _share((weight * a * b).sum(axis=1), spread)


def share(hits: Flags, of: Flags, weight: Floats) -> Floats:
    """Share of the bags in `of` that are in `hits` as well."""
    return _share(weight @ (hits & of), weight @ of)


def _by_score(score: Floats, positive: Flags, weight: Floats) -> tuple[Floats, Floats]:
    """Weights [r, distinct scores] of the positive and of the negative bags, by rising score."""
    order = np.argsort(score, kind="stable")
    ordered, flags = score[order], positive[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    weights = weight[:, order]
    if len(starts) == len(ordered):
        return weights * flags, weights * ~flags
    return (
        np.add.reduceat(weights * flags, starts, axis=1),
        np.add.reduceat(weights * ~flags, starts, axis=1),
    )


def _mean(value: Floats, weight: Floats) -> Floats:
    return _share(weight @ value, weight.sum(axis=1))


def _share(part: Any, whole: Any, empty: float = np.nan) -> Floats:
    """part / whole, and `empty` where the whole is not above 0."""
    whole = np.asarray(whole, np.float64)
    found: Floats = np.divide(part, whole, out=np.full(whole.shape, empty), where=whole > 0)
    return found
