"""A run: slides times stages on an output folder. One bad slide is a row, never a crash."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coverslip.durable import make_folder, remove_unfinished, unfinished_prefix
from coverslip.engine.config import RunConfig
from coverslip.engine.disclosure import name_remark
from coverslip.engine.exports import WRITERS
from coverslip.engine.journal import Journal
from coverslip.engine.process import Observer, RunContext, process_slide
from coverslip.engine.processors import available_processors
from coverslip.engine.report import write_report
from coverslip.engine.result import SlideResult
from coverslip.engine.sharing import devices_of, share_slides
from coverslip.engine.slide_stage import check_slide_encoders
from coverslip.errors import CoverslipError, StoreError
from coverslip.kernels.warm_up import KernelFamily, warm_up
from coverslip.tiling.lock import remove_abandoned_claims
from coverslip.wsi.naming import file_name, slide_name
from coverslip.wsi.opening import slide_paths


@dataclass(frozen=True, slots=True)
class Run:
    """Slides to be brought up to date in an output folder.

    slides     paths and URLs, each with the id its store will have
    output     folder of stores, exports, journal and report
    """

    slides: tuple[tuple[str, str], ...]
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
        observer: Observer | None = None,
        on_result: Callable[[SlideResult], None] | None = None,
        debug: bool = False,
    ) -> list[SlideResult]:
        """Process every slide; returns a result for each, in order.

        observer    called with (slide id, stage, done, total) while pixels are read
        on_result   called after each slide
        debug       let unexpected exceptions (bugs) propagate

        Raises StoreError where the output folder cannot be written at all; InvalidConfig where a
        slide encoder does not fit the tiles.
        """
        check_slide_encoders(self.config)
        _make_writable(self.output)
        _clear_up(self.output)
        keep = self.config.keep_identifiers
        with Journal(self.output, keep) as journal:
            journal.write("run", slides=len(self.slides), config=dataclasses.asdict(self.config))
            devices = devices_of(self.config.device)
            done: dict[str, SlideResult] = {}

            def finished(result: SlideResult) -> None:
                done[result.slide] = result
                if on_result is not None:
                    on_result(result)

            if len(devices) > 1:
                share_slides(self, devices, journal, observer or _silent, finished)
            else:
                context = self.context(journal, devices[0], observer=observer or _silent)
                for path, slide_id in self.slides:
                    finished(process_or_explain(path, slide_id, context, debug))
            results = [done[slide_id] for _, slide_id in self.slides]
            write_report(self.output, results, settings_as_toml(self.config), keep)
            journal.write("run ended", counts=Counter(r.status for r in results))
        return results

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


def _warm_kernels(config: RunConfig) -> None:
    """Begin to compile what the run will need while the first slide is opened."""
    families: list[KernelFamily] = ["resample"]
    families += ["stain"] if config.stain != "none" or config.nuclei else []
    families += ["labels"] if config.nuclei else []
    warm_up(families)


def process_or_explain(path: str, slide_id: str, context: RunContext, debug: bool) -> SlideResult:
    """One slide's row, whatever happens to it; bugs propagate where `debug`."""
    context.journal.write("slide", slide=slide_id, file=file_name(path))
    try:
        result = process_slide(path, slide_id, context)
    except CoverslipError as error:
        if debug:
            context.journal.write("traceback", slide=slide_id, text=traceback.format_exc())
        result = SlideResult(slide_id, file_name(path), status="failed", reason=str(error))
    except Exception as error:
        if debug:
            raise
        context.journal.write("traceback", slide=slide_id, text=traceback.format_exc())
        reason = (
            f"{file_name(path)}: unexpected {type(error).__name__}: {error}\n"
            "  this is a fault of the engine; run with --debug for the traceback"
        )
        result = SlideResult(slide_id, file_name(path), status="failed", reason=reason)
    context.journal.write("slide ended", **dataclasses.asdict(result))
    return result


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
