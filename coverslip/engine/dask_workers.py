"""A run's slides on the workers of a Dask cluster: of this machine, of Slurm's jobs, or one that
exists.

A slide is one task. A worker that dies costs nothing but time: Dask hands its slide to another,
which goes on behind the last block on disk. Workers write their stores themselves; what comes back
is a row.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from coverslip.engine.journal import Journal
from coverslip.engine.processors import available_processors
from coverslip.engine.result import SlideResult
from coverslip.engine.scheduling import Scheduling, Slide
from coverslip.engine.sharing import devices_of, limit_torch, rarely
from coverslip.engine.slide_queue import LOOK_S, SlideQueue
from coverslip.engine.staging import Staging, staged
from coverslip.errors import InvalidConfig, MissingPackage, StoreError
from coverslip.wsi.naming import file_name

if TYPE_CHECKING:
    from distributed import Client, Future
    from distributed.deploy import Cluster

    from coverslip.engine.process import Observer, RunContext
    from coverslip.engine.run import Run

DEATHS = 1
"""So many may befall the worker that has a slide before it comes back. Those that lay beside it
come back, too, so each gets another chance, alone, before it is given up."""
PROCESSORS_EACH = 4
"""Of a worker on this machine, where nobody says how many workers there are to be."""
CONNECT_S = 30
SAID = logging.CRITICAL
"""By Dask: rows tell what went wrong."""
ONE_AT_A_TIME = threading.Lock()
"""In a worker: its threads copy slides while one of them is processed."""


def share_over_dask(
    run: Run, queue: SlideQueue, scheduling: Scheduling, journal: Journal, observer: Observer
) -> None:
    """Process all slides of a run on Dask's workers; rows come as they are ready.

    Raises InvalidConfig: no scheduler at the address, or options that Slurm does not take;
    MissingPackage.
    """
    with ExitStack() as stack:
        try:
            client, gpus = stack.enter_context(_connected(run, scheduling))
        except ImportError as error:
            extra = "slurm" if scheduling.slurm else "dask"
            raise MissingPackage("sharing slides by Dask", str(error.name), extra) from None
        topic = f"coverslip-{uuid.uuid4().hex}"
        heard: SimpleQueue[tuple[str, str, int, int]] = SimpleQueue()  # from Dask's own thread
        client.subscribe_topic(topic, lambda event: heard.put(event[1]))
        distribution = _Distribution(
            client, _portable(run), scheduling.staging, topic, gpus, observer
        )
        stack.callback(distribution.drop)
        while not queue.over:
            while distribution.room() and (slide := queue.next()) is not None:
                distribution.hand_out(slide)
            distribution.try_a_suspect()
            distribution.tell(heard)
            for slide, result in distribution.returned():
                if isinstance(result, str):
                    reason = f"{file_name(slide[0])}: {result}"
                    result = SlideResult(slide[1], file_name(slide[0]), "failed", reason)
                    journal.write("slide ended", **asdict(result))
                queue.take(slide, result)


class _Distribution:
    """Slides that are with Dask's workers."""

    def __init__(
        self,
        client: Client,
        run: Run,
        staging: Staging | None,
        topic: str,
        gpus: bool,
        observer: Observer,
    ) -> None:
        self._client, self._common = client, (run, staging, topic)
        self._resources = {"GPU": 1} if gpus else None
        self._with: dict[Future, Slide] = {}
        self._suspects, self._tried = deque[Slide](), set[Slide]()
        self._observer, self._some = observer, True
        self._counted, self._threads, self._workers = -60.0, 0, 0
        self._sharing: Counter[str] = Counter()

    def room(self) -> bool:
        """Whether workers want more: each has slides in hand, and one to go on with at once."""
        if time.monotonic() - self._counted > LOOK_S:  # workers come and go
            self._counted = time.monotonic()
            workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
            self._workers = len(workers)
            self._threads = sum(int(worker["nthreads"]) for worker in workers)
            self._sharing = Counter(str(worker["host"]) for worker in workers)
            self._tell_of_none()
        return len(self._with) < self._threads + max(1, self._workers)

    def _tell_of_none(self) -> None:
        """Jobs may wait in Slurm's queue for hours."""
        if bool(self._threads) != self._some:
            self._some = bool(self._threads)
            self._observer("Dask", "waiting for workers", int(self._some), 1)

    def tell(self, heard: SimpleQueue[tuple[str, str, int, int]]) -> None:
        """The observer what workers said of slides that they have in hand."""
        busy = {slide_id for _, slide_id in self._with.values()}
        while not heard.empty():
            progress = heard.get()
            if progress[0] in busy:
                self._observer(*progress)

    def hand_out(self, slide: Slide) -> None:
        sharing = max(self._sharing.values(), default=1)
        future = self._client.submit(
            _row,
            *slide,
            *self._common,
            sharing,
            pure=False,
            key=f"{slide[1]}-{uuid.uuid4().hex[:8]}",
            resources=self._resources,
        )
        self._with[future] = slide

    def try_a_suspect(self) -> None:
        """Once the others are done: a slide over which, or beside which, workers died, alone."""
        if self._suspects and not self._with:
            self._tried.add(self._suspects[0])
            self.hand_out(self._suspects.popleft())

    def returned(self) -> Iterator[tuple[Slide, SlideResult | str | None]]:
        """Those that are over, waited for a moment: a row, what went wrong with its workers, or
        None where another run has it in hand."""
        from distributed import wait
        from distributed.scheduler import KilledWorker

        if not self._with:
            time.sleep(LOOK_S / 4)
            return
        try:
            wait(list(self._with), timeout=LOOK_S / 4, return_when="FIRST_COMPLETED")
        except TimeoutError:
            return
        for future in [future for future in self._with if future.done()]:
            slide = self._with.pop(future)
            error = future.exception()
            if error is None:
                yield slide, future.result()
            elif slide not in self._tried:
                self._suspects.append(slide)
            elif isinstance(error, KilledWorker):
                yield (
                    slide,
                    "worker after worker died over it\n"
                    "  where they ran out of memory, give each more, or use fewer; what was "
                    "finished is kept, and the next run goes on from there",
                )
            else:
                yield slide, f"its worker failed with {type(error).__name__}: {error}"

    def drop(self) -> None:
        """Have the workers leave what they have not begun."""
        if self._with:
            self._client.cancel(list(self._with))


