"""Features of tiles that TRIDENT, CLAM or STAMP wrote as HDF5, whole or row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from coverslip.errors import StoreError

Layout = Literal["trident", "clam", "stamp"]
SPARSE = 1 / 8
"""Share of a file's chunks up to which reading them one by one is faster than reading all."""
Rows = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """What was read: coords float64 [N, 2] (x, y) level-0 px, features [N, D] as stored, the
    attributes, and whose layout it was."""

    coords: npt.NDArray[np.float64]
    features: npt.NDArray[Any]
    attributes: Mapping[str, Any]
    layout: Layout


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """A file of tile features, of which nothing is read until it is asked for.

    count, dim   tiles, and numbers each
    attributes   of the file and both its datasets
    """

    path: str
    count: int
    dim: int
    layout: Layout
    attributes: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | PathLike[str]) -> FeatureFile:
        """Raises StoreError for a file that is none of theirs."""
        with _opened(fspath(path)) as (features, coords):
            count, dim = features.shape[-2:]
            marks = {**features.file.attrs, **features.attrs, **coords.attrs}
            layout: Layout = "trident" if "patch_size_level0" in marks else "clam"
            if features.name == "/feats":
                layout = "stamp"
            attributes = {key: _plain(value) for key, value in marks.items()}
            return cls(fspath(path), count, dim, layout, attributes)

    def features(self, rows: Rows | None = None) -> npt.NDArray[Any]:
        """[n, D] as stored, of all tiles or of some in the order given. Raises StoreError."""
        with _opened(self.path) as (features, _):
            if features.shape[-2:] != (self.count, self.dim):
                raise StoreError(self.path, "has changed since it was opened", "start again")
            if rows is None or features.ndim == 3:
                whole = np.asarray(features).reshape(self.count, self.dim)
                return whole if rows is None else whole[rows]
            return _picked(features, np.asarray(rows))

    def coords(self, slide_mpp: tuple[float, float] | None = None) -> npt.NDArray[np.float64]:
        """float64 [N, 2] (x, y) level-0 px.

        slide_mpp   µm per level-0 px in x and y, to turn STAMP's µm into px; without it STAMP's
                    files are refused

        Raises StoreError.
        """
        with _opened(self.path) as (_, held):
            coords = np.asarray(held, np.float64).reshape(-1, held.shape[-1])[:, :2]
        if self.layout != "stamp":
            return coords
        if slide_mpp is None:
            raise StoreError(
                self.path,
                "is STAMP's, whose coordinates are µm; the slide's pixel size is needed",
                "pass slide_mpp, for example slide_mpp=(0.25, 0.25)",
            )
        in_px: npt.NDArray[np.float64] = _stamp_um(self.path, coords, self.attributes) / slide_mpp
        return in_px


def read_features_h5(
    path: str | PathLike[str], slide_mpp: tuple[float, float] | None = None
) -> FeatureTable:
    """Features that TRIDENT, CLAM or STAMP wrote.

    slide_mpp   µm per level-0 px in x and y, to turn STAMP's µm into px; without it STAMP files
                are refused

    Raises StoreError for a file that is none of theirs.
    """
    file = FeatureFile.open(path)
    return FeatureTable(file.coords(slide_mpp), file.features(), file.attributes, file.layout)


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """The datasets of features and coords. Raises StoreError."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield _datasets(path, file)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        # h5py's words for damaged structures
        raise StoreError(path, f"cannot be read as HDF5 ({error})") from None


def _datasets(path: str, file: Any) -> tuple[Any, Any]:
    name = "feats" if "feats" in file else "features"
    held = {key: file[key] for key in (name, "coords") if key in file}
    if len(held) < 2 or not all(hasattr(dataset, "shape") for dataset in held.values()):
        found = ", ".join(sorted(map(str, file))) or "nothing"
        raise StoreError(
            path,
            f"holds {found}; wanted are the datasets features (or feats) and coords",
            "files of TRIDENT, CLAM and STAMP with features of tiles are read",
        )
    features, coords = held[name], held["coords"]
    shapes = features.shape, coords.shape
    if len(shapes[0]) == 3 and shapes[0][0] == 1:  # some tools keep a batch axis
        shapes = shapes[0][1:], shapes[1][-2:]
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[1][1] < 2:
        raise StoreError(
            path,
            f"holds features {features.shape} and coords {coords.shape}, not [N, D] and [N, 2]",
        )
    if shapes[1][0] != shapes[0][0]:
        raise StoreError(path, f"holds {shapes[1][0]} coordinates but {shapes[0][0]} features")
    if features.dtype.kind != "f" or coords.dtype.kind not in "iuf":
        raise StoreError(
            path, f"holds features of {features.dtype} and coords of {coords.dtype}, not numbers"
        )
    return features, coords


def _picked(dataset: Any, rows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
    """Rows of a dataset [N, D] in the order given; a chunk is read once."""
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(dataset):
        raise IndexError(f"rows {rows.min()}..{rows.max()} of {len(dataset)}")
    step = dataset.chunks[0] if dataset.chunks else 1
    chunks, places = np.unique(rows // step, return_inverse=True)
    if len(chunks) * step > SPARSE * len(dataset):
        whole: npt.NDArray[Any] = np.asarray(dataset)[rows]
        return whole
    out = np.empty((len(rows), dataset.shape[1]), dataset.dtype)
    for number, chunk in enumerate(chunks.tolist()):
        where = np.flatnonzero(places == number)
        out[where] = dataset[chunk * step : (chunk + 1) * step][rows[where] - chunk * step]
    return out


def _stamp_um(
    path: str, coords: npt.NDArray[np.float64], marks: Mapping[str, Any]
) -> npt.NDArray[np.float64]:
    """STAMP's coordinates in µm. Before version 2 they were px of 256 / 224 µm, unlabelled."""
    if "tile_size_um" in marks or marks.get("unit") == "um":
        return coords
    steps = [np.diff(np.unique(coords[:, axis])) for axis in range(2)]
    if round(min((float(step.min()) for step in steps if len(step)), default=0.0)) == 224:
        return coords * (256 / 224)
    raise StoreError(
        path,
        "does not say in which unit its coordinates are, and they are not 224 apart",
        "extract the features again with STAMP 2 or later",
    )


def _plain(value: Any) -> Any:
    """An HDF5 attribute as Python's own type."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
