"""Bags of tile embeddings from disk: our stores, and what TRIDENT, CLAM and STAMP extracted.

Opening reads what there is and what made it, never an embedding; reading holds one bag. So an epoch
over any number of slides takes the memory of the bags in hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from coverslip.engine.bag_files import Corners, FileBags, Floats, Rows, open_bag_files
from coverslip.engine.embedding_source import source_of_features
from coverslip.engine.opened_stores import opened_stores
from coverslip.errors import InvalidConfig, RecipeMismatch, StoreError, printable
from coverslip.heads.tile_classifier import EmbeddingSource
from coverslip.tiling.store import SlideStore
from coverslip.tiling.stored_rows import StoredRows, stored_rows

FEATURES = "features/"


class StoredBags(FileBags):
    """Embeddings of one encoder on one grid in an output folder's stores.

    stage   "features/<encoder>@<grid>"
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        arrays: Mapping[str, StoredRows],
        source: EmbeddingSource,
        missing: Mapping[str, str],
    ) -> None:
        super().__init__(folder, list(arrays), asdict(source), missing)
        self.stage, self._arrays = stage, list(arrays.values())

    @classmethod
    def open(cls, folder: str | PathLike[str], *, encoder: str = "", grid: str = "") -> StoredBags:
        """encoder, grid   their names; may be left out where the folder holds only one

        Raises InvalidConfig (no stores, no features, or no telling which), RecipeMismatch (not all
        made alike), StoreError.
        """
        path = Path(fspath(folder))
        stores, missing = opened_stores(path, "features")
        stage = features_stage(path, stores, encoder, grid)
        arrays: dict[str, StoredRows] = {}
        sources: dict[str, EmbeddingSource] = {}
        for slide, store in stores.items():
            if stage not in store.stages(stage):
                missing[slide] = _why_without(store, stage)
                continue
            arrays[slide] = stored_rows(store.path / stage / "features")
            sources[slide] = source_of_features(store, stage)
        source = _common(path, stage, sources)
        return cls(path, stage, arrays, source, missing)

    def count(self, index: int) -> int:
        return self._arrays[index].shape[0]

    def read(self, index: int, rows: Rows | None = None) -> Floats:
        return self._arrays[index].read(rows)

    def corners(self, index: int) -> Corners:
        store = SlideStore.open(self.folder / f"{self.names[index]}.zarr")
        grid = self.stage.rpartition("@")[2]
        corners: Corners = store.group(f"tiles/{grid}")["boxes"][:, :2].astype(np.int64)
        if len(corners) != self.count(index):
            raise StoreError(
                store.path,
                f"holds {len(corners)} tiles but {self.count(index)} embeddings of {grid}",
                "run coverslip features again",
            )
        return corners


class PatientBags:
    """A bag a patient: the tiles of all the patient's slides, one slide after the other.

    names    of the patients, as their first slides come
    slides   of each, indices in `bags`
    """

    def __init__(self, bags: FileBags, patient_of: Mapping[str, str]) -> None:
        """patient_of   slide -> patient; slides that it does not name are in no bag"""
        slides: dict[str, list[int]] = {}
        for index, name in enumerate(bags.names):
            if name in patient_of:
                slides.setdefault(patient_of[name], []).append(index)
        self.bags, self.dim, self.facts = bags, bags.dim, bags.facts
        self.names, self.missing = tuple(slides), bags.missing
        self.slides = tuple(map(tuple, slides.values()))

    def __len__(self) -> int:
        return len(self.names)

    def count(self, index: int) -> int:
        """Tiles of a patient."""
        return sum(map(self.bags.count, self.slides[index]))

    def rows(self, index: int) -> list[tuple[int, range]]:
        """(slide, which of the patient's rows are its tiles)."""
        stops = np.cumsum([self.bags.count(slide) for slide in self.slides[index]]).tolist()
        return [
            (slide, range(start, stop))
            for slide, start, stop in zip(self.slides[index], [0, *stops], stops, strict=False)
        ]

    def read(self, index: int, rows: Rows | None = None) -> Floats:
        """float16 or float32 [n, dim], all or some in the order given. Raises StoreError."""
        if rows is None:
            return np.concatenate([self.bags.read(slide) for slide in self.slides[index]])
        rows, total = np.asarray(rows), self.count(index)
        if len(rows) and not 0 <= rows.min() <= rows.max() < total:
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {total}")
        read, places = [], []
        for slide, own in self.rows(index):
            where = np.flatnonzero((own.start <= rows) & (rows < own.stop))
            if len(where):
                read.append(self.bags.read(slide, rows[where] - own.start))
                places.append(where)
        if not read:
            return np.empty((0, self.dim), np.float32)
        joined = np.concatenate(read)
        out = np.empty_like(joined)
        out[np.concatenate(places)] = joined
        return out


def open_bags(folder: str | PathLike[str], *, encoder: str = "", grid: str = "") -> FileBags:
    """The embeddings a folder holds.

    folder    our output folder; TRIDENT's job, the folder above it, or its features_<encoder>;
              CLAM's features, or their h5_files or pt_files; STAMP's, or its <extractor>
    encoder   needed where there are those of several
    grid      likewise: the grid of our stores, or TRIDENT's 20x_256px_0px_overlap

    Raises InvalidConfig (nothing there, or no telling which is meant), RecipeMismatch (not all made
    alike), StoreError (a broken file).
    """
    path = Path(fspath(folder))
    if not path.is_dir():
        raise InvalidConfig(f"{printable(str(path))}: is no folder; where are the features?")
    if next(path.glob("*.zarr"), None):
        return StoredBags.open(path, encoder=encoder, grid=grid)
    return open_bag_files(path, encoder=encoder, grid=grid)


def features_stage(folder: Path, stores: Mapping[str, SlideStore], encoder: str, grid: str) -> str:
    """The one features stage of the stores that is meant. Raises InvalidConfig."""
    names = {n.removeprefix(FEATURES) for s in stores.values() for n in s.stages(FEATURES)}
    if not names:
        raise InvalidConfig(f"{folder}: holds no complete features; coverslip features makes them")
    meant = [
        name
        for name in sorted(names)
        if encoder in ("", name.rpartition("@")[0]) and grid in ("", name.rpartition("@")[2])
    ]
    if len(meant) == 1:
        return FEATURES + meant[0]
    if not meant:
        asked = " and ".join(filter(None, (encoder, grid)))
        raise InvalidConfig(
            f"{folder}: no features of {asked}; there are {', '.join(sorted(names))}"
        )
    raise InvalidConfig(
        f"{folder}: holds features of {', '.join(meant)}; name one with --encoder and --grid"
    )


def _why_without(store: SlideStore, stage: str) -> str:
    tiles = f"tiles/{stage.rpartition('@')[2]}"
    if tiles in store.stages(tiles) and not store.group(tiles)["boxes"].shape[0]:
        return "it has no tiles: no tissue was found"
    return f"it has no complete {stage}"


def _common(folder: Path, stage: str, sources: Mapping[str, EmbeddingSource]) -> EmbeddingSource:
    """What made all of them. Raises RecipeMismatch."""
    first, *others = sources.items()
    differing = {slide: why for slide, s in others if (why := first[1].difference(s))}
    if differing:
        slide, why = next(iter(differing.items()))
        raise RecipeMismatch(
            f"{printable(str(folder))}: {stage} was not made alike everywhere: {slide} has {why} "
            f"as {first[0]} has; {len(differing)} of {len(sources)} slides differ from it\n"
            "  embed them alike: coverslip features --replace-features"
        )
    return first[1]
