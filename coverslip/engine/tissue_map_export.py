"""A stored tissue map as polygons and as a picture, read band by band."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from coverslip.engine.class_colours import class_colours
from coverslip.engine.heat_map import SIDE_PX, draw_class_cells
from coverslip.engine.tissue_map_output import NO_CLASS
from coverslip.export.qupath_objects import QuPathObject
from coverslip.kernels.raster import mask_areas
from coverslip.tiling.store import SlideStore
from coverslip.tiling.tissue import Tissue
from coverslip.wsi.slide import RGB

PIECE_PX = 2048
"""Side of what is traced at a time."""
SIMPLIFY_PX = 0.5
"""How far an outline may stray from the traced one, px of the map."""
LEAST_PX = 10
"""Smaller areas are in the map, but no objects."""


@dataclass(frozen=True, slots=True)
class StoredMap:
    """A tissue map in a store.

    array        uint8 [h, w] on disk
    scale        (x, y) level-0 px per px
    slide_size   (width, height) level-0 px; slide_mpp (x, y) µm per level-0 px
    """

    name: str
    array: Any
    classes: tuple[str, ...]
    scale: tuple[float, float]
    slide_size: tuple[int, int]
    slide_mpp: tuple[float, float]

    @classmethod
    def of(cls, store: SlideStore, stage: str) -> StoredMap:
        """Stage `maps/<model>`."""
        group, slide = store.group(stage), store.slide
        return cls(
            name=stage.removeprefix("maps/"),
            array=group["classes"],
            classes=tuple(group.attrs["classes"]),
            scale=(group.attrs["scale"][0], group.attrs["scale"][1]),
            slide_size=(slide["size"][0], slide["size"][1]),
            slide_mpp=(slide["mpp"][0], slide["mpp"][1]),
        )

    def bands(self, overlap: int = 0) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """(first row, rows), so many of them with the next band."""
        for first in range(0, self.array.shape[0], PIECE_PX):
            yield first, np.asarray(self.array[first : first + PIECE_PX + overlap])


def stored_maps(store: SlideStore) -> list[str]:
    """Stages of maps that a head made of pixels; those of classified tiles are not among them."""
    return [
        name
        for name in store.stages("maps/")
        if not any(need.startswith("classes/") for need in store.record(name).needs)
    ]


def map_areas(stored: StoredMap) -> Iterator[QuPathObject]:
    """A detection for each connected area of a class, its holes left out; level-0 px.

    The map is traced in pieces that share a row and a column of px; what meets a border between
    pieces is put together at the end, and only that is held in memory.
    """
    cut: dict[int, list[shapely.Polygon]] = {}
    for y, rows in stored.bands(overlap=1):
        for x in range(0, rows.shape[1], PIECE_PX):
            piece = rows[:, x : x + PIECE_PX + 1]
            for kind in np.unique(piece[piece != NO_CLASS]).tolist():
                areas = np.array(mask_areas(piece == kind, (x, y)), object)
                meets = _meets_border(areas, x, y, stored.array.shape)
                cut.setdefault(kind, []).extend(areas[meets])
                yield from _objects(stored, kind, areas[~meets])
    for kind in sorted(cut):
        yield from _objects(stored, kind, shapely.get_parts(shapely.union_all(cut.pop(kind))))


def _meets_border(
    areas: npt.NDArray[np.object_], x: int, y: int, shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Whether each goes into the row or column that the piece shares with another."""
    x0, y0, x1, y1 = shapely.bounds(areas).T
    near = ((x0 < x + 1) & (x > 0)) | ((y0 < y + 1) & (y > 0))
    far_x, far_y = x + PIECE_PX, y + PIECE_PX
    far = ((x1 > far_x) & (far_x < shape[1])) | ((y1 > far_y) & (far_y < shape[0]))
    return np.asarray(near | far)


def _objects(
    stored: StoredMap, kind: int, areas: npt.NDArray[np.object_]
) -> Iterator[QuPathObject]:
    px_mm2 = float(np.prod(stored.scale) * np.prod(stored.slide_mpp)) / 1e6
    size = shapely.area(areas)
    large = size >= LEAST_PX
    simple = shapely.simplify(areas[large], SIMPLIFY_PX)
    for area, polygon in zip(size[large], simple, strict=True):
        placed = shapely.transform(polygon, lambda p: p * stored.scale)
        measured = {"Area mm^2": float(area * px_mm2)}
        yield QuPathObject(placed, "detection", stored.classes[kind], measurements=measured)


def draw_map(path: Path, store: SlideStore, stage: str, title: str, backdrop: RGB | None) -> None:
    """A PNG of the whole slide with the map's classes over `backdrop`, if there is one."""
    stored = StoredMap.of(store, stage)
    h, w = stored.array.shape
    step = max(1, -(-max(h, w) // SIDE_PX))
    rows, counts = [], np.zeros(256, np.int64)
    for first, band in stored.bands():
        counts += np.bincount(band.ravel(), minlength=256)
        middle = np.arange(first + (-first) % step, first + len(band), step) - first
        rows.append(band[middle][:, ::step])
    cells = np.concatenate(rows)
    shares = counts[: len(stored.classes)] / max(counts[: len(stored.classes)].sum(), 1)
    colours = class_colours(stored.classes)
    mm = np.asarray(stored.scale) * stored.slide_mpp / 1000 * step
    draw_class_cells(
        path,
        cells,
        (0.0, cells.shape[1] * mm[0], cells.shape[0] * mm[1], 0.0),
        stored,
        Tissue.from_store(store.group("tissue")).polygons,
        title=title,
        legend=[
            (f"{name} ({share:.0%})", colours[name])
            for name, share in zip(stored.classes, shares, strict=True)
        ],
        backdrop=backdrop,
    )
