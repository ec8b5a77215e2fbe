"""Measures of segmentation against cases small enough to count by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.heads.metrics import (
    Overlaps,
    aggregated_jaccard,
    aggregated_jaccard_plus,
    by_class,
    dice,
    f1_at,
    panoptic_quality,
)

Labels = npt.NDArray[np.int32]


def row(text: str) -> Labels:
    """One row of pixels; "." is background."""
    return np.array([[0 if c == "." else int(c) for c in text]], np.int32)


def test_the_same_is_perfect_whatever_its_numbers() -> None:
    true, renamed = row("11..222.3"), row("77..444.9")
    assert aggregated_jaccard(true, renamed) == aggregated_jaccard_plus(true, renamed) == 1
    assert panoptic_quality(true, renamed).pq == dice(true, renamed) == f1_at(true, renamed) == 1


def test_counted_by_hand() -> None:
    true = row("1111..2222..33")
    found = row("111...2222222.")
    # 1: 3 of 4 px; 2: 4 px of a prediction of 7; 3: one px of that same prediction
    quality = panoptic_quality(true, found)
    assert quality.dq == pytest.approx(2 * 2 / 5)
    assert quality.sq == pytest.approx((3 / 4 + 4 / 7) / 2)
    assert quality.pq == pytest.approx(quality.dq * quality.sq)
    # object 3's best prediction is the second again: 1 shared of 8
    assert aggregated_jaccard(true, found) == pytest.approx((3 + 4 + 1) / (4 + 7 + 8))
    # used once: object 3 is missed
    assert aggregated_jaccard_plus(true, found) == pytest.approx((3 + 4) / (4 + 7 + 2))
    assert dice(true, found) == pytest.approx(2 * 8 / (10 + 10))
    assert f1_at(true, found, 0.5) == pytest.approx(4 / 5)
    assert f1_at(true, found, 0.7) == pytest.approx(2 / 5)


def test_a_split_and_a_spare_count_against() -> None:
    true, found = row("1111...."), row("1122..33")
    assert aggregated_jaccard(true, found) == pytest.approx(2 / (4 + 2 + 2))
    assert panoptic_quality(true, found).pq == 0  # IoU of exactly 0.5 is no match


@pytest.mark.parametrize("full", [False, True])
def test_no_background_is_no_object(full: bool) -> None:
    true = np.ones((3, 3), np.int32) if full else row("1.")
    assert aggregated_jaccard(true, true) == 1


def test_nothing_at_all_is_not_a_number() -> None:
    empty, some = np.zeros((4, 4), np.int32), np.eye(4, dtype=np.int32)
    measures = (aggregated_jaccard, aggregated_jaccard_plus, dice, f1_at)
    assert all(np.isnan(measure(empty, empty)) for measure in measures)
    assert np.isnan(panoptic_quality(empty, empty).pq)
    assert all(measure(empty, some) == measure(some, empty) == 0 for measure in measures)
    assert panoptic_quality(empty, some).pq == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.3, 0.5, 0.7]))
def test_matches_are_those_of_the_package_stardist(seed: int, iou: float) -> None:
    matching = pytest.importorskip("stardist.matching")
    random = np.random.default_rng(seed)
    true = _blobs(random)
    predicted = np.roll(true, tuple(random.integers(-2, 3, 2)), (0, 1))
    predicted = np.where(np.isin(predicted, random.integers(1, 30, 6)), 0, predicted)
    peer = matching.matching(true, predicted, thresh=iou)
    if peer.n_true + peer.n_pred:
        assert f1_at(true, predicted, iou) == pytest.approx(peer.f1)
    peer = matching.matching(true, predicted, thresh=0.5)
    if peer.tp:  # an IoU of exactly 0.5 is a match there, and none by the definition of PQ
        tied = (Overlaps.of(true, predicted).iou == 0.5).any()
        assert tied or panoptic_quality(true, predicted).pq == pytest.approx(peer.panoptic_quality)


def _blobs(random: np.random.Generator) -> npt.NDArray[np.int32]:
    """Some thirty cells of a Voronoi diagram, cut to discs."""
    centre = random.uniform(0, 48, (30, 2))
    v, u = np.mgrid[:48, :48]
    far = np.hypot(v[..., None] - centre[:, 0], u[..., None] - centre[:, 1])
    return np.where(far.min(axis=2) < 4, far.argmin(axis=2) + 1, 0).astype(np.int32)


def test_each_class_by_itself() -> None:
    true = np.zeros((8, 24), np.int32)
    for i in range(3):
        true[2:6, 8 * i + 1 : 8 * i + 5] = i + 1
    predicted = true.copy()
    predicted[true == 2] = 0  # the second is missed, and the third called by the wrong class
    found = by_class(
        lambda a, b: panoptic_quality(a, b).pq,
        true, np.array([0, 0, 1]), np.where(predicted == 3, 2, predicted), np.array([0, 2]), 4,
    )  # fmt: skip
    # class 0: one of two found: DQ = 2 / 3; class 1 missed; class 2 invented; class 3 unknown here
    np.testing.assert_allclose(found, [2 / 3, 0, 0, np.nan])
