"""Probabilities that mean what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from coverslip.mil.metrics import BINS, confidence_bin

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

TEMPERATURES = (0.05, 100.0)


def fitted_temperature(logits: Floats, label: Labels) -> float:
    """What to divide logits [n, classes] by for the least log loss (Guo et al. 2017,
    arXiv:1706.04599); 1 of no bags.

    It is for bags that had no part in the training: those of validation. It never changes which
    class is the most probable. As in Platt's scaling, a share of 1 in n + 2 is taken from each
    label and spread over the classes: n bags told right do not prove that none will be told wrong.
    """
    if not len(label):
        return 1.0
    count, classes = logits.shape
    target = np.full((count, classes), 1 / (classes * (count + 2)))
    target[np.arange(count), label] += 1 - 1 / (count + 2)

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float((target * (logsumexp(scaled, axis=1, keepdims=True) - scaled)).sum() / count)

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """A reliability curve; bins that hold no bag are left out.

    confidence   [k] mean of the probability that the most probable class was given
    right        [k] share of the bags that have it
    bags         [k]
    """

    confidence: Floats
    right: Floats
    bags: Labels

    @classmethod
    def of(cls, probabilities: Floats, label: Labels, bins: int = BINS) -> Reliability:
        """In even bins of confidence, those of `metrics.calibration_error`."""
        confidence = probabilities.max(axis=1)
        right = probabilities.argmax(axis=1) == label
        place = confidence_bin(confidence, bins)
        bags = np.bincount(place, minlength=bins)
        there = bags > 0
        return cls(
            np.bincount(place, confidence, bins)[there] / bags[there],
            np.bincount(place, right, bins)[there] / bags[there],
            bags[there],
        )
