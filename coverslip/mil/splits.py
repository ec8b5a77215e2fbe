"""Which bags are trained on, watched and tested: no patient is ever on two sides.

Patients are dealt one after the other, each to the part that has the fewest of its kind for its
size. What comes out depends on names and seed, not on the order of the bags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from coverslip.errors import InvalidConfig
from coverslip.mil.tasks import Task

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Names = npt.NDArray[Any]

SHOWN = 3
"""Patients that a message names."""


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """How bags are split; fields of a TOML file.

    folds        of cross-validation
    repeats      of it, each with other folds
    validation   share of a fold's remaining patients that is not trained on, but stops the training
                 and chooses thresholds
    keep_sites   all patients of a site are on one side: what is learned of a hospital's scanner and
                 stain is then no help (Howard et al. 2021, doi:10.1038/s41467-021-24698-1)
    seed         of all draws
    """

    folds: int = 5
    repeats: int = 1
    validation: float = 0.2
    keep_sites: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2 or self.repeats < 1:
            raise InvalidConfig(
                f"at least 2 folds and 1 repeat, got {self.folds} and {self.repeats}"
            )
        if not 0 < self.validation <= 0.5:
            raise InvalidConfig(f"validation must be above 0, at most 0.5, got {self.validation}")
        if self.seed < 0:
            raise InvalidConfig(f"seed must be at least 0, got {self.seed}")


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """Rising indices of bags, int64; `repeat` and `number` count from 0."""

    repeat: int
    number: int
    train: Integers
    validation: Integers
    test: Integers

    @property
    def name(self) -> str:
        """ "<repeat>-<fold>", as its folder is called."""
        return f"{self.repeat}-{self.number}"

    @property
    def rest(self) -> Integers:
        """All that is not tested."""
        return np.sort(np.concatenate([self.train, self.validation]))


class Strata(NamedTuple):
    """What is kept even over the parts.

    label   int64 [n] of bags, -1 where not known
    names   of what is counted, for messages
    """

    label: Integers
    names: tuple[str, ...]


def strata_of(tasks: Sequence[Task], targets: Floats) -> Strata:
    """Classes of the first task that has some, else whether the event of the first that has one
    happened, else one stratum.

    targets   [n, tasks, 2]
    """
    for number, task in enumerate(tasks):
        if task.classes:
            known, names = task.known(targets[:, number]), task.classes
            return Strata(_label(targets[:, number, 0], known), names)
    for number, task in enumerate(tasks):
        if task.event:
            known = task.known(targets[:, number])
            names = (f"no {task.event}", task.event)
            return Strata(_label(targets[:, number, 1], known), names)
    return Strata(np.zeros(len(targets), np.int64), ("labelled",))


def cross_validation(
    patients: Names, strata: Strata, config: SplitConfig, sites: Names | None = None
) -> list[Fold]:
    """folds · repeats folds; in each repeat every bag is tested once.

    patients   [n], of each bag
    sites      [n]; wanted where they are kept together. Sites that share a patient are one

    Every part of every fold holds every class, and numbers of patients of a class differ by at most
    one between the tested parts. Where sites are kept together, or a patient has bags of several
    classes, parts are only as even as those allow, and only what is trained on is sure to hold
    every class.
    Raises InvalidConfig where that cannot be: it names the class, its patients or sites, the folds.
    """
    every = np.arange(len(patients))
    return _folds(every, patients, strata, config, sites, (config.seed,))


def nested_cross_validation(
    patients: Names,
    strata: Strata,
    config: SplitConfig,
    sites: Names | None = None,
    *,
    inner_folds: int = 3,
) -> list[tuple[Fold, list[Fold]]]:
    """Each fold with the folds of what it does not test: settings are chosen by the tested parts of
    the inner folds, and judged on that of the outer one. Raises InvalidConfig."""
    inner = SplitConfig(inner_folds, 1, config.validation, config.keep_sites, config.seed)
    return [
        (
            fold,
            _folds(
                fold.rest, patients, strata, inner, sites, (config.seed, fold.repeat, fold.number)
            ),
        )
        for fold in cross_validation(patients, strata, config, sites)
    ]


def require_apart(fold: Fold, patients: Names, what: str = "patient") -> None:
    """Raises InvalidConfig, naming the first of them, where patients are on two sides of a fold,
    or a bag is.

    patients   [n] of all bags; or their sites
    what       they are, for the message
    """
    sides = {"train": fold.train, "validation": fold.validation, "test": fold.test}
    side_of: dict[Any, str] = {}
    both: dict[Any, str] = {}
    for side, bags in sides.items():
        if len(np.unique(bags)) < len(bags):
            raise InvalidConfig(f"fold {fold.number}: a bag is in {side} twice")
        for name in np.unique(patients[bags]).tolist():
            if (other := side_of.setdefault(name, side)) != side:
                both.setdefault(name, f"{name} ({other} and {side})")
    if both:
        shown = ", ".join(list(both.values())[:SHOWN]) + (", ..." if len(both) > SHOWN else "")
        raise InvalidConfig(
            f"fold {fold.number} of repeat {fold.repeat}: {len(both)} {what}s on two sides: {shown}"
        )


def _folds(
    bags: Integers,
    patients: Names,
    strata: Strata,
    config: SplitConfig,
    sites: Names | None,
    seed: tuple[int, ...],
) -> list[Fold]:
    """Cross-validation among some of the bags."""
    if config.keep_sites and sites is None:
        raise InvalidConfig("keep_sites wants the site of every patient")
    _, patient = np.unique(patients[bags], return_inverse=True)  # (bags)
    unit = patient
    if config.keep_sites and sites is not None:
        unit = _connected(patient, np.unique(sites[bags], return_inverse=True)[1])
    counts = _counts(unit, patient, strata.label[bags])  # (units, strata and the unknown)
    whole = "sites" if config.keep_sites else "patients"
    _require_enough(counts, strata.names, config, whole)
    found = []
    for repeat in range(config.repeats):
        generator = np.random.default_rng([*seed, repeat])
        even = np.full(config.folds, 1 / config.folds)
        part = _dealt(counts, even, generator)  # (units)
        for number in range(config.folds):
            rest = np.flatnonzero(part != number)
            shares = np.array([1 - config.validation, config.validation])
            side = np.full(len(counts), 2)
            side[rest] = _dealt(counts[rest], shares, generator)
            fold = Fold(repeat, number, *(bags[side[unit] == s] for s in range(3)))
            _require_whole(fold, strata, counts[side == 0], whole)
            require_apart(fold, patients)
            found.append(fold)
    return found


def _dealt(counts: Integers, shares: Floats, generator: np.random.Generator) -> Integers:
    """The part [units] that each unit goes to.

    counts   [units, strata], patients
    shares   [parts], what each is to have of all; of equals the first is served first

    Large units go first, then stratum by stratum. One goes where there are the fewest patients of
    its strata for the part's share, each stratum weighed by its size; else where there are the
    fewest of all. For single patients and even shares, that keeps the numbers of every stratum, and
    of all, within one of each other.
    """
    order = generator.permutation(len(counts))
    size, stratum = counts.sum(axis=1)[order], counts.argmax(axis=1)[order]
    order = order[np.lexsort([stratum, -size])]
    weight = 1 / np.maximum(counts.sum(axis=0), 1)
    have = np.zeros((len(shares), counts.shape[1]))
    part = np.empty(len(counts), np.int64)
    for unit in order:
        kin = have @ (counts[unit] * weight) / shares
        everybody = have.sum(axis=1) / shares
        # rounded: sums in another order differ in their last bits, and chance would decide
        part[unit] = np.lexsort([everybody.round(9), kin.round(9)])[0]
        have[part[unit]] += counts[unit]
    return part


def _counts(unit: Integers, patient: Integers, label: Integers) -> Integers:
    """Patients [units, strata] that have a bag of each stratum; the last counts the unknown."""
    last = int(label.max(initial=-1)) + 1
    seen = np.unique(np.stack([unit, patient, np.where(label < 0, last, label)]), axis=1)
    counts = np.zeros((int(unit.max(initial=-1)) + 1, last + 1), np.int64)
    np.add.at(counts, (seen[0], seen[2]), 1)
    return counts


def _connected(patient: Integers, site: Integers) -> Integers:
    """[n] number of the group of sites: those that share patients are one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes = int(patient.max(initial=-1)) + 1
    size = nodes + int(site.max(initial=-1)) + 1
    links = coo_array((np.ones(len(patient)), (patient, nodes + site)), shape=(size, size))
    group = connected_components(links, directed=False)[1][patient]
    _, found = np.unique(group, return_inverse=True)
    return np.asarray(found, np.int64)


