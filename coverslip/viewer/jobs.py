"""Stages of a run on one slide, asked for from the page: one at a time, with their progress.

A job does what `coverslip run` would with the settings that the slide was run with before, less the
outputs that were not asked for; the report of that run is left as it is.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from coverslip.engine.config import RunConfig
from coverslip.engine.journal import Journal, read_journals
from coverslip.engine.process import process_or_explain
from coverslip.engine.run import Run
from coverslip.engine.sharing import devices_of
from coverslip.engine.slide_stage import check_slide_encoders
from coverslip.errors import InvalidConfig
from coverslip.settings import settings_of
from coverslip.viewer.work import TooBusy

State = Literal["waiting", "running", "done", "failed", "cancelled"]
MOST_WAITING = 16
MOST_KEPT = 200
"""Jobs that are remembered; the oldest that are over are forgotten first."""


@dataclass(frozen=True, slots=True)
class Stages:
    """What may be asked for from the page: names as of `coverslip run`, no paths of files.

    A model is named as it is registered; one in a file of its own is for the command line.
    """

    encoder: tuple[str, ...] = ()
    slide_encoder: tuple[str, ...] = ()
    nuclei: str = ""
    nucleus_views: int = 0
    stain: str = ""
    quality: bool = False
    export: tuple[str, ...] = ()
    device: str = ""
    batch: int = 0

    def __post_init__(self) -> None:
        names = [*self.encoder, *self.slide_encoder, self.nuclei, self.stain, self.device]
        for name in (*names, *self.export):
            if not isinstance(name, str) or len(name) > 200:
                raise InvalidConfig("stages are asked for by name")
            if name.endswith((".safetensors", ".json", ".pt", ".pth", ".zarr")) or name.startswith(
                (".", "/", "~")
            ):
                raise InvalidConfig(f"{name!r} is a file: the command line takes it, the page "
                                    "takes registered names")  # fmt: skip


def stages_from(content: Any) -> Stages:
    """Stages as JSON. Raises InvalidConfig for an unknown name, a wrong type, or none at all."""
    if not isinstance(content, Mapping) or not content:
        raise InvalidConfig('stages is an object such as {"nuclei": "default"}')
    several = ("encoder", "slide_encoder", "export")
    return settings_of(
        Stages,
        {
            str(name): (value,) if name in several and isinstance(value, str) else value
            for name, value in content.items()
        },
    )


def job_config(base: RunConfig, stages: Stages) -> RunConfig:
    """The settings of an earlier run, with these outputs and no others.

    Tissue, grid and colours stay as they were, so that what stands on them stays. Raises
    InvalidConfig.
    """
    asked = {f.name: getattr(stages, f.name) for f in fields(stages)}
    kept = {name for name in ("stain", "device", "batch") if not asked[name]}
    changes = {name: value for name, value in asked.items() if name not in kept}
    weights = base.weights if base.encoder == stages.encoder else ""
    config = replace(base, tissue_map="", pixels="none", image="none", weights=weights, **changes)
    check_slide_encoders(config)
    return config


def last_config(output: Path, slide_id: str) -> RunConfig:
    """Of the slide's last run in this folder; the standard settings where there was none."""
    found: Mapping[str, Any] = {}
    latest: Mapping[str, Any] = {}
    when = 0.0
    for event in read_journals(output):
        if event.get("event") == "run" and isinstance(event.get("config"), dict):
            latest = event["config"]
        elif event.get("event") == "slide" and event.get("slide") == slide_id:
            time = event.get("time")
            if isinstance(time, int | float) and time >= when:
                found, when = latest, time
    known = {f.name: f.default for f in fields(RunConfig)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in found.items()
        if name in known
    }
    return RunConfig(**values)


class Cancelled(BaseException):
    """A person has stopped the job; no error of the slide's, so nothing may take it for one."""


@dataclass
class Job:
    """One job; what it says may be read from any thread.

    done, total   of the stage in hand
    message       the stage in hand; in the end, what became of it
    """

    id: str
    slide: str
    state: State = "waiting"
    stage: str = ""
    done: int = 0
    total: int = 0
    message: str = "waiting for its turn"
    stopping: bool = field(default=False, repr=False)

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "failed", "cancelled")

    def to_dict(self) -> dict[str, Any]:
        """As the page is told of it."""
        return {name: getattr(self, name) for name in
                ("id", "slide", "state", "stage", "done", "total", "message")}  # fmt: skip


class Jobs:
    """All jobs of a viewer.

    output   folder of the run
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="job")
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, path: str, slide_id: str, stages: Stages) -> Job:
        """A job on the slide at `path`. Raises InvalidConfig; TooBusy."""
        base = last_config(self._output, slide_id)
        config = job_config(base, stages)
        with self._lock:
            if sum(not job.over for job in self._jobs.values()) >= MOST_WAITING:
                raise TooBusy
            over = [name for name, job in self._jobs.items() if job.over]
            for name in over[: max(0, len(self._jobs) + 1 - MOST_KEPT)]:
                del self._jobs[name]
            job = Job(secrets.token_hex(8), slide_id)
            self._jobs[job.id] = job
        self._pool.submit(self._work, job, path, base, config)
        return job

    def get(self, job_id: str) -> Job | None:
        """None where there is none of that name."""
        with self._lock:
            return self._jobs.get(job_id)

    def stop(self, job: Job) -> None:
        """Have a job end at its next word, or at once where it has not begun; what it has written
        stays, and can be gone on with."""
        with self._lock:
            job.stopping = True
            if job.state == "waiting":
                job.state, job.message = "cancelled", "stopped before it began"

    def _work(self, job: Job, path: str, base: RunConfig, config: RunConfig) -> None:
        def observe(slide: str, stage: str, done: int, total: int) -> None:
            if job.stopping:
                raise Cancelled
            job.stage, job.done, job.total, job.message = stage, done, total, stage

        with self._lock:
            if job.over:
                return
            job.state, job.message = "running", "opening"
        try:
            run = Run(((path, job.slide),), self._output, config)
            with Journal(self._output) as journal:
                # the settings that the next job is to begin from, too
                journal.write("run", slides=1, config=asdict(base), outputs=asdict(config))
                device = devices_of(config.device)[0]
                context = run.context(journal, device, observer=observe)
                result = process_or_explain(path, job.slide, context, debug=False)
                if result is not None:
                    journal.write("run ended", counts={result.status: 1})
        except Cancelled:
            job.message, job.state = "stopped; what was finished is kept", "cancelled"
        except Exception as error:
            job.message, job.state = f"unexpected {type(error).__name__}: {error}", "failed"
        else:
            if result is None:
                job.message, job.state = "another process is working on this slide", "failed"
                return
            failed = result.status == "failed"
            job.message = result.reason if failed else "; ".join([result.status, *result.flags])
            job.state = "failed" if failed else "done"

    def close(self) -> None:
        """Stop all of them."""
        for job in list(self._jobs.values()):
            if not job.over:
                self.stop(job)
        self._pool.shutdown(wait=True, cancel_futures=True)
