"""A run's output folder, checked: stores, their exports, locks; and what is broken, cleared away.

Repair removes damaged stages and all that stands on them, through the store; the next run makes
just these again.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from coverslip.durable import UNFINISHED, explained, replace_file
from coverslip.engine.exports import export_needs
from coverslip.errors import StoreBusy, StoreError
from coverslip.tiling.lock import SILENT_S, lock, lock_holder, lock_path
from coverslip.tiling.shards import file_sum
from coverslip.tiling.stage_writer import group_bytes
from coverslip.tiling.store import SlideStore
from coverslip.tiling.verification import Finding, store_findings

COMMANDS = {
    "prompts": "coverslip prompts",
    "classes": "coverslip classify",
    "predictions": "coverslip mil predict",
}
"""Kinds of stages that no `coverslip run` makes -> what does."""
PIECE = 2**20


@dataclass(frozen=True, slots=True)
class StoreVerdict:
    """How one slide's store and exports are.

    findings   of damage, and what else is odd
    redo       stages to be made anew: the damaged ones and what stands on them; "" is all of them
    commands   that make them
    busy       whether a living process works on it: it was not looked at
    repaired   whether what is to be made anew was removed
    """

    slide: str
    findings: tuple[Finding, ...]
    redo: tuple[str, ...]
    commands: tuple[str, ...]
    busy: bool = False
    repaired: bool = False

    @property
    def sound(self) -> bool:
        """Whether nothing has to be made anew."""
        return not self.redo


def verdicts(output: Path, *, decode: bool = True, repair: bool = False) -> Iterator[StoreVerdict]:
    """Each store of an output folder in turn.

    decode   see `store_findings`
    repair   remove what has to be made anew, under each store's lock

    Raises StoreError where the folder holds no store; StoreVersion.
    """
    stores = sorted(path for path in output.glob("*.zarr") if path.is_dir())
    if not stores:
        raise StoreError(output, "holds no stores", "name the -o of a run")
    for path in stores:
        slide = path.name.removesuffix(".zarr")
        holder = lock_holder(lock_path(path))
        if holder is not None and not holder.dead:
            yield StoreVerdict(slide, (), (), (), busy=True)
            continue
        stale = holder is not None
        if not repair:
            yield _verdict(output, path, decode, stale)
            continue
        try:
            with lock(path, wait_s=2 * SILENT_S if stale else 0):
                yield _repaired(path, _verdict(output, path, decode, stale))
        except StoreBusy:
            yield StoreVerdict(slide, (), (), (), busy=True)


def _verdict(output: Path, path: Path, decode: bool, stale: bool) -> StoreVerdict:
    slide = path.name.removesuffix(".zarr")
    found = store_findings(path, decode=decode)
    if stale:
        text = "is the lock of a process that is gone; the next run takes it over"
        found.append(Finding("", f"{slide}.lock", text, damage=False))
    if any(finding.damage and not finding.stage for finding in found):
        return StoreVerdict(slide, tuple(found), ("",), ("coverslip run",))
    if not (path / "zarr.json").exists():
        return StoreVerdict(slide, tuple(found), (), ())
    store = SlideStore.open(path)
    bad = {finding.stage for finding in found if finding.damage}
    for stage in store.stages("export/"):
        if stage not in bad:
            found += _export_findings(output, store, stage)
    bad = {finding.stage for finding in found if finding.damage}
    redo = store.standing_on(bad & set(store.stages()))
    # the zarr.json of the folders between is no stage: nothing stands on its content
    redo = sorted({*redo, *(bad - set(store.stages()))})
    kinds = {stage.partition("/")[0] for stage in redo}
    commands = sorted({COMMANDS.get(kind, "coverslip run") for kind in kinds})
    return StoreVerdict(slide, tuple(found), tuple(redo), tuple(commands))


def _repaired(path: Path, verdict: StoreVerdict) -> StoreVerdict:
    """The verdict, after what has to be made anew was removed; call it under the store's lock."""
    if verdict.sound:
        return verdict
    if "" in verdict.redo:
        doomed = path.with_name(f".{path.name}.removed")
        with explained(path):
            if doomed.exists():
                shutil.rmtree(doomed)
            path.rename(doomed)
            shutil.rmtree(doomed)
    else:
        store = SlideStore.open(path)
        complete = set(store.stages())
        store.remove(stage for stage in verdict.redo if stage in complete)
        for parent in verdict.redo:
            if parent not in complete:
                replace_file(path / parent / "zarr.json", group_bytes({}))
    return StoreVerdict(
        verdict.slide, verdict.findings, verdict.redo, verdict.commands, repaired=True
    )