def _portable(run: Run) -> Run:
    """The run as workers get it with every slide: without the list of all slides, and with an
    output folder that does not depend on where they were started."""
    return replace(run, slides=(), output=run.output.absolute())


@contextmanager
def _connected(run: Run, scheduling: Scheduling) -> Iterator[tuple[Client, bool]]:
    """(client of the scheduler, whether slides go to workers that have a GPU)."""
    import dask
    from distributed import Client

    if "://" in scheduling.scheduler:
        if len(devices_of(run.config.device)) > 1:
            raise InvalidConfig("a Dask worker has one device: start a worker for each GPU")
        try:
            client = Client(scheduling.scheduler, timeout=CONNECT_S)
        except (OSError, TimeoutError) as error:
            raise InvalidConfig(
                f"no Dask scheduler answers at {scheduling.scheduler} ({type(error).__name__}); "
                "start one with: dask scheduler"
            ) from None
        with client:
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            offered = any(worker["resources"].get("GPU") for worker in workers)
            yield client, offered and run.config.device != "cpu"
        return
    settings = {
        "distributed.scheduler.allowed-failures": DEATHS,
        "distributed.worker.daemon": False,  # readers run in children of their own
        # what Dask measures beside the work costs a slide a tenth of its time
        "distributed.worker.profile.enabled": False,
        "distributed.admin.system-monitor.gil.enabled": False,
        "distributed.admin.system-monitor.disk": False,
        "distributed.admin.system-monitor.interval": "10s",
        "distributed.admin.tick.interval": "1s",
        "distributed.nanny.pre-spawn-environ": {},
    }
    with dask.config.set(settings):
        slurm = scheduling.slurm
        cluster, gpus = _slurm(run, scheduling) if slurm else _local(run, scheduling)
        with cluster, Client(cluster) as client:
            yield client, gpus


def _threads_each(scheduling: Scheduling) -> int:
    """Of a worker: one that processes; with staging, another that copies the next slide."""
    return 2 if scheduling.staging else 1


