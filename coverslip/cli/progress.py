"""What a run shows while it goes on, and when it is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from coverslip.cli.terminal import print_table
from coverslip.engine.result import SlideResult


class _Bars:
    """Bars on standard error, with a text of figures between count and remaining time."""

    def __init__(self, shown: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


class RunProgress(_Bars):
    """A bar for the slides and one for each stage of the slide in hand, with rates."""

    def __init__(self, total: int, shown: bool = True) -> None:
        super().__init__(shown)
        self._slides = self._progress.add_task("slides", total=total, figures="")
        self._stages: dict[tuple[str, str], TaskID] = {}

    def observe(self, slide: str, stage: str, done: int, total: int) -> None:
        """An engine's observer."""
        key = (slide, stage)
        if key not in self._stages:
            name = f"  {slide}: {stage}"
            self._stages[key] = self._progress.add_task(name, total=total, figures="")
        task = self._progress.tasks[self._progress.task_ids.index(self._stages[key])]
        rate = f"{task.speed:.0f}/s" if task.speed else ""
        self._progress.update(task.id, completed=done, figures=rate)

    def finished(self, result: SlideResult) -> None:
        """One more slide is over."""
        for key in [key for key in self._stages if key[0] == result.slide]:
            self._progress.remove_task(self._stages.pop(key))
        self._progress.advance(self._slides)
        if result.status == "failed":
            self._progress.console.print(f"failed: {result.reason}", markup=False, highlight=False)


class TrainingProgress(_Bars):
    """A bar over the steps of a training, with its loss and tiles or images per second."""

    def __init__(self, total: int, shown: bool = True) -> None:
        super().__init__(shown)
        self._task = self._progress.add_task("training", total=total, figures="")

    def observe(self, done: int, total: int, row: Mapping[str, float]) -> None:
        """A training's observer."""
        speed = next(k for k in ("tiles_per_second", "images_per_second") if k in row)
        figures = f"loss {row['loss']:.3f}  {row[speed]:.0f} {speed.split('_')[0]}/s"
        self._progress.update(self._task, completed=done, total=total, figures=figures)


class StudyProgress(_Bars):
    """A bar over the steps of the fold in hand."""

    def __init__(self, shown: bool = True) -> None:
        super().__init__(shown)
        self._task = self._progress.add_task("study", total=None, figures="")

    def observe(self, fold: str, done: int, total: int) -> None:
        """A study's observer."""
        name = f"fold {fold}"
        self._progress.update(self._task, description=name, completed=done, total=total)


def summary(results: Sequence[SlideResult], output: Path) -> None:
    """A row per slide, what failed and why, and where the report is."""
    rows = [
        (r.slide, r.status, f"{r.mpp[0]:.4g}" if r.mpp[0] else "", f"{r.tiles:,}",
         "" if r.nuclei is None else f"{r.nuclei:,}", f"{r.total_seconds:.1f}", r.bottleneck)
        for r in results
    ]  # fmt: skip
    print_table(("slide", "status", "µm/px", "tiles", "nuclei", "seconds", "slowest"), rows)
    failed = [r for r in results if r.status == "failed"]
    if failed:
        print(f"{len(failed)} of {len(results)} slides failed:")
    for r in failed:
        print(f"  {r.reason}")
    print(f"report: {output / 'report.html'}")
