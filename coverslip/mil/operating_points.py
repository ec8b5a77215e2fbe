"""Where to draw the line: thresholds chosen on validation bags, and what they give on others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from coverslip.errors import InvalidConfig
from coverslip.mil.intervals import RESAMPLES, Estimate, estimates, wilson_interval
from coverslip.mil.metrics import share

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Roc(NamedTuple):
    """Points [k] of a ROC curve, by falling threshold; the first, at infinity, calls none."""

    false_positive_rate: Floats
    true_positive_rate: Floats
    threshold: Floats


def roc(score: Floats, positive: Flags) -> Roc:
    """Every corner of the curve; nan for a rate that has no bags."""
    from sklearn.metrics import roc_curve

    if positive.all() or not positive.any():
        return Roc(*(np.full(1, v) for v in (np.nan, np.nan, np.inf)))
    return Roc(*(np.asarray(v, np.float64) for v in roc_curve(positive, score)))


@dataclass(frozen=True, slots=True)
class Performance:
    """What a threshold gives.

    sensitivity, specificity     shares of the positive and of the negative bags called right
    ppv, npv                     shares of the bags called positive and negative that are
    true_positives ...           bags
    interval                     "wilson", or "bootstrap" by patient where one has several bags
    """

    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    interval: Literal["wilson", "bootstrap"]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold: bags that score at least as much are called positive.

    aim, wanted   "sensitivity" or "specificity", and how much of it the bags it was chosen on have
                  at the least. MedImageInsight (Codella et al. 2024) argues for such points
    """

    aim: Literal["sensitivity", "specificity"]
    wanted: float
    threshold: float

    @classmethod
    def chosen(
        cls,
        score: Floats,
        positive: Flags,
        aim: Literal["sensitivity", "specificity"],
        wanted: float,
    ) -> OperatingPoint:
        """The threshold that reaches it on these bags at the least cost to the other.

        score   [n] finite, positive [n]: of validation bags, never of those it is judged on

        Raises InvalidConfig where there are no bags to choose it on.
        """
        if aim not in ("sensitivity", "specificity") or not 0 < wanted <= 1:
            raise InvalidConfig(
                f"an operating point is a sensitivity or specificity in 0..1, got {aim} {wanted}"
            )
        sort = "positive" if aim == "sensitivity" else "negative"
        own = np.sort(score[positive == (aim == "sensitivity")])
        if not len(own):
            raise InvalidConfig(f"no {sort} bag to choose a {aim} of {wanted:g} on")
        right = int(np.ceil(wanted * len(own) - 1e-9))  # 0.07 * 100 is a little more than 7
        if aim == "sensitivity":
            return cls(aim, wanted, float(own[len(own) - right]))
        higher = score[score > own[right - 1]]
        return cls(aim, wanted, float(higher.min()) if len(higher) else float("inf"))

    def performance(
        self,
        score: Floats,
        positive: Flags,
        patients: npt.NDArray[Any],
        *,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> Performance:
        """On other bags, all [n]. A bootstrap resamples patients, positive and negative apart."""
        called = score >= self.threshold
        sides = {
            "sensitivity": (called, positive),
            "specificity": (~called, ~positive),
            "ppv": (positive, called),
            "npv": (~positive, ~called),
        }
        single = len(np.unique(patients)) == len(patients)
        if single:
            found = {
                name: wilson_interval(int((hits & of).sum()), int(of.sum()))
                for name, (hits, of) in sides.items()
            }
        else:
            found = estimates(
                {name: partial(share, hits, of) for name, (hits, of) in sides.items()},
                patients,
                positive.astype(np.int64),
                resamples=resamples,
                seed=seed,
            )
        return Performance(
            **found,
            true_positives=int((called & positive).sum()),
            false_positives=int((called & ~positive).sum()),
            true_negatives=int((~called & ~positive).sum()),
            false_negatives=int((~called & positive).sum()),
            interval="wilson" if single else "bootstrap",
        )
