"""Tile coordinates and features, written in the HDF5 layouts of TRIDENT, CLAM and STAMP.

Coordinates are the tiles' top-left corners in level-0 px, (x, y), except where STAMP wants µm.
Files appear whole or not at all. Chunks are larger than those tools write; their readers do not
care, and reading is faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip import __version__
from coverslip.durable import whole_file

CHUNK_ROWS = 1024
STAMP_FORMAT = "2.1.0"
"""The STAMP that introduced this layout; it compares the version with its own and parses it."""
Datasets = Mapping[str, tuple[Any, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class TileTable:
    """Tiles of one slide, as these formats describe them.

    slide        its name
    boxes        int [N, 4] x, y, w, h in level-0 px
    tile         side of a tile in px; overlap that neighbours share
    mpp          µm per tile px; slide_mpp µm per level-0 px in x and y
    slide_size   (width, height) in level-0 px
    """

    slide: str
    boxes: npt.NDArray[np.int32]
    tile: int
    overlap: int
    mpp: float
    slide_mpp: tuple[float, float]
    slide_size: tuple[int, int]

    @property
    def corners(self) -> npt.NDArray[np.int64]:
        """int64 [N, 2] (x, y)."""
        return self.boxes[:, :2].astype(np.int64)

    @property
    def side(self) -> int:
        """Side of a tile in level-0 px."""
        return (
            int(self.boxes[0, 2])
            if len(self.boxes)
            else round(self.tile * self.mpp / self.slide_mpp[0])
        )


def trident_folder(tiles: TileTable) -> str:
    """The name TRIDENT gives a job's folder: "20x_256px_0px_overlap"."""
    return f"{_power(tiles.mpp)}x_{tiles.tile}px_{tiles.overlap}px_overlap"


def _power(mpp: float) -> float | int:
    """10 / mpp: the nominal magnification TRIDENT's attributes hold; whole where it is."""
    power = 10 / mpp
    return round(power) if abs(power - round(power)) < 1e-6 else round(power, 4)


def _trident_attributes(tiles: TileTable) -> dict[str, Any]:
    return {
        "patch_size": tiles.tile,
        "patch_size_level0": tiles.side,
        "level0_magnification": _power(tiles.slide_mpp[0]),
        "target_magnification": _power(tiles.mpp),
        "overlap": tiles.overlap,
        "name": tiles.slide,
        "savetodir": "None",
        "level0_width": tiles.slide_size[0],
        "level0_height": tiles.slide_size[1],
    }


def write_trident_coords(path: str | PathLike[str], tiles: TileTable) -> None:
    """`patches/<slide>_patches.h5`: coords int64 [N, 2], TRIDENT's attributes on the dataset."""
    _write(path, {"coords": (tiles.corners, _trident_attributes(tiles))}, {})


def write_trident_features(
    path: str | PathLike[str], tiles: TileTable, features: Any, encoder: str
) -> None:
    """`features_<encoder>/<slide>.h5`: features float32 [N, D] and coords int64 [N, 2].

    features   array-like [N, D]; read in blocks
    """
    marks = {"name": tiles.slide, "savetodir": "None", "encoder": encoder}
    content: Datasets = {
        "features": (_Cast(features, "float32"), marks),
        "coords": (tiles.corners, _trident_attributes(tiles)),
    }
    _write(path, content, {})


def write_trident_slide(
    path: str | PathLike[str], tiles: TileTable, embedding: npt.NDArray[np.float32], encoder: str
) -> None:
    """`slide_features_<encoder>/<slide>.h5`: features float32 [D] and the tiles' coords."""
    marks = {"name": tiles.slide, "savetodir": "None", "encoder": encoder}
    content: Datasets = {
        "features": (embedding.astype(np.float32), marks),
        "coords": (tiles.corners, _trident_attributes(tiles)),
    }
    _write(path, content, {})


def write_clam_coords(path: str | PathLike[str], tiles: TileTable) -> None:
    """CLAM's `patches/<slide>.h5`: coords with the attributes `create_patches_fp.py` writes."""
    attributes = {
        "patch_size": tiles.side,  # CLAM counts at patch_level, here 0
        "patch_level": 0,
        "downsample": np.array([1.0, 1.0]),
        "downsampled_level_dim": np.array(tiles.slide_size),
        "level_dim": np.array(tiles.slide_size),
        "name": tiles.slide,
        "save_path": "None",
    }
    _write(path, {"coords": (tiles.corners.astype(np.int32), attributes)}, {})


