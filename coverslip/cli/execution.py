"""What the running commands share: settings from flags, a run with its progress, the plan."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from coverslip.engine.config import RunConfig
    from coverslip.engine.nucleus_training import TrainedHead
    from coverslip.engine.scheduling import Scheduling


def names_in(text: str) -> tuple[str, ...]:
    """Names separated by commas; "none" and nothing are no name."""
    return tuple(name.strip() for name in text.split(",") if name.strip() not in ("", "none"))


def settings_from(parameters: dict[str, Any], config: Path | None) -> RunConfig:
    """The configuration file's settings with the named flags on top."""
    from dataclasses import fields

    from coverslip.engine.config import RunConfig

    known = {field.name for field in fields(RunConfig)}
    named = {k: v for k, v in parameters.items() if k in known and v is not None}
    for several in ("encoder", "slide_encoder", "export", "keep_identifiers"):
        if several in named:
            named[several] = names_in(named[several])
    if named.get("nuclei") == "none":
        named["nuclei"] = ""
    return RunConfig.from_toml(config, **named) if config else RunConfig(**named)


def scheduling_from(parameters: dict[str, Any]) -> Scheduling:
    """Who works on the slides, as the flags say."""
    from coverslip.engine.scheduling import Scheduling

    flags = ("scheduler", "slurm", "workers", "shard", "stage", "stage_limit")
    return Scheduling.of(**{flag: parameters[flag] for flag in flags})


def execute(
    slides: Sequence[str],
    output: Path,
    recursive: bool,
    settings: RunConfig,
    json: bool,
    debug: bool,
    scheduling: Scheduling | None = None,
) -> None:
    """Run, show progress, print the summary (or JSON); exit code 1 where a slide failed.

    Raises Stopped.
    """
    from coverslip.cli.progress import RunProgress, summary
    from coverslip.cli.stopping import stoppable
    from coverslip.engine.run import Run

    job = Run.over(slides, output, settings, recursive=recursive)
    if job.remark:
        print(f"coverslip: {job.remark}", file=sys.stderr)
    total = len(scheduling.own(job.slides) if scheduling else job.slides)
    with stoppable(), RunProgress(total, shown=not json) as progress:
        results = job.execute(
            scheduling=scheduling,
            observer=progress.observe,
            on_result=progress.finished,
            debug=debug,
        )
    for result in results if json else ():
        print_json(asdict(result))
    if not json:
        summary(results, output)
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)


def print_trained(trained: TrainedHead, use: str, json: bool) -> None:
    """What a training left, and how it is used: `use` with its path in place of {}; or JSON."""
    taught, held_out = trained.images
    if json:
        print_json({"weights": str(trained.path), "images": taught, "held_out": held_out,
                    **trained.figures})  # fmt: skip
        return
    shown = ", ".join(f"{k} {v:.3f}" for k, v in trained.figures.items() if k != "score")
    print(f"{taught} images, {held_out} held out{': ' + shown if shown else ''}")
    print(f"trained: {use.format(trained.path)}")


def print_json(content: dict[str, Any]) -> None:
    """One JSON object on a line of its own."""
    import orjson

    print(orjson.dumps(content).decode())


def print_plan(slides: Sequence[str], recursive: bool, settings: RunConfig) -> None:
    """What a run would take, slide by slide; exit code 1 where a slide cannot be processed."""
    from coverslip.cli.terminal import print_table
    from coverslip.engine.plan import encoder_rate, plan_slide
    from coverslip.engine.processors import available_processors
    from coverslip.wsi.opening import slide_paths

    paths = slide_paths(slides, recursive=recursive)
    rate = encoder_rate(settings)
    threads = settings.threads or available_processors()
    plans = [plan_slide(path, settings, threads, rate) for path in paths]
    rows = [
        (p.file, f"{p.tiles:,}", _size(p.source_bytes), _size(p.output_bytes),
         f"{p.seconds:.0f} s", _size(p.memory_bytes))
        for p in plans
        if not p.problem
    ]  # fmt: skip
    print_table(("slide", "tiles", "read", "written", "time", "memory"), rows)
    print(
        f"{len(rows)} slides, {sum(p.tiles for p in plans):,} tiles, about "
        f"{sum(p.seconds for p in plans):.0f} s with {threads} threads; memory is above the "
        "interpreter's and the model's"
    )
    problems = [p.problem for p in plans if p.problem]
    for problem in problems:
        print(f"cannot be processed: {problem}")
    if problems:
        raise typer.Exit(1)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
