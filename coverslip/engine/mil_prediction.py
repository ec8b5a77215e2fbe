"""A study's models on bags: predictions, and what in each slide they come from.

predictions/<study>@<encoder>@<grid>/   prediction, spread float32 [P]: mean over the study's models
                                        and their standard deviation; attention float32 [N], which
                                        sums to 1 over the bag's tiles; contributions float32
                                        [N, C], of models that add up; attrs: names of both, unit

A bag that is a patient has the same prediction in each of its slides, and attention that sums to 1
over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.durable import write_csv
from coverslip.engine.bag_files import FileBags
from coverslip.engine.bags import PatientBags, StoredBags
from coverslip.engine.clinical import ClinicalTable, MatchedTable
from coverslip.engine.covariates import Covariates
from coverslip.engine.mil_ensemble import BagAnswer, StudyEnsemble, prediction_names
from coverslip.engine.mil_pictures import SlideAnswer, write_pictures
from coverslip.engine.mil_study import matched_bags, study_config
from coverslip.engine.slide_files import SlideFiles
from coverslip.errors import CoverslipError, InvalidConfig
from coverslip.tiling.lock import lock
from coverslip.tiling.store import SlideStore

FORMATS = ("geojson", "png", "sheet")
PREFIX = "predictions/"


@dataclass(frozen=True, slots=True)
class BagPrediction:
    """What became of one bag.

    slides    whose tiles it is
    numbers   the predictions of all tasks, one after the other; spread likewise
    files     written for its slides
    changed   False where everything was there already
    """

    name: str
    slides: tuple[str, ...]
    tiles: int
    numbers: npt.NDArray[np.float32]
    spread: npt.NDArray[np.float32]
    files: tuple[Path, ...]
    changed: bool


@dataclass(frozen=True, eq=False)
class StudyPrediction:
    """What is asked of all bags.

    covariates   bag -> float32 [c] for each of the models; None where they take none
    formats      of FORMATS, for bags from stores
    slides       files and folders, for the contact sheets' pictures
    notes        what a person should know of pictures that are missing
    """

    ensemble: StudyEnsemble
    covariates: Mapping[str, Sequence[npt.NDArray[np.float32]]] | None = None
    formats: Sequence[str] = FORMATS
    slides: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise InvalidConfig(f"export knows {', '.join(FORMATS)}; got {unknown[0]!r}")

    @property
    def names(self) -> list[str]:
        """Of the numbers that are predicted."""
        return [name for task in self.ensemble.tasks for name in prediction_names(task)]

    def beside(self, bag: str) -> Sequence[npt.NDArray[np.float32] | None]:
        """A bag's covariates for each model. Raises InvalidConfig where they are not known."""
        models = len(self.ensemble.networks)
        if not self.ensemble.records[0].covariates:
            return [None] * models
        if self.covariates is None or bag not in self.covariates:
            raise InvalidConfig(
                f"bag {bag}: study {self.ensemble.name} looks at covariates beside the tiles\n"
                "  name the table that holds them: --table"
            )
        return self.covariates[bag]


def predict(
    bags: PatientBags, asked: StudyPrediction
) -> Iterator[tuple[str, BagPrediction | CoverslipError]]:
    """(bag, what is said of it or what went wrong), bag by bag.

    Answers of bags from stores are kept there, with their files beside the stores; what is current
    is left alone. `asked.notes` grows by why a picture is missing.

    Raises InvalidConfig for embeddings that the study was not trained on.
    """
    asked.ensemble.require(bags.facts, str(bags.bags.folder))
    with SlideFiles(asked.slides) as files:
        for index, name in enumerate(bags.names):
            try:
                yield name, _predicted(bags, index, asked, files)
            except CoverslipError as error:
                yield name, error
            asked.notes.extend(files.notes[len(asked.notes) :])


def write_predictions(path: Path, names: Sequence[str], found: Sequence[BagPrediction]) -> Path:
    """A CSV with a row a bag: what is predicted, and how far the study's models differ."""
    head = ["bag", "slides", "tiles", *names, *(f"{name} (spread)" for name in names)]
    rows = [
        [bag.name, " ".join(bag.slides), bag.tiles]
        + [f"{value:.6g}" for value in (*bag.numbers, *bag.spread)]
        for bag in found
    ]
    write_csv(path, [head, *rows])
    return path


