"""Where tiles are: squares at an exact pixel size, laid over a slide row by row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.tiling.windows import Windows

if TYPE_CHECKING:
    from coverslip.tiling.stage_writer import StageWriter
    from coverslip.wsi.slide import Slide

ROWS_PER_BLOCK = 65_536


class HasFraction(Protocol):
    """What a grid needs of tissue: how much of each box it covers."""

    def fraction(self, boxes: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """boxes [N, 4] x, y, w, h in level-0 px -> [N] covered share, 0 to 1."""
        ...


@dataclass(frozen=True, eq=False)
class TileGrid:
    """The tiles kept of a regular grid, in row-major order from the top-left corner.

    slide_size        (width, height) of level 0
    slide_mpp         (x, y) microns per level-0 pixel
    tile, step        side and spacing in px at `mpp` (what the model sees)
    mpp               microns per pixel of the tiles
    min_tissue        share of a tile that had to be tissue
    boxes             int32 [N, 4] x, y, w, h in level-0 px
    tissue_fraction   float32 [N], 0 to 1

    Tiles that overhang the right or bottom edge are kept where they hold enough tissue; readers
    pad them with white. Corners are multiplied first and rounded once, so a grid at a crooked
    pixel size does not drift.
    """

    slide_size: tuple[int, int]
    slide_mpp: tuple[float, float]
    tile: int
    step: int
    mpp: float
    min_tissue: float
    boxes: npt.NDArray[np.int32]
    tissue_fraction: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if not 0 < self.step <= self.tile:
            raise ValueError(f"step must be in 1..{self.tile} (the tile side), got {self.step}")
        if not self.mpp > 0:
            raise ValueError(f"mpp must be above 0, got {self.mpp}")

    @classmethod
    def over(
        cls,
        slide: Slide,
        *,
        tile: int = 256,
        mpp: float = 0.5,
        overlap: int = 0,
        tissue: HasFraction | None = None,
        min_tissue: float = 0.25,
    ) -> TileGrid:
        """The grid over `slide`, keeping tiles of which at least `min_tissue` is tissue.

        tissue    None keeps every tile
        overlap   px at `mpp` that neighbours share

        Raises MissingMpp where the slide's pixel size is unknown.
        """
        step = tile - overlap
        if not 0 < step <= tile:
            raise ValueError(f"overlap must be in 0..{tile - 1}, got {overlap}")
        boxes = all_boxes(slide.size, slide.mpp, tile, step, mpp)
        if tissue is None:
            fraction = np.ones(len(boxes), np.float32)
        else:
            fraction = tissue.fraction(boxes.astype(np.int64))
            kept = (fraction >= min_tissue) & (fraction > 0)
            boxes, fraction = boxes[kept], fraction[kept]
        return cls(slide.size, slide.mpp, tile, step, mpp, min_tissue, boxes, fraction)

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y) level-0 pixels per tile pixel."""
        return self.mpp / self.slide_mpp[0], self.mpp / self.slide_mpp[1]

    @property
    def overlap(self) -> int:
        """Px at `mpp` that neighbours share."""
        return self.tile - self.step

    @property
    def name(self) -> str:
        """What the grid is called in a store: "256px_0.5mpp", "256px_0.5mpp_64overlap"."""
        shared = f"_{self.overlap}overlap" if self.overlap else ""
        return f"{self.tile}px_{self.mpp:g}mpp{shared}"

    def windows(self) -> Windows:
        """The tiles as windows to be streamed."""
        return Windows(self.boxes[:, :2].astype(np.float64), (self.tile, self.tile), self.scale)

    def chosen(self, indices: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
        """Numbers of tiles: `indices`, or all. Raises ValueError where they do not ascend."""
        if indices is None:
            return np.arange(len(self))
        indices = np.asarray(indices, np.int64)
        if np.any(np.diff(indices) <= 0):
            raise ValueError("indices must ascend")
        return indices

    def parameters(self) -> dict[str, Any]:
        """What decides the grid, apart from the tissue; JSON-able."""
        return {
            "tile": self.tile,
            "step": self.step,
            "mpp": self.mpp,
            "min_tissue": self.min_tissue,
            "slide_size": list(self.slide_size),
            "slide_mpp": list(self.slide_mpp),
        }

    def digest(self) -> str:
        """Hash of the parameters and of every kept box."""
        content = orjson.dumps(self.parameters(), option=orjson.OPT_SORT_KEYS)
        boxes = np.ascontiguousarray(self.boxes, "<i4").tobytes()
        return hashlib.blake2b(content + boxes, digest_size=16).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The whole grid as JSON-able values."""
        return {
            **self.parameters(),
            "boxes": self.boxes.tolist(),
            "tissue_fraction": [float(f) for f in self.tissue_fraction],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TileGrid:
        """The grid that `to_dict` described."""
        boxes = np.asarray(values["boxes"], np.int32).reshape(-1, 4)
        fraction = np.asarray(values["tissue_fraction"], np.float32)
        return cls._from(values, boxes, fraction)

    @classmethod
    def _from(
        cls,
        parameters: dict[str, Any],
        boxes: npt.NDArray[np.int32],
        fraction: npt.NDArray[np.float32],
    ) -> TileGrid:
        return cls(
            slide_size=(parameters["slide_size"][0], parameters["slide_size"][1]),
            slide_mpp=(parameters["slide_mpp"][0], parameters["slide_mpp"][1]),
            tile=parameters["tile"],
            step=parameters["step"],
            mpp=parameters["mpp"],
            min_tissue=parameters["min_tissue"],
            boxes=boxes,
            tissue_fraction=fraction,
        )

    def write(self, stage: StageWriter) -> None:
        """Complete `stage` with the boxes and their tissue fraction."""
        total = len(self.boxes)
        stage.create_array("boxes", (total, 4), "int32", rows_per_block=ROWS_PER_BLOCK)
        stage.create_array("tissue_fraction", (total,), "float32", rows_per_block=ROWS_PER_BLOCK)
        for block in range(stage.done_blocks, -(-total // ROWS_PER_BLOCK)):
            rows = slice(block * ROWS_PER_BLOCK, (block + 1) * ROWS_PER_BLOCK)
            columns = {"boxes": self.boxes[rows], "tissue_fraction": self.tissue_fraction[rows]}
            stage.write_block(block, columns)
        stage.finish({"grid": self.parameters()})

    @classmethod
    def from_store(cls, group: Any) -> TileGrid:
        """The grid that `write` stored in a store's group `tiles/<grid>`."""
        return cls._from(group.attrs["grid"], group["boxes"][:], group["tissue_fraction"][:])


def all_boxes(
    slide_size: tuple[int, int],
    slide_mpp: tuple[float, float],
    tile: int,
    step: int,
    mpp: float,
) -> npt.NDArray[np.int32]:
    """int32 [N, 4]: every tile of the grid in level-0 px, whether it holds tissue or not."""
    sx, sy = mpp / slide_mpp[0], mpp / slide_mpp[1]
    columns = _count(slide_size[0] / sx, tile, step)
    rows = _count(slide_size[1] / sy, tile, step)
    x = np.floor(np.arange(columns) * step * sx + 0.5).astype(np.int32)
    y = np.floor(np.arange(rows) * step * sy + 0.5).astype(np.int32)
    boxes = np.empty((rows, columns, 4), np.int32)
    boxes[..., 0], boxes[..., 1] = x[None, :], y[:, None]
    boxes[..., 2], boxes[..., 3] = round(tile * sx), round(tile * sy)
    return boxes.reshape(-1, 4)


def _count(length: float, tile: int, step: int) -> int:
    """Tiles along a side of `length` px; none starts where the one before covers the rest."""
    return 1 + max(0, int(np.ceil((length - tile) / step - 1e-9)))
