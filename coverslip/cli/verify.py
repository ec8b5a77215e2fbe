"""`coverslip verify`: whether an output folder holds what was written, and what to redo."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from coverslip.engine.verify import StoreVerdict


def verify(
    output: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Remove what is damaged and what stands on it; the next run makes it."
        ),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare checksums; decode only what has none.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a store.")] = False,
) -> None:
    """Check every store and export of a run: checksums, completeness, shapes; say what to redo."""
    from coverslip.cli.execution import print_json
    from coverslip.engine.verify import left_over, verdicts

    damaged = busy = checked = 0
    commands: set[str] = set()
    for verdict in verdicts(output, decode=not quick, repair=repair):
        checked += not verdict.busy
        busy += verdict.busy
        damaged += not verdict.sound
        commands.update(verdict.commands)
        if json:
            print_json(asdict(verdict))
        else:
            _show(verdict)
    strays = left_over(output)
    if not json:
        for name in strays:
            print(f"{name}: was left half written by a killed process; it can be removed")
        done = "was removed" if repair else "has to be made anew; --repair removes it"
        print(
            f"{checked:,} {'store' if checked == 1 else 'stores'} checked, {damaged:,} damaged"
            + (f", {busy:,} in use and not checked" if busy else "")
        )
        if damaged:
            print(f"what is damaged {done}")
            for command in sorted(commands):
                print(f"  then give the same command again: {command} ... -o {output}")
    if damaged and not repair:
        raise typer.Exit(1)


def _show(verdict: StoreVerdict) -> None:
    from coverslip.errors import printable

    if verdict.busy:
        print(f"{verdict.slide}: in use by another process; not checked")
        return
    word = "sound" if verdict.sound else "repaired" if verdict.repaired else "DAMAGED"
    print(f"{verdict.slide}: {word}")
    for finding in verdict.findings:
        mark = "!" if finding.damage else "-"
        place = finding.file or finding.stage
        print(f"  {mark} {printable(place)}: {printable(finding.problem)}")
    if not verdict.sound:
        stages = ", ".join(stage or "the whole store" for stage in verdict.redo)
        print(f"  to be made anew: {stages}")
