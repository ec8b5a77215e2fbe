"""Whether a store holds, byte for byte and array by array, what its stages wrote.

Three things are compared: every file with the size and CRC32C that were recorded when its stage was
finished; every array with its metadata, all of it decoded; and the arrays of a stage with one
another and with their grid. Stages that an earlier version wrote have no sums: of those, damage
that decodes to other numbers stays unseen, and a finding says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.durable import UNFINISHED
from coverslip.errors import StoreError, StoreVersion
from coverslip.tiling.shards import crc32c, file_sum
from coverslip.tiling.stage_writer import STAGE_FILES, STAGE_HASH, group_bytes, json_bytes
from coverslip.tiling.store import SlideStore

AT_ONCE = 2**26
"""Bytes of an array that are decoded together, at least one chunk."""
ROW_A_TILE = ("quality", "pixels", "features", "prompts", "classes")
"""Kinds of stages all of whose columns have a row for each tile of their grid."""
OUTLINED = ("nuclei", "glands", "lumina")
OF_TILES = {"predictions": ("attention", "contributions")}
"""Kinds of which only some columns do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a store that is not as a finished stage leaves it.

    stage     whose; "" for the store's own files
    file      in the store, or in the folder of exports; "" for a stage as a whole
    damage    whether the stage must be made anew; otherwise nothing is lost
    """

    stage: str
    file: str
    problem: str
    damage: bool = True


def store_findings(path: Path, *, decode: bool = True) -> list[Finding]:
    """All that is wrong or odd in a store; nothing is changed.

    decode   also decode every chunk of every array; without it, those of stages without sums

    A finding of damage without a stage means that the store itself cannot be trusted. Raises
    StoreVersion.
    """
    if all(file.name.startswith(UNFINISHED) for file in path.iterdir()):
        return [Finding("", "", "was begun and holds nothing yet", damage=False)]
    try:
        store = SlideStore.open(path)
    except StoreVersion:
        raise
    except StoreError as error:
        return [Finding("", "zarr.json", error.problem)]
    found = list(_root_findings(store))
    if any(finding.damage for finding in found):
        return found
    for stage in store.stages():
        found += stage_findings(store, stage, decode=decode)
    return found + list(_stray_findings(store))


def stage_findings(store: SlideStore, stage: str, *, decode: bool = True) -> list[Finding]:
    """What is wrong with one complete stage; of the same stage's files, the first cause only."""
    record, folder = store.record(stage), store.path / stage
    own = f"{stage}/zarr.json"
    try:
        content = (folder / "zarr.json").read_bytes()
        attributes = dict(orjson.loads(content)["attributes"])
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        return [Finding(stage, own, f"cannot be read ({error!r})")]
    if record.sum is not None and crc32c(content) != record.sum:
        return [Finding(stage, own, "does not fit its checksum")]
    if attributes.get(STAGE_HASH) != record.hash:
        return [Finding(stage, own, "belongs to another result than the store records")]
    found = list(_need_findings(store, stage))
    sums = attributes.get(STAGE_FILES) if record.sum is not None else None
    summed = isinstance(sums, dict)
    if isinstance(sums, dict):
        found += _file_findings(store.path, stage, sums)
    else:
        text = "was written without checksums: only what cannot be decoded would be seen"
        found.append(Finding(stage, "", text, damage=False))
    if not any(finding.damage for finding in found):
        found += _array_findings(store, stage, decode=decode or not summed, complete=summed)
    return found


def _root_findings(store: SlideStore) -> Iterator[Finding]:
    """The store's own zarr.json must be, byte for byte, what its content would be written as."""
    content = (store.path / "zarr.json").read_bytes()
    attributes = orjson.loads(content)["attributes"]
    own = dict(attributes["coverslip"])
    total = own.pop("sum", None)
    if not all(
        isinstance(record, dict) and record.keys() >= {"hash", "parameters", "needs", "software"}
        for record in own["stages"].values()
    ):
        yield Finding("", "zarr.json", "holds a record of a stage that is none")
    elif total is None:
        text = "was written without a checksum"
        yield Finding("", "zarr.json", text, damage=False)
    elif total != crc32c(json_bytes(own)) or content != group_bytes(attributes):
        yield Finding("", "zarr.json", "does not fit its checksum")


def _need_findings(store: SlideStore, stage: str) -> Iterator[Finding]:
    complete = set(store.stages())
    for need, hash in store.record(stage).needs.items():
        if need not in complete:
            yield Finding(stage, "", f"stands on {need}, which is not complete")
        elif store.record(need).hash != hash and not stage.startswith("export/"):
            yield Finding(stage, "", f"stands on another result of {need}")


def _file_findings(root: Path, stage: str, sums: Mapping[str, Any]) -> Iterator[Finding]:
    """The files of a stage against what was recorded when it was finished."""
    folder = root / stage
    for name, recorded in sums.items():
        path = folder / name
        try:
            size, total = file_sum(path)
        except OSError as error:
            yield Finding(stage, f"{stage}/{name}", f"cannot be read: {error.strerror or error}")
            continue
        if [size, total] != recorded:
            problem = "does not fit its checksum"
            if size != recorded[0]:
                problem = f"holds {size} bytes, not {recorded[0]}"
            yield Finding(stage, f"{stage}/{name}", problem)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in sums and name != "zarr.json":
            # a stray chunk would be read where the stage wrote none
            yield Finding(stage, f"{stage}/{name}", "is no file of this stage")