def _predicted(
    bags: PatientBags, index: int, asked: StudyPrediction, files: SlideFiles
) -> BagPrediction:
    name, source = bags.names[index], bags.bags
    slides = tuple(source.names[slide] for slide in bags.slides[index])
    if not bags.count(index):
        raise InvalidConfig(f"bag {name}: has no tiles")
    beside = asked.beside(name)
    if not isinstance(source, StoredBags):
        answer = asked.ensemble.answer(bags.read(index), beside)
        numbers, spread = _numbers(answer)
        return BagPrediction(name, slides, bags.count(index), numbers, spread, (), True)
    stores = [SlideStore.open(source.folder / f"{slide}.zarr") for slide in slides]
    parameters = {
        "study": asked.ensemble.sha256,
        "bag": {
            slide: store.record(source.stage).hash
            for slide, store in zip(slides, stores, strict=True)
        },
        "covariates": [None if row is None else row.tolist() for row in beside],
    }
    stage = f"{PREFIX}{asked.ensemble.name}@{source.stage.removeprefix('features/')}"
    if changed := any(
        not store.is_current(stage, parameters, needs=[source.stage]) for store in stores
    ):
        answer = asked.ensemble.answer(bags.read(index), beside)
        for (_, rows), store in zip(bags.rows(index), stores, strict=True):
            _keep(
                store, stage, parameters, source.stage, asked, answer, slice(rows.start, rows.stop)
            )
    written: list[Path] = []
    for slide, store in zip(slides, stores, strict=True):
        with lock(store.path):
            anew, paths = write_pictures(
                SlideAnswer.of(SlideStore.open(store.path), slide, stage), asked.formats, files
            )
        changed |= anew
        written += paths
    group = SlideStore.open(stores[0].path).group(stage)
    return BagPrediction(
        name, slides, bags.count(index), group["prediction"][:], group["spread"][:],
        tuple(written), changed,
    )  # fmt: skip


def _keep(
    store: SlideStore,
    stage: str,
    parameters: Mapping[str, Any],
    features: str,
    asked: StudyPrediction,
    answer: BagAnswer,
    rows: slice,
) -> None:
    """A bag's answer in the store of one of its slides, which `rows` of it are."""
    numbers, spread = _numbers(answer)
    columns = {"prediction": numbers, "spread": spread, "attention": answer.attention[rows]}
    adds_up = len(answer.contributions) > 0
    if adds_up:
        columns["contributions"] = answer.contributions[rows]
    with lock(store.path), store.stage(stage, parameters, needs=[features]) as writer:
        if writer.done_blocks == 0:
            writer.append_block(0, columns)
        writer.finish(
            {
                "names": asked.names,
                "contribution_names": asked.ensemble.contribution_names() if adds_up else [],
                "unit": asked.ensemble.unit,
                "tiles": len(answer.attention),
            }
        )


def _numbers(answer: BagAnswer) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(predictions, their spread) of all tasks."""
    return (
        np.concatenate(answer.predictions).astype(np.float32),
        np.concatenate(answer.spread).astype(np.float32),
    )


@dataclass(frozen=True, slots=True, eq=False)
class BagsToPredict:
    """Bags as a study has them.

    rows         of the table, one a bag; None without a table
    covariates   bag -> float32 [c] for each model; None where they take none
    remarks      what did not match
    """

    bags: PatientBags
    rows: MatchedTable | None
    covariates: dict[str, list[npt.NDArray[np.float32]]] | None
    remarks: tuple[str, ...] = ()


def bags_to_predict(
    bags: FileBags, ensemble: StudyEnsemble, study: Path, table: Path | None
) -> BagsToPredict:
    """table   says whose each slide is, and holds the covariates; without it every slide is a bag

    Raises InvalidConfig, UnknownName.
    """
    made = [record.facts.get("covariates") or {} for record in ensemble.records]
    if table is None:
        if any(made):
            names = ", ".join(Covariates.from_dict(made[0]).names)
            raise InvalidConfig(
                f"study {ensemble.name} looks at {names} beside the tiles\n"
                "  name the table that holds them: --table"
            )
        full = {name: name for index, name in enumerate(bags.names) if bags.count(index)}
        return BagsToPredict(PatientBags(bags, full), None, None)
    config = replace(study_config(study), unit=ensemble.unit)
    units, rows, remarks = matched_bags(bags, ClinicalTable.read(table), config)
    if not any(made):
        return BagsToPredict(units, rows, None, remarks)
    matrices = [Covariates.from_dict(content).matrix(rows) for content in made]
    beside = {name: [m[i] for m in matrices] for i, name in enumerate(units.names)}
    return BagsToPredict(units, rows, beside, remarks)
