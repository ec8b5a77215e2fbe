"""QuPath's GeoJSON object files, out and in.

    write_geojson("case.geojson.gz", columns, slide="case", bounds=slide.bounds)
    objects = read_geojson("from-qupath.geojson", bounds=slide.bounds)
    regions = region_polygons("from-qupath.geojson", class_name="Tumor", bounds=slide.bounds)

QuPath counts pixels from the corner of the slide's bounds (`openslide.bounds-*`); this engine
counts from the corner of the whole slide. The difference is subtracted on the way out and added
back on the way in, here and nowhere else.
"""

from coverslip.export.geojson_reader import Limits, read_geojson, region_polygons
from coverslip.export.geojson_writer import WrittenGeoJSON, write_geojson
from coverslip.export.qupath_objects import (
    MEASUREMENT_NAMES,
    PolygonColumns,
    QuPathObject,
    box_columns,
    tissue_objects,
)

__all__ = [
    "MEASUREMENT_NAMES",
    "Limits",
    "PolygonColumns",
    "QuPathObject",
    "WrittenGeoJSON",
    "box_columns",
    "read_geojson",
    "region_polygons",
    "tissue_objects",
    "write_geojson",
]
