"""Exports of stores that a run has finished, without the slides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from coverslip.engine.exports import (
    WRITERS,
    StoredSlide,
    current_files,
    export_needs,
    written_once,
)
from coverslip.errors import CoverslipError, InvalidConfig
from coverslip.tiling.lock import lock
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


def exported_files(output: Path, slide_id: str, format: str) -> list[Path]:
    """A finished store's files in `format`, written where a run has not, or before it changed.

    Raises StoreError; StoreBusy where they must be written and another process holds the store.
    """

    def write(store: SlideStore) -> list[Path]:
        return sorted(WRITERS[format](StoredSlide(store, slide_id, output)), key=Path.as_posix)

    return finished_files(
        output, slide_id, f"export/{format}", {"format": format}, export_needs, write
    )


def finished_files(
    output: Path,
    slide_id: str,
    record: str,
    parameters: Mapping[str, Any],
    needs: Callable[[SlideStore], Sequence[str]],
    write: Callable[[SlideStore], list[Path]],
) -> list[Path]:
    """The files below `output` that stage `record` of a finished store stands for.

    needs   the store's stages that they are made from
    write   makes them where they are absent or stale, under the store's lock; returns them

    Raises as `exported_files` does.
    """
    path = output / f"{slide_id}.zarr"
    store = SlideStore.open(path)
    if record in store.stages("export/"):  # else whether it is current may need the lock
        files = current_files(store, record, parameters, needs(store), output)
        if files is not None:
            return files
    with lock(path):
        store = SlideStore.open(path)
        return written_once(store, record, parameters, needs(store), output, partial(write, store))[
            1
        ]
