"""How much an embedding tells: probes on labelled tiles, with intervals.

    linear     logistic regression on standardised embeddings, its strength chosen inside each fold
    knn        votes of the nearest neighbours by cosine
    few-shot   SimpleShot (Wang et al. 2019, arXiv:1911.04623): the nearest mean of a few tiles

All figures are balanced accuracies, so that a common class weighs no more than a rare one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse regularisation tried for the linear probe."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean with its 95 % interval.

    values   of the single repeats it is the mean of
    """

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The percentile interval over repeats; the mean alone where there is one."""
        low, high = np.percentile(values, [2.5, 97.5])
        return cls(float(np.mean(values)), float(low), float(high), tuple(map(float, values)))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f}-{self.high:.3f})"


def balanced_accuracy(truth: Labels, guess: Labels) -> float:
    """Mean over the classes in `truth` of the share of each that was guessed right."""
    right = truth == guess
    return float(np.mean([right[truth == c].mean() for c in np.unique(truth)]))


def probe(
    features: Floats,
    labels: Labels,
    classify: Callable[[Floats, Labels, Floats], Labels],
    *,
    asked: Floats | None = None,
    groups: Labels | None = None,
    folds: int = 5,
    repeats: int = 10,
    seed: int = 0,
) -> Figure:
    """Balanced accuracy of a classifier by repeated stratified cross-validation.

    features   float32 [N, D]
    labels     int64 [N]
    classify   (train features, train labels, test features) -> labels of the test tiles
    asked      float32 [N, D]: other embeddings of the same tiles, of which the test tiles' are
               taken; `features` by default
    groups     int64 [N]: tiles of one group (a patient, a slide) are never on both sides

    Every tile is guessed once per repeat; the interval is over repeats with new folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
    from threadpoolctl import threadpool_limits

    asked = features if asked is None else asked
    values = []
    for repeat in range(repeats):
        kind = StratifiedKFold if groups is None else StratifiedGroupKFold
        split = kind(folds, shuffle=True, random_state=seed + repeat)
        guess = np.empty_like(labels)
        with threadpool_limits(1):  # the matrices are small: threads would wait for one another
            for train, test in split.split(features, labels, groups):
                guess[test] = classify(features[train], labels[train], asked[test])
        values.append(balanced_accuracy(labels, guess))
    return Figure.of(values)


def linear(train: Floats, labels: Labels, test: Floats) -> Labels:
    """Labels by logistic regression, its strength chosen by cross-validation on `train` alone."""
    from sklearn.model_selection import StratifiedKFold

    train, test = turned(*standardised(train, test))
    rarest = int(np.bincount(labels)[np.unique(labels)].min())
    strength = STRENGTHS[2]
    if rarest >= 3:
        split = list(StratifiedKFold(3, shuffle=True, random_state=0).split(train, labels))
        strength = max(
            STRENGTHS,
            key=lambda c: np.mean(
                [
                    balanced_accuracy(labels[b], _logistic(c, train[a], labels[a], train[b]))
                    for a, b in split
                ]
            ),
        )
    return _logistic(strength, train, labels, test)


def _logistic(strength: float, train: Floats, labels: Labels, test: Floats) -> Labels:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=500, tol=1e-3, class_weight="balanced")
    found: Labels = model.fit(train, labels).predict(test)
    return found


def knn(train: Floats, labels: Labels, test: Floats, neighbours: int = 10) -> Labels:
    """Labels by votes of the nearest by cosine, each vote weighted by exp(cosine / 0.07)."""
    mean = train.mean(axis=0)
    train, test = unit(train - mean), unit(test - mean)
    similarity = test @ train.T
    k = min(neighbours, len(train))
    nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    weight = np.exp(np.take_along_axis(similarity, nearest, 1) / 0.07)
    classes = np.unique(labels)
    votes = np.stack([(weight * (labels[nearest] == c)).sum(axis=1) for c in classes], axis=1)
    return np.asarray(classes[votes.argmax(axis=1)])


def nearest_mean(train: Floats, labels: Labels, test: Floats) -> Labels:
    """SimpleShot: centred on the training tiles, made unit length, then the nearest class mean."""
    mean = train.mean(axis=0)
    train, test = unit(train - mean), unit(test - mean)
    classes = np.unique(labels)
    means = np.stack([train[labels == c].mean(axis=0) for c in classes])
    distance = ((test[:, None] - means) ** 2).sum(axis=2)
    return np.asarray(classes[distance.argmin(axis=1)])


def few_shot(
    features: Floats, labels: Labels, shots: int, *, episodes: int = 200, seed: int = 0
) -> Figure:
    """Balanced accuracy of SimpleShot from `shots` tiles of each class; the rest is guessed.

    Raises ValueError where a class has no tile to spare. The interval is over episodes.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() <= shots:
        raise ValueError(f"{shots} shots want {shots + 1} tiles of each class, got {counts.min()}")
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(episodes):
        drawn = [generator.permutation(np.flatnonzero(labels == c))[:shots] for c in classes]
        train = np.zeros(len(labels), np.bool_)
        train[np.concatenate(drawn)] = True
        guess = nearest_mean(features[train], labels[train], features[~train])
        values.append(balanced_accuracy(labels[~train], guess))
    return Figure.of(values)


def standardised(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Both with the mean and spread of `train` taken out of each column."""
    mean, spread = train.mean(axis=0), train.std(axis=0) + 1e-6
    return (train - mean) / spread, (test - mean) / spread


def turned(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Both in coordinates of the space that `train` spans: fewer where there are few tiles, and
    nothing changes for a linear model whose weights are penalised by their length."""
    if len(train) >= train.shape[1]:
        return train, test
    basis = np.linalg.svd(train.astype(np.float64), full_matrices=False)[2].T.astype(np.float32)
    return train @ basis, test @ basis


def unit(vectors: Floats) -> Floats:
    """Rows of length 1; rows of zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), np.float32)
