"""The nouns of a QuPath object file: objects one by one, or a million of them as columns."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args
from uuid import UUID

import numpy as np
import numpy.typing as npt
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

Kind = Literal["annotation", "detection", "cell", "tile", "tmaCore", "root"]
KINDS: frozenset[str] = frozenset(get_args(Kind))
Color = tuple[int, int, int]
"""Red, green, blue, each 0 to 255."""

NAMESPACE = UUID("6f1c7f4e-52b5-5f0c-9a3e-0d5f5a1f7c11")
"""Under which the ids of exported objects are made."""

MEASUREMENT_NAMES: Mapping[str, str] = {
    "probability": "Detection probability",
    "agreement": "Detection agreement",
    "area_um2": "Nucleus: Area µm^2",
    "perimeter_um": "Nucleus: Length µm",
    "circularity": "Nucleus: Circularity",
    "solidity": "Nucleus: Solidity",
    # of the ellipse with the same moments; QuPath's diameters are those of the convex hull
    "major_axis_um": "Nucleus: Major axis µm",
    "minor_axis_um": "Nucleus: Minor axis µm",
    "hematoxylin_mean": "Hematoxylin: Nucleus: Mean",
}
"""A column of the store -> the measurement's name in QuPath, its own commands' where they match."""

PALETTE: Mapping[str, Color] = {
    # QuPath's own defaults, so that an import does not recolour what a user already has
    "Tumor": (200, 0, 0),
    "Stroma": (150, 200, 150),
    "Immune cells": (160, 90, 160),
    "Necrosis": (50, 50, 50),
    "Region*": (0, 0, 180),
    "Ignore*": (180, 180, 180),
    "Positive": (250, 62, 62),
    "Negative": (112, 112, 225),
    # PanNuke's five, as the cell-typing papers paint them
    "Neoplastic": (255, 0, 0),
    "Inflammatory": (34, 221, 77),
    "Connective": (35, 92, 236),
    "Dead": (254, 255, 0),
    "Epithelial": (255, 159, 68),
    "Nucleus": (70, 110, 220),
    "Tissue": (0, 160, 120),
}


class Rows(Protocol):
    """An array, in memory or on disk, whose rows can be sliced."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class QuPathObject:
    """One object as QuPath knows it.

    geometry       in level-0 px of the whole slide
    kind           QuPath's objectType
    class_name     "Tumor", or "Tumor: Positive" for a derived class; empty for none
    class_color    of the class; None takes the palette's
    measurements   name -> number
    name           shown in QuPath's list; empty for none
    color          of this object alone, overriding the class; None for none
    locked         cannot be moved by a slip of the mouse
    nucleus        of a cell, in level-0 px
    id             UUID; empty to have a stable one made from slide, kind and place
    metadata       text by name
    plane          (channel, z, t); QuPath's default is (-1, 0, 0)
    parent         on reading: index, in the list read, of the object this one lay in
    """

    geometry: BaseGeometry
    kind: Kind = "detection"
    class_name: str = ""
    class_color: Color | None = None
    measurements: Mapping[str, float] = field(default_factory=dict)
    name: str = ""
    color: Color | None = None
    locked: bool = False
    nucleus: BaseGeometry | None = None
    id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    plane: tuple[int, int, int] = (-1, 0, 0)
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class PolygonColumns:
    """M polygons of one kind and one model as columns, in memory or on disk (Zarr, HDF5).

    model            what found them; with the slide and the place it makes the ids
    centroid         [M, 2] level-0 px of the whole slide
    polygon_offset   [M+1] int; polygon i has vertices polygon_offset[i]:polygon_offset[i+1]
    polygon          [V, 2] level-0 px; rings without holes, open or closed
    kind             QuPath's objectType: "detection", "cell" or "tile"
    classes          names by class id; an empty name is unclassified
    class_id         [M] int; None where nothing is classified
    measurements     QuPath's name -> [M] numbers; one that is not finite is left out
    """

    model: str
    centroid: Rows
    polygon_offset: Rows
    polygon: Rows
    kind: Kind = "detection"
    classes: Sequence[str] = ()
    class_id: Rows | None = None
    measurements: Mapping[str, Rows] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = self.centroid.shape[0]
        lengths = {name: rows.shape[0] for name, rows in self.measurements.items()}
        if self.class_id is not None:
            lengths["class_id"] = self.class_id.shape[0]
        wrong = {name: length for name, length in lengths.items() if length != count}
        if wrong:
            raise ValueError(f"{count} centroids, but columns of other lengths: {wrong}")
        if self.polygon_offset.shape[0] != count + 1:
            raise ValueError(
                f"{count} centroids need {count + 1} offsets, got {self.polygon_offset.shape[0]}"
            )
        if any(not name.strip() for name in self.measurements):
            raise ValueError("a measurement needs a name")

    def __len__(self) -> int:
        return self.centroid.shape[0]


def box_columns(
    boxes: npt.ArrayLike,
    *,
    model: str,
    kind: Kind = "tile",
    classes: Sequence[str] = (),
    class_id: Rows | None = None,
    measurements: Mapping[str, Rows] | None = None,
) -> PolygonColumns:
    """Rectangles, such as the tiles of a grid, as columns.

    boxes    [N, 4] x, y, width, height in level-0 px
    model    what they are of, for example the grid's name
    """
    corner, size = np.split(np.asarray(boxes, dtype=np.float64).reshape(-1, 4), 2, axis=1)
    around = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    return PolygonColumns(
        model=model,
        centroid=corner + size / 2,
        polygon_offset=np.arange(len(corner) + 1) * 4,
        polygon=(corner[:, None] + size[:, None] * around).reshape(-1, 2),
        kind=kind,
        classes=classes,
        class_id=class_id,
        measurements=measurements or {},
    )


def tissue_objects(polygons: Iterable[Polygon], class_name: str = "Tissue") -> list[QuPathObject]:
    """Tissue outlines as locked annotations, which do not follow a careless mouse."""
    return [
        QuPathObject(polygon, "annotation", class_name, locked=True)
        for polygon in polygons
        if not polygon.is_empty
    ]


def class_parts(name: str) -> tuple[str, ...]:
    """The parts of a class name as QuPath splits it: "Tumor: Positive" has two.

    Line breaks and blank parts, at which QuPath throws, are gone.
    """
    parts = (" ".join(part.split()) for part in name.split(":"))
    return tuple(part for part in parts if part)


def class_color(name: str) -> Color:
    """The palette's colour of a class, or a colour that depends on nothing but its name."""
    if name in PALETTE:
        return PALETTE[name]
    draw = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    hue = int.from_bytes(draw[:2], "big") / 65536
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + draw[2] / 640, 0.7 + draw[3] / 1020)
    return round(red * 255), round(green * 255), round(blue * 255)
