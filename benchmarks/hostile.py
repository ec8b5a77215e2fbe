"""Broken and odd slides: what this engine, openslide-python and tiffslide make of them.

    python benchmarks/hostile.py [--seconds 20] [--gigabytes 4] [--write docs/hostile-slides.md]

Every slide of the corpus in `tests/hostile.py` is opened and read by each, every time in a process
of its own, limited in time and memory; then one run of the engine goes over all of them.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

import hostile  # noqa: E402
from hostile_case import Case  # noqa: E402

from coverslip.errors import printable  # noqa: E402
from coverslip.wsi.slide import RGB  # noqa: E402

PEERS = {
    "openslide-python": ("openslide", "OpenSlide"),
    "tiffslide": ("tiffslide", "TiffSlide"),
}
MOST_SIDE = 1024
READ = {"pixels": "right", "opens": "opens", "wrong pixels": "**wrong pixels**"}


def by_peer(opened: Callable[[str], Any], path: Path, pixels: RGB | None) -> tuple[str, str]:
    """(outcome, message) of opening a slide and reading its first pixels, over white."""
    try:
        with opened(os.fspath(path)) as slide:
            size = tuple(min(side, MOST_SIDE) for side in slide.dimensions)
            image = np.asarray(slide.read_region((0, 0), 0, size).convert("RGBA"))
    except MemoryError:
        raise
    except Exception as error:
        return f"error: {type(error).__name__}", str(error)
    if pixels is None:
        return "opens", ""
    share = image[..., 3:] / 255
    seen = np.rint(image[..., :3] * share + 255 * (1 - share)).astype(np.uint8)
    return ("pixels" if np.array_equal(seen, pixels) else "wrong pixels"), ""


def observations(
    folder: Path, seconds: float, gigabytes: float
) -> Iterator[tuple[Case, list[hostile.Observation]]]:
    """Each case with what came of it here and with the peers, in their order."""
    folder.mkdir()
    shown = hostile.make_corpus(folder)
    hostile.import_readers(folder.parent / "sound")
    opened = [getattr(import_module(module), name) for module, name in PEERS.values()]
    for case in hostile.CASES:
        path, pixels = folder / case.name, shown[case.name]
        works: list[Callable[[], tuple[str, str]]] = [
            lambda case=case, path=path, pixels=pixels: hostile.observe(path, case, pixels, True),
            *(
                lambda kind=kind, path=path, pixels=pixels: by_peer(kind, path, pixels)
                for kind in opened
            ),
        ]
        yield case, [hostile.limited(work, case.name, seconds, gigabytes) for work in works]


def run_over(folder: Path, output: Path) -> Counter[str]:
    """How many rows of each status the report has after one run over the folder."""
    command = [sys.executable, "-m", "coverslip", "run", str(folder), "-o", str(output)]
    settings = ["--encoder", "none", "--device", "cpu", "--read-timeout", "5"]
    subprocess.run([*command, *settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(output / "report.csv", newline="") as file:
        return Counter(row["status"] for row in csv.DictReader(file))


def cell(text: str, most: int = 90) -> str:
    """Text for a table: on one line, its bars escaped, cut."""
    plain = printable(text).replace("|", "\\|").replace("<", "&lt;")
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def outcome(found: hostile.Observation) -> str:
    if found.outcome.startswith(("crash", "hang", "memory", "uncaught", "info")):
        return f"**{found.outcome}**"
    return READ.get(found.outcome, found.outcome)


def lines(rows: list[tuple[Case, list[hostile.Observation]]], settings: str) -> Iterator[str]:
    kept = [
        case.expected == ours.outcome and case.words in ours.message for case, (ours, *_) in rows
    ]
    yield "# Broken and odd slides (`benchmarks/hostile.py`)\n"
    yield (
        f"{len(rows)} slides, {sum(kept)} of which came out here as they must. Each was opened and "
        f"read, and named to `coverslip info`, in a process of its own: {settings}. "
        "UnreadableTile: the slide opens, its sound tiles are right, the others are errors. "
        "tiffslide and OpenSlide ask for no pixel size, so that they open what is refused here for "
        f"it. {', '.join(f'{peer} {version(peer)}' for peer in PEERS)}.\n"
    )
    for peer, number in zip(PEERS, (1, 2), strict=True):
        count = Counter(
            found[number].outcome.partition(" ")[0].rstrip(":")
            for _, found in rows
            if not found[number].outcome.startswith(("pixels", "opens"))
        )
        told = ", ".join(f"{number} x {what}" for what, number in sorted(count.items()))
        yield f"- {peer}: {told or 'no trouble'}"
    yield (
        "\n| slide | what is wrong or odd | must be | coverslip | s | MB | "
        + " | ".join(PEERS)
        + " |"
    )
    yield "|---" * (6 + len(PEERS)) + "|"
    for (case, (ours, *others)), right in zip(rows, kept, strict=True):
        name = (
            case.name if len(case.name) < 50 else f"{case.name[:8]}... ({len(case.name)} letters)"
        )
        must = READ.get(case.expected, case.expected) + (f": {case.words}" if case.words else "")
        cells = [cell(name), cell(case.wrong), cell(must), outcome(ours) + ("" if right else " ✗")]
        cells += [f"{ours.seconds:.1f}", f"{ours.megabytes:.0f}", *map(outcome, others)]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--write", type=Path, help="a file instead of the terminal")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = list(observations(folder / "slides", given.seconds, given.gigabytes))
        settings = f"{given.seconds:g} s, {given.gigabytes:g} GiB of address space"
        content = "\n".join(lines(rows, settings))
        statuses = run_over(folder / "slides", folder / "out")
        listed = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
        content += (
            "\n\nThe fourth sample of rgba.tif is of no stated kind, to OpenSlide opacity. "
            f"One `coverslip run` over the folder: {sum(statuses.values())} rows, {listed}; "
            "folder.svs and the name that begins with a dot are no slides.\n"
        )
    if given.write:
        given.write.write_text(content)
    else:
        print(content)


if __name__ == "__main__":
    main()
