"""Heat maps of a slide: what its store holds a value or a class of for every tile, or every pixel.

A layer's key is made of its stage and column, so it stays the same from visit to visit and is safe
in a URL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from coverslip.engine.class_colours import class_colours
from coverslip.engine.heat_map import NO_TILE, cells_of
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.store import SlideStore
from coverslip.viewer.coloured_tiles import CLEAR, class_palette, coloured_png, ramp
from coverslip.viewer.deep_zoom import TILE, DeepZoom

Kind = Literal["attention", "probability", "prompt", "class map", "quality"]
Limits = tuple[float, float]
QUALITY = ("focus", "pen", "brightness")
SPREAD = (1, 99)
"""Percentiles that the colours go between, where a column has no limits of its own."""
HELD_PX = 4096
"""Longest side of a class map that is held whole; of a larger one, a part of its pixels is, and
near views read theirs from disk."""


@dataclass(frozen=True)
class HeatLayer:
    """One map.

    key        for URLs
    title      of its group, for a person; column is which of the group
    stage      that holds it; "" for one that lives in memory alone
    grid       of the tiles it has values of; "" where it is a raster
    array      in the stage; part is a column of it, or None
    limits     between which the colours go
    classes    of a class map: names and colours; none otherwise
    """

    title: str
    column: str
    kind: Kind
    stage: str
    grid: str = ""
    array: str = ""
    part: int | None = None
    limits: Limits = (0.0, 1.0)
    classes: tuple[tuple[str, tuple[int, int, int]], ...] = ()

    @property
    def key(self) -> str:
        place = f"{self.stage}\0{self.array}\0{self.title}\0{self.column}"
        return hashlib.blake2b(place.encode(), digest_size=8).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """As the page is told of it."""
        return {
            "layer": self.key,
            "title": self.title,
            "column": self.column,
            "kind": self.kind,
            "limits": list(self.limits),
            "classes": [{"name": n, "color": list(c)} for n, c in self.classes] or None,
        }


@dataclass(frozen=True, eq=False)
class HeatCells:
    """A layer's values on a lattice.

    cells    float32 [h, w], nan where there is nothing, or uint8 classes, `missing` where none is
    scale    (x, y) level-0 px per cell; origin (x, y) level-0 px of the first one's corner
    finer    the array on disk that the cells are every `step`-th of; None where they are all
    """

    layer: HeatLayer
    cells: npt.NDArray[Any]
    scale: tuple[float, float]
    origin: tuple[float, float] = (0.0, 0.0)
    missing: int = NO_TILE
    finer: Any = None
    step: int = 1

    @property
    def nbytes(self) -> int:
        return self.cells.nbytes

    @cached_property
    def digest(self) -> str:
        """Of the values; they tell apart what is made anew under the same key."""
        return hashlib.blake2b(self.cells.tobytes(), digest_size=8).hexdigest()

    def png(self, zoom: DeepZoom, level: int, column: int, row: int, shown: Limits | None) -> bytes:
        """A tile of 256 x 256 px, clear where there is nothing.

        shown   values outside are clear as well; None shows all
        """
        scale, corner = zoom.scale(level), zoom.corner(level, column, row)
        places = (np.arange(TILE) + 0.5) * scale
        u, v = (
            np.floor((corner[i] + places - self.origin[i]) / self.scale[i]).astype(np.int64)
            for i in (0, 1)
        )
        values, inside = self._values(u, v, scale)
        if self.layer.classes:
            count = len(self.layer.classes)
            inside &= (values != self.missing) & (values < count)
            indices = np.where(inside, values + 1, CLEAR).astype(np.uint8)
            return coloured_png(indices, class_palette([c for _, c in self.layer.classes]))
        low, high = self.layer.limits
        inside &= np.isfinite(values)
        if shown is not None:
            with np.errstate(invalid="ignore"):
                inside &= (values >= shown[0]) & (values <= shown[1])
        share = np.clip((np.where(inside, values, low) - low) / (high - low), 0, 1)
        indices = np.where(inside, 1 + np.rint(share * 254), CLEAR).astype(np.uint8)
        return coloured_png(indices, ramp())

    def _values(
        self, u: npt.NDArray[np.int64], v: npt.NDArray[np.int64], scale: float
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """[256, 256] values at columns u and rows v of the full lattice; whether there are any."""
        source, step, first = self.cells, self.step, (0, 0)
        height, width = self.cells.shape
        if self.finer is not None:
            height, width = self.finer.shape
            if scale < self.step * min(self.scale):
                source, step, first = self._read(u, v)
        inside = ((v >= 0) & (v < height))[:, None] & ((u >= 0) & (u < width))[None, :]
        if not source.size or not inside.any():
            return np.zeros((TILE, TILE), self.cells.dtype), np.zeros((TILE, TILE), np.bool_)
        rows = np.clip(v // step - first[0], 0, source.shape[0] - 1)
        columns = np.clip(u // step - first[1], 0, source.shape[1] - 1)
        return source[np.ix_(rows, columns)], inside

    def _read(
        self, u: npt.NDArray[np.int64], v: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[Any], int, tuple[int, int]]:
        """The part of the array on disk that holds these places."""
        height, width = self.finer.shape
        top, bottom = (int(np.clip(e, 0, height)) for e in (v[0], v[-1] + 1))
        left, right = (int(np.clip(e, 0, width)) for e in (u[0], u[-1] + 1))
        return np.asarray(self.finer[top:bottom, left:right]), 1, (top, left)


def heat_layers(store: SlideStore) -> list[HeatLayer]:
    """All layers of a store, in the order of their kinds."""
    return [
        *_attention(store),
        *_by_class(store, "classes/", "probability"),
        *_by_class(store, "prompts/", "prompt"),
        *_class_maps(store),
        *_quality(store),
    ]


def heat_cells(store: SlideStore, layer: HeatLayer) -> HeatCells:
    """A stored layer's values. Raises IncompleteStage."""
    group = store.group(layer.stage)
    if not layer.grid:
        return _raster(group, layer)
    values = np.asarray(group[layer.array][:])
    if layer.part is not None:
        values = values[:, layer.part]
    return grid_cells(layer, values, _grid(store, layer.grid))


