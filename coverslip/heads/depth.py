"""Whether a model is out of its depth: nuclei it is less sure of than on what it was tried on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from coverslip.heads.segmentation import Labels, Segmentation

SURE = ("probability", "agreement")
LEAST = 20
"""Nuclei from which on a median says something."""


def agreement(labels: Labels, others: Sequence[Labels]) -> npt.NDArray[np.float32]:
    """How well each nucleus is found again: mean over `others` of its best IoU, float32 [N].

    labels   int32 [H, W], 1 to N; others the same image segmented again, not 0 times
    """
    return np.asarray(np.mean([best_iou(labels, other) for other in others], axis=0), np.float32)


def best_iou(labels: Labels, other: Labels) -> npt.NDArray[np.float64]:
    """IoU of each label 1 to N with the label of `other` it has most in common with; [N]."""
    count, columns = int(labels.max(initial=0)), int(other.max(initial=0)) + 1
    both = (labels > 0) & (other > 0)
    pair, shared = np.unique(labels[both].astype(np.int64) * columns + other[both],
                             return_counts=True)  # fmt: skip
    mine, theirs = np.divmod(pair, columns)
    area = np.bincount(labels.ravel(), minlength=count + 1)
    area_other = np.bincount(other.ravel(), minlength=columns)
    iou = np.zeros(count + 1)
    np.maximum.at(iou, mine, shared / (area[mine] + area_other[theirs] - shared))
    return iou[1:]


def expectations(found: Sequence[Segmentation]) -> dict[str, float]:
    """What nine of ten images exceed: the 10th percentile of their medians, for what is known."""
    expected = {}
    for name in SURE:
        medians = [m for s in found if (m := _median(getattr(s, name))) is not None]
        if medians:
            expected[name] = float(np.percentile(medians, 10))
    return expected


def remarks(
    model: str, columns: Mapping[str, npt.NDArray[np.float32]], expected: Mapping[str, float]
) -> list[str]:
    """A sentence for each measure whose median over a slide's nuclei is below what is expected."""
    said = []
    for name, least in expected.items():
        median = _median(columns[name])
        if median is not None and median < least:
            said.append(
                f"nuclei: {model} is out of its depth here: median {name} {median:.2f}, below the "
                f"{least:.2f} that nine of ten validation images reach"
            )
    return said


def _median(values: npt.NDArray[np.float32]) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) >= LEAST else None
