"""What a slide holds before any tile is read: its tissue and the grid laid over it."""

from __future__ import annotations

from dataclasses import dataclass

from shapely.geometry import Polygon

from coverslip.engine.config import RunConfig
from coverslip.errors import InvalidConfig
from coverslip.export.geojson import region_polygons
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.tissue import Tissue, find_tissue
from coverslip.wsi.slide import Slide


@dataclass(frozen=True, slots=True)
class Survey:
    """A slide's tissue, and the tile grid that it and the configuration lead to."""

    tissue: Tissue
    grid: TileGrid


def survey(slide: Slide, config: RunConfig) -> Survey:
    """Find the tissue and lay the grid; deterministic."""
    tissue = find_tissue(slide, region=region_for(slide, config))
    return Survey(tissue, grid_for(slide, tissue, config))


def grid_for(slide: Slide, tissue: Tissue, config: RunConfig) -> TileGrid:
    """The grid over `tissue`, or over the whole slide where the configuration says so."""
    return TileGrid.over(
        slide,
        tile=config.tile,
        mpp=config.mpp,
        overlap=config.overlap,
        tissue=tissue if config.tissue else None,
        min_tissue=config.min_tissue,
    )


def region_for(slide: Slide, config: RunConfig) -> list[Polygon] | None:
    """The user's polygons in level-0 px, or None where none were given.

    Raises InvalidConfig where the file holds no polygon of the class asked for.
    """
    if not config.region:
        return None
    polygons = region_polygons(
        config.region, class_name=config.region_class or None, bounds=slide.bounds
    )
    if not polygons:
        wanted = f" of class {config.region_class!r}" if config.region_class else ""
        raise InvalidConfig(f"{config.region}: holds no polygon{wanted}")
    return polygons