def _export_findings(output: Path, store: SlideStore, stage: str) -> Iterator[Finding]:
    """The files that an export's record lists: there, as they were written, and readable.

    Where the record is stale the next run writes them anyway, and other bytes are no damage.
    """
    attributes = dict(store.group(stage).attrs)
    names = [str(name) for name in attributes.get("files", ())]
    sums = attributes.get("sums") or [None] * len(names)
    stale = _is_stale(store, stage)
    if None in sums:
        text = "lists files without checksums: only what cannot be parsed would be seen"
        yield Finding(stage, "", text, damage=False)
    for name, recorded in zip(names, sums, strict=True):
        path = output / name
        problem = ""
        try:
            if recorded is not None and list(file_sum(path)) != list(recorded):
                problem = "does not fit its checksum"
            elif recorded is None or not stale:
                PARSED.get(path.suffix, _readable)(path)
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
        except Exception as error:  # whatever a parser makes of damaged bytes
            problem = f"cannot be parsed ({type(error).__name__}: {error})"
        if problem and stale:
            problem += "; it is out of date, and the next run writes it again"
        if problem:
            yield Finding(stage, name, problem, damage=not stale)


def _is_stale(store: SlideStore, stage: str) -> bool:
    needs: Mapping[str, str] = store.record(stage).needs
    complete = set(store.stages())
    if any(n not in complete or store.record(n).hash != hash for n, hash in needs.items()):
        return True
    whole_run = "format" in store.record(stage).parameters and stage.count(".") == 0
    return whole_run and set(needs) != set(export_needs(store))


def _readable(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(PIECE):
            pass


def _parse_gzip(path: Path) -> None:
    """Through all members of a gzip file, whose checksums zlib compares. Raises zlib.error."""
    engine = zlib.decompressobj(31)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            while piece:
                engine.decompress(piece)
                piece = b""
                if engine.eof and engine.unused_data:
                    piece, engine = engine.unused_data, zlib.decompressobj(31)
    if not engine.eof:
        raise zlib.error("ends within a member")


def _parse_hdf5(path: Path) -> None:
    import h5py

    def visited(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.size:
            rows = max(1, PIECE // max(1, item.nbytes // max(1, len(item)))) if item.ndim else 0
            for start in range(0, len(item) if item.ndim else 0, rows or 1):
                item[start : start + rows]

    with h5py.File(path) as file:
        file.visititems(visited)


def _parse_parquet(path: Path) -> None:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            batch.validate()


def _parse_json(path: Path) -> None:
    orjson.loads(path.read_bytes())


PARSED: dict[str, Callable[[Path], None]] = {
    ".gz": _parse_gzip,
    ".h5": _parse_hdf5,
    ".parquet": _parse_parquet,
    ".geojson": _parse_json,
}
"""Suffix of an export -> what reads all of it, or raises."""


def left_over(output: Path) -> list[str]:
    """Half-written files that killed processes left outside the stores; relative paths, sorted."""
    stores = tuple(f"{path.name}/" for path in output.glob("*.zarr"))
    found = [
        *output.rglob(f"{UNFINISHED}*"),
        *output.glob(".*.zarr.removed"),
        *output.glob(".*.removing"),
    ]
    names = {path.relative_to(output).as_posix() for path in found}
    return sorted(name for name in names if not name.startswith(stores))
