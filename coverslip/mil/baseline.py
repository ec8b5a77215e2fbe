"""A linear model of mean embeddings: what any model of bags has to be better than."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from coverslip.mil.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

STRENGTHS = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Weights of the squared length of the coefficients, the most regularised first."""
STEPS = 500
"""Of L-BFGS, at most; the objective is convex."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearProbe:
    """logits = (x - mean) / spread · weight + bias.

    mean, spread    [features] of what it was fitted on
    weight, bias    [features, outputs], [outputs]
    strength        chosen on the validation bags
    """

    mean: Floats
    spread: Floats
    weight: Floats
    bias: Floats
    strength: float

    def logits(self, features: Floats) -> Floats:
        """[n, features] -> [n, outputs], which mean what a network's do."""
        return np.asarray((features - self.mean) / self.spread @ self.weight + self.bias)


def fitted_probe(
    task: Task,
    features: Floats,
    target: Floats,
    train: Integers,
    validation: Integers,
    *,
    class_weights: bool = True,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearProbe:
    """The task's own loss plus strength / 2 · |weight|², least by L-BFGS on standardised features:
    logistic regression of classes, a robust ridge of numbers, Cox regression of survival.

    task         fitted on the training bags, see `Task.fitted`
    features     float64 [n, features] of all bags: mean embeddings, and covariates if there are any
    target       [n, 2] of all bags
    strengths    tried; the one whose loss on the validation bags is least is kept, of equals the
                 first; deterministic
    """
    import torch
    from threadpoolctl import threadpool_limits

    taught = features[train]
    mean, spread = taught.mean(axis=0), taught.std(axis=0)
    spread = np.where(spread > 1e-9 * np.abs(mean).max(initial=1.0), spread, 1.0)
    weight = task.class_weight(target[train]) if class_weights else None
    balance = None if weight is None else torch.from_numpy(weight)
    x, basis = _spanned((taught - mean) / spread)
    watched = torch.from_numpy((features[validation] - mean) / spread @ basis)
    y, z = torch.from_numpy(target[train]), torch.from_numpy(target[validation])
    start = np.zeros((x.shape[1] + 1) * task.outputs)
    tried: list[tuple[float, float, Floats]] = []
    with threadpool_limits(1):  # the matrices are small: threads would wait for one another
        for strength in strengths:
            start = _least(task, torch.from_numpy(x), y, balance, strength, start)
            found = torch.from_numpy(start.reshape(-1, task.outputs))
            loss = float(task.loss(watched @ found[:-1] + found[-1], z, balance))
            tried.append((loss, strength, start))
    _, strength, values = min(tried, key=lambda one: one[0])
    coefficients = values.reshape(-1, task.outputs)
    return LinearProbe(mean, spread, basis @ coefficients[:-1], coefficients[-1], strength)


def _least(
    task: Task, x: Tensor, y: Tensor, balance: Tensor | None, strength: float, start: Floats
) -> Floats:
    """Coefficients [(features + 1) · outputs], the bias last, that minimise the objective."""
    import torch
    from scipy.optimize import minimize

    def objective(values: Floats) -> tuple[float, Floats]:
        held = torch.from_numpy(values).requires_grad_()
        table = held.view(-1, task.outputs)
        loss = task.loss(x @ table[:-1] + table[-1], y, balance)
        loss = loss + strength / 2 * (table[:-1] ** 2).sum()
        (slope,) = torch.autograd.grad(loss, held)
        return loss.item(), slope.numpy()

    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS, "gtol": 1e-7}
    )
    return np.asarray(found.x, np.float64)


def _spanned(x: Floats) -> tuple[Floats, Floats]:
    """(x in coordinates of the space that it spans, basis [features, coordinates]): fewer where
    there are few bags, and nothing changes for weights that are penalised by their length."""
    if len(x) >= x.shape[1]:
        return x, np.eye(x.shape[1])
    basis = np.linalg.svd(x, full_matrices=False)[2].T
    return x @ basis, basis
