"""The slide's store on disk: one Zarr v3 group, every stage complete or visibly not.

<slide id>.zarr/
  zarr.json                    attributes.coverslip: {schema, slide {...}, stages {name: {...}}}
  tissue/                      mask uint8 [h, w]; attrs: scale, thresholds, polygons (GeoJSON)
  tiles/<grid>/                boxes int32 [N, 4] x, y, w, h level-0 px; tissue_fraction float32 [N]
  quality/<grid>/              focus, pen, brightness float32 [N]; damaged bool [N]
  pixels/<grid>/               pixels uint8 [N, T, T, 3], sharded; JPEG or lossless
  features/<encoder>@<grid>/   features float32 [N, D]; attrs: the encoder's recipe
  nuclei/<model>/              centroid float64 [M, 2], polygon_offset int64 [M + 1],
                               polygon float32 [V, 2], class_id uint8 [M], probability ..., measures
  image/                       OME-NGFF 0.5 pyramid

A stage's record: {hash, parameters, software}. The hash covers the parameters, the stages it
stands on and what decides the slide's pixels; a stage whose hash no longer fits is stale and is
made again. The store holds no clock time, host name or path: the same run gives the same bytes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from coverslip import __version__
from coverslip.durable import explained, replace_file
from coverslip.errors import IncompleteStage, StoreError, StoreVersion
from coverslip.tiling.stage_writer import StageWriter, json_bytes

__all__ = ["SlideStore", "StageRecord", "StageWriter"]

SCHEMA = 1
PIXEL_FACTS = ("fingerprint", "size", "mpp", "colour", "reader")
"""Facts of the slide that decide what any stage computes."""


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A complete stage: the hash of all that decided it, and its own parameters."""

    name: str
    hash: str
    parameters: Mapping[str, Any]
    software: str


class SlideStore:
    """One slide's store. `slide` holds the facts of the slide (see `wsi.facts`)."""

    def __init__(self, path: Path, slide: dict[str, Any], stages: dict[str, Any]) -> None:
        self.path, self.slide, self._stages = path, slide, stages

    @classmethod
    def open(cls, path: str | Path) -> SlideStore:
        """Raises StoreError (no store there), StoreVersion (a schema we do not know)."""
        path = Path(path)
        try:
            attributes = orjson.loads((path / "zarr.json").read_bytes())["attributes"]["coverslip"]
        except FileNotFoundError:
            raise StoreError(path, "is no store: it has no zarr.json") from None
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise StoreError(path, f"its zarr.json cannot be read ({error!r})") from None
        if attributes.get("schema") != SCHEMA:
            raise StoreVersion(
                path,
                f"was written by schema {attributes.get('schema')}, this engine knows {SCHEMA}",
                "use the version of coverslip that wrote it, or another output folder",
            )
        return cls(path, attributes["slide"], attributes["stages"])

    @classmethod
    def open_or_create(cls, path: str | Path, slide: Mapping[str, Any]) -> SlideStore:
        """The store of the slide with these facts, new or as it was left.

        Raises StoreError where the store belongs to a file with another fingerprint.
        """
        path = Path(path)
        if (path / "zarr.json").exists():
            store = cls.open(path)
            if store.slide.get("fingerprint") != slide.get("fingerprint"):
                raise StoreError(
                    path,
                    "belongs to another version of this slide: the file has changed",
                    "remove the store to start over, or choose another folder with -o",
                )
            if store.slide != dict(slide):
                store.slide = dict(slide)
                store._save()
            return store
        store = cls(path, dict(slide), {})
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
        store._save()
        return store

    def stage(
        self, name: str, parameters: Mapping[str, Any], *, needs: Sequence[str] = ()
    ) -> StageWriter:
        """Begin or resume a stage. What another set of parameters left under the name is removed.

        name         path of the stage's group, as in the schema above
        parameters   JSON-able; everything that decides the result
        needs        complete stages it stands on. Raises IncompleteStage where one is not
        """
        hash = self._hash(parameters, needs)
        final = self.path / name
        if name in self._stages:
            del self._stages[name]
            self._save()
        with explained(final):
            if final.exists():
                shutil.rmtree(final)
        self._make_parents(name)

        def on_complete(_: Mapping[str, Any]) -> None:
            self._complete(name, hash, parameters)

        return StageWriter(final, hash, on_complete)

    def is_current(
        self, name: str, parameters: Mapping[str, Any], *, needs: Sequence[str] = ()
    ) -> bool:
        """Whether the stage is complete with just these parameters and stands on current stages."""
        if any(need not in self._stages for need in needs):
            return False
        hash = self._hash(parameters, needs)
        if name not in self._stages and self._left_unrecorded(name) == hash:
            self._complete(name, hash, parameters)  # a crash fell between the rename and the record
        return self._stages.get(name, {}).get("hash") == hash

    def _left_unrecorded(self, name: str) -> str:
        try:
            attributes = orjson.loads((self.path / name / "zarr.json").read_bytes())["attributes"]
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
            return ""
        return str(attributes.get("coverslip_stage", ""))

    def record(self, name: str) -> StageRecord:
        """Raises IncompleteStage."""
        if name not in self._stages:
            raise IncompleteStage(
                self.path, f"stage {name!r} is not complete", "run it again: what is done is kept"
            )
        found = self._stages[name]
        return StageRecord(name, found["hash"], found["parameters"], found["software"])

    def state(self, name: str) -> Literal["absent", "partial", "complete"]:
        """Where a stage stands."""
        if name in self._stages:
            return "complete"
        final = self.path / name
        return "partial" if final.with_name(f".{final.name}.partial").exists() else "absent"

    def stages(self, prefix: str = "") -> list[str]:
        """Names of the complete stages that begin with `prefix`, sorted."""
        return sorted(name for name in self._stages if name.startswith(prefix))

    def group(self, name: str) -> Any:
        """A complete stage's zarr.Group, read-only. Raises IncompleteStage."""
        import zarr

        import coverslip.tiling.jpeg_codec  # noqa: F401  (registers the codec)

        self.record(name)
        return zarr.open_group(str(self.path / name), mode="r")

    def _hash(self, parameters: Mapping[str, Any], needs: Sequence[str]) -> str:
        content = {
            "parameters": parameters,
            "needs": {need: self.record(need).hash for need in needs},
            "slide": {fact: self.slide.get(fact) for fact in PIXEL_FACTS},
        }
        return hashlib.sha256(json_bytes(content)).hexdigest()

    def _complete(self, name: str, hash: str, parameters: Mapping[str, Any]) -> None:
        self._stages[name] = {
            "hash": hash,
            "parameters": dict(parameters),
            "software": f"coverslip {__version__}",
        }
        self._save()

    def _save(self) -> None:
        content = {"schema": SCHEMA, "slide": self.slide, "stages": self._stages}
        group = {"attributes": {"coverslip": content}, "node_type": "group", "zarr_format": 3}
        replace_file(self.path / "zarr.json", json_bytes(group))

    def _make_parents(self, name: str) -> None:
        """The groups between the root and the stage, so that the whole is one Zarr hierarchy."""
        empty = json_bytes({"attributes": {}, "node_type": "group", "zarr_format": 3})
        for parent in list(Path(name).parents)[:-1]:
            if not (self.path / parent / "zarr.json").exists():
                replace_file(self.path / parent / "zarr.json", empty)
