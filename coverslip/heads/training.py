"""Training of any head: resumable, deterministic, its curves in CSV files."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from coverslip.checkpoint import checkpoint_content
from coverslip.curve import append_row, drop_rows_behind
from coverslip.durable import whole_file
from coverslip.errors import InvalidConfig
from coverslip.heads.augmentation import Augmentation
from coverslip.heads.recipe import HeadRecipe, load_head, save_head
from coverslip.settings import settings_of, toml_content

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How a head is trained; fields of a TOML file.

    steps, batch, crop   crop: side of what the network sees, px
    learning_rate        after the warm-up; it falls along half a cosine to a hundredth
    warm_up              share of the steps
    weight_decay         of AdamW
    average              how much of the averaged weights stays each step; they are what is kept
    validate_every       steps between two looks at the images held out
    patience             looks without a better score before it stops; 0 never stops early
    validation           share of the images that is held out
    precision            "float32", or "bfloat16" under autocast
    seed                 of everything drawn
    augmentation         a table in a TOML file
    """

    steps: int = 3000
    batch: int = 8
    crop: int = 256
    learning_rate: float = 3e-4
    warm_up: float = 0.05
    weight_decay: float = 1e-4
    average: float = 0.995
    validate_every: int = 250
    patience: int = 0
    validation: float = 0.15
    precision: str = "float32"
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "crop", "validate_every"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.precision not in ("float32", "bfloat16"):
            raise InvalidConfig(f"precision: float32 or bfloat16, got {self.precision!r}")
        if not 0 <= self.validation < 1:
            raise InvalidConfig(f"validation must be in 0..1, got {self.validation}")


def training_settings(path: Path | None, **defaults: Any) -> tuple[TrainingConfig, dict[str, Any]]:
    """(settings, arguments of the network) of a TOML file; the latter in its table [network].

    defaults   of settings that are wanted otherwise than `TrainingConfig` has them

    Raises InvalidConfig, which names the file.
    """
    if path is None:
        return TrainingConfig(**defaults), {}
    with toml_content(path) as content:
        arguments = content.pop("network", {})
        if not isinstance(arguments, dict):
            raise InvalidConfig(f"network must be a table, got {arguments!r}")
        return settings_of(TrainingConfig, {**defaults, **content}), arguments


class Batch(NamedTuple):
    """What one step is fed: images [B, H, W, 3] float32, normalised, and targets by name."""

    images: npt.NDArray[np.float32]
    targets: Mapping[str, npt.NDArray[np.float32]]


class BatchSource(Protocol):
    """Where batches come from."""

    def batch(self, step: int) -> Batch:
        """Of a step: the same whenever it is asked for."""
        ...


CHECKPOINT = {
    "config": dict, "step": int, "best": float, "since_best": int,
    "network": dict, "averaged": dict, "optimiser": dict,
}  # fmt: skip
"""What is in a checkpoint, and of which type."""

Validate = Callable[[Any], Mapping[str, float]]
"""Figures of a network on what was held out; "score" among them is what must grow."""