def _array_findings(
    store: SlideStore, stage: str, *, decode: bool, complete: bool
) -> Iterator[Finding]:
    """Arrays against their metadata, one another and their grid."""
    try:
        arrays = dict(store.group(stage).arrays())
        if not complete and stage != "image":  # an image leaves out what is background
            yield from _missing_chunks(store.path / stage, stage, arrays)
        if decode:
            for name, array in arrays.items():
                for part in _parts(array):
                    if array[part].shape != tuple(s.stop - s.start for s in part):
                        yield Finding(stage, f"{stage}/{name}", "decodes to another shape")
        problem = _disagreement(store, stage, arrays)
    except Exception as error:  # whatever a codec makes of damaged bytes
        yield Finding(stage, "", f"cannot be decoded ({type(error).__name__}: {error})")
        return
    if problem:
        yield Finding(stage, "", problem)


def _missing_chunks(folder: Path, stage: str, arrays: Mapping[str, Any]) -> Iterator[Finding]:
    for name, array in arrays.items():
        step = array.shards or array.chunks
        counts = [-(-side // size) for side, size in zip(array.shape, step, strict=True)]
        for place in itertools.product(*map(range, counts)):
            key = array.metadata.encode_chunk_key(place)
            if not (folder / name / key).is_file():
                yield Finding(stage, f"{stage}/{name}/{key}", "is missing")


def _parts(array: Any) -> Iterator[tuple[slice, ...]]:
    """Regions that cover an array, of whole chunks, about AT_ONCE bytes each."""
    outer, chunk = array.shards or array.chunks, array.chunks
    step = list(chunk)
    room = AT_ONCE // max(1, math.prod(chunk) * array.dtype.itemsize)
    for axis in reversed(range(len(step))):
        within = outer[axis] // chunk[axis]
        taken = max(1, min(room, within))
        step[axis], room = taken * chunk[axis], room // taken
    ranges = [range(0, side, size) for side, size in zip(array.shape, step, strict=True)]
    for corner in itertools.product(*ranges):
        yield tuple(
            slice(start, min(start + size, side))
            for start, size, side in zip(corner, step, array.shape, strict=True)
        )


def _disagreement(store: SlideStore, stage: str, arrays: Mapping[str, Any]) -> str:
    """How a stage's columns contradict one another or their grid; "" where they do not."""
    kind, _, rest = stage.partition("/")
    if kind in OUTLINED:
        return _outline_disagreement(arrays)
    if kind == "tiles":
        rows = {name: array.shape[0] for name, array in arrays.items()}
        return "" if len(set(rows.values())) <= 1 else f"its columns differ in length: {rows}"
    columns = OF_TILES.get(kind, tuple(arrays) if kind in ROW_A_TILE else ())
    grid = f"tiles/{rest.rpartition('@')[2]}"
    if not columns or grid not in store.stages("tiles/"):
        return ""
    tiles = store.group(grid)["boxes"].shape[0]
    for name in columns:
        if name in arrays and arrays[name].shape[0] != tiles:
            return f"{name} has {arrays[name].shape[0]} rows, {grid} has {tiles}"
    return ""


def _outline_disagreement(arrays: Mapping[str, Any]) -> str:
    if missing := {"centroid", "polygon_offset", "polygon"} - set(arrays):
        return f"lacks {', '.join(sorted(missing))}"
    count = arrays["centroid"].shape[0]
    own = {"polygon", "polygon_offset"}
    for name, array in arrays.items():
        if name not in own and array.shape[0] != count:
            return f"{name} has {array.shape[0]} rows, there are {count} centroids"
    offsets: npt.NDArray[np.int64] = np.asarray(arrays["polygon_offset"][:])
    if len(offsets) != count + 1:
        return f"polygon_offset has {len(offsets)} rows for {count} centroids"
    if offsets[0] != 0 or offsets[-1] != arrays["polygon"].shape[0] or (np.diff(offsets) < 0).any():
        return "polygon_offset does not rise from 0 to the number of corners"
    return ""


def _stray_findings(store: SlideStore) -> Iterator[Finding]:
    """Files that belong to no complete stage: begun, left over, or foreign."""
    stages = set(store.stages())
    parents = {p.as_posix() for stage in stages for p in Path(stage).parents} - {"."}
    waiting = [(store.path, "")]
    while waiting:
        folder, prefix = waiting.pop()
        for path in sorted(folder.iterdir()):
            name = f"{prefix}{path.name}"
            if name in stages or name == "zarr.json":
                continue
            if path.name == "zarr.json" and prefix[:-1] in parents:
                if path.read_bytes() != group_bytes({}):
                    yield Finding(prefix[:-1], name, "is not the zarr.json of an empty group")
            elif path.is_dir() and name in parents:
                waiting.append((path, f"{name}/"))
            else:
                yield Finding("", name, _kind_of_stray(path), damage=False)
    for parent in sorted(parents):
        if not (store.path / parent / "zarr.json").exists():
            yield Finding(parent, f"{parent}/zarr.json", "is missing")


def _kind_of_stray(path: Path) -> str:
    if path.name.startswith(".") and path.name.endswith((".partial", ".progress.json")):
        return "is a stage that was begun; the next run goes on with it"
    if path.name.startswith(UNFINISHED) or path.name.endswith(".removed"):
        return "was left by a killed process; the next run removes it"
    if path.is_dir() and not any(path.rglob("c*")) and not any(path.glob("*/c*")):
        return "holds no complete stage"
    return "is no file of a complete stage"
