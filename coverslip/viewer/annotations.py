"""A person's annotations of a slide: QuPath GeoJSON under `annotations/`, whole or as it was.

The page draws in level-0 px of the whole slide; files count from the corner of the slide's bounds,
as QuPath does.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from coverslip.export.geojson import Limits, QuPathObject, read_geojson, write_geojson
from coverslip.wsi.slide import Box

MOST_BYTES = 16 << 20
LIMITS = Limits(bytes=MOST_BYTES, feature=MOST_BYTES, objects=100_000, depth=16)
NONE_YET = "none"
"""Version of annotations that there are none of."""


class Changed(Exception):
    """Someone else has written since; `version` is theirs."""

    def __init__(self, version: str) -> None:
        super().__init__("the annotations have changed meanwhile: load them again")
        self.version = version


@dataclass(frozen=True, eq=False)
class Annotations:
    """Of all slides of a run. Safe to share between threads of one process.

    folder   where the files are
    """

    folder: Path
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def path(self, slide_id: str) -> Path:
        """`<folder>/<slide id>.geojson`; the id is one that the shelf knows."""
        return self.folder / f"{slide_id}.geojson"

    def version(self, slide_id: str) -> str:
        """Changes with the file."""
        try:
            content = self.path(slide_id).read_bytes()
        except FileNotFoundError:
            return NONE_YET
        return hashlib.blake2b(content, digest_size=12).hexdigest()

    def read(self, slide_id: str, bounds: Box) -> tuple[bytes, str]:
        """(GeoJSON in level-0 px, its version). Raises InvalidGeoJSON."""
        with self._turn:
            version = self.version(slide_id)
            found = self._objects(slide_id, bounds)
        return _text(found, slide_id), version

    def count(self, slide_id: str, bounds: Box) -> int:
        """How many there are. Raises InvalidGeoJSON."""
        return len(self._objects(slide_id, bounds))

    def write(self, slide_id: str, content: bytes, bounds: Box, known: str) -> tuple[int, str]:
        """Put `content`, GeoJSON in level-0 px, in place of what is there.

        known   the version it was made from

        Returns (how many objects, the new version). Raises InvalidGeoJSON; Changed, where another
        version is there; StoreError where the folder cannot be written.
        """
        with tempfile.TemporaryDirectory() as folder:
            aside = Path(folder) / "annotations.geojson"
            aside.write_bytes(content)
            objects = read_geojson(aside, limits=LIMITS)
        with self._turn:
            if (version := self.version(slide_id)) != known:
                raise Changed(version)
            written = write_geojson(
                self.path(slide_id), objects, slide=slide_id, bounds=bounds, max_objects=None
            )
            return written.objects, self.version(slide_id)

    def _objects(self, slide_id: str, bounds: Box) -> list[QuPathObject]:
        path = self.path(slide_id)
        return read_geojson(path, bounds=bounds) if path.exists() else []


def _text(objects: list[QuPathObject], slide_id: str) -> bytes:
    """GeoJSON of these objects where they are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.geojson"
        write_geojson(path, objects, slide=slide_id, max_objects=None)
        return path.read_bytes()
