"""What the nuclei of a slide are like on the whole: how many, and the distribution of measures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

PERCENTILES = (5, 25, 50, 75, 95)
NOUNS = {"nuclei": "nucleus", "glands": "gland", "lumina": "lumen"}
"""Stage of outlined objects -> what one of them is called."""


def measure_names(columns: Mapping[str, Any]) -> list[str]:
    """The measures among a stage's columns: one real number an object, sorted."""
    return sorted(
        name
        for name, array in columns.items()
        if len(array.shape) == 1 and np.issubdtype(array.dtype, np.floating)
    )


def morphometry(
    columns: Mapping[str, Any], kind: str, classes: Sequence[str], area_um2: float
) -> dict[str, float]:
    """Counts and measures of all objects of a kind, and of each class. Name -> number.

    columns    [M] arrays, read one at a time: `class_id` and the measures
    kind       "nuclei", "glands" or "lumina", as in the names below
    classes    names that `class_id` counts; where there is one only, it is left out
    area_um2   of the tissue

    nuclei, nuclei_per_mm2; nuclei_<class>, ..._share, ..._per_mm2;
    nucleus_<measure>_mean, _sd, _p05, _p25, _p50, _p75, _p95; nucleus_<class>_<measure>_mean, _sd

    What is not a finite number is left out of a measure; a measure of nothing is nan, and so is the
    sd of one.
    """
    noun, several = NOUNS[kind], len(classes) > 1
    class_id = np.asarray(columns["class_id"][:])
    per_mm2 = 1e6 / area_um2 if area_um2 > 0 else float("nan")
    total = len(class_id)
    found: dict[str, float] = {kind: total, f"{kind}_per_mm2": total * per_mm2}
    for number, name in enumerate(class_names(classes) if several else ()):
        count = int((class_id == number).sum())
        found[f"{kind}_{name}"] = count
        found[f"{kind}_{name}_share"] = count / total if total else float("nan")
        found[f"{kind}_{name}_per_mm2"] = count * per_mm2
    for measure in measure_names(columns):
        values = np.asarray(columns[measure][:], np.float64)
        finite = np.isfinite(values)
        found |= _moments(values[finite], f"{noun}_{measure}")
        found |= _percentiles(values[finite], f"{noun}_{measure}")
        for number, name in enumerate(class_names(classes) if several else ()):
            of_class = values[finite & (class_id == number)]
            found |= _moments(of_class, f"{noun}_{name}_{measure}")
    return found


def class_names(classes: Sequence[str]) -> list[str]:
    """Classes as they stand in a column's name: lower case, with _ for what is no letter or digit.

    >>> class_names(["Neoplastic", "T cell (CD8+)"])
    ['neoplastic', 't_cell_cd8']

    Raises ValueError where two would be called the same.
    """
    names = [re.sub(r"\W+", "_", name.casefold()).strip("_") or "unnamed" for name in classes]
    if len(set(names)) < len(names):
        raise ValueError(f"classes cannot be told apart in columns' names: {', '.join(classes)}")
    return names


def _moments(values: npt.NDArray[np.float64], name: str) -> dict[str, float]:
    nan = float("nan")
    return {
        f"{name}_mean": float(values.mean()) if len(values) else nan,
        f"{name}_sd": float(values.std(ddof=1)) if len(values) > 1 else nan,
    }


def _percentiles(values: npt.NDArray[np.float64], name: str) -> dict[str, float]:
    names = [f"{name}_p{percent:02d}" for percent in PERCENTILES]
    if not len(values):
        return dict.fromkeys(names, float("nan"))
    return dict(zip(names, np.percentile(values, PERCENTILES).tolist(), strict=True))