def _local(run: Run, scheduling: Scheduling) -> tuple[Cluster, bool]:
    """Workers on this machine: one for each GPU, or as many as are asked for."""
    from distributed import Nanny, Scheduler
    from distributed.deploy import SpecCluster

    devices = [device for device in devices_of(run.config.device) if device.startswith("cuda")]
    gpus = [device.partition(":")[2] or "0" for device in devices]
    count = scheduling.workers or len(gpus) or max(1, available_processors() // PROCESSORS_EACH)
    workers: dict[int, dict[str, Any]] = {}
    for number in range(count):
        options: dict[str, Any] = {
            "nthreads": _threads_each(scheduling),
            "memory_limit": 0,  # the system's own limit; Dask's counts mapped files as used
            "silence_logs": SAID,
            "dashboard": False,
        }
        if gpus:
            options["env"] = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]}
            options["resources"] = {"GPU": options["nthreads"]}
        workers[number] = {"cls": Nanny, "options": options}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False}}
    cluster = SpecCluster(workers, scheduler, silence_logs=SAID)
    return cluster, bool(gpus)


def _slurm(run: Run, scheduling: Scheduling) -> tuple[Cluster, bool]:
    """Workers in jobs of Slurm's, kept at their number: a job that ends is followed by another.
    What they print goes to `slurm/` in the output folder."""
    from dask_jobqueue import SLURMCluster

    options = dict(scheduling.slurm)
    processors = options.pop("cpus-per-task", "")
    if processors and not processors.isdecimal():
        raise InvalidConfig(f"slurm: cpus-per-task is a number, got {processors!r}")
    memory = options.pop("mem", "16G")
    gpus = any(name.startswith(("gpus", "gres")) and "gpu" in f"{name}={value}"
               for name, value in options.items())  # fmt: skip
    threads = _threads_each(scheduling)
    try:
        cluster = SLURMCluster(
            queue=options.pop("partition", None),
            account=options.pop("account", None),
            walltime=options.pop("time", "8:00:00"),
            cores=threads,
            processes=1,
            job_cpu=int(processors or 1),
            job_mem=memory,
            memory=memory.upper() + ("B" if memory[-1:].isalpha() else "MB"),
            job_name=options.pop("job-name", "coverslip"),
            job_extra_directives=[
                f"--{name}={value}" if value else f"--{name}" for name, value in options.items()
            ],
            worker_extra_args=["--resources", f"GPU={threads}"] if gpus else [],
            python=sys.executable,
            silence_logs=SAID,
            log_directory=str(run.output.absolute() / "slurm"),
        )
    except ValueError as error:
        raise InvalidConfig(f"slurm: {error}") from None
    jobs = scheduling.workers or 1
    cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
    return cluster, gpus


def _row(
    path: str,
    slide_id: str,
    run: Run,
    staging: Staging | None,
    topic: str,
    sharing: int,
) -> SlideResult | None:
    """A task: one slide, on a worker; see `process_or_explain`."""
    from coverslip.engine.process import process_or_explain

    with ExitStack() as stack:
        copy = stack.enter_context(staged(path, staging)) if staging else None
        stack.enter_context(ONE_AT_A_TIME)
        if topic not in _contexts:
            for before in _contexts.values():
                before.journal.close()
            _contexts.clear()  # its encoders make room for this run's
            _contexts[topic] = _begun(run, topic, sharing)
        context = _contexts[topic]
        return process_or_explain(path, slide_id, context, False, copy)


_contexts: dict[str, RunContext] = {}
"""In a worker, of the run in hand: encoders and models, loaded once, and the journal."""


def _begun(run: Run, topic: str, sharing: int) -> RunContext:
    """A run's context in this worker. Raises StoreError where its folder is not seen from here."""
    from distributed import get_worker

    observe = rarely(partial(get_worker().log_event, topic))
    if not run.output.is_dir():
        raise StoreError(
            run.output, f"is not a folder on {socket.gethostname()}", "workers must see the folder "
            "under the same path"
        )  # fmt: skip
    journal = Journal(run.output, run.config.keep_identifiers)
    device = devices_of(run.config.device)[0]
    if device.startswith("cuda") and os.environ.get("CUDA_VISIBLE_DEVICES", "").isdecimal():
        device = "cuda"  # the only one that this worker sees
    context = run.context(journal, device, observer=observe, sharing=sharing)
    limit_torch(context.threads)
    return context
