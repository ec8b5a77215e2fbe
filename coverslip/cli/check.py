"""`coverslip check`: the pre-flight."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from coverslip.cli import options
from coverslip.cli.execution import print_json, settings_from


def check(
    context: typer.Context,
    slides: options.Slides,
    recursive: options.Recursive = False,
    config: options.Config = None,
    assume_mpp: options.AssumeMpp = None,
    mpp_table: options.MppTable = None,
    trust_objective: options.TrustObjective = None,
    read_timeout: options.ReadTimeout = None,
    samples: int = typer.Option(16, help="Native tiles decoded per level."),
    json: options.Json = False,
) -> None:
    """Pre-flight: does each slide open, know its pixel size, and decode where sampled?"""
    from coverslip.engine.check import check_slide
    from coverslip.wsi.opening import slide_paths

    settings = settings_from(context.params, config)
    bad = 0
    for path in slide_paths(slides, recursive=recursive):
        found = check_slide(path, settings, samples)
        bad += not found.sound
        if json:
            print_json(asdict(found))
            continue
        size = f"{found.size[0]} x {found.size[1]} px, {found.levels} levels"
        mpp = f"{found.mpp[0]:g} µm ({found.mpp_source})" if found.mpp[0] else "no mpp"
        word = "ok      " if found.sound else "problem "
        print(f"{word} {Path(path).name}: {size}, {mpp}, {found.sampled} tiles sampled, "
              f"{found.rate:.0f} Mpx/s")  # fmt: skip
        for problem in found.problems:
            print(f"         {problem}")
    if bad:
        raise typer.Exit(1)
