"""Where the tissue is: a mask, its polygons in level-0 pixels, and how much of a box it covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import MultiPolygon, Polygon, mapping, shape

from coverslip.tiling.reading import read_at
from coverslip.tiling.tissue_mask import TissueSettings, segment_tissue
from coverslip.wsi.slide import Slide

if TYPE_CHECKING:
    from coverslip.tiling.stage_writer import StageWriter

METHOD = "optical density and colour, hysteresis"


@dataclass(frozen=True, eq=False)
class Tissue:
    """Tissue of one slide.

    mask       bool [h, w]; pixel (u, v) covers scale x scale level-0 px
    scale      (x, y) level-0 px per mask pixel
    polygons   shapely Polygons in level-0 px, with holes, valid
    pen        share of the picture that is ink
    glass      RGB of clear glass, as estimated
    method     how the mask was made; settings its thresholds
    """

    mask: npt.NDArray[np.bool_]
    scale: tuple[float, float]
    polygons: tuple[Polygon, ...]
    pen: float
    glass: tuple[float, float, float]
    method: str
    settings: dict[str, Any]

    @property
    def is_empty(self) -> bool:
        """No tissue at all."""
        return not self.mask.any()

    def area_um2(self, mpp: tuple[float, float]) -> float:
        """Area of the mask for (x, y) µm per level-0 pixel."""
        pixel = self.scale[0] * mpp[0] * self.scale[1] * mpp[1]
        return float(np.count_nonzero(self.mask)) * pixel

    def fraction(self, boxes: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """boxes [N, 4] x, y, w, h in level-0 px -> float32 [N] share covered by tissue, exact for
        the mask's pixels; what lies outside the slide counts as empty."""
        height, width = self.mask.shape
        total = np.zeros((height + 1, width + 1))
        total[1:, 1:] = self.mask.cumsum(0, dtype=np.float64).cumsum(1)
        x0, y0 = boxes[:, 0] / self.scale[0], boxes[:, 1] / self.scale[1]
        x1 = (boxes[:, 0] + boxes[:, 2]) / self.scale[0]
        y1 = (boxes[:, 1] + boxes[:, 3]) / self.scale[1]
        area = (x1 - x0) * (y1 - y0)
        inside = (
            _bilinear(total, y1, x1) - _bilinear(total, y0, x1)
            - _bilinear(total, y1, x0) + _bilinear(total, y0, x0)
        )  # fmt: skip
        share = np.divide(inside, area, out=np.zeros_like(area), where=area > 0)
        return np.clip(share, 0, 1).astype(np.float32)

    def contains(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """points [N, 2] (x, y) level-0 px -> bool [N]."""
        u = np.floor(points[:, 0] / self.scale[0]).astype(np.int64)
        v = np.floor(points[:, 1] / self.scale[1]).astype(np.int64)
        height, width = self.mask.shape
        inside = (u >= 0) & (v >= 0) & (u < width) & (v < height)
        result = np.zeros(len(points), np.bool_)
        result[inside] = self.mask[v[inside], u[inside]]
        return result

    def write(self, stage: StageWriter) -> None:
        """Complete `stage` with the mask and everything about it."""
        stage.create_array("mask", self.mask.shape, "uint8", rows_per_block=self.mask.shape[0])
        if stage.done_blocks == 0:
            stage.write_block(0, {"mask": self.mask.astype(np.uint8)})
        stage.finish(
            {
                "scale": list(self.scale),
                "polygons": [mapping(polygon) for polygon in self.polygons],
                "pen": self.pen,
                "glass": list(self.glass),
                "method": self.method,
                "settings": self.settings,
            }
        )

    @classmethod
    def from_store(cls, group: Any) -> Tissue:
        """The tissue that `write` stored in a store's group `tissue`."""
        facts = group.attrs
        return cls(
            mask=group["mask"][:].astype(np.bool_),
            scale=(facts["scale"][0], facts["scale"][1]),
            polygons=tuple(shape(polygon) for polygon in facts["polygons"]),
            pen=facts["pen"],
            glass=tuple(facts["glass"]),
            method=facts["method"],
            settings=dict(facts["settings"]),
        )


def find_tissue(
    slide: Slide,
    *,
    mpp: float = 8.0,
    settings: TissueSettings | None = None,
    region: Sequence[Polygon] | None = None,
) -> Tissue:
    """The slide's tissue, from one low-resolution reading of it.

    mpp        µm per pixel of the mask
    region     polygons in level-0 px; tissue outside them is left out

    A native tile that cannot be decoded counts as glass here; the pass over the pixels reports it.
    Raises MissingMpp, ReaderTimeout.
    """
    settings = settings or TissueSettings()
    image = read_at(slide, mpp, on_bad_tile="blank")
    found = segment_tissue(image, mpp, settings)
    scale = (mpp / slide.mpp[0], mpp / slide.mpp[1])
    mask = found.tissue
    if region is not None:
        mask = mask & inside_polygons(region, mask.shape, scale)
    return Tissue(
        mask=mask,
        scale=scale,
        polygons=mask_polygons(mask, scale, slide.size),
        pen=float(found.pen.mean()),
        glass=found.glass,
        method=METHOD,
        settings={"mpp": mpp, **settings.to_dict()},
    )


def inside_polygons(
    polygons: Sequence[Polygon], shape: tuple[int, ...], scale: tuple[float, float]
) -> npt.NDArray[np.bool_]:
    """bool [h, w]: mask pixels whose centre lies in one of `polygons` (level-0 px)."""
    v, u = np.mgrid[: shape[0], : shape[1]]
    union = shapely.union_all([shapely.make_valid(polygon) for polygon in polygons])
    shapely.prepare(union)
    result: npt.NDArray[np.bool_] = shapely.contains_xy(
        union, (u + 0.5) * scale[0], (v + 0.5) * scale[1]
    )
    return result


def mask_polygons(
    mask: npt.NDArray[np.bool_], scale: tuple[float, float], size: tuple[int, int]
) -> tuple[Polygon, ...]:
    """Outlines of a mask in level-0 px, clipped to the slide, corners within a mask pixel.

    Exact along the pixels first (runs merged), then simplified by half a mask pixel; largest first.
    """
    runs = _runs(mask)
    if not len(runs):
        return ()
    v, u0, u1 = runs.T
    merged = shapely.union_all(
        shapely.box(u0 * scale[0], v * scale[1], u1 * scale[0], (v + 1) * scale[1])
    )
    simple = shapely.simplify(merged, 0.75 * max(scale), preserve_topology=True)
    clipped = shapely.intersection(shapely.make_valid(simple), shapely.box(0, 0, *size))
    rounded = shapely.set_precision(clipped, 0.01)
    parts = rounded.geoms if isinstance(rounded, MultiPolygon) else [rounded]
    polygons = [part for part in parts if isinstance(part, Polygon) and not part.is_empty]
    return tuple(sorted(polygons, key=lambda polygon: (-polygon.area, polygon.bounds)))


def _runs(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """[R, 3] row, first column, one past the last column of each run of True."""
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8)
    change = np.diff(padded, axis=1)
    rows, starts = np.nonzero(change == 1)
    _, ends = np.nonzero(change == -1)
    return np.stack([rows, starts, ends], axis=1)


def _bilinear(
    total: npt.NDArray[np.float64], row: npt.NDArray[np.float64], column: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """A summed-area table between its grid points: exact, since the mask is constant per pixel."""
    row = np.clip(row, 0, total.shape[0] - 1)
    column = np.clip(column, 0, total.shape[1] - 1)
    i, j = np.floor(row).astype(np.int64), np.floor(column).astype(np.int64)
    i1, j1 = np.minimum(i + 1, total.shape[0] - 1), np.minimum(j + 1, total.shape[1] - 1)
    a, b = row - i, column - j
    return np.asarray(
        total[i, j] * (1 - a) * (1 - b) + total[i1, j] * a * (1 - b)
        + total[i, j1] * (1 - a) * b + total[i1, j1] * a * b
    )  # fmt: skip
