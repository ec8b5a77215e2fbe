"""Survival curves against published figures, hand counts and the log-rank test's own definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lifelines")

from coverslip.cohort.survival import (
    at_risk,
    draw_survival,
    survival_curves,
)
from coverslip.errors import InvalidConfig

COLUMNS = ("arm", "weeks", "relapse")
# Freireich et al. 1963: weeks of remission of children with leukaemia; Cox 1972, table 1
TREATED = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
RELAPSED = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def log_rank(time: np.ndarray, group: np.ndarray, event: np.ndarray) -> float:
    """Chi-square of Mantel (1966) and Peto & Peto (1972): observed less expected events of all
    groups but one, by their hypergeometric covariance summed over event times."""
    kinds = np.unique(group)
    apart, covariance = np.zeros(len(kinds)), np.zeros((len(kinds), len(kinds)))
    for t in np.unique(time[event == 1]):
        risk = np.array([(time[group == k] >= t).sum() for k in kinds], float)
        dead = np.array([((time == t) & (event == 1) & (group == k)).sum() for k in kinds])
        n, d = risk.sum(), dead.sum()
        apart += dead - risk * d / n
        if n > 1:
            spread = np.diag(risk / n) - np.outer(risk, risk) / n**2
            covariance += d * (n - d) / (n - 1) * spread
    return float(apart[1:] @ np.linalg.solve(covariance[1:, 1:], apart[1:]))


def test_a_published_trial() -> None:
    curves = survival_curves(
        [str(i) for i in range(42)],
        ["6-MP"] * 21 + ["placebo"] * 21,
        np.array(TREATED + PLACEBO, float),
        np.array(RELAPSED + [1] * 21, float),
        columns=COLUMNS,
    )
    assert curves.chi_square == pytest.approx(16.79, abs=0.005)
    assert curves.p_value == pytest.approx(4.17e-5, rel=0.01)
    treated, placebo = curves.groups
    assert (treated.name, treated.patients, treated.events, treated.median) == ("6-MP", 21, 9, 23)
    assert (placebo.patients, placebo.events, placebo.median) == (21, 21, 8)
    # Kaplan-Meier estimates at the treated's relapses, as in every textbook
    relapses = treated.steps[treated.steps[:, 5] > 0]
    np.testing.assert_array_equal(relapses[:, 0], [6, 7, 10, 13, 16, 22, 23])
    np.testing.assert_allclose(
        relapses[:, 1], [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], atol=5e-4
    )
    assert at_risk(treated, np.array([0.0, 6, 6.5, 35, 36])) == [21, 21, 17, 1, 0]
    table = curves.table()
    assert list(table.columns) == ["group", "time", "survival", "low", "high", "at_risk", "events"]
    assert table.groupby("group")["events"].sum().to_dict() == {"6-MP": 9, "placebo": 21}
    assert ((table["low"] <= table["survival"]) | (table["survival"] == 0)).all()
    assert ((table["survival"] <= table["high"]) | (table["survival"] == 0)).all()


@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_log_rank_test_is_its_definition(groups: int, seed: int) -> None:
    random = np.random.default_rng([seed, groups])
    feature = random.normal(size=60)
    time = np.ceil(random.exponential(10 * np.exp(feature / 2)))
    event = (random.random(60) < 0.7).astype(float)
    names = [str(i) for i in range(60)]
    curves = survival_curves(names, feature.tolist(), time, event, columns=COLUMNS, groups=groups)
    assert [group.patients for group in curves.groups] == [60 // groups] * groups
    place = np.argsort(np.argsort(feature)) // (60 // groups)
    assert curves.chi_square == pytest.approx(log_rank(time, place, event))


def test_what_is_unknown_is_left_out_and_named() -> None:
    time, event = np.array([1, 2, np.nan, 4, 5.0]), np.array([1, np.nan, 1, 1, 0.0])
    curves = survival_curves(
        list("abcde"), [1.0, 2.0, 3.0, None, 4.0], time, event, columns=COLUMNS
    )
    assert curves.left_out == ("b", "c", "d")
    assert [group.name for group in curves.groups] == ["arm <= 2.5", "arm > 2.5"]


def test_values_at_a_cut_are_in_the_lower_group() -> None:
    time, event = np.arange(1.0, 6), np.ones(5)
    curves = survival_curves(list("abcde"), [1, 2, 2, 3, 4], time, event, columns=COLUMNS)
    assert [(g.name, g.patients) for g in curves.groups] == [("arm <= 2", 3), ("arm > 2", 2)]


@pytest.mark.parametrize(
    ("values", "time", "event", "groups", "message"),
    [
        ([1, 2, 3, 4], [1, 2, -1, 4], [1, 1, 1, 1], 2, "'weeks' of c is below 0"),
        ([1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 1, 2], 2, "'relapse' of d is neither 0 nor 1"),
        ([1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 0, 0], 2, "no event .* happened to any of 4"),
        ([1, 1, 1, 2], [1, 2, 3, 4], [1, 1, 1, 1], 3, "too few different values"),
        ([1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 1, 1], 1, "2 groups or more, got 1"),
        (["x"] * 4, [1, 2, 3, 4], [1, 1, 1, 1], 2, "makes 1 group of 4"),
        ([None] * 4, [1, 2, 3, 4], [1, 1, 1, 1], 2, "makes 0 group"),
    ],
)
def test_what_cannot_be_compared(
    values: list[object], time: list[float], event: list[float], groups: int, message: str
) -> None:
    with pytest.raises(InvalidConfig, match=message):
        survival_curves(
            list("abcd"),
            values,
            np.array(time, float),
            np.array(event, float),
            columns=COLUMNS,
            groups=groups,
        )


def test_the_figure(tmp_path: Path) -> None:
    curves = survival_curves(
        list("abcdef"),
        [1, 2, 3, 4, 5, 6],
        np.arange(1.0, 7),
        np.array([1, 0, 1, 1, 1, 0.0]),
        columns=COLUMNS,
        groups=3,
    )
    draw_survival(curves, tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text()
    for words in ("at risk", "weeks", f"log-rank p = {curves.p_value:.3g}", "n = 2, events = 1"):
        assert words in text  # matplotlib repeats its texts as comments
