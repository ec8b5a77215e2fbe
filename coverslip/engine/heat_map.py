"""A value of every tile as a picture of the slide, with its scale beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from shapely.geometry import Polygon

from coverslip.tiling.grid import TileGrid

COLOURS = "viridis"
"""Even steps of the value are even steps to the eye, also to one that tells no red from green."""
SIDE_PX = 1600
"""Longest side of a picture."""
DPI = 160
ROOM = (2.3, 0.9)
"""Inches across and down that the scale and the words take."""


def draw_heat_map(
    path: Path,
    values: npt.NDArray[np.float32],
    grid: TileGrid,
    polygons: Sequence[Polygon],
    *,
    title: str,
    label: str,
    limits: tuple[float, float] = (0.0, 1.0),
) -> None:
    """A PNG of the whole slide, its sides in mm, at most `SIDE_PX` px long.

    values     [N], one a tile of the grid; white where there is no tile
    polygons   of tissue in level-0 px, outlined
    label      of the scale, which goes from the first limit to the second
    """
    from matplotlib.figure import Figure

    millimetres = np.asarray(grid.slide_mpp) / 1000  # per level-0 px, (x, y)
    width, height = np.asarray(grid.slide_size) * millimetres
    figure = Figure(figsize=_inches(width, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(
        _cells(values, grid),
        extent=_extent(grid, millimetres),
        cmap=COLOURS,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
    )
    for polygon in polygons:
        for ring in (polygon.exterior, *polygon.interiors):
            x, y = (np.asarray(ring.coords)[:, :2] * millimetres).T
            axes.plot(x, y, color="black", linewidth=0.8)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xlabel="mm", ylabel="mm")
    axes.set_title(title, parse_math=False, wrap=True, fontsize=10)
    scale = figure.colorbar(picture, ax=axes, shrink=0.8)
    scale.set_label(label, parse_math=False)
    figure.savefig(path, format="png", metadata={"Software": None})


def _inches(width: float, height: float) -> tuple[float, float]:
    """(across, down) of the figure: the slide's shape, and the room beside it."""
    shape, room = np.array([width, height]), np.array(ROOM)
    slide = shape * ((SIDE_PX / DPI - room) / shape).min()
    across, down = np.maximum(slide, 2.0) + room
    return float(across), float(down)


def _places(grid: TileGrid) -> npt.NDArray[np.int64]:
    """[N, 2] (column, row) of every tile in the grid."""
    step = np.asarray(grid.scale) * grid.step
    found: npt.NDArray[np.int64] = np.rint(grid.boxes[:, :2] / step).astype(np.int64)
    return found


def _cells(values: npt.NDArray[np.float32], grid: TileGrid) -> npt.NDArray[np.float32]:
    """[rows, columns] of values, NaN where the grid keeps no tile."""
    columns, rows = _places(grid).T
    cells = np.full((rows.max(initial=0) + 1, columns.max(initial=0) + 1), np.nan, np.float32)
    cells[rows, columns] = values
    return cells


def _extent(
    grid: TileGrid, millimetres: npt.NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) of the cells; where tiles overlap, each is shown at its middle."""
    columns, rows = _places(grid).max(axis=0, initial=0) + 1
    cell = np.asarray(grid.scale) * grid.step * millimetres
    left, top = np.asarray(grid.scale) * grid.overlap / 2 * millimetres
    return left, left + columns * cell[0], top + rows * cell[1], top
