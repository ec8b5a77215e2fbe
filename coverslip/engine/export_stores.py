"""Exports of stores that a run has finished, without the slides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from coverslip.engine.exports import WRITERS, StoredSlide
from coverslip.errors import CoverslipError, InvalidConfig
from coverslip.tiling.store import SlideStore


def export_stores(
    output: Path, formats: Sequence[str]
) -> Iterator[tuple[str, list[Path] | CoverslipError]]:
    """Write `formats` for every store in the folder; yields (slide id, files or what went wrong).

    Raises InvalidConfig for an unknown format or a folder without stores.
    """
    unknown = [name for name in formats if name not in WRITERS]
    if unknown:
        raise InvalidConfig(f"export knows {', '.join(WRITERS)}; got {unknown[0]!r}")
    stores = sorted(output.glob("*.zarr")) if output.is_dir() else []
    if not stores:
        raise InvalidConfig(f"{output}: no stores here; coverslip run writes them")
    for path in stores:
        slide_id = path.name.removesuffix(".zarr")
        try:
            stored = StoredSlide(SlideStore.open(path), slide_id, output)
            yield slide_id, [file for name in formats for file in WRITERS[name](stored)]
        except CoverslipError as error:
            yield slide_id, error
