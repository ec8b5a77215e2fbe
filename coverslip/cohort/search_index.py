"""The index over the embeddings of an output folder: built when first asked, or when they changed.

<output>/search/<encoder>@<grid>/    see `encoders.search`; a part is a slide, in the order of ids
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from coverslip.encoders.search import (
    IndexRecord,
    Kind,
    MadeBy,
    Part,
    Rows,
    VectorIndex,
    Vectors,
    build_index,
    read_record,
)
from coverslip.engine.bags import FEATURES, features_stage
from coverslip.engine.opened_stores import opened_stores
from coverslip.errors import StoreBusy, StoreError, UnknownName
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.lock import lock
from coverslip.tiling.store import SlideStore

ROWS_READ = 4096


@dataclass(frozen=True, eq=False)
class CohortIndex:
    """The tiles of many slides, embedded alike.

    output     folder of the stores
    name       "<encoder>@<grid>"
    index      their vectors
    stores     of the slides in it, by id, in the order of the index's parts
    left_out   slides of the folder that are not in it -> why
    """

    output: Path
    name: str
    index: VectorIndex
    stores: Mapping[str, SlideStore]
    left_out: Mapping[str, str]
    _grids: dict[str, TileGrid] = field(default_factory=dict, repr=False)

    @property
    def grid(self) -> str:
        """Name of the tile grid."""
        return self.index.record.made_by.grid

    @cached_property
    def _rows(self) -> dict[str, range]:
        stops = np.cumsum([part.rows for part in self.index.record.parts]).tolist()
        return {
            part.name: range(stop - part.rows, stop)
            for part, stop in zip(self.index.record.parts, stops, strict=True)
        }

    def store(self, slide: str) -> SlideStore:
        """Raises UnknownName; StoreError saying why the slide is not in the index."""
        if slide in self.left_out:
            path = self.output / f"{slide}.zarr"
            raise StoreError(path, f"is not in the index: {self.left_out[slide]}")
        try:
            return self.stores[slide]
        except KeyError:
            raise UnknownName("slide", slide, self.stores) from None

    def rows(self, slide: str) -> range:
        """The index's rows of a slide's tiles."""
        return self._rows[slide]

    def tiles(self, slide: str) -> TileGrid:
        """A slide's tiles, in the order of its rows."""
        if slide not in self._grids:
            group = self.store(slide).group(f"tiles/{self.grid}")
            self._grids[slide] = TileGrid.from_store(group)
        return self._grids[slide]

    def vectors(self, slide: str) -> Vectors:
        """float32 [N, D] of a slide's tiles, mapped from disk."""
        rows = self.rows(slide)
        return self.index.vectors[rows.start : rows.stop]

    def places(self, rows: Rows) -> list[tuple[str, int]]:
        """(slide, number of the tile in its grid) of rows of the index."""
        starts = np.array([self._rows[slide].start for slide in self.stores])
        slides = list(self.stores)
        found = np.searchsorted(starts, rows, side="right") - 1
        return [
            (slides[i], int(row - starts[i])) for i, row in zip(found.tolist(), rows, strict=True)
        ]


def open_cohort_index(
    output: Path,
    *,
    encoder: str = "",
    grid: str = "",
    kind: Kind | None = None,
    on_build: Callable[[str], None] = lambda message: None,
) -> CohortIndex:
    """The index over all complete features of one encoder on one grid, brought up to date.

    encoder, grid   their names; may be left out where the folder holds only one
    kind            "flat" or "ivf"; None keeps what is there, or takes what suits the number
    on_build        called with what is going to be built, and why

    Slides whose features another recipe, other weights or another stain target made are left out;
    what most slides have decides (of equals, what the first slide has). Raises InvalidConfig where
    there is nothing to index, or no telling which; StoreBusy; StoreError.
    """
    opened, left_out = opened_stores(output, "features")
    stage = features_stage(output, opened, encoder, grid)
    makers: dict[str, MadeBy] = {}
    for slide, store in opened.items():
        if stage in store.stages(FEATURES):
            makers[slide] = made_by(store, stage)
        else:
            left_out[slide] = f"it has no complete {stage}"
    maker = Counter(makers.values()).most_common(1)[0][0]
    left_out |= {s: _difference(maker, other) for s, other in makers.items() if other != maker}
    stores = {slide: opened[slide] for slide, other in makers.items() if other == maker}
    name = stage.removeprefix(FEATURES)
    folder = output / "search" / name
    hashes = {slide: store.record(stage).hash for slide, store in stores.items()}
    if _why_built(folder, maker, hashes, kind):
        with _building(folder):
            # another process may have built it while this one waited
            if why := _why_built(folder, maker, hashes, kind):
                _build(folder, stores, stage, maker, kind, lambda m: on_build(f"{m}: {why}"))
    index = VectorIndex.open(folder)
    return CohortIndex(output, name, index, stores, dict(sorted(left_out.items())))


