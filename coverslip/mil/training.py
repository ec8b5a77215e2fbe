"""Training of a slide-level model on one fold: resumable, deterministic, its curves as CSV."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch
from torch import Tensor

from coverslip.curve import append_row, drop_rows_behind
from coverslip.durable import replace_file
from coverslip.errors import InvalidConfig
from coverslip.mil.bag_stream import drawn_rows, mean_embeddings, require_tiles, stream
from coverslip.mil.bags import Floats
from coverslip.mil.checkpoint import read_checkpoint, write_checkpoint
from coverslip.mil.examples import MilExamples
from coverslip.mil.figures import MAIN, study_values
from coverslip.mil.model_file import (
    Build,
    MilRecord,
    load_model,
    require_weights,
    save_model,
    study_network,
)
from coverslip.mil.prediction import autocast, covariate_row, fold_predictions, not_finite, on
from coverslip.mil.splits import Fold, require_apart
from coverslip.mil.tasks import Task, task_losses
from coverslip.mil.training_config import MilConfig

CURVES = ("log.csv", "validation.csv")
CLIP = 5.0
"""Length beyond which a gradient is shortened."""

Observer = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class MilResult:
    """What a training came to.

    epochs, best_epoch     done, and the one whose weights are kept, both from 1
    validation             figures of each task on the validation bags, with all their tiles
    validation_sampled     the same with `max_tiles` of each, as it was watched: what sub-sampling
                           costs. Empty where all tiles are used
    """

    epochs: int
    best_epoch: int
    validation: dict[str, dict[str, float]]
    validation_sampled: dict[str, dict[str, float]]


class MilTraining:
    """One training in a folder; it goes on from the checkpoint that it finds there.

    folder/
      checkpoint.pt       to go on from, after every epoch
      log.csv             a row every step: losses, learning rate, bags and tiles per second
      validation.csv      a row every epoch: loss, score, the figures of every task
      model.safetensors   the best epoch's weights
      result.json         a MilResult, at the end
    On a CPU a training that was stopped and went on gives the same bytes as one left alone.
    """

    def __init__(
        self,
        config: MilConfig,
        tasks: Sequence[Task],
        examples: MilExamples,
        fold: Fold,
        folder: Path,
        *,
        facts: Mapping[str, Any],
        device: str = "auto",
        build: Build = study_network,
    ) -> None:
        """tasks, before they are fitted; facts go into the model's file, as JSON.

        Raises InvalidConfig: a fold that cannot be trained on, a folder of another training;
        MissingWeights where its checkpoint cannot be read.
        """
        gpu = device == "auto" and torch.cuda.is_available()
        self.device = torch.device("cuda" if gpu else "cpu" if device == "auto" else device)
        self.config, self.examples, self.fold, self.folder = config, examples, fold, folder
        if len(tasks) != examples.targets.shape[1]:
            raise ValueError(f"{len(tasks)} tasks, but targets {list(examples.targets.shape)}")
        taught = examples.targets[fold.train]
        self.tasks = tuple(task.fitted(taught[:, t]) for t, task in enumerate(tasks))
        # a Cox loss compares bags; of any other the gradient adds up bag by bag, in little memory
        self._together = any(task.kind == "survival" for task in tasks)
        self._require_fit()
        plain = orjson.loads(orjson.dumps(dict(facts)))
        self.record = MilRecord(config, self.tasks, examples.bags.dim, examples.width, 0, plain)
        self._build = build
        self.epoch, self.step, self.best, self.since_best, self.best_epoch = 0, 0, -math.inf, 0, 0
        torch.manual_seed(config.seed)
        self.network = build(config, examples.bags.dim, self.record.outputs, examples.width)
        self.network.to(self.device)
        self._optimiser = torch.optim.AdamW(
            self.network.parameters(), weight_decay=config.weight_decay
        )
        half = config.precision == "float16"
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self._weights = [
            None
            if not config.class_weights or (weight := task.class_weight(taught[:, t])) is None
            else torch.from_numpy(weight).float().to(self.device)
            for t, task in enumerate(self.tasks)
        ]
        self._resume()

    @property
    def path(self) -> Path:
        """Where the weights are kept."""
        return self.folder / "model.safetensors"

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.fold.train) / self.config.bags_per_step)

    def run(self, observer: Observer | None = None) -> MilResult:
        """Train to the end, or until it no longer gets better; `network` is then the best epoch's.

        observer   told (step, of steps at most, its row) after every step
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.step:
            self.network.prepare(self._taught_means)
        while self.epoch < self.config.epochs and not self._stale():
            self._train_epoch(observer)
            self.epoch += 1
            self._look()
            self._save()
        return self._result()

    def _stale(self) -> bool:
        return 0 < self.config.patience <= self.since_best

    def _taught_means(self) -> Tensor:
        """(b, dim) float64: of the training bags, with `max_tiles` of each."""
        config, bags, taught = self.config, self.examples.bags, self.fold.train
        means = mean_embeddings(bags, taught, max_tiles=config.max_tiles, seed=config.seed)
        if spoilt := np.flatnonzero(~np.isfinite(means).all(axis=1)).tolist():
            raise not_finite(bags, int(taught[spoilt[0]]), means[spoilt[0]])
        return torch.from_numpy(means)

    def _train_epoch(self, observer: Observer | None) -> None:
        config, bags = self.config, self.examples.bags
        order = np.random.default_rng([config.seed, self.epoch]).permutation(self.fold.train)
        wanted = [
            (
                int(i),
                drawn_rows(bags.count(int(i)), config.max_tiles, (config.seed, self.epoch, int(i))),
            )
            for i in order
        ]
        most = self.steps_per_epoch * config.epochs
        with closing(stream(bags, wanted)) as coming:
            for start in range(0, len(order), config.bags_per_step):
                row = self._train(order[start : start + config.bags_per_step], coming)
                self.step += 1
                row = {"step": self.step, "epoch": self.epoch + 1, **row}
                append_row(self.folder / "log.csv", row)
                if observer:
                    observer(self.step, most, row)

    def _train(self, chosen: npt.NDArray[np.int64], coming: Iterator[Floats]) -> dict[str, float]:
        """One step on some bags, whose embeddings come next."""
        started, tiles = time.perf_counter(), 0
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # of dropout
        rate = self._rate()
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self.network.train()
        self._optimiser.zero_grad(set_to_none=True)
        target = torch.from_numpy(self.examples.targets[chosen]).to(self.device)  # (b, tasks, 2)
        labelled = (~target[..., 0].isnan()).sum(dim=0)  # (tasks)
        terms = torch.zeros(len(self.tasks) + 1, device=self.device)
        parts = [np.arange(len(chosen))] if self._together else np.arange(len(chosen))[:, None]
        for part in parts:
            streams, own = [], []
            for place in part:
                found, its_own, count = self._seen(int(chosen[place]), next(coming))
                streams.append(found)
                own.append(its_own)
                tiles += count
            share = (~target[part, :, 0].isnan()).sum(dim=0) / labelled.clamp_min(1)
            losses = task_losses(self.tasks, torch.stack(streams), target[part], self._weights)
            beside = torch.stack(own).sum()[None] / len(chosen)
            loss = torch.cat([losses * share, beside])  # (tasks + 1)
            self._scaler.scale(loss.sum()).backward()  # type: ignore[no-untyped-call]
            terms += loss.detach()
        self._scaler.unscale_(self._optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        # under float16 the scaler leaves out a step that overflowed, and scales less from then on
        if not self._scaler.is_enabled() and not torch.isfinite(norm):
            raise InvalidConfig(
                f"the gradient is no longer finite at step {self.step}\n"
                "  train with a smaller learning_rate, or in float32"
            )
        self._scaler.step(self._optimiser)
        self._scaler.update()
        seconds = time.perf_counter() - started
        names = [*(f"{task.name}_loss" for task in self.tasks), "own_loss"]
        return {
            "loss": terms.sum().item(),
            **dict(zip(names, terms.tolist(), strict=True)),
            "learning_rate": rate,
            "bags_per_second": len(chosen) / seconds,
            "tiles_per_second": tiles / seconds,
        }

    def _seen(self, index: int, tiles: Floats) -> tuple[Tensor, Tensor, int]:
        """Of a bag: streams (s, outputs) float32, the model's own loss, tiles."""
        covariates = covariate_row(self.examples.covariates, index, self.device)
        first = self.examples.targets[index, 0, 0]
        label = int(first) if self.tasks[0].kind == "classes" and first == first else None
        with autocast(self.device, self.config.precision):
            output, own = self.network.with_own_loss(on(self.device, tiles), covariates, label)
        if not torch.isfinite(output.streams).all():
            raise not_finite(self.examples.bags, index, tiles)
        return output.streams.float(), own.float(), len(tiles)

    def _look(self) -> None:
        """Keep the weights if they are the best so far."""
        config, watched = self.config, self.fold.validation
        logits = self._predictions(config.max_tiles)
        figures = self._figures(logits)
        target = torch.from_numpy(self.examples.targets[watched]).to(self.device)
        streams = torch.from_numpy(logits)[:, None].float().to(self.device)  # (b, 1, outputs)
        losses = task_losses(self.tasks, streams, target, self._weights)
        mains = [figures[task.name][MAIN[task.kind]] for task in self.tasks]
        row = {"loss": losses.sum().item(), "score": float(np.mean(mains))}
        better = -row["loss"] if config.watch == "loss" else row["score"]
        if math.isnan(better):
            without = next(t for t, m in zip(self.tasks, mains, strict=True) if math.isnan(m))
            raise InvalidConfig(
                f"task {without.name!r}: its {MAIN[without.kind]} means nothing on these "
                f"{len(watched)} validation bags\n  watch the loss, or hold more bags out"
            )
        for task in self.tasks:
            row |= {f"{task.name}_{name}": value for name, value in figures[task.name].items()}
        append_row(self.folder / "validation.csv", {"step": self.step, "epoch": self.epoch, **row})
        self.since_best += 1
        if better > self.best:
            self.best, self.since_best, self.best_epoch = better, 0, self.epoch
            save_model(self.path, replace(self.record, epoch=self.epoch), self.network)

    def _predictions(self, max_tiles: int) -> npt.NDArray[np.float64]:
        return fold_predictions(
            self.network,
            self.examples.bags,
            self.fold.validation,
            self.examples.covariates,
            max_tiles=max_tiles,
            seed=self.config.seed,
            precision=self.config.precision,
        )

    def _figures(self, logits: npt.NDArray[np.float64]) -> dict[str, dict[str, float]]:
        return study_values(self.tasks, logits, self.examples.targets[self.fold.validation])

    def _result(self) -> MilResult:
        """Of the best epoch so far."""
        _, best = load_model(self.path, str(self.device), self._build)
        self.network.load_state_dict(best.state_dict())
        sampled = self._figures(self._predictions(self.config.max_tiles))
        whole = self._figures(self._predictions(0)) if self.config.max_tiles else sampled
        found = MilResult(
            self.epoch, self.best_epoch, whole, sampled if self.config.max_tiles else {}
        )
        replace_file(self.folder / "result.json", orjson.dumps(found, option=orjson.OPT_INDENT_2))
        return found

    def _rate(self) -> float:
        config, steps = self.config, self.steps_per_epoch * self.config.epochs
        warm = min(1.0, (self.step + 1) / max(1.0, config.warm_up * steps))
        past = max(0.0, (self.step / steps - config.warm_up) / (1 - config.warm_up))
        return config.learning_rate * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * past)) / 2)

    def _require_fit(self) -> None:
        """Raises InvalidConfig for what cannot be trained."""
        config, examples, fold = self.config, self.examples, self.fold
        require_apart(fold, np.arange(len(examples.targets)), "bag")
        for name in ("train", "validation"):
            if not len(getattr(fold, name)):
                raise InvalidConfig(f"fold {fold.number}: no bag for {name}")
            require_tiles(examples.bags, getattr(fold, name))
        known = [
            task.known(examples.targets[fold.validation, t]) for t, task in enumerate(self.tasks)
        ]
        if not np.any(known):
            raise InvalidConfig(f"fold {fold.number}: no bag for validation has a label")
        if config.precision == "float16" and self.device.type != "cuda":
            raise InvalidConfig("precision float16 wants a GPU; bfloat16 and float32 do not")
        if self._together and config.bags_per_step < 2:
            raise InvalidConfig(
                "a task of kind survival compares the bags of a step: bags_per_step must be at "
                "least 2, better 16 or more\n  survival-bins does without"
            )

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""
        return {**self.record.as_json(), "bags": self.examples.digest(self.fold)}

    def _save(self) -> None:
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "since_best": self.since_best,
            "best_epoch": self.best_epoch,
            "network": self.network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
        }
        write_checkpoint(self.folder / "checkpoint.pt", self._identity(), state)

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        state = read_checkpoint(path, self._identity(), self.device)
        if state is None:
            for name in CURVES:
                (self.folder / name).unlink(missing_ok=True)
            return
        require_weights(path, self.config.model, state["network"], self.network)
        self.network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.since_best, self.best_epoch = state["since_best"], state["best_epoch"]
        for name in CURVES:
            drop_rows_behind(self.folder / name, self.step)
