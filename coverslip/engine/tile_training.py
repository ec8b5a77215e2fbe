"""Tiles with a class each for a tile classifier: image files, or what was annotated on slides."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from coverslip.durable import write_csv
from coverslip.engine.annotated_slides import annotation_files, no_annotations
from coverslip.engine.config import RunConfig
from coverslip.engine.embedding_source import source_of_encoder, source_of_features
from coverslip.engine.labelled_tiles import LabelledTiles
from coverslip.engine.opening import open_for_run
from coverslip.engine.processors import available_processors
from coverslip.engine.run import slide_ids
from coverslip.errors import InvalidConfig, RecipeMismatch
from coverslip.export.geojson import read_geojson
from coverslip.heads.tile_classifier import (
    EmbeddingSource,
    TileClassifier,
    TileExamples,
    TileTraining,
)
from coverslip.kernels.stain_profile import StainNormalizer, StainProfile
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.store import SlideStore
from coverslip.tiling.stream import TileStream
from coverslip.wsi.opening import slide_paths
from coverslip.wsi.slide import Box, Slide

if TYPE_CHECKING:
    from coverslip.encoders.encoder import Encoder

IGNORE = "ignore*"
"""QuPath's class for what must not be looked at."""
NAME = re.compile(r"\w[\w-]*")
"""What a classifier may be called, in stores and files."""
Regions = Mapping[str, BaseGeometry]
"""Class -> its area in level-0 px."""
Observer = Callable[[str, int, int], None]
"""Called with (slide id, tiles done, tiles in all) while tiles are embedded."""


def examples_of_images(
    tiles: LabelledTiles, encoder: Encoder, *, mpp: float, data: str = "", group_pattern: str = ""
) -> TileExamples:
    """Labelled tile images, embedded.

    mpp             µm per px of the images
    data            what they are, in words
    group_pattern   regular expression whose first group, searched in the files' names, is the
                    patient or slide; empty where every tile stands for itself
    """
    groups = group_numbers(tiles.names, group_pattern) if group_pattern else None
    source = source_of_encoder(encoder, tiles.pixels.shape[2], mpp)
    embeddings = encoder.encode(tiles.pixels)
    return TileExamples(embeddings, tiles.labels, tiles.classes, source, groups, data)


@dataclass(frozen=True, slots=True)
class AnnotatedSlides:
    """Slides with the files in which their regions are drawn.

    slides     (path, id, annotation files)
    stores     folder in which a run may have left features; they are used where they are the
               encoder's
    classes    only regions of these; all by default
    share      of a tile that must lie in regions of one class
    """

    slides: tuple[tuple[str, str, tuple[Path, ...]], ...]
    stores: Path | None = None
    classes: tuple[str, ...] = ()
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InvalidConfig(f"share must be above 0 and at most 1, got {self.share}")

    @classmethod
    def over(
        cls,
        slides: Sequence[str],
        annotations: Sequence[Path],
        *,
        recursive: bool = False,
        stores: Path | None = None,
        classes: Sequence[str] = (),
        share: float = 0.5,
    ) -> AnnotatedSlides:
        """The slides of which annotations are there, as `annotation_files` finds them.

        Raises InvalidConfig where no slide has any.
        """
        paths = slide_paths(slides, recursive=recursive)
        files = annotation_files(paths, annotations)
        if not files:
            raise no_annotations(paths, annotations)
        found = tuple(
            (path, slide_id, files[path]) for path, slide_id in slide_ids(paths) if path in files
        )
        return cls(found, stores, tuple(classes), share)