def made_by(store: SlideStore, stage: str) -> MadeBy:
    """What made a store's features, as recorded when they were made."""
    parameters = store.record(stage).parameters
    encoder, _, grid = stage.removeprefix(FEATURES).rpartition("@")
    return MadeBy(
        encoder=encoder,
        recipe_hash=recipe_hash(parameters["recipe"]),
        weights_sha256=str(parameters["weights_sha256"]),
        grid=grid,
        stain=_stain(parameters.get("stain")),
    )


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """sha256 of a recipe, as `EncoderSpec.recipe_hash`."""
    return hashlib.sha256(orjson.dumps(recipe, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _stain(stain: Mapping[str, Any] | None) -> str:
    """Method and target; the source is each slide's own."""
    if stain is None:
        return ""
    target = orjson.dumps(stain["target"], option=orjson.OPT_SORT_KEYS)
    digest = hashlib.blake2b(target, digest_size=4).hexdigest()
    return f"{stain['source']['method']} to {digest}"


def _difference(maker: MadeBy, other: MadeBy) -> str:
    names = [f.name for f in fields(maker) if getattr(maker, f.name) != getattr(other, f.name)]
    differing = ", ".join(name.replace("_", " ") for name in names)
    return f"its features were made otherwise than those of most slides (another {differing})"


def _why_built(folder: Path, maker: MadeBy, hashes: Mapping[str, str], kind: Kind | None) -> str:
    """Why the index must be built; "" where it is current.

    hashes   slide -> hash of the stage that made its features
    """
    if not folder.exists():
        return "there is none yet"
    try:
        record = read_record(folder)
    except StoreError as error:
        return f"the one that is there cannot be used ({error.problem})"
    if record.made_by != maker:
        return "features were made anew in another way"
    held = {part.name: part.hash for part in record.parts}
    if held != dict(hashes):
        changed = sorted({slide for slide, _ in held.items() ^ hashes.items()})
        some = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        return f"slides came, went or changed: {some}"
    return f"the one that is there is {record.kind}" if kind not in (None, record.kind) else ""


@contextmanager
def _building(folder: Path) -> Iterator[None]:
    """Hold the index's lock. Raises StoreBusy."""
    try:
        with lock(folder):
            yield
    except StoreBusy as error:
        raise StoreBusy(folder, "another process is building this index", error.hint) from None


def _build(
    folder: Path,
    stores: Mapping[str, SlideStore],
    stage: str,
    maker: MadeBy,
    kind: Kind | None,
    on_build: Callable[[str], None],
) -> None:
    shapes = {slide: store.group(stage)["features"].shape for slide, store in stores.items()}
    parts = [
        Part(slide, store.record(stage).hash, int(shapes[slide][0]))
        for slide, store in stores.items()
    ]
    dim = int(next(iter(shapes.values()))[1])
    record = IndexRecord.of(maker, parts, dim, kind)
    on_build(
        f"building the {record.kind} index of {record.count:,} tiles of {len(parts)} slides "
        f"({stage.removeprefix(FEATURES)})"
    )
    blocks = (block for store in stores.values() for block in _blocks(store, stage))
    build_index(folder, blocks, maker, parts, dim=dim, kind=record.kind)


def _blocks(store: SlideStore, stage: str) -> Iterator[Vectors]:
    features = store.group(stage)["features"]
    for start in range(0, features.shape[0], ROWS_READ):
        block = np.asarray(features[start : start + ROWS_READ], np.float32)
        if not np.isfinite(block).all():
            raise StoreError(
                store.path,
                f"{stage} holds numbers that are not finite",
                "embed the slide anew, or take its store out of the folder",
            )
        yield block
