"""Pretraining a PLUTO on unlabelled tiles: settings, the loop, its log and its checkpoint."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from coverslip.checkpoint import checkpoint_content
from coverslip.curve import append_row, drop_rows_behind
from coverslip.durable import replace_file, whole_file
from coverslip.encoders.registry import EncoderSpec
from coverslip.errors import InvalidConfig

if TYPE_CHECKING:
    import torch

    from coverslip.encoders.encoder import Encoder
    from coverslip.encoders.pluto import Pluto
    from coverslip.encoders.pretrain_objective import Losses, Trained

CELL = 32
"""Side of what is withheld at once, px: the largest patch, so that the task is always the same."""
CHECKPOINT = {"config": dict, "step": int, "student": dict, "teacher": dict, "optimiser": dict}
"""What is in a checkpoint, beside `guide_scale`, and of which type."""


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """All that decides a pretraining; a TOML file holds these names and no others.

    name, input_px       of the encoder that comes out, and the side tiles are resized to for it
    width, depth, heads  of the transformer; its MLP is four times as wide
    registers, rotary    as in `Pluto`
    patch                side of the base kernel, px: at which the encoder that comes out works
    patches              patch sides, px; one is drawn for each step
    patch_odds           how often each; alike by default
    mpps                 µm per pixel at which tiles are read; one is drawn for each chunk of tiles
    tile                 side of the tiles read, px
    large, large_area    side of the two large crops, px; their share of the tile's area
    small, small_area    the same of the small ones
    parts                small crops of each tile
    stain_jitter, blur   see `pretrain_views.views_of`
    steps, batch         batches, and tiles in each
    tiles                distinct tiles read in all; 0 reads new ones for ever
    learning_rate        at its height, after `warm_up` of the steps
    weight_decay         at the start and at the end
    momentum             of the teacher at the start; it ends at 1
    student_temperature, teacher_temperature
    prototypes, head_hidden   of the projection heads
    hide                 least and largest share of a crop's cells that is withheld
    dino, ibot, koleo, mae, fourier   weights of the terms
    imitate, distil      an encoder (by name) whose embeddings of whole tiles are to be told from
                         ours, and the weight of that term; none by default
    precision            "float32", or "bfloat16" under autocast
    probe_every, save_every   steps
    seed                 of everything drawn
    """

    name: str = "pluto"
    input_px: int = 224
    width: int = 384
    depth: int = 12
    heads: int = 6
    registers: int = 4
    rotary: bool = False
    patch: int = 16
    patches: tuple[int, ...] = (8, 16, 32)
    patch_odds: tuple[float, ...] = ()
    mpps: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    tile: int = 320
    large: int = 224
    large_area: tuple[float, ...] = (0.32, 1.0)
    small: int = 96
    small_area: tuple[float, ...] = (0.05, 0.32)
    parts: int = 8
    stain_jitter: float = 0.3
    blur: float = 0.3
    steps: int = 10_000
    batch: int = 256
    tiles: int = 0
    learning_rate: float = 1e-3
    warm_up: float = 0.1
    weight_decay: tuple[float, ...] = (0.04, 0.2)
    momentum: float = 0.992
    student_temperature: float = 0.1
    teacher_temperature: float = 0.05
    prototypes: int = 4096
    head_hidden: int = 1024
    hide: tuple[float, ...] = (0.1, 0.5)
    dino: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1
    mae: float = 0.5
    fourier: float = 0.1
    imitate: str = ""
    distil: float = 1.0
    precision: str = "float32"
    probe_every: int = 500
    save_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for side in self.patches:
            _require(8 <= side <= 32, f"patches must be 8 to 32 px, got {side}")
            for crop in (self.large, self.small):
                _require(crop % side == 0, f"crops of {crop} px do not divide into {side}")
        _require(self.patch in self.patches, "patch must be one of patches: it is what is used")
        _require(self.large % CELL == 0, f"large must be a multiple of {CELL} px")
        _require(all(CELL % side == 0 for side in self.patches), f"patches must divide {CELL}")
        _require(bool(self.patches) and bool(self.mpps), "patches and mpps must not be empty")
        _require(
            not self.patch_odds or len(self.patch_odds) == len(self.patches),
            "patch_odds must name one number for each of patches",
        )
        _require(self.width % self.heads == 0, f"{self.heads} heads do not divide {self.width}")
        for name in ("steps", "batch", "probe_every", "save_every", "parts", "depth"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1")
        for name in ("large_area", "small_area", "hide", "weight_decay"):
            _require(len(getattr(self, name)) == 2, f"{name} must be two numbers")
        _require(self.precision in ("float32", "bfloat16"), "precision: float32 or bfloat16")

    def encoder_spec(self) -> EncoderSpec:
        """The recipe of the encoder that comes out: at 0.5 µm/px or the nearest trained at."""
        mpp = min(self.mpps, key=lambda m: abs(math.log(m / 0.5)))
        return EncoderSpec(
            self.name,
            "coverslip.encoders.pluto:pluto_small",
            self._network(),
            2 * self.width,
            input_px=self.input_px,
            mpp=mpp,
            pooling="cls+mean",
            weights="",
        )

    def network(self) -> Pluto:
        """A new, untrained network."""
        from coverslip.encoders.pluto import Pluto

        return Pluto(**self._network())

    def _network(self) -> dict[str, Any]:
        return {
            "width": self.width, "depth": self.depth, "heads": self.heads,
            "hidden": 4 * self.width, "registers": self.registers, "rotary": self.rotary,
            "patch": self.patch, "grid": self.large // self.patch,
        }  # fmt: skip


class TileBatch(NamedTuple):
    """What one step is fed."""

    pixels: npt.NDArray[np.uint8]  # (b, T, T, 3)
    numbers: npt.NDArray[np.int64]  # (b,): the same tile has the same number whenever it comes


class TileSource(Protocol):
    """Where tiles come from."""

    def batch(self, step: int) -> TileBatch:
        """The tiles of a step: the same whenever it is asked for."""
        ...


Probe = Callable[["Encoder"], Mapping[str, float]]
"""Figures of merit of the encoder as it is now."""


class Pretraining:
    """One pretraining in a folder: goes on from the checkpoint it finds there.

    folder/
      checkpoint.pt            student, teacher, optimiser and step: to go on from
      log.csv                  a row every step: each term, learning rate, tiles per second
      probe.csv                a row every `probe_every` steps: what the probe says
      <name>.safetensors       the teacher's weights, when done
      <name>.json              its recipe: `--encoder folder/<name>.json`

    Everything drawn at a step depends on the seed and the step alone, so that a training that was
    stopped goes on as if it had not been.
    """

    def __init__(self, config: PretrainConfig, folder: Path, device: str = "auto") -> None:
        import torch

        self.config, self.folder = config, folder
        gpu = device == "auto" and torch.cuda.is_available()
        self.device = torch.device("cuda" if gpu else "cpu" if device == "auto" else device)
        self.step = 0
        self._guide: Encoder | None = None
        self._guided: dict[int, npt.NDArray[np.float16]] = {}
        self._guide_scale: tuple[torch.Tensor, torch.Tensor] | None = None
        if config.imitate:
            from coverslip.encoders.loading import load_encoder

            self._guide = load_encoder(config.imitate, device=str(self.device))
        torch.manual_seed(config.seed)
        self.student = self._trained()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self._optimiser = self._new_optimiser()
        self._resume()

    def run(
        self,
        tiles: TileSource,
        probe: Probe | None = None,
        observer: Callable[[int, int, Mapping[str, float]], None] | None = None,
    ) -> Path:
        """Train to the end; the weights' file.

        probe      asked at the first step, every `probe_every` and at the end
        observer   called after each step with (steps done, steps in all, the row of the log)
        """
        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.step == 0 and probe:
            append_row(self.folder / "probe.csv", {"step": 0, **probe(self.encoder())})
        while self.step < config.steps:
            started = time.perf_counter()
            row = self._train(tiles.batch(self.step))
            self.step += 1
            row["tiles_per_second"] = config.batch / (time.perf_counter() - started)
            append_row(self.folder / "log.csv", {"step": self.step, **row})
            if probe and (self.step % config.probe_every == 0 or self.step == config.steps):
                append_row(self.folder / "probe.csv", {"step": self.step, **probe(self.encoder())})
            if self.step % config.save_every == 0 or self.step == config.steps:
                self._save()
            if observer:
                observer(self.step, config.steps, row)
        return self._publish()

    def encoder(self) -> Encoder:
        """The teacher as it is now, as any encoder: a copy."""
        from coverslip.encoders.encoder import Encoder

        network = copy.deepcopy(self.teacher.encoder)
        return Encoder(self.config.encoder_spec(), network, f"step-{self.step}", str(self.device))

    def _trained(self) -> Trained:
        from coverslip.encoders.pretrain_objective import Trained

        config = self.config
        network = Trained(
            config.network(),
            config.width,
            config.prototypes,
            config.head_hidden,
            self._guide.dim if self._guide else 0,
        )
        return network.to(self.device)

    def _new_optimiser(self) -> torch.optim.AdamW:
        """Weight decay for matrices only."""
        import torch

        matrices = [p for p in self.student.parameters() if p.ndim > 1]
        others = [p for p in self.student.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others}]
        groups[1]["weight_decay"] = 0.0
        return torch.optim.AdamW(groups)

    def _train(self, batch: TileBatch) -> dict[str, float]:
        """One step; the row of the log."""
        import torch

        config, student = self.config, self.student
        rate, momentum = self._schedule()
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        found = self._losses(batch, generator)
        weights = torch.tensor([getattr(config, name) for name in found._fields])
        total = (torch.stack(found) * weights.to(self.device)).sum()
        self._optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the loss is no longer finite at step {self.step}: {found}")
        self._optimiser.step()
        with torch.no_grad():
            for old, new in zip(self.teacher.parameters(), student.parameters(), strict=True):
                old.lerp_(new, 1 - momentum)
        row = {name: value.item() for name, value in zip(found._fields, found, strict=True)}
        return {"loss": total.item(), **row, "learning_rate": rate}

    def _losses(self, batch: TileBatch, generator: torch.Generator) -> Losses:
        import torch

        from coverslip.encoders.pretrain_objective import losses
        from coverslip.encoders.pretrain_views import hidden_patches, views_of

        config = self.config
        odds = torch.tensor(config.patch_odds or [1.0] * len(config.patches))
        patch = config.patches[int(torch.multinomial(odds, 1, generator=generator))]
        tiles = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).to(self.device)
        views = views_of(
            tiles,
            (config.large, (config.large_area[0], config.large_area[1])),
            (config.small, (config.small_area[0], config.small_area[1])),
            config.parts,
            config.stain_jitter,
            config.blur,
            generator,
        )
        where = hidden_patches(
            2 * len(tiles),
            config.large // patch,
            CELL // patch,
            (config.hide[0], config.hide[1]),
            generator,
        ).to(self.device)
        temperature = (config.student_temperature, config.teacher_temperature)
        half = config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            return losses(
                self.student, self.teacher, views, where, patch, temperature, self._wanted(batch)
            )

    def _wanted(self, batch: TileBatch) -> torch.Tensor | None:
        """(b, D): the guide's embedding of each tile, standardised by the first batch's spread."""
        import torch

        if self._guide is None:
            return None
        new = [i for i, n in enumerate(batch.numbers.tolist()) if n not in self._guided]
        for i, vector in zip(new, self._guide.encode(batch.pixels[new]), strict=True):
            self._guided[int(batch.numbers[i])] = vector.astype(np.float16)
        found = np.stack([self._guided[int(n)] for n in batch.numbers])
        if not self.config.tiles:  # no tile comes twice
            self._guided.clear()
        x = torch.from_numpy(found).float().to(self.device)
        if self._guide_scale is None:
            spread = x.std(dim=0)
            self._guide_scale = x.mean(dim=0), spread + 0.1 * spread.mean() + 1e-6
        mean, std = self._guide_scale
        return (x - mean) / std

    def _schedule(self) -> tuple[float, float]:
        """Set this step's learning rate and weight decay; (learning rate, teacher's momentum)."""
        config, done = self.config, self.step / self.config.steps
        warm = min(1.0, (self.step + 1) / max(1.0, config.warm_up * config.steps))
        past = max(0.0, (done - config.warm_up) / max(1 - config.warm_up, 1e-9))
        rate = config.learning_rate * warm * (0.01 + 0.99 * _falling(past))
        first, last = config.weight_decay
        matrices, others = self._optimiser.param_groups
        matrices["lr"] = others["lr"] = rate
        matrices["weight_decay"] = last + (first - last) * _falling(done)
        return rate, 1 - (1 - config.momentum) * _falling(done)

    def _save(self) -> None:
        import torch

        content = {
            "config": asdict(self.config),
            "step": self.step,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "guide_scale": self._guide_scale,
        }
        with whole_file(self.folder / "checkpoint.pt") as aside:
            torch.save(content, aside)

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            for name in ("log.csv", "probe.csv"):
                (self.folder / name).unlink(missing_ok=True)
            return
        content = checkpoint_content(path, self.device, CHECKPOINT)
        if content["config"] != asdict(self.config):
            changed = [k for k, v in asdict(self.config).items() if content["config"].get(k) != v]
            raise InvalidConfig(
                f"{path}: was begun with another {', '.join(changed)}\n"
                "  go on with the same settings, or choose another folder with -o"
            )
        self.step = content["step"]
        self.student.load_state_dict(content["student"])
        self.teacher.load_state_dict(content["teacher"])
        self._optimiser.load_state_dict(content["optimiser"])
        self._guide_scale = content["guide_scale"]
        for name in ("log.csv", "probe.csv"):
            drop_rows_behind(self.folder / name, self.step)

    def _publish(self) -> Path:
        """The teacher's weights and its recipe."""
        from safetensors.torch import save_file

        path = self.folder / f"{self.config.name}.safetensors"
        state = {k: v.cpu().contiguous() for k, v in self.teacher.encoder.state_dict().items()}
        with whole_file(path) as aside:
            save_file(state, aside)
        replace_file(path.with_suffix(".json"), self.config.encoder_spec().to_json())
        return path


def _falling(done: float) -> float:
    """1 at the start, 0 at the end, along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise InvalidConfig(problem)
