"""Ids that stay the same when a slide is exported again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from uuid import UUID, uuid5

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.export.qupath_objects import NAMESPACE, PolygonColumns, QuPathObject

_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


class ObjectIds:
    """Version-5 UUIDs from the slide's name, the model and the place in hundredths of a pixel.

    Objects of one model at the very same place are told apart by their order. Not for use by
    several threads, but for `of_places`.
    """

    def __init__(self, slide: str) -> None:
        self._slide = slide
        self._models: set[str] = set()
        self._singles: Counter[str] = Counter()

    def twins(self, columns: PolygonColumns) -> dict[int, int]:
        """Row -> how many rows before it lie at the same place, for those that have any.

        Raises ValueError where columns of the same model were written before.
        """
        if columns.model in self._models:
            raise ValueError(f"model {columns.model!r} twice in one file would repeat its ids")
        self._models.add(columns.model)
        step = 1 << 18
        count = len(columns)
        keys = np.empty(count, dtype=np.int64)
        for a in range(0, count, step):
            x, y = hundredths(np.asarray(columns.centroid[a : a + step])).T
            keys[a : a + step] = (x << 32) ^ (y & 0xFFFFFFFF)
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(np.diff(keys[order]) == 0) + 1
        ranks: dict[int, int] = {}
        for place in same.tolist():
            ranks[int(order[place])] = ranks.get(int(order[place - 1]), 0) + 1
        return ranks

    def of_places(
        self, model: str, centroids: npt.NDArray[np.float64], ranks: Mapping[int, int]
    ) -> list[bytes]:
        """One id as text for each row of [N, 2] level-0 px; `ranks` as from `twins`, by row."""
        start = hashlib.sha1(NAMESPACE.bytes + self._name(model), usedforsecurity=False)
        places = orjson.dumps(hundredths(centroids), option=orjson.OPT_SERIALIZE_NUMPY)
        names = places[2:-2].split(b"],[")
        ids = []
        for row, name in enumerate(names if len(centroids) else ()):
            digest = start.copy()
            digest.update(name if row not in ranks else b"%b#%d" % (name, ranks[row]))
            h = digest.hexdigest()
            ids.append(f"{h[:8]}-{h[8:12]}-5{h[13:16]}-{_VARIANT[h[16]]}{h[17:20]}-{h[20:32]}")
        return "\n".join(ids).encode().split(b"\n") if ids else []

    def of_object(self, item: QuPathObject) -> str:
        """The object's own id if it is a UUID not used before, else one from kind and place."""
        given = _uuid(item.id)
        if given is not None and not self._singles[given]:
            self._singles[given] += 1
            return given
        box = item.geometry.bounds
        middle = np.array([[(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]])
        x, y = hundredths(middle)[0].tolist()
        name = self._name(f"{item.kind}:{item.class_name}").decode("utf-8", "surrogatepass")
        rank = -1
        while True:
            rank += 1
            made = str(uuid5(NAMESPACE, f"{name}{x},{y}" + (f"#{rank}" if rank else "")))
            if not self._singles[made]:
                self._singles[made] += 1
                return made

    def _name(self, model: str) -> bytes:
        return f"{self._slide}\n{model}\n".encode("utf-8", "surrogatepass")


def hundredths(places: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """[N, 2] int64 hundredths of a pixel; what is not finite counts as 0."""
    numbers = np.nan_to_num(np.asarray(places, dtype=np.float64), nan=0, posinf=0, neginf=0)
    return np.rint(numbers * 100).astype(np.int64)


def _uuid(text: str) -> str | None:
    try:
        return str(UUID(text)) if len(text) == 36 else None
    except ValueError:
        return None
