"""A value or a class of every tile as a picture of the slide, with a scale or legend beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from shapely.geometry import Polygon

from coverslip.tiling.grid import TileGrid
from coverslip.wsi.slide import RGB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Value = TypeVar("Value", bound=np.generic)


class SlideExtent(Protocol):
    """How large a slide is: (width, height) level-0 px, (x, y) µm per px."""

    @property
    def slide_size(self) -> tuple[int, int]: ...
    @property
    def slide_mpp(self) -> tuple[float, float]: ...


COLOURS = "viridis"
"""Even steps of the value are even steps to the eye, also to one that tells no red from green."""
SIDE_PX = 1600
"""Longest side of a picture."""
DPI = 160
ROOM = (2.3, 0.9)
"""Inches across and down that the scale and the words take."""
NO_TILE = 255
"""In place of a class where there is no tile."""
OPACITY = 0.5
"""Of a class's colour over the slide's picture."""


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
    figure, axes = _slide_figure(grid, title)
    picture = axes.imshow(
        cells_of(values, grid, np.float32(np.nan)),
        extent=_extent(grid),
        cmap=COLOURS,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
    )
    _outline(axes, polygons, grid)
    scale = figure.colorbar(picture, ax=axes, shrink=0.8)
    scale.set_label(label, parse_math=False)
    figure.savefig(path, format="png", metadata={"Software": None})


def draw_class_map(
    path: Path,
    class_id: npt.NDArray[np.uint8],
    grid: TileGrid,
    polygons: Sequence[Polygon],
    *,
    title: str,
    legend: Sequence[tuple[str, tuple[int, int, int]]],
    backdrop: RGB | None = None,
) -> None:
    """As `draw_heat_map`, each tile in the colour of its class.

    class_id   [N], one a tile of the grid: numbers of the legend's (words, colour)
    backdrop   a picture of the whole slide, of any size, that shines through; white without it
    """
    draw_class_cells(
        path,
        cells_of(class_id, grid, np.uint8(NO_TILE)),
        _extent(grid),
        grid,
        polygons,
        title=title,
        legend=legend,
        backdrop=backdrop,
    )


def draw_class_cells(
    path: Path,
    cells: npt.NDArray[np.uint8],
    extent: tuple[float, float, float, float],
    slide: SlideExtent,
    polygons: Sequence[Polygon],
    *,
    title: str,
    legend: Sequence[tuple[str, tuple[int, int, int]]],
    backdrop: RGB | None = None,
) -> None:
    """As `draw_class_map`, of a raster.

    cells    [rows, columns] numbers of the legend's entries; others are left clear
    extent   (left, right, bottom, top) of the raster, mm
    """
    from matplotlib.patches import Patch

    figure, axes = _slide_figure(slide, title)
    if backdrop is not None:
        width, height = np.asarray(slide.slide_size) * _millimetres(slide)
        axes.imshow(backdrop, extent=(0, width, height, 0), interpolation="antialiased")
    colours = np.zeros((256, 4), np.uint8)
    colours[: len(legend), :3] = [colour for _, colour in legend]
    colours[: len(legend), 3] = round(255 * (1 if backdrop is None else OPACITY))
    axes.imshow(colours[cells], extent=extent, interpolation="nearest")
    _outline(axes, polygons, slide)
    patches = [Patch(color=(r / 255, g / 255, b / 255)) for _, (r, g, b) in legend]
    box = figure.legend(patches, [words for words, _ in legend], loc="outside right upper",
                        frameon=False, fontsize=9)  # fmt: skip
    for text in box.get_texts():
        text.set_parse_math(False)
    figure.savefig(path, format="png", metadata={"Software": None})


def picture_of(path: Path) -> RGB | None:
    """The whole slide as the report shows it; None where the report is gone."""
    from PIL import Image

    if not path.exists():
        return None
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def cells_of(values: npt.NDArray[Value], grid: TileGrid, missing: Value) -> npt.NDArray[Value]:
    """[rows, columns] of values [N], `missing` where the grid keeps no tile."""
    columns, rows = places_of(grid).T
    shape = (rows.max(initial=0) + 1, columns.max(initial=0) + 1)
    cells = np.full(shape, missing, values.dtype)
    cells[rows, columns] = values
    return cells


def places_of(grid: TileGrid) -> npt.NDArray[np.int64]:
    """[N, 2] (column, row) of every tile in the grid."""
    step = np.asarray(grid.scale) * grid.step
    found: npt.NDArray[np.int64] = np.rint(grid.boxes[:, :2] / step).astype(np.int64)
    return found


def _slide_figure(grid: SlideExtent, title: str) -> tuple[Figure, Axes]:
    """Axes over the whole slide, in mm."""
    from matplotlib.figure import Figure

    width, height = np.asarray(grid.slide_size) * _millimetres(grid)
    figure = Figure(figsize=_inches(width, height), dpi=DPI, layout="constrained")
    axes: Any = figure.add_subplot()
    axes.set_autoscale_on(False)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xlabel="mm", ylabel="mm")
    axes.set_title(title, parse_math=False, wrap=True, fontsize=10)
    return figure, axes


def _outline(axes: Axes, polygons: Sequence[Polygon], grid: SlideExtent) -> None:
    for polygon in polygons:
        for ring in (polygon.exterior, *polygon.interiors):
            x, y = (np.asarray(ring.coords)[:, :2] * _millimetres(grid)).T
            axes.plot(x, y, color="black", linewidth=0.8)


def _millimetres(grid: SlideExtent) -> npt.NDArray[np.float64]:
    """Per level-0 px, (x, y)."""
    return np.asarray(grid.slide_mpp) / 1000


def _inches(width: float, height: float) -> tuple[float, float]:
    """(across, down) of the figure: the slide's shape, and the room beside it."""
    shape, room = np.array([width, height]), np.array(ROOM)
    slide = shape * ((SIDE_PX / DPI - room) / shape).min()
    across, down = np.maximum(slide, 2.0) + room
    return float(across), float(down)


def _extent(grid: TileGrid) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) of the cells; where tiles overlap, each is shown at its middle."""
    columns, rows = places_of(grid).max(axis=0, initial=0) + 1
    cell = np.asarray(grid.scale) * grid.step * _millimetres(grid)
    left, top = np.asarray(grid.scale) * grid.overlap / 2 * _millimetres(grid)
    return left, left + columns * cell[0], top + rows * cell[1], top
