"""OME-Zarr images (OME-NGFF 0.4 and 0.5): chunks are the native tiles."""

from __future__ import annotations

import os
from os import PathLike, fspath
from typing import Any

import numpy as np

from coverslip.errors import BrokenSlide, UnreadableTile, UnsupportedSlide
from coverslip.wsi.naming import slide_name
from coverslip.wsi.pixel_size import UNITS
from coverslip.wsi.slide import RGB, Box, Level, PixelSize, Slide
from coverslip.wsi.zarr_limits import check_array, check_chunk, check_metadata

METADATA = ("zarr.json", ".zattrs", ".zgroup")


def can_read(path: str | PathLike[str]) -> bool:
    """Whether it is a folder with Zarr metadata."""
    name = fspath(path)
    return "://" not in name and any(os.path.isfile(os.path.join(name, m)) for m in METADATA)


def open(path: str | PathLike[str]) -> OmeZarrSlide:
    """Open a multiscale RGB image. Raises UnsupportedSlide, BrokenSlide."""
    return OmeZarrSlide(fspath(path))


class OmeZarrSlide(Slide):
    """See `Slide`; the first multiscale image of the group."""

    reader = "ome-zarr"
    vendor = "ome-ngff"

    def __init__(self, path: str) -> None:
        import zarr

        self.path, self.name = path, slide_name(path)
        try:
            check_metadata(path)
            group = zarr.open_group(path, mode="r")
            attributes = dict(group.attrs)
        except Exception as error:
            raise BrokenSlide(path, f"its Zarr metadata cannot be read ({error})") from None
        ome: Any = attributes.get("ome", attributes)
        multiscales = ome.get("multiscales") if isinstance(ome, dict) else None
        if multiscales is None:
            raise UnsupportedSlide(path, "holds no OME-NGFF multiscale image")
        try:
            self._read(group, multiscales[0])
        except UnsupportedSlide:
            raise
        except Exception as error:  # zarr raises many kinds over damaged metadata
            raise BrokenSlide(path, f"its OME-NGFF metadata are damaged ({error!r})") from None
        version = ome.get("version", multiscales[0].get("version"))
        self.properties = {"ome-ngff.version": str(version)}
        self.bounds = Box(0, 0, *self.levels[0].size)

    def _read(self, group: Any, multiscale: Any) -> None:
        axes = [a["name"] if isinstance(a, dict) else a for a in multiscale["axes"]]
        units = {a["name"]: a.get("unit", "") for a in multiscale["axes"] if isinstance(a, dict)}
        self._axes = axes
        self._arrays = [self._array(group, d["path"]) for d in multiscale["datasets"]]
        if not self._arrays:
            raise ValueError("it has no level")
        scales = [_scale(dataset) for dataset in multiscale["datasets"]]
        y, x, c = axes.index("y"), axes.index("x"), axes.index("c")
        levels = []
        for array, scale in zip(self._arrays, scales, strict=True):
            if array.ndim != len(axes):
                raise ValueError(f"{len(axes)} axes over {array.ndim} dimensions")
            if array.dtype != np.uint8 or array.shape[c] != 3:
                raise UnsupportedSlide(
                    self.path, f"its pixels are {array.shape[c]} channels of {array.dtype}, not RGB"
                )
            ratio = (scale[x] / scales[0][x], scale[y] / scales[0][y])
            size = (int(array.shape[x]), int(array.shape[y]))
            tile = (min(int(array.chunks[x]), size[0]), min(int(array.chunks[y]), size[1]))
            levels.append(Level(size, ratio, tile))
        self.levels = tuple(levels)
        unit_x, unit_y = UNITS.get(units.get("x", "")), UNITS.get(units.get("y", ""))
        known = units.get("x") and unit_x is not None and unit_y is not None
        self.pixel_size = (
            PixelSize(scales[0][x] * unit_x, scales[0][y] * unit_y, "OME-NGFF")
            if known and unit_x is not None and unit_y is not None
            else None
        )

    def _array(self, group: Any, place: str) -> Any:
        check_metadata(os.path.join(self.path, place))
        array = group[place]
        check_array(array)
        return array

    def decode_tile(self, level: int, column: int, row: int, reduction: int = 0) -> RGB | None:
        width, height = self.levels[level].tile
        ranges = {
            "x": slice(column * width, (column + 1) * width),
            "y": slice(row * height, (row + 1) * height),
            "c": slice(0, 3),
        }
        chunk = {"x": column, "y": row}
        try:
            place = tuple(chunk.get(axis, 0) for axis in self._axes)
            check_chunk(self.path, self._arrays[level], place)
            part = np.asarray(self._arrays[level][tuple(ranges.get(a, 0) for a in self._axes)])
        except Exception as error:
            raise UnreadableTile(self.path, level, column, row, str(error)) from error
        kept = [axis for axis in self._axes if axis in ranges]
        image = part.transpose([kept.index(axis) for axis in ("y", "x", "c")])
        tile = np.full((height, width, 3), 255, np.uint8)
        tile[: image.shape[0], : image.shape[1]] = image
        return tile


def _scale(dataset: Any) -> list[float]:
    for transform in dataset["coordinateTransformations"]:
        if transform["type"] == "scale":
            return [float(v) for v in transform["scale"]]
    raise KeyError("scale")
