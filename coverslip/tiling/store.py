"""The slide's store on disk: one Zarr v3 group, every stage complete or visibly not.

<slide id>.zarr/
  zarr.json                    attributes.coverslip: {schema, slide {...}, stages {name: {...}}}
  tissue/                      mask uint8 [h, w]; attrs: scale, thresholds, polygons (GeoJSON)
  tiles/<grid>/                boxes int32 [N, 4] x, y, w, h level-0 px; tissue_fraction float32 [N]
  quality/<grid>/              focus, pen, brightness float32 [N]; damaged bool [N]
  pixels/<grid>/               pixels uint8 [N, T, T, 3], sharded; JPEG or lossless
  features/<encoder>@<grid>/   features float32 [N, D], uncompressed with checksums (in older
                               stores zstd); attrs: dim, columns where they have names
  prompts/<set>.<encoder>@<grid>/   probabilities, similarity float32 [N, C]; attrs: classes
  classes/<name>@<grid>/       probabilities float32 [N, C]; class_id uint8 [N]; attrs: classes
  maps/<name>@<grid>/          classes uint8 [h, w], a px a tile; attrs: scale, origin, classes
  maps/<model>/                classes uint8 [h, w] at the model's mpp; attrs: the same. Of a
                               nucleus model: a px a cell of its network, and probabilities
                               float32 [h, w, C], nan where there is no class
  slide/<slide encoder>@<encoder>@<grid>/   embedding float32 [D]
  predictions/<study>@<encoder>@<grid>/   prediction, spread float32 [P]; attention float32 [N];
                               contributions float32 [N, C]; attrs: names, contribution_names
  nuclei/<model>/              centroid float64 [M, 2], polygon_offset int64 [M + 1],
                               polygon float32 [V, 2], class_id uint8 [M], probability ..., measures
  glands/<model>/, lumina/<model>/   the same columns
  image/                       OME-NGFF 0.5 pyramid

A stage's record: {hash, parameters, needs {stage: hash}, software, sum}. The hash covers the
parameters, the stages it stands on and what decides the slide's pixels; a stage whose hash no
longer fits is stale and is made again, and what stood on it is removed with it. The sum is the
CRC32C of the stage's zarr.json, which holds those of its other files; attributes.coverslip.sum is
that of the rest of attributes.coverslip (see `verification`; older stores have neither). Arrays are
written in blocks (see `stage_writer`). The store holds no clock time, host or path: the same run
gives the same bytes.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from coverslip import __version__
from coverslip.durable import UNFINISHED, explained, flush_to_disk, replace_file
from coverslip.errors import IncompleteStage, StoreError, StoreVersion
from coverslip.tiling.shards import crc32c
from coverslip.tiling.stage_writer import (
    StageWriter,
    group_bytes,
    json_bytes,
    left_hash,
    partial_path,
    progress_path,
)

__all__ = ["SlideStore", "StageRecord", "StageWriter"]

SCHEMA = 1
PIXEL_FACTS = ("fingerprint", "size", "mpp", "colour", "reader")
"""Facts of the slide that decide what any stage computes."""
RECORD = {"hash", "parameters", "needs", "software"}
STAGE_NAME = re.compile(r"(?!\.)[^/\\\0]+(/(?!\.)[^/\\\0]+)*")


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A complete stage: the hash of all that decided it, its own parameters, what it stands on.

    sum   CRC32C of its zarr.json; None where an earlier version wrote it
    """

    name: str
    hash: str
    parameters: Mapping[str, Any]
    needs: Mapping[str, str]
    software: str
    sum: int | None = None


