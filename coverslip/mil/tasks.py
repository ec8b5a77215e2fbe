"""What a study asks of every bag: a class, a grade, a number, how long until an event."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from coverslip.errors import InvalidConfig

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["classes", "ordinal", "number", "survival", "survival-bins"]
Floats = npt.NDArray[np.float64]

KINDS: tuple[Kind, ...] = ("classes", "ordinal", "number", "survival", "survival-bins")
BINS = 4
"""Of time, where a study names none; the usual number since Zadeh & Schmid."""


@dataclass(frozen=True, slots=True)
class Task:
    """One question, and what its logits mean.

    name      of the column that answers it
    kind      "classes"        softmax, one logit a class, also of two
              "ordinal"        ordered classes; a logit is the log odds of being above class k
              "number"         one output, standardised
              "survival"       one output, the log risk of a Cox model
              "survival-bins"  log odds of the event in each bin of time for who reached it
    classes   names of "classes" or "ordinal", the latter rising
    event     of survival: the column that says whether it happened
    limits    of "survival-bins", rising: where all bins but the first begin; the last is open.
              Empty until `fitted`
    mean      of a "number" over what was trained on, and its spread

    Targets are float64 [b, 2]: class, value or time; and 1 where the event happened, 0 where it
    had not by then. A nan in the first is a label that is missing: it has no part in anything.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...] = ()
    event: str = ""
    limits: tuple[float, ...] = ()
    mean: float = 0.0
    spread: float = 1.0

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise InvalidConfig(f"{self._where}a task wants a name that can be printed")
        if self.kind not in KINDS:
            raise InvalidConfig(f"{self._where}kind: {', '.join(KINDS)}, got {self.kind!r}")
        named, timed = self.kind in ("classes", "ordinal"), self.kind.startswith("survival")
        if named and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            listed = ", ".join(self.classes)
            raise InvalidConfig(f"{self._where}at least 2 different classes, got ({listed})")
        if not named and self.classes:
            raise InvalidConfig(f"{self._where}a task of kind {self.kind} has no classes")
        if timed != bool(self.event):
            wrong = "wants the column of its event" if timed else "has no event"
            raise InvalidConfig(f"{self._where}a task of kind {self.kind} {wrong}")
        if self.limits and self.kind != "survival-bins":
            raise InvalidConfig(f"{self._where}a task of kind {self.kind} has no limits")
        edges = (0.0, *self.limits)
        if any(not a < b < math.inf for a, b in pairwise(edges)):
            raise InvalidConfig(f"{self._where}limits must rise from above 0, got {self.limits}")
        if not (math.isfinite(self.mean) and 0 < self.spread < math.inf):
            raise InvalidConfig(f"{self._where}mean {self.mean} and spread {self.spread}")

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Task:
        """Of a record as `asdict` gives it, from JSON. Raises InvalidConfig."""
        record = dict(content)
        for name in ("classes", "limits"):
            if isinstance(record.get(name), list):
                record[name] = tuple(record[name])
        texts = (*map(record.get, ("name", "kind")), record.get("event", ""))
        numbers = (record.get("mean", 0.0), record.get("spread", 1.0))
        lists = (record.get("classes", ()), record.get("limits", ()))
        if (
            not all(isinstance(text, str) for text in texts)
            or not all(isinstance(number, int | float) for number in numbers)
            or not all(isinstance(one, tuple) for one in lists)
            or not all(isinstance(name, str) for name in lists[0])
            or not all(isinstance(limit, int | float) for limit in lists[1])
            or record.keys() - set(cls.__slots__)
        ):
            raise InvalidConfig(f"not a task: {dict(content)}")
        return cls(**record)

    @property
    def outputs(self) -> int:
        """Logits it wants."""
        if self.kind == "survival-bins" and not self.limits:
            raise InvalidConfig(f"{self._where}its bins of time are not known before `fitted`")
        return {
            "classes": len(self.classes),
            "ordinal": len(self.classes) - 1,
            "survival-bins": len(self.limits) + 1,
        }.get(self.kind, 1)

    def known(self, target: Floats) -> npt.NDArray[np.bool_]:
        """[b]: rows that have a label. Raises InvalidConfig for one that means nothing."""
        first, second = target[:, 0], target[:, 1]
        there = ~np.isnan(first)
        value, event = first[there], second[there]
        if self.classes:
            wrong = (value != np.round(value)) | (value < 0) | (value >= len(self.classes))
            wanted = f"a class from 0 to {len(self.classes) - 1}"
        elif self.event:
            wrong = ~((value >= 0) & (value < np.inf) & ((event == 0) | (event == 1)))
            wanted = "a time of at least 0, and 0 or 1 for its event"
        else:
            wrong, wanted = ~np.isfinite(value), "a finite number"
        if wrong.any():
            row = int(np.flatnonzero(there)[wrong.argmax()])
            found = f"{first[row]:g}, {second[row]:g}"
            raise InvalidConfig(f"{self._where}row {row} has {found}; {wanted} is wanted")
        return there

    def fitted(self, target: Floats) -> Task:
        """With what the training bags alone may decide: a number's mean and spread, and bins that
        hold as many events each, where none are named. Raises InvalidConfig."""
        value, event = target[self.known(target)].T
        if self.kind == "number":
            if not len(value) or not value.std() > 0:
                raise InvalidConfig(f"{self._where}the training bags do not differ in it")
            return replace(self, mean=float(value.mean()), spread=float(value.std()))
        if self.kind == "survival-bins" and not self.limits:
            times = value[event == 1]
            if not len(times):
                raise InvalidConfig(f"{self._where}no event among the training bags")
            inner = np.quantile(times, np.arange(1, BINS) / BINS)
            limits = tuple(sorted({float(t) for t in inner if t > 0}))
            if not limits:
                raise InvalidConfig(f"{self._where}every event of the training bags is at time 0")
            return replace(self, limits=limits)
        return self

    def class_weight(self, target: Floats) -> Floats | None:
        """[classes], with which all classes in `target` count alike and a bag counts 1 on average;
        None for what has no classes."""
        if not self.classes:
            return None
        label = target[self.known(target), 0].astype(np.int64)
        bags = np.bincount(label, minlength=len(self.classes))
        there = np.count_nonzero(bags)
        return np.where(bags, len(label) / (max(there, 1) * np.maximum(bags, 1)), 1.0)

    def loss(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean over the bags that have a label (of "survival": over events); a scalar.

        logits   (b, outputs)
        target   (b, 2) float64, checked by `known` before
        weight   (classes) or None

        Without any label it is 0, and so is its gradient. "survival" wants many bags at once:
        see `losses.cox_loss`.
        """
        import torch

        from coverslip.mil import losses

        known = ~target[:, 0].isnan()
        logits, value, event = logits[known], target[known, 0], target[known, 1] == 1
        if self.kind == "classes":
            return losses.class_loss(logits, value.long(), weight)
        if self.kind == "ordinal":
            return losses.ordinal_loss(logits, value.long(), weight)
        if self.kind == "number":
            standard = (value - self.mean) / self.spread
            return losses.number_loss(logits[:, 0], standard.to(logits.dtype))
        if self.kind == "survival":
            return losses.cox_loss(logits[:, 0], value, event)
        limits = torch.tensor(self.limits, dtype=value.dtype, device=value.device)
        return losses.hazard_loss(logits, torch.bucketize(value, limits, right=True), event)

    def prediction(self, logits: npt.NDArray[np.floating[Any]]) -> Floats:
        """What [b, outputs] say.

        classes, ordinal   [b, classes] probabilities
        number             [b] in the column's own unit
        survival           [b] log risk, against the average of what was trained on
        survival-bins      [b] risk: minus the probabilities of surviving each bin, summed; that is
                           how many bins it is survived less
        """
        said: Floats = np.asarray(logits, np.float64)
        if self.kind == "classes":
            chances: Floats = softmax(said, axis=1)
            return chances
        if self.kind == "ordinal":
            # nothing makes a network agree with itself: being above a class includes being above
            # all those below it
            above = np.minimum.accumulate(expit(said), axis=1)
            edge = np.ones((len(said), 1))
            return -np.diff(np.concatenate([edge, above, 0 * edge], axis=1), axis=1)
        if self.kind == "number":
            return said[:, 0] * self.spread + self.mean
        if self.kind == "survival":
            return said[:, 0]
        risk: Floats = -self.survival(said).sum(axis=1)
        return risk

    def survival(self, logits: npt.NDArray[np.floating[Any]]) -> Floats:
        """[b, bins]: the probability of surviving each bin of "survival-bins"."""
        return np.cumprod(expit(-np.asarray(logits, np.float64)), axis=1)

    @property
    def _where(self) -> str:
        return f"task {self.name!r}: "


def places(tasks: Sequence[Task]) -> list[slice]:
    """Where each task's logits are among those of all, which follow one another.

    Raises InvalidConfig where there is no task, or two of one name.
    """
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise InvalidConfig(f"a study wants tasks of different names, got ({', '.join(names)})")
    ends = np.cumsum([task.outputs for task in tasks]).tolist()
    return [slice(end - task.outputs, end) for end, task in zip(ends, tasks, strict=True)]


def task_losses(
    tasks: Sequence[Task], streams: Tensor, target: Tensor, weights: Sequence[Tensor | None]
) -> Tensor:
    """(tasks): the loss of each, its mean over streams of logits that are taught on their own.

    streams   (b, s, outputs of all tasks); target (b, tasks, 2)
    weights   of each task's classes, see `Task.loss`
    """
    import torch

    found = []
    for number, (task, place) in enumerate(zip(tasks, places(tasks), strict=True)):
        wanted, weight = target[:, number], weights[number]
        each = [task.loss(logits, wanted, weight) for logits in streams[..., place].unbind(dim=1)]
        found.append(torch.stack(each).mean())
    return torch.stack(found)


def task_records(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """As JSON holds them."""
    return [
        {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(task).items()}
        for task in tasks
    ]