def grid_cells(layer: HeatLayer, values: npt.NDArray[Any], grid: TileGrid) -> HeatCells:
    """Values [N] of a grid's tiles on its lattice; where tiles overlap, each is its middle."""
    cells = cells_of(values.astype(np.float32), grid, np.float32(np.nan))
    scale = np.asarray(grid.scale)
    x, y = (scale * grid.step).tolist()
    left, top = (scale * grid.overlap / 2).tolist()
    return HeatCells(layer, cells, (x, y), (left, top))


def spread(values: npt.NDArray[Any]) -> Limits:
    """Limits for values without limits of their own; never of zero width."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = np.percentile(finite.astype(np.float64), SPREAD).tolist()
    return (low, high) if high > low else (low, low + max(abs(low), 1.0) * 1e-6)


def _raster(group: Any, layer: HeatLayer) -> HeatCells:
    array, facts = group[layer.array], group.attrs
    step = max(1, -(-max(array.shape) // HELD_PX))
    band = HELD_PX // step * step
    bands = [
        np.asarray(array[first : first + band])[::step, ::step]
        for first in range(0, array.shape[0], band)
    ]
    return HeatCells(
        layer,
        np.concatenate(bands) if bands else np.empty(array.shape, np.uint8),
        (facts["scale"][0], facts["scale"][1]),
        (facts["origin"][0], facts["origin"][1]),
        int(facts["missing"]),
        array if step > 1 else None,
        step,
    )


def _by_class(store: SlideStore, prefix: str, kind: Kind) -> Iterator[HeatLayer]:
    """Probabilities [N, C] of `classes/<name>@<grid>` and `prompts/<set>.<encoder>@<grid>`."""
    for stage in store.stages(prefix):
        title, _, grid = stage.removeprefix(prefix).rpartition("@")
        layer = HeatLayer(title, "", kind, stage, grid, "probabilities")
        for number, name in enumerate(store.group(stage).attrs["classes"]):
            yield replace(layer, column=name, part=number)


def _class_maps(store: SlideStore) -> Iterator[HeatLayer]:
    for stage in store.stages("maps/"):
        classes = list(store.group(stage).attrs["classes"])
        colours = class_colours(classes)
        yield HeatLayer(
            stage.removeprefix("maps/").partition("@")[0],
            "class",
            "class map",
            stage,
            array="classes",
            limits=(0.0, float(max(len(classes) - 1, 1))),
            classes=tuple((name, colours[name]) for name in classes),
        )


def _quality(store: SlideStore) -> Iterator[HeatLayer]:
    for stage in store.stages("quality/"):
        group, grid = store.group(stage), stage.removeprefix("quality/")
        for name in QUALITY:
            limits = spread(np.asarray(group[name][:]))
            yield HeatLayer("quality", name, "quality", stage, grid, name, limits=limits)


def _attention(store: SlideStore) -> Iterator[HeatLayer]:
    """Of `predictions/<study>@<encoder>@<grid>`: attention, and contributions of models that add
    up."""
    for stage in store.stages("predictions/"):
        title, _, grid = stage.removeprefix("predictions/").rpartition("@")
        if f"tiles/{grid}" not in store.stages("tiles/"):
            continue
        group = store.group(stage)
        attention = np.asarray(group["attention"][:])
        yield HeatLayer(
            title, "attention", "attention", stage, grid, "attention", limits=spread(attention)
        )
        names = group.attrs["contribution_names"]
        parts: Any = np.asarray(group["contributions"][:]) if names else None
        for number, name in enumerate(names):
            yield HeatLayer(
                title, f"contribution: {name}", "attention", stage, grid, "contributions", number,
                limits=spread(parts[:, number]),
            )  # fmt: skip


def _grid(store: SlideStore, name: str) -> TileGrid:
    return TileGrid.from_store(store.group(f"tiles/{name}"))