class Training:
    """One training in a folder; it goes on from the checkpoint that it finds there.

    folder/
      checkpoint.pt        to go on from
      log.csv              a row every step: each term of the loss, learning rate, images per second
      validation.csv       a row every `validate_every` steps
      <name>.safetensors   the averaged weights at their best so far: `--nuclei folder/<name>...`
    """

    def __init__(
        self,
        recipe: HeadRecipe,
        config: TrainingConfig,
        folder: Path,
        device: str = "auto",
        start: Path | None = None,
    ) -> None:
        """start: a head's file whose weights it begins with; of the same architecture and
        arguments. Raises InvalidConfig; MissingWeights for a checkpoint that is none."""
        import torch

        self.config, self.folder = config, folder
        self.recipe = replace(recipe, training=asdict(config))
        gpu = device == "auto" and torch.cuda.is_available()
        self.device = torch.device("cuda" if gpu else "cpu" if device == "auto" else device)
        self.step, self.best, self.since_best = 0, -math.inf, 0
        torch.manual_seed(config.seed)
        # convolutions on a CPU are up to twice as fast with channels last
        self.network = recipe.network().to(self.device, memory_format=torch.channels_last)
        if start is not None:
            held, network, _ = load_head(start, str(self.device))
            if (held.architecture, held.arguments) != (recipe.architecture, recipe.arguments):
                raise InvalidConfig(
                    f"{start}: does not fit a network of {recipe.architecture} {recipe.arguments}; "
                    f"it is {held.architecture} {held.arguments}"
                )
            self.network.load_state_dict(network.state_dict())
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        self._optimiser = torch.optim.AdamW(
            self.network.parameters(), weight_decay=config.weight_decay
        )
        self._resume()

    @property
    def path(self) -> Path:
        """Where the weights are kept."""
        return self.folder / f"{self.recipe.name}.safetensors"

    def run(
        self,
        source: BatchSource,
        validate: Validate | None = None,
        observer: Callable[[int, int, Mapping[str, float]], None] | None = None,
    ) -> Path:
        """Train to the end, or until it no longer gets better; the weights' file."""
        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as ahead:
            coming = ahead.submit(source.batch, self.step)
            while self.step < config.steps and not self._stale():
                batch, started = coming.result(), time.perf_counter()
                if self.step + 1 < config.steps:
                    coming = ahead.submit(source.batch, self.step + 1)
                row = self._train(batch)
                self.step += 1
                row["images_per_second"] = config.batch / (time.perf_counter() - started)
                append_row(self.folder / "log.csv", {"step": self.step, **row})
                if observer:
                    observer(self.step, config.steps, row)
                if self.step % config.validate_every == 0 or self.step == config.steps:
                    self._look(validate)
                    self._save()
        return self.path

    def _stale(self) -> bool:
        return 0 < self.config.patience <= self.since_best

    def _look(self, validate: Validate | None) -> None:
        """Keep the averaged weights if they are the best so far."""
        found = dict(validate(self.averaged.eval())) if validate else {"score": float(self.step)}
        if validate:
            append_row(self.folder / "validation.csv", {"step": self.step, **found})
        self.since_best += 1
        if found["score"] > self.best:
            self.best, self.since_best = float(found["score"]), 0
            save_head(self.path, self.recipe, self.averaged)

    def _train(self, batch: Batch) -> dict[str, float]:
        import torch

        config = self.config
        torch.manual_seed(config.seed * 1_000_003 + self.step)  # of dropout
        rate = self._rate()
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        images = torch.from_numpy(np.ascontiguousarray(batch.images.transpose(0, 3, 1, 2)))
        targets = {k: torch.from_numpy(v).to(self.device) for k, v in batch.targets.items()}
        self.network.train()
        half = config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            maps = self.network(images.to(self.device, memory_format=torch.channels_last))
            terms: dict[str, torch.Tensor] = self.network.losses(maps, targets)
        total = torch.stack(list(terms.values())).sum()
        self._optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the loss is no longer finite at step {self.step}: {terms}")
        self._optimiser.step()
        self._average()
        return {
            "loss": total.item(),
            **{k: v.item() for k, v in terms.items()},
            "learning_rate": rate,
        }

    def _average(self) -> None:
        """Early on the average forgets faster, so that it never holds the beginning's noise."""
        import torch

        keep = min(self.config.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            new = self.network.state_dict()
            for name, old in self.averaged.state_dict().items():
                if old.is_floating_point():
                    old.lerp_(new[name], 1 - keep)
                else:
                    old.copy_(new[name])

    def _rate(self) -> float:
        config = self.config
        warm = min(1.0, (self.step + 1) / max(1.0, config.warm_up * config.steps))
        past = max(0.0, (self.step / config.steps - config.warm_up) / (1 - config.warm_up))
        return config.learning_rate * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * past)) / 2)

    def _save(self) -> None:
        import torch

        content = {
            "config": asdict(self.config),
            "step": self.step,
            "best": self.best,
            "since_best": self.since_best,
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }
        with whole_file(self.folder / "checkpoint.pt") as aside:
            torch.save(content, aside)

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            for name in ("log.csv", "validation.csv"):
                (self.folder / name).unlink(missing_ok=True)
            return
        content = checkpoint_content(path, self.device, CHECKPOINT)
        if content["config"] != asdict(self.config):
            old, new = content["config"], asdict(self.config)
            changed = ", ".join(
                f"{k} {old.get(k)} -> {new[k]}" for k in new if old.get(k) != new[k]
            )
            raise InvalidConfig(
                f"{path}: this training began with {changed}\n"
                "  go on with those, or train in another folder"
            )
        try:
            self.network.load_state_dict(content["network"])
            self.averaged.load_state_dict(content["averaged"])
            self._optimiser.load_state_dict(content["optimiser"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InvalidConfig(
                f"{path}: does not fit a network of {self.recipe.architecture} "
                f"{self.recipe.arguments} ({type(error).__name__})\n"
                "  go on with the network it began with, or train in another folder"
            ) from error
        self.step, self.best = content["step"], content["best"]
        self.since_best = content["since_best"]
        for name in ("log.csv", "validation.csv"):
            drop_rows_behind(self.folder / name, self.step)
