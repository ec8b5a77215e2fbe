"""Every patient on one side, tested once a repeat; classes as even as they can be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.errors import InvalidConfig
from coverslip.mil.splits import (
    Fold,
    SplitConfig,
    Strata,
    cross_validation,
    nested_cross_validation,
    require_apart,
    strata_of,
)
from coverslip.mil.tasks import Task


def cohort(
    seed: int, patients: int, classes: int, unknown: float = 0.0
) -> tuple[npt.NDArray[np.str_], Strata]:
    """One to three bags a patient, in any order; a class a patient."""
    random = np.random.default_rng(seed)
    label = random.integers(classes, size=patients)
    label[random.random(patients) < unknown] = -1
    bags = random.permutation(np.repeat(np.arange(patients), random.integers(1, 4, patients)))
    names = np.array([f"P{p:03}" for p in range(patients)])
    return names[bags], Strata(label[bags], tuple("abcdef"[:classes]))


def patients_by_class(
    names: npt.NDArray[np.str_], strata: Strata, bags: npt.NDArray[np.int64]
) -> list[int]:
    return [len(np.unique(names[bags][strata.label[bags] == c])) for c in range(len(strata.names))]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(20, 90), st.integers(1, 4), st.integers(2, 5),
    st.integers(1, 2), st.sampled_from([0.0, 0.2]), st.sampled_from([0.1, 0.25, 0.5]),
)  # fmt: skip
def test_patients_are_parted(
    seed: int, patients: int, classes: int, folds: int, repeats: int, unknown: float, share: float
) -> None:
    names, strata = cohort(seed, patients, classes, unknown)
    config = SplitConfig(folds, repeats, share, seed=seed)
    whole = patients_by_class(names, strata, np.arange(len(names)))
    if min(whole) < max(folds, 4 if folds == 2 else 0):
        with pytest.raises(InvalidConfig, match=f"{folds} folds"):
            cross_validation(names, strata, config)
        return
    found = cross_validation(names, strata, config)
    assert len(found) == folds * repeats
    for fold in found:
        sides = [fold.train, fold.validation, fold.test]
        assert sorted(np.concatenate(sides).tolist()) == list(range(len(names)))
        held = [set(names[side]) for side in sides]
        assert sum(map(len, held)) == patients
        for side in sides:
            assert min(patients_by_class(names, strata, side)) > 0
    for repeat in range(repeats):
        tested = [fold.test for fold in found if fold.repeat == repeat]
        assert sorted(np.concatenate(tested).tolist()) == list(range(len(names)))
        by_class = np.array([patients_by_class(names, strata, side) for side in tested])
        assert np.ptp(by_class, axis=0).max() <= 1
        sizes = [len(set(names[side])) for side in tested]
        assert max(sizes) - min(sizes) <= 1
        for fold, parts in zip(found[repeat * folds :], by_class, strict=False):
            for c, count in enumerate(patients_by_class(names, strata, fold.validation)):
                assert abs(count - share * (whole[c] - parts[c])) <= 1 + 1e-9


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(8, 30), st.integers(2, 4))
def test_sites_are_kept_together(seed: int, sites: int, folds: int) -> None:
    names, strata = cohort(seed, 120, 2)
    random = np.random.default_rng(seed)
    at = random.integers(sites, size=120)[np.char.lstrip(names, "P").astype(int)]
    config = SplitConfig(folds, 1, 0.25, keep_sites=True, seed=seed)
    found = cross_validation(names, strata, config, at)
    assert sorted(np.concatenate([fold.test for fold in found]).tolist()) == list(range(len(names)))
    for fold in found:
        for side in ("train", "validation", "test"):
            assert len(getattr(fold, side))
        require_apart(fold, at, "site")
        require_apart(fold, names)
        assert min(patients_by_class(names, strata, fold.train)) > 0


def test_sites_of_many_patients_are_spread() -> None:
    """Twelve sites of ten patients each, all of one class at each: as even as can be."""
    at = np.repeat(np.arange(12), 10)
    strata = Strata(at % 2, ("a", "b"))
    found = cross_validation(np.arange(120), strata, SplitConfig(3, 1, 0.5, keep_sites=True), at)
    for fold in found:
        for side in (fold.train, fold.validation, fold.test):
            assert np.bincount(strata.label[side]).tolist() == [20, 20]


def test_sites_that_share_a_patient_are_one() -> None:
    patients = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    at = np.array([0, 1, 0, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    strata = Strata(np.zeros(12, np.int64), ("any",))
    for fold in cross_validation(patients, strata, SplitConfig(3, keep_sites=True), at):
        sides = [{int(s) for s in at[side]} for side in (fold.train, fold.validation, fold.test)]
        assert sum({0, 1} <= side for side in sides) == 1


def test_names_and_seed_decide_not_the_order_of_bags() -> None:
    names, strata = cohort(5, 40, 2)
    order = np.random.default_rng(0).permutation(len(names))
    turned = Strata(strata.label[order], strata.names)
    config = SplitConfig(4, 2, seed=3)
    one = cross_validation(names, strata, config)
    other = cross_validation(names[order], turned, config)
    for a, b in zip(one, other, strict=True):
        assert set(names[a.train]) == set(names[order][b.train])
        assert set(names[a.test]) == set(names[order][b.test])
    again = cross_validation(names, strata, replace(config, seed=4))
    assert any(set(names[a.test]) != set(names[b.test]) for a, b in zip(one, again, strict=True))
    assert set(names[one[0].test]) != set(names[one[4].test])  # of the second repeat


def test_inner_folds_never_see_what_is_tested() -> None:
    names, strata = cohort(7, 60, 3)
    for outer, inner in nested_cross_validation(names, strata, SplitConfig(4), inner_folds=3):
        assert len(inner) == 3
        rest = outer.rest.tolist()
        assert sorted(np.concatenate([fold.test for fold in inner]).tolist()) == rest
        for fold in inner:
            assert sorted([*fold.rest, *fold.test]) == rest
            require_apart(fold, names)


def test_what_cannot_be_split() -> None:
    patients, label = np.arange(30), np.repeat([0, 1], [27, 3])
    strata = Strata(label, ("benign", "malignant"))
    with pytest.raises(InvalidConfig, match=r"class 'malignant' has 3 patients, but 5 folds"):
        cross_validation(patients, strata, SplitConfig(5))
    with pytest.raises(InvalidConfig, match=r"'rare' has 0 patients"):
        cross_validation(patients, Strata(label, ("benign", "malignant", "rare")), SplitConfig(3))
    with pytest.raises(InvalidConfig, match=r"'malignant' has 3 patients.*at least 4"):
        cross_validation(patients, strata, SplitConfig(2))
    with pytest.raises(InvalidConfig, match="3 patients, but 5 folds"):
        cross_validation(patients[:3], Strata(label[:3], ("benign",)), SplitConfig(5))
    sites = np.where(label == 1, 0, np.arange(30) % 6)
    keep = SplitConfig(3, keep_sites=True)
    with pytest.raises(InvalidConfig, match="'malignant' has 1 sites"):
        cross_validation(patients, strata, keep, sites)
    with pytest.raises(InvalidConfig, match="wants the site"):
        cross_validation(patients, strata, keep)
    for wrong in ({"folds": 1}, {"repeats": 0}, {"validation": 0.0}, {"seed": -1}):
        with pytest.raises(InvalidConfig):
            SplitConfig(**wrong)  # type: ignore[arg-type]


def test_patients_on_two_sides_are_named() -> None:
    patients = np.array(["Ann", "Ann", "Bob", "Cid"])
    fold = Fold(0, 2, np.array([0]), np.array([2]), np.array([1, 3]))
    with pytest.raises(InvalidConfig, match=r"1 patients on two sides: Ann \(train and test\)"):
        require_apart(fold, patients)
    require_apart(replace(fold, test=np.array([3])), patients)
    with pytest.raises(InvalidConfig, match="in train twice"):
        require_apart(replace(fold, train=np.array([0, 0])), patients)


def test_what_is_kept_even() -> None:
    number, kind = Task("x", "number"), Task("k", "classes", ("a", "b"))
    survival = Task("t", "survival", event="dead")
    targets = np.zeros((3, 3, 2))
    targets[:, 1] = [[1, 0], [np.nan, 0], [0, 0]]
    targets[:, 2] = [[5, 1], [7, 0], [np.nan, np.nan]]
    assert strata_of((number, kind, survival), targets).label.tolist() == [1, -1, 0]
    found = strata_of((number, survival), targets[:, [0, 2]])
    assert found.label.tolist() == [1, 0, -1]
    assert found.names == ("no dead", "dead")
    assert strata_of((number,), targets[:, :1]).label.tolist() == [0, 0, 0]
