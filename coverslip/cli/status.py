"""`coverslip status`: how a run gets on, on the terminal or for Prometheus."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from coverslip.engine.status import RunStatus, RunWatcher

EVERY_S = 2.0
"""Between two looks."""
SHOWN = 3
"""Slides that are named for each reason."""


def status(
    output: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Look again every two seconds.")
    ] = False,
    serve: Annotated[
        int | None,
        typer.Option(
            "--serve",
            help="Answer Prometheus on this port, at /metrics; 0 takes one that is free.",
            min=0,
            max=65535,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to serve on; anyone who reaches it may ask.")
    ] = "127.0.0.1",
    window: Annotated[
        float, typer.Option("--window", help="Hours over which the rate is taken.", min=0.01)
    ] = 1.0,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout; a line each look.")
    ] = False,
) -> None:
    """How a run gets on: done, failed and why, running where, rate, time left."""
    from coverslip.cli.execution import print_json
    from coverslip.engine.status import RunWatcher

    watcher = RunWatcher(output, window * 3600)
    try:
        if serve is not None:
            _serve(watcher, host, serve)
            return
        while True:
            found = watcher.status()
            if json:
                print_json(asdict(found))
            else:
                _show(found, window, anew=watch)
            if not watch:
                return
            time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return


def _serve(watcher: RunWatcher, host: str, port: int) -> None:
    from coverslip.engine.metrics import MetricsServer

    with MetricsServer(watcher, host, port) as server:
        print(server.url, flush=True)
        server.serve_forever()


def _show(found: RunStatus, window: float, *, anew: bool) -> None:
    from coverslip.cli.terminal import console, print_table

    screen = console()
    if anew and screen.is_terminal:
        screen.clear()
    counts = [
        (f"{found.done + found.no_tissue:,} of {found.slides:,} slides done", 1),
        (f"{found.no_tissue:,} of them without tissue", found.no_tissue),
        (f"{found.failed:,} failed", found.failed),
        (f"{len(found.running):,} running", len(found.running)),
        (f"{len(found.interrupted):,} interrupted", len(found.interrupted)),
        (f"{found.waiting:,} waiting", found.waiting),
    ]
    print(", ".join(text for text, count in counts if count))
    print(f"{found.tiles:,} tiles, {found.nuclei:,} nuclei")
    if found.per_hour is not None:
        left = "" if found.seconds_left is None else f", {_length(found.seconds_left)} left"
        print(f"{found.per_hour:.1f} slides an hour, over {window:g} h{left}")
    if found.running:
        now = time.time()
        rows = [
            (w.slide, w.host, str(w.pid or ""),
             ", ".join(f"{stage} ({blocks})" for stage, blocks in w.stages.items()) or "opening",
             "" if w.since is None else _length(now - w.since))
            for w in found.running
        ]  # fmt: skip
        print_table(("running", "host", "process", "stages (blocks on disk)", "for"), rows)
    if found.failures:
        failed = [
            (str(len(f.slides)), f.reason,
             ", ".join(f.slides[:SHOWN]) + (", ..." if len(f.slides) > SHOWN else ""))
            for f in found.failures
        ]  # fmt: skip
        print_table(("failed", "reason", "slides"), failed)
    if found.seconds:
        spent = sorted(found.seconds.items(), key=lambda item: -item[1])
        print_table(("stage", "time"), [(stage, _length(seconds)) for stage, seconds in spent])
    if found.interrupted:
        print(f"interrupted: {', '.join(found.interrupted)}; run the same command again")
    if found.stale_locks:
        print(f"stale locks: {', '.join(found.stale_locks)}; the next run takes them over")


def _length(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    days, minutes = divmod(minutes, 24 * 60)
    return (f"{days} d " if days else "") + f"{minutes // 60} h {minutes % 60} min"