def write_clam_features(path: str | PathLike[str], tiles: TileTable, features: Any) -> None:
    """CLAM's `h5_files/<slide>.h5`: features float32 [N, D], coords int32 [N, 2], no attributes."""
    content: Datasets = {"features": (features, {}), "coords": (tiles.corners.astype(np.int32), {})}
    _write(path, content, {})


def write_clam_tensor(path: str | PathLike[str], features: Any) -> None:
    """CLAM's `pt_files/<slide>.pt`: the float32 [N, D] tensor."""
    import torch

    with whole_file(Path(fspath(path))) as aside, aside.open("w+b", buffering=0) as raw:
        sink: Any = _Sink(raw)
        torch.save(torch.from_numpy(np.asarray(features, np.float32)), sink)
        sink.check()


def write_stamp(
    path: str | PathLike[str], tiles: TileTable, features: Any, encoder: str, code_hash: str
) -> None:
    """STAMP's `<extractor>/<slide>.h5`: coords float32 [N, 2] in µm, feats float16 [N, D].

    code_hash   what tells apart extractors of one name; here the recipe's hash
    """
    content: Datasets = {
        "coords": ((tiles.corners * tiles.slide_mpp).astype(np.float32), {}),
        "feats": (_Cast(features, "float16"), {}),
    }
    attributes = {
        "stamp_version": STAMP_FORMAT,
        "software": f"coverslip {__version__}",
        "extractor": encoder,
        "unit": "um",
        "tile_size_um": float(tiles.tile * tiles.mpp),
        "tile_size_px": tiles.tile,
        "code_hash": code_hash,
        "feat_type": "tile",
    }
    _write(path, content, attributes)


class _Cast:
    """An array of another type, converted block by block."""

    def __init__(self, values: Any, dtype: str) -> None:
        self._values, self.shape, self.dtype = values, values.shape, np.dtype(dtype)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        return np.asarray(self._values[rows], self.dtype)


def _write(
    path: str | PathLike[str],
    datasets: Mapping[str, tuple[Any, Mapping[str, Any]]],
    attributes: Mapping[str, Any],
) -> None:
    import h5py

    with whole_file(Path(fspath(path))) as aside, aside.open("w+b", buffering=0) as raw:
        sink: Any = _Sink(raw)
        with h5py.File(sink, "w") as file:
            for name, (values, marks) in datasets.items():
                _write_dataset(file, name, values, sink)
                file[name].attrs.update(marks)
            file.attrs.update(attributes)
        sink.check()


def _write_dataset(file: Any, name: str, values: Any, sink: _Sink) -> None:
    rows = max(1, min(CHUNK_ROWS, values.shape[0]))
    dataset = file.create_dataset(
        name,
        shape=values.shape,
        dtype=values.dtype,
        maxshape=(None, *values.shape[1:]),
        chunks=(rows, *(max(s, 1) for s in values.shape[1:])),
        track_times=False,
    )
    for start in range(0, values.shape[0], 16 * CHUNK_ROWS):
        if sink.error is not None:
            return
        block = slice(start, start + 16 * CHUNK_ROWS)
        dataset[block] = values[block]


class _Sink:
    """A file that keeps the first refusal to write to itself until `check`.

    HDF5 cannot close a file whose last writes fail: on a full disk it takes the process down.
    torch reports such a disk as a broken invariant of its own.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None
        self.seek, self.tell = file.seek, file.tell
        self.read, self.readinto = file.read, file.readinto

    def check(self) -> None:
        """Raises OSError if anything could not be written."""
        if self.error is not None:
            raise self.error

    def write(self, content: Any) -> int:
        left = memoryview(content).cast("B")
        size = len(left)
        try:
            while left and self.error is None:
                left = left[self._file.write(left) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int) -> int:
        try:
            return int(self._file.truncate(size))
        except OSError as error:
            self.error = self.error or error
            return size

    def flush(self) -> None:
        """Nothing is held back."""