class SlideStore:
    """One slide's store. `slide` holds the facts of the slide (see `wsi.facts`).

    One process writes to a store at a time (see `lock`); any number read what is complete.
    """

    def __init__(self, path: Path, slide: dict[str, Any], stages: dict[str, Any]) -> None:
        self.path, self.slide, self._stages = path, slide, stages

    @classmethod
    def open(cls, path: str | Path) -> SlideStore:
        """Raises StoreError (no store there), StoreVersion (a schema we do not know)."""
        path = Path(path)
        try:
            attributes = orjson.loads((path / "zarr.json").read_bytes())["attributes"]
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(path, "is no store: it has no zarr.json") from None
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise StoreError(path, f"its zarr.json cannot be read ({error!r})") from None
        content = attributes.get("coverslip") if isinstance(attributes, dict) else None
        if not isinstance(content, dict):
            raise StoreError(path, "is a Zarr group, but no slide's store")
        if content.get("schema") != SCHEMA:
            raise StoreVersion(
                path,
                f"was written by schema {content.get('schema')}, this engine knows {SCHEMA}",
                "use the version of coverslip that wrote it, or another output folder",
            )
        try:
            stages = dict(content["stages"])
            for name, record in stages.items():
                # a name is a path under the store, which `stage` may remove
                if not STAGE_NAME.fullmatch(name) or not dict(record).keys() >= RECORD:
                    raise ValueError(f"{name!r} is no record of a stage")
            return cls(path, dict(content["slide"]), stages)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(path, f"its zarr.json cannot be read ({error!r})") from None

    @classmethod
    def create(cls, path: str | Path, slide: Mapping[str, Any]) -> SlideStore:
        """A new, empty store. Raises StoreError where there is anything already."""
        path = Path(path)
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
            if any(not file.name.startswith(UNFINISHED) for file in path.iterdir()):
                raise StoreError(
                    path, "is there already, and is no store", "choose another folder with -o"
                )
            flush_to_disk(path.parent)
        store = cls(path, _as_json(slide), {})
        store._save()
        return store

    @classmethod
    def open_or_create(cls, path: str | Path, slide: Mapping[str, Any]) -> SlideStore:
        """The store of the slide with these facts, new or as it was left; call it under `lock`.

        Raises StoreError where the store belongs to a file with another fingerprint.
        """
        path = Path(path)
        _sweep(path)
        if not (path / "zarr.json").exists():
            return cls.create(path, slide)
        store, facts = cls.open(path), _as_json(slide)
        if store.slide.get("fingerprint") != facts.get("fingerprint"):
            raise StoreError(
                path,
                "belongs to another version of this slide: the file has changed",
                "remove the store to start over, or choose another folder with -o",
            )
        if store.slide != facts:
            store.slide = facts
            store._save()
        return store

    def stage(
        self,
        name: str,
        parameters: Mapping[str, Any],
        *,
        needs: Sequence[str] = (),
        threads: int = 2,
    ) -> StageWriter:
        """Begin or resume a stage. What the name held before is removed, and, where that was
        another result, what stood on it.

        name         path of the stage's group, as in the schema above
        parameters   JSON-able; everything that decides the result
        needs        complete stages it stands on. Raises IncompleteStage where one is not
        threads      that compress its blocks
        """
        if not STAGE_NAME.fullmatch(name):
            raise ValueError(f"no name for a stage: {name!r}")
        hash, stands_on = self._hash(parameters, needs), self._hashes(needs)
        gone = self._invalidated(name, hash)
        for stage in gone:
            self._stages.pop(stage, None)
        if gone:
            self._save()
        for stage in {*gone, name}:
            _discard(self.path / stage)
        self._make_parents(name)

        def on_complete() -> None:
            self._complete(name, hash, parameters, stands_on)

        return StageWriter(self.path / name, hash, on_complete, threads=threads)

    def is_current(
        self, name: str, parameters: Mapping[str, Any], *, needs: Sequence[str] = ()
    ) -> bool:
        """Whether the stage is there, complete with just these parameters, and stands on current
        stages."""
        if any(need not in self._stages for need in needs):
            return False
        hash = self._hash(parameters, needs)
        if name not in self._stages and left_hash(self.path / name) == hash:
            # a crash fell between the rename and the record
            self._complete(name, hash, parameters, self._hashes(needs))
        current: bool = self._stages.get(name, {}).get("hash") == hash
        current = current and (self.path / name / "zarr.json").exists()
        if current and progress_path(self.path / name).exists():
            progress_path(self.path / name).unlink()
        return current

    def remove(self, names: Iterable[str]) -> list[str]:
        """Remove stages and all that stands on them, so that they are made anew; call it under
        `lock`. Returns what was removed, sorted.

        Groups go before their records: a group without a record would be taken for one whose
        record a crash has cost, a record without a group is not current.
        """
        gone = self.standing_on(names)
        for stage in gone:
            _discard(self.path / stage)
            flush_to_disk((self.path / stage).parent)
            self._stages.pop(stage, None)
        if gone:
            self._save()
        return gone

    def standing_on(self, names: Iterable[str]) -> list[str]:
        """Complete stages among `names`, and all that stands on them, sorted."""
        return sorted({stage for name in names for stage in self._invalidated(name, "")})

    def record(self, name: str) -> StageRecord:
        """Raises IncompleteStage."""
        if name not in self._stages:
            raise IncompleteStage(
                self.path, f"stage {name!r} is not complete", "run it again: what is done is kept"
            )
        found = self._stages[name]
        return StageRecord(
            name,
            found["hash"],
            found["parameters"],
            found["needs"],
            found["software"],
            found.get("sum"),
        )

    def state(self, name: str) -> Literal["absent", "partial", "complete"]:
        """Where a stage stands."""
        if name in self._stages:
            return "complete"
        return "partial" if partial_path(self.path / name).exists() else "absent"

    def stages(self, prefix: str = "") -> list[str]:
        """Names of the complete stages that begin with `prefix`, sorted."""
        return sorted(name for name in self._stages if name.startswith(prefix))

    def group(self, name: str) -> Any:
        """A complete stage's zarr.Group, read-only. Raises IncompleteStage."""
        import zarr

        import coverslip.tiling.jpeg_codec  # noqa: F401  (registers the codec)

        self.record(name)
        return zarr.open_group(str(self.path / name), mode="r")

    def _hashes(self, needs: Sequence[str]) -> dict[str, str]:
        return {need: self.record(need).hash for need in needs}

    def _hash(self, parameters: Mapping[str, Any], needs: Sequence[str]) -> str:
        content = {
            "parameters": parameters,
            "needs": self._hashes(needs),
            "slide": {fact: self.slide.get(fact) for fact in PIXEL_FACTS},
        }
        return hashlib.sha256(json_bytes(content)).hexdigest()

    def _invalidated(self, name: str, hash: str) -> list[str]:
        """Recorded stages that end when `name` is made anew: itself and all that stand on another
        result of it."""
        gone = [name] if name in self._stages else []
        changed = {name}
        while changed:
            changed = {
                stage
                for stage, found in self._stages.items()
                if stage not in gone
                and any(
                    need in changed and (need != name or found["needs"][need] != hash)
                    for need in found["needs"]
                )
            }
            gone += sorted(changed)
        return gone

    def _complete(
        self, name: str, hash: str, parameters: Mapping[str, Any], needs: Mapping[str, str]
    ) -> None:
        self._stages[name] = {
            "hash": hash,
            "parameters": dict(parameters),
            "needs": dict(needs),
            "software": f"coverslip {__version__}",
            "sum": crc32c((self.path / name / "zarr.json").read_bytes()),
        }
        self._save()

    def _save(self) -> None:
        content = {"schema": SCHEMA, "slide": self.slide, "stages": self._stages}
        content["sum"] = crc32c(json_bytes(content))
        replace_file(self.path / "zarr.json", group_bytes({"coverslip": content}))

    def _make_parents(self, name: str) -> None:
        """The groups between the root and the stage, so that the whole is one Zarr hierarchy."""
        for parent in list(Path(name).parents)[-2::-1]:
            if not (self.path / parent / "zarr.json").exists():
                replace_file(self.path / parent / "zarr.json", group_bytes({}))
                flush_to_disk(self.path / parent.parent)


def _as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as they will be read back, so that they compare equal."""
    found: dict[str, Any] = orjson.loads(json_bytes(facts))
    return found


def _discard(group: Path) -> None:
    """Remove a group: by a rename first, so that half of it can never pass for the whole."""
    doomed = group.with_name(f".{group.name}.removed")
    with explained(group):
        for _ in range(2):
            if doomed.exists():
                shutil.rmtree(doomed)
            if group.exists():
                group.rename(doomed)


def _sweep(path: Path) -> None:
    """Remove what killed processes left half written or half removed."""
    with explained(path):
        for depth in ("", "*/", "*/*/"):
            for file in path.glob(f"{depth}{UNFINISHED}*"):
                file.unlink(missing_ok=True)
            for group in path.glob(f"{depth}.*.removed"):
                shutil.rmtree(group)
