"""A trained slide-level model in one file: safetensors, its record in the header."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from coverslip.durable import whole_file
from coverslip.errors import InvalidConfig, UnknownName
from coverslip.mil.tasks import Task, places, task_records
from coverslip.mil.training_config import MilConfig
from coverslip.settings import settings_of

if TYPE_CHECKING:
    from torch import nn

KEY = "coverslip.mil"
VERSION = 1

Build = Callable[[MilConfig, int, int, int], Any]
"""(settings, dim, outputs, covariates) -> a new network called as a StudyNetwork is."""


@dataclass(frozen=True, slots=True)
class MilRecord:
    """Everything that decides what a model says of a bag, beside its weights.

    config       it was trained with
    tasks        in the order of its logits, fitted to what it was trained on
    dim          numbers in a tile's embedding
    covariates   numbers beside a bag
    epoch        whose weights these are, from 1
    facts        the study's: what made the embeddings, how covariates are made, which fold; JSON
    """

    config: MilConfig
    tasks: tuple[Task, ...]
    dim: int
    covariates: int
    epoch: int
    facts: Mapping[str, Any]

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> MilRecord:
        """Of what `as_json` gives. Raises InvalidConfig; KeyError and TypeError where it is
        something else altogether."""
        if content["version"] != VERSION:
            raise InvalidConfig(
                f"a model of version {content['version']!r}, which is not known here; install a "
                "newer coverslip"
            )
        if unknown := sorted(content.keys() - {*cls.__slots__, "version"}):
            raise InvalidConfig(f"its record holds {unknown[0]!r}, which is not known here")
        numbers = {name: content[name] for name in ("dim", "covariates", "epoch")}
        if any(type(number) is not int or number < 0 for number in numbers.values()):
            raise InvalidConfig(f"its record holds {numbers}")
        tasks = tuple(Task.parse(task) for task in content["tasks"])
        places(tasks)
        config = settings_of(MilConfig, content["config"])
        return cls(config, tasks, **numbers, facts=dict(content["facts"]))

    def as_json(self) -> dict[str, Any]:
        """As the header holds it."""
        return {
            "version": VERSION,
            "config": asdict(self.config),
            "tasks": task_records(self.tasks),
            "dim": self.dim,
            "covariates": self.covariates,
            "epoch": self.epoch,
            "facts": dict(self.facts),
        }

    @property
    def outputs(self) -> int:
        """Logits of all tasks."""
        return sum(task.outputs for task in self.tasks)


def study_network(config: MilConfig, dim: int, outputs: int, covariates: int) -> Any:
    """The network that a study trains, with random weights. Raises UnknownName, InvalidConfig."""
    from coverslip.mil.registry import slide_model
    from coverslip.mil.study_network import StudyNetwork

    return StudyNetwork(slide_model(config.model, dim, outputs, **config.arguments), covariates)


def save_model(path: Path, record: MilRecord, network: nn.Module) -> None:
    """One file, whole or not there; the same model gives the same bytes."""
    from safetensors.torch import save_file

    weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    with whole_file(path) as aside:
        save_file(weights, str(aside), {KEY: orjson.dumps(record.as_json()).decode()})


def read_record(path: Path) -> MilRecord:
    """The record in a model's file, without its weights. Raises InvalidConfig."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "numpy") as file:
            found: Mapping[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InvalidConfig(f"{path}: not a model's file ({error})") from None
    try:
        return MilRecord.parse(orjson.loads(found[KEY]))
    except InvalidConfig as error:
        raise InvalidConfig(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, orjson.JSONDecodeError):
        raise InvalidConfig(
            f"{path}: no record of a slide-level model in it\n"
            "  they are trained by `coverslip mil train`, which writes such files"
        ) from None


def require_weights(path: Path, model: str, weights: Mapping[str, Any], network: nn.Module) -> None:
    """Raises InvalidConfig, naming the first, where tensors of a file are not those of a network.

    model   its name in the registry
    """
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    given = {name: getattr(tensor, "shape", None) for name, tensor in weights.items()}
    if wrong := sorted(
        (name for name in given.keys() | wanted if given.get(name) != wanted.get(name)), key=str
    ):
        raise InvalidConfig(
            f"{path}: {wrong[0]} does not fit a model {model} of this version of coverslip\n"
            "  train it again, in another folder"
        )


def load_model(
    path: Path, device: str = "auto", build: Build = study_network
) -> tuple[MilRecord, Any]:
    """(record, network ready to be used). Raises InvalidConfig, which names the file.

    device   torch's name; "auto" takes a GPU where there is one
    """
    import torch
    from safetensors.torch import load

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    record = read_record(path)
    try:
        network = build(record.config, record.dim, record.outputs, record.covariates)
    except (InvalidConfig, UnknownName) as error:
        raise InvalidConfig(f"{path}: {error}") from None
    weights = load(path.read_bytes())
    require_weights(path, record.config.model, weights, network)
    network.load_state_dict(weights)
    return record, network.to(device).eval().requires_grad_(False)
