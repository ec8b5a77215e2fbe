"""Figures against scikit-learn, lifelines and counting; intervals; thresholds; temperatures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as sklearn

from coverslip.errors import InvalidConfig
from coverslip.mil import metrics
from coverslip.mil.calibration import Reliability, fitted_temperature
from coverslip.mil.figures import (
    MAIN,
    guesses,
    task_differences,
    task_estimates,
    task_figures,
    task_values,
)
from coverslip.mil.intervals import estimates, resampled_weights, wilson_interval
from coverslip.mil.operating_points import OperatingPoint, roc
from coverslip.mil.tasks import Task

Floats = npt.NDArray[np.float64]

TIME = np.array([5, 3, 3, 8, 1, 3, 9, 5, 2, 8, 4, 6.0])
EVENT = np.array([1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 1]) == 1
RISK = np.array([0.2, 1.1, 0.3, -0.5, 2.0, 1.1, -1.0, 0.2, 0.4, 0.2, 0.9, -0.3])


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.integers(6, 40), st.integers(2, 4), st.booleans())
def test_figures_of_classes_are_scikit_learns(
    seed: int, count: int, classes: int, ties: bool
) -> None:
    """Each weighting of the bags gives what scikit-learn says with it as `sample_weight`."""
    random = np.random.default_rng(seed)
    label = np.append(np.arange(classes), random.integers(classes, size=count - classes))
    chances = softmax(random.normal(size=(count, classes)) * 2, axis=1)
    if ties:
        chances = np.round(chances * 4 + 0.5)
        chances /= chances.sum(axis=1, keepdims=True)
    guess = chances.argmax(axis=1)
    weights = random.integers(1, 4, size=(3, count)).astype(float)
    score = chances[:, 1] if classes == 2 else chances
    one_hot = label if classes == 2 else np.eye(classes)[label]
    for row, w in enumerate(weights):
        named = {"sample_weight": w}
        wanted = {
            "auroc": sklearn.roc_auc_score(one_hot, score, average="macro", **named),
            "auprc": sklearn.average_precision_score(one_hot, score, average="macro", **named),
            "balanced": sklearn.balanced_accuracy_score(label, guess, **named),
            "quadratic": sklearn.cohen_kappa_score(
                label, guess, weights="quadratic", labels=range(classes), **named
            ),
            "linear": sklearn.cohen_kappa_score(
                label, guess, weights="linear", labels=range(classes), **named
            ),
            "log_loss": sklearn.log_loss(label, chances, labels=range(classes), **named),
        }
        found = {
            "auroc": metrics.over_classes(metrics.auroc, chances, label, weights),
            "auprc": metrics.over_classes(metrics.auprc, chances, label, weights),
            "balanced": metrics.balanced_accuracy(guess, label, weights),
            "quadratic": metrics.kappa(guess, label, classes, weights, 2),
            "linear": metrics.kappa(guess, label, classes, weights, 1),
            "log_loss": metrics.log_loss(chances, label, weights),
        }
        for name, value in wanted.items():
            assert found[name][row] == pytest.approx(value, abs=1e-9), name
        error = ((chances - np.eye(classes)[label]) ** 2).sum(axis=1)
        if classes == 2:
            error = (chances[:, 1] - label) ** 2
        brier = metrics.brier(chances, label, weights)[row]
        assert brier == pytest.approx(np.average(error, weights=w))
        if classes == 2:
            assert brier == pytest.approx(sklearn.brier_score_loss(label, score, **named))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 30))
def test_figures_of_numbers_are_scikit_learns(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    wanted, said = random.normal(size=(2, count)) * 3 + 100
    w = random.integers(1, 4, count).astype(float)
    weight = w[None]
    assert metrics.absolute_error(said, wanted, weight)[0] == pytest.approx(
        sklearn.mean_absolute_error(wanted, said, sample_weight=w)
    )
    assert metrics.determination(said, wanted, weight)[0] == pytest.approx(
        sklearn.r2_score(wanted, said, sample_weight=w)
    )
    correlation = np.corrcoef(np.repeat(said, w.astype(int)), np.repeat(wanted, w.astype(int)))
    assert metrics.pearson(said, wanted, weight)[0] == pytest.approx(correlation[0, 1])


def test_calibration_error_by_hand() -> None:
    chances = np.array([[0.95, 0.05], [0.95, 0.05], [0.3, 0.7], [0.3, 0.7], [0.5, 0.5], [1.0, 0.0]])
    label = np.array([0, 1, 1, 1, 0, 0])
    gaps = [abs((0.05 - 0.95) + 0.0), abs(0.3 + 0.3), abs(0.5)]  # 0.95 and 1 share the last bin
    found = metrics.calibration_error(chances, label, np.ones((1, 6)))[0]
    assert found == pytest.approx(sum(gaps) / 6)
    curve = Reliability.of(chances, label)
    np.testing.assert_allclose(curve.confidence, [0.5, 0.7, 2.9 / 3])
    np.testing.assert_allclose(curve.right, [1, 1, 2 / 3])
    assert curve.bags.tolist() == [1, 2, 3]
    assert (curve.bags * np.abs(curve.confidence - curve.right)).sum() / 6 == pytest.approx(found)


def test_concordance_against_lifelines() -> None:
    """0.8867924528 of lifelines 0.30 and scikit-survival on the same."""
    found = metrics.concordance(RISK, TIME, EVENT, np.ones((1, 12)))
    assert found[0] == pytest.approx(0.8867924528301887, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 14), st.integers(1, 6))
def test_concordance_by_counting(seed: int, count: int, values: int) -> None:
    random = np.random.default_rng(seed)
    risk, time = random.integers(values, size=(2, count)).astype(float)
    event, weight = random.random(count) < 0.6, random.integers(0, 3, size=(2, count)).astype(float)
    found = metrics.concordance(risk, time, event, weight)
    for row, w in enumerate(weight):
        right = pairs = 0.0
        for i in range(count):
            for j in range(count):
                if event[i] and (time[j] > time[i] or (time[j] == time[i] and not event[j])):
                    pairs += w[i] * w[j]
                    right += w[i] * w[j] * ((risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j]))
        np.testing.assert_allclose(found[row], right / pairs if pairs else np.nan)


def test_what_has_no_meaning_is_nan() -> None:
    one, ones = np.ones(4, np.int64), np.ones((1, 4))
    chances = np.full((4, 2), 0.5)
    constant = np.full(4, 2.0)
    for value in (
        metrics.over_classes(metrics.auroc, chances, one, ones),
        metrics.over_classes(metrics.auroc, np.full((4, 3), 1 / 3), one, ones),
        metrics.kappa(one, one, 2, ones),
        metrics.pearson(constant, np.arange(4.0), ones),
        metrics.determination(constant, constant, ones),
        metrics.concordance(constant, constant, one == 1, ones),
        metrics.balanced_accuracy(one[:0], one[:0], np.ones((1, 0))),
        metrics.log_loss(chances[:0], one[:0], np.ones((1, 0))),
        metrics.auroc(constant[:0], one[:0] == 1, np.ones((1, 0))),
    ):
        assert np.isnan(value).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 25), st.integers(1, 4))
def test_resamples_draw_whole_patients_and_lose_no_class(
    seed: int, patients: int, classes: int
) -> None:
    random = np.random.default_rng(seed)
    bags = random.integers(patients, size=40)
    label = random.integers(classes, size=40)
    weight = np.concatenate(list(resampled_weights(bags, label, resamples=20, seed=seed)))
    assert weight.shape == (20, 40)
    for patient in np.unique(bags):
        assert (np.ptp(weight[:, bags == patient], axis=1) == 0).all()
    for c in np.unique(label):
        assert (weight[:, label == c].sum(axis=1) > 0).all()
    first = np.unique(bags, return_index=True)[1]
    assert (weight[:, first].sum(axis=1) == len(first)).all()
    again = np.concatenate(list(resampled_weights(bags, label, resamples=20, seed=seed)))
    np.testing.assert_array_equal(weight, again)


def test_the_interval_of_a_mean_is_known() -> None:
    """Half-width 1.96 · spread / sqrt(n) by the central limit theorem."""
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = estimates(
        {"mean": lambda w: (w @ values) / w.sum(axis=1)}, np.arange(400), resamples=4000
    )["mean"]
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)
    # each bag four times says no more: its patient is drawn, not the bag
    repeated = np.tile(values, 4)
    fourfold = estimates(
        {"mean": lambda w: (w @ repeated) / w.sum(axis=1)}, np.tile(np.arange(400), 4),
        resamples=4000,
    )["mean"]  # fmt: skip
    assert fourfold.high - fourfold.low == pytest.approx(found.high - found.low, rel=0.05)
    alone = estimates({"mean": lambda w: w @ values[:1]}, np.zeros(1))["mean"]
    assert np.isnan([alone.low, alone.high]).all()
    assert str(found).startswith("4.9")


def test_wilson_by_published_numbers() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for hits, count, low, high in (
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):  # fmt: skip
        found = wilson_interval(hits, count)
        assert found.value == hits / count
        assert found.low == pytest.approx(low, abs=6e-5)
        assert found.high == pytest.approx(high, abs=6e-5)
    assert np.isnan(wilson_interval(0, 0).value)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(2, 40), st.sampled_from(["sensitivity", "specificity"]),
    st.sampled_from([0.07, 0.5, 0.8, 0.9, 0.95, 1.0]), st.integers(2, 50),
)  # fmt: skip
def test_a_threshold_reaches_what_is_wanted_and_not_more(
    seed: int, count: int, aim: str, wanted: float, values: int
) -> None:
    random = np.random.default_rng(seed)
    positive = np.append([True, False], random.random(count - 2) < 0.4)
    score = random.integers(values, size=count) / values
    point = OperatingPoint.chosen(score, positive, aim, wanted)  # type: ignore[arg-type]

    def shares(threshold: float) -> dict[str, float]:
        called = score >= threshold
        return {
            "sensitivity": float(called[positive].mean()),
            "specificity": float((~called[~positive]).mean()),
        }

    other = "specificity" if aim == "sensitivity" else "sensitivity"
    assert shares(point.threshold)[aim] >= wanted - 1e-9
    enough = [s for t in [*score, np.inf] if (s := shares(t))[aim] >= wanted - 1e-9]
    assert shares(point.threshold)[other] == max(s[other] for s in enough)
    found = point.performance(score, positive, np.arange(count))
    assert found.sensitivity.value == pytest.approx(shares(point.threshold)["sensitivity"])
    assert found.specificity.value == pytest.approx(shares(point.threshold)["specificity"])
    assert found.true_positives + found.false_negatives == positive.sum()
    assert found.interval == "wilson"


def test_thresholds_on_other_bags() -> None:
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1])
    positive = np.array([1, 1, 0, 1, 0, 1, 0, 0]) == 1
    point = OperatingPoint.chosen(score, positive, "sensitivity", 0.75)
    assert point.threshold == 0.6
    other = np.array([0.6, 0.59, 0.7, 0.2])
    found = point.performance(other, np.array([True, True, False, False]), np.arange(4))
    counts = (found.true_positives, found.false_positives, found.true_negatives)
    assert counts == (1, 1, 1)
    assert (found.ppv.value, found.npv.value) == (0.5, 0.5)
    assert found.sensitivity == wilson_interval(1, 2)
    by_patient = point.performance(np.tile(score, 2), np.tile(positive, 2), np.tile(range(8), 2))
    assert by_patient.interval == "bootstrap"
    assert by_patient.sensitivity.low < 0.75 < by_patient.sensitivity.high
    with pytest.raises(InvalidConfig, match="no positive bag"):
        OperatingPoint.chosen(score, ~positive & positive, "sensitivity", 0.9)
    with pytest.raises(InvalidConfig, match="a sensitivity or specificity in"):
        OperatingPoint.chosen(score, positive, "specificity", 95)
    curve = roc(score, positive)
    area = np.trapezoid(curve.true_positive_rate, curve.false_positive_rate)
    assert area == pytest.approx(metrics.auroc(score, positive, np.ones((1, 8)))[0])
    assert np.isnan(roc(score, np.ones(8, np.bool_)).true_positive_rate).all()


def test_a_temperature_undoes_overconfidence() -> None:
    random = np.random.default_rng(4)
    logits = random.normal(size=(4000, 3)) * 1.5
    label = (softmax(logits, axis=1).cumsum(axis=1) < random.random((4000, 1))).sum(axis=1)
    assert fitted_temperature(logits, label) == pytest.approx(1, abs=0.05)
    assert fitted_temperature(logits * 3, label) == pytest.approx(3, abs=0.15)
    sure = softmax(logits * 3, axis=1)
    calm = softmax(logits * 3 / fitted_temperature(logits * 3, label), axis=1)
    ones = np.ones((1, 4000))
    before, after = (metrics.calibration_error(p, label, ones)[0] for p in (sure, calm))
    assert after < 0.03 < before
    assert fitted_temperature(logits[:0], label[:0]) == 1
    assert fitted_temperature(np.eye(3) * 5, np.arange(3)) > 0.05  # three told right prove little


def test_every_kind_of_task_has_figures() -> None:
    random = np.random.default_rng(0)
    kinds = (
        Task("k", "classes", ("a", "b", "c")),
        Task("g", "ordinal", ("a", "b", "c")),
        Task("n", "number", mean=1.0, spread=2.0),
        Task("s", "survival", event="e"),
        Task("t", "survival-bins", event="e", limits=(1.0, 2.0)),
    )
    for task in kinds:
        first = random.integers(3, size=30).astype(float)
        target = np.stack([first, random.integers(2, size=30).astype(float)], axis=1)
        target[3] = np.nan
        logits = random.normal(size=(30, task.outputs))
        logits[3] = 1e6  # of the bag without a label
        said, patients = task.prediction(logits), np.arange(30) // 2
        values = task_values(task, said, target)
        found = task_estimates(task, said, target, patients, resamples=50)
        assert MAIN[task.kind] in values
        assert {name: one.value for name, one in found.items()} == pytest.approx(values)
        for name, one in found.items():
            assert one.low < one.high
            assert one.low <= one.value <= one.high or name == "ece"  # which resampling raises
        other = task.prediction(random.normal(size=(30, task.outputs)))
        beyond = task_differences(task, said, other, target, patients, resamples=50)
        for name, value in task_values(task, other, target).items():
            assert beyond[name].value == pytest.approx(values[name] - value)
        same = task_differences(task, said, said, target, patients, resamples=50)
        assert {(one.low, one.high) for one in same.values()} == {(0.0, 0.0)}
        nothing = task_values(task, said, np.full((30, 2), np.nan))
        assert np.isnan(list(nothing.values())).all()
        said[0] = np.inf
        with pytest.raises(ValueError, match="not finite"):
            task_figures(task, said, target)


def test_the_middle_grade_is_named() -> None:
    chances = np.array([[0.4, 0.25, 0.35], [0.5, 0.2, 0.3], [0.1, 0.3, 0.6]])
    assert guesses(Task("g", "ordinal", ("a", "b", "c")), chances).tolist() == [1, 0, 2]
    assert guesses(Task("g", "classes", ("a", "b", "c")), chances).tolist() == [0, 0, 2]
