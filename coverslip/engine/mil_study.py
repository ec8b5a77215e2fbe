"""A study of a cohort: what is asked of which bags, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.engine.bag_files import FileBags
from coverslip.engine.bags import PatientBags
from coverslip.engine.clinical import ClinicalTable, MatchedTable
from coverslip.engine.covariates import Covariates
from coverslip.engine.mil_targets import Target
from coverslip.errors import InvalidConfig
from coverslip.mil.examples import MilExamples
from coverslip.mil.splits import (
    Fold,
    SplitConfig,
    cross_validation,
    nested_cross_validation,
    strata_of,
)
from coverslip.mil.tasks import Task
from coverslip.mil.training_config import MilConfig
from coverslip.settings import settings_of

Floats = npt.NDArray[np.float64]
Names = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """What a study asks and how; fields of a TOML file.

    targets        see `mil_targets`
    unit           "patient": the tiles of all slides of a patient are one bag; or "slide"
    slide          column that says which slide a row is of
    patient        column that says which patient
    patient_pattern   or a regular expression that finds the patient in a slide's name
    site           column of the hospital or scanner, for split.keep_sites
    covariates     columns that the model sees beside the tiles
    sensitivity    that operating points of two-class tasks aim at on validation bags; 0 for none
    specificity    likewise
    alternatives   tables of changes to `training`, of which each fold takes the one that does best
                   in cross-validation among the bags that it does not test
    inner_folds    of that
    resamples      of every bootstrap
    split          a table; see `mil.splits.SplitConfig`
    training       a table; see `mil.training_config.MilConfig`
    """

    targets: tuple[str, ...] = ()
    unit: str = "patient"
    slide: str = "slide"
    patient: str = "patient"
    patient_pattern: str = ""
    site: str = ""
    covariates: tuple[str, ...] = ()
    sensitivity: float = 0.95
    specificity: float = 0.95
    alternatives: tuple[dict[str, Any], ...] = ()
    inner_folds: int = 3
    resamples: int = 1000
    split: SplitConfig = field(default_factory=SplitConfig)
    training: MilConfig = field(default_factory=MilConfig)

    def __post_init__(self) -> None:
        for text in self.targets:
            Target.parse(text)
        if self.unit not in ("patient", "slide"):
            raise InvalidConfig(f"unit: patient or slide, got {self.unit!r}")
        if self.split.keep_sites and not self.site:
            raise InvalidConfig("keep_sites wants the column of the sites: site")
        if self.resamples < 1 or self.inner_folds < 2:
            raise InvalidConfig(
                f"at least 1 resample and 2 inner folds, got {self.resamples} and "
                f"{self.inner_folds}"
            )
        for name in ("sensitivity", "specificity"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidConfig(f"{name} must be in 0..1, got {getattr(self, name)}")
        self.candidates()

    def candidates(self) -> list[MilConfig]:
        """The training settings to choose from. Raises InvalidConfig for a change that is none."""
        for changes in self.alternatives:
            settings_of(MilConfig, changes)
        return [replace(self.training, **changes) for changes in self.alternatives] or [
            self.training
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """What is learned from.

    bags       a bag a patient, or a slide
    rows       of the table, one a bag
    tasks      not fitted yet
    targets    float64 [n, tasks, 2]
    patients   [n] of each bag; sites likewise, or None
    remarks    what did not match, for the report
    """

    config: StudyConfig
    bags: PatientBags
    rows: MatchedTable
    tasks: tuple[Task, ...]
    targets: Floats
    patients: Names
    sites: Names | None
    remarks: tuple[str, ...]

    @classmethod
    def of(cls, bags: FileBags, table: ClinicalTable, config: StudyConfig) -> Study:
        """Bags that the table knows and that have a tile. Raises InvalidConfig, UnknownName."""
        if not config.targets:
            raise InvalidConfig("targets: which column of the table is to be predicted?")
        units, rows, remarks = matched_bags(bags, table, config)
        asked = [Target.parse(text) for text in config.targets]
        tasks = tuple(target.task(rows) for target in asked)
        values = [target.values(task, rows) for target, task in zip(asked, tasks, strict=True)]
        sites = None
        if config.site:
            named = rows.texts(config.site)
            if unknown := [n for n, site in zip(rows.names, named, strict=True) if site is None]:
                more = f" and {len(unknown) - 1} others" if len(unknown) > 1 else ""
                raise InvalidConfig(
                    f"{table.path}: holds no {config.site} of {unknown[0]}{more}\n"
                    "  fill it in, or leave --site away"
                )
            sites = np.array(named)
        for name in config.covariates:
            rows.texts(name)
        return cls(
            config, units, rows, tasks, np.stack(values, axis=1), np.array(rows.patients), sites,
            remarks,
        )  # fmt: skip

    @property
    def facts(self) -> dict[str, Any]:
        """What made the embeddings."""
        return dict(self.bags.facts)

    def examples(self, fold: Fold) -> tuple[MilExamples, dict[str, Any]]:
        """Bags with covariates made by what a fold trains on, and how they are made."""
        if not self.config.covariates:
            return MilExamples(self.bags, self.targets), {}
        made = Covariates.fit(self.rows, self.config.covariates, fold.train.tolist())
        return MilExamples(self.bags, self.targets, made.matrix(self.rows)), made.to_dict()

    def folds(self) -> list[tuple[Fold, list[Fold]]]:
        """Each fold, and those among the bags that it does not test, where there is something to
        choose. Raises InvalidConfig."""
        config, strata = self.config, strata_of(self.tasks, self.targets)
        sites = self.sites if config.split.keep_sites else None
        if len(config.candidates()) == 1:
            return [(f, []) for f in cross_validation(self.patients, strata, config.split, sites)]
        return nested_cross_validation(
            self.patients, strata, config.split, sites, inner_folds=config.inner_folds
        )


def matched_bags(
    bags: FileBags, table: ClinicalTable, config: StudyConfig
) -> tuple[PatientBags, MatchedTable, tuple[str, ...]]:
    """(bags, their rows of the table in the same order, what did not match). Raises InvalidConfig,
    UnknownName."""
    full = [name for index, name in enumerate(bags.names) if bags.count(index)]
    matched = table.match(
        full,
        slide=config.slide,
        patient=config.patient,
        patient_pattern=config.patient_pattern,
    )
    remarks = list(matched.remarks)
    empty = dict.fromkeys(set(bags.names) - set(full), "it has no tiles")
    if missing := sorted({**bags.missing, **empty}.items()):
        name, why = missing[0]
        more = f", and {len(missing) - 1} others" if len(missing) > 1 else ""
        remarks.append(f"slides without a bag: {name} ({why}){more}")
    if config.unit == "patient":
        units, rows = PatientBags(bags, matched.patient_of), matched.by_patient()
    else:
        units, rows = PatientBags(bags, {name: name for name in matched.names}), matched
    assert units.names == rows.names
    return units, rows, tuple(remarks)


def study_config(folder: Path) -> StudyConfig:
    """Of a study that was run. Raises InvalidConfig."""
    path = folder / "study.json"
    try:
        return settings_of(StudyConfig, orjson.loads(path.read_bytes())["config"])
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, InvalidConfig) as error:
        raise InvalidConfig(
            f"{path}: cannot be read as a study ({error})\n  coverslip mil train writes it"
        ) from None