def examples_of_annotations(
    annotated: AnnotatedSlides,
    encoder: Encoder,
    config: RunConfig,
    *,
    group_pattern: str = "",
    observer: Observer = lambda slide_id, done, total: None,
) -> TileExamples:
    """The tiles of each slide's grid of which enough lies in regions of one class; a tile with
    enough of two classes teaches nothing and is left out.

    config          mpp, tile and overlap of the grid; how slides are opened
    group_pattern   searched in the slides' ids, as in `examples_of_images`; else each slide is a
                    group. Where there is but one, every tile stands for itself

    Only tiles that have a class are read, and of them only those whose features are not in a store.
    Raises SlideError; InvalidGeoJSON; InvalidConfig where no tile gets a class; RecipeMismatch
    where stores hold features of differently stained tiles.
    """
    named: list[tuple[str, ...]] = []
    parts: list[npt.NDArray[np.float32]] = []
    source: EmbeddingSource | None = None
    for path, slide_id, files in annotated.slides:
        with open_for_run(path, config) as slide:
            regions = class_regions(files, slide.bounds, annotated.classes)
            grid = TileGrid.over(slide, tile=config.tile, mpp=config.mpp, overlap=config.overlap)
            classes = tuple(regions)
            labels = labelled_boxes(grid.boxes, [regions[c] for c in classes], annotated.share)
            chosen = np.flatnonzero(labels >= 0)
            held = _Held.find(annotated.stores, slide_id, encoder, grid)
            if source is not None and (which := source.difference(held.source)):
                raise RecipeMismatch(f"{slide_id}: its store holds features of {which}")
            source = held.source
            parts.append(_embedded(slide, grid, chosen, held, encoder, config, slide_id, observer))
            named.append(tuple(classes[label] for label in labels[chosen]))
    all_classes = tuple(sorted({name for names in named for name in names}))
    if source is None or not all_classes:
        raise InvalidConfig(
            f"no tile lies to {annotated.share:.0%} in the annotations\n"
            "  regions smaller than a tile want smaller tiles (--tile) or a smaller --share"
        )
    ids = [slide_id for _, slide_id, _ in annotated.slides]
    numbers = group_numbers(ids, group_pattern) if group_pattern else np.arange(len(ids))
    groups = np.repeat(numbers, [len(names) for names in named])
    labels = np.array([all_classes.index(name) for names in named for name in names], np.int64)
    several = len(np.unique(groups)) > 1
    data = f"annotations of {len(ids)} slides: {', '.join(ids)}"
    return TileExamples(
        np.concatenate(parts), labels, all_classes, source, groups if several else None, data
    )


def train_tile_classifier(
    examples: TileExamples, config: TileTraining, folder: Path, name: str, licence: str = ""
) -> tuple[TileClassifier, Path]:
    """Train; write `<name>.safetensors` and, of its cross-validation, `<name>.csv`: a row a class
    with its tiles, recall and what its tiles were taken for. Returns the classifier and its file.

    Raises InvalidConfig.
    """
    if not NAME.fullmatch(name):
        raise InvalidConfig(f"a classifier is named by letters, digits, _ and -: {name!r}")
    classifier = TileClassifier.fit(examples, config, name=name, licence=licence)
    path, figures = folder / f"{name}.safetensors", classifier.figures
    rows = [
        [label, sum(row), f"{figures.recall[label]:.4f}", *row]
        for label, row in zip(examples.classes, figures.confusion, strict=True)
    ]
    head = ["class", "tiles", "recall", *(f"as {c}" for c in examples.classes)]
    write_csv(folder / f"{name}.csv", [head, *rows])
    classifier.save(path)
    return classifier, path


def class_regions(files: Sequence[Path], bounds: Box, classes: Sequence[str] = ()) -> Regions:
    """Class -> union of the annotations of that class in the files, without what lies under
    "Ignore*"; in level-0 px.

    classes   only these, upper and lower case alike; all by default

    What has no class is left out, and so is everything that is no annotation. Raises
    InvalidGeoJSON.
    """
    objects = [item for file in files for item in read_geojson(file, bounds=bounds)]
    drawn: dict[str, list[BaseGeometry]] = {}
    ignored = []
    wanted = {name.casefold() for name in classes}
    for item in objects:
        if item.kind != "annotation" or shapely.get_dimensions(item.geometry) != 2:
            continue
        if item.class_name.casefold() == IGNORE:
            ignored.append(item.geometry)
        elif item.class_name and (not wanted or item.class_name.casefold() in wanted):
            drawn.setdefault(item.class_name, []).append(item.geometry)
    mask = shapely.union_all(ignored)
    return {
        name: shapely.difference(shapely.union_all(shapes), mask)
        for name, shapes in sorted(drawn.items())
    }


