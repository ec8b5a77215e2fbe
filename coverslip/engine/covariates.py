"""Columns of a clinical table as numbers for a model, always made as they were in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.engine.clinical import MatchedTable, number
from coverslip.engine.table_text import problem
from coverslip.errors import InvalidConfig

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Covariate:
    """One column of the table, and what training knew of it.

    levels         of a category, sorted; empty for a number
    mean, spread   of a number
    missing        whether one more number says that nothing is known; only where that was so in
                   training, for else nothing would be learned of it
    """

    name: str
    levels: tuple[str, ...] = ()
    mean: float = 0.0
    spread: float = 1.0
    missing: bool = False

    @classmethod
    def fit(
        cls, matched: MatchedTable, name: str, training: Sequence[int], *, category: bool
    ) -> Covariate:
        """Raises InvalidConfig where training knows nothing of it; UnknownName."""
        texts = matched.texts(name)
        known = [text for i in training if (text := texts[i]) is not None]
        if not known:
            raise problem(matched.table.path, f"{name!r} is empty for all that are learned from")
        missing = len(known) < len(training)
        if category or any(number(text) is None for text in known):
            return cls(name, tuple(sorted(set(known))), missing=missing)
        values = matched.numbers(name)[np.asarray(training, np.int64)]
        spread = float(np.nanstd(values))
        return cls(name, (), float(np.nanmean(values)), spread or 1.0, missing)

    @property
    def names(self) -> tuple[str, ...]:
        """Of its numbers."""
        parts = tuple(f"{self.name}={level}" for level in self.levels) or (self.name,)
        return parts + ((f"{self.name} is missing",) if self.missing else ())

    def matrix(self, matched: MatchedTable) -> Matrix:
        """float32 [n, len(names)]; of a level that training did not know, all zeros. Raises
        InvalidConfig, UnknownName."""
        if self.levels:
            texts = matched.texts(self.name)
            unknown = np.array([text is None for text in texts])
            parts = [np.array([text == level for text in texts]) for level in self.levels]
        else:
            values = matched.numbers(self.name)
            unknown = np.isnan(values)
            parts = [np.where(unknown, 0.0, (values - self.mean) / self.spread)]
        return np.stack([*parts, *([unknown] if self.missing else [])], axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Covariates:
    """Columns side by side: numbers standardised (what is missing is the mean), categories one
    number a level."""

    columns: tuple[Covariate, ...] = ()

    @classmethod
    def fit(
        cls,
        matched: MatchedTable,
        names: Sequence[str],
        training: Sequence[int],
        *,
        categories: Sequence[str] = (),
    ) -> Covariates:
        """names        columns; those of which training holds nothing but numbers are numbers
        training     places in `matched` that are learned from; the others are not looked at
        categories   names that are categories though they are numbers (a hospital's code)

        Raises InvalidConfig, UnknownName.
        """
        return cls(
            tuple(
                Covariate.fit(matched, name, training, category=name in categories)
                for name in names
            )
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the matrix's columns."""
        return tuple(name for column in self.columns for name in column.names)

    def matrix(self, matched: MatchedTable) -> Matrix:
        """float32 [n, len(names)] of a table's names. Raises InvalidConfig, UnknownName."""
        empty = np.empty((len(matched), 0), np.float32)
        return np.concatenate([empty, *(c.matrix(matched) for c in self.columns)], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Covariates:
        """What `to_dict` gave. Raises InvalidConfig."""
        try:
            return cls(
                tuple(
                    Covariate(
                        str(c["name"]),
                        tuple(map(str, c["levels"])),
                        float(c["mean"]),
                        float(c["spread"]),
                        bool(c["missing"]),
                    )
                    for c in content["columns"]
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidConfig(f"covariates cannot be understood ({error!r})") from None
