"""Nuclei of a slide from overlapping windows: each found once, whole, by the window that owns it.

A window's *read* box holds what the head sees, with context; its *own* box is the part whose
nuclei are its to report. Own boxes partition the slide, and a nucleus belongs to the own box that
holds its centroid: nothing is found twice or lost, and no seam needs mending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.heads.registry import NucleusHead
from coverslip.heads.segmentation import Segmentation
from coverslip.kernels.labels import LabelMeasures, label_measures, label_outlines
from coverslip.kernels.ragged import chosen_rows
from coverslip.kernels.shapes import outline_polygons, shape_measures, simplified_outlines

SIMPLIFY_PX = 0.4
"""How far a simplified outline may stray from the traced one, px of the head's resolution."""


@dataclass(frozen=True, slots=True)
class Nuclei:
    """M nuclei as columns. Positions are level-0 px, lengths µm.

    centroid         float64 [M, 2] (x, y)
    polygon_offset   int64 [M + 1]; polygon float32 [V, 2]: outline i is
                     polygon[polygon_offset[i] : polygon_offset[i + 1]], not closed, valid
    class_id         uint8 [M], index into the head's classes
    probability, agreement   float32 [M], 0 to 1, as `Segmentation` has them; nan where unknown
    area_um2, perimeter_um, major_axis_um, minor_axis_um   float32 [M]
    circularity, solidity                        float32 [M], 0 to 1
    hematoxylin_mean                             float32 [M]
    """

    centroid: npt.NDArray[np.float64]
    polygon_offset: npt.NDArray[np.int64]
    polygon: npt.NDArray[np.float32]
    class_id: npt.NDArray[np.uint8]
    probability: npt.NDArray[np.float32]
    agreement: npt.NDArray[np.float32]
    area_um2: npt.NDArray[np.float32]
    perimeter_um: npt.NDArray[np.float32]
    major_axis_um: npt.NDArray[np.float32]
    minor_axis_um: npt.NDArray[np.float32]
    circularity: npt.NDArray[np.float32]
    solidity: npt.NDArray[np.float32]
    hematoxylin_mean: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.centroid)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Name -> array, as a store keeps them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_columns(cls, columns: Any) -> Nuclei:
        """The nuclei whose columns these are (a mapping, or a Zarr group)."""
        return cls(**{field.name: np.asarray(columns[field.name][:]) for field in fields(cls)})

    def where(self, kept: npt.NDArray[np.bool_]) -> Nuclei:
        """Only the nuclei for which `kept` [M] holds."""
        return self.at(np.flatnonzero(kept))

    def at(self, rows: npt.NDArray[np.integer[Any]]) -> Nuclei:
        """The nuclei at `rows`, in that order."""
        offset, vertices = chosen_rows(self.polygon_offset, rows)
        columns = {
            name: values[rows]
            for name, values in self.columns().items()
            if name not in ("polygon", "polygon_offset")
        }
        return Nuclei(polygon_offset=offset, polygon=self.polygon[vertices], **columns)

    @classmethod
    def none(cls) -> Nuclei:
        """No nuclei."""
        empty = np.empty(0, np.float32)
        return cls(
            np.empty((0, 2)), np.zeros(1, np.int64), np.empty((0, 2), np.float32),
            np.empty(0, np.uint8), *([empty] * 9),
        )  # fmt: skip


def concatenate(parts: Sequence[Nuclei]) -> Nuclei:
    """All nuclei of `parts`, in order."""
    if not parts:
        return Nuclei.none()
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in parts[0].columns()
        if name != "polygon_offset"
    }
    lengths = np.concatenate([np.diff(part.polygon_offset) for part in parts])
    offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Nuclei(polygon_offset=offset, **columns)


