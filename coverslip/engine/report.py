"""`report.csv` and `report.html`: what a person looks at after a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from coverslip import __version__
from coverslip.durable import replace_file, write_csv
from coverslip.engine.disclosure import disclosed
from coverslip.engine.pages import page_environment
from coverslip.engine.result import SlideResult

COLUMNS = (
    "slide", "file", "status", "reason", "width", "height", "mpp_x", "mpp_y", "mpp_source",
    "reader", "tissue_mm2", "tiles", "nuclei", "bad_tiles", "flags", "bottleneck", "seconds",
)  # fmt: skip


def write_report(
    folder: Path, results: Sequence[SlideResult], settings: str, keep: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Write `report.csv` and `report.html` into `folder`; returns both paths.

    settings   the run's configuration as TOML text, shown at the foot of the page
    keep       what may be told beside (see `disclosure`); reasons name files without folders
    """
    results = [
        replace(r, reason=disclosed(r.reason, keep), flags=disclosed(r.flags, keep))
        for r in results
    ]
    settings = disclosed(settings, keep)
    table, page = folder / "report.csv", folder / "report.html"
    write_csv(table, _rows(results))
    replace_file(page, _html(results, settings).encode())
    return table, page


def _rows(results: Sequence[SlideResult]) -> Iterator[Sequence[object]]:
    yield COLUMNS
    for r in results:
        yield (
            r.slide, r.file, r.status, r.reason, *r.size, *r.mpp, r.mpp_source, r.reader,
            round(r.tissue_mm2, 4), r.tiles, "" if r.nuclei is None else r.nuclei, r.bad_tiles,
            "; ".join(r.flags), r.bottleneck, round(r.total_seconds, 3),
        )  # fmt: skip


def _html(results: Sequence[SlideResult], settings: str) -> str:
    environment = page_environment()
    environment.filters["grey_level"] = lambda density: round(255 * math.exp(-density))
    longest = max((r.total_seconds for r in results), default=0.0)
    return environment.get_template("report.html").render(
        results=results,
        counts=Counter(r.status for r in results),
        tiles=sum(r.tiles for r in results),
        nuclei=sum(r.nuclei or 0 for r in results),
        seconds=sum(r.total_seconds for r in results),
        longest=longest,
        settings=settings,
        version=__version__,
    )
