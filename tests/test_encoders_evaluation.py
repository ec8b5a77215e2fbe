"""Probes: what they must say of embeddings whose worth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.encoders.evaluation import (
    Figure,
    balanced_accuracy,
    few_shot,
    knn,
    linear,
    nearest_mean,
    probe,
    turned,
)
from coverslip.encoders.robustness import changed_tiles, rescaled, robustness


def clouds(
    apart: float, each: int = 20, classes: int = 4, dim: int = 64, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings around one point a class, `apart` standard deviations from the origin."""
    rng = np.random.default_rng(seed)
    middles = np.eye(classes, dim) * apart
    labels = np.repeat(np.arange(classes), each)
    return (middles[labels] + rng.standard_normal((len(labels), dim))).astype(np.float32), labels


@pytest.mark.parametrize("classify", [linear, knn, nearest_mean])
def test_what_is_apart_is_told_and_noise_is_not(classify: object) -> None:
    features, labels = clouds(8)
    assert probe(features, labels, classify, repeats=2).mean > 0.97  # type: ignore[arg-type]
    noise, labels = clouds(0, each=60)
    chance = probe(noise, labels, classify, repeats=3)  # type: ignore[arg-type]
    assert abs(chance.mean - 0.25) < 0.12


def test_balanced_accuracy_by_hand() -> None:
    """Three of four right in one class, none of one in the other: (0.75 + 0) / 2."""
    truth, guess = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 0])
    assert balanced_accuracy(truth, guess) == 0.375


def test_the_strength_is_not_chosen_by_the_tested_tiles() -> None:
    """Labels drawn at random: an honest probe finds chance, however many dimensions it has."""
    rng = np.random.default_rng(3)
    features = rng.standard_normal((80, 400)).astype(np.float32)
    labels = rng.integers(0, 2, 80)
    assert abs(probe(features, labels, linear, repeats=4).mean - 0.5) < 0.12


def test_groups_are_never_on_both_sides() -> None:
    """Each group has a direction of its own that a leaking split would learn."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    labels = (groups % 2).astype(np.int64)
    features = (np.eye(20)[groups] * 20 + rng.standard_normal((200, 20))).astype(np.float32)
    seen: list[set[int]] = []

    def spying(train: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
        both = {tuple(r.argsort()[-1:]) for r in train} & {tuple(r.argsort()[-1:]) for r in test}
        seen.append(both)  # type: ignore[arg-type]
        return knn(train, y, test)

    probe(features, labels, spying, groups=groups, repeats=2)
    assert all(not both for both in seen)


def test_knn_and_nearest_mean_agree_with_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

    features, labels = clouds(3, dim=16)
    train, test = features[::2], features[1::2]
    ours = knn(train, labels[::2], test, neighbours=1)
    mean = train.mean(axis=0)
    theirs = KNeighborsClassifier(1, metric="cosine").fit(train - mean, labels[::2])
    np.testing.assert_array_equal(ours, theirs.predict(test - mean))

    def unit(x: np.ndarray) -> np.ndarray:
        return (x - mean) / np.linalg.norm(x - mean, axis=1, keepdims=True)

    centroid = NearestCentroid().fit(unit(train), labels[::2])
    np.testing.assert_array_equal(
        nearest_mean(train, labels[::2], test), centroid.predict(unit(test))
    )


def test_fewer_coordinates_change_nothing() -> None:
    """All products between train and test tiles stay: a penalised linear model sees no more."""
    features, _ = clouds(2, each=5, dim=200)
    train, test = features[:12], features[12:]
    a, b = turned(train, test)
    assert a.shape == (12, 12)
    np.testing.assert_allclose(a @ a.T, train @ train.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(b @ a.T, test @ train.T, rtol=1e-4, atol=1e-3)


def test_more_shots_tell_more() -> None:
    features, labels = clouds(2.5, each=40)
    one, ten = (few_shot(features, labels, shots, episodes=40) for shots in (1, 10))
    assert ten.mean > one.mean + 0.1
    assert one.low <= one.mean <= one.high
    with pytest.raises(ValueError, match="41 tiles of each class"):
        few_shot(features, labels, 40)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_an_interval_holds_its_mean(values: list[float]) -> None:
    figure = Figure.of(values)
    assert min(values) - 1e-9 <= figure.low <= figure.high <= max(values) + 1e-9
    assert min(values) - 1e-9 <= figure.mean <= max(values) + 1e-9


def test_nothing_changed_is_perfectly_robust() -> None:
    features, labels = clouds(3)
    found = robustness(features, {"nothing": features}, labels)["nothing"]
    assert found.drift == pytest.approx(0, abs=1e-6)
    assert (found.found, found.drop) == (1.0, 0.0)


def test_everything_changed_is_as_far_as_any_other_tile() -> None:
    features, labels = clouds(0, each=100)
    other, _ = clouds(0, each=100, seed=1)
    found = robustness(features, {"all": other}, labels)["all"]
    assert found.drift == pytest.approx(1, abs=0.1)
    assert found.found < 0.05


def test_another_pixel_size_shows_more_or_less_tissue() -> None:
    """A picture that is its own x: at twice the pixel size its slope doubles."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (2, 64, 64, 3)).copy()
    for scale in (0.5, 0.8, 1.0):
        slope = np.diff(rescaled(ramp, scale)[0, 32, 8:56, 0].astype(float)).mean()
        assert slope == pytest.approx(scale, abs=0.03)
    wide = rescaled(ramp, 1.25)[0, 32, :, 0].astype(float)
    assert np.diff(wide[10:54]).mean() == pytest.approx(1.25, abs=0.03)
    assert wide.max() <= 63  # mirrored at the border, not white
    np.testing.assert_array_equal(rescaled(ramp, 1.0), ramp)


def test_changes_are_named_and_reproducible() -> None:
    tiles = np.random.default_rng(0).integers(80, 250, (3, 40, 40, 3), dtype=np.uint8)
    once, again = changed_tiles(tiles), changed_tiles(tiles)
    assert list(once) == ["stain ±10%", "stain ±30%", "0.8 x µm", "1.25 x µm"]
    for name, changed in once.items():
        assert changed.shape == tiles.shape
        np.testing.assert_array_equal(changed, again[name])
        assert np.abs(changed.astype(int) - tiles).mean() > 1
