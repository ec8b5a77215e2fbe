"""Tile classifiers: what they learn, what calibration does and must not do, and what is kept."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.errors import InvalidConfig, RecipeMismatch
from coverslip.heads import tile_classifier as module
from coverslip.heads.recipe import read_recipe
from coverslip.heads.tile_classifier import (
    EmbeddingSource,
    TileClassifier,
    TileExamples,
    TileTraining,
    calibration_error,
    fitted_temperature,
    group_folds,
    log_loss,
    softmax,
)

DIM = 12
SOURCE = EmbeddingSource("tiny", DIM, "a" * 64, "b" * 64, 0.5, 256)
CLASSES = ("gland", "stroma", "fat")
BOTH = pytest.mark.parametrize("kind", ["linear", "mlp"])


def examples(apart: float = 3.0, count: int = 90, **changes: Any) -> TileExamples:
    """Tiles of three classes, in groups of nine that hold all of them."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 3
    means = apart * np.eye(3, DIM)
    embeddings = (means[labels] + random.normal(size=(count, DIM))).astype(np.float32)
    given = {"groups": np.arange(count) // 9, "data": "synthetic"} | changes
    return TileExamples(embeddings, labels, CLASSES, SOURCE, **given)


def fit(kind: Any = "linear", tiles: TileExamples | None = None, **changes: Any) -> TileClassifier:
    config = TileTraining(kind, hidden=16, epochs=60, folds=3, **changes)
    return TileClassifier.fit(tiles or examples(), config, name="three")


@pytest.fixture(scope="module")
def linear() -> TileClassifier:
    return fit()


@pytest.fixture(scope="module")
def mlp() -> TileClassifier:
    return fit("mlp")


@BOTH
def test_what_can_be_told_apart_is_learned(kind: str, request: pytest.FixtureRequest) -> None:
    classifier: TileClassifier = request.getfixturevalue(kind)
    tiles = examples(apart=5)
    found = classifier.probabilities(tiles.embeddings)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert (found.argmax(axis=1) == tiles.labels).mean() > 0.9
    figures = classifier.figures
    assert figures.balanced_accuracy > 0.85
    assert (figures.tiles, figures.groups, figures.folds, figures.unseen) == (90, 10, 3, 0)
    assert set(figures.recall) == set(CLASSES)
    assert sum(map(sum, figures.confusion)) == 90
    assert figures.balanced_accuracy == pytest.approx(np.mean(list(figures.recall.values())))


def test_two_classes_and_few_tiles_in_many_dimensions() -> None:
    random = np.random.default_rng(1)
    labels = np.arange(20) % 2
    embeddings = random.normal(size=(20, 60)).astype(np.float32)
    embeddings[:, 3] += 6 * labels
    tiles = TileExamples(embeddings, labels, ("a", "b"), replace(SOURCE, dim=60))
    classifier = fit(tiles=tiles)
    assert (classifier.probabilities(embeddings).argmax(axis=1) == labels).all()
    assert classifier.figures.groups == 0


@BOTH
def test_a_number_that_no_tile_had_does_not_run_away(kind: str) -> None:
    tiles = examples()
    tiles.embeddings[:, -1] = 0
    asked = tiles.embeddings.copy()
    asked[:, -1] = 1
    classifier = fit(kind, tiles)
    assert np.abs(classifier.logits(asked) - classifier.logits(tiles.embeddings)).max() < 5


def test_over_confidence_is_cured_and_no_tile_changes_its_class() -> None:
    random = np.random.default_rng(2)
    honest = random.normal(size=(4000, 4)) * 1.5
    labels = np.array([random.choice(4, p=p) for p in softmax(honest)])
    loud = honest * 6
    temperature = fitted_temperature(loud, labels)
    assert temperature == pytest.approx(6, rel=0.1)
    before, after = softmax(loud), softmax(loud, temperature)
    assert log_loss(after, labels) < 0.6 * log_loss(before, labels)
    assert calibration_error(before, labels) > 0.15
    assert calibration_error(after, labels) < 0.03
    np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))


