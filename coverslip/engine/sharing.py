"""Several processes on one machine share a run: one per device, a slide at a time.

The parent hands out slides one by one and keeps the progress and the results; a process that dies
(out of memory, a crash in a driver) costs its slide's row, and another takes its place.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from coverslip.engine.journal import Journal
from coverslip.engine.result import SlideResult
from coverslip.engine.scheduling import Slide
from coverslip.engine.slide_queue import LOOK_S, SlideQueue
from coverslip.engine.staging import ReadAhead
from coverslip.errors import InvalidConfig
from coverslip.wsi.naming import file_name

if TYPE_CHECKING:
    from coverslip.engine.process import Observer
    from coverslip.engine.run import Run

DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?|mps")
OBSERVED = 0.2
"""Seconds between two words of progress from a process."""


def devices_of(text: str) -> list[str]:
    """ "auto", "cpu", "cuda:1", several by comma, or "all" GPUs. Raises InvalidConfig."""
    if text == "all":
        import torch

        if not torch.cuda.device_count():
            raise InvalidConfig("device all: torch sees no GPU; coverslip doctor says what it sees")
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not DEVICE.fullmatch(name):
            raise InvalidConfig(f"device: auto, cpu, cuda, cuda:1, several by comma; got {name!r}")
    return names


@dataclass(slots=True)
class _Worker:
    """A process, the slide it has in hand, and the line to it."""

    device: str
    process: BaseProcess
    line: Connection
    slide: Slide | None = None
    handing: Future[None] | None = None

    def hand_over(self, slide: Slide, copies: ReadAhead | None) -> None:
        """A slide to the process, once it is copied where it has to be."""
        staged = copies.slide(slide[0]) if copies else None
        with contextlib.suppress(OSError):  # it has died: seen where its line is listened to
            self.line.send((*slide, staged))


def share_slides(
    run: Run,
    devices: Sequence[str],
    queue: SlideQueue,
    copies: ReadAhead | None,
    journal: Journal,
    observer: Observer,
) -> None:
    """Process all slides of a run, one process per device; results come as they are ready."""
    workers = [_begun(run, device, len(devices)) for device in devices[: len(queue.waiting)]]
    with ThreadPoolExecutor(max(1, len(workers))) as hands:
        try:
            while not queue.over:
                for worker in [worker for worker in workers if worker.slide is None]:
                    worker.slide = queue.next()
                    if worker.slide is not None:
                        worker.handing = hands.submit(worker.hand_over, worker.slide, copies)
                for worker in _spoken(workers):
                    assert worker.slide is not None
                    died = False
                    try:
                        message = worker.line.recv()
                    except (EOFError, OSError):
                        message, died = _died(worker, journal), True
                    if isinstance(message, tuple):
                        observer(*message)
                        continue
                    if copies:
                        copies.release(worker.slide[0])
                    queue.take(worker.slide, message)
                    worker.slide = None
                    if died:
                        workers.remove(worker)
                        if not queue.over:
                            workers.append(_begun(run, worker.device, len(devices)))
        finally:
            for worker in workers:
                _ended(worker)


def _spoken(workers: Sequence[_Worker]) -> list[_Worker]:
    """Those with a slide that have something to say; after a while, none."""
    for worker in workers:
        if worker.handing is not None and worker.handing.done():
            worker.handing.result()  # its error, if it had one
    busy = {worker.line: worker for worker in workers if worker.slide is not None}
    return [busy[line] for line in wait(busy, LOOK_S / 4)]  # type: ignore[index]


def _begun(run: Run, device: str, sharing: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work, args=(run, device, sharing, theirs), name=f"coverslip {device}", daemon=True
    )
    process.start()
    theirs.close()
    return _Worker(device, process, ours)


def _ended(worker: _Worker) -> None:
    """Hang up; the process ends behind the slide it has in hand, or is made to."""
    if worker.slide is not None:
        worker.process.terminate()
    worker.line.close()
    worker.process.join()


def _died(worker: _Worker, journal: Journal) -> SlideResult:
    worker.process.join()
    assert worker.slide is not None  # a process without a slide is not listened to
    path, slide_id = worker.slide
    code = worker.process.exitcode or 0
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    reason = (
        f"{file_name(path)}: the process that worked on it on {worker.device} died ({how})\n"
        "  where the system ran out of memory, use fewer devices at once; what was finished is "
        "kept, and the next run goes on from there"
    )
    journal.write("process died", slide=slide_id, device=worker.device, how=how)
    result = SlideResult(slide_id, file_name(path), status="failed", reason=reason)
    journal.write("slide ended", **asdict(result))
    return result


def _work(run: Run, device: str, sharing: int, line: Connection) -> None:
    """What a process does: slides come down the line, progress and results go up."""
    from coverslip.engine.process import process_or_explain

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    observe = rarely(line.send)
    keep = run.config.keep_identifiers
    with Journal(run.output, keep) as journal, contextlib.suppress(EOFError):
        context = run.context(journal, device, observer=observe, sharing=sharing)
        limit_torch(context.threads)
        while True:
            path, slide_id, staged = line.recv()
            line.send(process_or_explain(path, slide_id, context, False, staged))


def rarely(send: Callable[[tuple[str, str, int, int]], object]) -> Observer:
    """An observer that sends on what it is told: the ends of stages, and a word in between."""
    said = 0.0

    def observe(slide: str, stage: str, done: int, total: int) -> None:
        nonlocal said
        if done == total or time.monotonic() - said > OBSERVED:
            said = time.monotonic()
            send((slide, stage, done, total))

    return observe


def limit_torch(count: int) -> None:
    """Have torch use as many threads, now or once it is imported: this process's share."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)