def _require_enough(
    counts: Integers, names: Sequence[str], config: SplitConfig, whole: str
) -> None:
    """Of every class for every fold, and two more to train and to validate where one is tested."""
    least = config.folds if config.folds > 2 else 4
    folds = f"{config.folds} folds, each with a validation part,"
    if len(counts) < least:
        raise InvalidConfig(
            f"{len(counts)} {whole}, but {folds} need at least {least} of them\n"
            "  ask for fewer folds, or bring more data"
        )
    held = np.count_nonzero(counts, axis=0)
    for stratum, name in enumerate(names):
        have = int(held[stratum]) if stratum < counts.shape[1] - 1 else 0
        if have < least:
            raise InvalidConfig(
                f"class {name!r} has {have} {whole}, but {folds} need at least {least} of each "
                "class\n  ask for fewer folds, merge or leave out the class, or bring more data"
            )


def _require_whole(fold: Fold, strata: Strata, trained: Integers, whole: str) -> None:
    """Parts that are not empty, and every class in what is trained on."""
    where = f"fold {fold.number} of repeat {fold.repeat}"
    for name in ("train", "validation", "test"):
        if not len(getattr(fold, name)):
            raise InvalidConfig(f"{where}: no {whole} are left for {name}; ask for fewer folds")
    lacking = np.flatnonzero(trained.sum(axis=0)[: len(strata.names)] == 0)
    if len(lacking):
        raise InvalidConfig(
            f"{where}: no {whole} of class {strata.names[lacking[0]]!r} are left to train on\n"
            "  ask for fewer folds, or do without keep_sites"
        )


def _label(value: Floats, known: npt.NDArray[np.bool_]) -> Integers:
    return np.where(known, np.nan_to_num(value), -1).astype(np.int64)