def test_a_trained_network_that_is_too_sure_is_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise learned by heart: hardly any regularisation, as many dimensions as tiles."""
    monkeypatch.setattr(module, "STRENGTHS", (100.0, 100.0, 100.0))
    classifier = fit(tiles=examples(apart=1.0, count=63))
    figures = classifier.figures
    assert classifier.temperature > 1.2
    assert figures.log_loss < figures.uncalibrated_log_loss
    tiles = examples(apart=1.0).embeddings
    np.testing.assert_array_equal(
        classifier.probabilities(tiles).argmax(axis=1), classifier.logits(tiles).argmax(axis=1)
    )


@given(st.floats(0.05, 100), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_no_temperature_changes_the_class(temperature: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(20, 5)) * 4
    found = softmax(logits, temperature)
    np.testing.assert_array_equal(found.argmax(axis=1), logits.argmax(axis=1))


def test_the_calibration_error_is_that_of_the_paper() -> None:
    """Ten tiles of confidence 0.9, of which seven are right: 0.2."""
    found = np.tile([0.9, 0.1], (10, 1))
    labels = np.array([0] * 7 + [1] * 3)
    assert calibration_error(found, labels) == pytest.approx(0.2)
    assert np.isnan(calibration_error(found[:0], labels[:0]))
    assert log_loss(found, labels) == pytest.approx(-0.7 * np.log(0.9) - 0.3 * np.log(0.1))


@given(st.integers(2, 9), st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_groups_are_never_split(count: int, folds: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(count), random.integers(0, count, 60)])
    labels = random.permutation(np.arange(len(groups)) % 3)
    splits = group_folds(labels, groups, folds, seed)
    assert 1 <= len(splits) <= min(folds, count)
    for train, test in splits:
        assert not set(groups[train]) & set(groups[test])
    tested = np.sort(np.concatenate([test for _, test in splits]))
    np.testing.assert_array_equal(tested, np.arange(len(groups)))


def test_figures_know_nothing_of_the_held_out_groups() -> None:
    """Embeddings that give away the group and nothing else: told by heart, unless held apart."""
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(24), 4)
    labels = random.permutation(np.arange(24) % 3)[groups]
    embeddings = random.normal(size=(24, DIM))[groups] * 3
    embeddings += 0.01 * random.normal(size=embeddings.shape)
    known = TileExamples(embeddings.astype(np.float32), labels, CLASSES, SOURCE, groups)
    assert fit(tiles=known).figures.balanced_accuracy < 0.6
    assert fit(tiles=replace(known, groups=None)).figures.balanced_accuracy > 0.7


def test_a_class_that_one_group_has_is_missed_and_counted() -> None:
    tiles = examples()
    groups = np.where(tiles.labels == 2, 0, 1 + np.arange(90) % 5)
    figures = fit(tiles=replace(tiles, groups=groups)).figures
    assert figures.unseen == 30
    assert figures.recall["fat"] == 0
    assert figures.recall["gland"] > 0.8
    assert np.isfinite([figures.log_loss, figures.uncalibrated_log_loss, figures.ece]).all()


def test_balanced_classes_count_alike() -> None:
    random = np.random.default_rng(4)
    labels = (np.arange(300) % 10 == 0).astype(np.int64)
    embeddings = random.normal(size=(300, DIM)).astype(np.float32)
    tiles = TileExamples(embeddings, labels, ("often", "rare"), SOURCE)
    rare = [
        fit(tiles=tiles, balanced=balanced).probabilities(embeddings)[:, 1].mean()
        for balanced in (False, True)
    ]
    assert rare[0] == pytest.approx(0.1, abs=0.03)
    assert rare[1] == pytest.approx(0.5, abs=0.06)


@BOTH
def test_a_file_is_the_classifier(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    classifier: TileClassifier = request.getfixturevalue(kind)
    path = tmp_path / "three.safetensors"
    classifier.save(path)
    again = TileClassifier.load(path, SOURCE)
    tiles = examples().embeddings
    assert again.probabilities(tiles).tobytes() == classifier.probabilities(tiles).tobytes()
    assert again.sha256 == classifier.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert again.recipe == classifier.recipe == read_recipe(path)
    assert again.source == SOURCE
    assert (again.name, again.classes, again.recipe.task) == ("three", CLASSES, "tiles")
    assert again.recipe.architecture == kind
    assert again.recipe.arguments["dim"] == DIM
    assert again.recipe.data == "synthetic"
    assert again.figures.balanced_accuracy == classifier.figures.balanced_accuracy


@BOTH
def test_the_same_tiles_give_the_same_bytes(kind: str, request: pytest.FixtureRequest) -> None:
    assert fit(kind).content == request.getfixturevalue(kind).content


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"encoder": "other"}, "encoder other, not tiny"),
        ({"weights_sha256": "c" * 64}, "weights cccccccccccc, not bbbbbbbbbbbb"),
        ({"recipe_sha256": "d" * 64}, "recipe of dddddddddddd"),
        ({"dim": 13}, "dim 13, not 12"),
        ({"stain": "e" * 64}, "stain eeeeeeeeeeee, not none"),
        ({"mpp": 0.25}, "at 0.25 µm, not of 256 px at 0.5 µm"),
        ({"tile_px": 224}, "tiles of 224 px"),
    ],
)
def test_other_embeddings_are_refused(
    linear: TileClassifier, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    path = tmp_path / "three.safetensors"
    linear.save(path)
    with pytest.raises(RecipeMismatch, match=words):
        TileClassifier.load(path, replace(SOURCE, **changed))
    TileClassifier.load(path, replace(SOURCE, mpp=0.505))  # scanners do not agree to the last digit


def test_what_means_nothing_is_refused(linear: TileClassifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[N, 12\]"):
        linear.probabilities(np.zeros((3, 11), np.float32))
    tiles = examples()
    with pytest.raises(InvalidConfig, match="'fat' has 1"):
        replace(tiles, labels=np.array([0, 1] * 44 + [0, 2]))
    with pytest.raises(InvalidConfig, match="classes"):
        replace(tiles, classes=("one",))
    with pytest.raises(InvalidConfig, match="groups"):
        replace(tiles, groups=np.zeros(90, np.int64))
    with pytest.raises(ValueError, match="labels"):
        replace(tiles, labels=tiles.labels[:-1])
    with pytest.raises(InvalidConfig, match="svm"):
        TileTraining("svm")  # type: ignore[arg-type]
    other = replace(linear, recipe=replace(linear.recipe, task="nuclei"))
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(InvalidConfig, match="a head for nuclei"):
        TileClassifier.load(tmp_path / "other.safetensors")
    broken = replace(linear, recipe=replace(linear.recipe, classes=("a", "b")))
    broken.save(tmp_path / "broken.safetensors")
    with pytest.raises(InvalidConfig, match="do not fit"):
        TileClassifier.load(tmp_path / "broken.safetensors")
