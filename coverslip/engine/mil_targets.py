"""Columns of a clinical table as tasks: "subtype", "grade:ordinal:low,middle,high", "age:number",
"months:survival:died"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coverslip.engine.clinical import MatchedTable
from coverslip.errors import InvalidConfig
from coverslip.mil.tasks import KINDS, Kind, Task

MOST_CLASSES = 50
"""A column of more different values is hardly one of classes."""


@dataclass(frozen=True, slots=True)
class Target:
    """A column and what is asked of it.

    more   "ordinal": the classes, rising; "survival": the event's column; "classes": those that are
           meant, others count as not known; all that the column holds where none are named
    """

    column: str
    kind: Kind
    more: str = ""

    @classmethod
    def parse(cls, text: str) -> Target:
        """Of "column", "column:kind" or "column:kind:more". Raises InvalidConfig."""
        column, _, rest = text.partition(":")
        name, _, more = rest.partition(":")
        kind = next((k for k in KINDS if k == (name or "classes")), None)
        if not column or kind is None:
            raise InvalidConfig(
                f"target {text!r}: a column and, after a colon, one of {', '.join(KINDS)}"
            )
        if kind == "ordinal" and not more:
            raise InvalidConfig(
                f"target {text!r}: which class is above which? {column}:ordinal:low,middle,high"
            )
        if kind.startswith("survival") and not more:
            raise InvalidConfig(f"target {text!r}: the column of the event, {column}:{kind}:died")
        if kind == "number" and more:
            raise InvalidConfig(f"target {text!r}: nothing comes after number")
        return cls(column, kind, more)

    @classmethod
    def of(cls, task: Task) -> Target:
        """What a trained task asks of another table."""
        return cls(task.name, task.kind, task.event or ",".join(task.classes))

    def task(self, rows: MatchedTable) -> Task:
        """Not fitted yet. Raises UnknownName; InvalidConfig: too many classes, or too few."""
        if self.kind not in ("classes", "ordinal"):
            return Task(self.column, self.kind, event=self.more)
        named = tuple(name.strip() for name in self.more.split(",")) if self.more else ()
        held = rows.classes_of(self.column)
        classes = named or held
        if absent := [name for name in named if name not in held]:
            raise InvalidConfig(
                f"column {self.column!r}: no slide is {absent[0]!r}; it holds "
                f"{', '.join(held[:10]) or 'nothing'}"
            )
        if len(classes) > MOST_CLASSES:
            raise InvalidConfig(
                f"column {self.column!r} holds {len(classes)} different values\n"
                f"  a number is {self.column}:number, and classes can be chosen: "
                f"{self.column}:classes:{classes[0]},{classes[1]}"
            )
        return Task(self.column, self.kind, classes)

    def values(self, task: Task, rows: MatchedTable) -> npt.NDArray[np.float64]:
        """[n, 2] as tasks have them; nan where nothing is known. Raises InvalidConfig."""
        if task.kind == "classes":
            number = {name: float(place) for place, name in enumerate(task.classes)}
            value = np.array([number.get(v or "", np.nan) for v in rows.texts(task.name)])
        elif task.kind == "ordinal":
            value = rows.classes(task.name, task.classes)
        else:
            value = rows.numbers(task.name)
        event = np.zeros(len(value))
        if task.event:
            event = rows.events(task.event)
            value = np.where(np.isnan(event), np.nan, value)
        target = np.stack([value, np.nan_to_num(event)], axis=1)
        task.known(target)
        return target
