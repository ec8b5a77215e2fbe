"""A study's models on a cohort that had no part in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coverslip.engine.bag_files import FileBags
from coverslip.engine.mil_ensemble import StudyEnsemble
from coverslip.engine.mil_prediction import StudyPrediction, bags_to_predict
from coverslip.engine.mil_study import study_config
from coverslip.engine.mil_targets import Target
from coverslip.mil.figures import task_estimates
from coverslip.mil.intervals import Estimate


@dataclass(frozen=True, slots=True)
class StudyEvaluation:
    """task -> figure -> value and interval over patients; how many bags; what did not match."""

    figures: Mapping[str, Mapping[str, Estimate]]
    bags: int
    remarks: tuple[str, ...]

    def plain(self) -> dict[str, dict[str, list[float]]]:
        """JSON-able."""
        return {
            task: {name: [e.value, e.low, e.high] for name, e in found.items()}
            for task, found in self.figures.items()
        }


def evaluate_study(
    bags: FileBags, study: Path, table: Path, device: str = "auto"
) -> StudyEvaluation:
    """Figures of the mean of a study's models. Raises InvalidConfig, UnknownName."""
    ensemble = StudyEnsemble.load(study, device)
    ensemble.require(bags.facts, str(bags.folder))
    config = study_config(study)
    asked_of = bags_to_predict(bags, ensemble, study, table)
    units, rows = asked_of.bags, asked_of.rows
    assert rows is not None  # there is a table
    asked = StudyPrediction(ensemble, asked_of.covariates, ())
    answers = [
        ensemble.answer(units.read(index), asked.beside(name)).predictions
        for index, name in enumerate(units.names)
    ]
    figures = {}
    for number, task in enumerate(ensemble.tasks):
        said = np.stack([answer[number] for answer in answers])
        target = Target.of(task).values(task, rows)
        figures[task.name] = task_estimates(
            task,
            said if task.classes else said[:, 0],
            target,
            np.array(rows.patients),
            resamples=config.resamples,
            seed=config.split.seed,
        )
    return StudyEvaluation(figures, len(units), asked_of.remarks)
