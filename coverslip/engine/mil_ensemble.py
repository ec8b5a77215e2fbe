"""A study's trained folds as one: what they say of a bag together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.engine.bag_files import facts_difference
from coverslip.errors import InvalidConfig
from coverslip.mil.model_file import MilRecord, load_model
from coverslip.mil.tasks import Task, places

Floats = npt.NDArray[np.float64]
CALIBRATION = "calibration.json"
"""Beside a fold's model: task -> temperature."""


class BagAnswer(NamedTuple):
    """What the models say of a bag, the mean over models.

    predictions     a list entry a task; see `Task.prediction`, of one bag
    spread          standard deviation over models of the same
    attention       float32 [n], summing to 1; the mean over branches, too
    contributions   float32 [n, columns] that add up to logits, for models that do; else [0, ...]
    """

    predictions: list[Floats]
    spread: list[Floats]
    attention: npt.NDArray[np.float32]
    contributions: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class StudyEnsemble:
    """The models of a study's folds.

    name         the study's
    records, networks, temperatures   of each model; temperatures of each task
    sha256       of all models' files together
    """

    name: str
    records: Sequence[MilRecord]
    networks: Sequence[Any]
    temperatures: Sequence[Mapping[str, float]]
    sha256: str

    @classmethod
    def load(cls, study: Path, device: str = "auto") -> StudyEnsemble:
        """The study that `coverslip mil train` left in a folder. Raises InvalidConfig."""
        files = sorted((study / "folds").glob("*/model.safetensors"))
        whole = [file for file in files if (file.parent / CALIBRATION).exists()]
        if not whole:
            raise InvalidConfig(
                f"{study}: holds no trained study (folds/*/model.safetensors)\n"
                "  coverslip mil train FEATURES --table TABLE --target COLUMN -o STUDY makes one"
            )
        if len(whole) < len(files):
            raise InvalidConfig(
                f"{study}: fold {next(f.parent.name for f in files if f not in whole)} is not "
                "trained to the end\n  run the same coverslip mil train again: it goes on"
            )
        digest = hashlib.sha256()
        loaded, temperatures = [], []
        for file in whole:
            digest.update(file.read_bytes())
            loaded.append(load_model(file, device))
            temperatures.append(orjson.loads((file.parent / CALIBRATION).read_bytes()))
            digest.update(orjson.dumps(temperatures[-1]))
        records = [record for record, _ in loaded]
        return cls(
            study.resolve().name, records, [n for _, n in loaded], temperatures, digest.hexdigest()
        )

    @property
    def tasks(self) -> tuple[Task, ...]:
        """As the first model has them; names, kinds and classes are those of all."""
        return self.records[0].tasks

    @property
    def unit(self) -> str:
        """ "patient" or "slide": what a bag was."""
        return str(self.records[0].facts.get("unit", "slide"))

    def require(self, facts: Mapping[str, Any], where: str) -> None:
        """Raises InvalidConfig for embeddings that are not those it was trained on."""
        wanted = {"dim": self.records[0].dim, **self.records[0].facts.get("embeddings", {})}
        if why := facts_difference(wanted, facts):
            raise InvalidConfig(
                f"{where}: {why}, as study {self.name} was trained on\n"
                "  embed the slides as those of the study were"
            )

    def answer(
        self, tiles: npt.NDArray[np.floating[Any]], covariates: Sequence[npt.NDArray[Any] | None]
    ) -> BagAnswer:
        """Of one bag [n, dim], n at least 1.

        covariates   float32 [c] for each model, or None
        """
        import torch

        from coverslip.mil.prediction import on

        said: list[list[Floats]] = [[] for _ in self.tasks]
        attention = np.zeros(len(tiles))
        shares = []
        with torch.inference_mode():
            for record, network, heat, beside in zip(
                self.records, self.networks, self.temperatures, covariates, strict=True
            ):
                device = next(network.parameters()).device
                known = None if beside is None else torch.from_numpy(beside).to(device)
                found = network(on(device, tiles), known)
                logits = found.logits.double().cpu().numpy()[None]
                for number, (task, place) in enumerate(
                    zip(record.tasks, places(record.tasks), strict=True)
                ):
                    answer = task.prediction(logits[:, place] / heat.get(task.name, 1.0))[0]
                    said[number].append(np.atleast_1d(answer))
                attention += found.attention.double().mean(dim=0).cpu().numpy()
                shares.append(found.contributions.double().cpu().numpy())
        same = {share.shape for share in shares}
        together = np.mean(shares, axis=0) if len(same) == 1 else np.empty((0, 0))
        return BagAnswer(
            [np.mean(answers, axis=0) for answers in said],
            [np.std(answers, axis=0) for answers in said],
            (attention / len(self.networks)).astype(np.float32),
            together.astype(np.float32),
        )

    def contribution_names(self) -> list[str]:
        """Of the columns of contributions, which are those of the logits."""
        return [name for task in self.tasks for name in _logit_names(task)]


def prediction_names(task: Task) -> list[str]:
    """Of the numbers that a task's prediction is."""
    if task.classes:
        return [f"{task.name}: {name}" for name in task.classes]
    return [f"{task.name}: risk" if task.event else task.name]


def _logit_names(task: Task) -> Iterator[str]:
    if task.kind == "classes":
        yield from prediction_names(task)
    elif task.kind == "ordinal":
        yield from (f"{task.name}: above {name}" for name in task.classes[:-1])
    elif task.kind == "survival-bins":
        yield from (f"{task.name}: interval {number + 1}" for number in range(task.outputs))
    else:
        yield f"{task.name}: risk" if task.event else task.name
