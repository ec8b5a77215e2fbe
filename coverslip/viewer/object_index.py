"""Outlined objects of a slide, sorted so that those of any Deep Zoom cell lie together.

Objects are put in the order of a Z-curve over squares of 16 level-0 px. The squares of every
coarser level are runs of that curve, so a cell's objects, and how many there are, are two binary
searches, whatever the level and however many objects the slide has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.engine.class_colours import class_colours
from coverslip.export.geojson import MEASUREMENT_NAMES
from coverslip.tiling.store import SlideStore
from coverslip.viewer.deep_zoom import TILE, DeepZoom

NOUNS = {"nuclei": "Nucleus", "glands": "Gland", "lumina": "Lumen"}
"""Stages of outlined objects -> how their measurements call one."""
FINE = 4
"""Halvings from a tile's side at full resolution to the squares that objects are sorted by."""
SQUARE = TILE >> FINE

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ObjectIndex:
    """M objects, apart from their outlines. Columns are in the store's order.

    codes         uint64 [M], ascending: squares on the Z-curve; rows int64 [M]: whose they are
    centroid      float64 [M, 2] (x, y) level-0 px
    class_id      uint8 [M]; probability uint8 [M], 255 times it; 255 where it is unknown
    measures      column of the store -> float32 [M]
    noun          what the measurements call one
    """

    zoom: DeepZoom
    codes: npt.NDArray[np.uint64]
    rows: Rows
    centroid: npt.NDArray[np.float64]
    class_id: npt.NDArray[np.uint8]
    probability: npt.NDArray[np.uint8]
    measures: Mapping[str, npt.NDArray[np.float32]]
    classes: tuple[str, ...]
    noun: str

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def nbytes(self) -> int:
        columns: list[npt.NDArray[Any]] = [
            self.codes, self.rows, self.centroid, self.class_id, self.probability,
            *self.measures.values(),
        ]  # fmt: skip
        return sum(column.nbytes for column in columns)

    def run(self, level: int, column: int, row: int) -> slice:
        """Where in `codes` and `rows` the objects of a cell stand: a tile's square of the level."""
        bits = np.uint64(2 * (self.zoom.last - level + FINE))
        code = z_codes(np.array([column]), np.array([row]))[0]
        first, past = code << bits, (code + np.uint64(1)) << bits
        start, stop = np.searchsorted(self.codes, np.array([first, past]))
        return slice(int(start), int(stop))

    def codes_of(self, class_id: int | None) -> npt.NDArray[np.uint64]:
        """Of one class's objects alone; of all for None."""
        if class_id is None:
            return self.codes
        found: npt.NDArray[np.uint64] = self.codes[self.class_id[self.rows] == class_id]
        return found

    def near(self, x: float, y: float, reach: float) -> Rows:
        """Objects whose centroid is no farther than `reach` from a point, along x and along y, and
        some more; level-0 px."""
        level = self.zoom.last
        while level and TILE * self.zoom.scale(level) < reach:
            level -= 1
        side = TILE * self.zoom.scale(level)
        cells = {
            (int((x + dx) // side), int((y + dy) // side))
            for dx in (-reach, 0, reach)
            for dy in (-reach, 0, reach)
        }
        runs = [self.run(level, *cell) for cell in sorted(cells) if min(cell) >= 0]
        return np.concatenate([self.rows[run] for run in runs] or [np.empty(0, np.int64)])

    def measurements(self, row: int) -> dict[str, float]:
        """Under QuPath's names; those that are not finite are left out."""
        values = {name: float(column[row]) for name, column in self.measures.items()}
        return {
            measurement_name(name, self.noun): value
            for name, value in values.items()
            if np.isfinite(value)
        }


def measurement_name(column: str, noun: str) -> str:
    """A column of the store as QuPath calls it."""
    return MEASUREMENT_NAMES[column].replace("Nucleus", noun)


def object_stages(store: SlideStore) -> list[tuple[str, str]]:
    """(kind, model) of every stage that holds outlines."""
    return [
        (kind, stage.removeprefix(f"{kind}/"))
        for kind in NOUNS
        for stage in store.stages(f"{kind}/")
    ]


def object_facts(store: SlideStore, kind: str, model: str) -> dict[str, Any]:
    """What the page has to know of a stage before it asks for its objects."""
    group = store.group(f"{kind}/{model}")
    classes = list(group.attrs["classes"])
    colours = class_colours(classes)
    return {
        "kind": kind,
        "count": int(group["centroid"].shape[0]),
        "classes": [{"name": name, "color": list(colours[name])} for name in classes],
        "measurements": [
            measurement_name(name, NOUNS[kind])
            for name in sorted(group.array_keys())
            if name in MEASUREMENT_NAMES
        ],
    }


def object_index(store: SlideStore, kind: str, model: str, zoom: DeepZoom) -> ObjectIndex:
    """The objects of a complete stage. Raises IncompleteStage."""
    group = store.group(f"{kind}/{model}")
    columns = {
        name: np.asarray(group[name][:])
        for name in group.array_keys()
        if name not in ("polygon", "polygon_offset")
    }
    return indexed(zoom, columns, list(group.attrs["classes"]), noun=NOUNS[kind])


def indexed(
    zoom: DeepZoom,
    columns: Mapping[str, npt.NDArray[Any]],
    classes: Sequence[str],
    *,
    noun: str = "Nucleus",
) -> ObjectIndex:
    """The index of columns as `heads.instances.Nuclei` has them."""
    centroid = np.asarray(columns["centroid"], np.float64)
    cells = np.clip(centroid, 0, np.array(zoom.size) - 1).astype(np.int64) // SQUARE
    codes = z_codes(cells[:, 0], cells[:, 1])
    rows = np.argsort(codes, kind="stable")
    chance = np.nan_to_num(np.asarray(columns["probability"], np.float32), nan=1.0)
    return ObjectIndex(
        zoom=zoom,
        codes=codes[rows],
        rows=rows,
        centroid=centroid,
        class_id=np.asarray(columns["class_id"], np.uint8),
        probability=np.rint(np.clip(chance, 0, 1) * 255).astype(np.uint8),
        measures={
            name: np.asarray(columns[name], np.float32)
            for name in sorted(columns)
            if name in MEASUREMENT_NAMES
        },
        classes=tuple(classes),
        noun=noun,
    )


def z_codes(column: npt.NDArray[Any], row: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Places on the Z-curve (Morton 1966): the bits of column and row by turns, column lowest."""
    return _spread(column) | (_spread(row) << np.uint64(1))


def _spread(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """32 bits, each with a zero above it."""
    bits = values.astype(np.uint64)
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333), (1, 0x5555555555555555),
    ):  # fmt: skip
        bits = (bits | (bits << np.uint64(shift))) & np.uint64(mask)
    return bits