def own_windows(
    slide_size: tuple[int, int], scale: tuple[float, float], own_px: int, halo_px: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Windows that cover a slide.

    slide_size   (width, height) level-0 px
    scale        (x, y) level-0 px per window px
    own_px       side of the own boxes, px at the windows' resolution
    halo_px      context on each side

    Returns origins float64 [N, 2], the read boxes' corners in level-0 px on the lattice anchored
    at the slide's corner, and own boxes float64 [N, 4] x, y, w, h in level-0 px, row by row. Own
    boxes partition the slide (the last ones reach beyond its edge).
    """
    columns = int(np.ceil(slide_size[0] / scale[0] / own_px))
    rows = int(np.ceil(slide_size[1] / scale[1] / own_px))
    row, column = np.divmod(np.arange(rows * columns), columns)
    corner = np.stack([column * own_px, row * own_px], axis=1).astype(np.float64)
    step = np.array(scale)
    far = (corner + own_px) * step
    own = np.concatenate([corner * step, far - corner * step], axis=1)
    return (corner - halo_px) * step, own


def nuclei_in_window(
    head: NucleusHead,
    pixels: npt.NDArray[np.uint8],
    origin: tuple[float, float],
    scale: tuple[float, float],
    own: npt.NDArray[np.float64],
    slide_size: tuple[int, int],
) -> Nuclei:
    """The nuclei that one window owns.

    pixels       uint8 [H, W, 3] at the head's resolution, with context on all sides
    origin       (x, y) level-0 px of its corner; scale level-0 px per px
    own          x, y, w, h of the own box, level-0 px; half-open
    slide_size   outlines are clipped to the slide

    A nucleus is owned if its centroid lies in the own box, unless the window's border cuts it
    (where the slide goes on beyond). Nuclei come sorted by their centroids' y, then x.
    """
    return owned_nuclei(
        head.segment(pixels), head.intensity(pixels), origin, scale, own, slide_size, head.mpp
    )


def owned_nuclei(
    segmentation: Segmentation,
    intensity: npt.NDArray[np.float32],
    origin: tuple[float, float],
    scale: tuple[float, float],
    own: npt.NDArray[np.float64],
    slide_size: tuple[int, int],
    mpp: float,
) -> Nuclei:
    """As `nuclei_in_window`, of what a head found in the window and measures intensity on."""
    labels = segmentation.labels
    measures = label_measures(labels, intensity)
    centroid = np.asarray(origin) + measures.centroid * np.asarray(scale)
    owned = (
        (centroid[:, 0] >= own[0]) & (centroid[:, 0] < own[0] + own[2])
        & (centroid[:, 1] >= own[1]) & (centroid[:, 1] < own[1] + own[3])
        & (centroid[:, 0] < slide_size[0]) & (centroid[:, 1] < slide_size[1])
    )  # fmt: skip
    owned &= ~_cut(measures.box, labels.shape[::-1], origin, scale, slide_size)
    if not owned.any():
        return Nuclei.none()
    found = _measured(segmentation, measures, owned, centroid, origin, scale, mpp, slide_size)
    return found.at(np.lexsort((found.centroid[:, 0], found.centroid[:, 1])))


def _cut(
    box: npt.NDArray[np.int64],
    size: tuple[int, ...],
    origin: tuple[float, float],
    scale: tuple[float, float],
    slide_size: tuple[int, int],
) -> npt.NDArray[np.bool_]:
    """Whether boxes [M, 4] x0, y0, x1, y1 touch a side of the window that is inside the slide."""
    near, far = np.asarray(origin), np.asarray(origin) + np.asarray(size) * np.asarray(scale)
    low = (box[:, :2] == 0) & (near > 0)
    high = (box[:, 2:] == np.asarray(size)) & (far < np.asarray(slide_size))
    return np.asarray((low | high).any(axis=1))


def _measured(
    segmentation: Segmentation,
    measures: LabelMeasures,
    owned: npt.NDArray[np.bool_],
    centroid: npt.NDArray[np.float64],
    origin: tuple[float, float],
    scale: tuple[float, float],
    mpp: float,
    slide_size: tuple[int, int],
) -> Nuclei:
    kept = np.zeros(len(segmentation.class_id), np.bool_)
    kept[measures.label[owned] - 1] = True
    segmentation = segmentation.where(kept)
    outlines = label_outlines(segmentation.labels)
    area, axes = measures.area[owned], measures.axes[owned]
    shapes = shape_measures(outline_polygons(outlines), axes)
    simple = simplified_outlines(outlines, SIMPLIFY_PX)
    polygon = np.asarray(origin) + simple.vertex * np.asarray(scale)
    polygon = np.clip(polygon, 0, np.asarray(slide_size, np.float64))

    def column(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        return np.asarray(values, np.float32)

    return Nuclei(
        centroid=centroid[owned],
        polygon_offset=simple.offset,
        polygon=polygon.astype(np.float32),
        class_id=segmentation.class_id,
        probability=segmentation.probability,
        agreement=segmentation.agreement,
        area_um2=column(area * mpp**2),
        perimeter_um=column(shapes.perimeter * mpp),
        major_axis_um=column(axes[:, 0] * mpp),
        minor_axis_um=column(axes[:, 1] * mpp),
        circularity=column(shapes.circularity),
        solidity=column(shapes.solidity),
        hematoxylin_mean=column(measures.mean[owned]),
    )
