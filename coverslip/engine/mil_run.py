"""A study from beginning to end.

study/
  study.json          settings, tasks, what made the embeddings, what did not match
  folds/              see `mil_folds`
  folds.csv           bag, patient, repeat, fold, part
  predictions.csv     every bag while it was held out, by the model and by the linear baseline
  figures.csv         every figure with its interval
  report.html         the same to look at
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import orjson

from coverslip import __version__
from coverslip.durable import replace_file
from coverslip.engine.mil_figures import TaskFigures, study_figures, write_tables
from coverslip.engine.mil_folds import Observer, StudyFolds
from coverslip.engine.mil_report import write_study_report
from coverslip.engine.mil_study import Study
from coverslip.mil.tasks import task_records


def run_study(
    study: Study, folder: Path, *, device: str = "auto", observer: Observer | None = None
) -> list[TaskFigures]:
    """Train and test every fold, write what came of it, and return the figures of each task.

    What is trained already is not trained again. Raises InvalidConfig: a folder of another study,
    splits that cannot be made, a training that fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = list(StudyFolds(study, folder / "folds", device, observer).results())
    found = study_figures(study, results)
    settings = orjson.dumps(asdict(study.config), option=orjson.OPT_INDENT_2)
    record = {
        "software": f"coverslip {__version__}",
        "config": asdict(study.config),
        "tasks": task_records(study.tasks),
        "embeddings": study.facts,
        "remarks": list(study.remarks),
    }
    replace_file(folder / "study.json", orjson.dumps(record, option=orjson.OPT_INDENT_2))
    write_tables(folder, study, results, found)
    write_study_report(folder, study, results, found, settings.decode())
    return found