def labelled_boxes(
    boxes: npt.NDArray[np.int32], regions: Sequence[BaseGeometry], share: float
) -> npt.NDArray[np.int64]:
    """[N] number of the region in which at least `share` of each box [N, 4] lies; -1 where there
    is none, or more than one."""
    x, y, w, h = boxes.astype(np.float64).T
    shapes = shapely.box(x, y, x + w, y + h)
    tree = shapely.STRtree(shapes)
    covered = np.zeros((len(boxes), len(regions)))
    for number, region in enumerate(regions):
        parts = shapely.get_parts(region)
        part, box = tree.query(parts, predicate="intersects")
        areas = shapely.area(shapely.intersection(parts[part], shapes[box]))
        covered[:, number] = np.bincount(box, weights=areas, minlength=len(boxes)) / (w * h)
    enough = covered >= share - 1e-9
    if not len(regions):
        return np.full(len(boxes), -1, np.int64)
    return np.where(enough.sum(axis=1) == 1, enough.argmax(axis=1), -1).astype(np.int64)


def group_numbers(names: Sequence[str], pattern: str) -> npt.NDArray[np.int64]:
    """[N] a number for each name, the same where the pattern's first group finds the same text.

    Raises InvalidConfig where it finds nothing.
    """
    found = []
    for name in names:
        match = re.search(pattern, name)
        if match is None or not match.re.groups:
            raise InvalidConfig(f"pattern {pattern!r} finds no group in {name!r}")
        found.append(match[1])
    return np.asarray(np.unique(found, return_inverse=True)[1], np.int64)


@dataclass(frozen=True, eq=False)
class _Held:
    """What a store holds already.

    source       of its features, or of what the encoder gives
    rows         (x, y) of a tile's corner -> its row in `features`
    normalizer   recolours tiles as they were recoloured there
    """

    source: EmbeddingSource
    rows: Mapping[tuple[int, int], int]
    features: npt.NDArray[np.float32]
    normalizer: StainNormalizer | None

    @classmethod
    def find(cls, stores: Path | None, slide_id: str, encoder: Encoder, grid: TileGrid) -> _Held:
        """Nothing where there is no store, or its features are of another encoder."""
        source = source_of_encoder(encoder, grid.tile, grid.mpp)
        nothing = cls(source, {}, np.empty((0, encoder.dim), np.float32), None)
        if stores is None or not (stores / f"{slide_id}.zarr" / "zarr.json").exists():
            return nothing
        store = SlideStore.open(stores / f"{slide_id}.zarr")
        stage = f"features/{encoder.name}@{grid.name}"
        if stage not in store.stages(stage):
            return nothing
        theirs = source_of_features(store, stage)
        if source.difference(replace(theirs, stain="")):
            return nothing
        stain = store.record(stage).parameters.get("stain")
        normalizer = stain and StainNormalizer(
            StainProfile.from_dict(stain["source"]), StainProfile.from_dict(stain["target"])
        )
        corners = store.group(f"tiles/{grid.name}")["boxes"][:, :2].tolist()
        rows = {(x, y): row for row, (x, y) in enumerate(corners)}
        return cls(theirs, rows, store.group(stage)["features"][:], normalizer or None)


def _embedded(
    slide: Slide,
    grid: TileGrid,
    chosen: npt.NDArray[np.int64],
    held: _Held,
    encoder: Encoder,
    config: RunConfig,
    slide_id: str,
    observer: Observer,
) -> npt.NDArray[np.float32]:
    """[len(chosen), D]: from the store, or read and embedded now."""
    corners = grid.boxes[chosen, :2].tolist()
    rows = np.array([held.rows.get((x, y), -1) for x, y in corners], np.int64)
    found = np.empty((len(chosen), encoder.dim), np.float32)
    found[rows >= 0] = held.features[rows[rows >= 0]]
    missing = np.flatnonzero(rows < 0)
    stream = TileStream(
        slide,
        grid,
        indices=chosen[missing],
        threads=config.threads or available_processors(),
        ahead=0 if encoder.device.type == "cpu" else 2,
        on_bad_tile="raise" if config.on_bad_tile == "fail" else "blank",
    )
    done = 0
    for batch in stream:
        size = len(batch.index)
        found[missing[done : done + size]] = encoder.encode(batch.pixels, held.normalizer)
        done += size
        observer(slide_id, done, len(missing))
    return found
