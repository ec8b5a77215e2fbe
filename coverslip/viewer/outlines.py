"""Where the tissue is and how it was tiled, for the page to draw."""

from __future__ import annotations

import math
from typing import Any

from shapely.geometry import mapping

from coverslip.tiling.grid import TileGrid
from coverslip.tiling.store import SlideStore
from coverslip.tiling.tissue import Tissue


def tissue_outlines(store: SlideStore | None) -> dict[str, Any]:
    """GeoJSON: the tissue's polygons in level-0 px, and beside them the facts of the tile grids.

    grids   of each: grid (its name), tile_px0 and step_px0 ([x, y] level-0 px), shape ([rows,
            columns] of the lattice that begins at the slide's corner), count (of the tiles kept)
    """
    tissue = store.stages("tissue") if store else []
    polygons = Tissue.from_store(store.group("tissue")).polygons if store and tissue else ()
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": mapping(polygon),
                "properties": {"objectType": "annotation", "classification": {"name": "Tissue"}},
            }
            for polygon in polygons
        ],
        "grids": [_grid_facts(store, stage) for stage in store.stages("tiles/")] if store else [],
    }


def _grid_facts(store: SlideStore, stage: str) -> dict[str, Any]:
    grid = TileGrid.from_store(store.group(stage))
    x, y = grid.scale
    width, height = grid.slide_size
    return {
        "grid": stage.removeprefix("tiles/"),
        "tile_px0": [grid.tile * x, grid.tile * y],
        "step_px0": [grid.step * x, grid.step * y],
        "shape": [_count(height / y, grid), _count(width / x, grid)],
        "count": len(grid),
    }


def _count(length: float, grid: TileGrid) -> int:
    """Tiles along a side of `length` px at the grid's scale, as `all_boxes` lays them."""
    return 1 + max(0, math.ceil((length - grid.tile) / grid.step - 1e-9))
