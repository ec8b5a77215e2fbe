"""A run: slides times stages on an output folder. One bad slide is a row, never a crash."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from coverslip.durable import make_folder, remove_unfinished, unfinished_prefix
from coverslip.engine.config import RunConfig
from coverslip.engine.disclosure import name_remark
from coverslip.engine.exports import WRITERS
from coverslip.engine.journal import Journal, JournalTail
from coverslip.engine.process import Observer, RunContext, process_or_explain
from coverslip.engine.processors import available_processors
from coverslip.engine.report import write_report
from coverslip.engine.result import SlideResult
from coverslip.engine.scheduling import Scheduling, Slide
from coverslip.engine.sharing import devices_of, share_slides
from coverslip.engine.slide_queue import LOOK_S, SlideQueue, rows_told
from coverslip.engine.slide_stage import check_slide_encoders
from coverslip.engine.staging import ReadAhead
from coverslip.errors import StoreError
from coverslip.kernels.warm_up import KernelFamily, warm_up
from coverslip.tiling.lock import remove_abandoned_claims
from coverslip.wsi.naming import slide_name
from coverslip.wsi.opening import slide_paths


@dataclass(frozen=True, slots=True)
class Run:
    """Slides to be brought up to date in an output folder.

    slides     paths and URLs, each with the id its store will have
    output     folder of stores, exports, journal and report
    """

    slides: tuple[Slide, ...]
    output: Path
    config: RunConfig

    @classmethod
    def over(
        cls,
        inputs: Iterable[str | os.PathLike[str]],
        output: str | os.PathLike[str],
        config: RunConfig | None = None,
        *,
        recursive: bool = False,
    ) -> Run:
        """A run over files, folders and globs."""
        paths = slide_paths([os.fspath(i) for i in inputs], recursive=recursive)
        return cls(slide_ids([os.fspath(p) for p in paths]), Path(output), config or RunConfig())

    def execute(
        self,
        *,
        scheduling: Scheduling | None = None,
        observer: Observer | None = None,
        on_result: Callable[[SlideResult], None] | None = None,
        debug: bool = False,
    ) -> list[SlideResult]:
        """Process every slide; returns a result for each of this shard's, in order.

        Any number of runs may work in one folder at once, on one machine or many: each takes the
        slides that no other has in hand, and all of them end when all slides are done.

        scheduling   who works on the slides; this process by default
        observer     called with (slide id, stage, done, total) while pixels are read
        on_result    called after each slide
        debug        let unexpected exceptions (bugs) propagate, where this process works alone

        Raises StoreError where the output folder cannot be written at all; InvalidConfig where a
        slide encoder does not fit the tiles; MissingPackage.
        """
        scheduling, observer = scheduling or Scheduling(), observer or _silent
        check_slide_encoders(self.config)
        _make_writable(self.output)
        _clear_up(self.output)
        own, keep = scheduling.own(self.slides), self.config.keep_identifiers
        with Journal(self.output, keep) as journal:
            config = dataclasses.asdict(self.config)
            journal.write("run", slides=len(self.slides), own=len(own), config=config)
            done: dict[str, SlideResult] = {}

            def finished(result: SlideResult) -> None:
                done[result.slide] = result
                if on_result is not None:
                    on_result(result)

            queue = SlideQueue(own, self.output, self.config.digest, finished, observer)
            self._work_off(queue, scheduling, journal, observer, debug)
            results = [done[slide_id] for _, slide_id in own]
            self._report(done)
            journal.write("run ended", counts=Counter(r.status for r in results))
        return results

    def _work_off(
        self,
        queue: SlideQueue,
        scheduling: Scheduling,
        journal: Journal,
        observer: Observer,
        debug: bool,
    ) -> None:
        if scheduling.distributed:
            from coverslip.engine.dask_workers import share_over_dask

            share_over_dask(self, queue, scheduling, journal, observer)
            return
        devices, staging = devices_of(self.config.device), scheduling.staging
        with ExitStack() as stack:
            copies: ReadAhead | None = None
            if staging is not None:
                ahead = ReadAhead([path for path, _ in queue.waiting], staging, len(devices))
                copies = stack.enter_context(ahead)
            if len(devices) > 1:
                share_slides(self, devices, queue, copies, journal, observer)
            else:
                context = self.context(journal, devices[0], observer=observer)
                _work_off_alone(queue, copies, context, debug)

    def _report(self, done: dict[str, SlideResult]) -> None:
        """Of all slides: those of other shards as journals tell of them. It is written again where
        they told more meanwhile, so that whoever comes last has written all."""
        others = {slide_id for _, slide_id in self.slides} - done.keys()
        told: dict[str, tuple[float, SlideResult]] = {}
        tail = JournalTail(self.output)
        written = False
        while self._hear(tail, others, told) or not written:
            rows = {**{slide: row for slide, (_, row) in told.items()}, **done}
            results = [rows[slide_id] for _, slide_id in self.slides if slide_id in rows]
            settings = settings_as_toml(self.config)
            write_report(self.output, results, settings, self.config.keep_identifiers)
            written = True

    def _hear(
        self, tail: JournalTail, others: set[str], told: dict[str, tuple[float, SlideResult]]
    ) -> bool:
        """Whether journals told more of other shards' slides, of these settings."""
        if not others:
            return False
        more = False
        for when, result in rows_told(tail, self.config.digest):
            slide = result.slide
            if slide in others and (slide not in told or told[slide][0] <= when):
                told[slide], more = (when, result), True
        return more

    @property
    def remark(self) -> str:
        """What a person should know of the slides' names, which stores are called after; or ""."""
        return name_remark([path for path, _ in self.slides])

    def context(
        self, journal: Journal, device: str, *, observer: Observer, sharing: int = 1
    ) -> RunContext:
        """What a process works with that shares the machine with `sharing` - 1 others."""
        _warm_kernels(self.config)
        return RunContext(
            output=self.output,
            config=self.config,
            journal=journal,
            threads=self.config.threads or max(1, available_processors() // sharing),
            device=device,
            observer=observer,
        )


def _work_off_alone(
    queue: SlideQueue, copies: ReadAhead | None, context: RunContext, debug: bool
) -> None:
    """One slide after the other, in this process."""
    while not queue.over:
        slide = queue.next()
        if slide is None:  # others have the rest in hand
            time.sleep(LOOK_S / 4)
            continue
        path, slide_id = slide
        staged = copies.slide(path) if copies else None
        try:
            queue.take(slide, process_or_explain(path, slide_id, context, debug, staged))
        finally:
            if copies:
                copies.release(path)


def _warm_kernels(config: RunConfig) -> None:
    """Begin to compile what the run will need while the first slide is opened."""
    families: list[KernelFamily] = ["resample"]
    families += ["stain"] if config.stain != "none" or config.nuclei else []
    families += ["labels"] if config.nuclei else []
    warm_up(families)


def slide_ids(paths: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(path, id) for each: the file's stem, with a short hash of its place where stems collide."""
    stems = [_safe(slide_name(path)) for path in paths]
    times = Counter(stem.casefold() for stem in stems)
    local = [os.path.abspath(p) for p in paths if "://" not in p]
    shared = os.path.commonpath([os.path.dirname(p) for p in local]) if local else ""
    ids = []
    for path, stem in zip(paths, stems, strict=True):
        if times[stem.casefold()] > 1:
            place = path if "://" in path else os.path.relpath(os.path.abspath(path), shared)
            digest = hashlib.blake2b(os.fsencode(place), digest_size=4).hexdigest()
            stem = f"{stem}-{digest}"
        ids.append((path, stem))
    return tuple(ids)


def _safe(name: str) -> str:
    """`name` as a folder name: separators, control characters and leading dots replaced, and cut
    where file systems would refuse its length."""
    kept = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in name)
    kept = "_" + kept[1:] if kept.startswith(".") else kept
    return kept.encode()[:160].decode(errors="ignore") or "_"


def _make_writable(folder: Path) -> None:
    try:
        make_folder(folder)
        probe = folder / f"{unfinished_prefix()}probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StoreError(
            folder, f"cannot be written: {error.strerror or error}", "choose another folder with -o"
        ) from None


def _clear_up(folder: Path) -> None:
    """Remove what killed processes left half written outside the stores, which see to theirs."""
    remove_unfinished(folder)
    remove_abandoned_claims(folder)
    for exported in WRITERS:
        for below, _, _ in os.walk(folder / exported):
            remove_unfinished(Path(below))


def settings_as_toml(config: RunConfig) -> str:
    """The configuration as a TOML file that `--config` reads back."""
    import json

    lines = []
    for name, value in dataclasses.asdict(config).items():
        if value is None:
            continue
        lines.append(f"{name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}")
    return "\n".join(lines) + "\n"


def _silent(slide: str, stage: str, done: int, total: int) -> None:
    pass
