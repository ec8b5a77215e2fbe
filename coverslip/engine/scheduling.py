"""How the slides of a run are handed out. What is made of them does not depend on it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from coverslip.engine.staging import Staging
from coverslip.errors import InvalidConfig

Slide = tuple[str, str]
"""(path or URL, id)."""
ADDRESS = re.compile(r"(tcp|tls|ws|wss|ucx)://\S+")
SBATCH = re.compile(r"[a-z][a-z-]*")
WALLTIME = re.compile(r"(\d+-)?\d{1,3}(:\d\d){0,2}")


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Who works on a run's slides.

    scheduler   "" for this process, or one for each of the configured devices; "dask" for workers
                on this machine; an address (tcp://node1:8786) for the workers of a Dask cluster
    slurm       sbatch's options by their long names, of jobs that each are a Dask worker
    workers     processes or jobs; 0 for one for each GPU, or for each 4 processors
    shard       (i, n): only the i-th of n parts of the slides, from 1
    staging     where slides are copied to before they are read; None reads them where they lie

    Raises InvalidConfig.
    """

    scheduler: str = ""
    slurm: Mapping[str, str] = field(default_factory=dict)
    workers: int = 0
    shard: tuple[int, int] = (1, 1)
    staging: Staging | None = None

    def __post_init__(self) -> None:
        if self.scheduler not in ("", "dask") and not ADDRESS.fullmatch(self.scheduler):
            raise InvalidConfig(
                f"scheduler is dask or an address such as tcp://node1:8786, got {self.scheduler!r}"
            )
        if self.slurm and self.scheduler:
            raise InvalidConfig("--slurm starts workers of its own: leave --scheduler out")
        if self.workers < 0:
            raise InvalidConfig(f"workers must not be negative, got {self.workers}")
        if self.workers and (not (self.scheduler or self.slurm) or "://" in self.scheduler):
            raise InvalidConfig("workers goes with --scheduler dask or --slurm")
        number, parts = self.shard
        if not 1 <= number <= parts:
            raise InvalidConfig(f"shard counts from 1: 1/{parts} to {parts}/{parts}")

    @classmethod
    def of(
        cls,
        *,
        scheduler: str = "",
        slurm: str = "",
        workers: int = 0,
        shard: str = "",
        stage: Path | None = None,
        stage_limit: float = 0.0,
    ) -> Self:
        """From texts as of the command line.

        slurm         "partition=gpu,time=8:00:00,mem=32G,cpus-per-task=8,gpus=1"
        shard         "3/20"
        stage_limit   GB; 0 for the standard

        Raises InvalidConfig.
        """
        staging = None
        if stage is not None:
            staging = Staging(stage, int(stage_limit * 1e9)) if stage_limit else Staging(stage)
        elif stage_limit:
            raise InvalidConfig("stage-limit goes with --stage FOLDER")
        return cls(scheduler, _sbatch_options(slurm), workers, _shard(shard), staging)

    @property
    def distributed(self) -> bool:
        """Whether Dask hands out the slides."""
        return bool(self.scheduler or self.slurm)

    def own(self, slides: Sequence[Slide]) -> list[Slide]:
        """The shard's slides. Which they are depends on each slide's id alone, so that a folder
        that grows between the jobs of an array moves none to another's part."""
        number, parts = self.shard
        return [slide for slide in slides if _part(slide[1], parts) == number - 1]


def _part(slide_id: str, parts: int) -> int:
    digest = hashlib.blake2b(slide_id.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % parts


def _shard(text: str) -> tuple[int, int]:
    if not text:
        return 1, 1
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found:
        raise InvalidConfig(f"shard is i/n, such as 3/20; got {text!r}")
    return int(found[1]), int(found[2])


def _sbatch_options(text: str) -> dict[str, str]:
    """name=value, by comma; a comma within a value is written twice."""
    options = {}
    for part in filter(None, re.split(r"(?<!,),(?!,)", text)):
        name, _, value = part.replace(",,", ",").partition("=")
        name, value = name.strip().lstrip("-"), value.strip()
        if not SBATCH.fullmatch(name) or not value.isprintable():
            raise InvalidConfig(
                f"slurm takes sbatch's options by their long names, such as time=8:00:00; got "
                f"{part!r}"
            )
        options[name] = value
    if text and not options:
        raise InvalidConfig("slurm names no option; at least time=8:00:00")
    if not WALLTIME.fullmatch(options.get("time", "1")):
        raise InvalidConfig(f"slurm: time is such as 8:00:00, got {options['time']!r}")
    return options
